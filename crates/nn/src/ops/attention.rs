//! Scaled dot-product attention, forward and backward, a head at a time, where the heads lie: one after the other, or side by side in tokens.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::storage::{apply1, apply3, dtype_of, for_real, gradient_of, stored, values, with_values};
use crate::matrix::{Matrix, Panels, Real, multiply, multiply_apart};
use crate::vector::vectorised;

/// `softmax(q · kᵀ / √D) · v` of each head (Vaswani et al., arXiv 1706.03762): queries, keys, values and result are [N, heads, T, D].
///
/// # Errors
/// When the shapes differ, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (_, _, tokens, width) = queries.dims4()?;
    if keys.dims() != queries.dims() || values.dims() != queries.dims() || tokens == 0 || width == 0 {
        bail!("attention of queries {:?}, keys {:?} and values {:?}", queries.dims(), keys.dims(), values.dims());
    }
    apply3([queries, keys, values], Attention(Head { tokens, width, stride: width }))
}

/// The same for tokens [N, T, 3 · heads · D] that hold queries, keys and values of all heads one after the other, as timm's do; result
/// [N, T, heads · D].
///
/// # Errors
/// When the width is no multiple of three times the heads, the tensor is neither f32 nor f64, or is not on the CPU.
pub fn attention_of_tokens(tokens: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, length, all) = tokens.dims3()?;
    if heads == 0 || all == 0 || length == 0 || !all.is_multiple_of(3 * heads) {
        bail!("attention of {heads} heads does not take tokens {:?}: they hold queries, keys and values of all heads", tokens.dims());
    }
    apply1(tokens, AttentionOfTokens { heads, head: Head { tokens: length, width: all / (3 * heads), stride: all } })
}

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head {
    tokens: usize,
    width: usize,
    /// Values from one token to the next.
    stride: usize,
}

/// Buffers that serve one head after the other.
#[derive(Default)]
struct Buffers<T> {
    panels: Vec<T>,
    shares: Vec<T>,
    slopes: Vec<T>,
}

impl Head {
    fn scale<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.width as f64).sqrt())
    }

    fn matrix<'a, T>(&self, values: &'a [T]) -> Matrix<'a, T> {
        Matrix::apart(values, self.tokens, self.width, self.stride)
    }

    fn square<'a, T>(&self, values: &'a [T]) -> Matrix<'a, T> {
        Matrix::new(values, self.tokens, self.tokens)
    }

    /// The share of attention that each token (row) gives to each (column), [T, T].
    fn shares<T: Real>(&self, queries: &[T], keys: &[T], panels: &mut Vec<T>, shares: &mut Vec<T>) {
        shares.resize(self.tokens * self.tokens, T::default());
        multiply(self.matrix(queries), Panels::lay_out(self.matrix(keys).transposed(), panels), shares, false);
        vectorised(
            #[inline(always)]
            || {
                for row in shares.chunks_exact_mut(self.tokens) {
                    let largest = folded(row, row[0], |largest, value| if value > largest { value } else { largest });
                    row.iter_mut().for_each(|value| *value = ((*value - largest) * self.scale()).quick_exponential());
                    let factor = T::ONE / folded(row, T::default(), |sum, value| sum + value);
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            },
        );
    }

    /// Writes the result, whose tokens lie `stride` apart.
    fn forward<T: Real>(&self, [queries, keys, values]: [&[T]; 3], output: &mut [T], stride: usize, buffers: &mut Buffers<T>) {
        let Buffers { panels, shares, .. } = buffers;
        self.shares(queries, keys, panels, shares);
        multiply_apart(self.square(shares), Panels::lay_out(self.matrix(values), panels), output, stride);
    }

    /// Writes the gradients of queries, keys and values, whose tokens lie `stride` apart; `gradient` is that of the result.
    fn backward<T: Real>(
        &self,
        [queries, keys, values]: [&[T]; 3],
        gradient: Matrix<'_, T>,
        [of_queries, of_keys, of_values]: [&mut [T]; 3],
        stride: usize,
        buffers: &mut Buffers<T>,
    ) {
        let Buffers { panels, shares, slopes } = buffers;
        self.shares(queries, keys, panels, shares);
        multiply_apart(self.square(shares).transposed(), Panels::lay_out(gradient, panels), of_values, stride);
        slopes.resize(shares.len(), T::default());
        multiply(gradient, Panels::lay_out(self.matrix(values).transposed(), panels), slopes, false);
        vectorised(
            #[inline(always)]
            || {
                for (slopes, shares) in slopes.chunks_exact_mut(self.tokens).zip(shares.chunks_exact(self.tokens)) {
                    slopes.iter_mut().zip(shares).for_each(|(slope, &share)| *slope *= share);
                    let mean = folded(slopes, T::default(), |sum, value| sum + value);
                    slopes.iter_mut().zip(shares).for_each(|(slope, &share)| *slope = (*slope - share * mean) * self.scale());
                }
            },
        );
        multiply_apart(self.square(slopes), Panels::lay_out(self.matrix(keys), panels), of_queries, stride);
        multiply_apart(self.square(slopes).transposed(), Panels::lay_out(self.matrix(queries), panels), of_keys, stride);
    }
}

