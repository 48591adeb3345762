//! The training stages: a model from scratch, many that each leave a part of the data out, some that each have a shard of it, one from outside, and the offline phase that prepares it for modular unlearning.

mod hub;
mod methods;
mod network;
mod recipe;

pub use hub::{Hub, Place};
pub use methods::import::Import;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::fit::Fit>(),
        entry::<methods::ensemble::Ensemble>(),
        entry::<Import<hub::Without>>(),
        entry::<methods::offline::Offline>(),
        entry::<methods::patches::Patches>(),
        entry::<methods::sisa::Sisa>(),
    ]
}
