//! The runner's timings: who made what, from what, in how much time and with how much work.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use dcu_artifact::{Cost, Holdout, Metrics, Model, Payload as _, Role, role_of};
use serde::Deserialize;
use serde_json::Value;

/// The timings file (docs/contracts.md).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Lineage {
    pub(crate) pipeline: String,
    pub(crate) instances: Vec<Instance>,
}

/// One stage instance.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Instance {
    pub(crate) stage: String,
    pub(crate) instance: String,
    pub(crate) uses: String,
    /// Of the method; nothing for a program from outside.
    #[serde(default)]
    pub(crate) version: Option<u32>,
    pub(crate) label: String,
    #[serde(default)]
    pub(crate) seed: Option<u64>,
    /// Values of matrices by key.
    #[serde(default)]
    pub(crate) coordinates: BTreeMap<String, Value>,
    /// Those that decide the result.
    #[serde(default)]
    pub(crate) parameters: Value,
    pub(crate) seconds: Seconds,
    /// What it computed; nothing, where a program from outside does not say it.
    #[serde(default)]
    pub(crate) cost: Option<Cost>,
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(crate) outputs: BTreeMap<String, MadeOutput>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Seconds {
    pub(crate) total: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MadeOutput {
    pub(crate) schema: String,
    pub(crate) digest: String,
}

/// What a stage behind a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Cluster,
    Offline,
    Condense,
    Prepare,
    Request,
    Reduce,
    Unlearn,
}

impl Phase {
    /// Whether it depends on the request, and so is paid for each.
    fn is_of_request(self) -> bool {
        matches!(self, Self::Request | Self::Reduce | Self::Unlearn)
    }
}

/// Samples forward, samples backward, gradient steps and floating point operations, as [`COUNTS`] has them; means, where it is of several seeds.
pub(crate) type Counts = [f64; 4];

pub(crate) type PickCount = fn(&Cost) -> u64;

pub(crate) const COUNTS: [(&str, PickCount); 4] = [
    ("forward", |cost| cost.forward),
    ("backward", |cost| cost.backward),
    ("steps", |cost| cost.steps),
    ("operations", |cost| cost.operations),
];

/// Where samples backward stand in [`Counts`].
pub(crate) const BACKWARD: usize = 1;

/// What the networks behind one model computed, as far as all stages say it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Costs {
    /// Once, for all requests.
    pub(crate) once: Option<Counts>,
    /// For each request.
    pub(crate) each_request: Option<Counts>,
    /// The share of parameters that its own stage changed.
    pub(crate) changed: Option<f64>,
}

/// Seconds of each phase behind one model, its own stage apart.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Phases {
    pub(crate) cluster: f64,
    pub(crate) offline: f64,
    pub(crate) condense: f64,
    /// What else is prepared before any request.
    pub(crate) prepare: f64,
    pub(crate) request: f64,
    pub(crate) reduce: f64,
    /// The unlearning stage itself; 0 for a model that has forgotten nothing.
    pub(crate) unlearn: f64,
}

impl Phases {
    /// Paid once, for all requests.
    pub(crate) fn once(self) -> f64 {
        self.cluster + self.offline + self.condense + self.prepare
    }

    /// Paid for each request.
    pub(crate) fn each_request(self) -> f64 {
        self.request + self.reduce + self.unlearn
    }
}

impl Lineage {
    /// Reads the timings file.
    ///
    /// # Errors
    /// When it is not of the agreed form.
    pub(crate) fn parse(value: Value) -> anyhow::Result<Self> {
        serde_json::from_value(value).context("the timings file is not of the form that docs/contracts.md gives")
    }

