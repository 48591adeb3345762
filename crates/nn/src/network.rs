//! A network with its weights: forward passes through its parts, and the way to and from a `model/1` artifact.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};
use dcu_artifact::{Array, Tensor as Stored};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Layer, Part};
use crate::ops::{self, Block, Convolution, Deposit, FrozenBlock, Normalisation, Statistics, Weight};
use crate::rng::{Stream, Streams};

/// How much of the running averages a new batch replaces, as in PyTorch.
const MOMENTUM: f64 = 0.1;
const BLOCK: Block = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true };

/// How the layers of one part behave that act differently in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Batch normalisation uses the batch's statistics and moves the running averages; otherwise it uses these and leaves them alone.
    pub batch_statistics: bool,
    /// Dropout drops.
    pub dropout: bool,
}

impl Mode {
    /// As for evaluation.
    pub const EVAL: Self = Self { batch_statistics: false, dropout: false };
    /// As for training.
    pub const TRAIN: Self = Self { batch_statistics: true, dropout: true };
    /// Dropout as for training, batch normalisation as for evaluation.
    pub const DROPOUT: Self = Self { batch_statistics: false, dropout: true };
}

/// Which parts are in train mode while one of them is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModeRule {
    /// Only the part that is trained. The final, whose training set is small, keeps its batch normalisation in eval mode.
    Corrected,
    /// As in the published code.
    Published,
}

/// The modes in which `part` is trained under [`ModeRule::Corrected`].
#[must_use]
pub fn corrected(part: Part) -> Modes {
    only(part, if part == Part::Final { Mode::DROPOUT } else { Mode::TRAIN })
}

/// The mode of each part, in the order of [`Part::ALL`].
pub type Modes = [Mode; 3];

/// One mode for all parts.
#[must_use]
pub const fn all(mode: Mode) -> Modes {
    [mode; 3]
}

/// `mode` for one part, [`Mode::EVAL`] for the others.
#[must_use]
pub fn only(part: Part, mode: Mode) -> Modes {
    Part::ALL.map(|other| if other == part { mode } else { Mode::EVAL })
}

/// The running averages of one batch normalisation.
#[derive(Debug, Clone, PartialEq)]
struct RunningAverages {
    mean: Vec<f32>,
    variance: Vec<f32>,
    batches: i64,
}

impl RunningAverages {
    /// Mean and variance in f64.
    fn wide(&self) -> [Vec<f64>; 2] {
        [&self.mean, &self.variance].map(|values| values.iter().map(|&value| f64::from(value)).collect())
    }

    /// Moves them towards the statistics of a batch.
    fn blend(&mut self, statistics: &Statistics) {
        let blend = |old: &mut [f32], new: &[f64]| {
            old.iter_mut().zip(new).for_each(|(old, new)| *old = ((1.0 - MOMENTUM) * f64::from(*old) + MOMENTUM * new) as f32);
        };
        blend(&mut self.mean, &statistics.mean);
        blend(&mut self.variance, &statistics.unbiased_variance());
        self.batches += 1;
    }
}

/// The statistics of a batch, by the name of the normalisation that they belong to.
type Moved = Vec<(String, Statistics)>;

/// A network with its weights. It has no `clone`, whose variables would be those of the original: [`Self::duplicate`] shares nothing.
#[derive(Debug)]
pub struct Network {
    architecture: Architecture,
    layers: [Vec<Layer>; 3],
    parameters: BTreeMap<String, Var>,
    /// Where the gradients of the layers' weights are left during [`Self::backward`].
    deposits: BTreeMap<String, Deposit>,
    averages: BTreeMap<String, RunningAverages>,
}

impl Network {
    /// A network with fresh weights: uniform in ±1/√fan-in for convolutions and linear layers, 1 and 0 for batch normalisation, as PyTorch
    /// does by default. Each tensor has a stream of its own.
    ///
    /// # Errors
    /// When there is no network of this architecture.
    pub fn initialised(architecture: &Architecture, streams: &Streams) -> Result<Self> {
        Self::build(architecture, |name, shape, fan_in| {
            let count = shape.iter().product();
            let values = match fan_in {
                Some(fan_in) => {
                    let (bound, mut stream) = (1.0 / (fan_in as f32).sqrt(), streams.stream(&format!("initialise {name}")));
                    (0..count).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect()
                }
                None => vec![if name.ends_with(".weight") || name.ends_with(".running_var") { 1.0 } else { 0.0 }; count],
            };
            Ok(values)
        })
    }

