//! What lies beyond the gradient of a loss: the gradient of each sample, sums of their squares, products with the Hessian, and linear systems of it.
//!
//! All of it is taken in modes in which a sample's logits depend on that sample alone.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use crate::architecture::Part;
use crate::gradients::Gradients;
use crate::graph::{Operation, Role, Slot};
use crate::network::{Modes, Network, Tap, Trainable};
use crate::ops::{self, Convolution};
use crate::place::Place;

/// Samples whose gradients are held at once where only a sum of them is asked for, and values of one parameter's, at most.
const AT_ONCE: usize = 128;
const MOST_VALUES: usize = 1 << 24;
/// How far weights are moved for a difference of gradients, of the norm of all of them: far above the rounding of f64, and so little that hardly a
/// rectification turns over.
const MOVE: f64 = 1e-7;

/// A loss, one number, of the logits of some samples, which are given by their rows.
pub type Loss<'a> = &'a (dyn Fn(&Tensor, &[usize]) -> Result<Tensor> + Sync);

/// Refuses modes in which a sample has no gradient of its own.
fn check_modes(network: &Network, modes: Modes) -> Result<()> {
    match Part::ALL.into_iter().find(|&part| !network.is_fixed(part, modes[part as usize])) {
        Some(part) => bail!(
            "in these modes the {part:?} part takes statistics of the batch or drops values, so that a sample has no gradient of its own; use `Mode::EVAL`"
        ),
        None => Ok(()),
    }
}

/// The number of samples, where there are some and these are modes for them.
fn check(network: &Network, images: &Tensor, modes: Modes) -> Result<usize> {
    check_modes(network, modes)?;
    match images.dim(0)? {
        0 => bail!("there are no samples to take gradients of"),
        rows => Ok(rows),
    }
}

/// The gradients of what the steps with parameters gave, for the sum of the losses of these rows.
fn tapped(network: &Network, images: &Tensor, rows: Range<usize>, loss: Loss<'_>, trainable: &Trainable) -> Result<Vec<(Tap, Tensor)>> {
    let (logits, taps) = network.tapped(&images.narrow(0, rows.start, rows.len())?, trainable)?;
    let of_row = |(index, row)| loss(&logits.narrow(0, index, 1)?, &[row])?.reshape(1);
    let losses = rows.enumerate().map(of_row).collect::<Result<Vec<_>>>()?;
    let mut collected = Tensor::cat(&losses, 0)?.sum_all()?.backward()?;
    let of_tap = |tap: Tap| match collected.remove(&tap.offset) {
        Some(gradient) => Ok((tap, gradient.contiguous()?)),
        None => bail!(
            "`{}` is to be trained, but the loss does not depend on it; train only what it depends on",
            network.graph().steps()[tap.step].name
        ),
    };
    taps.into_iter().map(of_tap).collect()
}

/// The gradient of one of a step's parameters for each sample, [N, ..] behind its shape.
fn of_slot(network: &Network, (tap, gradient): &(Tap, Tensor), slot: &Slot) -> Result<Tensor> {
    let step = &network.graph().steps()[tap.step];
    let shape = [&[gradient.dim(0)?], slot.shape.as_slice()].concat();
    let found = match (slot.role, step.operation) {
        (Role::Weight, Operation::Convolution { stride, padding, .. }) => {
            ops::conv2d_per_sample_weight_gradients(&tap.input, gradient, kernel(slot), Convolution { stride, padding })?
        }
        // It is the adjoint of the convolution from its result to its input.
        (Role::Weight, Operation::TransposedConvolution { stride, padding, .. }) => {
            ops::conv2d_per_sample_weight_gradients(gradient, &tap.input, kernel(slot), Convolution { stride, padding })?
        }
        (Role::Weight, _) => ops::linear_per_sample_weight_gradients(&tap.input, gradient)?,
        (Role::Scale, _) => ops::per_sample_sums(&gradient.mul(&network.normalised(tap.step, &tap.input)?)?)?,
        // The class token lies before the others, positions are added to all.
        (Role::Embedding, _) => gradient.narrow(1, 0, slot.shape[1])?.contiguous()?,
        _ => ops::per_sample_sums(gradient)?,
    };
    found.reshape(shape)
}

