//! A network as data: a flat list of steps, each with its operation, its inputs and the shape of its result.
//!
//! One table ([`slots`]) says which parameters and buffers an operation has. What initialises, loads, saves, lists or counts them reads it. How the
//! steps are computed is no part of this: see [`crate::fuse`] and [`crate::network`].

use std::ops::Range;

use crate::architecture::{MOST_PARAMETERS, Part};
use crate::ops::Pooling;

/// Steps of a network at most.
const MOST_STEPS: usize = 1 << 13;

/// A value: 0 is the image, and `n` the result of step `n - 1`.
pub type Value = usize;

/// What a step computes. Shapes are of one sample, in PyTorch's order: [C, H, W] of images, [T, D] of tokens, [D] of vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Cross-correlation with a square kernel: [C, H, W] to [O, H', W'].
    Convolution {
        /// Output channels.
        outputs: usize,
        /// Rows and columns of the kernel.
        kernel: usize,
        /// Pixels from one window to the next.
        stride: usize,
        /// Zeros on each side.
        padding: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// The adjoint of a convolution: [C, H, W] to [O, (H - 1) · stride - 2 · padding + kernel, ..], with bias.
    TransposedConvolution {
        /// Output channels.
        outputs: usize,
        /// Rows and columns of the kernel.
        kernel: usize,
        /// Pixels from one window to the next.
        stride: usize,
        /// What is cut off on each side.
        padding: usize,
    },
    /// A convolution with a bias whose weight and bias are buffers, without padding: [C, H, W] to [O, H', W'].
    Dictionary {
        /// Output channels.
        outputs: usize,
        /// Rows and columns of the kernel.
        kernel: usize,
    },
    /// Batch normalisation of each channel, with scale, shift and running averages.
    BatchNorm,
    /// Normalisation of each channel of each image, with scale and shift (PyTorch's `GroupNorm(C, C)`).
    InstanceNorm,
    /// Normalisation of each token, with scale and shift.
    LayerNorm {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `max(x, 0)`.
    Relu,
    /// `x · Φ(x)`.
    Gelu,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// `max(x, 0)` and `max(-x, 0)`, one behind the other along the channels: [C, H, W] to [2 C, H, W].
    BothSides,
    /// The maximum of each window.
    MaxPool(Pooling),
    /// The mean of each window.
    AveragePool(Pooling),
    /// The mean of as many windows as asked for (PyTorch's `AdaptiveAvgPool2d`).
    AdaptiveAveragePool {
        /// Windows from top to bottom.
        rows: usize,
        /// Windows from left to right.
        columns: usize,
    },
    /// Everything in one dimension, in PyTorch's order.
    Flatten,
    /// Fully connected, with bias, over the last dimension.
    Linear {
        /// Outputs.
        outputs: usize,
    },
    /// Sets values to 0 with this probability, and scales the others.
    Dropout(f64),
    /// The sum of both inputs.
    Add,
    /// Pixels as tokens behind a class token, each with its position: [D, H, W] to [1 + H · W, D].
    Tokens,
    /// Self-attention of queries, keys and values that stand side by side: [T, 3 · D] to [T, D].
    Attention {
        /// Heads, which divide D.
        heads: usize,
    },
    /// The class token: [T, D] to [D].
    FirstToken,
    /// All inputs, vectors of one length, one behind the other: n times [K] to [n · K].
    Join,
    /// The logarithms of the softmax of each of so many vectors that stand one behind the other.
    LogSoftmax {
        /// How many there are.
        vectors: usize,
    },
    /// The logarithm of the mean of the exponentials of so many vectors that stand one behind the other: [n · K] to [K].
    LogMeanExp {
        /// How many there are.
        vectors: usize,
    },
}

/// How a parameter or buffer starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// Uniform in ± this.
    Uniform(f32),
    /// Normal with mean 0 and this deviation.
    Normal(f64),
    /// This number everywhere.
    Constant(f32),
}

/// What a parameter or buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// What inputs are multiplied with.
    Weight,
    /// What is added to the products.
    Bias,
    /// The factor of a normalisation.
    Scale,
    /// The term of a normalisation.
    Shift,
    /// Class token and positions.
    Embedding,
    /// A buffer: the running mean of a batch normalisation.
    RunningMean,
    /// A buffer: the running variance of a batch normalisation.
    RunningVariance,
    /// A buffer: the batches that a batch normalisation has seen.
    Counter,
    /// A buffer: weights that no training moves.
    Dictionary,
}

