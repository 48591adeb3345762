//! The condensation stages: sub-class buckets, one condensed image for each, and the reduced retain set; or sums of features.

#[cfg(test)]
mod golden;
pub mod kmeans;
pub mod matching;
mod methods;
mod synthetic;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::blend::Blend>(),
        entry::<methods::cluster::Cluster>(),
        entry::<methods::coreset::Coreset>(),
        entry::<methods::crops::Crops>(),
        entry::<methods::dm::Dm>(),
        entry::<methods::fdm::Fdm>(),
        entry::<methods::gm::Gm>(),
        entry::<methods::idm::Idm>(),
        entry::<methods::inversion::Inversion>(),
        entry::<methods::mtt::Mtt>(),
        entry::<methods::reduce::Reduce>(),
        entry::<methods::statistics::Statistics>(),
    ]
}
