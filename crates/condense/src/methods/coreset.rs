//! `condense/coreset`: real samples that stand for the others of their class, chosen for a request from what is retained: nothing of a forgotten sample decides which.

use dcu_artifact::{Array, Buckets, Dataset, Model, Reach, Request, Retain, RetainFacts};
use dcu_nn::rng::Streams;
use dcu_nn::{Samples, evaluate, model};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Coreset;

/// Which samples are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// Any.
    Random,
    /// One after the other, so that the mean feature of those chosen stays nearest to that of the class (Welling 2009; as in arXiv 1611.07725).
    Herding,
    /// First the one nearest to the mean feature of the class, then always the one farthest from all that are chosen (greedy k-centre; arXiv 1708.00489).
    KCentre,
    /// Of each bucket the one nearest to the mean feature of its retained members, weighted by their number. Needs the input `buckets`.
    Medoids,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Which samples are chosen. All but `random` need the input `model`, for its features.
    rule: Rule,
    /// Samples of each class; by default by `share`. Medoids have as many as there are buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    per_class: Option<usize>,
    /// The share of the retained samples of each class.
    share: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { rule: Rule::Random, per_class: None, share: 0.1 }
    }
}

impl Method for Coreset {
    const NAME: &'static str = "coreset";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Chooses real retained samples that stand for the others: at random, by herding, k-centre or as medoids";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::optional::<Request>("request"),
        Input::optional::<Model>("model"),
        Input::optional::<Buckets>("buckets"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Retain>("retain")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.per_class != Some(0), "per_class", "`per_class` must be at least 1")?;
        Rejected::unless(parameters.share > 0.0 && parameters.share <= 1.0, "share", "`share` must be above 0, and 1 at most")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, request): (Dataset, Option<Request>) = (context.read("dataset")?, context.read_optional("request")?);
        let ids = request.map_or_else(|| dataset.ids.clone(), |request| request.retain);
        let rows = dataset.rows_of(&ids).map_err(|id| {
            Failure::new(format!("sample {id} of the request is not in the dataset"), "make the request from the same dataset")
        })?;
        let (trained, buckets) = (context.read_optional::<Model>("model")?, context.read_optional::<Buckets>("buckets")?);
        let features = match (parameters.rule, trained) {
            (Rule::Random, _) => None,
            (_, Some(trained)) => {
                model::check_fit(&trained, &dataset)?;
                context.progress().phase("features");
                Some(evaluate::features(&model::to_network(&trained)?, &Samples::of_dataset(&dataset, &rows))?)
            }
            (rule, None) => {
                let message = format!("the rule {} needs the features of a `model`", serde_json::to_value(rule)?);
                return Err(Failure::new(message, "connect `model`").into());
            }
        };
        let streams = Streams::new(context.seed(), "condense/coreset");
        let chosen = choose(parameters, &dataset, &rows, features.as_ref(), buckets.as_ref(), &streams)?;
        let [channels, height, width] = dataset.image_shape();
        let retain = Retain {
            ids: chosen.iter().map(|&(row, _)| dataset.ids[row]).collect(),
            weights: chosen.iter().map(|&(_, weight)| weight).collect(),
            condensed_images: Array::new(vec![0, channels, height, width], Vec::new()),
            condensed_targets: Array::new(vec![0, dataset.classes()], Vec::new()),
            condensed_buckets: Vec::new(),
            condensed_weights: Vec::new(),
            facts: RetainFacts {
                maker: format!("coreset {}", serde_json::to_value(parameters.rule)?.as_str().unwrap_or_default()),
                retain: rows.len(),
                reach: Reach::Bucket,
                normalisation: dataset.facts.normalisation.clone(),
                shown: None,
            },
        };
        context.progress().note(&format!("{} of {} retained samples", retain.ids.len(), rows.len()));
        context.write("retain", &retain)
    }
}

