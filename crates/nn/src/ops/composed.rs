//! The same operations made of candle's own: for devices other than the CPU, for gradients of gradients, and an independent reference for the
//! tests. Slower. Each takes and gives what the kernel of its name in [`super`] does; the deposit of a weight is left empty, since candle collects
//! the gradient itself.

use candle_core::{D, DType, Result, Tensor, bail};

use super::types::{
    BATCH_NORM_EPSILON, Block, Convolution, FrozenBlock, InstanceBlock, Normalisation, Pooling, Statistics, Targets, Weighting, window,
};
use super::weight::Weight;
use crate::rng::Stream;

/// As [`super::channels_last`].
///
/// # Errors
/// When candle refuses.
pub fn channels_last(input: &Tensor) -> Result<Tensor> {
    input.permute((0, 2, 3, 1))?.contiguous()
}

/// As [`super::channels_first`].
///
/// # Errors
/// When candle refuses.
pub fn channels_first(input: &Tensor) -> Result<Tensor> {
    input.permute((0, 3, 1, 2))?.contiguous()
}

/// As [`super::conv2d`].
///
/// # Errors
/// When candle refuses.
pub fn conv2d<'a, 'b>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    bias: impl Into<Option<&'b Tensor>>,
    Convolution { stride, padding }: Convolution,
) -> Result<Tensor> {
    let weight = weight.into().tensor().contiguous()?;
    let (_, _, kernel_height, kernel_width) = weight.dims4()?;
    let mut images = channels_first(input)?;
    // candle's gradient takes the same number of rows and columns that no window reads: all of them are cut off.
    let mut padding = padding;
    let unread = |extent: usize, kernel: usize| (extent + 2 * padding).checked_sub(kernel).map_or(0, |room| room % stride.max(1));
    let unread = [unread(images.dim(2)?, kernel_height), unread(images.dim(3)?, kernel_width)];
    if unread != [0, 0] {
        for (dimension, unread) in [2, 3].into_iter().zip(unread) {
            images = images.pad_with_zeros(dimension, padding, padding)?;
            images = images.narrow(dimension, 0, images.dim(dimension)? - unread)?;
        }
        (images, padding) = (images.contiguous()?, 0);
    }
    let convolved = channels_last(&images.conv2d(&weight, padding, stride, 1, 1)?)?;
    bias.into().map_or(Ok(convolved.clone()), |bias| convolved.broadcast_add(bias))
}

/// As [`super::conv_transpose2d`].
///
/// # Errors
/// When candle refuses.
pub fn conv_transpose2d<'a, 'b>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    bias: impl Into<Option<&'b Tensor>>,
    Convolution { stride, padding }: Convolution,
) -> Result<Tensor> {
    let weight = weight.into().tensor().contiguous()?;
    let images = channels_first(input)?.conv_transpose2d(&weight, padding, 0, stride, 1)?;
    let images = channels_last(&images)?;
    bias.into().map_or(Ok(images.clone()), |bias| images.broadcast_add(bias))
}

/// As [`super::conv_block`].
///
/// # Errors
/// When candle refuses.
pub fn conv_block<'a>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    [bias, scale, shift]: [&Tensor; 3],
    block: Block,
    normalisation: Normalisation<'_>,
) -> Result<(Tensor, Option<Statistics>)> {
    let convolved = conv2d(input, weight, bias, block.convolution)?;
    let (normalised, statistics) = batch_norm(&convolved, scale, shift, normalisation)?;
    let result = if block.rectify { relu(&normalised)? } else { normalised };
    let result = if block.pool { max_pool2d(&result, Pooling { size: 2, stride: 2, padding: 0 })? } else { result };
    Ok((result, statistics))
}

/// As [`super::batch_norm`].
///
/// # Errors
/// When candle refuses.
pub fn batch_norm(
    input: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    normalisation: Normalisation<'_>,
) -> Result<(Tensor, Option<Statistics>)> {
    let (mean, variance, statistics) = match normalisation {
        Normalisation::Batch => {
            let rows = input.flatten_to(D::Minus2)?;
            let mean = rows.mean(0)?;
            let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(0)?;
            let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec1::<f64>();
            let statistics = Statistics { mean: values(&mean)?, variance: values(&variance)?, count: rows.dim(0)? };
            (mean, variance, Some(statistics))
        }
        Normalisation::Fixed { mean, variance } => {
            let tensor = |values: &[f64]| Tensor::new(values, input.device())?.to_dtype(input.dtype());
            (tensor(mean)?, tensor(variance)?, None)
        }
    };
    let deviation = (variance + BATCH_NORM_EPSILON)?.sqrt()?;
    let normalised = input.broadcast_sub(&mean)?.broadcast_div(&deviation)?.broadcast_mul(scale)?.broadcast_add(shift)?;
    Ok((normalised, statistics))
}

/// As [`super::group_norm`].
///
/// # Errors
/// When candle refuses.
pub fn group_norm(input: &Tensor, groups: usize, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    let (count, height, width, channels) = input.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        bail!("{channels} channels cannot be normalised in {groups} groups");
    }
    let grouped = input.reshape((count, height * width, groups, channels / groups))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim((1, 3))?)?;
    let deviation = (centred.sqr()?.mean_keepdim((1, 3))? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)?.reshape(input.shape())?.broadcast_mul(scale)?.broadcast_add(shift)
}

