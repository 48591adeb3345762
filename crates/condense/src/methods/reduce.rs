//! `condense/reduce`: the reduced retain set of a request (arXiv 2402.00195). Unless it is asked to keep them, nothing of a forgotten sample is behind any
//! of its rows. Without a request nothing is forgotten: the rows are all condensed images.

use std::collections::HashSet;

use anyhow::ensure;
use dcu_artifact::{Buckets, Condensed, Dataset, Members, Reach, Request, Retain, RetainFacts, SampleId, Shown};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Reduce;

/// What becomes of a condensed image of a bucket that holds a forgotten sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Touched {
    /// The retained members of its bucket stand in its place, as published.
    Replace,
    /// It is left out.
    Drop,
    /// It stays, and with it what it shows of forgotten samples; the reach of the rows says so.
    Keep,
}

/// How much a condensed image counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Weighing {
    /// As much as a real one, as published.
    Alike,
    /// As much as the samples behind it.
    Members,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What becomes of a condensed image of a bucket that holds a forgotten sample.
    touched: Touched,
    /// How much a condensed image counts.
    weights: Weighing,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { touched: Touched::Replace, weights: Weighing::Alike }
    }
}

/// An image in which one sample has this share of all weights shows that sample.
const ALONE: f32 = 0.9;

impl Method for Reduce {
    const NAME: &'static str = "reduce";
    const VERSION: u32 = 3;
    const SUMMARY: &'static str = "Condensed images of untouched buckets, and the retained images of those that hold a forgotten one";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::optional::<Request>("request"),
        Input::one::<Buckets>("buckets"),
        Input::one::<Condensed>("condensed"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Retain>("retain")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, request): (Dataset, Option<Request>) = (context.read("dataset")?, context.read_optional("request")?);
        let retain = reduce(parameters, &dataset, request.as_ref(), &context.read("buckets")?, &context.read("condensed")?)?;
        context.progress().note(&format!(
            "{} real and {} condensed rows for {} retained samples; reach: {}",
            retain.ids.len(),
            retain.condensed_buckets.len(),
            retain.facts.retain,
            retain.facts.reach
        ));
        context.write("retain", &retain)
    }
}

fn reduce(
    parameters: &Parameters,
    dataset: &Dataset,
    request: Option<&Request>,
    buckets: &Buckets,
    condensed: &Condensed,
) -> anyhow::Result<Retain> {
    check_same_data(dataset, request, buckets, condensed)?;
    let gone: HashSet<u64> = request.iter().flat_map(|request| request.forget.iter().chain(&request.earlier)).copied().collect();
    let members = buckets.members();
    let is_hit = |bucket: usize| members[bucket].iter().any(|&row| gone.contains(&dataset.ids[row]));
    let hit: Vec<bool> = (0..members.len()).map(is_hit).collect();

    let replaces = parameters.touched == Touched::Replace;
    let rows: Vec<usize> =
        (0..dataset.len()).filter(|&row| replaces && hit[buckets.bucket[row] as usize] && !gone.contains(&dataset.ids[row])).collect();
    let keeps = parameters.touched == Touched::Keep;
    let kept: Vec<usize> = (0..condensed.bucket.len()).filter(|&row| keeps || !hit[condensed.bucket[row] as usize]).collect();
    let mut reach = condensed.facts.reach;
    for &row in &kept {
        if let Some(&leak) = condensed.members[row].ids.iter().find(|id| gone.contains(id)) {
            ensure!(keeps, "condensed image {row} has the forgotten sample {} behind it", SampleId(leak));
            reach = reach.max(reach_of(dataset, &condensed.members[row].ids)?);
        }
    }
    let rows_where = |fits: &dyn Fn(usize) -> bool| (0_u32..).zip(&kept).filter(|(_, row)| fits(**row)).map(|(place, _)| place).collect();
    let shows_forgotten = |row: usize| hit[condensed.bucket[row] as usize] || condensed.members[row].ids.iter().any(|id| gone.contains(id));
    let shown = request
        .is_some()
        .then(|| Shown { forgotten: rows_where(&shows_forgotten), single: rows_where(&|row| is_of_one(&condensed.members[row])) });
    let weight = |row: usize| match parameters.weights {
        Weighing::Alike => 1.0,
        Weighing::Members => condensed.members[row].ids.len() as f32,
    };
    if rows.is_empty() && kept.is_empty() {
        let remedy = "give more buckets, or `touched: replace`";
        return Err(Failure::new("no row is left to learn from: every bucket holds a forgotten sample", remedy).into());
    }
    Ok(Retain {
        ids: rows.iter().map(|&row| dataset.ids[row]).collect(),
        weights: vec![1.0; rows.len()],
        condensed_images: condensed.images.select(&kept),
        condensed_targets: condensed.targets.select(&kept),
        condensed_buckets: kept.iter().map(|&row| condensed.bucket[row]).collect(),
        condensed_weights: kept.iter().map(|&row| weight(row)).collect(),
        facts: RetainFacts {
            maker: format!("reduce of {}", condensed.facts.maker),
            retain: dataset.len() - gone.len(),
            // Nothing condensed, nothing seen.
            reach: if kept.is_empty() { Reach::Bucket } else { reach },
            normalisation: dataset.facts.normalisation.clone(),
            shown,
        },
    })
}