/// `function` over the values from `start`, in lanes that the compiler can keep in vector registers.
#[inline(always)]
fn folded<T: Real>(values: &[T], start: T, function: impl Fn(T, T) -> T) -> T {
    const LANES: usize = 16;
    let mut lanes = [start; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(start, |folded, &value| function(folded, value));
    chunks.for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane = function(*lane, value)));
    lanes.into_iter().fold(rest, function)
}

struct Attention(Head);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
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
        let Self(head) = self;
        let size = head.tokens * head.width;
        for_real!(dtype_of(s1), T => {
            let (queries, keys, values) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let mut output = vec![T::default(); queries.len()];
            let arguments = queries.par_chunks(size).zip(keys.par_chunks(size)).zip(values.par_chunks(size));
            output.par_chunks_mut(size).zip(arguments).for_each_init(Buffers::default, |buffers, (output, ((queries, keys), values))| {
                head.forward([queries, keys, values], output, head.width, buffers);
            });
            Ok((stored(output), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Self(head) = self;
        let size = head.tokens * head.width;
        for_real!(queries.dtype(), T => with_values::<T, _>(&[queries, keys, values, gradient], |arguments| {
            let [mut of_queries, mut of_keys, mut of_values] = std::array::from_fn(|_| vec![T::default(); arguments[0].len()]);
            let targets = of_queries.par_chunks_mut(size).zip(of_keys.par_chunks_mut(size)).zip(of_values.par_chunks_mut(size));
            let [queries_of_heads, keys_of_heads, values_of_heads, gradients] = std::array::from_fn(|place| arguments[place].par_chunks(size));
            let heads = targets.zip(queries_of_heads.zip(keys_of_heads).zip(values_of_heads)).zip(gradients);
            heads.for_each_init(Buffers::default, |buffers, ((((of_queries, of_keys), of_values), ((queries, keys), values)), gradient)| {
                head.backward([queries, keys, values], head.matrix(gradient), [of_queries, of_keys, of_values], head.width, buffers);
            });
            Ok((
                gradient_of(queries, queries.track_op().then_some(of_queries))?,
                gradient_of(keys, keys.track_op().then_some(of_keys))?,
                gradient_of(values, values.track_op().then_some(of_values))?,
            ))
        }))
    }
}

struct AttentionOfTokens {
    heads: usize,
    head: Head,
}

impl AttentionOfTokens {
    /// Values of all heads in one token of the result.
    fn width(&self) -> usize {
        self.heads * self.head.width
    }

    /// Queries, keys and values of one head of a sample.
    fn parts<'a, T>(&self, sample: &'a [T], head: usize) -> [&'a [T]; 3] {
        std::array::from_fn(|part| &sample[part * self.width() + head * self.head.width..])
    }
}

impl CustomOp1 for AttentionOfTokens {
    fn name(&self) -> &'static str {
        "attention_of_tokens"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (count, tokens, _) = layout.shape().dims3()?;
        let (head, width) = (self.head, self.width());
        for_real!(dtype_of(storage), T => {
            let mut output = vec![T::default(); count * tokens * width];
            let samples = output.par_chunks_mut(tokens * width).zip(values::<T>(storage, layout)?.par_chunks(tokens * head.stride));
            samples.for_each_init(Buffers::default, |buffers, (output, sample)| {
                for index in 0..self.heads {
                    head.forward(self.parts(sample, index), &mut output[index * head.width..], width, buffers);
                }
            });
            Ok((stored(output), (count, tokens, width).into()))
        })
    }

    fn bwd(&self, tokens: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (head, width) = (self.head, self.width());
        for_real!(tokens.dtype(), T => with_values::<T, _>(&[tokens, gradient], |arguments| {
            let mut result = vec![T::default(); arguments[0].len()];
            let arguments = arguments[0].par_chunks(head.tokens * head.stride).zip(arguments[1].par_chunks(head.tokens * width));
            let samples = result.par_chunks_mut(head.tokens * head.stride).zip(arguments);
            samples.for_each_init(Default::default, |(buffers, parts): &mut (Buffers<T>, [Vec<T>; 3]), (result, (sample, gradient))| {
                for index in 0..self.heads {
                    let gradient = Matrix::apart(&gradient[index * head.width..], head.tokens, head.width, width);
                    let [queries, keys, values] = parts.each_mut().map(|part| {
                        part.resize(head.tokens * head.width, T::default());
                        part.as_mut_slice()
                    });
                    head.backward(self.parts(sample, index), gradient, [queries, keys, values], head.width, buffers);
                    for (part, values) in parts.iter().enumerate() {
                        let start = part * width + index * head.width;
                        for (token, values) in values.chunks_exact(head.width).enumerate() {
                            result[token * head.stride + start..][..head.width].copy_from_slice(values);
                        }
                    }
                }
            });
            gradient_of(tokens, Some(result))
        }))
    }
}
