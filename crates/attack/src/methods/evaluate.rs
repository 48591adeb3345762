//! `attack/evaluate`: what a model does on retain, forget and test samples, and what an attack makes of it.

use std::collections::BTreeSet;

use dcu_artifact::{Array, Dataset, Holdout, Metrics, Model, Request, SampleId};
use dcu_nn::evaluate::{Judgement, judge};
use dcu_nn::rng::Streams;
use dcu_nn::{Samples, model, ops};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::logistic;
use crate::membership::{Comparison, FEWEST_PAIRS};

pub(crate) struct Evaluate;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for Evaluate {
    const NAME: &'static str = "evaluate";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Accuracies on retain, forget and test samples, the membership attack, and the losses behind them";
    // The draws of the attack are the same for every model, so that methods are compared on the same samples.
    const USES_SEED: bool = false;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Dataset>("test"),
        Input::one::<Holdout>("holdout"),
        Input::one::<Request>("request"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Metrics>("metrics")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let trained: Model = context.read("model")?;
        let dataset: Dataset = context.read("dataset")?;
        let test: Dataset = context.read("test")?;
        let holdout: Holdout = context.read("holdout")?;
        let request: Request = context.read("request")?;
        model::check_fit(&trained, &dataset)?;
        model::check_fit(&trained, &test)?;
        let roles = Roles::new(&dataset, &test, &holdout, &request)?;
        let network = model::to_network(&trained)?;
        context.progress().phase("predictions");
        let seen = judge(&network, &Samples::of_whole_dataset(&dataset))?;
        let unseen = judge(&network, &Samples::of_whole_dataset(&test))?;
        let forgotten_classes = forgotten_classes(&dataset, &roles.retain);
        let evaluation = Evaluation { dataset: &dataset, test: &test, roles: &roles, forgotten_classes, seen: &seen, unseen: &unseen };
        context.progress().phase("scores");
        let mut metrics = evaluation.metrics()?;
        if let Some(ridge) = &trained.facts.ridge {
            metrics.facts.insert("ridge".into(), json!(ridge));
        }
        context.write("metrics", &metrics)
    }
}

/// Rows of the training and the test set by what they are for.
struct Roles {
    retain: Vec<usize>,
    forget: Vec<usize>,
    /// Forgotten by earlier requests.
    earlier: Vec<usize>,
    test: Vec<usize>,
}

impl Roles {
    fn new(dataset: &Dataset, test: &Dataset, holdout: &Holdout, request: &Request) -> anyhow::Result<Self> {
        let held: BTreeSet<u64> = holdout.remembrance.iter().chain(&holdout.validation).chain(&holdout.test).copied().collect();
        if let Some(id) = request.forget.iter().chain(&request.retain).chain(&request.earlier).find(|id| held.contains(id)) {
            let message = format!("sample {} is held out, but the request counts it as trained on", SampleId(*id));
            return Err(Failure::new(message, "make request and holdout from the same data").into());
        }
        let rows = |what: &str, set: &Dataset, ids: &[u64]| {
            set.rows_of(ids).map_err(|id| {
                Failure::new(
                    format!("{what} sample {id} is not in the dataset"),
                    "evaluate with the data that holdout and request were made from",
                )
            })
        };
        Ok(Self {
            retain: rows("retain", dataset, &request.retain)?,
            forget: rows("forget", dataset, &request.forget)?,
            earlier: rows("earlier forgotten", dataset, &request.earlier)?,
            test: rows("test", test, &holdout.test)?,
        })
    }
}

/// The classes of which no sample is retained, by whatever way they were forgotten.
fn forgotten_classes(dataset: &Dataset, retain: &[usize]) -> BTreeSet<u32> {
    let retained: BTreeSet<u32> = retain.iter().map(|&row| dataset.labels[row]).collect();
    (0..dataset.classes() as u32).filter(|class| !retained.contains(class)).collect()
}

struct Evaluation<'a> {
    dataset: &'a Dataset,
    test: &'a Dataset,
    roles: &'a Roles,
    forgotten_classes: BTreeSet<u32>,
    seen: &'a Judgement,
    unseen: &'a Judgement,
}

