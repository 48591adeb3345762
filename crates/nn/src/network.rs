//! A network with its weights: passes through its parts, the gradients of a loss, and the way to and from a `model/1` artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use dcu_artifact::{Array, Tensor as Stored};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Part};
use crate::fuse::{Kernel, Piece, fuse};
use crate::gradients::Gradients;
use crate::graph::{Graph, Initial, Operation, Role, Slot, Step, Value};
use crate::ops::{
    self, BATCH_NORM_EPSILON, Convolution, Deposit, FrozenBlock, InstanceBlock, Normalisation, Statistics, Weight, composed, with_values,
};
use crate::place::Place;
use crate::rng::{Stream, Streams};
use crate::tally;

/// How much of the running averages a new batch replaces, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// How the steps of one part behave that act differently in training.
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

/// The parameters that a pass is to give gradients for, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trainable(BTreeSet<String>);

impl Trainable {
    /// None of them.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Those that `wanted` says, of a part and for a purpose.
    #[must_use]
    pub fn which(graph: &Graph, wanted: impl Fn(Part, &Slot) -> bool) -> Self {
        let steps =
            graph.steps().iter().enumerate().flat_map(|(index, step)| step.slots.iter().map(move |slot| (graph.part_of(index), slot)));
        Self(steps.filter(|(part, slot)| slot.role.is_parameter() && wanted(*part, slot)).map(|(_, slot)| slot.name.clone()).collect())
    }

    /// All of them.
    #[must_use]
    pub fn all(graph: &Graph) -> Self {
        Self::which(graph, |_, _| true)
    }

    /// Those of some parts.
    #[must_use]
    pub fn parts(graph: &Graph, parts: &[Part]) -> Self {
        Self::which(graph, |part, _| parts.contains(&part))
    }

    /// Whether a parameter is among them.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// The names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The running averages of one batch normalisation, as wide as the network's numbers.
#[derive(Debug, Clone, PartialEq)]
struct RunningAverages {
    mean: Vec<f64>,
    variance: Vec<f64>,
    batches: i64,
}

impl RunningAverages {
    /// Moves them towards the statistics of a batch.
    fn blend(&mut self, statistics: &Statistics, dtype: DType) {
        let blend = |old: &mut [f64], new: &[f64]| {
            old.iter_mut().zip(new).for_each(|(old, new)| *old = rounded((1.0 - MOMENTUM) * *old + MOMENTUM * new, dtype));
        };
        blend(&mut self.mean, &statistics.mean);
        blend(&mut self.variance, &statistics.unbiased_variance());
        self.batches += 1;
    }
}

/// A number as the type holds it.
fn rounded(value: f64, dtype: DType) -> f64 {
    if dtype == DType::F64 { value } else { f64::from(value as f32) }
}

/// The statistics of a batch, by the name of the normalisation that they belong to.
type Moved = Vec<(String, Statistics)>;

/// The values of a parameter or buffer where they lie, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
}

impl Values<'_> {
    /// A copy.
    pub(crate) fn to_stored(self, shape: &[usize]) -> Stored {
        match self {
            Self::F32(values) => Stored::F32(Array::new(shape.to_vec(), values.to_vec())),
            Self::F64(values) => Stored::F64(Array::new(shape.to_vec(), values.to_vec())),
            Self::I64(values) => Stored::I64(Array::new(shape.to_vec(), values.to_vec())),
        }
    }
}

/// A network with its weights. It has no `clone`, whose variables would be those of the original: [`Self::duplicate`] shares nothing.
#[derive(Debug)]
pub struct Network {
    architecture: Architecture,
    graph: Graph,
    pieces: Vec<Piece>,
    place: Place,
    parameters: BTreeMap<String, Var>,
    /// Where operations leave gradients of parameters during [`Self::backward`].
    deposits: BTreeMap<String, Deposit>,
    averages: BTreeMap<String, RunningAverages>,
    /// Weights that no training moves.
    fixed: BTreeMap<String, Tensor>,
}

/// One way through some steps.
struct Pass<'a> {
    modes: Modes,
    trainable: &'a Trainable,
    dropout: Option<&'a mut Stream>,
    moved: Moved,
}

impl Network {
    /// A network with fresh weights, as PyTorch, torchvision or timm start it, at the place of this process. Each tensor has a stream of its own.
    ///
    /// # Errors
    /// When there is no network of this architecture.
    pub fn initialised(architecture: &Architecture, streams: &Streams) -> Result<Self> {
        Self::build(architecture, Place::of_process(), |slot| Ok(fresh(slot, streams)))
    }

    /// A network with given weights, by PyTorch's names, at the place of this process. A missing `num_batches_tracked` counts as 0.
    ///
    /// # Errors
    /// Names a tensor that is missing, of the wrong shape or type, or not part of the network.
    pub fn from_tensors(architecture: &Architecture, tensors: &BTreeMap<String, Stored>) -> Result<Self> {
        Self::at(Place::of_process(), architecture, tensors)
    }

