//! The evaluation stages: what a model still knows of the samples that it should have forgotten.

pub mod logistic;
mod membership;
mod methods;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::evaluate::Evaluate>(),
        entry::<methods::leave_one_out::LeaveOneOut>(),
        entry::<methods::predict::Predict>(),
        entry::<methods::single_samples::SingleSamples>(),
    ]
}
