//! `hub`: a data set of the Hugging Face hub, cached where the ecosystem caches it. `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` and `HF_TOKEN` mean
//! what they mean elsewhere; with `HF_HUB_OFFLINE=1` only the cache is read. A revision is resolved to its commit once; that commit is read.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use dcu_data::{Contents, Place, Selection, Share};
use dcu_stage::Failure;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::parquet;

/// The commit that a revision stands for now; where the hub is out of reach or not to be asked, the one that it stood for last.
pub(crate) fn commit(place: &Place) -> anyhow::Result<Option<String>> {
    if dcu_stage::is_looking() {
        return Ok(cached_commit(place));
    }
    match current_commit(place) {
        Ok(commit) => Ok(Some(commit)),
        Err(error) => cached_commit(place).map(Some).ok_or(error),
    }
}

/// Downloads what is not cached of the commit, and reads it.
pub(crate) fn read(place: &Place, selection: &Selection) -> anyhow::Result<Contents> {
    let snapshot = cached(place).pointer_path(&place.revision);
    let fetched = fetch(place, selection, &snapshot);
    // Without the hub, what was downloaded earlier serves.
    fetched.or_else(|error| if snapshot.is_dir() { Ok(()) } else { Err(error) })?;
    let folder = place.subset.as_ref().map_or_else(|| snapshot.clone(), |subset| snapshot.join(subset));
    let read = || {
        refuse_missing_shards(&folder)?;
        parquet::read(&folder, selection)
    };
    let contents = read().with_context(|| format!("cannot read `{}` from the hub's cache", place.repo))?;
    let name = place.repo.rsplit('/').next().unwrap_or(&place.repo).to_owned();
    Ok(Contents { name, ..contents })
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

fn repository(place: &Place) -> Repo {
    Repo::with_revision(place.repo.clone(), RepoType::Dataset, place.revision.clone())
}

fn cached(place: &Place) -> CacheRepo {
    cache().repo(repository(place))
}

fn cached_commit(place: &Place) -> Option<String> {
    let snapshots = cached(place).pointer_path("");
    let reference = snapshots.parent()?.join("refs").join(&place.revision);
    let commit = std::fs::read_to_string(reference).ok()?.trim().to_owned();
    snapshots.join(&commit).is_dir().then_some(commit)
}

fn connect(place: &Place) -> anyhow::Result<ApiRepo> {
    if is_offline() {
        return Err(unreachable(place, &"HF_HUB_OFFLINE is set, so that only its cache is read, which does not hold it"));
    }
    let connected = || -> Result<Api, ApiError> {
        let builder = ApiBuilder::from_cache(cache()).with_progress(false).with_retries(2).with_token(token());
        let endpoint = place.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()));
        match endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/').to_owned()),
            None => builder,
        }
        .build()
    };
    Ok(connected().map_err(|error| unreachable(place, &error))?.repo(repository(place)))
}

fn current_commit(place: &Place) -> anyhow::Result<String> {
    let commit = connect(place)?.info().map_err(|error| unreachable(place, &error))?.sha;
    // It names a folder.
    if !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) || commit.len() != 40 {
        return Err(unreachable(place, &format!("it names `{commit}` as its commit, which is none")));
    }
    // As Python's library does; without a cache that can be written to, the download will say so.
    cached(place).create_ref(&commit).ok();
    Ok(commit)
}

fn fetch(place: &Place, selection: &Selection, snapshot: &Path) -> anyhow::Result<()> {
    let repository = connect(place)?;
    let files = repository.info().map_err(|error| unreachable(place, &error))?.siblings;
    let mut wanted: Vec<String> = files.into_iter().map(|file| file.rfilename).filter(|file| is_wanted(file, place, selection)).collect();
    if wanted.is_empty() {
        return Err(without_parquet(place));
    }
    // The training part comes last: an interrupted download is never taken for a data set without a test part.
    wanted.sort_by_key(|file| (parquet::share(Path::new(file)).is_none_or(|share| share == Share::Train), file.clone()));
    for file in wanted.iter().filter(|file| !snapshot.join(file).exists()) {
        download(&repository, file).map_err(|error| unreachable(place, &error))?;
    }
    Ok(())
}