    /// The same on another device, in other numbers.
    ///
    /// # Errors
    /// As [`Self::from_tensors`].
    pub fn at(place: Place, architecture: &Architecture, tensors: &BTreeMap<String, Stored>) -> Result<Self> {
        let mut network = Self::build(architecture, place, |slot| match tensors.get(&slot.name) {
            Some(stored @ (Stored::F32(_) | Stored::F64(_))) if stored.shape() == slot.shape => Ok(stored.clone()),
            Some(other) => {
                bail!("`{}` is {:?} of {:?}, but the network needs F32 of {:?}", slot.name, other.shape(), other.dtype(), slot.shape)
            }
            None => bail!("`{}` is missing; the network needs it with the shape {:?}", slot.name, slot.shape),
        })?;
        for (name, averages) in &mut network.averages {
            let name = format!("{name}.num_batches_tracked");
            averages.batches = match tensors.get(&name) {
                None => 0,
                Some(Stored::I64(array)) if array.data.len() == 1 && array.data[0] >= 0 => array.data[0],
                Some(other) => bail!("`{name}` is {:?} of {:?}; it must be one I64 of 0 or more", other.shape(), other.dtype()),
            };
        }
        let known: BTreeSet<&str> = network.graph.slots().map(|slot| slot.name.as_str()).collect();
        match tensors.keys().find(|name| !known.contains(name.as_str())) {
            Some(name) => bail!("`{name}` is not part of the network"),
            None => Ok(network),
        }
    }

    fn build(architecture: &Architecture, place: Place, mut values: impl FnMut(&Slot) -> Result<Stored>) -> Result<Self> {
        let graph = architecture.graph().map_err(candle_core::Error::msg)?;
        let (mut parameters, mut averages, mut fixed, mut deposits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let tensor = |stored: Stored| {
            let tensor = match stored {
                Stored::F32(array) => Tensor::from_vec(array.data, array.shape, &Device::Cpu)?,
                Stored::F64(array) => Tensor::from_vec(array.data, array.shape, &Device::Cpu)?,
                other => bail!("weights are F32 or F64, not {:?}", other.dtype()),
            };
            tensor.to_dtype(place.dtype)?.to_device(&place.device)
        };
        for step in graph.steps() {
            let (mut mean, mut variance) = (None, None);
            for slot in &step.slots {
                match slot.role {
                    Role::RunningMean => mean = Some(tensor(values(slot)?)?.to_dtype(DType::F64)?.to_vec1::<f64>()?),
                    Role::RunningVariance => variance = Some(tensor(values(slot)?)?.to_dtype(DType::F64)?.to_vec1::<f64>()?),
                    Role::Counter => {}
                    Role::Dictionary => drop(fixed.insert(slot.name.clone(), tensor(values(slot)?)?)),
                    Role::Weight | Role::Bias | Role::Scale | Role::Shift | Role::Embedding => {
                        parameters.insert(slot.name.clone(), Var::from_tensor(&tensor(values(slot)?)?)?);
                        deposits.insert(slot.name.clone(), Deposit::default());
                    }
                }
            }
            if let (Some(mean), Some(variance)) = (mean, variance) {
                averages.insert(step.name.clone(), RunningAverages { mean, variance, batches: 0 });
            }
        }
        let pieces = fuse(&graph);
        Ok(Self { architecture: architecture.clone(), graph, pieces, place, parameters, deposits, averages, fixed })
    }

    /// A network like this one, at the same place, with other weights.
    ///
    /// # Errors
    /// As [`Self::from_tensors`].
    pub fn with_tensors(&self, tensors: &BTreeMap<String, Stored>) -> Result<Self> {
        Self::at(self.place.clone(), &self.architecture, tensors)
    }

    /// A copy that shares nothing with this network.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn duplicate(&self) -> Result<Self> {
        self.moved_to(self.place.clone())
    }

