//! `attack/evaluate`: what a model does on retain, forget and test samples, and what an attack makes of it.

use std::collections::BTreeSet;

use dcu_artifact::{Array, Dataset, Holdout, Metrics, Model, Request, SampleId};
use dcu_nn::evaluate::{Judgement, judge};
use dcu_nn::rng::Streams;
use dcu_nn::{Samples, model, ops};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
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
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Accuracies on retain, forget and test samples, the membership attack, and the losses behind them";
    // The draws of the attack are the same for every model, so that methods are compared on the same samples.
    const USES_SEED: bool = false;
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
        let evaluation = Evaluation { dataset: &dataset, test: &test, request: &request, roles: &roles, seen: &seen, unseen: &unseen };
        context.progress().phase("scores");
        context.write("metrics", &evaluation.metrics()?)
    }
}

/// Rows of the training and the test set by what they are for.
struct Roles {
    retain: Vec<usize>,
    forget: Vec<usize>,
    test: Vec<usize>,
}

impl Roles {
    fn new(dataset: &Dataset, test: &Dataset, holdout: &Holdout, request: &Request) -> anyhow::Result<Self> {
        let held: BTreeSet<u64> = holdout.remembrance.iter().chain(&holdout.validation).chain(&holdout.test).copied().collect();
        if let Some(id) = request.forget.iter().chain(&request.retain).find(|id| held.contains(id)) {
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
            test: rows("test", test, &holdout.test)?,
        })
    }
}

struct Evaluation<'a> {
    dataset: &'a Dataset,
    test: &'a Dataset,
    request: &'a Request,
    roles: &'a Roles,
    seen: &'a Judgement,
    unseen: &'a Judgement,
}

impl Evaluation<'_> {
    fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut metrics = Metrics::default();
        metrics.facts.insert("class_names".into(), json!(self.dataset.facts.class_names));
        metrics.facts.insert("forgotten_classes".into(), json!(self.request.facts.classes));
        metrics.facts.insert(
            "counts".into(),
            json!({
                "retain": self.roles.retain.len(), "forget": self.roles.forget.len(), "test": self.remaining_test().len(),
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
        self.request.facts.classes.contains(&class)
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
            "share of the test samples of classes that are not forgotten whole that is classified rightly",
            "no class remains",
        );
        if !self.request.facts.classes.is_empty() {
            let forgotten = roles.test.iter().copied().filter(|&row| self.is_forgotten(test.labels[row]));
            let accuracy = unseen.accuracy(&test.labels, forgotten);
            add(
                "test_forgotten_accuracy",
                accuracy,
                "share of the test samples of forgotten classes that is classified rightly",
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
            ("test", &roles.test, &test.labels, unseen),
        ];
        for (name, rows, labels, judgement) in sets {
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
            ("test", &roles.test, &test.ids, unseen),
        ];
        for (name, rows, ids, judgement) in sets {
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
            let reason = format!(
                "{} pairs of a forget sample and an unseen sample of its class are too few; {FEWEST_PAIRS} are needed",
                members.len()
            );
            metrics.absent.insert("mia_accuracy".into(), reason);
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