/// As [`super::instance_block`].
///
/// # Errors
/// When candle refuses.
pub fn instance_block(input: &Tensor, [scale, shift]: [&Tensor; 2], epsilon: f64, block: InstanceBlock) -> Result<Tensor> {
    let normalised = group_norm(input, input.dim(3)?, scale, shift, epsilon)?;
    let result = if block.rectify { relu(&normalised)? } else { normalised };
    if block.pool { avg_pool2d(&result, Pooling { size: 2, stride: 2, padding: 0 }) } else { Ok(result) }
}

/// As [`super::frozen_blocks`].
///
/// # Errors
/// When candle refuses.
pub fn frozen_blocks(input: &Tensor, blocks: &[FrozenBlock]) -> Result<Tensor> {
    blocks.iter().try_fold(input.clone(), |value, FrozenBlock { weight, parameters, mean, variance, block }| {
        let parameters = parameters.each_ref().map(Tensor::detach);
        Ok(conv_block(&value, &weight.detach(), parameters.each_ref(), *block, Normalisation::Fixed { mean, variance })?.0)
    })
}

/// As [`super::relu`].
///
/// # Errors
/// When candle refuses.
pub fn relu(input: &Tensor) -> Result<Tensor> {
    input.le(0.0)?.where_cond(&input.zeros_like()?, input)
}

/// As [`super::add`].
///
/// # Errors
/// When candle refuses.
pub fn add(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    left.add(right)
}

/// As [`super::add_relu`].
///
/// # Errors
/// When candle refuses.
pub fn add_relu(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    relu(&left.add(right)?)
}

/// As [`super::gelu`].
///
/// # Errors
/// When candle refuses.
pub fn gelu(input: &Tensor) -> Result<Tensor> {
    (input * ((input / std::f64::consts::SQRT_2)?.erf()? + 1.0)?)? * 0.5
}

/// As [`super::sigmoid`].
///
/// # Errors
/// When candle refuses.
pub fn sigmoid(input: &Tensor) -> Result<Tensor> {
    // Neither overflows: the exponential would, whose gradient were not a number then.
    ((input * 0.5)?.tanh()? + 1.0)? * 0.5
}

/// As [`super::dropout`], with the same numbers drawn.
///
/// # Errors
/// When candle refuses.
pub fn dropout(input: &Tensor, probability: f64, stream: &mut Stream) -> Result<Tensor> {
    let keep = 1.0 - probability;
    let factors: Vec<f64> = (0..input.elem_count()).map(|_| if f64::from(stream.uniform()) < keep { 1.0 / keep } else { 0.0 }).collect();
    input * Tensor::from_vec(factors, input.shape(), input.device())?.to_dtype(input.dtype())?
}

/// As [`super::linear`].
///
/// # Errors
/// When candle refuses.
pub fn linear<'a, 'b>(input: &Tensor, weight: impl Into<Weight<'a>>, bias: impl Into<Option<&'b Tensor>>) -> Result<Tensor> {
    let weight = weight.into().tensor().t()?;
    let mut shape = input.dims().to_vec();
    let (inputs, outputs) = weight.dims2()?;
    if shape.pop() != Some(inputs) {
        bail!("a linear layer of {inputs} inputs does not take {:?}", input.dims());
    }
    shape.push(outputs);
    let result = input.reshape(((), inputs))?.matmul(&weight)?.reshape(shape)?;
    bias.into().map_or(Ok(result.clone()), |bias| result.broadcast_add(bias))
}

/// As [`super::linear_gelu_linear`].
///
/// # Errors
/// When the shapes do not fit.
pub fn linear_gelu_linear(input: &Tensor, [first, second]: [Weight<'_>; 2], biases: [&Tensor; 2]) -> Result<Tensor> {
    linear(&gelu(&linear(input, first, biases[0])?)?, second, biases[1])
}

/// As [`super::cross_entropy`].
///
/// # Errors
/// When candle refuses.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let labels = Tensor::new(labels, logits.device())?.unsqueeze(1)?;
    log_softmax(logits)?.gather(&labels, 1)?.mean_all()?.neg()
}

/// As [`super::soft_cross_entropy`].
///
/// # Errors
/// When candle refuses.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, weights: Option<&[f64]>) -> Result<Tensor> {
    weighted_cross_entropy(logits, Targets::Probabilities(targets), Weighting { samples: weights, ..Weighting::default() })
}

/// As [`super::weighted_cross_entropy`].
///
/// # Errors
/// When candle refuses.
pub fn weighted_cross_entropy(logits: &Tensor, targets: Targets<'_>, weighting: Weighting<'_>) -> Result<Tensor> {
    let (coefficients, divisor) = weighting.coefficients(targets, logits.dims2()?)?;
    let coefficients = Tensor::from_vec(coefficients, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    // A class without a share adds nothing, even if it is as good as impossible.
    let terms = (log_softmax(logits)? * &coefficients)?;
    (coefficients.eq(0.0)?.where_cond(&coefficients, &terms)?.sum_all()? / -divisor)?.reshape(())
}

/// As [`super::kl_divergence`].
///
/// # Errors
/// When candle refuses.
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let teacher = log_softmax(&(teacher.detach() / temperature)?)?;
    let student = log_softmax(&(student / temperature)?)?;
    let rows = student.dim(0)? as f64;
    (teacher.exp()? * (teacher - student)?)?.sum_all()? * (temperature * temperature / rows)
}