impl Evaluation<'_> {
    fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut metrics = Metrics::default();
        metrics.facts.insert("class_names".into(), json!(self.dataset.facts.class_names));
        metrics.facts.insert("forgotten_classes".into(), json!(self.forgotten_classes));
        metrics.facts.insert(
            "counts".into(),
            json!({
                "retain": self.roles.retain.len(), "forget": self.roles.forget.len(), "earlier": self.roles.earlier.len(),
                "test": self.remaining_test().len(), "test_forgotten": self.roles.test.len() - self.remaining_test().len(),
            }),
        );
        self.accuracies(&mut metrics);
        self.per_class(&mut metrics);
        self.losses(&mut metrics);
        self.confusion(&mut metrics);
        self.membership_attack(&mut metrics)?;
        Ok(metrics)
    }

    fn is_forgotten(&self, class: u32) -> bool {
        self.forgotten_classes.contains(&class)
    }

    fn remaining_test(&self) -> Vec<usize> {
        self.roles.test.iter().copied().filter(|&row| !self.is_forgotten(self.test.labels[row])).collect()
    }

    fn accuracies(&self, metrics: &mut Metrics) {
        let Self { dataset, test, roles, seen, unseen, .. } = self;
        let mut add = |name: &str, value: Option<f64>, definition: &str, reason: &str| match value {
            Some(value) => metrics.scalar(name, value, "fraction", definition),
            None => {
                metrics.absent.insert(name.to_owned(), reason.to_owned());
            }
        };
        let retain = seen.accuracy(&dataset.labels, roles.retain.iter().copied());
        add("retain_accuracy", retain, "share of the retain set that is classified by its label", "the retain set is empty");
        let forget = seen.accuracy(&dataset.labels, roles.forget.iter().copied());
        add("forget_accuracy", forget, "share of the forget set that is classified by its (poisoned) label", "the forget set is empty");
        let remaining = unseen.accuracy(&test.labels, self.remaining_test());
        add(
            "test_accuracy",
            remaining,
            "share of the test samples that is classified rightly, those of classes of which no sample is retained left out",
            "no class remains",
        );
        if !roles.earlier.is_empty() {
            let earlier = seen.accuracy(&dataset.labels, roles.earlier.iter().copied());
            add(
                "earlier_accuracy",
                earlier,
                "share of the samples that earlier requests forgot that is classified by its (poisoned) label",
                "no sample was forgotten earlier",
            );
        }
        if !self.forgotten_classes.is_empty() {
            let forgotten = roles.test.iter().copied().filter(|&row| self.is_forgotten(test.labels[row]));
            let accuracy = unseen.accuracy(&test.labels, forgotten);
            add(
                "test_forgotten_accuracy",
                accuracy,
                "share of the test samples of classes of which no sample is retained that is classified rightly",
                "there is no such sample",
            );
        }
        if let Some(original) = &dataset.original_labels {
            let restored = seen.accuracy(original, roles.forget.iter().copied());
            add(
                "forget_original_accuracy",
                restored,
                "share of the forget set that is classified by its label before poisoning",
                "the forget set is empty",
            );
        }
    }

    fn per_class(&self, metrics: &mut Metrics) {
        let Self { dataset, test, roles, seen, unseen, .. } = self;
        let sets = [
            ("retain", &roles.retain, &dataset.labels, seen),
            ("forget", &roles.forget, &dataset.labels, seen),
            ("earlier", &roles.earlier, &dataset.labels, seen),
            ("test", &roles.test, &test.labels, unseen),
        ];
        for (name, rows, labels, judgement) in sets.into_iter().filter(|(name, rows, ..)| *name != "earlier" || !rows.is_empty()) {
            let of_class = |class: u32| rows.iter().copied().filter(move |&row| labels[row] == class);
            let accuracies: Vec<Option<f64>> =
                (0..dataset.classes() as u32).map(|class| judgement.accuracy(labels, of_class(class))).collect();
            let present = accuracies.iter().enumerate().filter_map(|(class, accuracy)| accuracy.map(|accuracy| [class as f64, accuracy]));
            let values: Vec<f64> = present.flatten().collect();
            let definition = format!("class and accuracy of each class with samples in the {name} set, [classes, 2]");
            metrics.array(
                &format!("{name}_accuracy_per_class"),
                Array::new(vec![values.len() / 2, 2], values),
                "class, fraction",
                &definition,
            );
        }
    }

    fn losses(&self, metrics: &mut Metrics) {
        let Self { dataset, test, roles, seen, unseen, .. } = self;
        let sets = [
            ("retain", &roles.retain, &dataset.ids, seen),
            ("forget", &roles.forget, &dataset.ids, seen),
            ("earlier", &roles.earlier, &dataset.ids, seen),
            ("test", &roles.test, &test.ids, unseen),
        ];
        for (name, rows, ids, judgement) in sets.into_iter().filter(|(name, rows, ..)| *name != "earlier" || !rows.is_empty()) {
            let losses = rows.iter().map(|&row| judgement.losses[row]).collect();
            metrics.array(
                &format!("{name}_losses"),
                Array::vector(losses),
                "nat",
                &format!("cross-entropy of each {name} sample; ids in `{name}_ids`"),
            );
            metrics.ids.insert(format!("{name}_ids"), rows.iter().map(|&row| ids[row]).collect());
        }
    }

    /// The interclass confusion test (Goel et al., arXiv 2201.06640), where labels were swapped between two classes.
    fn confusion(&self, metrics: &mut Metrics) {
        let Some(original) = &self.dataset.original_labels else { return };
        let changed = || (0..self.dataset.len()).filter(|&row| self.dataset.labels[row] != original[row]);
        let swapped: BTreeSet<u32> = changed().flat_map(|row| [self.dataset.labels[row], original[row]]).collect();
        if swapped.len() != 2 {
            let reason = format!("the labels of {} classes were changed, not of two", swapped.len());
            metrics.absent.insert("interclass_confusion".into(), reason);
            return;
        }
        let rows: Vec<usize> = self.roles.test.iter().copied().filter(|&row| swapped.contains(&self.test.labels[row])).collect();
        let prediction = |row: usize| self.unseen.predictions[row];
        let share = |count: usize| count as f64 / rows.len().max(1) as f64;
        let wrong = rows.iter().filter(|&&row| prediction(row) != self.test.labels[row]).count();
        let exchanged = rows.iter().filter(|&&row| prediction(row) != self.test.labels[row] && swapped.contains(&prediction(row))).count();
        metrics.scalar(
            "interclass_error",
            share(wrong),
            "fraction",
            "share of the test samples of the two swapped classes that is classified wrongly",
        );
        metrics.scalar(
            "interclass_confusion",
            share(exchanged),
            "fraction",
            "share of the test samples of the two swapped classes that is taken for the other",
        );
    }

    fn membership_attack(&self, metrics: &mut Metrics) -> anyhow::Result<()> {
        let streams = Streams::new(0, "attack/evaluate");
        let comparison = Comparison::draw(self.dataset, &self.roles.forget, self.test, &self.roles.test, &streams);
        let classes = self.dataset.classes();
        let logits = self.unseen.logits.select(&comparison.others);
        let logits = dcu_nn::Tensor::from_vec(logits.data, (comparison.others.len(), classes), &dcu_nn::Device::Cpu)?;
        let others =
            if comparison.others.is_empty() { Vec::new() } else { ops::cross_entropy_per_sample(&logits, &comparison.other_labels)? };
        let members: Vec<f64> = comparison.members.iter().map(|&row| self.seen.losses[row]).collect();
        metrics.facts["counts"]["attack_pairs"] = json!(members.len());
        metrics.ids.insert("member_ids".into(), comparison.members.iter().map(|&row| self.dataset.ids[row]).collect());
        metrics.ids.insert("nonmember_ids".into(), comparison.others.iter().map(|&row| self.test.ids[row]).collect());
        if members.len() < FEWEST_PAIRS {
            metrics.absent.insert("mia_accuracy".into(), too_few(members.len()));
        } else {
            let definition = "mean accuracy over ten stratified splits of a logistic regression on the loss that tells forget samples from as many test \
                              samples with the same class histogram; 0.5 is chance";
            metrics.scalar("mia_accuracy", logistic::split_accuracy(&members, &others, &streams), "fraction", definition);
        }
        let definition = "cross-entropy of each unseen sample of the attack, under the label of the forget sample it stands against; ids in `nonmember_ids`";
        metrics.array("nonmember_losses", Array::vector(others), "nat", definition);
        Ok(())
    }
}

