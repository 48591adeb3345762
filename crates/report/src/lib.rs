//! The reporting stages: tables and a page of what every method did, what it cost, and how far it is from retraining.

mod audits;
mod lineage;
mod methods;
mod page;
mod report;
mod rows;
mod statistics;
mod summary;
mod table;
mod verdict;

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    vec![dcu_stage::entry::<methods::table::Table>(), dcu_stage::entry::<methods::html::Html>()]
}