    fn named(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.instance == name)
    }

    /// The instances that wrote one of these metrics, each with what it wrote.
    pub(crate) fn evaluations<'a>(&'a self, by_digest: &BTreeMap<&str, &'a Metrics>) -> impl Iterator<Item = (&'a Instance, &'a Metrics)> {
        self.instances.iter().filter_map(|instance| {
            let mut written = instance.outputs.values().filter(|output| output.schema == "metrics/1");
            Some((instance, *written.find_map(|output| by_digest.get(output.digest.as_str()))?))
        })
    }

    /// The instance that made the model that an evaluation judges.
    pub(crate) fn judged<'a>(&'a self, evaluation: &Instance) -> Option<&'a Instance> {
        self.named(evaluation.inputs.get("model")?.first()?)
    }

    /// The instance that made the model that an audit is of: the first behind the predictions at its input `unlearned`.
    pub(crate) fn audited<'a>(&'a self, audit: &Instance) -> Option<&'a Instance> {
        self.judged(self.named(audit.inputs.get("unlearned")?.first()?)?)
    }

    /// All instances behind this one, itself left out.
    fn ancestors<'a>(&'a self, instance: &'a Instance) -> Vec<&'a Instance> {
        self.ancestors_by(instance, |_| true)
    }

    /// Those that are reached through inputs of such names of its own.
    fn ancestors_by<'a>(&'a self, instance: &'a Instance, is_followed: impl Fn(&str) -> bool) -> Vec<&'a Instance> {
        let mut found: Vec<&Instance> = Vec::new();
        let own = instance.inputs.iter().filter(|(name, _)| is_followed(name)).flat_map(|(_, from)| from);
        let mut open: Vec<&str> = own.map(String::as_str).collect();
        while let Some(parent) = open.pop().map(|name| self.named(name)) {
            let Some(parent) = parent.filter(|parent| !found.iter().any(|known| known.instance == parent.instance)) else { continue };
            found.push(parent);
            open.extend(parent.inputs.values().flatten().map(String::as_str));
        }
        found.sort_by_key(|instance| self.instances.iter().position(|other| other.instance == instance.instance));
        found
    }

    /// The stages that are paid for a model. What depends on the request is paid for each; the rest once, but for the data and the original model, which
    /// are there without any thought of forgetting.
    fn paid_for<'a>(&'a self, model: &'a Instance) -> Vec<(Phase, &'a Instance)> {
        let phase = |instance: &Instance| match instance.uses.as_str() {
            _ if instance.asks() => Some(Phase::Request),
            _ if self.knows_request(instance) => Some(Phase::Reduce),
            _ if instance.only_chooses_samples() || self.is_original(instance) => None,
            "condense/cluster" => Some(Phase::Cluster),
            "train/offline" => Some(Phase::Offline),
            other if other.starts_with("condense/") => Some(Phase::Condense),
            _ => Some(Phase::Prepare),
        };
        let behind = self.ancestors(model).into_iter().filter_map(|instance| Some((phase(instance)?, instance)));
        behind.chain(model.forgets().then_some((Phase::Unlearn, model))).collect()
    }

    /// What a model cost in seconds, phase by phase.
    pub(crate) fn phases(&self, model: &Instance) -> Phases {
        let mut phases = Phases::default();
        for (phase, instance) in self.paid_for(model) {
            let sum = match phase {
                Phase::Cluster => &mut phases.cluster,
                Phase::Offline => &mut phases.offline,
                Phase::Condense => &mut phases.condense,
                Phase::Prepare => &mut phases.prepare,
                Phase::Request => &mut phases.request,
                Phase::Reduce => &mut phases.reduce,
                Phase::Unlearn => &mut phases.unlearn,
            };
            *sum += instance.seconds.total;
        }
        phases
    }

    /// What the networks behind a model computed. Of a program from outside that only chooses samples and does not say what it computed, it is nothing.
    pub(crate) fn costs(&self, model: &Instance) -> Costs {
        let paid = self.paid_for(model);
        let sum = |of_request: bool| {
            let instances = paid.iter().filter(|(phase, _)| phase.is_of_request() == of_request).map(|(_, instance)| instance);
            instances.map(|instance| instance.cost.or_else(|| instance.only_chooses_samples().then(Cost::default))).try_fold(
                Counts::default(),
                |mut sum, cost| {
                    let cost = cost?;
                    sum.iter_mut().zip(COUNTS).for_each(|(sum, (_, pick))| *sum += pick(&cost) as f64);
                    Some(sum)
                },
            )
        };
        Costs { once: sum(false), each_request: sum(true), changed: model.cost.and_then(|cost| cost.changed) }
    }

    /// Whether a stage has the request behind it, or is one.
    fn knows_request(&self, instance: &Instance) -> bool {
        instance.asks() || self.ancestors(instance).into_iter().any(Instance::asks)
    }

    /// Whether a stage makes a model that has no other behind it.
    fn is_original(&self, instance: &Instance) -> bool {
        instance.makes_model() && !self.ancestors(instance).into_iter().any(Instance::makes_model)
    }

    /// The stages behind a model that learned from the training set without knowing of the request: what they learned from the
    /// forgotten data is still in it. A retraining takes the recipe of the model that it is given and not its weights, so that only what its retain set was made with is behind it. Nothing is behind
    /// shards, of which those with forget samples go on from before these, nor behind a last layer that is solved for without the forget set on features that never saw it, as the metrics of the model say.
    pub(crate) fn learned_before_the_request<'a>(&'a self, model: &'a Instance, metrics: &Metrics) -> Vec<&'a str> {
        if model.uses == SISA || model.solves() && trunk_is_unseen(metrics) {
            return Vec::new();
        }
        // The sums that the forget set is taken out of are not what it leaves behind.
        let is_taken_back = |instance: &Instance| model.uses == EXACT && instance.uses == STATISTICS;
        let learned = |instance: &&Instance| {
            !instance.only_chooses_samples() && instance.uses != PATCHES && !is_taken_back(instance) && !self.knows_request(instance)
        };
        let behind = self.ancestors_by(model, |input| model.uses != RETRAIN || input == "retain");
        let mut stages: Vec<&str> = behind.into_iter().filter(learned).map(|instance| instance.stage.as_str()).collect();
        stages.dedup();
        stages
    }

    /// The digests of all datasets, shortened.
    pub(crate) fn dataset_digests(&self) -> BTreeSet<&str> {
        let outputs = self.instances.iter().flat_map(|instance| instance.outputs.values());
        outputs.filter(|output| output.schema == "dataset/1").map(|output| &output.digest[..12.min(output.digest.len())]).collect()
    }
}