/// As [`super::squared_error`].
///
/// # Errors
/// When candle refuses.
pub fn squared_error(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    left.sub(right)?.sqr()?.mean_all()
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// As [`super::attention_of_tokens`].
///
/// # Errors
/// When candle refuses.
pub fn attention_of_tokens(tokens: &Tensor, heads: usize) -> Result<Tensor> {
    let (count, length, width) = tokens.dims3()?;
    let split = tokens.reshape((count, length, 3, heads, width / 3 / heads.max(1)))?.permute((2, 0, 3, 1, 4))?;
    let [queries, keys, values] = [0, 1, 2].map(|part| split.get(part).and_then(|part| part.contiguous()));
    attention(&queries?, &keys?, &values?)?.transpose(1, 2)?.contiguous()?.reshape((count, length, width / 3))
}

/// As [`super::adaptive_avg_pool2d`].
///
/// # Errors
/// When candle refuses.
pub fn adaptive_avg_pool2d(input: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (count, height, width, channels) = input.dims4()?;
    let mut windows = Vec::with_capacity(rows * columns);
    for place in 0..rows * columns {
        let (down, across) = (window(place / columns, height, rows), window(place % columns, width, columns));
        windows.push(input.narrow(1, down.start, down.len())?.narrow(2, across.start, across.len())?.mean((1, 2))?);
    }
    Tensor::stack(&windows, 1)?.reshape((count, rows, columns, channels))
}

/// As [`super::layer_norm`].
///
/// # Errors
/// When candle refuses.
pub fn layer_norm(input: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = input.broadcast_sub(&input.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(scale)?.broadcast_add(shift)
}

/// As [`super::attention`].
///
/// # Errors
/// When candle refuses.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let scores = (queries.matmul(&keys.transpose(2, 3)?.contiguous()?)? / (queries.dim(3)? as f64).sqrt())?;
    let shares = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    shares.broadcast_div(&shares.sum_keepdim(D::Minus1)?)?.matmul(values)
}

/// As [`super::max_pool2d`].
///
/// # Errors
/// When candle refuses.
pub fn max_pool2d(input: &Tensor, pooling: Pooling) -> Result<Tensor> {
    let places = Windows::from(pooling).places(input, f64::NEG_INFINITY)?;
    places[1..].iter().try_fold(places[0].clone(), |best, other| {
        // Larger, or not a number.
        let better = (other.gt(&best)? + other.ne(other)?)?;
        better.where_cond(other, &best)
    })
}

/// As [`super::avg_pool2d`].
///
/// # Errors
/// When candle refuses.
pub fn avg_pool2d(input: &Tensor, pooling: Pooling) -> Result<Tensor> {
    let places = Windows::from(pooling).places(input, 0.0)?;
    let sum = places[1..].iter().try_fold(places[0].clone(), |sum, other| sum + other)?;
    sum / (pooling.size * pooling.size) as f64
}

/// Windows over images.
struct Windows {
    height: usize,
    width: usize,
    stride: usize,
    padding: usize,
}

impl From<Pooling> for Windows {
    fn from(Pooling { size, stride, padding }: Pooling) -> Self {
        Self { height: size, width: size, stride, padding }
    }
}

impl Windows {
    /// For each place in a window, row by row, the pixels that lie there in all windows: [N, H', W', C].
    fn places(&self, input: &Tensor, outside: f64) -> Result<Vec<Tensor>> {
        let padded = self.padded(input, outside)?;
        let (_, height, width, _) = padded.dims4()?;
        let at = |place: usize, size: usize, extent: usize| {
            let windows = (extent - size) / self.stride + 1;
            Tensor::new((0..windows).map(|window| (place + window * self.stride) as u32).collect::<Vec<_>>(), input.device())
        };
        let places = (0..self.height * self.width).map(|place| {
            let rows = padded.index_select(&at(place / self.width, self.height, height)?, 1)?;
            rows.index_select(&at(place % self.width, self.width, width)?, 2)
        });
        places.collect()
    }

    fn padded(&self, input: &Tensor, outside: f64) -> Result<Tensor> {
        if self.padding == 0 {
            return input.contiguous();
        }
        let (count, height, width, channels) = input.dims4()?;
        let band = |shape: (usize, usize, usize, usize)| Tensor::full(outside, shape, input.device())?.to_dtype(input.dtype());
        let rows = band((count, self.padding, width, channels))?;
        let columns = band((count, height + 2 * self.padding, self.padding, channels))?;
        let padded = Tensor::cat(&[&rows, input, &rows], 1)?;
        Tensor::cat(&[&columns, &padded, &columns], 2)?.contiguous()
    }
}
