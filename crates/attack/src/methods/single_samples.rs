//! `attack/single-samples`: do single forget samples tell unlearned models from retrained ones? Each sample's margin over many models of both kinds is a distribution; a
//! likelihood-ratio attack (U-LiRA, Hayes et al., arXiv 2403.01218) and the divergence between the two (KLoM, Georgiev et al., arXiv 2410.23232, by Gaussians) compare them.

use dcu_artifact::{Array, Dataset, Metrics, Predictions, Request};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) struct SingleSamples;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The least standard deviation of a margin over models: those of a few models can be small by chance.
    floor: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { floor: 0.3 }
    }
}

impl Method for SingleSamples {
    const NAME: &'static str = "single-samples";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Whether single forget samples tell many unlearned models from many retrained ones";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::many::<Predictions>("unlearned"),
        Input::many::<Predictions>("retrained"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Metrics>("metrics")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let fits = parameters.floor > 0.0 && parameters.floor.is_finite();
        Rejected::unless(fits, "floor", "`floor` must be a positive number")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, request): (Dataset, Request) = (context.read("dataset")?, context.read("request")?);
        let mut margins = |name: &str| {
            let models = context.read_many::<Predictions>(name)?;
            if models.len() < 3 {
                let message = format!("`{name}` has {} models; a distribution with one left out needs 3 at least", models.len());
                return Err(Failure::new(message, "give more seeds").into());
            }
            models.iter().map(|(predictions, _)| margins(predictions, &dataset, &request.forget)).collect::<anyhow::Result<Vec<_>>>()
        };
        let (unlearned, retrained) = (margins("unlearned")?, margins("retrained")?);
        context.write("metrics", &metrics(&unlearned, &retrained, &request.forget, parameters.floor))
    }
}

/// `ln(p / (1 - p))` of the label's probability p, of each sample: [F].
fn margins(predictions: &Predictions, dataset: &Dataset, ids: &[u64]) -> anyhow::Result<Vec<f64>> {
    let remedy = "make predictions and request from the same dataset";
    if predictions.ids != dataset.ids || predictions.classes() != dataset.classes() {
        return Err(Failure::new("the predictions are of another dataset", remedy).into());
    }
    let rows = dataset.rows_of(ids).map_err(|id| Failure::new(format!("sample {id} of the request is not in the dataset"), remedy))?;
    Ok(rows.into_iter().map(|row| margin(predictions.logits.row(row), dataset.labels[row] as usize)).collect())
}

/// The label's logit less the logarithm of the sum of the others' exponentials.
fn margin(logits: &[f32], label: usize) -> f64 {
    let others = || logits.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, &logit)| f64::from(logit));
    let largest = others().fold(f64::NEG_INFINITY, f64::max);
    f64::from(logits[label]) - largest - others().map(|logit| (logit - largest).exp()).sum::<f64>().ln()
}

/// A normal distribution of a sample's margin over models.
#[derive(Debug, Clone, Copy)]
struct Normal {
    mean: f64,
    deviation: f64,
}

impl Normal {
    /// That of these models' margins of a sample; the deviation is not below the floor.
    fn of(models: &[Vec<f64>], sample: usize, without: Option<usize>, floor: f64) -> Self {
        let values = || models.iter().enumerate().filter(|(model, _)| Some(*model) != without).map(|(_, margins)| margins[sample]);
        let count = values().count() as f64;
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { mean, deviation: variance.sqrt().max(floor) }
    }

    /// The logarithm of the density, without what is the same for all distributions.
    fn log_density(self, value: f64) -> f64 {
        -0.5 * ((value - self.mean) / self.deviation).powi(2) - self.deviation.ln()
    }

    /// The Kullback-Leibler divergence of `other` from this one: of retrained from unlearned margins.
    fn divergence(self, other: Self) -> f64 {
        (self.deviation / other.deviation).ln()
            + (other.deviation.powi(2) + (other.mean - self.mean).powi(2)) / (2.0 * self.deviation.powi(2))
            - 0.5
    }
}