/// Whether an image stands for one sample, or is nearly that.
fn is_of_one(members: &Members) -> bool {
    let sizes = || members.weights.iter().map(|weight| weight.abs());
    let (all, largest) = (sizes().sum::<f32>(), sizes().fold(0.0, f32::max));
    members.ids.len() == 1 || (all > 0.0 && largest >= ALONE * all)
}

/// What an image with forgotten samples among these behind it shows of others.
fn reach_of(dataset: &Dataset, ids: &[u64]) -> anyhow::Result<Reach> {
    let rows = dataset.rows_of(ids).map_err(|id| anyhow::anyhow!("sample {id} behind a condensed image is not in the dataset"))?;
    let is_of_one_class = rows.windows(2).all(|pair| dataset.labels[pair[0]] == dataset.labels[pair[1]]);
    Ok(if is_of_one_class { Reach::Class } else { Reach::Global })
}

fn check_same_data(dataset: &Dataset, request: Option<&Request>, buckets: &Buckets, condensed: &Condensed) -> anyhow::Result<()> {
    let remedy = "make dataset, buckets, condensed images and request from the same data";
    if buckets.ids != dataset.ids {
        return Err(Failure::new("the buckets divide another dataset", remedy).into());
    }
    if condensed.classes() != dataset.classes() || condensed.bucket.iter().any(|&bucket| bucket as usize >= buckets.class.len()) {
        return Err(Failure::new("the condensed images are of other classes or buckets", remedy).into());
    }
    let Some(request) = request else { return Ok(()) };
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
    use dcu_artifact::{Array, CondensedFacts, DatasetFacts, Normalisation, RequestFacts};

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
            targets: Array::new(vec![3, 2], vec![1.0, 0.0, 1.0, 0.0, 0.0, 1.0]),
            bucket: vec![0, 1, 2],
            members: (0..3).map(|bucket| Members { ids: vec![2 * bucket, 2 * bucket + 1], weights: vec![0.5; 2] }).collect(),
            facts: CondensedFacts { maker: "fdm".into(), reach: Reach::Bucket },
        };
        (dataset, request, buckets, condensed)
    }

    #[test]
    fn a_bucket_with_a_forgotten_member_gives_its_other_members_instead_of_its_image() {
        let (dataset, request, buckets, condensed) = world(&[2], &[]);
        let reduced = reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap();
        assert_eq!((reduced.ids, reduced.condensed_buckets), (vec![3], vec![0, 2]));
    }

    #[test]
    fn a_member_forgotten_earlier_spoils_its_bucket_too() {
        let (dataset, request, buckets, condensed) = world(&[2], &[4]);
        let reduced = reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap();
        assert_eq!((reduced.ids, reduced.condensed_buckets), (vec![3, 5], vec![0]));
    }

    #[test]
    fn a_bucket_that_is_forgotten_whole_gives_nothing() {
        let (dataset, request, buckets, condensed) = world(&[4, 5], &[]);
        let reduced = reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap();
        assert!(reduced.ids.is_empty());
        assert_eq!(reduced.condensed_targets.data, vec![1.0, 0.0, 1.0, 0.0]);
        assert!((reduced.ratio() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_pixels_of_a_forgotten_sample_change_nothing() {
        let (mut dataset, request, buckets, condensed) = world(&[2], &[]);
        let before = reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap();
        dataset.images.data[4..6].fill(255);
        assert_eq!(before, reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap());
    }

    #[test]
    fn an_image_with_a_forgotten_sample_behind_it_is_refused_even_when_its_bucket_looks_free() {
        let (dataset, request, buckets, mut condensed) = world(&[2], &[]);
        condensed.members[0].ids.push(2);
        condensed.members[0].weights.push(0.0);
        assert!(
            reduce(&Parameters::default(), &dataset, Some(&request), &buckets, &condensed).unwrap_err().to_string().contains("train:2")
        );
    }

    #[test]
    fn without_a_request_the_rows_are_all_condensed_images() {
        let (dataset, _, buckets, condensed) = world(&[2], &[]);
        let all = reduce(&Parameters::default(), &dataset, None, &buckets, &condensed).unwrap();
        assert_eq!((all.ids, all.condensed_buckets, all.facts.retain), (vec![], vec![0, 1, 2], 6));
        assert_eq!(all.facts.shown, None, "whose samples these are nobody has asked");
    }

    #[test]
    fn images_of_touched_buckets_and_of_single_samples_are_named() {
        let (dataset, request, buckets, mut condensed) = world(&[2], &[]);
        // Of bucket 2 one sample is left; of bucket 0 one counts for nearly all of the image.
        condensed.members[2] = Members { ids: vec![4], weights: vec![0.0] };
        condensed.members[0].weights = vec![0.01, -0.95];
        let with = |touched| {
            let parameters = Parameters { touched, ..Parameters::default() };
            reduce(&parameters, &dataset, Some(&request), &buckets, &condensed).unwrap().facts.shown.unwrap()
        };
        assert_eq!(with(Touched::Replace), Shown { forgotten: vec![], single: vec![0, 1] });
        assert_eq!(with(Touched::Keep), Shown { forgotten: vec![1], single: vec![0, 2] });
    }

    #[test]
    fn an_image_that_shows_a_forgotten_sample_can_be_kept_and_is_told_by_its_reach() {
        let (dataset, request, buckets, mut condensed) = world(&[2], &[]);
        let with = |touched, condensed: &Condensed| {
            let parameters = Parameters { touched, weights: Weighing::Members };
            reduce(&parameters, &dataset, Some(&request), &buckets, condensed).unwrap()
        };
        let dropped = with(Touched::Drop, &condensed);
        assert_eq!((dropped.ids, dropped.condensed_buckets, dropped.facts.reach), (vec![], vec![0, 2], Reach::Bucket));
        let kept = with(Touched::Keep, &condensed);
        assert_eq!((kept.condensed_buckets, kept.condensed_weights, kept.facts.reach), (vec![0, 1, 2], vec![2.0; 3], Reach::Class));
        condensed.members[1].ids.push(5);
        condensed.members[1].weights.push(0.5);
        assert_eq!(with(Touched::Keep, &condensed).facts.reach, Reach::Global);
        condensed.facts.reach = Reach::Class;
        assert_eq!(with(Touched::Drop, &condensed).facts.reach, Reach::Class);
    }
}