    /// A copy on another device, or in other numbers.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn moved_to(&self, place: Place) -> Result<Self> {
        Self::at(place, &self.architecture, &self.to_tensors()?)
    }

    /// The weights by PyTorch's names, parameters and buffers.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn to_tensors(&self) -> Result<BTreeMap<String, Stored>> {
        let mut tensors = BTreeMap::new();
        self.for_each_tensor(|name, shape, values| {
            tensors.insert(name.to_owned(), values.to_stored(shape));
            Ok(())
        })?;
        Ok(tensors)
    }

    /// Calls `visit` with name, shape and values of each parameter and buffer, in any order; on the CPU none of the parameters is copied.
    ///
    /// # Errors
    /// When a tensor cannot be read, and those of `visit`.
    pub(crate) fn for_each_tensor(&self, mut visit: impl FnMut(&str, &[usize], Values<'_>) -> Result<()>) -> Result<()> {
        let parameters = self.parameters.iter().map(|(name, parameter)| (name, parameter.as_tensor()));
        for (name, tensor) in parameters.chain(&self.fixed) {
            let here = tensor.to_device(&Device::Cpu)?;
            match tensor.dtype() {
                DType::F64 => with_values(&[&here], |values| visit(name, tensor.dims(), Values::F64(values[0])))?,
                _ => with_values(&[&here], |values| visit(name, tensor.dims(), Values::F32(values[0])))?,
            }
        }
        for (name, averages) in &self.averages {
            for (suffix, values) in [("running_mean", &averages.mean), ("running_var", &averages.variance)] {
                let (name, shape) = (format!("{name}.{suffix}"), [values.len()]);
                match self.place.dtype {
                    DType::F64 => visit(&name, &shape, Values::F64(values))?,
                    _ => visit(&name, &shape, Values::F32(&values.iter().map(|&value| value as f32).collect::<Vec<_>>()))?,
                }
            }
            visit(&format!("{name}.num_batches_tracked"), &[], Values::I64(&[averages.batches]))?;
        }
        Ok(())
    }

    /// The network with all its sizes.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The steps of the network.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Where and by what it computes.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The parameters that are trainable, by name.
    #[must_use]
    pub fn parameters(&self, trainable: &Trainable) -> BTreeMap<&str, &Var> {
        let named = self.parameters.iter().filter(|(name, _)| trainable.contains(name));
        named.map(|(name, parameter)| (name.as_str(), parameter)).collect()
    }

    /// Sets parameters to other values.
    ///
    /// # Errors
    /// When one is none of the network's, or of another shape.
    pub fn set(&mut self, values: &Gradients) -> Result<()> {
        for (name, value) in values.iter() {
            match self.parameters.get(name) {
                Some(parameter) => parameter.set(&value.to_dtype(self.place.dtype)?.contiguous()?)?,
                None => bail!("`{name}` is no parameter of the network"),
            }
        }
        Ok(())
    }

    /// Whether a part gives the same output in a mode as in [`Mode::EVAL`] and leaves its buffers alone, so that what it gives can be kept.
    #[must_use]
    pub fn is_fixed(&self, part: Part, mode: Mode) -> bool {
        self.graph.steps()[self.graph.range(part)].iter().all(|step| match step.operation {
            Operation::BatchNorm => !mode.batch_statistics,
            Operation::Dropout(probability) => !mode.dropout || probability == 0.0,
            _ => true,
        })
    }

    /// The output of the given consecutive parts for `input`, which is the output of the part before them. Gradients flow to the parameters that are
    /// `trainable`, to be had by [`Self::backward`], and, where `input` takes part in differentiation, to it.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&mut self, input: &Tensor, parts: &[Part], modes: Modes, trainable: &Trainable, dropout: &mut Stream) -> Result<Tensor> {
        self.forward_through(input, self.steps_of(parts)?, modes, trainable, dropout)
    }

    /// The output of all parts for `images`, [N, C, H, W], and what the network's decoder makes of them on the way, likewise [N, C, H, W]; gradients flow as
    /// in [`Self::forward`], from both.
    ///
    /// # Errors
    /// When the network has no decoder, or the shapes do not fit.
    pub fn forward_with_reconstruction(
        &mut self,
        images: &Tensor,
        modes: Modes,
        trainable: &Trainable,
        dropout: &mut Stream,
    ) -> Result<(Tensor, Tensor)> {
        let Some(decoded) = self.graph.reconstruction() else { bail!("the network has no decoder, whose images could be asked for") };
        let image = self.forward_through(images, 0..decoded, modes, trainable, dropout)?;
        let output = self.forward_through(&image, decoded..self.graph.steps().len(), modes, trainable, dropout)?;
        let reconstruction = if self.composes() { composed::channels_first(&image)? } else { ops::channels_first(&image)? };
        Ok((output, reconstruction))
    }

    /// Takes `input` through some steps, and moves the running averages there.
    fn forward_through(
        &mut self,
        input: &Tensor,
        steps: Range<usize>,
        modes: Modes,
        trainable: &Trainable,
        dropout: &mut Stream,
    ) -> Result<Tensor> {
        let mut pass = Pass { modes, trainable, dropout: Some(dropout), moved: Vec::new() };
        let output = self.run(input, steps, &mut pass)?;
        if let Some((name, _)) = pass.moved.iter().find(|(_, statistics)| statistics.count < 2) {
            bail!(
                "`{name}` is to normalise a batch by a single value of each channel: its images are one pixel there, and the batch is one sample; give \
                 another `batch`, so that none is left over alone, or larger images"
            );
        }
        for (name, statistics) in pass.moved {
            self.averages.get_mut(&name).expect("built with every step").blend(&statistics, self.place.dtype);
        }
        Ok(output)
    }

    /// As [`Self::forward`] in eval mode, where nothing but the input takes part in differentiation.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn evaluate(&self, input: &Tensor, parts: &[Part]) -> Result<Tensor> {
        self.run(input, self.steps_of(parts)?, &mut Pass::in_eval_mode(&Trainable::none()))
    }

    /// As [`Self::forward`] in eval mode through all parts: nothing but the gradients depends on what is `trainable`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn judge(&self, input: &Tensor, trainable: &Trainable) -> Result<Tensor> {
        self.run(input, 0..self.graph.steps().len(), &mut Pass::in_eval_mode(trainable))
    }

    /// The feature vectors of images, [N, D], on which clustering and condensation work; in eval mode, where nothing but the images takes part in
    /// differentiation.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, 0..self.graph.features(), &mut Pass::in_eval_mode(&Trainable::none()))?.flatten_from(1)
    }

    /// What a step takes for images, in eval mode, where nothing takes part in differentiation.
    ///
    /// # Errors
    /// When the shapes do not fit, or one kernel computes the step and the one before it.
    pub fn before(&self, step: usize, images: &Tensor) -> Result<Tensor> {
        self.run(images, 0..step, &mut Pass::in_eval_mode(&Trainable::none()))
    }

    /// The gradients of a loss of this network's output, one for each parameter that is trainable.
    ///
    /// # Errors
    /// When the loss is not one number, or does not depend on one of them.
    pub fn backward(&self, loss: &Tensor, trainable: &Trainable) -> Result<Gradients> {
        Ok(backward(loss, &[(self, trainable)])?.pop().expect("one for each network"))
    }

    /// The steps of consecutive parts.
    fn steps_of(&self, parts: &[Part]) -> Result<Range<usize>> {
        let (Some(&first), Some(&last)) = (parts.first(), parts.last()) else { return Ok(0..0) };
        if parts.windows(2).any(|pair| pair[0] as usize + 1 != pair[1] as usize) {
            bail!("parts are gone through one after the other, not as {parts:?}");
        }
        Ok(self.graph.range(first).start..self.graph.range(last).end)
    }

    /// Takes `input`, the value before the first of the steps, through them.
    fn run(&self, input: &Tensor, steps: Range<usize>, pass: &mut Pass<'_>) -> Result<Tensor> {
        if steps.is_empty() {
            return Ok(input.clone());
        }
        let mut values = self.enter(input, &steps)?;
        let pieces = self.pieces.partition_point(|piece| piece.steps.start < steps.start);
        let end = self.pieces.partition_point(|piece| piece.steps.end <= steps.end);
        self.go_through(&mut values, &self.pieces[pieces..end], pass)?;
        let result = values.remove(&steps.end).ok_or_else(|| candle_core::Error::msg("the last step has a result"))?;
        self.followed_back(input, result, steps, pass.trainable)
    }

    /// What a pass through some steps gave, whose way back is counted where there is one.
    fn followed_back(&self, input: &Tensor, result: Tensor, steps: Range<usize>, trainable: &Trainable) -> Result<Tensor> {
        if !result.track_op() {
            return Ok(result);
        }
        // Values through which a gradient is led on, to what is trained or to the input.
        let mut led_on: BTreeSet<Value> = input.track_op().then_some(steps.start).into_iter().collect();
        let mut operations = 0_u64;
        for index in steps {
            let step = &self.graph.steps()[index];
            let is_wanted = step.inputs.iter().any(|value| led_on.contains(value));
            let mut trained = step.slots.iter().filter(|slot| trainable.contains(&slot.name)).peekable();
            if is_wanted || trained.peek().is_some() {
                led_on.insert(index + 1);
            }
            operations = operations.saturating_add(step.operations_back(trained.any(|slot| slot.role == Role::Weight), is_wanted));
        }
        tally::followed_back(&result, input.dim(0)?, operations)
    }

    /// The value before the first step, as the kernels take it, on its way through the steps.
    fn enter(&self, input: &Tensor, steps: &Range<usize>) -> Result<BTreeMap<Value, Tensor>> {
        let operations = self.graph.steps()[steps.clone()].iter().fold(0, |sum: u64, step| sum.saturating_add(step.operations()));
        tally::forward(input.dim(0)?, operations);
        let mut input = input.to_dtype(self.place.dtype)?.to_device(&self.place.device)?;
        let is_flattened = || self.graph.steps().first().is_some_and(|step| step.operation == Operation::Flatten);
        if steps.start == 0 && !is_flattened() {
            // Images come channels first; inside, they are channels last.
            input = if self.composes() { composed::channels_last(&input)? } else { ops::channels_last(&input)? };
        }
        Ok(BTreeMap::from([(steps.start, input)]))
    }

    /// Whether operations are composed of candle's.
    fn composes(&self) -> bool {
        self.place.composed || !self.place.device.is_cpu()
    }

    fn go_through(&self, values: &mut BTreeMap<Value, Tensor>, pieces: &[Piece], pass: &mut Pass<'_>) -> Result<()> {
        let mut rest = pieces;
        while let Some(piece) = rest.first() {
            let (frozen, chained) = (self.frozen_run(rest, pass), self.chained_run(rest));
            let count = frozen.len().max(chained.len()).max(1);
            let (start, end) = (piece.steps.start, rest[count - 1].steps.end);
            let result = if !frozen.is_empty() {
                let input = argument(values, self.graph.steps()[start].inputs[0])?;
                if self.composes() { composed::frozen_blocks(&input, &frozen)? } else { ops::frozen_blocks(&input, &frozen)? }
            } else if chained.is_empty() {
                self.compute(values, piece, pass)?
            } else {
                let parameters = self.with_deposits(start..end, pass.trainable);
                ops::chain(&argument(values, start)?, parameters, |input| {
                    let mut values = BTreeMap::from([(start, input.clone())]);
                    for piece in chained {
                        let result = self.compute(&values, piece, pass)?;
                        self.replace(&mut values, piece.steps.end, result);
                    }
                    argument(&values, end)
                })?
            };
            self.replace(values, end, result);
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Takes up the value after some steps, and drops those that nobody will ask for again.
    fn replace(&self, values: &mut BTreeMap<Value, Tensor>, end: Value, result: Tensor) {
        values.retain(|&value, _| self.graph.last_use(value) >= end);
        values.insert(end, result);
    }

    /// The pieces at the start of `pieces`, if any, that are chained: those on tokens, as many as take nothing from before the first one but its input, and
    /// leave nothing but the result of the last one.
    fn chained_run<'a>(&self, pieces: &'a [Piece]) -> &'a [Piece] {
        let is_of_tokens = |piece: &&Piece| {
            let steps = &self.graph.steps()[piece.steps.clone()];
            steps.iter().all(|step| step.shape.len() == 2 && step.operation != Operation::Tokens)
        };
        let start = pieces.first().map_or(0, |piece| piece.steps.start);
        let is_closed = |count: &usize| {
            let range = start..pieces[count - 1].steps.end;
            let takes_from_before = self.graph.steps()[range.clone()].iter().flat_map(|step| &step.inputs).any(|&value| value < start);
            !takes_from_before && (start + 1..range.end).all(|value| self.graph.last_use(value) < range.end)
        };
        let most = if self.composes() { 0 } else { pieces.iter().take_while(is_of_tokens).count() };
        &pieces[..(2..=most).rev().find(is_closed).unwrap_or(0)]
    }

    /// The trainable parameters of some steps, and where a chain leaves their gradients.
    fn with_deposits(&self, steps: Range<usize>, trainable: &Trainable) -> Vec<(Tensor, Deposit)> {
        let slots = self.graph.steps()[steps].iter().flat_map(|step| &step.slots).filter(|slot| trainable.contains(&slot.name));
        slots.map(|slot| (self.parameters[&slot.name].as_tensor().clone(), self.deposits[&slot.name].clone())).collect()
    }

    /// The blocks at the start of `pieces` that are frozen and pass their result on to the next one only.
    fn frozen_run(&self, pieces: &[Piece], pass: &Pass<'_>) -> Vec<FrozenBlock> {
        let mut blocks = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let steps = self.graph.steps();
            let is_chained =
                index == 0 || steps[piece.steps.start].inputs == [piece.steps.start] && self.graph.uses(piece.steps.start) == 1;
            match self.frozen_block(piece, pass).filter(|_| is_chained) {
                Some(block) => blocks.push(block),
                None => break,
            }
        }
        blocks
    }

    /// A block as it is frozen in eval mode; nothing where it is not, or for other pieces.
    fn frozen_block(&self, piece: &Piece, pass: &Pass<'_>) -> Option<FrozenBlock> {
        let steps = &self.graph.steps()[piece.steps.clone()];
        let (block, parameters, [mean, variance]) = match piece.kernel {
            Kernel::Block(block) if !self.mode(piece, pass).batch_statistics => {
                (block, self.block_parameters(steps, pass.trainable).ok()?, self.wide(&steps[1]))
            }
            Kernel::Rectified(block) => {
                let outputs = steps[0].slots[0].shape[0];
                (block, self.plain_parameters(&steps[0], pass.trainable).ok()?, plain(outputs))
            }
            _ => return None,
        };
        let is_trained = steps.iter().flat_map(|step| &step.slots).any(|slot| pass.trainable.contains(&slot.name));
        let weight = self.parameter(&steps[0], 0, pass.trainable);
        (!is_trained).then_some(FrozenBlock { weight, parameters, mean, variance, block })
    }

    fn mode(&self, piece: &Piece, pass: &Pass<'_>) -> Mode {
        pass.modes[self.graph.part_of(piece.steps.start) as usize]
    }

    /// The running averages of a batch normalisation.
    fn wide(&self, step: &Step) -> [Vec<f64>; 2] {
        let averages = &self.averages[&step.name];
        [averages.mean.clone(), averages.variance.clone()]
    }

    /// The bias of a convolution, and scale and shift of its normalisation.
    fn block_parameters(&self, steps: &[Step], trainable: &Trainable) -> Result<[Tensor; 3]> {
        Ok([self.bias(&steps[0], trainable)?, self.parameter(&steps[1], 0, trainable), self.parameter(&steps[1], 1, trainable)])
    }

    /// The same of a convolution without a normalisation: one that changes nothing.
    fn plain_parameters(&self, step: &Step, trainable: &Trainable) -> Result<[Tensor; 3]> {
        let bias = self.bias(step, trainable)?;
        let (one, zero) = (bias.ones_like()?, bias.zeros_like()?);
        Ok([bias, one, zero])
    }

    /// The bias of a convolution; zeros where it has none.
    fn bias(&self, step: &Step, trainable: &Trainable) -> Result<Tensor> {
        match step.slots.len() {
            1 => Tensor::zeros(step.slots[0].shape[0], self.place.dtype, &self.place.device),
            _ => Ok(self.parameter(step, 1, trainable)),
        }
    }

    /// A parameter, which takes part in differentiation where it is trainable.
    fn parameter(&self, step: &Step, slot: usize, trainable: &Trainable) -> Tensor {
        let name = &step.slots[slot].name;
        let parameter = &self.parameters[name];
        if trainable.contains(name) { parameter.as_tensor().clone() } else { parameter.as_detached_tensor() }
    }

    /// Computes a piece; nothing is frozen about it that [`ops::frozen_blocks`] knows of.
    fn compute(&self, values: &BTreeMap<Value, Tensor>, piece: &Piece, pass: &mut Pass<'_>) -> Result<Tensor> {
        /// An operation, or what it is composed of.
        macro_rules! run {
            ($operation:ident($($argument:expr),*)) => {
                if self.composes() { composed::$operation($($argument),*)? } else { ops::$operation($($argument),*)? }
            };
        }
        let steps = &self.graph.steps()[piece.steps.clone()];
        let (step, mode, trainable) = (&steps[0], self.mode(piece, pass), pass.trainable);
        let input = argument(values, step.inputs[0])?;
        // Where the gradient of the weight is left, past candle's accumulator.
        let deposit = step.slots.first().filter(|slot| trainable.contains(&slot.name)).and_then(|slot| self.deposits.get(&slot.name));
        let norm = |step: &Step, pass: &mut Pass<'_>, statistics: Option<Statistics>| {
            pass.moved.extend(statistics.map(|statistics| (step.name.clone(), statistics)));
        };
        Ok(match (piece.kernel, step.operation) {
            (Kernel::Block(block), _) => {
                let (weight, parameters) = (self.parameter(step, 0, trainable), self.block_parameters(steps, trainable)?);
                let [mean, variance] = self.wide(&steps[1]);
                let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
                let normalised_by = if mode.batch_statistics { Normalisation::Batch } else { fixed };
                let weight = Weight::new(&weight, deposit);
                let (output, statistics) = run!(conv_block(&input, weight, parameters.each_ref(), block, normalised_by));
                norm(&steps[1], pass, statistics);
                output
            }
            (Kernel::Rectified(block), _) => {
                let (weight, parameters) = (self.parameter(step, 0, trainable), self.plain_parameters(step, trainable)?);
                let [mean, variance] = plain(step.slots[0].shape[0]);
                let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
                let weight = Weight::new(&weight, deposit);
                run!(conv_block(&input, weight, parameters.each_ref(), block, fixed)).0
            }
            (Kernel::InstanceBlock { pool }, _) => {
                let [scale, shift] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                run!(instance_block(&input, [&scale, &shift], BATCH_NORM_EPSILON, InstanceBlock { rectify: true, pool }))
            }
            (Kernel::Perceptron, _) => {
                let layers = [step, &steps[2]];
                let parameters = layers.map(|step| [0, 1].map(|slot| self.parameter(step, slot, trainable)));
                let weight = |layer: usize| {
                    let name = &layers[layer].slots[0].name;
                    Weight::new(&parameters[layer][0], self.deposits.get(name).filter(|_| trainable.contains(name)))
                };
                run!(linear_gelu_linear(&input, [weight(0), weight(1)], [&parameters[0][1], &parameters[1][1]]))
            }
            (Kernel::AddRelu, _) => run!(add_relu(&input, &argument(values, step.inputs[1])?)),
            (Kernel::Step, Operation::Convolution { stride, padding, .. }) => {
                let (weight, bias) = (self.parameter(step, 0, trainable), self.bias(step, trainable)?);
                let weight = Weight::new(&weight, deposit);
                run!(conv2d(&input, weight, &bias, Convolution { stride, padding }))
            }
            (Kernel::Step, Operation::Dictionary { .. }) => {
                let [weight, bias] = [0, 1].map(|slot| &self.fixed[&step.slots[slot].name]);
                run!(conv2d(&input, Weight::from(weight), bias, Convolution { stride: 1, padding: 0 }))
            }
            (Kernel::Step, Operation::TransposedConvolution { stride, padding, .. }) => {
                let [weight, bias] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                let weight = Weight::new(&weight, deposit);
                run!(conv_transpose2d(&input, weight, &bias, Convolution { stride, padding }))
            }
            (Kernel::Step, Operation::BatchNorm) => {
                let [scale, shift] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                let [mean, variance] = self.wide(step);
                let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
                let normalised_by = if mode.batch_statistics { Normalisation::Batch } else { fixed };
                let (output, statistics) = run!(batch_norm(&input, &scale, &shift, normalised_by));
                norm(step, pass, statistics);
                output
            }
            (Kernel::Step, Operation::InstanceNorm) => {
                let [scale, shift] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                let block = InstanceBlock { rectify: false, pool: false };
                run!(instance_block(&input, [&scale, &shift], BATCH_NORM_EPSILON, block))
            }
            (Kernel::Step, Operation::LayerNorm { epsilon }) => {
                let [scale, shift] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                run!(layer_norm(&input, &scale, &shift, epsilon))
            }
            (Kernel::Step, Operation::Linear { .. }) => {
                let [weight, bias] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                let weight = Weight::new(&weight, deposit);
                run!(linear(&input, weight, &bias))
            }
            (Kernel::Step, Operation::Relu) => run!(relu(&input)),
            (Kernel::Step, Operation::Gelu) => run!(gelu(&input)),
            (Kernel::Step, Operation::Sigmoid) => run!(sigmoid(&input)),
            (Kernel::Step, Operation::BothSides) => {
                let negative = input.neg()?;
                Tensor::cat(&[run!(relu(&input)), run!(relu(&negative))], 3)?
            }
            (Kernel::Step, Operation::MaxPool(pooling)) => run!(max_pool2d(&input, pooling)),
            (Kernel::Step, Operation::AveragePool(pooling)) => run!(avg_pool2d(&input, pooling)),
            (Kernel::Step, Operation::AdaptiveAveragePool { rows, columns }) => run!(adaptive_avg_pool2d(&input, [rows, columns])),
            (Kernel::Step, Operation::Flatten) if step.inputs[0] == 0 || !self.graph.is_image(step.inputs[0]) => input.flatten_from(1)?,
            (Kernel::Step, Operation::Flatten) => run!(channels_first(&input)).flatten_from(1)?,
            (Kernel::Step, Operation::Dropout(probability)) if mode.dropout && probability > 0.0 => {
                let Some(stream) = pass.dropout.as_deref_mut() else { bail!("dropout in training needs random numbers") };
                run!(dropout(&input, probability, stream))
            }
            (Kernel::Step, Operation::Dropout(_)) => input,
            (Kernel::Step, Operation::Add) => run!(add(&input, &argument(values, step.inputs[1])?)),
            (Kernel::Step, Operation::Tokens) => {
                let (count, height, width, channels) = input.dims4()?;
                let [class, position] = [0, 1].map(|slot| self.parameter(step, slot, trainable));
                let class = class.broadcast_as((count, 1, channels))?;
                Tensor::cat(&[class, input.reshape((count, height * width, channels))?], 1)?.broadcast_add(&position)?
            }
            (Kernel::Step, Operation::Attention { heads }) => run!(attention_of_tokens(&input, heads)),
            (Kernel::Step, Operation::Join) => {
                let inputs = step.inputs.iter().map(|&value| argument(values, value)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&inputs, 1)?
            }
            // Composed of candle's own on all devices: a few values a sample.
            (Kernel::Step, Operation::LogSoftmax { vectors }) => {
                let (count, width) = input.dims2()?;
                let parted = input.reshape((count, vectors, width / vectors))?;
                let below = parted.broadcast_sub(&parted.detach().max_keepdim(2)?)?;
                below.broadcast_sub(&below.exp()?.sum_keepdim(2)?.log()?)?.reshape((count, width))?
            }
            (Kernel::Step, Operation::LogMeanExp { vectors }) => {
                let (count, width) = input.dims2()?;
                let parted = input.reshape((count, vectors, width / vectors))?;
                let largest = parted.detach().max_keepdim(1)?;
                let mean = (parted.broadcast_sub(&largest)?.exp()?.sum_keepdim(1)? / vectors as f64)?;
                (mean.log()? + largest)?.squeeze(1)?
            }
            (Kernel::Step, Operation::FirstToken) => input.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
        })
    }

    /// Takes images through the network in eval mode, one step after the other, and keeps what passes by the steps with parameters that are `trainable`: the
    /// gradient of what a step gives is that of its [`Tap::offset`].
    pub(crate) fn tapped(&self, images: &Tensor, trainable: &Trainable) -> Result<(Tensor, Vec<Tap>)> {
        let (none, steps) = (Trainable::none(), self.graph.steps());
        let mut values = self.enter(images, &(0..steps.len()))?;
        let mut taps = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let piece = Piece { kernel: Kernel::Step, steps: index..index + 1 };
            let mut output = self.compute(&values, &piece, &mut Pass::in_eval_mode(&none))?;
            if step.slots.iter().any(|slot| trainable.contains(&slot.name)) {
                let offset = Var::zeros(output.dims(), output.dtype(), output.device())?;
                output = output.add(&offset)?;
                taps.push(Tap { step: index, input: argument(&values, step.inputs[0])?.detach(), offset });
            }
            values.retain(|&value, _| self.graph.last_use(value) > index);
            values.insert(index + 1, output);
        }
        let logits = values.remove(&steps.len()).ok_or_else(|| candle_core::Error::msg("the last step has a result"))?;
        Ok((self.followed_back(images, logits, 0..steps.len(), trainable)?, taps))
    }

    /// What the normalisation at `step` makes of its input in eval mode before it scales and shifts.
    pub(crate) fn normalised(&self, step: usize, input: &Tensor) -> Result<Tensor> {
        let step = &self.graph.steps()[step];
        let [scale, shift] = [Tensor::ones, Tensor::zeros].map(|fill| fill(step.slots[0].shape[0], self.place.dtype, &self.place.device));
        let (scale, shift) = (scale?, shift?);
        match step.operation {
            Operation::BatchNorm => {
                let [mean, variance] = self.wide(step);
                Ok(ops::batch_norm(input, &scale, &shift, Normalisation::Fixed { mean: &mean, variance: &variance })?.0)
            }
            Operation::InstanceNorm => {
                ops::instance_block(input, [&scale, &shift], BATCH_NORM_EPSILON, InstanceBlock { rectify: false, pool: false })
            }
            Operation::LayerNorm { epsilon } => ops::layer_norm(input, &scale, &shift, epsilon),
            other => bail!("`{}` is no normalisation but {other:?}", step.name),
        }
    }

    /// The batch normalisations of a part, by their steps, in order.
    pub(crate) fn batch_norms(&self, part: Part) -> Vec<usize> {
        self.graph.range(part).filter(|&step| self.graph.steps()[step].operation == Operation::BatchNorm).collect()
    }

    /// What the batch normalisation at `step` sees of images, with all that lies before it in eval mode.
    pub(crate) fn statistics(&self, images: &Tensor, step: usize) -> Result<Statistics> {
        let mut values = self.enter(images, &(0..step))?;
        let own = self.pieces.partition_point(|piece| piece.steps.end <= step);
        let none = Trainable::none();
        self.go_through(&mut values, &self.pieces[..own], &mut Pass::in_eval_mode(&none))?;
        let mut pass = Pass { modes: all(Mode { batch_statistics: true, dropout: false }), ..Pass::in_eval_mode(&none) };
        self.compute(&values, &self.pieces[own], &mut pass)?;
        pass.moved.pop().map(|(_, statistics)| statistics).ok_or_else(|| candle_core::Error::msg("a batch has statistics"))
    }

    /// Sets the running averages of the batch normalisation at `step`.
    pub(crate) fn set_averages(&mut self, step: usize, statistics: &Statistics) {
        let averages = self.averages.get_mut(&self.graph.steps()[step].name).expect("built with every step");
        averages.mean = statistics.mean.iter().map(|&mean| rounded(mean, self.place.dtype)).collect();
        averages.variance = statistics.unbiased_variance().iter().map(|&variance| rounded(variance, self.place.dtype)).collect();
    }
}

