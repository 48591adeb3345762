//! Two fully connected layers with a GELU between them, as in the blocks of a transformer, some rows at a time: what lies between stays in the cache, and
//! candle does not collect its gradients.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::gelu;
use super::convolution::add_to_rows;
use super::linear::{column_sums, linear};
use super::storage::{apply3, dtype_of, for_real, gradient_of, stored, values, with_values};
use super::weight::{Target, Weight};
use crate::matrix::{Matrix, Panels, Real, multiply, product};
use crate::vector::vectorised;

/// Rows of a task.
const ROWS: usize = 48;

/// `gelu(input · w₁ᵀ + b₁) · w₂ᵀ + b₂`: input [.., I], weights [H, I] and [O, H], biases [H] and [O], result [.., O].
///
/// # Errors
/// When the shapes do not fit, the tensors are not all f32 or all f64, or are not on the CPU.
pub fn linear_gelu_linear(input: &Tensor, weights: [Weight<'_>; 2], biases: [&Tensor; 2]) -> Result<Tensor> {
    let inputs = input.dims().last().copied().unwrap_or(0);
    let ((hidden, columns), (outputs, inner)) = (weights[0].tensor().dims2()?, weights[1].tensor().dims2()?);
    if inputs != columns
        || inner != hidden
        || biases[0].dims() != [hidden]
        || biases[1].dims() != [outputs]
        || inputs * hidden * outputs == 0
    {
        bail!(
            "layers of {columns} to {hidden} and {inner} to {outputs} do not take {inputs} inputs and biases {:?}",
            biases.map(Tensor::dims)
        );
    }
    let arguments = [weights[0].argument(&[input, biases[0], biases[1]])?, weights[1].argument(&[input, biases[0], biases[1]])?];
    if arguments.iter().any(|(weight, _)| weight.track_op()) {
        // candle collects the gradients of three arguments at most.
        let [first, second] = weights;
        return linear(&gelu(&linear(input, first, biases[0])?)?, second, biases[1]);
    }
    let [(first, of_first), (second, of_second)] = arguments;
    let tensors = [first.detach(), second.detach()];
    let is_traced = [input, biases[0], biases[1]].iter().any(|argument| argument.track_op());
    apply3(
        [input, biases[0], biases[1]],
        Perceptron { weights: tensors, targets: [of_first, of_second], is_traced, hidden: Mutex::new(None) },
    )
}

struct Perceptron {
    weights: [Tensor; 2],
    targets: [Target; 2],
    /// Whether there will be a backward pass.
    is_traced: bool,
    /// What the forward pass left for it: the first layer's results.
    hidden: Mutex<Option<Tensor>>,
}

impl Perceptron {
    fn sizes(&self) -> Result<[usize; 3]> {
        let ((hidden, inputs), (outputs, _)) = (self.weights[0].dims2()?, self.weights[1].dims2()?);
        Ok([inputs, hidden, outputs])
    }
}

impl CustomOp3 for Perceptron {
    fn name(&self) -> &'static str {
        "linear_gelu_linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [inputs, hidden, outputs] = self.sizes()?;
        let mut shape = l1.dims().to_vec();
        *shape.last_mut().expect("checked before") = outputs;
        for_real!(dtype_of(s1), T => with_values::<T, _>(&[&self.weights[0], &self.weights[1]], |weights| {
            let (input, biases) = (values::<T>(s1, l1)?, [values::<T>(s2, l2)?, values::<T>(s3, l3)?]);
            let rows = input.len() / inputs;
            let mut laid_out = [Vec::new(), Vec::new()];
            let [of_first, of_second] = &mut laid_out;
            let first = Panels::lay_out(Matrix::new(weights[0], hidden, inputs).transposed(), of_first);
            let second = Panels::lay_out(Matrix::new(weights[1], outputs, hidden).transposed(), of_second);
            let (mut between, mut output) = (vec![T::default(); rows * hidden], vec![T::default(); rows * outputs]);
            let tasks = between.par_chunks_mut(ROWS * hidden).zip(output.par_chunks_mut(ROWS * outputs)).zip(input.par_chunks(ROWS * inputs));
            tasks.for_each_init(Vec::new, |activated: &mut Vec<T>, ((between, output), input)| {
                let rows = input.len() / inputs;
                multiply(Matrix::new(input, rows, inputs), first, between, false);
                activated.resize(between.len(), T::default());
                vectorised(#[inline(always)] || {
                    add_to_rows(between, biases[0]);
                    activated.iter_mut().zip(between.iter()).for_each(|(activated, value)| *activated = value.gelu()[0]);
                });
                multiply(Matrix::new(activated, rows, hidden), second, output, false);
                vectorised(#[inline(always)] || add_to_rows(output, biases[1]));
            });
            if self.is_traced {
                *self.hidden.lock().expect("no thread panicked") = Some(Tensor::from_vec(between, (rows, hidden), self.weights[0].device())?);
            }
            Ok((stored(output), shape.into()))
        }))
    }

    fn bwd(
        &self,
        input: &Tensor,
        first_bias: &Tensor,
        second_bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [inputs, hidden, outputs] = self.sizes()?;
        let left = self.hidden.lock().expect("no thread panicked").take();
        // A second backward pass finds nothing left.
        let before = left.map_or_else(|| linear(&input.detach(), &self.weights[0], &first_bias.detach()), Ok)?;
        let wants = [0, 1].map(|layer| self.targets[layer].wants_gradient(&self.weights[layer]));
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, gradient, &before, &self.weights[0], &self.weights[1]], |arguments| {
            let [input_values, gradient, before, first, second] = std::array::from_fn(|place| arguments[place]);
            let rows = input_values.len() / inputs;
            let mut laid_out = Vec::new();
            let panels_of_second = Panels::lay_out(Matrix::new(second, outputs, hidden), &mut laid_out);
            // The gradient of what lies before the GELU, and what lies behind it.
            let (mut slopes, mut activated) = (vec![T::default(); rows * hidden], vec![T::default(); if wants[1] { rows * hidden } else { 0 }]);
            let multiply_by_slope = |slopes: &mut [T], before: &[T], gradient: &[T]| {
                multiply(Matrix::new(gradient, gradient.len() / outputs, outputs), panels_of_second, slopes, false);
                vectorised(#[inline(always)] || slopes.iter_mut().zip(before).for_each(|(slope, before)| *slope *= before.gelu()[1]));
            };
            let tasks = slopes.par_chunks_mut(ROWS * hidden).zip(before.par_chunks(ROWS * hidden)).zip(gradient.par_chunks(ROWS * outputs));
            if wants[1] {
                tasks.zip(activated.par_chunks_mut(ROWS * hidden)).for_each(|(((slopes, before), gradient), activated)| {
                    multiply_by_slope(slopes, before, gradient);
                    vectorised(#[inline(always)] || activated.iter_mut().zip(before).for_each(|(activated, before)| *activated = before.gelu()[0]));
                });
            } else {
                tasks.for_each(|((slopes, before), gradient)| multiply_by_slope(slopes, before, gradient));
            }
            let (slopes, gradient) = (Matrix::new(&slopes, rows, hidden), Matrix::new(gradient, rows, outputs));
            let of_second = wants[1].then(|| product(gradient.transposed(), Matrix::new(&activated, rows, hidden)));
            drop(activated);
            let of_first = wants[0].then(|| product(slopes.transposed(), Matrix::new(input_values, rows, inputs)));
            let of_biases = [
                first_bias.track_op().then(|| column_sums(slopes.values(), hidden)),
                second_bias.track_op().then(|| column_sums(gradient.values(), outputs)),
            ];
            let of_input = input.track_op().then(|| product(slopes, Matrix::new(first, hidden, inputs)));
            self.targets[0].hand_over(gradient_of(&self.weights[0], of_first)?)?;
            self.targets[1].hand_over(gradient_of(&self.weights[1], of_second)?)?;
            let [of_first_bias, of_second_bias] = of_biases;
            Ok((gradient_of(input, of_input)?, gradient_of(first_bias, of_first_bias)?, gradient_of(second_bias, of_second_bias)?))
        }))
    }
}
