//! Softmax cross-entropy.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::{composed, dtype_of, for_real, stored, values, with_values};
use crate::vector::Real;

/// The mean over the batch of `-ln softmax(logits)[label]`, a scalar; logits [N, classes].
///
/// # Errors
/// When there are no rows, a label is out of range, the numbers of rows differ, or the logits are neither f32 nor f64.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    if check(logits, labels)?.0 == 0 {
        bail!("there is no mean loss of no samples");
    }
    if !logits.device().is_cpu() {
        return composed::cross_entropy(logits, labels);
    }
    logits.contiguous()?.apply_op1(CrossEntropy { labels: labels.to_vec() })
}

/// `-ln softmax(logits)[label]` of each row in f64, without a graph; logits [N, classes].
///
/// # Errors
/// As [`cross_entropy`], but for no rows, which have no losses.
pub fn cross_entropy_per_sample(logits: &Tensor, labels: &[u32]) -> Result<Vec<f64>> {
    let (_, classes) = check(logits, labels)?;
    let logits = logits.to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F64)?;
    with_values::<f64, _>(&[&logits], |arguments| Ok(losses(arguments[0], classes, labels)))
}

fn check(logits: &Tensor, labels: &[u32]) -> Result<(usize, usize)> {
    let (rows, classes) = logits.dims2()?;
    if rows != labels.len() {
        bail!("{rows} rows of logits, but {} labels", labels.len());
    }
    if classes == 0 {
        bail!("logits need a class at least");
    }
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => bail!("the label {label} is out of range: there are {classes} classes"),
        None => Ok((rows, classes)),
    }
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