impl Role {
    /// Whether training moves it.
    #[must_use]
    pub fn is_parameter(self) -> bool {
        matches!(self, Self::Weight | Self::Bias | Self::Scale | Self::Shift | Self::Embedding)
    }
}

/// A parameter or buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// The name in PyTorch's state dict.
    pub name: String,
    /// The shape in PyTorch.
    pub shape: Vec<usize>,
    /// How it starts.
    pub initial: Initial,
    /// What it is for.
    pub role: Role,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The path of the module in PyTorch, such as `layer1.0.conv1`; a name of the same form where PyTorch has no module.
    pub name: String,
    /// What is computed.
    pub operation: Operation,
    /// From what.
    pub inputs: Vec<Value>,
    /// The shape of the result for one sample.
    pub shape: Vec<usize>,
    /// The parameters and buffers.
    pub slots: Vec<Slot>,
}

/// How weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// PyTorch's own: uniform in ± 1 / √(inputs of an output), weights and biases.
    Pytorch,
    /// torchvision's ResNet: convolutions normal with deviation √(2 / (outputs of an input)), linear layers as PyTorch's.
    Resnet,
    /// torchvision's VGG: convolutions as its ResNet's with biases of 0, linear layers normal with deviation 0.01 and biases of 0.
    Vgg,
    /// timm's vision transformer: linear layers and positions normal with deviation 0.02 (it cuts them off at a hundred deviations), biases of 0,
    /// the class token with deviation 1e-6; convolutions as PyTorch's.
    Vit,
}

/// The table: the parameters and buffers of a step that takes `input`, in PyTorch's order.
fn slots(name: &str, operation: Operation, input: &[usize], scheme: Scheme) -> Vec<Slot> {
    let slot =
        |suffix: &str, shape: &[usize], initial, role| Slot { name: format!("{name}.{suffix}"), shape: shape.to_vec(), initial, role };
    let spread = |inputs: usize| Initial::Uniform(1.0 / (inputs as f32).sqrt());
    let (zero, one) = (Initial::Constant(0.0), Initial::Constant(1.0));
    let affine = |channels: usize| [slot("weight", &[channels], one, Role::Scale), slot("bias", &[channels], zero, Role::Shift)];
    match operation {
        Operation::Convolution { outputs, kernel, bias, .. } => {
            let inputs = input[0].saturating_mul(kernel * kernel);
            let (weights, biases) = match scheme {
                Scheme::Pytorch | Scheme::Vit => (spread(inputs), spread(inputs)),
                Scheme::Resnet | Scheme::Vgg => (Initial::Normal((2.0 / (outputs as f64 * (kernel * kernel) as f64)).sqrt()), zero),
            };
            let weight = slot("weight", &[outputs, input[0], kernel, kernel], weights, Role::Weight);
            [weight].into_iter().chain(bias.then(|| slot("bias", &[outputs], biases, Role::Bias))).collect()
        }
        Operation::TransposedConvolution { outputs, kernel, .. } => {
            // As PyTorch counts the inputs of an output: by the second extent of the weight.
            let bound = spread(outputs.saturating_mul(kernel * kernel));
            let weight = slot("weight", &[input[0], outputs, kernel, kernel], bound, Role::Weight);
            vec![weight, slot("bias", &[outputs], bound, Role::Bias)]
        }
        Operation::Dictionary { outputs, kernel } => {
            let deviation = 1.0 / (input[0] as f64 * (kernel * kernel) as f64).sqrt();
            let weight = slot("weight", &[outputs, input[0], kernel, kernel], Initial::Normal(deviation), Role::Dictionary);
            vec![weight, slot("bias", &[outputs], zero, Role::Dictionary)]
        }
        Operation::BatchNorm => {
            let buffers = [
                slot("running_mean", &[input[0]], zero, Role::RunningMean),
                slot("running_var", &[input[0]], one, Role::RunningVariance),
                slot("num_batches_tracked", &[], zero, Role::Counter),
            ];
            affine(input[0]).into_iter().chain(buffers).collect()
        }
        Operation::InstanceNorm => affine(input[0]).into(),
        Operation::LayerNorm { .. } => affine(input[input.len() - 1]).into(),
        Operation::Linear { outputs } => {
            let inputs = input[input.len() - 1];
            let (weights, biases) = match scheme {
                Scheme::Pytorch | Scheme::Resnet => (spread(inputs), spread(inputs)),
                Scheme::Vgg => (Initial::Normal(0.01), zero),
                Scheme::Vit => (Initial::Normal(0.02), zero),
            };
            vec![slot("weight", &[outputs, inputs], weights, Role::Weight), slot("bias", &[outputs], biases, Role::Bias)]
        }
        Operation::Tokens => {
            // Of the network itself, not of a module.
            let slot = |name: &str, tokens: usize, deviation| Slot {
                name: name.to_owned(),
                shape: vec![1, tokens, input[0]],
                initial: Initial::Normal(deviation),
                role: Role::Embedding,
            };
            vec![slot("cls_token", 1, 1e-6), slot("pos_embed", 1 + input[1] * input[2], 0.02)]
        }
        Operation::Relu
        | Operation::Gelu
        | Operation::Sigmoid
        | Operation::BothSides
        | Operation::MaxPool(_)
        | Operation::AveragePool(_)
        | Operation::AdaptiveAveragePool { .. }
        | Operation::Flatten
        | Operation::Dropout(_)
        | Operation::Add
        | Operation::Attention { .. }
        | Operation::FirstToken
        | Operation::Join
        | Operation::LogSoftmax { .. }
        | Operation::LogMeanExp { .. } => Vec::new(),
    }
}

