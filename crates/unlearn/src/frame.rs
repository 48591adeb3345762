//! What every method of unlearning shares: its inputs, reading and checking them, writing the model. A method is its rule and its parameters ([`Unlearn`]).

use std::collections::HashSet;
use std::marker::PhantomData;

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Request, Retain, Shards, Statistics, Weights};
use dcu_nn::rng::Streams;
use dcu_nn::train;
use dcu_nn::{Network, Samples, model};
use dcu_stage::{Checkpoints, ChooseDevice, Context, Failure, Input, Method, Output, Progress, Rejected};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The share of parameters below which a method says that it changed next to nothing.
const NEXT_TO_NOTHING: f64 = 1e-4;

/// Whether a method reads an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It is accepted, so that methods can be exchanged for one another, and not read.
    Unused,
    /// It is read where it is given.
    May,
    /// It must be given.
    Must,
}

/// What a method reads beside `model`, `dataset` and `request`, which all read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wires {
    /// What to learn from in place of the whole retain set.
    pub(crate) retain: Need,
    pub(crate) test: Need,
    pub(crate) holdout: Need,
    pub(crate) ensemble: Need,
    pub(crate) weights: Need,
    pub(crate) statistics: Need,
    pub(crate) shards: Need,
}

impl Wires {
    /// Only forget samples and weights.
    pub(crate) const NONE: Self = Self {
        retain: Need::Unused,
        test: Need::Unused,
        holdout: Need::Unused,
        ensemble: Need::Unused,
        weights: Need::Unused,
        statistics: Need::Unused,
        shards: Need::Unused,
    };
    /// The retain set too, or what stands for it.
    pub(crate) const RETAIN: Self = Self { retain: Need::May, ..Self::NONE };

    /// The inputs of a method, the same for all methods but for what is read.
    pub(crate) const fn inputs(self) -> [Input; 10] {
        [
            Input::one::<Model>("model"),
            Input::one::<Dataset>("dataset"),
            Input::one::<Request>("request"),
            input::<Retain>("retain", self.retain),
            input::<Dataset>("test", self.test),
            input::<Holdout>("holdout", self.holdout),
            input::<Ensemble>("ensemble", self.ensemble),
            input::<Weights>("weights", self.weights),
            input::<Statistics>("statistics", self.statistics),
            input::<Shards>("shards", self.shards),
        ]
    }
}

const fn input<P: dcu_artifact::Payload>(name: &'static str, need: Need) -> Input {
    match need {
        Need::Unused => Input::unused::<P>(name),
        Need::May => Input::optional::<P>(name),
        Need::Must => Input::one::<P>(name),
    }
}

/// A method of unlearning: its rule and its parameters. [`Stage`] makes a [`Method`] of it.
pub(crate) trait Unlearn {
    /// As in `uses: unlearn/NAME`.
    const NAME: &'static str;
    const VERSION: u32 = 1;
    const SUMMARY: &'static str;
    const USES_SEED: bool = true;
    /// What it reads beside model, dataset and request.
    const WIRES: Wires = Wires::RETAIN;

    type Parameters: DeserializeOwned + JsonSchema;
    type Checked: Serialize;

    /// Checks ranges and combinations, and fills in what a preset says.
    ///
    /// # Errors
    /// Names the parameter and what would be right.
    fn check(parameters: Self::Parameters) -> Result<Self::Checked, Rejected>;

    /// The network without its forget samples.
    ///
    /// # Errors
    /// When the inputs do not fit the method, or the training diverges.
    fn unlearn(parameters: &Self::Checked, task: &mut Task) -> anyhow::Result<Network>;
}

/// The stage of a method.
pub(crate) struct Stage<M>(PhantomData<M>);

impl<M: Unlearn> Method for Stage<M> {
    const NAME: &'static str = M::NAME;
    const VERSION: u32 = M::VERSION;
    const SUMMARY: &'static str = M::SUMMARY;
    const USES_SEED: bool = M::USES_SEED;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &M::WIRES.inputs();
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = M::Parameters;
    type Checked = M::Checked;

    fn check(parameters: M::Parameters) -> Result<M::Checked, Rejected> {
        M::check(parameters)
    }

    fn run(parameters: &M::Checked, context: &mut Context) -> anyhow::Result<()> {
        let seed = if M::USES_SEED { context.seed() } else { 0 };
        let mut task = Task::read(context, Streams::new(seed, &format!("unlearn/{}", M::NAME)))?;
        let network = M::unlearn(parameters, &mut task)?;
        let unlearned = model::with_facts_of(&network, &task.model)?;
        let changed = model::share_changed(&task.model, &unlearned);
        if changed < NEXT_TO_NOTHING {
            context.progress().note(&format!("next to nothing changed: {:.4} % of the parameters", 100.0 * changed));
        }
        context.changed(changed);
        context.write("model", &unlearned)
    }
}