    /// A network with given weights, by PyTorch's names. A missing `num_batches_tracked` counts as 0.
    ///
    /// # Errors
    /// Names a tensor that is missing, of the wrong shape or type, or not part of the network.
    pub fn from_tensors(architecture: &Architecture, tensors: &BTreeMap<String, Stored>) -> Result<Self> {
        let mut used = Vec::new();
        let mut network = Self::build(architecture, |name, shape, _| {
            used.push(name.to_owned());
            match tensors.get(name) {
                Some(Stored::F32(array)) if array.shape == shape => Ok(array.data.clone()),
                Some(other) => bail!("`{name}` is {:?} of {:?}, but the network needs F32 of {shape:?}", other.shape(), other.dtype()),
                None => bail!("`{name}` is missing; the network needs it with the shape {shape:?}"),
            }
        })?;
        for (name, averages) in &mut network.averages {
            let name = format!("{name}.num_batches_tracked");
            averages.batches = match tensors.get(&name) {
                None => 0,
                Some(Stored::I64(array)) if array.data.len() == 1 && array.data[0] >= 0 => array.data[0],
                Some(other) => bail!("`{name}` is {:?} of {:?}; it must be one I64 of 0 or more", other.shape(), other.dtype()),
            };
            used.push(name);
        }
        match tensors.keys().find(|name| !used.contains(name)) {
            Some(name) => bail!("`{name}` is not part of the network"),
            None => Ok(network),
        }
    }

    fn build(architecture: &Architecture, mut values: impl FnMut(&str, &[usize], Option<usize>) -> Result<Vec<f32>>) -> Result<Self> {
        let layers = architecture.layers().map_err(candle_core::Error::msg)?;
        let (mut parameters, mut averages) = (BTreeMap::new(), BTreeMap::new());
        let mut parameter = |name: String, shape: &[usize], fan_in| -> Result<()> {
            let tensor = Tensor::from_vec(values(&name, shape, fan_in)?, shape, &Device::Cpu)?;
            parameters.insert(name, Var::from_tensor(&tensor)?);
            Ok(())
        };
        for layer in layers.iter().flatten() {
            match layer {
                Layer::Block { convolution, normalisation, inputs, outputs } => {
                    parameter(format!("{convolution}.weight"), &[*outputs, *inputs, 3, 3], Some(inputs * 9))?;
                    parameter(format!("{convolution}.bias"), &[*outputs], Some(inputs * 9))?;
                    parameter(format!("{normalisation}.weight"), &[*outputs], None)?;
                    parameter(format!("{normalisation}.bias"), &[*outputs], None)?;
                }
                Layer::Linear { name, inputs, outputs } => {
                    parameter(format!("{name}.weight"), &[*outputs, *inputs], Some(*inputs))?;
                    parameter(format!("{name}.bias"), &[*outputs], Some(*inputs))?;
                }
                _ => {}
            }
        }
        for layer in layers.iter().flatten() {
            if let Layer::Block { normalisation: name, outputs, .. } = layer {
                let mean = values(&format!("{name}.running_mean"), &[*outputs], None)?;
                let variance = values(&format!("{name}.running_var"), &[*outputs], None)?;
                averages.insert(name.clone(), RunningAverages { mean, variance, batches: 0 });
            }
        }
        let layered = layers.iter().flatten().filter_map(|layer| match layer {
            Layer::Block { convolution: name, .. } | Layer::Linear { name, .. } => Some((name.clone(), Deposit::default())),
            _ => None,
        });
        Ok(Self { architecture: architecture.clone(), deposits: layered.collect(), layers, parameters, averages })
    }

