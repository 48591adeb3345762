//! Losses of a batch, scalars, each with the gradient of the logits. These choose between their kernel and what is composed of candle's own by the
//! device of the logits, so that a training loop takes them as they are.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::composed;
use super::storage::{apply1, apply2, dtype_of, for_real, gradient_of, stored, values, with_values};
use super::types::{Targets, Weighting, check_labels};
use crate::vector::Real;

/// Values whose squares are added up before they are added to those of others.
const SUMMED_AT_ONCE: usize = 1 << 12;

/// The mean over the batch of `-ln softmax(logits)[label]`, a scalar; logits [N, classes].
///
/// # Errors
/// When there are no rows, a label is out of range, the numbers of rows differ, or the logits are neither f32 nor f64.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    check_labels(labels, rows, classes)?;
    if rows == 0 {
        bail!("there is no mean loss of no samples");
    }
    if !logits.device().is_cpu() {
        return composed::cross_entropy(logits, labels);
    }
    apply1(logits, CrossEntropy { labels: labels.to_vec() })
}

/// `-ln softmax(logits)[label]` of each row in f64, without a graph; logits [N, classes].
///
/// # Errors
/// As [`cross_entropy`], but for no rows, which have no losses.
pub fn cross_entropy_per_sample(logits: &Tensor, labels: &[u32]) -> Result<Vec<f64>> {
    let (rows, classes) = logits.dims2()?;
    check_labels(labels, rows, classes)?;
    let logits = logits.to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F64)?;
    with_values::<f64, _>(&[&logits], |arguments| Ok(losses(arguments[0], classes, labels)))
}

/// The mean over the batch of `-Σ target · ln softmax(logits)`, a scalar: logits and targets [N, C], of which the targets are constants. With weights of
/// the samples, [N], the weighted mean.
///
/// # Errors
/// When there are no rows, shapes differ, or the logits are neither f32 nor f64.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, weights: Option<&[f64]>) -> Result<Tensor> {
    weighted_cross_entropy(logits, Targets::Probabilities(targets), Weighting { samples: weights, ..Weighting::default() })
}

/// The cross-entropy of logits [N, C] with hard or soft targets, smoothed and weighted, a scalar.
///
/// With `t` the targets (1 at a label), `s` the smoothing, `w` the weights of classes and `v` those of samples it is
/// `-Σ v_n w_c ((1 - s) t_nc + s / C) ln softmax(logits)_nc`, divided by `Σ v_n` for probabilities and by `Σ v_n w_label` for labels, as PyTorch's
/// `cross_entropy` with `label_smoothing` and `weight` does. Without any of these and with labels it is [`cross_entropy`], bit for bit.
///
/// # Errors
/// When there are no rows, a label is out of range, shapes differ, the smoothing is not within 0 and 1, or the logits are neither f32 nor f64.
pub fn weighted_cross_entropy(logits: &Tensor, targets: Targets<'_>, weighting: Weighting<'_>) -> Result<Tensor> {
    if let (Targets::Labels(labels), true) = (targets, weighting.is_plain()) {
        return cross_entropy(logits, labels);
    }
    if !logits.device().is_cpu() {
        return composed::weighted_cross_entropy(logits, targets, weighting);
    }
    let (coefficients, divisor) = weighting.coefficients(targets, logits.dims2()?)?;
    apply1(logits, SoftCrossEntropy { coefficients, divisor })
}

/// How far a student's distribution is from its teacher's, for distillation (Hinton et al., arXiv 1503.02531), a scalar: with `p = softmax(teacher / T)`
/// and `q = softmax(student / T)` it is `T² / N · Σ p (ln p - ln q)`. Both are logits [N, C]; no gradient flows to the teacher.
///
/// # Errors
/// When there are no rows, the shapes differ, the temperature is not above 0, or a tensor is neither f32 nor f64.
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (rows, classes) = student.dims2()?;
    if teacher.dims() != student.dims() || rows == 0 || classes == 0 {
        bail!("no divergence of a student's logits {:?} from a teacher's {:?}", student.dims(), teacher.dims());
    }
    if temperature.is_nan() || temperature <= 0.0 {
        bail!("the temperature of a distillation is above 0, not {temperature}");
    }
    if !student.device().is_cpu() {
        return composed::kl_divergence(student, teacher, temperature);
    }
    apply2(student, &teacher.detach(), Divergence { temperature })
}

/// The mean of the squared differences over all values, a scalar; the gradient flows to both.
///
/// # Errors
/// When the shapes differ, there are no values, or a tensor is neither f32 nor f64.
pub fn squared_error(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    if left.dims() != right.dims() || left.elem_count() == 0 {
        bail!("no mean squared error of {:?} and {:?}", left.dims(), right.dims());
    }
    if !left.device().is_cpu() {
        return composed::squared_error(left, right);
    }
    apply2(left, right, SquaredError)
}

struct CrossEntropy {
    labels: Vec<u32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, classes) = layout.shape().dims2()?;
        for_real!(dtype_of(storage), T => {
            let total: T = losses(values::<T>(storage, layout)?, classes, &self.labels).into_iter().sum();
            Ok((stored(vec![total / T::from_f64(rows as f64)]), Shape::from(())))
        })
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, classes) = logits.dims2()?;
        for_real!(logits.dtype(), T => with_values::<T, _>(&[logits, gradient], |arguments| {
            let scale = arguments[1][0] / T::from_f64(rows as f64);
            let mut result = Vec::with_capacity(rows * classes);
            for (row, &label) in arguments[0].chunks_exact(classes).zip(&self.labels) {
                let normaliser = log_sum_exp(row);
                for (class, &logit) in row.iter().enumerate() {
                    let probability = (logit - normaliser).exponential();
                    let target = if class == label as usize { T::ONE } else { T::default() };
                    result.push(scale * (probability - target));
                }
            }
            Tensor::from_vec(result, (rows, classes), logits.device()).map(Some)
        }))
    }
}