/// The shape of the result, or why there is none.
fn shape(operation: Operation, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let misfit = || format!("{operation:?} does not take {inputs:?}");
    let windows = |extent: usize, kernel: usize, stride: usize, padding: usize| {
        let padded = extent.checked_add(2 * padding).filter(|padded| *padded >= kernel && kernel > 0 && stride > 0);
        padded.map(|padded| (padded - kernel) / stride + 1).ok_or(format!("a window of {kernel} does not fit into {extent} pixels"))
    };
    let pooled = |pooling: Pooling, &[channels, height, width]: &[usize; 3]| {
        let Pooling { size, stride, padding } = pooling;
        Ok(vec![channels, windows(height, size, stride, padding)?, windows(width, size, stride, padding)?])
    };
    let [input, others @ ..] = inputs else { return Err(misfit()) };
    let takes = match operation {
        Operation::Join => inputs.len(),
        Operation::Add => 2,
        _ => 1,
    };
    if inputs.len() != takes {
        return Err(misfit());
    }
    let image: Result<&[usize; 3], String> = (*input).try_into().map_err(|_| misfit());
    match operation {
        Operation::Convolution { outputs, kernel, stride, padding, .. } => {
            let [_, height, width] = image?;
            Ok(vec![outputs, windows(*height, kernel, stride, padding)?, windows(*width, kernel, stride, padding)?])
        }
        Operation::Dictionary { outputs, kernel } => {
            let [_, height, width] = image?;
            Ok(vec![outputs, windows(*height, kernel, 1, 0)?, windows(*width, kernel, 1, 0)?])
        }
        Operation::TransposedConvolution { outputs, kernel, stride, padding } => {
            let [_, height, width] = image?;
            let extent = |extent: usize| {
                let grown = (extent - 1).checked_mul(stride).and_then(|grown| (grown + kernel).checked_sub(2 * padding));
                grown.filter(|&grown| grown > 0).ok_or(format!("{operation:?} of {extent} pixels leaves none"))
            };
            Ok(vec![outputs, extent(*height)?, extent(*width)?])
        }
        Operation::BatchNorm | Operation::InstanceNorm => image.map(|image| image.to_vec()),
        Operation::MaxPool(pooling) | Operation::AveragePool(pooling) => pooled(pooling, image?),
        Operation::AdaptiveAveragePool { rows, columns } => image.map(|image| vec![image[0], rows, columns]),
        Operation::BothSides => image
            .and_then(|&[channels, height, width]| Ok(vec![channels.checked_mul(2).ok_or("there are too many channels")?, height, width])),
        Operation::Tokens => image.map(|&[channels, height, width]| vec![1 + height * width, channels]),
        Operation::Relu | Operation::Gelu | Operation::Sigmoid | Operation::Dropout(_) => Ok(input.to_vec()),
        Operation::LayerNorm { .. } if input.len() < 3 => Ok(input.to_vec()),
        Operation::Flatten => Ok(vec![input.iter().product()]),
        Operation::Linear { outputs } if input.len() < 3 => Ok([&input[..input.len() - 1], &[outputs]].concat()),
        Operation::Add if *input == others[0] => Ok(input.to_vec()),
        Operation::Attention { heads } => match *input {
            &[tokens, width] if heads > 0 && width.is_multiple_of(3 * heads) => Ok(vec![tokens, width / 3]),
            _ => Err(misfit()),
        },
        Operation::FirstToken if input.len() == 2 => Ok(vec![input[1]]),
        Operation::Join if input.len() == 1 && others.iter().all(|other| other == input) => Ok(vec![inputs.len() * input[0]]),
        Operation::LogSoftmax { vectors } if input.len() == 1 && vectors > 0 && input[0].is_multiple_of(vectors) => Ok(input.to_vec()),
        Operation::LogMeanExp { vectors } if input.len() == 1 && vectors > 0 && input[0].is_multiple_of(vectors) => {
            Ok(vec![input[0] / vectors])
        }
        Operation::LayerNorm { .. }
        | Operation::Linear { .. }
        | Operation::Add
        | Operation::FirstToken
        | Operation::Join
        | Operation::LogSoftmax { .. }
        | Operation::LogMeanExp { .. } => Err(misfit()),
    }
}

