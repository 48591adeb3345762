//! Importances, masks and noise of the parameters' shape, for methods that change weights without training.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Weights, WeightsKind};
use dcu_nn::{Gradients, Network, Samples, Tensor, Trainable};
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

/// 1 for a share of all values together, those of the largest size, 0 for the others. Of equal ones the first by name and place.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn largest(values: &Gradients, share: f64) -> anyhow::Result<Gradients> {
    let mut sizes = Vec::new();
    for (_, tensor) in values.iter() {
        sizes.extend(tensor.abs()?.flatten_all()?.to_dtype(dcu_nn::DType::F32)?.to_vec1::<f32>()?);
    }
    let count = (share * sizes.len() as f64).round() as usize;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&left, &right| sizes[right].total_cmp(&sizes[left]));
    let mut mask = vec![0.0_f32; sizes.len()];
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
