//! A repository of the Hugging Face hub, cached where the ecosystem caches it. `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` and `HF_TOKEN` mean what they
//! mean elsewhere; with `HF_HUB_OFFLINE=1` only the cache is read. A revision is resolved to its commit once; that commit is read.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use dcu_stage::Failure;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo};

pub use hf_hub::RepoType;

/// A repository at a revision.
#[derive(Debug, Clone)]
pub struct Repository {
    /// What it holds.
    pub kind: RepoType,
    /// Owner and name.
    pub name: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// Another hub than the environment names.
    pub endpoint: Option<String>,
    /// What a user can do without the hub.
    pub remedy: &'static str,
}

impl Repository {
    /// The commit that the revision stands for now; where the hub is out of reach or not to be asked, the one that it stood for last. None where only
    /// the hub could tell, and [`dcu_stage::is_looking`].
    ///
    /// # Errors
    /// When neither the hub nor its cache can tell.
    pub fn commit(&self) -> anyhow::Result<Option<String>> {
        if dcu_stage::is_looking() {
            return Ok(self.cached_commit());
        }
        match self.current_commit() {
            Ok(commit) => Ok(Some(commit)),
            Err(error) => self.cached_commit().map(Some).ok_or(error),
        }
    }

    /// The folder of the cache with the files of a commit; there need not be one yet.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.cached().pointer_path(&self.revision)
    }

    /// Downloads what is not cached of the files that `choose` takes from all that there are, in its order. Names that lead out of the cache are
    /// not among these.
    ///
    /// # Errors
    /// When the hub cannot be reached, or has no such repository, revision or file.
    pub fn fetch(&self, choose: impl FnOnce(Vec<String>) -> Vec<String>) -> anyhow::Result<()> {
        let repository = self.connect()?;
        let files = repository.info().map_err(|error| self.unreachable(&error))?.siblings;
        let snapshot = self.snapshot();
        let inside = |file: &String| Path::new(file).components().all(|component| matches!(component, Component::Normal(_)));
        for file in choose(files.into_iter().map(|file| file.rfilename).filter(inside).collect()) {
            if !snapshot.join(&file).exists() {
                download(&repository, &file).map_err(|error| self.unreachable(&error))?;
            }
        }
        Ok(())
    }

    fn repository(&self) -> Repo {
        Repo::with_revision(self.name.clone(), self.kind, self.revision.clone())
    }

    fn cached(&self) -> CacheRepo {
        cache().repo(self.repository())
    }

    fn cached_commit(&self) -> Option<String> {
        let snapshots = self.cached().pointer_path("");
        let reference = snapshots.parent()?.join("refs").join(&self.revision);
        let commit = std::fs::read_to_string(reference).ok()?.trim().to_owned();
        snapshots.join(&commit).is_dir().then_some(commit)
    }

    fn connect(&self) -> anyhow::Result<ApiRepo> {
        if is_offline() {
            return Err(self.unreachable(&"HF_HUB_OFFLINE is set, so that only its cache is read, which does not hold it"));
        }
        let connected = || -> Result<Api, ApiError> {
            let builder = ApiBuilder::from_cache(cache()).with_progress(false).with_retries(2).with_token(token());
            let endpoint = self.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()));
            match endpoint {
                Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/').to_owned()),
                None => builder,
            }
            .build()
        };
        Ok(connected().map_err(|error| self.unreachable(&error))?.repo(self.repository()))
    }

    fn current_commit(&self) -> anyhow::Result<String> {
        let commit = self.connect()?.info().map_err(|error| self.unreachable(&error))?.sha;
        // It names a folder.
        if !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) || commit.len() != 40 {
            return Err(self.unreachable(&format!("it names `{commit}` as its commit, which is none")));
        }
        // As Python's library does; without a cache that can be written to, the download will say so.
        self.cached().create_ref(&commit).ok();
        Ok(commit)
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> anyhow::Error {
        Failure::new(format!("cannot get `{}` at `{}` from the hub: {error}", self.name, self.revision), self.remedy).into()
    }
}

fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The ecosystem's folder, by way of its cache.
fn home() -> Cache {
    let caches = || from_environment("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
    let folder = from_environment("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
    Cache::new(folder.unwrap_or_else(|| std::env::temp_dir().join("huggingface")).join("hub"))
}

/// The cache that Python's library uses too.
fn cache() -> Cache {
    let folder = from_environment("HF_HUB_CACHE").or_else(|| from_environment("HUGGINGFACE_HUB_CACHE"));
    folder.map_or_else(home, Cache::new)
}

/// From the environment; else from the file that `hf auth login` writes.
fn token() -> Option<String> {
    if from_environment("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    std::env::var("HF_TOKEN")
        .ok()
        .or_else(|| std::fs::read_to_string(from_environment("HF_TOKEN_PATH")?).ok())
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
        .or_else(|| home().token())
}

/// Waits while another process downloads the same file.
fn download(repository: &ApiRepo, file: &str) -> Result<(), ApiError> {
    const TRIES: usize = 120;
    for _ in 1..TRIES {
        match repository.download(file) {
            Err(ApiError::LockAcquisition(_)) => std::thread::sleep(Duration::from_secs(1)),
            other => return other.map(drop),
        }
    }
    repository.download(file).map(drop)
}
