//! The other half of the data stages: `load` and `request` where they read parquet files or the Hugging Face hub. What reads these is by far the
//! heaviest part of the workspace to compile, so that it stands in a program of its own, which is built where a pipeline needs it. A pipeline file
//! names `data/load` all the same.

mod hub;
pub mod parquet;

use std::path::Path;

use dcu_data::{Contents, List, Place, Readers, Selection};
use dcu_stage::External;

/// All readers.
#[derive(Debug)]
struct All;

impl Readers for All {
    const ELSEWHERE: Option<&'static str> = None;

    fn parquet_files(path: &Path, selection: &Selection) -> anyhow::Result<Vec<External>> {
        parquet::outside(path, selection)
    }

    fn read_parquet(path: &Path, selection: &Selection) -> anyhow::Result<Contents> {
        parquet::read(path, selection)
    }

    fn commit(place: &Place) -> anyhow::Result<Option<String>> {
        hub::commit(place)
    }

    fn read_hub(place: &Place, selection: &Selection) -> anyhow::Result<Contents> {
        hub::read(place, selection)
    }

    fn read_list(file: &Path) -> anyhow::Result<List> {
        parquet::read_list(file)
    }
}

/// The registry: one line a method.
#[must_use]
pub fn methods() -> Vec<dcu_stage::Entry> {
    use dcu_stage::entry;
    vec![entry::<dcu_data::Load<All>>(), entry::<dcu_data::MakeRequest<All>>()]
}
