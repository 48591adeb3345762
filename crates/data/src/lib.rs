//! The data stages: load images, poison labels, hold samples out, and draw up requests.

pub mod images;
mod methods;
mod sources;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<methods::load::Load>(),
        entry::<methods::poison::Poison>(),
        entry::<methods::holdout::HoldOut>(),
        entry::<methods::request::MakeRequest>(),
    ]
}
