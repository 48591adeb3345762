//! The Hugging Face hub, as `train/import` sees it. Only `dcu-pretrained` can reach it.

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

/// The way to the hub that a program has.
pub trait Hub: 'static {
    /// The stage crate whose program has it, where this one has none.
    const ELSEWHERE: Option<&'static str>;

    /// The commit that a revision stands for now; none where only the hub could tell, and [`dcu_stage::is_looking`].
    ///
    /// # Errors
    /// When neither the hub nor its cache can tell.
    fn commit(place: &Place) -> anyhow::Result<Option<String>> {
        bail!("this program does not read `{}`", place.repo)
    }

    /// Where the file of a place lies, after it was downloaded if need be.
    ///
    /// # Errors
    /// When there is none, or it cannot be downloaded.
    fn fetch(place: &Place) -> anyhow::Result<PathBuf> {
        bail!("this program does not read `{}`", place.repo)
    }
}

/// The way of `dcu-train`: none, since it takes long to compile.
#[derive(Debug)]
pub(crate) struct Without;

impl Hub for Without {
    const ELSEWHERE: Option<&'static str> = Some("pretrained");
}

/// Weights on the hub. Their content is told by the commit, which is an external; so that neither the revision nor the endpoint are serialised.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// Owner and name, such as `timm/resnet18.a1_in1k`.
    pub repo: String,
    /// A branch, tag or commit.
    #[serde(skip)]
    pub revision: String,
    /// The file; by default the first of [`Place::USUAL`] that is there.
    pub file: Option<String>,
    /// Another hub than the environment names.
    #[serde(skip)]
    pub endpoint: Option<String>,
}

impl Place {
    /// What files with weights are called.
    pub const USUAL: [&'static str; 2] = ["model.safetensors", "pytorch_model.bin"];

    /// Whether the revision is a commit, which never stands for anything else.
    #[must_use]
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}
