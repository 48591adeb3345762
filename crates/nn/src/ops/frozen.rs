//! A run of frozen blocks with fixed statistics in one operation, as evaluation, condensation and the training of later parts need it.
//!
//! A few images go through all of the blocks at a time, on one thread, so that what lies between two blocks stays in the cache. Of the way
//! forward, only which pixel of its window each value is gets kept for the gradient.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::block::Tail;
use super::convolution::{Chosen, Kernel, Purpose, Scratch, sized};
use super::norm::Affine;
use super::storage::{apply1, dtype_of, for_real, stored, values, with_values};
use super::types::{FrozenBlock, Statistics};
use crate::parallel::map_with;
use crate::vector::Real;

/// Images that go through the blocks together, and the values of one that lie between two blocks, at most. Have no influence on the result.
const IMAGES: usize = 24;
const VALUES: usize = 1 << 22;

/// The blocks one after the other, of which there may be none: input [N, H, W, C], result [N, H', W', O]. The gradient flows to the input alone.
///
/// # Errors
/// When the shapes do not fit or a tensor is neither f32 nor f64.
pub fn frozen_blocks(input: &Tensor, blocks: &[FrozenBlock]) -> Result<Tensor> {
    if blocks.is_empty() {
        return Ok(input.clone());
    }
    let mut shape = input.dims4()?;
    let mut tails = Vec::with_capacity(blocks.len());
    for FrozenBlock { weight, parameters: [bias, scale, shift], mean, variance, block } in blocks {
        let tail = Tail::new(shape, weight.dims4()?, [bias, scale, shift], [mean.len(), variance.len()], *block)?;
        shape = tail.output_shape();
        tails.push(tail);
    }
    let largest = tails.iter().map(Tail::output_image).max().unwrap_or(1);
    let operation = Operation {
        images: shape.0.div_ceil(rayon::current_num_threads()).clamp(1, IMAGES.min(VALUES / largest).max(1)),
        blocks: blocks.iter().cloned().zip(tails).collect(),
        is_differentiated: input.track_op(),
        choices: Mutex::default(),
    };
    apply1(input, operation)
}

struct Operation {
    blocks: Vec<(FrozenBlock, Tail)>,
    /// Images of a group.
    images: usize,
    /// Whether somebody may ask for the gradient.
    is_differentiated: bool,
    /// For each group of images and each block: which pixel of its window each result is, counted from 1, or 0 for none.
    choices: Mutex<Vec<Vec<Vec<u8>>>>,
}

/// A block laid out for one direction.
struct Prepared<T, W> {
    /// The convolution.
    way: W,
    /// Bias, normalisation, scale and shift.
    affine: Vec<Affine<T>>,
    tail: Tail,
}

/// What leads the gradient back through a convolution.
enum WayBack<T> {
    /// The gradient of all of its result.
    Dense(Kernel<T>),
    /// That of the chosen pixels alone, where it is less work.
    Chosen(Chosen<T>),
}

impl<T: Real> WayBack<T> {
    fn new(tail: &Tail, weight: &[T], affine: &[Affine<T>]) -> Self {
        if tail.pools() && Chosen::<T>::fits(&tail.geometry) {
            Self::Chosen(Chosen::new(tail.geometry, weight, affine.iter().map(|affine| affine.factor)))
        } else {
            Self::Dense(Kernel::new(tail.geometry, weight, Purpose::InputGradient))
        }
    }
}

/// Buffers that serve one group of images after the other.
#[derive(Default)]
struct Buffers<T> {
    scratch: Scratch<T>,
    padded: Vec<T>,
    /// What goes into a block, and what comes out of it.
    values: [Vec<T>; 2],
}

impl Operation {
    /// The blocks, each with what `way` makes of its weight.
    fn prepared<T: Real, W>(&self, way: impl Fn(&Tail, &[T], &[Affine<T>]) -> W) -> Result<Vec<Prepared<T, W>>> {
        let blocks = self.blocks.iter().map(|(block, tail)| {
            let FrozenBlock { weight, parameters: [bias, scale, shift], mean, variance, .. } = block;
            with_values::<T, _>(&[weight, bias, scale, shift], |arguments| {
                // A bias shifts what is normalised, so that it comes to the same as another mean.
                let mean = mean.iter().zip(arguments[1]).map(|(mean, bias)| mean - bias.to_f64()).collect();
                let statistics = Statistics { mean, variance: variance.clone(), count: 0 };
                let affine = statistics.affine(arguments[2], arguments[3]);
                Ok(Prepared { way: way(tail, arguments[0], &affine), affine, tail: *tail })
            })
        });
        blocks.collect()
    }