/// Whether the layers before a last one that was solved for never saw the training set.
pub(crate) fn trunk_is_unseen(metrics: &Metrics) -> bool {
    metrics.facts.get("ridge").is_some_and(|ridge| ridge["trunk_saw_training_data"] == false)
}

/// Lets shards go on from before the forget set.
const SISA: &str = "unlearn/sisa";
/// Trains from scratch by the recipe of a model.
const RETRAIN: &str = "unlearn/retrain";
/// Solves for a last layer by sums that the forget set is taken out of.
const EXACT: &str = "unlearn/exact";
/// Makes these sums, and solves for a last layer; with a request, without the forget set.
const STATISTICS: &str = "condense/statistics";
/// Learns from held-out images alone.
const PATCHES: &str = "train/patches";

impl Instance {
    /// Whether it solves for a last layer and leaves all others as they are.
    pub(crate) fn solves(&self) -> bool {
        [EXACT, STATISTICS].contains(&self.uses.as_str())
    }

    /// Whether it forgets by training, or solving, anew: no weights of a model that saw the forget set are where it starts.
    pub(crate) fn starts_anew(&self) -> bool {
        self.uses == RETRAIN || self.forgets() && !self.inputs.contains_key("model")
    }

    /// Why it is not what retraining means, where that is known.
    pub(crate) fn is_not_plain_retraining(&self) -> Option<String> {
        match self.uses.as_str() {
            RETRAIN if self.inputs.contains_key("retain") => Some("it learns from a set that stands for the retained samples".to_owned()),
            RETRAIN => None,
            STATISTICS | "train/sisa" if self.inputs.contains_key("request") => None,
            other => Some(format!("it is made by `{other}`")),
        }
    }

    /// Whether it draws up a request, by whatever program.
    fn asks(&self) -> bool {
        self.outputs.values().any(|output| role_of(&output.schema) == Some(Role::Request))
    }

    /// Whether it says what samples there are, or which are for what: nothing is learned from them there.
    fn only_chooses_samples(&self) -> bool {
        let is_choice =
            |output: &MadeOutput| matches!(role_of(&output.schema), Some(Role::Data | Role::Request)) || output.schema == Holdout::SCHEMA;
        !self.outputs.is_empty() && self.outputs.values().all(is_choice)
    }

