//! Importances, masks and noise of the parameters' shape, for methods that change weights without training.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Weights, WeightsKind};
use dcu_nn::rng::Streams;
use dcu_nn::{DType, Gradients, Network, Samples, Tensor, Trainable};
use dcu_stage::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Samples whose gradient is taken at once where only the sum counts.
const AT_ONCE: usize = 256;

/// The gradient of the summed cross-entropy of all samples, in eval mode.
///
/// # Errors
/// When there are no samples, or they do not fit the network.
pub(crate) fn gradient(network: &Network, samples: &Samples) -> anyhow::Result<Gradients> {
    let mut sum: Option<Gradients> = None;
    for_each_gradient(
        network,
        samples,
        AT_ONCE,
        |logits, rows| samples.loss(logits, rows, 0.0)? * rows.len() as f64,
        |gradient| {
            sum = Some(match sum.take() {
                Some(sum) => sum.plus(1.0, &gradient)?,
                None => gradient,
            });
            Ok(())
        },
    )?;
    sum.ok_or_else(|| anyhow::anyhow!("there are no samples to take a gradient of"))
}

/// By what rule a parameter's importance for some samples is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Importance {
    /// The square of the gradient of a batch's mean cross-entropy: the diagonal of the empirical Fisher information where a batch is one sample.
    SquaredGradients,
    /// The size of the gradient of the mean squared norm of a batch's logits, for which no labels are needed.
    OutputSensitivity,
}

impl Importance {
    /// The mean over batches of `size` samples, one after the other, in eval mode, for all parameters. Both rules depend on the size: compare what was
    /// measured with the same.
    ///
    /// # Errors
    /// When there are no samples, or they do not fit the network.
    pub(crate) fn measure(self, network: &Network, samples: &Samples, size: usize) -> anyhow::Result<Gradients> {
        let loss = |logits: &Tensor, rows: &[usize]| match self {
            Self::SquaredGradients => samples.loss(logits, rows, 0.0),
            Self::OutputSensitivity => logits.sqr()?.sum_all()? / rows.len() as f64,
        };
        let (mut sum, mut batches): (Option<Gradients>, usize) = (None, 0);
        for_each_gradient(network, samples, size, loss, |gradient| {
            let own = gradient.map(|_, tensor| if self == Self::SquaredGradients { tensor.sqr() } else { tensor.abs() })?;
            batches += 1;
            sum = Some(match sum.take() {
                Some(sum) => sum.plus(1.0, &own)?,
                None => own,
            });
            Ok(())
        })?;
        let sum = sum.ok_or_else(|| anyhow::anyhow!("there are no samples to measure an importance with"))?;
        Ok(sum.scaled(1.0 / batches as f64)?)
    }

    /// What was measured before, where it is of this rule, size and network.
    ///
    /// # Errors
    /// Says what differs.
    pub(crate) fn read(self, weights: &Weights, network: &Network, size: usize) -> anyhow::Result<Gradients> {
        let remedy = "make `weights` by `unlearn/importance` from the same model, with the same `rule` and `batch`";
        let (rule, kind) = (serde_json::to_value(self)?, weights.facts.kind);
        if kind != WeightsKind::Importance || weights.facts.batch != size || rule.as_str() != Some(&weights.facts.rule) {
            let found = format!("{kind:?} by `{}` in batches of {}", weights.facts.rule, weights.facts.batch);
            return Err(Failure::new(format!("`weights` hold {found}, not importances by {rule} in batches of {size}"), remedy).into());
        }
        let parameters = network.parameters(&Trainable::all(network.graph()));
        let fits = parameters.len() == weights.tensors.len()
            && parameters.iter().all(|(name, value)| weights.tensors.get(*name).is_some_and(|array| array.shape == value.dims()));
        if !fits {
            return Err(Failure::new("`weights` are of another network", remedy).into());
        }
        let tensor = |(name, array): (&String, &Array<f32>)| {
            Ok((name.clone(), Tensor::from_vec(array.data.clone(), array.shape.clone(), &network.place().device)?))
        };
        Ok(weights.tensors.iter().map(tensor).collect::<dcu_nn::Result<_>>()?)
    }
}

