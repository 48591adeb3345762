//! `condense/reduce`: the reduced retain set of a request (arXiv 2402.00195). Nothing of a forgotten sample is behind any of its rows.

use std::collections::HashSet;

use anyhow::ensure;
use dcu_artifact::{Buckets, Condensed, Dataset, Reduced, ReducedFacts, Request, SampleId};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Reduce;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for Reduce {
    const NAME: &'static str = "reduce";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Condensed images of untouched buckets, and the retained images of those that hold a forgotten one";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::one::<Buckets>("buckets"),
        Input::one::<Condensed>("condensed"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Reduced>("reduced")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let reduced = reduce(&context.read("dataset")?, &context.read("request")?, &context.read("buckets")?, &context.read("condensed")?)?;
        context.progress().note(&format!(
            "{} real and {} condensed rows for {} retained samples",
            reduced.real_labels.len(),
            reduced.condensed_labels.len(),
            reduced.facts.retain
        ));
        context.write("reduced", &reduced)
    }
}

fn reduce(dataset: &Dataset, request: &Request, buckets: &Buckets, condensed: &Condensed) -> anyhow::Result<Reduced> {
    check_same_data(dataset, request, buckets)?;
    let gone: HashSet<u64> = request.forget.iter().chain(&request.earlier).copied().collect();
    let members = buckets.members();
    let is_hit = |bucket: usize| members[bucket].iter().any(|&row| gone.contains(&dataset.ids[row]));
    let hit: Vec<bool> = (0..members.len()).map(is_hit).collect();

    let rows: Vec<usize> =
        (0..dataset.len()).filter(|&row| hit[buckets.bucket[row] as usize] && !gone.contains(&dataset.ids[row])).collect();
    let free: Vec<usize> = (0..condensed.labels.len()).filter(|&row| !hit[condensed.bucket[row] as usize]).collect();
    for &row in &free {
        let leak = condensed.members[row].ids.iter().find(|id| gone.contains(id));
        ensure!(leak.is_none(), "condensed image {row} has the forgotten sample {} behind it", SampleId(*leak.expect("just found")));
    }
    let real = dataset.select(&rows);
    let pick = |values: &[u32]| free.iter().map(|&row| values[row]).collect();
    Ok(Reduced {
        real_images: real.images,
        real_labels: real.labels,
        real_ids: real.ids,
        condensed_images: condensed.images.select(&free),
        condensed_labels: pick(&condensed.labels),
        condensed_buckets: pick(&condensed.bucket),
        facts: ReducedFacts {
            classes: dataset.classes(),
            normalisation: dataset.facts.normalisation.clone(),
            retain: request.retain.len(),
        },
    })
}

fn check_same_data(dataset: &Dataset, request: &Request, buckets: &Buckets) -> anyhow::Result<()> {
    let remedy = "make dataset, buckets, condensed images and request from the same data";
    if buckets.ids != dataset.ids {
        return Err(Failure::new("the buckets divide another dataset", remedy).into());
    }
    let known: HashSet<u64> = dataset.ids.iter().copied().collect();
    let total = request.forget.len() + request.retain.len() + request.earlier.len();
    let all = request.forget.iter().chain(&request.retain).chain(&request.earlier);
    if total != known.len() || !all.clone().all(|id| known.contains(id)) {
        return Err(Failure::new(format!("the request divides {total} samples, the dataset has {}", known.len()), remedy).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, DatasetFacts, Members, Normalisation, RequestFacts};

    use super::*;

    fn world(forget: &[u64], earlier: &[u64]) -> (Dataset, Request, Buckets, Condensed) {
        let bucket = vec![0, 0, 1, 1, 2, 2];
        let dataset = Dataset {
            images: Array::new(vec![6, 1, 1, 2], (0..12).collect()),
            labels: vec![0, 0, 0, 0, 1, 1],
            original_labels: None,
            ids: (0..6).collect(),
            facts: DatasetFacts {
                source: "test".into(),
                class_names: vec!["a".into(), "b".into()],
                normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
                names: None,
            },
        };
        let retain = (0..6).filter(|id| !forget.contains(id) && !earlier.contains(id)).collect();
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: !earlier.is_empty() };
        let request = Request { forget: forget.to_vec(), retain, earlier: earlier.to_vec(), facts };
        let buckets =
            Buckets { ids: dataset.ids.clone(), bucket, class: vec![0, 0, 1], centroids: Array::new(vec![3, 1], vec![0.0; 3]), k: 2 };
        let condensed = Condensed {
            images: Array::new(vec![3, 1, 1, 2], vec![0.5; 6]),
            labels: vec![0, 0, 1],
            bucket: vec![0, 1, 2],
            members: (0..3).map(|bucket| Members { ids: vec![2 * bucket, 2 * bucket + 1], weights: vec![0.5; 2] }).collect(),
            classes: 2,
        };
        (dataset, request, buckets, condensed)
    }

    #[test]
    fn a_bucket_with_a_forgotten_member_gives_its_other_members_instead_of_its_image() {
        let (dataset, request, buckets, condensed) = world(&[2], &[]);
        let reduced = reduce(&dataset, &request, &buckets, &condensed).unwrap();
        assert_eq!((reduced.real_ids, reduced.condensed_buckets), (vec![3], vec![0, 2]));
    }

    #[test]
    fn a_member_forgotten_earlier_spoils_its_bucket_too() {
        let (dataset, request, buckets, condensed) = world(&[2], &[4]);
        let reduced = reduce(&dataset, &request, &buckets, &condensed).unwrap();
        assert_eq!((reduced.real_ids, reduced.condensed_buckets), (vec![3, 5], vec![0]));
    }

    #[test]
    fn a_bucket_that_is_forgotten_whole_gives_nothing() {
        let (dataset, request, buckets, condensed) = world(&[4, 5], &[]);
        let reduced = reduce(&dataset, &request, &buckets, &condensed).unwrap();
        assert!(reduced.real_ids.is_empty());
        assert_eq!(reduced.condensed_labels, vec![0, 0]);
        assert!((reduced.compression_ratio() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_pixels_of_a_forgotten_sample_change_nothing() {
        let (mut dataset, request, buckets, condensed) = world(&[2], &[]);
        let before = reduce(&dataset, &request, &buckets, &condensed).unwrap();
        dataset.images.data[4..6].fill(255);
        assert_eq!(before, reduce(&dataset, &request, &buckets, &condensed).unwrap());
    }

    #[test]
    fn an_image_with_a_forgotten_sample_behind_it_is_refused_even_when_its_bucket_looks_free() {
        let (dataset, request, buckets, mut condensed) = world(&[2], &[]);
        condensed.members[0].ids.push(2);
        condensed.members[0].weights.push(0.0);
        assert!(reduce(&dataset, &request, &buckets, &condensed).unwrap_err().to_string().contains("train:2"));
    }
}
