//! The condensation stages: sub-class buckets, one condensed image for each, and the reduced retain set; or sums of features.

pub mod kmeans;
pub mod matching;
mod methods;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::cluster::Cluster>(),
        entry::<methods::fdm::Fdm>(),
        entry::<methods::reduce::Reduce>(),
        entry::<methods::statistics::Statistics>(),
    ]
}