    /// A copy that shares nothing with this network.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn duplicate(&self) -> Result<Self> {
        Self::from_tensors(&self.architecture, &self.to_tensors()?)
    }

    /// The weights by PyTorch's names, parameters and buffers.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn to_tensors(&self) -> Result<BTreeMap<String, Stored>> {
        let mut tensors = BTreeMap::new();
        for (name, parameter) in &self.parameters {
            let values = parameter.as_detached_tensor().flatten_all()?.to_vec1::<f32>()?;
            tensors.insert(name.clone(), Stored::F32(Array::new(parameter.dims().to_vec(), values)));
        }
        for (name, averages) in &self.averages {
            tensors.insert(format!("{name}.running_mean"), Stored::F32(Array::vector(averages.mean.clone())));
            tensors.insert(format!("{name}.running_var"), Stored::F32(Array::vector(averages.variance.clone())));
            tensors.insert(format!("{name}.num_batches_tracked"), Stored::I64(Array::new(vec![], vec![averages.batches])));
        }
        Ok(tensors)
    }

    /// The network with all its sizes.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The parameters of some parts, by name.
    #[must_use]
    pub fn parameters(&self, parts: &[Part]) -> BTreeMap<&str, &Var> {
        let layers = parts.iter().flat_map(|&part| &self.layers[part as usize]);
        let names = layers.flat_map(|layer| match layer {
            Layer::Block { convolution, normalisation, .. } => vec![convolution, normalisation],
            Layer::Linear { name, .. } => vec![name],
            _ => Vec::new(),
        });
        names
            .flat_map(|name| [format!("{name}.weight"), format!("{name}.bias")])
            .map(|name| self.parameters.get_key_value(&name).expect("built with every layer"))
            .map(|(name, parameter)| (name.as_str(), parameter))
            .collect()
    }

    /// Whether a part gives the same output in a mode as in [`Mode::EVAL`] and leaves its buffers alone, so that what it gives can be kept.
    #[must_use]
    pub fn is_fixed(&self, part: Part, mode: Mode) -> bool {
        self.layers[part as usize].iter().all(|layer| match layer {
            Layer::Block { .. } => !mode.batch_statistics,
            Layer::Dropout(probability) => !mode.dropout || *probability == 0.0,
            _ => true,
        })
    }

    /// The output of the given consecutive parts for `input`, which is the output of the part before them. Gradients flow to the
    /// parameters of `trainable`, to be had by [`Self::backward`], and, where `input` takes part in differentiation, to it.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&mut self, input: &Tensor, parts: &[Part], modes: Modes, trainable: &[Part], dropout: &mut Stream) -> Result<Tensor> {
        let (output, moved) = self.run(input, parts, modes, trainable, dropout)?;
        if moved.iter().any(|(_, statistics)| statistics.count < 2) {
            bail!("batch normalisation in training needs more than one value per channel");
        }
        for (name, statistics) in moved {
            self.averages.get_mut(&name).expect("built with every layer").blend(&statistics);
        }
        Ok(output)
    }

    /// As [`Self::forward`], with the statistics that the running averages are to be moved by.
    fn run(&self, input: &Tensor, parts: &[Part], modes: Modes, trainable: &[Part], dropout: &mut Stream) -> Result<(Tensor, Moved)> {
        let is_frozen = |(part, layer): &(Part, &Layer)| {
            matches!(layer, Layer::Block { .. }) && !trainable.contains(part) && !modes[*part as usize].batch_statistics
        };
        let mut layers = parts.iter().flat_map(|&part| self.layers[part as usize].iter().map(move |layer| (part, layer))).peekable();
        let (mut value, mut moved) = (input.clone(), Vec::new());
        loop {
            let frozen: Vec<_> =
                std::iter::from_fn(|| layers.next_if(is_frozen)).filter_map(|(_, layer)| self.frozen_block(layer)).collect();
            value = ops::frozen_blocks(&value, &frozen)?;
            let Some((part, layer)) = layers.next() else { return Ok((value, moved)) };
            let mode = modes[part as usize];
            let is_trainable = trainable.contains(&part);
            value = match layer {
                Layer::ChannelsLast => ops::channels_last(&value)?,
                Layer::ChannelsFirst => ops::channels_first(&value)?,
                Layer::Block { convolution, normalisation, .. } => {
                    let (weight, parameters) = self.block_parameters(convolution, normalisation, is_trainable);
                    let weight = Weight::new(&weight, is_trainable.then(|| &self.deposits[convolution]));
                    let [mean, variance] = self.averages[normalisation].wide();
                    let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
                    let normalised_by = if mode.batch_statistics { Normalisation::Batch } else { fixed };
                    let (output, statistics) = ops::conv_block(&value, weight, parameters.each_ref(), BLOCK, normalised_by)?;
                    moved.extend(statistics.map(|statistics| (normalisation.clone(), statistics)));
                    output
                }
                Layer::Flatten => value.flatten_from(1)?,
                Layer::Linear { name, .. } => {
                    let [weight, bias] = ["weight", "bias"].map(|kind| self.parameter(name, kind, is_trainable));
                    let weight = Weight::new(&weight, is_trainable.then(|| &self.deposits[name]));
                    ops::linear(&value, weight, &bias)?
                }
                Layer::Relu => ops::relu(&value)?,
                Layer::Dropout(probability) if mode.dropout && *probability > 0.0 => ops::dropout(&value, *probability, dropout)?,
                Layer::Dropout(_) => value,
            };
        }
    }

    /// The gradients of a loss of this network's output. candle's own backward pass knows nothing of those of the layers' weights.
    ///
    /// # Errors
    /// When the loss is not one number.
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        backward(loss, &[self])
    }

    /// A block as it is frozen in eval mode; nothing for other layers.
    fn frozen_block(&self, layer: &Layer) -> Option<FrozenBlock> {
        let Layer::Block { convolution, normalisation, .. } = layer else { return None };
        let (weight, parameters) = self.block_parameters(convolution, normalisation, false);
        let [mean, variance] = self.averages[normalisation].wide();
        Some(FrozenBlock { weight, parameters, mean, variance, block: BLOCK })
    }

    /// The convolution's weight; its bias, and the normalisation's scale and shift.
    fn block_parameters(&self, convolution: &str, normalisation: &str, is_trainable: bool) -> (Tensor, [Tensor; 3]) {
        let others = [(convolution, "bias"), (normalisation, "weight"), (normalisation, "bias")];
        (self.parameter(convolution, "weight", is_trainable), others.map(|(name, kind)| self.parameter(name, kind, is_trainable)))
    }

    /// A parameter, which takes part in differentiation where it is trainable.
    fn parameter(&self, name: &str, kind: &str, is_trainable: bool) -> Tensor {
        let parameter = &self.parameters[&format!("{name}.{kind}")];
        if is_trainable { parameter.as_tensor().clone() } else { parameter.as_detached_tensor() }
    }

    /// As [`Self::forward`] in eval mode, where nothing but the input takes part in differentiation.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn evaluate(&self, input: &Tensor, parts: &[Part]) -> Result<Tensor> {
        // In eval mode neither the buffers nor the dropout stream are touched.
        Ok(self.run(input, parts, all(Mode::EVAL), &[], &mut Streams::new(0, "evaluate").stream("unused"))?.0)
    }

    /// The names of the batch normalisations of a part, in order.
    pub(crate) fn batch_norms(&self, part: Part) -> Vec<String> {
        let names = self.layers[part as usize].iter().filter_map(|layer| match layer {
            Layer::Block { normalisation, .. } => Some(normalisation.clone()),
            _ => None,
        });
        names.collect()
    }

    /// What the named batch normalisation of a part sees of a batch, given the output of the parts before, with all that lies before it in eval mode.
    pub(crate) fn statistics(&self, input: &Tensor, part: Part, name: &str) -> Result<Statistics> {
        let mut value = input.clone();
        for layer in &self.layers[part as usize] {
            match layer {
                Layer::ChannelsLast => value = ops::channels_last(&value)?,
                Layer::Block { convolution, normalisation, .. } if normalisation == name => {
                    let (weight, parameters) = self.block_parameters(convolution, normalisation, false);
                    let (_, statistics) = ops::conv_block(&value, &weight, parameters.each_ref(), BLOCK, Normalisation::Batch)?;
                    return statistics.ok_or_else(|| candle_core::Error::msg("a batch has statistics"));
                }
                Layer::Block { .. } => value = ops::frozen_blocks(&value, &[self.frozen_block(layer).expect("a block")])?,
                _ => break,
            }
        }
        bail!("`{name}` is not among the first layers of its part")
    }

    /// Sets the running averages of the named batch normalisation.
    pub(crate) fn set_averages(&mut self, name: &str, statistics: &Statistics) {
        let averages = self.averages.get_mut(name).expect("built with every layer");
        averages.mean = statistics.mean.iter().map(|&mean| mean as f32).collect();
        averages.variance = statistics.unbiased_variance().iter().map(|&variance| variance as f32).collect();
    }
}

/// The gradients of a loss that depends on the outputs of several networks.
///
/// # Errors
/// When the loss is not one number.
pub fn backward(loss: &Tensor, networks: &[&Network]) -> Result<GradStore> {
    // What a backward pass that nobody asked these networks about left behind.
    let deposits = || networks.iter().flat_map(|network| network.deposits.iter().map(move |deposit| (network, deposit)));
    deposits().for_each(|(_, (_, deposit))| drop(deposit.take()));
    let mut gradients = loss.backward()?;
    for (network, (name, deposit)) in deposits() {
        if let Some(gradient) = deposit.take() {
            gradients.insert(&network.parameters[&format!("{name}.weight")], gradient);
        }
    }
    Ok(gradients)
}