/// Why there is no membership attack.
fn too_few(pairs: usize) -> String {
    let counted = match pairs {
        0 => "there is no pair of a forget sample and an unseen sample of its class".to_owned(),
        1 => "1 pair of a forget sample and an unseen sample of its class is too few".to_owned(),
        several => format!("{several} pairs of a forget sample and an unseen sample of its class are too few"),
    };
    format!("{counted}; {FEWEST_PAIRS} are needed")
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation, RequestFacts};

    use super::*;

    fn dataset(labels: &[u32], first: u64) -> Dataset {
        Dataset {
            images: Array::new(vec![labels.len(), 1, 1, 1], vec![0; labels.len()]),
            labels: labels.to_vec(),
            original_labels: None,
            ids: (first..).take(labels.len()).collect(),
            facts: DatasetFacts {
                source: "test".into(),
                class_names: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
                normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
                names: None,
            },
        }
    }

    /// A judgement that predicts these classes.
    fn judgement(predictions: &[u32]) -> Judgement {
        let count = predictions.len();
        Judgement { losses: vec![0.5; count], predictions: predictions.to_vec(), logits: Array::new(vec![count, 4], vec![0.0; 4 * count]) }
    }

    /// Samples 0 to 7 of the classes 0, 0, 1, 1, 2, 2, 3, 3, of which some are forgotten; test samples 100 to 107 of the same classes.
    fn evaluated(forget: &[u64], earlier: &[u64], predictions: &[u32; 8], test_predictions: &[u32; 8]) -> Metrics {
        let (dataset, test) = (dataset(&[0, 0, 1, 1, 2, 2, 3, 3], 0), dataset(&[0, 0, 1, 1, 2, 2, 3, 3], 100));
        let retain = (0..8).filter(|id| !forget.contains(id) && !earlier.contains(id)).collect();
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: !earlier.is_empty() };
        let request = Request { forget: forget.to_vec(), retain, earlier: earlier.to_vec(), facts };
        let holdout = Holdout { train: (0..8).collect(), remembrance: vec![], validation: vec![], test: (100..108).collect() };
        let roles = Roles::new(&dataset, &test, &holdout, &request).unwrap();
        let forgotten_classes = forgotten_classes(&dataset, &roles.retain);
        let (seen, unseen) = (judgement(predictions), judgement(test_predictions));
        Evaluation { dataset: &dataset, test: &test, roles: &roles, forgotten_classes, seen: &seen, unseen: &unseen }.metrics().unwrap()
    }

    #[test]
    fn a_class_without_retained_samples_is_counted_apart_however_it_went() {
        // Class 2 goes by its ids, class 3 half now and half earlier; the request names no class.
        let metrics = evaluated(&[4, 5, 6], &[7], &[0, 0, 1, 1, 0, 0, 0, 0], &[0, 0, 1, 0, 2, 0, 0, 0]);
        assert_eq!(metrics.facts["forgotten_classes"], json!([2, 3]));
        assert_eq!((metrics.scalars["test_accuracy"], metrics.scalars["test_forgotten_accuracy"]), (0.75, 0.25));
        assert_eq!((&metrics.facts["counts"]["test"], &metrics.facts["counts"]["test_forgotten"]), (&json!(4), &json!(4)));
        let metrics = evaluated(&[4, 6], &[7], &[0; 8], &[0, 0, 1, 1, 2, 2, 3, 0]);
        assert_eq!((metrics.scalars["test_accuracy"], metrics.scalars["test_forgotten_accuracy"]), (1.0, 0.5));
        let metrics = evaluated(&[4], &[], &[0; 8], &[0; 8]);
        assert!(!metrics.scalars.contains_key("test_forgotten_accuracy"));
        assert_eq!(metrics.scalars["test_accuracy"], 0.25);
    }

    #[test]
    fn samples_that_were_forgotten_earlier_are_scored_too() {
        let metrics = evaluated(&[0], &[2, 4, 6], &[3, 0, 1, 1, 2, 2, 0, 3], &[0; 8]);
        assert_eq!((metrics.scalars["forget_accuracy"], metrics.scalars["earlier_accuracy"]), (0.0, 2.0 / 3.0));
        assert!(metrics.definitions["earlier_accuracy"].definition.contains("earlier requests"));
        assert_eq!(metrics.ids["earlier_ids"], [2, 4, 6]);
        assert_eq!(metrics.arrays["earlier_losses"].data.len(), 3);
        let alone = evaluated(&[0], &[], &[0; 8], &[0; 8]);
        assert!(!alone.scalars.contains_key("earlier_accuracy") && !alone.ids.contains_key("earlier_ids"));
    }

    #[test]
    fn too_few_pairs_are_counted_in_words() {
        assert!(too_few(0).starts_with("there is no pair"));
        assert!(too_few(1).starts_with("1 pair of"));
        assert!(too_few(7).starts_with("7 pairs of") && too_few(7).ends_with("20 are needed"));
        assert_eq!(evaluated(&[0], &[], &[0; 8], &[0; 8]).absent["mia_accuracy"], too_few(1));
    }
}