impl Step {
    /// Multiplications and additions for one sample, counted once forward, by the definition of the operation; those of a few a value are left out.
    #[must_use]
    pub fn operations(&self) -> u64 {
        let product = |sizes: &[usize]| sizes.iter().fold(2_u64, |product, &size| product.saturating_mul(size as u64));
        let of_weight = |kept: Range<usize>| [&self.shape, &self.slots[0].shape[kept]].concat();
        match self.operation {
            Operation::Convolution { .. } | Operation::Dictionary { .. } | Operation::Linear { .. } => {
                product(&of_weight(1..self.slots[0].shape.len()))
            }
            // As the convolution that it is the adjoint of: each input with each output of its kernel, of which the stride leaves a part.
            Operation::TransposedConvolution { kernel, stride, .. } => {
                product(&[&self.shape[..], &[self.slots[0].shape[0], kernel, kernel]].concat()) / (stride * stride) as u64
            }
            Operation::Attention { .. } => product(&[&self.shape[..], &[2, self.shape[0]]].concat()),
            _ => 0,
        }
    }

    /// The same once backward: as many for the gradient of its weight, where that `is_trained`, and as many for that of what it takes, where that `is_wanted`; twice as
    /// many of attention, both factors of whose products come from there.
    #[must_use]
    pub fn operations_back(&self, is_trained: bool, is_wanted: bool) -> u64 {
        let of_input = if matches!(self.operation, Operation::Attention { .. }) { 2 } else { 1 };
        self.operations().saturating_mul(u64::from(is_trained) + if is_wanted { of_input } else { 0 })
    }

    /// The values of its parameters, buffers left out.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.slots.iter().filter(|slot| slot.role.is_parameter()).map(|slot| slot.shape.iter().product::<usize>()).sum()
    }
}

/// A network without weights: its steps, cut into parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    input: [usize; 3],
    steps: Vec<Step>,
    /// Where the intermediate and the final begin.
    cuts: [usize; 2],
    features: usize,
    reconstruction: Option<Value>,
}

impl Graph {
    /// The steps, in the order in which they can be computed.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Channels, height and width of an image.
    #[must_use]
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// The steps of a part.
    #[must_use]
    pub fn range(&self, part: Part) -> Range<usize> {
        let [intermediate, last] = self.cuts;
        match part {
            Part::Beginning => 0..intermediate,
            Part::Intermediate => intermediate..last,
            Part::Final => last..self.steps.len(),
        }
    }

    /// The part that a step belongs to.
    #[must_use]
    pub fn part_of(&self, step: usize) -> Part {
        Part::ALL[self.cuts.iter().filter(|&&cut| cut <= step).count()]
    }

    /// How many of the first steps lead to the feature vector, on which clustering and condensation work.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// The image that a decoder makes of the features, where the network has one: the result of so many of the first steps.
    #[must_use]
    pub fn reconstruction(&self) -> Option<Value> {
        self.reconstruction
    }

