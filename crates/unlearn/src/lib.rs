//! The unlearning stages: modular unlearning, and what it is compared with, retraining included.

mod fit;
mod lesson;
mod methods;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::modular::Modular>(),
        entry::<methods::oracle::Match>(),
        entry::<methods::random_label::RandomLabel>(),
        entry::<methods::exact::Exact>(),
        entry::<methods::retrain::Retrain>(),
        entry::<methods::finetune::Finetune>(),
    ]
}