/// Margins [M, F] of unlearned and [M', F] of retrained models.
fn metrics(unlearned: &[Vec<f64>], retrained: &[Vec<f64>], ids: &[u64], floor: f64) -> Metrics {
    let mut metrics = Metrics::default();
    metrics.facts.insert("counts".into(), json!({ "forget": ids.len(), "unlearned": unlearned.len(), "retrained": retrained.len() }));
    let mut rates = vec![0.0; ids.len()];
    let mut of_model = [Vec::new(), Vec::new()];
    for (kind, (own, other)) in [(unlearned, retrained), (retrained, unlearned)].into_iter().enumerate() {
        for model in 0..own.len() {
            let mut hits = 0.0;
            for (sample, rate) in rates.iter_mut().enumerate() {
                let value = own[model][sample];
                let like_own = Normal::of(own, sample, Some(model), floor).log_density(value);
                // As many models on both sides, so that neither is estimated better.
                let other_left_out = (other.len() == own.len()).then_some(model);
                let like_other = Normal::of(other, sample, other_left_out, floor).log_density(value);
                let hit = f64::from(u8::from(like_own > like_other)) + 0.5 * f64::from(u8::from(like_own == like_other));
                hits += hit;
                *rate += hit / (2 * own.len()) as f64;
            }
            of_model[kind].push(hits / ids.len() as f64);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let attack = f64::midpoint(mean(&of_model[0]), mean(&of_model[1]));
    let spread = |values: &[f64]| {
        let centre = mean(values);
        values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (values.len() * (values.len() - 1)) as f64
    };
    metrics.scalar(
        "likelihood_ratio_attack",
        attack,
        "fraction",
        "how often the likelihood ratio of a forget sample's margin, under normal distributions over the other models of both kinds, tells an unlearned from a retrained \
         model, mean over samples and both kinds; 0.5 is chance",
    );
    metrics.scalar(
        "likelihood_ratio_attack_error",
        0.5 * (spread(&of_model[0]) + spread(&of_model[1])).sqrt(),
        "fraction",
        "standard error of likelihood_ratio_attack over the models",
    );
    let divergences: Vec<f64> = (0..ids.len())
        .map(|sample| Normal::of(unlearned, sample, None, floor).divergence(Normal::of(retrained, sample, None, floor)))
        .collect();
    for (name, share, words) in [("klom_median", 0.5, "median"), ("klom_95", 0.95, "95th percentile")] {
        let definition = format!(
            "{words} over the forget samples of the Kullback-Leibler divergence of retrained from unlearned margins, both as normal distributions; 0 where they are alike"
        );
        metrics.scalar(name, percentile(&divergences, share), "nat", &definition);
    }
    for (name, models, words) in [("unlearned_margin", unlearned, "unlearned"), ("retrained_margin", retrained, "retrained")] {
        let all: Vec<f64> = models.iter().map(|margins| mean(margins)).collect();
        metrics.scalar(name, mean(&all), "nat", &format!("mean margin of the forget samples over the {words} models"));
    }
    metrics.ids.insert("forget_ids".into(), ids.to_vec());
    metrics.array("attack_by_sample", Array::vector(rates), "fraction", "how often the attack is right about each forget sample");
    metrics.array("klom_by_sample", Array::vector(divergences), "nat", "the divergence of each forget sample");
    metrics
}

/// Between the two nearest values, as NumPy's default.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use dcu_nn::rng::Streams;

    use super::*;

    #[test]
    fn a_margin_is_the_logit_of_the_labels_probability() {
        let logits = [1.0_f32, 3.0, -2.0];
        let probabilities: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let share = probabilities[1] / probabilities.iter().sum::<f64>();
        assert!((margin(&logits, 1) - (share / (1.0 - share)).ln()).abs() < 1e-12);
        // Where a probability rounds to 1.
        assert!((margin(&[900.0, 0.0], 0) - 900.0).abs() < 1e-12);
    }

    #[test]
    fn the_divergence_of_normal_distributions_is_the_closed_form() {
        let (unlearned, retrained) = (Normal { mean: 1.0, deviation: 2.0 }, Normal { mean: 0.0, deviation: 1.0 });
        assert!((unlearned.divergence(retrained) - (2.0_f64.ln() + 2.0 / 8.0 - 0.5)).abs() < 1e-12);
        assert!(retrained.divergence(retrained).abs() < 1e-12);
        assert!((percentile(&[4.0, 1.0, 3.0, 2.0], 0.95) - 3.85).abs() < 1e-12);
    }

    /// Margins of so many models and samples around a mean.
    fn drawn(name: &str, models: usize, samples: usize, mean: f32) -> Vec<Vec<f64>> {
        let stream = |model: usize| Streams::new(3, "test").indexed(name, model as u64);
        (0..models)
            .map(|model| {
                let mut stream = stream(model);
                (0..samples).map(|_| f64::from(stream.normal() + mean)).collect()
            })
            .collect()
    }

    #[test]
    fn alike_models_are_at_chance_and_those_that_leak_are_told() {
        let ids: Vec<u64> = (0..400).collect();
        let retrained = drawn("retrained", 12, 400, 0.0);
        let of = |models: &[Vec<f64>]| metrics(models, &retrained, &ids, 0.3).scalars["likelihood_ratio_attack"];
        let alike = of(&drawn("null", 12, 400, 0.0));
        assert!((alike - 0.5).abs() < 0.015, "{alike}");
        // Two deviations between the means: 84 % where both distributions are known.
        let leaking = of(&drawn("leak", 12, 400, 2.0));
        assert!((0.78..0.85).contains(&leaking), "{leaking}");
    }

    #[test]
    fn constant_margins_are_told_though_their_mean_is_right() {
        let ids: Vec<u64> = (0..100).collect();
        let constant = vec![vec![0.0; 100]; 12];
        let metrics = metrics(&constant, &drawn("retrained", 12, 100, 0.0), &ids, 0.3);
        assert!(metrics.scalars["likelihood_ratio_attack"] > 0.7 && metrics.scalars["klom_median"] > 1.0, "{:?}", metrics.scalars);
    }
}
