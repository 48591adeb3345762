//! The evaluation stages: what a model still knows of the samples that it should have forgotten.

mod attacks;
mod crowd;
pub mod logistic;
mod membership;
mod methods;
mod roc;
mod said;
mod statistics;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::audit::Audit>(),
        entry::<methods::evaluate::Evaluate>(),
        entry::<methods::leave_one_out::LeaveOneOut>(),
        entry::<methods::predict::Predict>(),
    ]
}
