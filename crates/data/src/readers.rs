//! What reads parquet files and the Hugging Face hub, as this crate's methods see it. Only `dcu-tables` has it.

use std::path::Path;

use anyhow::bail;
use dcu_stage::External;
use serde::Serialize;

use crate::sources::{Contents, Share};

/// The readers that a program has.
pub trait Readers: 'static {
    /// The stage crate whose program has these readers, where this one has none.
    const ELSEWHERE: Option<&'static str>;

    /// The files that [`Self::read_parquet`] would read.
    ///
    /// # Errors
    /// When there is none.
    fn parquet_files(path: &Path, _selection: &Selection) -> anyhow::Result<Vec<External>> {
        bail!("this program does not read `{}`", path.display())
    }

    /// Reads a parquet file, or a folder of them.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    fn read_parquet(path: &Path, _selection: &Selection) -> anyhow::Result<Contents> {
        bail!("this program does not read `{}`", path.display())
    }

    /// The commit that a revision stands for now; none where only the hub could tell, and [`dcu_stage::is_looking`].
    ///
    /// # Errors
    /// When neither the hub nor its cache can tell.
    fn commit(place: &Place) -> anyhow::Result<Option<String>> {
        bail!("this program does not read `{}`", place.repo)
    }

    /// Reads a data set of the hub, after downloading what is not cached.
    ///
    /// # Errors
    /// When it cannot be downloaded or read.
    fn read_hub(place: &Place, _selection: &Selection) -> anyhow::Result<Contents> {
        bail!("this program does not read `{}`", place.repo)
    }

    /// Reads a parquet file with a list of samples.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    fn read_list(file: &Path) -> anyhow::Result<List> {
        bail!("this program does not read `{}`", file.display())
    }
}

/// The readers of `dcu-data`: none, since they take long to compile.
#[derive(Debug)]
pub(crate) struct Without;

impl Readers for Without {
    const ELSEWHERE: Option<&'static str> = Some("tables");
}

/// A data set on the hub. Its content is told by the commit, which is an external; so that neither the revision nor the endpoint are serialised.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// Owner and name, such as `uoft-cs/cifar10`.
    pub repo: String,
    /// A branch, tag or commit.
    #[serde(skip)]
    pub revision: String,
    /// The folder of the repository to read, where it holds several subsets.
    pub subset: Option<String>,
    /// Another hub than the environment names.
    #[serde(skip)]
    pub endpoint: Option<String>,
}

impl Place {
    /// Whether the revision is a commit, which never stands for anything else.
    #[must_use]
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// The columns of images that are looked for where none is named.
pub(crate) const IMAGE_COLUMNS: [&str; 2] = ["img", "image"];
/// The columns of labels that are looked for where none is named.
pub(crate) const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

/// What is read of parquet files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The columns that may hold the images; the first that is there does.
    pub image_columns: Vec<String>,
    /// The columns that may hold the labels; the first that is there does.
    pub label_columns: Vec<String>,
    /// The part to test on, of a set whose parts are known: whatever is of neither this nor the training part is left out. Else files that name no
    /// part are for training, and those for validation serve where there are none to test on.
    pub test: Option<Share>,
}

impl Default for Selection {
    fn default() -> Self {
        crate::named::selection(None, None, None)
    }
}

impl Selection {
    /// Whether files of this part are to be read.
    #[must_use]
    pub fn wants(&self, share: Option<Share>) -> bool {
        self.test.is_none_or(|test| share == Some(Share::Train) || share == Some(test))
    }
}

/// What a list names samples by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// Ids, such as `train:17`.
    Ids(Vec<String>),
    /// Paths in the source.
    Paths(Vec<String>),
}