    /// Values of one image on the way in.
    fn image(&self) -> usize {
        self.blocks[0].1.geometry.image()
    }

    /// Values of one image on the way out.
    fn output_image(&self) -> usize {
        self.blocks[self.blocks.len() - 1].1.output_image()
    }
}

/// Takes a few images through the blocks; returns the choices of each block where they are wanted.
fn forward<T: Real>(
    blocks: &[Prepared<T, Kernel<T>>],
    input: &[T],
    output: &mut [T],
    buffers: &mut Buffers<T>,
    notes_choices: bool,
) -> Vec<Vec<u8>> {
    let images = input.len() / blocks[0].tail.geometry.image();
    let [mut from, mut to] = std::mem::take(&mut buffers.values);
    let mut choices = Vec::new();
    for (index, Prepared { way: kernel, affine, tail }) in blocks.iter().enumerate() {
        let size = tail.output_image();
        let source = if index == 0 { input } else { &from[..images * tail.geometry.image()] };
        let target = if index + 1 == blocks.len() { &mut *output } else { sized(&mut to, images * size) };
        let mut chosen = vec![0; if notes_choices { target.len() } else { 0 }];
        kernel.forward_on_thread(
            source,
            &mut buffers.scratch,
            #[inline(always)]
            |images, convolved| {
                let range = images.start * size..images.end * size;
                if notes_choices {
                    tail.choose(convolved, affine, &mut target[range.clone()], &mut chosen[range]);
                } else {
                    tail.finish(convolved, affine, &mut target[range]);
                }
            },
        );
        choices.push(chosen);
        std::mem::swap(&mut from, &mut to);
    }
    buffers.values = [from, to];
    choices
}

/// Takes the gradient of a few images back through the blocks.
fn backward<T: Real>(
    blocks: &[Prepared<T, WayBack<T>>],
    choices: &[Vec<u8>],
    gradient: &[T],
    input_gradient: &mut [T],
    buffers: &mut Buffers<T>,
) {
    let images = input_gradient.len() / blocks[0].tail.geometry.image();
    let [mut from, mut to] = std::mem::take(&mut buffers.values);
    for (index, (Prepared { way, affine, tail }, choices)) in blocks.iter().zip(choices).enumerate().rev() {
        let size = tail.output_image();
        let source = if index + 1 == blocks.len() { gradient } else { &from[..images * size] };
        let target = if index == 0 { &mut *input_gradient } else { sized(&mut to, images * tail.geometry.image()) };
        match way {
            WayBack::Chosen(chosen) => chosen.backward(choices, source, target, &mut buffers.padded),
            WayBack::Dense(kernel) => kernel.backward_on_thread(
                target,
                &mut buffers.scratch,
                #[inline(always)]
                |images, into| {
                    let range = images.start * size..images.end * size;
                    tail.gradient_of_choices(&choices[range.clone()], &source[range], affine, into);
                },
            ),
        }
        std::mem::swap(&mut from, &mut to);
    }
    buffers.values = [from, to];
}

impl CustomOp1 for Operation {
    fn name(&self) -> &'static str {
        "frozen_blocks"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => {
            let (blocks, input) = (self.prepared::<T, _>(|tail, weight, _| Kernel::new(tail.geometry, weight, Purpose::Forward))?, values::<T>(storage, layout)?);
            let shape = self.blocks[self.blocks.len() - 1].1.output_shape();
            let mut output = vec![T::default(); shape.0 * self.output_image()];
            let groups = output.chunks_mut(self.images * self.output_image()).zip(input.chunks(self.images * self.image()));
            let choices = map_with(groups, |buffers, (output, input)| forward(&blocks, input, output, buffers, self.is_differentiated));
            *self.choices.lock().expect("no thread panicked") = choices;
            Ok((stored(output), shape.into()))
        })
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let choices = self.choices.lock().expect("no thread panicked");
        for_real!(input.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            let blocks = self.prepared::<T, _>(WayBack::new)?;
            let mut result = vec![T::default(); input.elem_count()];
            let groups = result.chunks_mut(self.images * self.image()).zip(arguments[0].chunks(self.images * self.output_image()));
            map_with(groups.zip(&*choices), |buffers, ((result, gradient), choices)| backward(&blocks, choices, gradient, result, buffers));
            Tensor::from_vec(result, input.shape(), input.device()).map(Some)
        }))
    }
}