/// What a parameter or buffer starts with, by a stream of its own.
#[must_use]
pub fn fresh(slot: &Slot, streams: &Streams) -> Stored {
    let count = slot.shape.iter().product();
    let mut stream = streams.stream(&format!("initialise {}", slot.name));
    let values = match slot.initial {
        Initial::Uniform(bound) => (0..count).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect(),
        Initial::Normal(deviation) => (0..count).map(|_| (deviation * f64::from(stream.normal())) as f32).collect(),
        Initial::Constant(value) => vec![value; count],
    };
    Stored::F32(Array::new(slot.shape.clone(), values))
}

/// What passed by a step of [`Network::tapped`].
pub(crate) struct Tap {
    /// The step's index.
    pub(crate) step: usize,
    /// The first value that it read, detached.
    pub(crate) input: Tensor,
    /// Zeros that were added to what it gave.
    pub(crate) offset: Var,
}

impl<'a> Pass<'a> {
    fn in_eval_mode(trainable: &'a Trainable) -> Self {
        Self { modes: all(Mode::EVAL), trainable, dropout: None, moved: Vec::new() }
    }
}

/// Mean and variance that leave `channels` values as they are.
fn plain(channels: usize) -> [Vec<f64>; 2] {
    [vec![0.0; channels], vec![1.0 - BATCH_NORM_EPSILON; channels]]
}