/// Rows of the dataset with their weights, of those at `rows`, whose features are [n, D].
pub(crate) fn choose(
    parameters: &Parameters,
    dataset: &Dataset,
    rows: &[usize],
    features: Option<&Array<f32>>,
    buckets: Option<&Buckets>,
    streams: &Streams,
) -> anyhow::Result<Vec<(usize, f32)>> {
    let group = |group_of: &dyn Fn(usize) -> u32, groups: usize| {
        let mut members = vec![Vec::new(); groups];
        rows.iter().enumerate().for_each(|(place, &row)| members[group_of(row) as usize].push(place));
        members
    };
    let mut chosen = Vec::new();
    if parameters.rule == Rule::Medoids {
        let remedy = "connect `buckets`, made from the same dataset";
        let Some(buckets) = buckets else { return Err(Failure::new("the rule `medoids` needs the input `buckets`", remedy).into()) };
        if buckets.ids != dataset.ids {
            return Err(Failure::new("the buckets divide another dataset", remedy).into());
        }
        let features = features.expect("read for this rule");
        for places in group(&|row| buckets.bucket[row], buckets.class.len()).into_iter().filter(|places| !places.is_empty()) {
            let centre = mean(features, &places);
            chosen.push((rows[nearest(features, &places, &centre)], places.len() as f32));
        }
        return Ok(chosen);
    }
    for (class, places) in group(&|row| dataset.labels[row], dataset.classes()).into_iter().enumerate() {
        let wanted = parameters.per_class.unwrap_or_else(|| (parameters.share * places.len() as f64).round().max(1.0) as usize);
        let wanted = wanted.min(places.len());
        let picked = match (parameters.rule, features) {
            (Rule::Herding, Some(features)) => herding(features, &places, wanted),
            (Rule::KCentre, Some(features)) => farthest_first(features, &places, wanted),
            _ => {
                let order = streams.indexed("draw", class as u64).permutation(places.len());
                order.into_iter().take(wanted).map(|place| places[place]).collect()
            }
        };
        chosen.extend(picked.into_iter().map(|place| (rows[place], 1.0)));
    }
    Ok(chosen)
}

