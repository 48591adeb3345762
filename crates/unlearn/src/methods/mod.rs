//! One file a method.

pub(crate) mod boundary_expand;
pub(crate) mod boundary_shrink;
pub(crate) mod finetune;
pub(crate) mod fisher;
pub(crate) mod importance;
pub(crate) mod influence;
pub(crate) mod jit;
pub(crate) mod lfssd;
pub(crate) mod modular;
pub(crate) mod ntk;
pub(crate) mod oracle;
pub(crate) mod prune;
pub(crate) mod random_k;
pub(crate) mod random_label;
pub(crate) mod retrain;
pub(crate) mod salun;
pub(crate) mod scrub;
pub(crate) mod ssd;
pub(crate) mod top_k;
pub(crate) mod woodfisher;
