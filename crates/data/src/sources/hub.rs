//! `hub`: a data set of the Hugging Face hub, cached where the ecosystem caches it. `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` and `HF_TOKEN` mean
//! what they mean elsewhere; with `HF_HUB_OFFLINE=1` only the cache is read.

use std::path::PathBuf;

use anyhow::Context as _;
use dcu_artifact::digest_bytes;
use dcu_stage::{External, Failure};
use hf_hub::repository::RepoTypeDataset;
use hf_hub::{HFClient, HFError, HFRepositorySync};

use super::{Contents, parquet};

/// A data set on the hub.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Owner and name, such as `uoft-cs/cifar10`.
    pub(crate) repo: String,
    /// A branch, tag or commit.
    pub(crate) revision: String,
    /// Another hub than the environment names.
    pub(crate) endpoint: Option<String>,
    /// The folder of the repository to read, where it holds several subsets.
    pub(crate) subset: Option<String>,
}

/// The commit that a revision stands for now; where the hub is out of reach, when it was last downloaded.
pub(crate) fn outside(place: &Place) -> anyhow::Result<Vec<External>> {
    let commit = match is_offline() {
        true => cached_commit(place)?,
        false => current_commit(place).or_else(|error| cached_commit(place).map_err(|_| error))?,
    };
    Ok(vec![External { name: place.repo.clone(), digest: Some(digest_bytes(format!("hub:{}@{commit}", place.repo).as_bytes())) }])
}

/// Downloads what is not cached, and reads it.
pub(crate) fn read(place: &Place) -> anyhow::Result<Contents> {
    let folder = snapshot(place, is_offline()).or_else(|error| snapshot(place, true).map_err(|_| error))?;
    let folder = place.subset.as_ref().map_or_else(|| folder.clone(), |subset| folder.join(subset));
    let contents = parquet::read(&folder).with_context(|| format!("cannot read `{}` from the hub's cache", place.repo))?;
    let name = place.repo.rsplit('/').next().unwrap_or(&place.repo).to_owned();
    Ok(Contents { name, ..contents })
}

fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

fn connect(place: &Place) -> anyhow::Result<HFRepositorySync<RepoTypeDataset>> {
    let builder = HFClient::builder();
    let builder = match &place.endpoint {
        Some(endpoint) => builder.endpoint(endpoint.clone()),
        None => builder,
    };
    let client = builder.build_sync().map_err(|error| unreachable(place, &error))?;
    let (owner, name) = hf_hub::split_id(&place.repo);
    Ok(client.dataset(owner, name))
}

fn current_commit(place: &Place) -> anyhow::Result<String> {
    let info = connect(place)?.info().revision(place.revision.clone()).send().map_err(|error| unreachable(place, &error))?;
    info.sha.with_context(|| format!("the hub names no commit for `{}`", place.repo))
}

fn cached_commit(place: &Place) -> anyhow::Result<String> {
    let folder = snapshot(place, true)?;
    let commit = folder.file_name().context("the hub's cache has a snapshot without a name")?;
    Ok(commit.to_string_lossy().into_owned())
}

fn snapshot(place: &Place, local_files_only: bool) -> anyhow::Result<PathBuf> {
    let pattern = place.subset.as_ref().map_or_else(|| "*.parquet".to_owned(), |subset| format!("{subset}/*.parquet"));
    let repository = connect(place)?;
    let request = repository.snapshot_download().revision(place.revision.clone()).allow_patterns(vec![pattern]);
    request.local_files_only(local_files_only).send().map_err(|error| unreachable(place, &error))
}

fn unreachable(place: &Place, error: &HFError) -> anyhow::Error {
    let offline = if is_offline() { " (HF_HUB_OFFLINE is set, so that only its cache is read)" } else { "" };
    let message = format!("cannot get `{}` at `{}` from the hub{offline}: {error}", place.repo, place.revision);
    Failure::new(message, local_copy()).into()
}

fn local_copy() -> String {
    "run from a local copy with `--set data.source=parquet --set data.path=FOLDER`; behind a mirror set HF_ENDPOINT, for a private set HF_TOKEN".into()
}
