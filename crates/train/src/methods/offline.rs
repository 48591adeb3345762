//! `train/offline`: the offline phase (arXiv 2402.00195). In turn the final part learns from the remembrance set S, which the model was never
//! trained on, and the intermediate part from the training set, so that a later request need not touch either for long.

use std::collections::BTreeMap;

use dcu_artifact::{Dataset, Holdout, Model, Tensor};
use dcu_nn::network::{self, Mode, ModeRule, Modes};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Phase, Prepared};
use dcu_nn::{Network, Part, Samples, Trainable, model};
use dcu_stage::{Checkpoints, ChooseDevice, Context, Failure, Input, Method, Output, Progress, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) struct Offline;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How often final and intermediate are trained in turn.
    iterations: usize,
    /// Epochs of the final on the remembrance set in each iteration.
    final_epochs: usize,
    /// Epochs of the intermediate on the training set in each iteration.
    intermediate_epochs: usize,
    /// The learning rate of the final.
    final_lr: f64,
    /// The learning rate of the intermediate.
    intermediate_lr: f64,
    /// Samples in a batch of the remembrance set.
    final_batch: usize,
    /// Samples in a batch of the training set.
    batch: usize,
    /// Which parts are in train mode. `published`: all in the first iteration, none from then on, as the published code happens to do.
    modes: ModeRule,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            iterations: 10,
            final_epochs: 20,
            intermediate_epochs: 20,
            final_lr: 1e-4,
            intermediate_lr: 1e-5,
            final_batch: 32,
            batch: 256,
            modes: ModeRule::Corrected,
        }
    }
}

impl Parameters {
    fn modes(&self, iteration: usize, trained: Part) -> Modes {
        match self.modes {
            ModeRule::Published => network::all(if iteration == 0 { Mode::TRAIN } else { Mode::EVAL }),
            ModeRule::Corrected => network::corrected(trained),
        }
    }
}

impl Method for Offline {
    const NAME: &'static str = "offline";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Prepares a model for modular unlearning, once for all requests";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] =
        &[Input::one::<Dataset>("dataset"), Input::one::<Dataset>("test"), Input::one::<Holdout>("holdout"), Input::one::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        for (name, value) in [("final_lr", parameters.final_lr), ("intermediate_lr", parameters.intermediate_lr)] {
            Rejected::unless(value > 0.0 && value.is_finite(), name, format!("`{name}` must be positive"))?;
        }
        for (name, value) in [("final_batch", parameters.final_batch), ("batch", parameters.batch)] {
            Rejected::unless(value > 1, name, format!("`{name}` must be at least 2"))?;
        }
        Rejected::unless(parameters.iterations > 0, "iterations", "`iterations` must be at least 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let test: Dataset = context.read("test")?;
        let holdout: Holdout = context.read("holdout")?;
        let trained: Model = context.read("model")?;
        model::check_fit(&trained, &dataset)?;
        check_roles(&dataset, &holdout)?;
        let phases = Phases {
            parameters,
            training: &Samples::of_whole_dataset(&dataset),
            remembrance: &Samples::of_ids(&test, &holdout.remembrance)?,
            streams: &Streams::new(context.seed(), "train/offline"),
            progress: context.progress(),
        };
        let network = phases.run(model::to_network(&trained)?, context.checkpoints())?;
        context.write("model", &model::with_facts_of(&network, &trained)?)
    }
}

fn check_roles(dataset: &Dataset, holdout: &Holdout) -> anyhow::Result<()> {
    let train: std::collections::HashSet<u64> = holdout.train.iter().copied().collect();
    match dataset.ids.iter().find(|id| !train.contains(id)) {
        Some(id) => {
            let message = format!("sample {} is trained on, but the holdout was made without it", dcu_artifact::SampleId(*id));
            Err(Failure::new(message, "make the holdout from the same dataset").into())
        }
        None => Ok(()),
    }
}

struct Phases<'a> {
    parameters: &'a Parameters,
    training: &'a Samples,
    remembrance: &'a Samples,
    streams: &'a Streams,
    progress: Progress,
}

impl Phases<'_> {
    /// Each iteration is two steps of the schedule, one of the final and one of the intermediate; after each is a safe point.
    fn run(&self, mut network: Network, mut checkpoints: Checkpoints) -> anyhow::Result<Network> {
        let Parameters { iterations, final_epochs, intermediate_epochs, .. } = *self.parameters;
        let total = iterations * (final_epochs + intermediate_epochs);
        let (mut first, mut done) = (0, 0);
        if let Some(snapshot) = checkpoints.resume() {
            (first, done) = serde_json::from_value(snapshot.position)?;
            network = network.with_tensors(&snapshot.tensors)?;
        }
        for step in first..2 * iterations {
            let part = if step % 2 == 0 { Part::Final } else { Part::Intermediate };
            self.step(&mut network, step / 2, part, || {
                done += 1;
                self.progress.step("epochs", done, total);
            })?;
            checkpoints.offer(|| {
                let tensors: BTreeMap<String, Tensor> = network.to_tensors()?;
                Ok(Snapshot { position: json!([step + 1, done]), tensors })
            })?;
        }
        Ok(network)
    }

    fn step(&self, network: &mut Network, iteration: usize, part: Part, mut epoch_done: impl FnMut()) -> anyhow::Result<()> {
        let parameters = self.parameters;
        let (samples, batch, epochs, rate, purpose) = match part {
            Part::Final => (self.remembrance, parameters.final_batch, parameters.final_epochs, parameters.final_lr, "final"),
            _ => (self.training, parameters.batch, parameters.intermediate_epochs, parameters.intermediate_lr, "intermediate"),
        };
        self.progress.phase(purpose);
        let trainable = Trainable::parts(network.graph(), &[part]);
        let phase = Phase { trainable: &trainable, modes: parameters.modes(iteration, part), batch, streams: self.streams, purpose };
        let prepared = Prepared::new(network, samples, phase)?;
        let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
        for epoch in 0..epochs {
            let index = (iteration * epochs + epoch) as u64;
            train::epoch(network, &prepared, phase, index, &mut optimiser, rate)?;
            epoch_done();
        }
        Ok(())
    }
}