    /// Whether it trains a network, or takes one over.
    fn makes_model(&self) -> bool {
        self.outputs.values().any(|output| output.schema == Model::SCHEMA)
    }

    /// Whether this stage took a forget set out of a model.
    pub(crate) fn forgets(&self) -> bool {
        self.uses.starts_with("unlearn/")
            || (self.inputs.contains_key("request") || self.inputs.contains_key("retain")) && !self.outputs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lineage() -> Lineage {
        let instance = |name: &str, uses: &str, seconds: f64, inputs: Value| {
            let outputs = match name {
                "data" => json!({ "train": { "schema": "dataset/1", "digest": "d" } }),
                "request" => json!({ "request": { "schema": "request/1", "digest": "r" } }),
                "base" | "offline" | "modular" | "retrain" | "match" => json!({ "model": { "schema": "model/1", "digest": "m" } }),
                _ => json!({}),
            };
            let samples = (10.0 * seconds) as u64;
            let mut cost = json!({ "forward": 3 * samples, "backward": samples, "steps": samples / 10, "operations": 100 * samples });
            if name == "modular" {
                cost["changed"] = json!(0.5);
            }
            json!({ "stage": name, "instance": name, "uses": uses, "label": name, "seed": 1, "coordinates": {}, "seconds": { "total": seconds },
                    "cost": cost, "inputs": inputs, "outputs": outputs })
        };
        Lineage::parse(json!({ "pipeline": "test", "instances": [
            instance("data", "tables/load", 100.0, json!({})),
            instance("base", "train/fit", 50.0, json!({ "dataset": ["data"] })),
            instance("buckets", "condense/cluster", 1.0, json!({ "dataset": ["data"], "model": ["base"] })),
            instance("offline", "train/offline", 2.0, json!({ "dataset": ["data"], "model": ["base"] })),
            instance("condensed", "condense/fdm", 4.0, json!({ "dataset": ["data"], "model": ["offline"], "buckets": ["buckets"] })),
            instance("request", "tables/request", 0.1, json!({ "dataset": ["data"] })),
            instance("reduced", "condense/reduce", 0.2, json!({ "request": ["request"], "condensed": ["condensed"], "buckets": ["buckets"] })),
            instance("modular", "unlearn/modular", 8.0, json!({ "model": ["offline"], "retain": ["reduced"] })),
            instance("folds", "train/ensemble", 90.0, json!({ "model": ["base"], "dataset": ["data"] })),
            instance("match", "unlearn/match", 3.0, json!({ "model": ["base"], "request": ["request"], "ensemble": ["folds"] })),
            instance("retrain", "unlearn/retrain", 40.0, json!({ "model": ["base"], "dataset": ["data"], "request": ["request"] })),
            instance("retrain-reduced", "unlearn/retrain", 4.0, json!({ "model": ["base"], "dataset": ["data"], "request": ["request"], "retain": ["reduced"] })),
        ] })).unwrap()
    }

    #[test]
    fn each_phase_is_counted_once() {
        let lineage = lineage();
        let phases = lineage.phases(lineage.named("modular").unwrap());
        assert_eq!(phases, Phases { cluster: 1.0, offline: 2.0, condense: 4.0, prepare: 0.0, request: 0.1, reduce: 0.2, unlearn: 8.0 });
        assert!((phases.once() - 7.0).abs() < 1e-12 && (phases.each_request() - 8.3).abs() < 1e-12);
        let retrain = lineage.phases(lineage.named("retrain").unwrap());
        assert_eq!((retrain.once(), retrain.unlearn), (0.0, 40.0));
        let matched = lineage.phases(lineage.named("match").unwrap());
        assert_eq!((matched.once(), matched.prepare, matched.each_request()), (90.0, 90.0, 3.1));
        assert_eq!(lineage.phases(lineage.named("base").unwrap()), Phases::default());
    }

    #[test]
    fn what_was_computed_is_counted_once_or_for_each_request() {
        let lineage = lineage();
        let of = |lineage: &Lineage, name| lineage.costs(lineage.named(name).unwrap());
        let modular = of(&lineage, "modular");
        // Clustering, offline phase and condensation; request, reduction and unlearning.
        assert_eq!(modular.once, Some([210.0, 70.0, 7.0, 7000.0]));
        assert_eq!(modular.each_request, Some([249.0, 83.0, 8.0, 8300.0]));
        assert_eq!((modular.changed, of(&lineage, "match").changed), (Some(0.5), None));
        assert_eq!(of(&lineage, "base"), Costs { once: Some(Counts::default()), each_request: Some(Counts::default()), changed: None });
        // A request that is drawn up outside computes nothing, as far as anybody knows; of what else is made outside it is not known.
        let unknown = |name: &str| {
            let mut lineage = lineage.clone();
            lineage.instances.iter_mut().find(|instance| instance.instance == name).unwrap().cost = None;
            let costs = of(&lineage, "modular");
            (costs.once.is_none(), costs.each_request)
        };
        assert_eq!(unknown("request"), (false, Some([246.0, 82.0, 8.0, 8200.0])));
        assert_eq!(unknown("reduced"), (false, None));
        assert_eq!(unknown("offline"), (true, modular.each_request));
    }

    #[test]
    fn what_was_learned_with_the_forgotten_data_is_named() {
        let lineage = lineage();
        let learned = |name| lineage.learned_before_the_request(lineage.named(name).unwrap(), &Metrics::default());
        assert_eq!(learned("modular"), ["base", "buckets", "offline", "condensed"]);
        assert!(learned("retrain").is_empty());
        // Its weights are new, but the images that it learns from were made with what saw the forgotten samples.
        assert_eq!(learned("retrain-reduced"), ["base", "buckets", "offline", "condensed"]);
        let plain = |name| lineage.named(name).unwrap().is_not_plain_retraining();
        assert!(plain("retrain").is_none() && plain("retrain-reduced").unwrap().contains("stands for"));
        assert!(plain("modular").unwrap().contains("unlearn/modular"));
    }

    #[test]
    fn what_is_taken_back_leaves_nothing_behind_but_in_a_trunk_that_saw_it() {
        let instance = |name: &str, uses: &str, inputs: Value, output: &str| {
            json!({ "stage": name, "instance": name, "uses": uses, "label": name, "seconds": { "total": 1.0 }, "inputs": inputs,
                    "outputs": { "output": { "schema": output, "digest": name } } })
        };
        let lineage = |trunk: Value| {
            let instances = json!([
                instance("data", "data/load", json!({}), "dataset/1"),
                trunk,
                instance("sums", "condense/statistics", json!({ "model": ["trunk"], "dataset": ["data"] }), "model/1"),
                instance("request", "data/request", json!({ "dataset": ["data"] }), "request/1"),
                instance("exact", "unlearn/exact", json!({ "model": ["sums"], "statistics": ["sums"], "request": ["request"] }), "model/1"),
                instance("finetune", "unlearn/finetune", json!({ "model": ["sums"], "request": ["request"] }), "model/1"),
            ]);
            Lineage::parse(json!({ "pipeline": "test", "instances": instances })).unwrap()
        };
        let metrics = |saw: bool| {
            let ridge = json!({ "lambda": 1.0, "trunk_saw_training_data": saw });
            Metrics { facts: [("ridge".to_owned(), ridge)].into_iter().collect(), ..Metrics::default() }
        };
        let learned = |lineage: &Lineage, name: &str, saw: bool| {
            let stages = lineage.learned_before_the_request(lineage.named(name).unwrap(), &metrics(saw));
            stages.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let trained = lineage(instance("trunk", "train/fit", json!({ "dataset": ["data"] }), "model/1"));
        assert_eq!(learned(&trained, "exact", true), ["trunk"]);
        assert_eq!(learned(&trained, "finetune", true), ["trunk", "sums"]);
        let imported = lineage(instance("trunk", "train/import", json!({ "dataset": ["data"] }), "model/1"));
        assert!(learned(&imported, "exact", false).is_empty());
        let patches = lineage(instance("trunk", "train/patches", json!({ "test": ["data"] }), "model/1"));
        assert_eq!((learned(&patches, "exact", false).len(), learned(&patches, "finetune", true)), (0, vec!["sums".to_owned()]));
    }
}