fn argument(values: &BTreeMap<Value, Tensor>, value: Value) -> Result<Tensor> {
    values.get(&value).cloned().ok_or_else(|| candle_core::Error::msg(format!("value {value} lies before the steps that are gone through")))
}

/// The gradients of a loss that depends on the outputs of several networks, for each of them those of the parameters that are trainable.
///
/// # Errors
/// When the loss is not one number, or does not depend on one of the parameters.
pub fn backward(loss: &Tensor, networks: &[(&Network, &Trainable)]) -> Result<Vec<Gradients>> {
    backward_to(loss, networks, &[]).map(|(gradients, _)| gradients)
}

/// The same, and the gradients of variables that the networks' inputs were made of, in their order.
///
/// # Errors
/// As [`backward`], and when the loss does not depend on one of the variables.
pub fn backward_to(loss: &Tensor, networks: &[(&Network, &Trainable)], inputs: &[&Var]) -> Result<(Vec<Gradients>, Vec<Tensor>)> {
    // What a backward pass that nobody asked these networks about left behind.
    networks.iter().flat_map(|(network, _)| network.deposits.values()).for_each(|deposit| drop(deposit.take()));
    let mut collected = loss.backward()?;
    let of_input = |input: &&Var| collected.remove(input).ok_or_else(|| candle_core::Error::msg("the loss does not depend on an input"));
    let of_inputs = inputs.iter().map(of_input).collect::<Result<Vec<_>>>()?;
    let of_network = |&(network, trainable): &(&Network, &Trainable)| {
        let of_parameter = |(name, parameter): (&str, &Var)| {
            let left = network.deposits.get(name).and_then(Deposit::take);
            // A loss may take a weight by itself too, such as a penalty.
            match (left, collected.remove(parameter)) {
                (Some(left), Some(other)) => Ok((name.to_owned(), left.add(&other)?)),
                (Some(gradient), None) | (None, Some(gradient)) => Ok((name.to_owned(), gradient)),
                (None, None) => bail!("`{name}` is to be trained, but the loss does not depend on it; train only what it depends on"),
            }
        };
        network.parameters(trainable).into_iter().map(of_parameter).collect()
    };
    Ok((networks.iter().map(of_network).collect::<Result<_>>()?, of_inputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Family;

    fn chains(family: Family, place: Place) -> Vec<Range<usize>> {
        let network = Network::initialised(&Architecture::of_family(family, [3, 32, 32], 10), &Streams::new(1, "test")).unwrap();
        let network = network.moved_to(place).unwrap();
        let (mut chains, mut rest) = (Vec::new(), &network.pieces[..]);
        while !rest.is_empty() {
            let chained = network.chained_run(rest);
            chains.extend(chained.first().map(|piece| piece.steps.start..chained[chained.len() - 1].steps.end));
            rest = &rest[chained.len().max(1)..];
        }
        chains
    }

    #[test]
    fn all_blocks_of_a_transformer_are_one_chain_and_other_networks_have_none() {
        let graph = Architecture::of_family(Family::VitTiny, [3, 32, 32], 10).graph().unwrap();
        let place = |operation: fn(&Operation) -> bool| graph.steps().iter().position(|step| operation(&step.operation)).unwrap();
        let tokens = place(|operation| matches!(operation, Operation::Tokens));
        let first_token = place(|operation| matches!(operation, Operation::FirstToken));
        assert_eq!(chains(Family::VitTiny, Place::default()).as_slice(), std::slice::from_ref(&(tokens + 1..first_token)));
        assert!(chains(Family::VitTiny, Place { composed: true, ..Place::default() }).is_empty());
        for family in [Family::Mlp, Family::Cnn, Family::Resnet18, Family::Convnet3] {
            assert!(chains(family, Place::default()).is_empty(), "{family:?}");
        }
    }
}
