//! The unlearning stages: modular unlearning, and what it is compared with, retraining included.

mod algebra;
mod course;
mod fit;
mod frame;
#[cfg(test)]
mod golden;
mod head;
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
        entry::<Stage<methods::exact::Exact>>(),
        entry::<Stage<methods::random_label::RandomLabel>>(),
        entry::<Stage<methods::accelerated::Accelerated>>(),
        entry::<Stage<methods::amnesiac::Amnesiac>>(),
        entry::<Stage<methods::bad_teacher::BadTeacher>>(),
        entry::<Stage<methods::datamodel::Datamodel>>(),
        entry::<Stage<methods::distillation::Distillation>>(),
        entry::<Stage<methods::gradient_ascent::GradientAscent>>(),
        entry::<Stage<methods::neggrad::NegGrad>>(),
        entry::<Stage<methods::salun::SalUn>>(),
        entry::<Stage<methods::silver_linings::SilverLinings>>(),
        entry::<Stage<methods::sisa::Sisa>>(),
        entry::<Stage<methods::sparse::Sparse>>(),
        entry::<Stage<methods::scrub::Scrub>>(),
        entry::<Stage<methods::ssd::Ssd>>(),
        entry::<Stage<methods::lfssd::LossFreeSsd>>(),
        entry::<methods::importance::OfData>(),
        entry::<Stage<methods::jit::Jit>>(),
        entry::<Stage<methods::fisher::Fisher>>(),
        entry::<Stage<methods::ntk::Ntk>>(),
        entry::<Stage<methods::influence::Influence>>(),
        entry::<Stage<methods::woodfisher::WoodFisher>>(),
        entry::<Stage<methods::top_k::TopK>>(),
        entry::<Stage<methods::random_k::RandomK>>(),
        entry::<Stage<methods::prune::Prune>>(),
        entry::<Stage<methods::boundary_shrink::BoundaryShrink>>(),
        entry::<Stage<methods::boundary_expand::BoundaryExpand>>(),
        entry::<Stage<methods::retrain::Retrain>>(),
        entry::<Stage<methods::finetune::Finetune>>(),
    ]
}
