//! Adam and SGD with momentum, one pass over each parameter, with a state that can be saved.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Var, bail};
use dcu_artifact::{Array, Tensor as Stored};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gradients::Gradients;
use crate::vector::vectorised;

const CHUNK: usize = 1 << 14;
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// Adam (Kingma and Ba, arXiv 1412.6980) with betas 0.9 and 0.999 and epsilon 1e-8, as `torch.optim.Adam`. Weight decay adds to the gradient.
    Adam {
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Gradient descent as `torch.optim.SGD`, without dampening.
    Sgd {
        /// How much of the last step is kept.
        momentum: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
}

/// Moments of one parameter. A parameter that is frozen keeps its moments and its count of steps.
#[derive(Debug, Clone, PartialEq, Default)]
struct State {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u64,
}

/// An optimiser with its state, by the parameters' names.
#[derive(Debug, Clone)]
pub struct Optimiser {
    rule: Rule,
    states: BTreeMap<String, State>,
}

impl Optimiser {
    /// A fresh optimiser.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self { rule, states: BTreeMap::new() }
    }

    /// One step on all `parameters`.
    ///
    /// # Errors
    /// When a parameter has no gradient, or the gradient or a restored moment has another shape than its parameter. No parameter has moved then.
    pub fn step(&mut self, parameters: &BTreeMap<&str, &Var>, gradients: &Gradients, rate: f64) -> Result<()> {
        let mut steps = Vec::with_capacity(parameters.len());
        for (&name, &parameter) in parameters {
            let Some(gradient) = gradients.get(name) else {
                bail!("`{name}` is to be trained, but there is no gradient of it; take the gradients with all that is to be trained");
            };
            if gradient.dims() != parameter.dims() {
                bail!("the gradient of `{name}` has the shape {:?}, the parameter {:?}", gradient.dims(), parameter.dims());
            }
            if let Some(state) = self.states.get(name).filter(|state| state.first.len() != parameter.elem_count()) {
                bail!("the optimiser has {} moments of `{name}`, which has {} values", state.first.len(), parameter.elem_count());
            }
            steps.push((name, parameter, gradient));
        }
        for (name, parameter, gradient) in steps {
            let state = self.states.entry(name.to_owned()).or_default();
            state.steps += 1;
            let update = Update { rule: self.rule, rate, state: Mutex::new(state) };
            parameter.inplace_op2(&gradient.contiguous()?, &update)?;
        }
        Ok(())
    }

    /// The state, as tensors by name.
    #[must_use]
    pub fn to_tensors(&self) -> BTreeMap<String, Stored> {
        let mut tensors = BTreeMap::new();
        for (name, state) in &self.states {
            tensors.insert(format!("{name}@first"), Stored::F32(Array::vector(state.first.clone())));
            tensors.insert(format!("{name}@second"), Stored::F32(Array::vector(state.second.clone())));
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
                Some(Stored::F32(array)) => Ok(array.data.clone()),
                _ => bail!("`{name}@{moment}` is missing, or not of the type F32"),
            };
            let (first, second) = (moments("first")?, moments("second")?);
            let seconds = if matches!(rule, Rule::Adam { .. }) { first.len() } else { 0 };
            if second.len() != seconds {
                bail!("`{name}@second` has {} values; with {} first moments {rule:?} has {seconds}", second.len(), first.len());
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

struct Update<'a> {
    rule: Rule,
    rate: f64,
    state: Mutex<&'a mut State>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimiser"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, layout: &Layout, gradient: &CpuStorage, gradient_layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(parameter), CpuStorage::F32(gradient)) = (parameter, gradient) else { bail!("the optimiser needs f32") };
        let (Some((from, to)), Some((gradient_from, gradient_to))) = (layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            bail!("the optimiser needs contiguous tensors")
        };
        let mut state = self.state.lock().expect("used by one thread");
        let (parameter, gradient) = (&mut parameter[from..to], &gradient[gradient_from..gradient_to]);
        match self.rule {
            Rule::Adam { weight_decay } => adam(parameter, gradient, &mut state, self.rate, weight_decay as f32),
            Rule::Sgd { momentum, weight_decay } => {
                sgd(parameter, gradient, &mut state, self.rate as f32, momentum as f32, weight_decay as f32)
            }
        }
        Ok(())
    }
}

fn adam(parameter: &mut [f32], gradient: &[f32], state: &mut State, rate: f64, weight_decay: f32) {
    state.first.resize(parameter.len(), 0.0);
    state.second.resize(parameter.len(), 0.0);
    let correction = |beta: f64| 1.0 - beta.powf(state.steps as f64);
    let step = (rate / correction(BETAS.0)) as f32;
    let root_correction = correction(BETAS.1).sqrt() as f32;
    // Constants are rounded once, as in PyTorch: 1 - 0.999 in f32 would be off by 1.3e-5 of it. So are sums with a scaled term.
    let (second_beta, epsilon) = (BETAS.1 as f32, EPSILON as f32);
    let (of_first, of_second) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
    let chunks = parameter
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(state.first.par_chunks_mut(CHUNK))
        .zip(state.second.par_chunks_mut(CHUNK));
    chunks.for_each(|(((parameter, gradient), first), second)| {
        vectorised(
            #[inline(always)]
            || {
                for (((parameter, &gradient), first), second) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
                    let gradient = weight_decay.mul_add(*parameter, gradient);
                    *first = of_first.mul_add(gradient - *first, *first);
                    *second = second_beta * *second + of_second * gradient * gradient;
                    *parameter -= step * *first / (second.sqrt() / root_correction + epsilon);
                }
            },
        );
    });
}

fn sgd(parameter: &mut [f32], gradient: &[f32], state: &mut State, rate: f32, momentum: f32, weight_decay: f32) {
    state.first.resize(parameter.len(), 0.0);
    let chunks = parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(state.first.par_chunks_mut(CHUNK));
    chunks.for_each(|((parameter, gradient), velocity)| {
        vectorised(
            #[inline(always)]
            || {
                for ((parameter, &gradient), velocity) in parameter.iter_mut().zip(gradient).zip(velocity) {
                    *velocity = momentum * *velocity + weight_decay.mul_add(*parameter, gradient);
                    *parameter = (-rate).mul_add(*velocity, *parameter);
                }
            },
        );
    });
}
