//! What the networks of this process have computed, counted where it happens, so that nobody who trains or asks a network can forget to.
//!
//! There is one tally for the process, of whole numbers, so that neither the number of threads nor their order matters:
//!
//! - **forward**: samples that went through steps of a network in a row, all of the network or some of it. Outputs of frozen parts that are kept count
//!   when they are computed.
//! - **backward**: samples of such passes to whose results a gradient came back.
//! - **steps**: steps of an optimiser.
//! - **operations**: multiplications and additions, by definition and not by what a kernel makes of it: forward [`Step::operations`] of all steps gone through;
//!   backward what [`Step::operations_back`] says, for the gradients of what is trained and for those that lead there.
//!
//! What is not done by a network is not counted: losses, distances, clustering, the optimiser's own arithmetic, but for the products that make a step orthogonal
//! ([`crate::optimiser::Rule::Muon`]), which can be more than those of the network.
//!
//! Backward is counted by an operation at the end of a pass that hands gradients on as they are. So it counts whoever asks for the gradient, as often
//! as it comes back, and not where a pass was made that nobody learned from.
//!
//! [`Step::operations`]: crate::graph::Step::operations
//! [`Step::operations_back`]: crate::graph::Step::operations_back

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor};
use dcu_artifact::Cost;

static FORWARD: AtomicU64 = AtomicU64::new(0);
static BACKWARD: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// What was counted since the process began, or since the tally was set.
#[must_use]
pub fn read() -> Cost {
    let [forward, backward, steps, operations] = [&FORWARD, &BACKWARD, &STEPS, &OPERATIONS].map(|count| count.load(Ordering::Relaxed));
    Cost { forward, backward, steps, operations, changed: None }
}

/// Sets the tally to what was counted when a checkpoint was written, from which the process goes on.
pub fn set(cost: Cost) {
    FORWARD.store(cost.forward, Ordering::Relaxed);
    BACKWARD.store(cost.backward, Ordering::Relaxed);
    STEPS.store(cost.steps, Ordering::Relaxed);
    OPERATIONS.store(cost.operations, Ordering::Relaxed);
}

/// A pass of some samples, of so many operations each.
pub(crate) fn forward(samples: usize, operations: u64) {
    FORWARD.fetch_add(samples as u64, Ordering::Relaxed);
    OPERATIONS.fetch_add(operations.saturating_mul(samples as u64), Ordering::Relaxed);
}

/// So many operations that no network does.
pub(crate) fn others(operations: u64) {
    OPERATIONS.fetch_add(operations, Ordering::Relaxed);
}

/// A step of an optimiser.
pub(crate) fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// The result of a pass as it is; when its gradient comes back, the way back of its samples is counted, of so many operations each.
pub(crate) fn followed_back(result: &Tensor, samples: usize, operations: u64) -> Result<Tensor> {
    result.apply_op1(WayBack { samples: samples as u64, operations: operations.saturating_mul(samples as u64) })
}

struct WayBack {
    samples: u64,
    operations: u64,
}

fn copied<S: BackendStorage<Device: BackendDevice<Storage = S>>>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    let mut copy = storage.device().zeros_impl(layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}

impl CustomOp1 for WayBack {
    fn name(&self) -> &'static str {
        "way_back"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(storage, layout)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        copied(storage, layout)
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        copied(storage, layout)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        BACKWARD.fetch_add(self.samples, Ordering::Relaxed);
        OPERATIONS.fetch_add(self.operations, Ordering::Relaxed);
        Ok(Some(gradient.clone()))
    }
}
