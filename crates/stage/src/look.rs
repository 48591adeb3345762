//! Whether a question is only to be looked at: nothing of the network is asked.

use std::sync::atomic::{AtomicBool, Ordering};

static LOOKING: AtomicBool = AtomicBool::new(false);

/// Whether `check --look` asks: what only the network could tell is left open.
#[must_use]
pub fn is_looking() -> bool {
    LOOKING.load(Ordering::Relaxed)
}

pub(crate) fn set(looking: bool) {
    LOOKING.store(looking, Ordering::Relaxed);
}
