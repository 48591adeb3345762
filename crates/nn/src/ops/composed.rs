//! The same operations made of candle's own: for devices other than the CPU, and an independent reference for the tests. Slower.

use candle_core::{D, DType, Result, Tensor};

use super::block::{Block, Normalisation};
use super::convolution::Convolution;
use super::frozen::FrozenBlock;
use super::norm::{BATCH_NORM_EPSILON, Statistics};
use super::pool::Pooling;

/// As [`super::conv2d`].
///
/// # Errors
/// When candle refuses.
pub fn conv2d(input: &Tensor, weight: &Tensor, bias: &Tensor, convolution: Convolution) -> Result<Tensor> {
    let (outputs, channels, height, width) = weight.dims4()?;
    let windows = Windows { height, width, stride: convolution.stride, padding: convolution.padding };
    let mut result = bias.clone();
    for (place, pixels) in windows.places(input, 0.0)?.into_iter().enumerate() {
        let weight = weight.narrow(2, place / width, 1)?.narrow(3, place % width, 1)?.reshape((outputs, channels))?;
        let (count, rows, columns, _) = pixels.dims4()?;
        let product = pixels.reshape((count * rows * columns, channels))?.matmul(&weight.t()?)?;
        result = product.reshape((count, rows, columns, outputs))?.broadcast_add(&result)?;
    }
    Ok(result)
}

/// As [`super::conv_block`].
///
/// # Errors
/// When candle refuses.
pub fn conv_block(
    input: &Tensor,
    weight: &Tensor,
    [bias, scale, shift]: [&Tensor; 3],
    block: Block,
    normalisation: Normalisation<'_>,
) -> Result<(Tensor, Option<Statistics>)> {
    let convolved = conv2d(input, weight, bias, block.convolution)?;
    let (mean, variance, statistics) = match normalisation {
        Normalisation::Batch => {
            let mean = convolved.mean((0, 1, 2))?;
            let variance = convolved.broadcast_sub(&mean)?.sqr()?.mean((0, 1, 2))?;
            let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec1::<f64>();
            let count = convolved.elem_count() / mean.elem_count();
            let statistics = Statistics { mean: values(&mean)?, variance: values(&variance)?, count };
            (mean, variance, Some(statistics))
        }
        Normalisation::Fixed { mean, variance } => {
            let tensor = |values: &[f64]| Tensor::new(values, input.device())?.to_dtype(input.dtype());
            (tensor(mean)?, tensor(variance)?, None)
        }
    };
    let deviation = (variance + BATCH_NORM_EPSILON)?.sqrt()?;
    let normalised = convolved.broadcast_sub(&mean)?.broadcast_div(&deviation)?.broadcast_mul(scale)?.broadcast_add(shift)?;
    let result = if block.rectify { relu(&normalised)? } else { normalised };
    let result = if block.pool { max_pool2d(&result, Pooling { size: 2, stride: 2, padding: 0 })? } else { result };
    Ok((result, statistics))
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

/// As [`super::linear`].
///
/// # Errors
/// When candle refuses.
pub fn linear(input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    input.matmul(&weight.t()?)?.broadcast_add(bias)
}

/// As [`super::cross_entropy`].
///
/// # Errors
/// When candle refuses.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normaliser = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let labels = Tensor::new(labels, logits.device())?.unsqueeze(1)?;
    (normaliser - shifted.gather(&labels, 1)?)?.mean_all()
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