/// A request with all that there is to carry it out.
pub(crate) struct Task {
    /// The original model.
    pub(crate) model: Model,
    pub(crate) dataset: Dataset,
    pub(crate) request: Request,
    /// What the model must not know, with the labels that it was trained with: the samples of this request and of earlier ones, which an original model
    /// still knows.
    pub(crate) forget: Samples,
    /// What it is to keep: the retain set, or what is given in its place.
    pub(crate) retain: Samples,
    pub(crate) test: Option<Dataset>,
    pub(crate) holdout: Option<Holdout>,
    pub(crate) ensemble: Option<Ensemble>,
    pub(crate) weights: Option<Weights>,
    pub(crate) statistics: Option<Statistics>,
    pub(crate) shards: Option<Shards>,
    pub(crate) streams: Streams,
    pub(crate) progress: Progress,
    pub(crate) checkpoints: Option<Checkpoints>,
}

impl Task {
    /// Reads and checks whatever inputs are given.
    fn read(context: &mut Context, streams: Streams) -> anyhow::Result<Self> {
        let (model, dataset, request): (Model, Dataset, Request) =
            (context.read("model")?, context.read("dataset")?, context.read("request")?);
        let retain: Option<Retain> = context.read_optional("retain")?;
        let mut task = Self::new(model, dataset, request, retain.as_ref(), streams)?;
        task.test = context.read_optional("test")?;
        task.holdout = context.read_optional("holdout")?;
        task.ensemble = context.read_optional("ensemble")?;
        task.weights = context.read_optional("weights")?;
        task.statistics = context.read_optional("statistics")?;
        task.shards = context.read_optional("shards")?;
        task.progress = context.progress();
        task.checkpoints = Some(context.checkpoints());
        if let Some(retain) = &retain {
            let (rows, reach) = (retain.len(), retain.facts.reach);
            let percent = 100.0 * retain.ratio();
            task.progress.note(&format!("learns from {rows} rows in place of the retain set, {percent:.1} % of it; reach: {reach}"));
        }
        Ok(task)
    }

    /// The task of a request, without what only some methods read.
    ///
    /// # Errors
    /// When the parts do not fit one another.
    pub(crate) fn new(model: Model, dataset: Dataset, request: Request, retain: Option<&Retain>, streams: Streams) -> anyhow::Result<Self> {
        model::check_fit(&model, &dataset)?;
        let gone = [request.forget.as_slice(), &request.earlier].concat();
        let forget = Samples::of_ids(&dataset, &gone)?;
        let retain = match retain {
            Some(retain) => {
                refuse_forgotten(retain, &gone)?;
                Samples::of_retain(&dataset, retain)?
            }
            None => Samples::of_ids(&dataset, &request.retain)?,
        };
        Ok(Self {
            model,
            dataset,
            request,
            forget,
            retain,
            test: None,
            holdout: None,
            ensemble: None,
            weights: None,
            statistics: None,
            shards: None,
            streams,
            progress: Progress::silent(),
            checkpoints: None,
        })
    }

    /// The original network.
    ///
    /// # Errors
    /// When the model is broken.
    pub(crate) fn original(&self) -> anyhow::Result<Network> {
        Ok(model::to_network(&self.model)?)
    }

    /// Another network of the same architecture with fresh weights.
    ///
    /// # Errors
    /// When the model is broken.
    pub(crate) fn fresh(&self) -> anyhow::Result<Network> {
        Ok(Network::initialised(&model::architecture(&self.model)?, &self.streams)?)
    }

    /// The ids of [`Self::forget`].
    pub(crate) fn forgotten(&self) -> Vec<u64> {
        [self.request.forget.as_slice(), &self.request.earlier].concat()
    }

    /// Where the samples with these ids are in the dataset.
    ///
    /// # Errors
    /// When one is not there.
    pub(crate) fn rows_of(&self, ids: &[u64]) -> Result<Vec<usize>, Failure> {
        self.dataset.rows_of(ids).map_err(|id| {
            Failure::new(format!("sample {id} of the request is not in the dataset"), "make the request from the same dataset")
        })
    }

    /// The classes of which no sample is retained, by label.
    pub(crate) fn classes_gone(&self) -> Vec<u32> {
        let left: HashSet<u32> = self.retain.labels().iter().copied().collect();
        (0..self.dataset.classes() as u32).filter(|class| !left.contains(class)).collect()
    }

    /// The validation samples of the classes that are left; without the others, which are not to be learnt.
    ///
    /// # Errors
    /// When the inputs that hold them are not given.
    pub(crate) fn validation(&self, why: &str) -> anyhow::Result<Samples> {
        self.held_out(why, self.retain.labels())
    }