fn kernel(slot: &Slot) -> (usize, usize, usize, usize) {
    (slot.shape[0], slot.shape[1], slot.shape[2], slot.shape[3])
}

/// The slots of a step that are trainable.
fn slots<'a>(network: &'a Network, tap: &Tap, trainable: &'a Trainable) -> impl Iterator<Item = &'a Slot> {
    network.graph().steps()[tap.step].slots.iter().filter(|slot| trainable.contains(&slot.name))
}

/// The gradient of each sample's loss: of each parameter that is trainable, [N, ..] behind the shape of the parameter. `images` are [N, C, H, W]; `loss` is
/// asked for one row at a time.
///
/// One backward pass gives the gradients of what the steps gave, and products with what they read those of the weights. On the CPU alone.
///
/// # Errors
/// When there are no samples, a mode takes statistics of the batch or drops values, or the loss does not depend on a parameter.
pub fn per_sample(network: &Network, images: &Tensor, loss: Loss<'_>, trainable: &Trainable, modes: Modes) -> Result<Gradients> {
    let rows = check(network, images, modes)?;
    let mut found = Vec::new();
    for tapped in &tapped(network, images, 0..rows, loss, trainable)? {
        for slot in slots(network, &tapped.0, trainable) {
            found.push((slot.name.clone(), of_slot(network, tapped, slot)?));
        }
    }
    Ok(found.into_iter().collect())
}

/// The sum over samples of the squares of each one's gradient, as the diagonal of the empirical Fisher information times N. Few gradients are held at
/// once, and they are added in the order of the samples.
///
/// # Errors
/// As [`per_sample`].
pub fn sum_of_squares(network: &Network, images: &Tensor, loss: Loss<'_>, trainable: &Trainable, modes: Modes) -> Result<Gradients> {
    let rows = check(network, images, modes)?;
    let largest = network.parameters(trainable).values().map(|parameter| parameter.elem_count()).max().unwrap_or(1);
    let at_once = (MOST_VALUES / largest).clamp(1, AT_ONCE);
    let mut sum: Option<Gradients> = None;
    for start in (0..rows).step_by(at_once) {
        let mut squares = Vec::new();
        for tapped in &tapped(network, images, start..rows.min(start + at_once), loss, trainable)? {
            for slot in slots(network, &tapped.0, trainable) {
                squares.push((slot.name.clone(), squares_of_slot(network, tapped, slot)?));
            }
        }
        let squares: Gradients = squares.into_iter().collect();
        sum = Some(match sum {
            Some(sum) => sum.plus(1.0, &squares)?,
            None => squares,
        });
    }
    sum.ok_or_else(|| candle_core::Error::msg("there are no samples to take gradients of"))
}

/// The sum over samples of the squares of what [`of_slot`] gives.
fn squares_of_slot(network: &Network, tapped: &(Tap, Tensor), slot: &Slot) -> Result<Tensor> {
    let (tap, gradient) = tapped;
    if slot.role == Role::Weight && slot.shape.len() == 2 && gradient.rank() == 2 {
        // A sample's gradient is one outer product: its square is that of the squares.
        let transposed = |values: &Tensor| values.sqr()?.t()?.contiguous();
        return ops::linear(&transposed(gradient)?, &transposed(&tap.input)?, None);
    }
    of_slot(network, tapped, slot)?.sqr()?.sum(0)
}

/// A loss of all samples as a function of the weights around where they are, in f64.
pub struct Curvature<'a> {
    network: Network,
    images: Tensor,
    rows: Vec<usize>,
    loss: Loss<'a>,
    trainable: Trainable,
    weights: Gradients,
}