fn losses<T: Real>(logits: &[T], classes: usize, labels: &[u32]) -> Vec<T> {
    logits.chunks_exact(classes).zip(labels).map(|(row, &label)| log_sum_exp(row) - row[label as usize]).collect()
}

fn log_sum_exp<T: Real>(row: &[T]) -> T {
    let largest = row.iter().copied().fold(row[0], |largest, value| if value > largest { value } else { largest });
    let sum: T = row.iter().map(|&value| (value - largest).exponential()).sum();
    largest + sum.log()
}

/// The cross-entropy by the share that each class of each sample has.
struct SoftCrossEntropy {
    coefficients: Vec<f64>,
    divisor: f64,
}

impl CustomOp1 for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        "soft_cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = layout.shape().dims2()?;
        for_real!(dtype_of(storage), T => {
            let mut total = 0.0;
            for (row, coefficients) in values::<T>(storage, layout)?.chunks_exact(classes).zip(self.coefficients.chunks_exact(classes)) {
                let normaliser = log_sum_exp(row);
                for (&logit, &coefficient) in row.iter().zip(coefficients) {
                    // A class without a share adds nothing, even if it is impossible.
                    total += if coefficient == 0.0 { 0.0 } else { coefficient * (normaliser - logit).to_f64() };
                }
                if normaliser.is_nan() {
                    total = f64::NAN;
                }
            }
            Ok((stored(vec![T::from_f64(total / self.divisor)]), Shape::from(())))
        })
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        for_real!(logits.dtype(), T => with_values::<T, _>(&[logits, gradient], |arguments| {
            let scale = arguments[1][0].to_f64() / self.divisor;
            let mut result = Vec::with_capacity(arguments[0].len());
            for (row, coefficients) in arguments[0].chunks_exact(classes).zip(self.coefficients.chunks_exact(classes)) {
                let (normaliser, sum) = (log_sum_exp(row), coefficients.iter().sum::<f64>());
                let terms = row.iter().zip(coefficients);
                result.extend(terms.map(|(&logit, &own)| T::from_f64(scale * (sum * (logit - normaliser).exponential().to_f64() - own))));
            }
            gradient_of(logits, Some(result))
        }))
    }
}

/// `T² / N · Σ p (ln p - ln q)` of a student's logits and a teacher's.
struct Divergence {
    temperature: f64,
}

impl Divergence {
    /// Calls `visit` with `ln q` and `ln p` of each class of each sample, in f64.
    fn walk<T: Real>(&self, student: &[T], teacher: &[T], classes: usize, mut visit: impl FnMut(f64, f64)) {
        let logarithms = |row: &[T]| {
            let row: Vec<f64> = row.iter().map(|value| value.to_f64() / self.temperature).collect();
            let normaliser = log_sum_exp(&row);
            row.into_iter().map(move |value| value - normaliser)
        };
        for (student, teacher) in student.chunks_exact(classes).zip(teacher.chunks_exact(classes)) {
            logarithms(student).zip(logarithms(teacher)).for_each(|(student, teacher)| visit(student, teacher));
        }
    }
}

impl CustomOp2 for Divergence {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, classes) = l1.shape().dims2()?;
        for_real!(dtype_of(s1), T => {
            let mut total = 0.0;
            self.walk(values::<T>(s1, l1)?, values::<T>(s2, l2)?, classes, |student, teacher| {
                let probability = teacher.exp();
                // What the teacher holds for impossible adds nothing.
                total += if probability == 0.0 { 0.0 } else { probability * (teacher - student) };
            });
            Ok((stored(vec![T::from_f64(total * self.temperature * self.temperature / rows as f64)]), Shape::from(())))
        })
    }

    fn bwd(&self, student: &Tensor, teacher: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, classes) = student.dims2()?;
        for_real!(student.dtype(), T => with_values::<T, _>(&[student, teacher, gradient], |arguments| {
            let scale = arguments[2][0].to_f64() * self.temperature / rows as f64;
            let mut result = Vec::with_capacity(arguments[0].len());
            self.walk(arguments[0], arguments[1], classes, |student, teacher| result.push(T::from_f64(scale * (student.exp() - teacher.exp()))));
            Ok((gradient_of(student, Some(result))?, None))
        }))
    }
}

struct SquaredError;

impl CustomOp2 for SquaredError {
    fn name(&self) -> &'static str {
        "squared_error"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(s1), T => {
            let (left, right) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?);
            let square = |(left, right): (&T, &T)| (left.to_f64() - right.to_f64()).powi(2);
            let parts = left.chunks(SUMMED_AT_ONCE).zip(right.chunks(SUMMED_AT_ONCE));
            let total: f64 = parts.map(|(left, right)| left.iter().zip(right).map(square).sum::<f64>()).sum();
            Ok((stored(vec![T::from_f64(total / left.len() as f64)]), Shape::from(())))
        })
    }

    fn bwd(&self, left: &Tensor, right: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        for_real!(left.dtype(), T => with_values::<T, _>(&[left, right, gradient], |arguments| {
            let factor = arguments[2][0] * T::from_f64(2.0 / arguments[0].len() as f64);
            let of_left = |sign: T| arguments[0].iter().zip(arguments[1]).map(|(&left, &right)| sign * factor * (left - right)).collect::<Vec<T>>();
            Ok((
                gradient_of(left, left.track_op().then(|| of_left(T::ONE)))?,
                gradient_of(right, right.track_op().then(|| of_left(-T::ONE)))?,
            ))
        }))
    }
}
