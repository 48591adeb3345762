//! The data stages: load images, poison labels, hold samples out, and draw up requests.
//!
//! What is heavy to compile is read by `dcu-tables`, which uses this library with readers of its own ([`Readers`]).

pub mod images;
mod memory;
mod methods;
mod named;
mod readers;
mod sources;

pub use memory::room_for;
pub use methods::load::Load;
pub use methods::request::MakeRequest;
pub use readers::{List, Place, Readers, Selection};
pub use sources::{CIFAR10_CLASSES, Contents, Part, Share, cifar10_normalisation, embedded, externals, files_below, missing};

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![
        entry::<Load<readers::Without>>(),
        entry::<methods::poison::Poison>(),
        entry::<methods::holdout::HoldOut>(),
        entry::<MakeRequest<readers::Without>>(),
    ]
}