/// The mean of the features at some places.
fn mean(features: &Array<f32>, places: &[usize]) -> Vec<f64> {
    let mut sum = vec![0.0; features.row_len()];
    for &place in places {
        sum.iter_mut().zip(features.row(place)).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    sum.iter_mut().for_each(|sum| *sum /= places.len() as f64);
    sum
}

/// The square of the distance between a feature and a point.
fn distance(feature: &[f32], point: &[f64]) -> f64 {
    feature.iter().zip(point).map(|(&value, point)| (f64::from(value) - point).powi(2)).sum()
}

/// The first of the places whose feature is nearest to a point.
fn nearest(features: &Array<f32>, places: &[usize], point: &[f64]) -> usize {
    let distances = places.iter().map(|&place| distance(features.row(place), point));
    distances.zip(places).min_by(|left, right| left.0.total_cmp(&right.0)).map(|(_, &place)| place).expect("there are places")
}

/// Places one after the other, so that the mean of those chosen stays nearest to the mean of all.
fn herding(features: &Array<f32>, places: &[usize], wanted: usize) -> Vec<usize> {
    let centre = mean(features, places);
    let (mut left, mut chosen, mut sum) = (places.to_vec(), Vec::with_capacity(wanted), vec![0.0; centre.len()]);
    for count in 1..=wanted {
        // The mean with it is nearest to the centre where it is nearest to what the sum lacks.
        let lacking: Vec<f64> = centre.iter().zip(&sum).map(|(centre, sum)| centre * count as f64 - sum).collect();
        let next = nearest(features, &left, &lacking);
        left.retain(|&place| place != next);
        sum.iter_mut().zip(features.row(next)).for_each(|(sum, &value)| *sum += f64::from(value));
        chosen.push(next);
    }
    chosen
}

/// The place nearest to the mean, then always the one farthest from all that are chosen.
fn farthest_first(features: &Array<f32>, places: &[usize], wanted: usize) -> Vec<usize> {
    let mut chosen = vec![nearest(features, places, &mean(features, places))];
    let mut distances = vec![f64::INFINITY; places.len()];
    while chosen.len() < wanted {
        let last: Vec<f64> = features.row(chosen[chosen.len() - 1]).iter().map(|&value| f64::from(value)).collect();
        for (own, &place) in distances.iter_mut().zip(places) {
            *own = if chosen.contains(&place) { f64::NEG_INFINITY } else { own.min(distance(features.row(place), &last)) };
        }
        let farthest = (0..places.len()).fold(0, |best, other| if distances[other] > distances[best] { other } else { best });
        chosen.push(places[farthest]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation};

    use super::*;

    fn dataset() -> Dataset {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
            names: None,
        };
        let labels = vec![0, 0, 0, 0, 1, 1];
        Dataset { images: Array::new(vec![6, 1, 1, 1], vec![0; 6]), labels, original_labels: None, ids: (0..6).collect(), facts }
    }

    fn line(values: &[f32]) -> Array<f32> {
        Array::new(vec![values.len(), 1], values.to_vec())
    }

    #[test]
    fn herding_follows_the_mean() {
        // The mean is 3. Beside 2 there lacks 4 of two times the mean, which 0 is nearest to, then 7 of three times.
        assert_eq!(herding(&line(&[0.0, 2.0, 0.0, 10.0]), &[0, 1, 2, 3], 4), [1, 0, 3, 2]);
        assert_eq!(herding(&line(&[1.0, 5.0, 3.0]), &[0, 1, 2], 2), [2, 0]);
    }

    #[test]
    fn the_farthest_comes_next() {
        assert_eq!(farthest_first(&line(&[0.0, 2.0, 3.0, 10.0]), &[0, 1, 2, 3], 4), [2, 3, 0, 1]);
        // All alike.
        assert_eq!(farthest_first(&line(&[1.0, 1.0, 1.0]), &[0, 1, 2], 3), [0, 1, 2]);
    }

    #[test]
    fn medoids_stand_for_the_retained_members_of_their_buckets() {
        let dataset = dataset();
        let buckets = Buckets {
            ids: dataset.ids.clone(),
            bucket: vec![0, 0, 0, 1, 2, 2],
            class: vec![0, 0, 1],
            centroids: Array::new(vec![3, 1], vec![0.0; 3]),
            k: 2,
        };
        // Sample 3, the whole of bucket 1, and sample 5 are forgotten.
        let (rows, features) = (vec![0, 1, 2, 4], line(&[0.0, 1.0, 5.0, 7.0]));
        let parameters = Parameters { rule: Rule::Medoids, ..Parameters::default() };
        let of = |buckets: Option<&Buckets>| choose(&parameters, &dataset, &rows, Some(&features), buckets, &Streams::new(1, "test"));
        assert_eq!(of(Some(&buckets)).unwrap(), [(1, 3.0), (4, 1.0)]);
        assert!(of(None).unwrap_err().to_string().contains("needs the input `buckets`"));
    }

    #[test]
    fn a_share_of_each_class_is_drawn_and_one_at_least() {
        let dataset = dataset();
        let draw = |share, seed| {
            let parameters = Parameters { share, ..Parameters::default() };
            choose(&parameters, &dataset, &[0, 1, 2, 3, 5], None, None, &Streams::new(seed, "test")).unwrap()
        };
        let classes = |chosen: &[(usize, f32)]| chosen.iter().map(|&(row, _)| dataset.labels[row]).collect::<Vec<_>>();
        assert_eq!(classes(&draw(0.5, 1)), [0, 0, 1]);
        assert_eq!(classes(&draw(0.01, 1)), [0, 1]);
        assert!((0..9).any(|seed| draw(0.5, seed) != draw(0.5, 1)));
        assert!(draw(1.0, 1).iter().all(|&(row, _)| row != 4), "what is not retained is not drawn");
    }
}