    /// All parameters and buffers, in order.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.steps.iter().flat_map(|step| &step.slots)
    }

    /// The shape of a value for one sample.
    #[must_use]
    pub fn shape(&self, value: Value) -> &[usize] {
        if value == 0 { &self.input } else { &self.steps[value - 1].shape }
    }

    /// Whether a value is an image, [C, H, W].
    pub(crate) fn is_image(&self, value: Value) -> bool {
        self.shape(value).len() == 3
    }

    /// The last step that takes a value; the number of steps for the result of the network.
    pub(crate) fn last_use(&self, value: Value) -> usize {
        let last = self.steps.iter().rposition(|step| step.inputs.contains(&value));
        last.unwrap_or(self.steps.len())
    }

    /// How many steps take a value.
    pub(crate) fn uses(&self, value: Value) -> usize {
        self.steps.iter().filter(|step| step.inputs.contains(&value)).count()
    }

    /// The most values that a sample takes on both sides of a step that multiplies, or that makes more of what there is.
    pub(crate) fn widest(&self) -> usize {
        let size = |value: Value| self.shape(value).iter().product::<usize>();
        let widens = |step: &Step| step.operations() > 0 || step.operation == Operation::BothSides;
        let multiplying = self.steps.iter().enumerate().filter(|(_, step)| widens(step));
        multiplying.map(|(index, step)| size(step.inputs[0]).saturating_add(size(index + 1))).chain([size(0)]).max().unwrap_or(0)
    }

    /// The last layer with a weight, which gives the logits; none of networks side by side, which have one each.
    #[must_use]
    pub fn head(&self) -> Option<&Step> {
        if self.steps.iter().any(|step| step.operation == Operation::Join) {
            return None;
        }
        self.steps.iter().rev().find(|step| step.slots.iter().any(|slot| slot.role == Role::Weight))
    }

    /// Whether the network can be cut before a step: all that the later steps take from before is the result of the step before it.
    fn is_cut(&self, step: usize) -> bool {
        let later = self.steps[step..].iter().flat_map(|step| &step.inputs);
        step > 0 && step < self.steps.len() && later.filter(|&&value| value <= step).all(|&value| value == step)
    }

    /// The first step of a module, by its name or a step's.
    fn find(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}

/// What builds a [`Graph`], a step after the other.
pub(crate) struct Builder {
    graph: Graph,
    scheme: Scheme,
    /// Names the sizes that make a step too large.
    blame: fn(&str) -> &'static str,
    parameters: usize,
}

impl Builder {
    pub(crate) fn new(input: [usize; 3], scheme: Scheme, blame: fn(&str) -> &'static str) -> Self {
        Self { graph: Graph { input, steps: Vec::new(), cuts: [0; 2], features: 0, reconstruction: None }, scheme, blame, parameters: 0 }
    }

    /// So many networks side by side, all on the image and with names of their own (`shard0.NAME`), and the logarithm of the mean of what each makes probable. They are the
    /// beginning, and what they say together is the feature vector.
    pub(crate) fn side_by_side(member: &Graph, shards: usize, blame: fn(&str) -> &'static str) -> Result<Self, String> {
        let mut network = Self::new(member.input, Scheme::Pytorch, blame);
        let mut results = Vec::new();
        for shard in 0..shards {
            let before = network.last();
            let prefixed = |name: &str| format!("shard{shard}.{name}");
            for step in &member.steps {
                let mut step = step.clone();
                step.name = prefixed(&step.name);
                step.inputs.iter_mut().filter(|value| **value > 0).for_each(|value| *value += before);
                step.slots.iter_mut().for_each(|slot| slot.name = prefixed(&slot.name));
                let input = network.graph.shape(step.inputs[0]).to_vec();
                network.count(&step.name, &step.slots, &input, &step.shape)?;
                network.add(step)?;
            }
            results.push(network.last());
        }
        network.step("logits", Operation::Join, results)?;
        network.end_beginning();
        network.mark_features();
        network.then("logarithms", Operation::LogSoftmax { vectors: shards })?;
        network.end_intermediate();
        network.then("mean", Operation::LogMeanExp { vectors: shards })?;
        Ok(network)
    }

    /// The result of the last step.
    pub(crate) fn last(&self) -> Value {
        self.graph.steps.len()
    }

    /// The shape of the last step's result.
    pub(crate) fn shape(&self) -> &[usize] {
        self.graph.shape(self.last())
    }

    /// Adds a step that takes the result of the last one.
    pub(crate) fn then(&mut self, name: impl Into<String>, operation: Operation) -> Result<Value, String> {
        self.step(name, operation, vec![self.last()])
    }

