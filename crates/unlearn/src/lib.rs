//! The unlearning stages: modular unlearning, and what it is compared with, retraining included.

mod algebra;
mod course;
mod fit;
mod frame;
mod methods;
mod targets;

use frame::Stage;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<Stage<methods::modular::Modular>>(),
        entry::<Stage<methods::oracle::Match>>(),
        entry::<Stage<methods::random_label::RandomLabel>>(),
        entry::<Stage<methods::accelerated::Accelerated>>(),
        entry::<Stage<methods::amnesiac::Amnesiac>>(),
        entry::<Stage<methods::bad_teacher::BadTeacher>>(),
        entry::<Stage<methods::datamodel::Datamodel>>(),
        entry::<Stage<methods::distillation::Distillation>>(),
        entry::<Stage<methods::gradient_ascent::GradientAscent>>(),
        entry::<Stage<methods::neggrad::NegGrad>>(),
        entry::<Stage<methods::salun::SalUn>>(),
        entry::<Stage<methods::sparse::Sparse>>(),
        entry::<Stage<methods::scrub::Scrub>>(),
        entry::<Stage<methods::ssd::Ssd>>(),
        entry::<methods::importance::OfData>(),
        entry::<Stage<methods::retrain::Retrain>>(),
        entry::<Stage<methods::finetune::Finetune>>(),
    ]
}