/// The repository may be a script or an archive, or have other subsets.
fn without_parquet(place: &Place) -> anyhow::Error {
    let subset = place.subset.as_ref().map_or_else(String::new, |subset| format!(" in `{subset}`"));
    let message = format!("`{}` at `{}` has no parquet file{subset}", place.repo, place.revision);
    let remedy = "check `subset`; of a data set in another form the hub may keep parquet files at `revision: refs/convert/parquet`";
    Failure::new(message, remedy).into()
}

/// The parquet files of the subset and of its parts, whose names stay inside the cache.
fn is_wanted(file: &str, place: &Place, selection: &Selection) -> bool {
    let path = Path::new(file);
    let inside = path.components().all(|component| matches!(component, Component::Normal(_)));
    let in_subset = place.subset.as_ref().is_none_or(|subset| path.starts_with(subset));
    inside && in_subset && selection.wants(parquet::share(path)) && path.extension().is_some_and(|extension| extension == "parquet")
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

/// `train-00000-of-00002.parquet` alone is no data set: the download was broken off.
fn refuse_missing_shards(folder: &Path) -> anyhow::Result<()> {
    let mut series: BTreeMap<(PathBuf, String, usize), usize> = BTreeMap::new();
    for file in dcu_data::files_below(folder)? {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some((rest, count)) = stem.rsplit_once("-of-") else { continue };
        if let (Some((start, _)), Ok(count)) = (rest.rsplit_once('-'), count.parse()) {
            *series.entry((file.parent().unwrap_or(folder).to_owned(), start.to_owned(), count)).or_default() += 1;
        }
    }
    for ((_, start, whole), found) in series {
        if found < whole {
            let message = format!("only {found} of {whole} files `{start}-*-of-*.parquet` are there");
            return Err(Failure::new(message, "run again while the hub can be reached, so that the rest is downloaded").into());
        }
    }
    Ok(())
}

fn unreachable(place: &Place, error: &dyn std::fmt::Display) -> anyhow::Error {
    let message = format!("cannot get `{}` at `{}` from the hub: {error}", place.repo, place.revision);
    let remedy = "run from a local copy with `--set data.source=parquet --set data.path=FOLDER`; behind a mirror set HF_ENDPOINT, for a private set \
                  HF_TOKEN";
    Failure::new(message, remedy).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_subset_inside_the_cache_are_wanted() {
        let place =
            |subset: Option<&str>| Place { repo: "a/b".into(), revision: "main".into(), subset: subset.map(str::to_owned), endpoint: None };
        let is_wanted = |file: &str, subset: Option<&str>| super::is_wanted(file, &place(subset), &Selection::default());
        assert!(is_wanted("data/train.parquet", None) && is_wanted("plain_text/train.parquet", Some("plain_text")));
        for file in ["../../train.parquet", "/etc/train.parquet", "data/train.csv"] {
            assert!(!is_wanted(file, None), "{file}");
        }
        assert!(!is_wanted("other/train.parquet", Some("plain_text")));
    }

    #[test]
    fn parts_that_a_set_leaves_out_are_not_downloaded() {
        let place = Place { repo: "a/b".into(), revision: "main".into(), subset: None, endpoint: None };
        let wanted = |file: &str, test: Share| is_wanted(file, &place, &Selection { test: Some(test), ..Selection::default() });
        assert!(wanted("cropped_digits/train-00000-of-00001.parquet", Share::Test) && wanted("data/test.parquet", Share::Test));
        assert!(!wanted("cropped_digits/extra-00000-of-00002.parquet", Share::Test) && !wanted("data/validation.parquet", Share::Test));
        assert!(wanted("data/valid-00000-of-00001.parquet", Share::Validation) && !wanted("data/test.parquet", Share::Validation));
    }

    #[test]
    fn a_part_of_the_shards_is_no_data_set() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train-00000-of-00002.parquet"), "").unwrap();
        let error = refuse_missing_shards(folder.path()).unwrap_err();
        assert!(error.to_string().contains("only 1 of 2 files `train-*-of-*.parquet`"), "{error}");
        std::fs::write(folder.path().join("train-00001-of-00002.parquet"), "").unwrap();
        refuse_missing_shards(folder.path()).unwrap();
    }
}
