//! Differentiable operations on top of candle's `CustomOp` traits, for the CPU in f32 and f64; on other devices they are made of candle's own
//! ([`composed`]). Images are channels last, [N, H, W, C], so that all channels of a pixel are worked on together.
//!
//! Why not candle's own, as of 0.11.1: `max_pool2d` gives 1/k² of the true gradient, `relu` has the gradient 1 at 0, dropout
//! cannot be seeded, the backward pass of `conv2d` runs an order of magnitude slower than its forward pass, and every backward pass
//! computes gradients that nobody asked for. Each operation here is checked by finite differences and against vectors made
//! with PyTorch. A gradient is computed only for an argument that takes part in differentiation.

mod activation;
mod attention;
mod block;
pub mod composed;
mod convolution;
mod frozen;
mod layout;
mod linear;
mod loss;
mod norm;
mod pool;
mod weight;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

pub use activation::{dropout, relu};
pub use attention::attention;
pub use block::{Block, Normalisation, conv_block};
pub use convolution::{Convolution, conv2d};
pub use frozen::{FrozenBlock, frozen_blocks};
pub use layout::{channels_first, channels_last};
pub use linear::linear;
pub use loss::{cross_entropy, cross_entropy_per_sample};
pub use norm::{BATCH_NORM_EPSILON, Statistics, layer_norm};
pub use pool::{Pooling, avg_pool2d, max_pool2d};
pub use weight::{Deposit, Weight};

use crate::vector::Real;

/// The values of a contiguous argument.
fn values<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("the operation needs contiguous arguments") };
    Ok(&T::cpu_storage_as_slice(storage)?[from..to])
}

/// The values of a result, as candle keeps them.
fn stored<T: Real>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

fn dtype_of(storage: &CpuStorage) -> DType {
    storage.dtype()
}

/// Calls `run` with the values of contiguous tensors on the CPU.
fn with_values<T: Real, R>(tensors: &[&Tensor], run: impl FnOnce(&[&[T]]) -> Result<R>) -> Result<R> {
    let contiguous: Vec<Tensor> = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<_>>()?;
    let guards: Vec<_> = contiguous.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let slices: Vec<&[T]> = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            candle_core::Storage::Cpu(storage) => values(storage, layout),
            _ => bail!("the operation runs on the CPU only"),
        })
        .collect::<Result<_>>()?;
    run(&slices)
}

/// Runs the body with `$type` bound to f32 or f64, whichever the tensor has.
macro_rules! for_real {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $type = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $type = f64;
                $body
            }
            other => candle_core::bail!("the operation needs f32 or f64, not {other:?}"),
        }
    };
}
use for_real;