    /// The validation samples of the classes that the forget samples have.
    ///
    /// # Errors
    /// When the inputs that hold them are not given, or hold none.
    pub(crate) fn unseen(&self, why: &str) -> anyhow::Result<Samples> {
        self.held_out(why, self.forget.labels())
    }

    fn held_out(&self, why: &str, classes: &[u32]) -> anyhow::Result<Samples> {
        let (Some(test), Some(holdout)) = (&self.test, &self.holdout) else {
            let message = format!("{why}, which needs the inputs `test` and `holdout`");
            return Err(Failure::new(message, "add `test: data.test, holdout: holdout` to the stage's `in:`").into());
        };
        model::check_fit(&self.model, test)?;
        Ok(train::validation_samples(test, holdout, Some(classes))?)
    }

    /// Samples backward that retraining takes.
    ///
    /// # Errors
    /// When the model's recipe is broken.
    pub(crate) fn retraining(&self) -> anyhow::Result<usize> {
        Ok(model::recipe(&self.model)?.epochs * self.request.retain.len())
    }
}

/// Refuses rows to learn from that are to be forgotten.
fn refuse_forgotten(retain: &Retain, gone: &[u64]) -> Result<(), Failure> {
    let gone: HashSet<u64> = gone.iter().copied().collect();
    match retain.ids.iter().find(|id| gone.contains(id)) {
        Some(id) => {
            let message = format!("the rows to learn from hold the forgotten sample {}", dcu_artifact::SampleId(*id));
            Err(Failure::new(message, "make `retain` from the same request"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dcu_artifact::{Array, DatasetFacts, Normalisation, Reach, RequestFacts, RetainFacts};
    use dcu_nn::recipe::Recipe;
    use dcu_nn::{Architecture, Family};

    use super::*;

    /// An MLP, which has neither statistics of the batch nor dropout, on four images of three classes, of which two are to be forgotten.
    pub(crate) fn task() -> Task {
        let (dataset, request) = (dataset(), request());
        let architecture = Architecture { widths: vec![5, 4], ..Architecture::of_family(Family::Mlp, [1, 2, 3], 3) };
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        let model = model::to_artifact(&network, &Recipe::default(), &dataset).unwrap();
        Task::new(model, dataset, request, None, Streams::new(1, "test")).unwrap()
    }

    fn dataset() -> Dataset {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let pixels = (0..4 * 6).map(|value| (value * 37 % 256) as u8).collect();
        let images = Array::new(vec![4, 1, 2, 3], pixels);
        Dataset { images, labels: vec![0, 1, 2, 1], original_labels: None, ids: vec![7, 8, 9, 10], facts }
    }

    fn request() -> Request {
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: false };
        Request { forget: vec![9, 7], retain: vec![8, 10], earlier: vec![], facts }
    }

    #[test]
    fn a_class_is_gone_where_none_of_it_is_retained() {
        let task = task();
        assert_eq!((task.classes_gone(), task.forget.labels(), task.retain.labels()), (vec![0, 2], [2, 0].as_slice(), [1, 1].as_slice()));
    }

    #[test]
    fn rows_to_learn_from_stand_in_the_place_of_the_retain_set_and_none_is_forgotten() {
        let original = task();
        let retain = |ids: Vec<u64>| Retain {
            weights: vec![2.0; ids.len()],
            ids,
            condensed_images: Array::new(vec![1, 1, 2, 3], vec![0.5; 6]),
            condensed_targets: Array::new(vec![1, 3], vec![0.25, 0.0, 0.75]),
            condensed_buckets: vec![0],
            condensed_weights: vec![1.0],
            facts: RetainFacts {
                maker: "test".into(),
                retain: 2,
                reach: Reach::Bucket,
                normalisation: original.dataset.facts.normalisation.clone(),
                shown: None,
            },
        };
        let with = |ids| Task::new(original.model.clone(), dataset(), request(), Some(&retain(ids)), Streams::new(1, "test"));
        let task = with(vec![10]).unwrap();
        assert_eq!((task.retain.labels(), task.retain.probabilities(3)), ([1, 2].as_slice(), vec![0.0, 1.0, 0.0, 0.25, 0.0, 0.75]));
        let error = with(vec![10, 7]).map(drop).unwrap_err().to_string();
        assert!(error.contains("hold the forgotten sample train:7"), "{error}");
    }

    /// `--set STAGE.uses=unlearn/METHOD` swaps a method in one line.
    #[test]
    fn every_method_takes_the_same_inputs() {
        let wires = |wires: Wires| wires.inputs().map(|input| (input.name, input.schema));
        assert_eq!(wires(Wires::NONE), wires(Wires { ensemble: Need::Must, test: Need::May, ..Wires::RETAIN }));
    }
}
