//! What lies beyond the gradient of a loss: the gradient of each sample, sums of their squares, products with the Hessian, and linear systems of it.
//!
//! All of it is taken in modes in which a sample's logits depend on that sample alone.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::architecture::Part;
use crate::gradients::Gradients;
use crate::network::{Modes, Network, Place, Trainable};

/// Samples whose gradients are held at once where only a sum of them is asked for.
const AT_ONCE: usize = 32;
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

/// The gradient of each sample of `rows`, in their order. Each thread works on a copy of the network, as a backward pass leaves gradients in it.
fn each(network: &Network, images: &Tensor, rows: &[usize], loss: Loss<'_>, trainable: &Trainable) -> Result<Vec<Gradients>> {
    let of_thread = |rows: &[usize]| {
        let network = network.duplicate()?;
        let of_sample = |&row: &usize| {
            let logits = network.judge(&images.narrow(0, row, 1)?, trainable)?;
            network.backward(&loss(&logits, &[row])?, trainable)
        };
        rows.iter().map(of_sample).collect::<Result<Vec<_>>>()
    };
    let share = rows.len().div_ceil(rayon::current_num_threads()).max(1);
    Ok(rows.par_chunks(share).map(of_thread).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The gradient of each sample's loss: of each parameter that is trainable, [N, ..] behind the shape of the parameter. `images` are [N, C, H, W].
///
/// One backward pass a sample.
///
/// # Errors
/// When there are no samples, a mode takes statistics of the batch or drops values, or the loss does not depend on a parameter.
pub fn per_sample(network: &Network, images: &Tensor, loss: Loss<'_>, trainable: &Trainable, modes: Modes) -> Result<Gradients> {
    check_modes(network, modes)?;
    let rows: Vec<usize> = (0..images.dim(0)?).collect();
    let all = each(network, images, &rows, loss, trainable)?;
    let Some(first) = all.first() else { bail!("there are no samples to take gradients of") };
    first.map(|name, _| Tensor::stack(&all.iter().filter_map(|sample| sample.get(name)).collect::<Vec<_>>(), 0))
}

/// The sum over samples of the squares of each one's gradient, as the diagonal of the empirical Fisher information times N. Few gradients are held at
/// once, and they are added in the order of the samples.
///
/// # Errors
/// As [`per_sample`].
pub fn sum_of_squares(network: &Network, images: &Tensor, loss: Loss<'_>, trainable: &Trainable, modes: Modes) -> Result<Gradients> {
    check_modes(network, modes)?;
    let rows: Vec<usize> = (0..images.dim(0)?).collect();
    let mut sum: Option<Gradients> = None;
    for rows in rows.chunks(AT_ONCE) {
        for sample in each(network, images, rows, loss, trainable)? {
            let squares = sample.map(|_, gradient| gradient.sqr())?;
            sum = Some(match sum {
                Some(sum) => sum.plus(1.0, &squares)?,
                None => squares,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::msg("there are no samples to take gradients of"))
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