impl<'a> Curvature<'a> {
    /// Around the weights of `network`, of which it takes a copy.
    ///
    /// # Errors
    /// When a mode takes statistics of the batch or drops values, or the network cannot be copied.
    pub fn new(network: &Network, images: &Tensor, loss: Loss<'a>, trainable: &Trainable, modes: Modes) -> Result<Self> {
        check_modes(network, modes)?;
        let network = network.moved_to(Place { dtype: DType::F64, ..network.place().clone() })?;
        let weights = network
            .parameters(trainable)
            .into_iter()
            .map(|(name, parameter)| Ok((name.to_owned(), parameter.as_detached_tensor().copy()?)));
        let weights = weights.collect::<Result<Gradients>>()?;
        Ok(Self { rows: (0..images.dim(0)?).collect(), images: images.clone(), network, loss, trainable: trainable.clone(), weights })
    }

    /// The gradient of the loss.
    ///
    /// # Errors
    /// When the loss does not depend on a parameter.
    pub fn gradient(&self) -> Result<Gradients> {
        let logits = self.network.judge(&self.images, &self.trainable)?;
        self.network.backward(&(self.loss)(&logits, &self.rows)?, &self.trainable)
    }

    /// The product of the Hessian with a direction, as the difference of the gradients on both sides. At a kink of a rectification, or where two values of a
    /// window are equal, there is no Hessian, and what comes out depends on how far the sides are.
    ///
    /// # Errors
    /// When the direction is not of the parameters that are trainable, or not finite.
    pub fn product(&mut self, direction: &Gradients) -> Result<Gradients> {
        let (size, length) = (self.weights.norm()?, direction.norm()?);
        if !length.is_finite() {
            bail!("the direction of a product with the Hessian has the norm {length}");
        }
        let direction = direction.map(|_, tensor| tensor.to_dtype(DType::F64))?;
        if length == 0.0 {
            return self.weights.plus(0.0, &direction)?.scaled(0.0);
        }
        let step = MOVE * (1.0 + size) / length;
        let ahead = self.gradient_at(&self.weights.plus(step, &direction)?);
        let behind = self.gradient_at(&self.weights.plus(-step, &direction)?);
        self.network.set(&self.weights)?;
        ahead?.plus(-1.0, &behind?)?.scaled(0.5 / step)
    }

    fn gradient_at(&mut self, weights: &Gradients) -> Result<Gradients> {
        self.network.set(weights)?;
        self.gradient()
    }
}

/// What [`conjugate_gradients`] came to.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The solution.
    pub solution: Gradients,
    /// What is left of the right side, as a share of its norm.
    pub residual: f64,
    /// Products that it took.
    pub steps: usize,
}

/// Solves `(A + damping · I) x = right` by conjugate gradients (Hestenes and Stiefel 1952), where `product` multiplies with the symmetric A; until the
/// residual is `tolerance` of the right side or after so many steps, whichever comes first.
///
/// # Errors
/// When a direction shows that the damped matrix is not positive definite, or the first error of `product`.
pub fn conjugate_gradients(
    mut product: impl FnMut(&Gradients) -> Result<Gradients>,
    right: &Gradients,
    damping: f64,
    tolerance: f64,
    steps: usize,
) -> Result<Solution> {
    let whole = right.norm()?;
    let (mut solution, mut residual, mut direction) = (right.scaled(0.0)?, right.clone(), right.clone());
    let (mut square, mut taken) = (whole * whole, 0);
    while taken < steps && square.sqrt() > tolerance * whole {
        let image = product(&direction)?.plus(damping, &direction)?;
        let curvature = direction.dot(&image)?;
        if curvature.is_nan() || curvature <= 0.0 {
            bail!(
                "after {taken} steps of conjugate gradients the curvature of a direction is {curvature}; give a greater damping than {damping}"
            );
        }
        let length = square / curvature;
        solution = solution.plus(length, &direction)?;
        residual = residual.plus(-length, &image)?;
        let next = residual.dot(&residual)?;
        direction = residual.plus(next / square, &direction)?;
        (square, taken) = (next, taken + 1);
    }
    Ok(Solution { solution, residual: if whole > 0.0 { square.sqrt() / whole } else { 0.0 }, steps: taken })
}
