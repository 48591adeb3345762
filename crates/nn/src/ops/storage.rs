//! Between candle's tensors and the slices that kernels work on.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Tensor, bail};

use super::chain::Operation;
use crate::vector::Real;

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
pub(super) use for_real;

/// Fails where a tensor of the named operation lies on another device than the CPU.
pub(super) fn on_cpu(operation: &str, tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|tensor| !tensor.device().is_cpu()) {
        Some(tensor) => bail!(
            "the kernel `{operation}` runs on the CPU, but a tensor lies on {:?}; there, use `dcu_nn::ops::composed` instead",
            tensor.device().location()
        ),
        None => Ok(()),
    }
}

/// The result of a kernel of one argument.
pub(super) fn apply1(input: &Tensor, kernel: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    on_cpu(kernel.name(), &[input])?;
    Operation::One(Arc::new(Box::new(kernel))).apply(vec![input.contiguous()?])
}

/// The result of a kernel of two arguments.
pub(super) fn apply2(first: &Tensor, second: &Tensor, kernel: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    on_cpu(kernel.name(), &[first, second])?;
    Operation::Two(Arc::new(Box::new(kernel))).apply(vec![first.contiguous()?, second.contiguous()?])
}

/// The result of a kernel of three arguments.
pub(super) fn apply3([first, second, third]: [&Tensor; 3], kernel: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    on_cpu(kernel.name(), &[first, second, third])?;
    Operation::Three(Arc::new(Box::new(kernel))).apply(vec![first.contiguous()?, second.contiguous()?, third.contiguous()?])
}

/// The values of a contiguous argument.
pub(super) fn values<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("the operation needs contiguous arguments") };
    Ok(&T::cpu_storage_as_slice(storage)?[from..to])
}

/// The values of a result, as candle keeps them.
pub(super) fn stored<T: Real>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

pub(super) fn dtype_of(storage: &CpuStorage) -> DType {
    storage.dtype()
}

/// A gradient, where it is wanted, as a tensor like the argument.
pub(super) fn gradient_of<T: Real>(argument: &Tensor, values: Option<Vec<T>>) -> Result<Option<Tensor>> {
    values.map(|values| Tensor::from_vec(values, argument.shape(), argument.device())).transpose()
}

/// Calls `run` with the values of contiguous tensors on the CPU.
pub(crate) fn with_values<T: Real, R>(tensors: &[&Tensor], run: impl FnOnce(&[&[T]]) -> Result<R>) -> Result<R> {
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
