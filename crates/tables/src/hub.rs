//! `hub`: a data set of the Hugging Face hub, by way of [`dcu_hub`].

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use dcu_data::{Contents, Place, Selection, Share};
use dcu_hub::{RepoType, Repository};
use dcu_stage::Failure;

use crate::parquet;

/// The commit that a revision stands for now; where the hub is out of reach or not to be asked, the one that it stood for last.
pub(crate) fn commit(place: &Place) -> anyhow::Result<Option<String>> {
    repository(place).commit()
}

/// Downloads what is not cached of the commit, and reads it.
pub(crate) fn read(place: &Place, selection: &Selection) -> anyhow::Result<Contents> {
    let repository = repository(place);
    let snapshot = repository.snapshot();
    let fetched = fetch(&repository, place, selection);
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

fn repository(place: &Place) -> Repository {
    Repository {
        kind: RepoType::Dataset,
        name: place.repo.clone(),
        revision: place.revision.clone(),
        endpoint: place.endpoint.clone(),
        remedy: "run from a local copy with `--set data.source=parquet --set data.path=FOLDER`; behind a mirror set HF_ENDPOINT, for a private set \
                 HF_TOKEN",
    }
}

fn fetch(repository: &Repository, place: &Place, selection: &Selection) -> anyhow::Result<()> {
    let mut has_some = false;
    repository.fetch(|files| {
        let mut wanted: Vec<String> = files.into_iter().filter(|file| is_wanted(file, place, selection)).collect();
        has_some = !wanted.is_empty();
        // The training part comes last: an interrupted download is never taken for a data set without a test part.
        wanted.sort_by_key(|file| (parquet::share(Path::new(file)).is_none_or(|share| share == Share::Train), file.clone()));
        wanted
    })?;
    if has_some { Ok(()) } else { Err(without_parquet(place)) }
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