/// The arrays of `weights/1`.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn arrays(values: &Gradients) -> anyhow::Result<BTreeMap<String, Array<f32>>> {
    let array = |(name, tensor): (&str, &Tensor)| {
        let flat = tensor.flatten_all()?.to_dtype(dcu_nn::DType::F32)?.to_vec1()?;
        Ok((name.to_owned(), Array::new(tensor.dims().to_vec(), flat)))
    };
    values.iter().map(array).collect()
}

/// The gradient of each batch in eval mode.
fn for_each_gradient(
    network: &Network,
    samples: &Samples,
    size: usize,
    loss: impl Fn(&Tensor, &[usize]) -> dcu_nn::Result<Tensor>,
    mut take: impl FnMut(Gradients) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let trainable = Trainable::all(network.graph());
    let rows: Vec<usize> = (0..samples.len()).collect();
    for rows in rows.chunks(size) {
        let (images, _) = samples.batch(rows)?;
        let logits = network.judge(&images, &trainable)?;
        take(network.backward(&loss(&logits, rows)?, &trainable)?)?;
    }
    Ok(())
}

/// The values of the parameters that are trainable. Later steps of the network do not reach them.
///
/// # Errors
/// When a tensor cannot be copied.
pub(crate) fn values(network: &Network, trainable: &Trainable) -> anyhow::Result<Gradients> {
    let copied = |(name, value): (&str, &dcu_nn::Var)| Ok((name.to_owned(), value.as_detached_tensor().copy()?));
    Ok(network.parameters(trainable).into_iter().map(copied).collect::<dcu_nn::Result<_>>()?)
}

/// Moves parameters by `factor` times a direction.
///
/// # Errors
/// When the direction is of other parameters.
pub(crate) fn shift(network: &mut Network, factor: f64, direction: &Gradients) -> anyhow::Result<()> {
    let dtype = network.place().dtype;
    let trainable = Trainable::which(network.graph(), |_, slot| direction.get(&slot.name).is_some());
    let direction = direction.map(|_, tensor| tensor.to_dtype(dtype))?;
    Ok(network.set(&values(network, &trainable)?.plus(factor, &direction)?)?)
}

/// A tensor of the shape of each, of which `draw` gives the values, each tensor with a stream of its own.
///
/// # Errors
/// When a tensor cannot be made.
pub(crate) fn drawn(
    shapes: &Gradients,
    streams: &Streams,
    purpose: &str,
    draw: impl Fn(&mut dcu_nn::rng::Stream) -> f32,
) -> anyhow::Result<Gradients> {
    let of_shape = |name: &str, tensor: &Tensor| {
        let mut stream = streams.stream(&format!("{purpose} {name}"));
        let values = (0..tensor.elem_count()).map(|_| draw(&mut stream)).collect::<Vec<f32>>();
        Tensor::from_vec(values, tensor.dims(), tensor.device())?.to_dtype(tensor.dtype())
    };
    Ok(shapes.map(of_shape)?)
}

/// 1 for a share of all values together, those of the largest size, 0 for the others. Of equal ones the first by name and place.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn largest(values: &Gradients, share: f64) -> anyhow::Result<Gradients> {
    first(&values.map(|_, tensor| tensor.abs())?, share)
}

/// 1 for a share of all values together, the greatest, 0 for the others. Of equal ones the first by name and place.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn first(values: &Gradients, share: f64) -> anyhow::Result<Gradients> {
    let mut flat = Vec::new();
    for (_, tensor) in values.iter() {
        flat.extend(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
    }
    let count = (share * flat.len() as f64).round() as usize;
    let mut order: Vec<usize> = (0..flat.len()).collect();
    order.sort_by(|&left, &right| flat[right].total_cmp(&flat[left]));
    let mut mask = vec![0.0_f32; flat.len()];
    order[..count].iter().for_each(|&place| mask[place] = 1.0);
    let mut start = 0;
    let mut of_tensor = |name: &str, tensor: &Tensor| {
        let end = start + tensor.elem_count();
        let own = Tensor::from_slice(&mask[start..end], tensor.dims(), tensor.device())?.to_dtype(tensor.dtype())?;
        start = end;
        Ok((name.to_owned(), own))
    };
    Ok(values.iter().map(|(name, tensor)| of_tensor(name, tensor)).collect::<dcu_nn::Result<_>>()?)
}

