//! The reporting stages: tables of what every method did, what it cost, and how far it is from retraining.

mod lineage;
mod methods;
mod statistics;
mod table;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    vec![dcu_stage::entry::<methods::table::Table>()]
}
