//! The other half of `train/import`: weights from the Hugging Face hub, whose client is heavy to compile, so that it stands in a program of its own,
//! which is built where a pipeline needs it. A pipeline file names `train/import` all the same.

use std::path::PathBuf;

use dcu_hub::{RepoType, Repository};
use dcu_stage::Failure;
use dcu_train::{Hub, Import, Place};

/// The hub itself.
#[derive(Debug)]
struct Reached;

impl Hub for Reached {
    const ELSEWHERE: Option<&'static str> = None;

    fn commit(place: &Place) -> anyhow::Result<Option<String>> {
        repository(place).commit()
    }

    fn fetch(place: &Place) -> anyhow::Result<PathBuf> {
        let repository = repository(place);
        let snapshot = repository.snapshot();
        let mut there = Vec::new();
        let fetched = repository.fetch(|files| {
            let chosen = wanted(place).into_iter().find(|wanted| files.contains(wanted)).into_iter().collect();
            there = files;
            chosen
        });
        let found = wanted(place).into_iter().map(|file| snapshot.join(file)).find(|path| path.is_file());
        // Without the hub, what was downloaded earlier serves.
        let Some(found) = found else {
            fetched?;
            return Err(missing(place, &there).into());
        };
        Ok(found)
    }
}

fn repository(place: &Place) -> Repository {
    Repository {
        kind: RepoType::Model,
        name: place.repo.clone(),
        revision: place.revision.clone(),
        endpoint: place.endpoint.clone(),
        remedy: "give a local copy as `path`; behind a mirror set HF_ENDPOINT, for a private model HF_TOKEN",
    }
}

/// The files that serve, the best first.
fn wanted(place: &Place) -> Vec<String> {
    place.file.clone().map_or_else(|| Place::USUAL.map(str::to_owned).to_vec(), |file| vec![file])
}

fn missing(place: &Place, there: &[String]) -> Failure {
    const SHOWN: usize = 20;
    const KINDS: [&str; 5] = [".safetensors", ".bin", ".pth", ".pt", ".ckpt"];
    let weights = there.iter().filter(|file| KINDS.iter().any(|kind| file.ends_with(kind)));
    let weights: Vec<String> = weights.take(SHOWN).map(|file| format!("`{file}`")).collect();
    let remedy = match weights.as_slice() {
        [] => "it has no file of weights; give another `repo`".to_owned(),
        weights => format!("choose with `file` one of {}", weights.join(", ")),
    };
    Failure::new(format!("`{}` at `{}` has no file `{}`", place.repo, place.revision, wanted(place).join("` and no `")), remedy)
}

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    vec![dcu_stage::entry::<Import<Reached>>()]
}
