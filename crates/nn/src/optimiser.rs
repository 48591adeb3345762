//! Adam and SGD with their variants, one pass over each parameter, with a state that can be saved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Storage, Tensor, Var, bail};
use dcu_artifact::{Array, Tensor as Stored};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gradients::Gradients;
use crate::orthogonal::orthogonal;
use crate::tally;
use crate::vector::{Real, vectorised};

const CHUNK: usize = 1 << 14;
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;
/// Added to the norm that gradients are clipped by, as in PyTorch.
const CLIP_EPSILON: f64 = 1e-6;

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// Adam (Kingma and Ba, arXiv 1412.6980) with betas 0.9 and 0.999 and epsilon 1e-8, as `torch.optim.Adam`. Weight decay adds to the gradient.
    Adam {
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW`.
    AdamW {
        /// How much of the parameter a step takes away, times the rate, before Adam moves it.
        weight_decay: f64,
    },
    /// Gradient descent as `torch.optim.SGD`, without dampening.
    Sgd {
        /// How much of the last step is kept.
        momentum: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// The same with Nesterov's momentum, as `torch.optim.SGD` with `nesterov=True`: a step looks ahead by the momentum that it has just gained.
    Nesterov {
        /// How much of the last step is kept.
        momentum: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Steps on weights of two dimensions or more are Nesterov's momentum made nearly orthogonal (Muon, Jordan et al. 2024): all directions of a layer move by about
    /// as much, also those that gradients hardly show. Rows are the outputs; a step is larger by the root of their number over that of the inputs, where they are more.
    Muon {
        /// How much of the last step is kept.
        momentum: f64,
        /// The rate of the other parameters, by Nesterov's momentum, as a share of that of the weights; 0 leaves them as they are.
        others: f64,
    },
}

impl Rule {
    /// The rule for a parameter that weight decay spares.
    fn without_decay(self) -> Self {
        match self {
            Self::Adam { .. } => Self::Adam { weight_decay: 0.0 },
            Self::AdamW { .. } => Self::AdamW { weight_decay: 0.0 },
            Self::Sgd { momentum, .. } => Self::Sgd { momentum, weight_decay: 0.0 },
            Self::Nesterov { momentum, .. } => Self::Nesterov { momentum, weight_decay: 0.0 },
            Self::Muon { .. } => self,
        }
    }

    fn has_second_moments(self) -> bool {
        matches!(self, Self::Adam { .. } | Self::AdamW { .. })
    }
}

/// Moments, of the type of their parameter.
#[derive(Debug, Clone, PartialEq)]
enum Moments {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Moments {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    fn to_tensor(&self) -> Stored {
        match self {
            Self::F32(values) => Stored::F32(Array::vector(values.clone())),
            Self::F64(values) => Stored::F64(Array::vector(values.clone())),
        }
    }
}

/// Moments of one parameter. A parameter that is frozen keeps its moments and its count of steps.
#[derive(Debug, Clone, PartialEq)]
struct State {
    first: Moments,
    second: Moments,
    steps: u64,
}

impl State {
    /// All zeros, of `count` values.
    fn new(rule: Rule, dtype: DType, count: usize) -> Self {
        let zeros = |count: usize| if dtype == DType::F64 { Moments::F64(vec![0.0; count]) } else { Moments::F32(vec![0.0; count]) };
        Self { first: zeros(count), second: zeros(if rule.has_second_moments() { count } else { 0 }), steps: 0 }
    }
}

/// An optimiser with its state, by the parameters' names.
#[derive(Debug, Clone)]
pub struct Optimiser {
    rule: Rule,
    clip: Option<f64>,
    spared: BTreeSet<String>,
    states: BTreeMap<String, State>,
}

impl Optimiser {
    /// A fresh optimiser.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self { rule, clip: None, spared: BTreeSet::new(), states: BTreeMap::new() }
    }

    /// The same, which scales the gradients of a step so that their norm over all its parameters together is `norm` at most, as
    /// `torch.nn.utils.clip_grad_norm_`.
    #[must_use]
    pub fn clipped(self, norm: f64) -> Self {
        Self { clip: Some(norm), ..self }
    }

    /// The same, without weight decay on the parameters of the given names.
    #[must_use]
    pub fn sparing(self, names: BTreeSet<String>) -> Self {
        Self { spared: names, ..self }
    }

    /// One step on all `parameters`, which are of f32 or f64. It is made on the CPU: gradients and parameters of another device come there, and parameters
    /// go back.
    ///
    /// # Errors
    /// When a parameter has no gradient, the gradient or a restored moment has another shape or type than its parameter, or the gradients are to be
    /// clipped and their norm is not finite. No parameter has moved then.
    pub fn step(&mut self, parameters: &BTreeMap<&str, &Var>, gradients: &Gradients, rate: f64) -> Result<()> {
        let mut steps = Vec::with_capacity(parameters.len());
        for (&name, &parameter) in parameters {
            let Some(gradient) = gradients.get(name) else {
                bail!("`{name}` is to be trained, but there is no gradient of it; take the gradients with all that is to be trained");
            };
            if gradient.dims() != parameter.dims() {
                bail!("the gradient of `{name}` has the shape {:?}, the parameter {:?}", gradient.dims(), parameter.dims());
            }
            if let Some(state) = self.states.get(name) {
                if state.first.len() != parameter.elem_count() {
                    bail!("the optimiser has {} moments of `{name}`, which has {} values", state.first.len(), parameter.elem_count());
                }
                if state.first.dtype() != parameter.dtype() {
                    bail!("the optimiser's moments of `{name}` are {:?}, the parameter is {:?}", state.first.dtype(), parameter.dtype());
                }
            }
            steps.push((name, parameter, gradient.to_device(&Device::Cpu)?.contiguous()?));
        }
        let scale = match self.clip {
            Some(most) => clip_factor(most, steps.iter().map(|(.., gradient)| gradient))?,
            None => 1.0,
        };
        for (name, parameter, gradient) in steps {
            let new = || State::new(self.rule, parameter.dtype(), parameter.elem_count());
            let state = self.states.entry(name.to_owned()).or_insert_with(new);
            state.steps += 1;
            let rule = if self.spared.contains(name) { self.rule.without_decay() } else { self.rule };
            let (rule, rate) = match rule {
                Rule::Muon { momentum, .. } if parameter.rank() > 1 => {
                    muon_step(parameter, &gradient, &mut state.first, [momentum, rate, scale])?;
                    continue;
                }
                Rule::Muon { momentum, others } => (Rule::Nesterov { momentum, weight_decay: 0.0 }, rate * others),
                rule => (rule, rate),
            };
            // On the CPU this is the parameter itself.
            let on_cpu = parameter.to_device(&Device::Cpu)?;
            on_cpu.inplace_op2(&gradient, &Update { rule, rate, scale, state: Mutex::new(state) })?;
            if !parameter.device().is_cpu() {
                parameter.set(&on_cpu.to_device(parameter.device())?)?;
            }
        }
        tally::step();
        Ok(())
    }

    /// The state, as tensors by name.
    #[must_use]
    pub fn to_tensors(&self) -> BTreeMap<String, Stored> {
        let mut tensors = BTreeMap::new();
        for (name, state) in &self.states {
            tensors.insert(format!("{name}@first"), state.first.to_tensor());
            tensors.insert(format!("{name}@second"), state.second.to_tensor());
            tensors.insert(format!("{name}@steps"), Stored::U64(Array::vector(vec![state.steps])));
        }
        tensors
    }

    /// An optimiser with a saved state.
    ///
    /// # Errors
    /// Names a tensor that is missing, of the wrong type or length, or not part of a state.
    pub fn from_tensors(rule: Rule, tensors: &BTreeMap<String, Stored>) -> Result<Self> {
        let mut optimiser = Self::new(rule);
        for key in tensors.keys() {
            let Some((name, "first" | "second" | "steps")) = key.rsplit_once('@') else { bail!("`{key}` is not of an optimiser's state") };
            if optimiser.states.contains_key(name) {
                continue;
            }
            let moments = |moment: &str| match tensors.get(&format!("{name}@{moment}")) {
                Some(Stored::F32(array)) => Ok(Moments::F32(array.data.clone())),
                Some(Stored::F64(array)) => Ok(Moments::F64(array.data.clone())),
                _ => bail!("`{name}@{moment}` is missing, or neither of the type F32 nor of F64"),
            };
            let (first, second) = (moments("first")?, moments("second")?);
            let seconds = if rule.has_second_moments() { first.len() } else { 0 };
            if second.len() != seconds || second.dtype() != first.dtype() {
                let (found, expected) = ((second.len(), second.dtype()), (seconds, first.dtype()));
                bail!("`{name}@second` has {found:?} values; with {} first moments {rule:?} has {expected:?}", first.len());
            }
            let steps = match tensors.get(&format!("{name}@steps")) {
                Some(Stored::U64(array)) if array.data.len() == 1 => array.data[0],
                _ => bail!("`{name}@steps` is missing, or not one U64"),
            };
            optimiser.states.insert(name.to_owned(), State { first, second, steps });
        }
        Ok(optimiser)
    }

    /// How many values of each parameter the state is of.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (&str, usize)> {
        self.states.iter().map(|(name, state)| (name.as_str(), state.first.len()))
    }
}

/// One step of [`Rule::Muon`] on a weight of two dimensions or more.
fn muon_step(parameter: &Var, gradient: &Tensor, velocity: &mut Moments, [momentum, rate, scale]: [f64; 3]) -> Result<()> {
    let gradient = gradient.to_device(&Device::Cpu)?;
    let (rows, flat) = (gradient.dim(0)?, gradient.flatten_all()?);
    let columns = flat.elem_count() / rows;
    let rate = -rate * (rows as f64 / columns as f64).max(1.0).sqrt();
    let step = match velocity {
        Moments::F32(velocity) => {
            Tensor::from_vec(muon(flat.to_vec1()?, velocity, [momentum, rate, scale], [rows, columns]), gradient.dims(), &Device::Cpu)?
        }
        Moments::F64(velocity) => {
            Tensor::from_vec(muon(flat.to_vec1()?, velocity, [momentum, rate, scale], [rows, columns]), gradient.dims(), &Device::Cpu)?
        }
    };
    parameter.set(&(parameter.as_detached_tensor() + step.to_device(parameter.device())?)?)
}

/// What is added to a weight of so many rows and columns.
fn muon<T: Real>(mut gradient: Vec<T>, velocity: &mut [T], settings: [f64; 3], [rows, columns]: [usize; 2]) -> Vec<T> {
    let [momentum, rate, scale] = settings.map(T::from_f64);
    for (gradient, velocity) in gradient.iter_mut().zip(velocity) {
        *gradient *= scale;
        *velocity = *velocity * momentum + *gradient;
        *gradient += *velocity * momentum;
    }
    let mut step = orthogonal(&gradient, rows, columns);
    step.iter_mut().for_each(|value| *value *= rate);
    step
}

/// What gradients are scaled by, so that their common norm is `most` at most.
fn clip_factor<'a>(most: f64, gradients: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut squares = 0.0;
    for gradient in gradients {
        let (storage, layout) = gradient.storage_and_layout();
        let (Storage::Cpu(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("gradients are clipped on the CPU")
        };
        squares += match storage {
            CpuStorage::F32(values) => sum_of_squares(&values[from..to]),
            CpuStorage::F64(values) => sum_of_squares(&values[from..to]),
            _ => bail!("the optimiser needs f32 or f64"),
        };
    }
    let norm = squares.sqrt();
    if !norm.is_finite() {
        bail!("the gradients have the norm {norm}: the training diverged; give a lower `lr`");
    }
    Ok((most / (norm + CLIP_EPSILON)).min(1.0))
}

fn sum_of_squares<T: Copy + Sync + Into<f64>>(values: &[T]) -> f64 {
    /// Sums side by side.
    const LANES: usize = 16;
    let of_chunk = |chunk: &[T]| {
        vectorised(
            #[inline(always)]
            || {
                let mut lanes = [0.0_f64; LANES];
                for part in chunk.chunks(LANES) {
                    for (lane, &value) in lanes.iter_mut().zip(part) {
                        let value: f64 = value.into();
                        *lane = value.mul_add(value, *lane);
                    }
                }
                lanes.iter().sum::<f64>()
            },
        )
    };
    values.par_chunks(CHUNK).map(of_chunk).collect::<Vec<f64>>().into_iter().sum()
}

struct Update<'a> {
    rule: Rule,
    rate: f64,
    /// What the gradient is scaled by.
    scale: f64,
    state: Mutex<&'a mut State>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimiser"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, layout: &Layout, gradient: &CpuStorage, gradient_layout: &Layout) -> Result<()> {
        let (Some((from, to)), Some((gradient_from, gradient_to))) = (layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            bail!("the optimiser needs contiguous tensors")
        };
        let mut state = self.state.lock().expect("used by one thread");
        let State { first, second, steps } = &mut **state;
        match (parameter, gradient, first, second) {
            (CpuStorage::F32(parameter), CpuStorage::F32(gradient), Moments::F32(first), Moments::F32(second)) => {
                single::update(self, &mut parameter[from..to], &gradient[gradient_from..gradient_to], first, second, *steps);
            }
            (CpuStorage::F64(parameter), CpuStorage::F64(gradient), Moments::F64(first), Moments::F64(second)) => {
                double::update(self, &mut parameter[from..to], &gradient[gradient_from..gradient_to], first, second, *steps);
            }
            _ => bail!("the optimiser needs a parameter and a gradient of f32, or both of f64"),
        }
        Ok(())
    }
}

/// The rules for numbers of one type. Constants are rounded once, from f64, as in PyTorch: 1 - 0.999 in f32 would be off by 1.3e-5 of it. So are sums
/// with a scaled term. What a rule does not do is done with a factor of 1 or 0, which changes nothing.
macro_rules! rules {
    ($module:ident, $real:ty) => {
        mod $module {
            use super::*;

            pub(super) fn update(
                update: &Update<'_>,
                parameter: &mut [$real],
                gradient: &[$real],
                first: &mut [$real],
                second: &mut [$real],
                steps: u64,
            ) {
                let (rate, scale) = (update.rate, update.scale as $real);
                match update.rule {
                    Rule::Adam { weight_decay } => {
                        adam(parameter, gradient, first, second, steps, rate, scale, (weight_decay as $real, 1.0));
                    }
                    Rule::AdamW { weight_decay } => {
                        adam(parameter, gradient, first, second, steps, rate, scale, (0.0, (1.0 - rate * weight_decay) as $real));
                    }
                    Rule::Sgd { momentum, weight_decay } => {
                        sgd::<false>(parameter, gradient, first, rate as $real, scale, momentum as $real, weight_decay as $real);
                    }
                    Rule::Nesterov { momentum, weight_decay } => {
                        sgd::<true>(parameter, gradient, first, rate as $real, scale, momentum as $real, weight_decay as $real);
                    }
                    Rule::Muon { .. } => unreachable!("taken apart into rules for a parameter"),
                }
            }

            /// `decay`: what of the parameter is added to the gradient, and what the parameter itself is multiplied with.
            #[allow(clippy::too_many_arguments, reason = "the numbers of one formula")]
            fn adam(
                parameter: &mut [$real],
                gradient: &[$real],
                first: &mut [$real],
                second: &mut [$real],
                steps: u64,
                rate: f64,
                scale: $real,
                decay: ($real, $real),
            ) {
                let correction = |beta: f64| 1.0 - beta.powf(steps as f64);
                let step = (rate / correction(BETAS.0)) as $real;
                let root_correction = correction(BETAS.1).sqrt() as $real;
                let (second_beta, epsilon) = (BETAS.1 as $real, EPSILON as $real);
                let (of_first, of_second) = ((1.0 - BETAS.0) as $real, (1.0 - BETAS.1) as $real);
                let (added, kept) = decay;
                let chunks = parameter
                    .par_chunks_mut(CHUNK)
                    .zip(gradient.par_chunks(CHUNK))
                    .zip(first.par_chunks_mut(CHUNK))
                    .zip(second.par_chunks_mut(CHUNK));
                chunks.for_each(|(((parameter, gradient), first), second)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for (((parameter, &gradient), first), second) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
                                let gradient = added.mul_add(*parameter, scale * gradient);
                                *first = of_first.mul_add(gradient - *first, *first);
                                *second = second_beta * *second + of_second * gradient * gradient;
                                *parameter = kept * *parameter - step * *first / (second.sqrt() / root_correction + epsilon);
                            }
                        },
                    );
                });
            }

            fn sgd<const NESTEROV: bool>(
                parameter: &mut [$real],
                gradient: &[$real],
                velocity: &mut [$real],
                rate: $real,
                scale: $real,
                momentum: $real,
                weight_decay: $real,
            ) {
                let chunks = parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(velocity.par_chunks_mut(CHUNK));
                chunks.for_each(|((parameter, gradient), velocity)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for ((parameter, &gradient), velocity) in parameter.iter_mut().zip(gradient).zip(velocity) {
                                let gradient = weight_decay.mul_add(*parameter, scale * gradient);
                                *velocity = momentum * *velocity + gradient;
                                let step = if NESTEROV { momentum.mul_add(*velocity, gradient) } else { *velocity };
                                *parameter = (-rate).mul_add(step, *parameter);
                            }
                        },
                    );
                });
            }
        }
    };
}

rules!(single, f32);
rules!(double, f64);

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::rng::Streams;

    fn drawn(rows: usize, columns: usize) -> Tensor {
        let mut stream = Streams::new(1, "test").stream("matrix");
        let values: Vec<f64> = (0..rows * columns).map(|_| f64::from(stream.normal())).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_step_goes_against_the_gradient_and_leaves_other_parameters_alone_where_it_is_told_to() {
        let gradient = drawn(4, 9);
        let weight = Var::from_tensor(&gradient.zeros_like().unwrap()).unwrap();
        let bias = Var::from_tensor(&Tensor::new(&[1.0_f64, 2.0], &Device::Cpu).unwrap()).unwrap();
        let of_bias = bias.as_detached_tensor().copy().unwrap();
        let gradients: Gradients = [("weight".to_owned(), gradient.clone()), ("bias".to_owned(), of_bias)].into_iter().collect();
        let parameters = BTreeMap::from([("weight", &weight), ("bias", &bias)]);
        let mut optimiser = Optimiser::new(Rule::Muon { momentum: 0.9, others: 0.0 });
        optimiser.step(&parameters, &gradients, 0.1).unwrap();
        let moved = (weight.as_detached_tensor() * &gradient).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let size = weight.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        assert!(moved < 0.0 && (0.14..0.24).contains(&size), "{moved} {size}");
        assert_eq!(bias.to_vec1::<f64>().unwrap(), [1.0, 2.0]);
        // The state goes through a snapshot.
        let restored = Optimiser::from_tensors(Rule::Muon { momentum: 0.9, others: 0.0 }, &optimiser.to_tensors()).unwrap();
        let after = |mut optimiser: Optimiser| {
            let copy = Var::from_tensor(&weight.as_detached_tensor().copy().unwrap()).unwrap();
            optimiser.step(&BTreeMap::from([("weight", &copy)]), &gradients, 0.1).unwrap();
            copy.to_vec2::<f64>().unwrap()
        };
        assert_eq!(after(optimiser), after(restored));
    }
}