    /// Adds a step.
    pub(crate) fn step(&mut self, name: impl Into<String>, operation: Operation, inputs: Vec<Value>) -> Result<Value, String> {
        let name = name.into();
        let shapes: Vec<&[usize]> = inputs.iter().map(|&value| self.graph.shape(value)).collect();
        let shape = shape(operation, &shapes).map_err(|reason| format!("`{name}`: {reason}"))?;
        let slots = slots(&name, operation, shapes[0], self.scheme);
        let input = shapes[0].to_vec();
        self.count(&name, &slots, &input, &shape)?;
        if shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)).is_none() {
            return Err(format!("the result of `{name}`, {shape:?}, is too large"));
        }
        self.add(Step { name, operation, inputs, shape, slots })
    }

    fn add(&mut self, step: Step) -> Result<Value, String> {
        if self.graph.steps.len() == MOST_STEPS {
            return Err(format!("the network has more than {MOST_STEPS} steps"));
        }
        self.graph.steps.push(step);
        Ok(self.last())
    }

    /// Refuses parameters that no memory holds, and says which of the sizes make them.
    fn count(&mut self, name: &str, slots: &[Slot], input: &[usize], output: &[usize]) -> Result<(), String> {
        for slot in slots {
            let size = slot.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
            let total = size.and_then(|size| size.checked_add(self.parameters)).filter(|&total| total <= MOST_PARAMETERS);
            self.parameters = total.ok_or_else(|| {
                let extent = |shape: &[usize]| if shape.len() == 3 { shape[0] } else { shape[shape.len() - 1] };
                format!(
                    "with `{name}` of {} to {} the network has more than {MOST_PARAMETERS} parameters; give smaller {}",
                    extent(input),
                    extent(output),
                    (self.blame)(name)
                )
            })?;
        }
        Ok(())
    }

    /// The beginning ends here.
    pub(crate) fn end_beginning(&mut self) {
        self.graph.cuts[0] = self.last();
    }

    /// The intermediate ends here.
    pub(crate) fn end_intermediate(&mut self) {
        self.graph.cuts[1] = self.last();
    }

    /// Intermediate and final begin behind these steps, the feature vector is the result of the latter.
    pub(crate) fn cut_at(&mut self, cuts: [Value; 2]) {
        self.graph.cuts = cuts;
        self.graph.features = cuts[1];
    }

    /// The last result is the feature vector.
    pub(crate) fn mark_features(&mut self) {
        self.graph.features = self.last();
    }

    /// The last result is the image as a decoder has it.
    pub(crate) fn mark_reconstruction(&mut self) {
        self.graph.reconstruction = Some(self.last());
    }

    /// The network, cut before the two modules that `cut` names, or where its builder said.
    pub(crate) fn finish(self, cut: Option<&[String; 2]>) -> Result<Graph, String> {
        let mut graph = self.graph;
        if let Some(names) = cut {
            let places = names.iter().map(|name| graph.find(name).ok_or_else(|| unknown(&graph, name))).collect::<Result<Vec<_>, _>>()?;
            graph.cuts = [places[0], places[1]];
        }
        for (cut, part) in graph.cuts.into_iter().zip(["intermediate", "final"]) {
            if !graph.is_cut(cut) {
                let name = graph.steps.get(cut).map_or("the end", |step| &step.name);
                return Err(format!(
                    "the {part} cannot begin at `{name}`: a part takes one value, that of the step before it; cut at one of {}",
                    legal_cuts(&graph)
                ));
            }
        }
        if graph.cuts[0] >= graph.cuts[1] {
            let [intermediate, last] = graph.cuts.map(|cut| graph.steps[cut].name.clone());
            return Err(format!("the intermediate begins at `{intermediate}`, but the final at `{last}`, which does not come after it"));
        }
        if !graph.is_cut(graph.features) {
            return Err("the feature vector is not one value".into());
        }
        if !graph.reconstruction.is_none_or(|value| graph.is_cut(value)) {
            return Err("the decoder's image is not one value".into());
        }
        let mut names: Vec<&str> = graph.steps.iter().map(|step| step.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("two steps are called `{}`", pair[0])),
            None => Ok(graph),
        }
    }
}

fn legal_cuts(graph: &Graph) -> String {
    let names: Vec<String> =
        (1..graph.steps.len()).filter(|&step| graph.is_cut(step)).map(|step| format!("`{}`", graph.steps[step].name)).collect();
    names.join(", ")
}

fn unknown(graph: &Graph, name: &str) -> String {
    format!("the network has no step or module `{name}`; it can be cut at one of {}", legal_cuts(graph))
}