/// Solves `matrix · X = right` in place of `right`: a symmetric positive definite matrix [n, n] and right sides [n, columns], row-major, by Cholesky's
/// decomposition, of which the matrix keeps the lower triangle.
///
/// # Errors
/// When the matrix is not positive definite.
pub(crate) fn solve(matrix: &mut [f64], right: &mut [f64], n: usize) -> anyhow::Result<()> {
    for row in 0..n {
        let (above, own) = matrix.split_at_mut(row * n);
        for column in 0..row {
            let other = &above[column * n..][..=column];
            own[column] = (own[column] - dot(&own[..column], &other[..column])) / other[column];
        }
        let pivot = own[row] - dot(&own[..row], &own[..row]);
        anyhow::ensure!(pivot > 0.0, "a matrix that is to be solved is not positive definite: its pivot {row} is {pivot}");
        own[row] = pivot.sqrt();
    }
    let columns = right.len() / n;
    let subtract = |target: &mut [f64], factor: f64, other: &[f64]| {
        target.iter_mut().zip(other).for_each(|(target, other)| *target -= factor * other);
    };
    for row in 0..n {
        let (above, own) = right.split_at_mut(row * columns);
        for column in 0..row {
            subtract(&mut own[..columns], matrix[row * n + column], &above[column * columns..][..columns]);
        }
        own[..columns].iter_mut().for_each(|value| *value /= matrix[row * n + row]);
    }
    for row in (0..n).rev() {
        let (above, own) = right.split_at_mut(row * columns);
        own[..columns].iter_mut().for_each(|value| *value /= matrix[row * n + row]);
        for column in 0..row {
            subtract(&mut above[column * columns..][..columns], matrix[row * n + column], &own[..columns]);
        }
    }
    Ok(())
}

/// The scalar product, by sums side by side.
fn dot(left: &[f64], right: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (lefts, rights) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f64 = lefts.remainder().iter().zip(rights.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in lefts.zip(rights) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solution_solves() {
        let n = 19;
        let wave = |index: usize| (index as f64 * 0.7).sin();
        let factor: Vec<f64> = (0..n * n).map(wave).collect();
        let product = |row: usize, column: usize| (0..n).map(|k| factor[row * n + k] * factor[column * n + k]).sum::<f64>();
        let matrix: Vec<f64> =
            (0..n * n).map(|place| product(place / n, place % n) + f64::from(u8::from(place / n == place % n))).collect();
        let expected: Vec<f64> = (0..n * 2).map(|index| wave(3 * index + 1)).collect();
        let image = |row: usize, column: usize| (0..n).map(|k| matrix[row * n + k] * expected[k * 2 + column]).sum::<f64>();
        let mut right: Vec<f64> = (0..n * 2).map(|place| image(place / 2, place % 2)).collect();
        solve(&mut matrix.clone(), &mut right, n).unwrap();
        right.iter().zip(&expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-9, "{found} {expected}"));
        assert!(solve(&mut [1.0, 2.0, 2.0, 1.0], &mut [1.0, 1.0], 2).is_err());
    }

    #[test]
    fn of_equal_values_the_first_are_chosen() {
        let of = |values: &[f64]| Tensor::new(values, &dcu_nn::Device::Cpu).unwrap();
        let values: Gradients = [("a".to_owned(), of(&[-1.0, 3.0])), ("b".to_owned(), of(&[3.0, -3.0, 0.0]))].into_iter().collect();
        let chosen = |mask: Gradients| mask.iter().flat_map(|(_, tensor)| tensor.to_vec1::<f64>().unwrap()).collect::<Vec<_>>();
        assert_eq!(chosen(largest(&values, 0.4).unwrap()), [0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(chosen(first(&values, 0.6).unwrap()), [0.0, 1.0, 1.0, 0.0, 1.0]);
    }
}
