//! `unlearn/modular`: modular unlearning (arXiv 2402.00195). The beginning learns from the reduced retain set and the final is anchored on the
//! remembrance set in turn (the overture); then the intermediate takes one pass over the reduced retain set.

use std::collections::BTreeSet;

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request, Statistics};
use dcu_nn::network::{self, Mode, ModeRule, Modes};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Phase, Prepared};
use dcu_nn::{Family, Network, Part, Samples, Trainable, model};
use dcu_stage::{Checkpoints, Context, Failure, Input, Method, Output, Progress, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) struct Modular;

/// Which classes of the remembrance set the final is anchored on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Anchors {
    /// Those that have a row in the reduced set: a class that is forgotten must not be taught again.
    RetainedClasses,
    /// All, as published.
    AllClasses,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Rounds of the overture.
    overture: usize,
    /// Epochs of the beginning in each round.
    beginning_epochs: usize,
    /// Passes of the final over the remembrance set in each round, one step each; by default the paper's for the network (CNN and VGG-16 10, ViT-tiny 80, the
    /// auto-encoder 50, others 15).
    final_passes: Option<usize>,
    /// The share of the overture, at its end, in which the final is left alone, but for one round at least; by default the paper's (CNN
    /// 5/6, the auto-encoder 1/5, others 1/2).
    final_rest: Option<f64>,
    /// Epochs of the intermediate after the overture.
    intermediate_epochs: usize,
    /// The learning rate of the overture; by default the paper's (CNN 3e-3, others 1e-3).
    overture_lr: Option<f64>,
    /// The learning rate of the intermediate; by default the paper's (CNN 3e-3, ViT-tiny 2e-3, the auto-encoder 1e-3, others 1e-4).
    intermediate_lr: Option<f64>,
    /// Samples in a batch of the reduced set.
    batch: usize,
    /// Samples in a batch of the remembrance set.
    final_batch: usize,
    /// Which parts are in train mode. `published`: all, always.
    modes: ModeRule,
    /// Which classes of the remembrance set the final is anchored on.
    anchors: Anchors,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            overture: 30,
            beginning_epochs: 1,
            final_passes: None,
            final_rest: None,
            intermediate_epochs: 1,
            overture_lr: None,
            intermediate_lr: None,
            batch: 256,
            final_batch: 32,
            modes: ModeRule::Corrected,
            anchors: Anchors::RetainedClasses,
        }
    }
}

/// What the paper uses for a network where the user leaves it open (arXiv 2402.00195).
struct Schedule {
    final_passes: usize,
    rounds_with_final: usize,
    overture_lr: f64,
    intermediate_lr: f64,
}

impl Parameters {
    fn schedule(&self, family: Family) -> Schedule {
        let (passes, rest, overture_lr, intermediate_lr) = match family {
            Family::Cnn => (10, 25.0 / 30.0, 3e-3, 3e-3),
            Family::Vgg16 | Family::Vgg16Bn => (10, 0.5, 1e-3, 1e-4),
            Family::VitTiny => (80, 0.5, 1e-3, 2e-3),
            Family::ConvAutoencoder => (50, 0.2, 1e-3, 1e-3),
            // The MLP's and ResNet-18's; of the others nothing was published.
            Family::Mlp | Family::Resnet18 | Family::WeakCnn | Family::Convnet3 | Family::ConvClassifier | Family::Patches => {
                (15, 0.5, 1e-3, 1e-4)
            }
        };
        // A share below 1 leaves the final at least one round, however short the overture.
        let resting = ((self.final_rest.unwrap_or(rest) * self.overture as f64).round() as usize).min(self.overture.saturating_sub(1));
        Schedule {
            final_passes: self.final_passes.unwrap_or(passes),
            rounds_with_final: self.overture - resting,
            overture_lr: self.overture_lr.unwrap_or(overture_lr),
            intermediate_lr: self.intermediate_lr.unwrap_or(intermediate_lr),
        }
    }

    fn modes(&self, trained: Part) -> Modes {
        match self.modes {
            ModeRule::Published => network::all(Mode::TRAIN),
            ModeRule::Corrected => network::corrected(trained),
        }
    }
}

impl Method for Modular {
    const NAME: &'static str = "modular";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str =
        "Modular unlearning: overture of beginning and final, then one pass of the intermediate, on the reduced set";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::unused::<Dataset>("dataset"),
        Input::unused::<Request>("request"),
        Input::one::<Reduced>("reduced"),
        Input::unused::<Ensemble>("ensemble"),
        Input::unused::<Statistics>("statistics"),
        Input::one::<Dataset>("test"),
        Input::one::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        for (name, value) in [("overture_lr", parameters.overture_lr), ("intermediate_lr", parameters.intermediate_lr)] {
            Rejected::unless(value.is_none_or(|value| value > 0.0 && value.is_finite()), name, format!("`{name}` must be positive"))?;
        }
        for (name, value) in [("final_batch", parameters.final_batch), ("batch", parameters.batch)] {
            Rejected::unless(value > 1, name, format!("`{name}` must be at least 2"))?;
        }
        let rest_fits = parameters.final_rest.is_none_or(|rest| (0.0..1.0).contains(&rest));
        Rejected::unless(rest_fits, "final_rest", "`final_rest` must be at least 0 and below 1, or the final would never be trained")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let offline: Model = context.read("model")?;
        let reduced: Reduced = context.read("reduced")?;
        let test: Dataset = context.read("test")?;
        let holdout: Holdout = context.read("holdout")?;
        model::check_fit(&offline, &test)?;
        if reduced.facts.normalisation != offline.facts.normalisation {
            let remedy = "make model and reduced set from the same dataset";
            return Err(Failure::new("the reduced set is normalised otherwise than the model's training set was", remedy).into());
        }
        let network = model::to_network(&offline)?;
        let online = Online {
            parameters,
            schedule: parameters.schedule(network.architecture().family),
            reduced: &Samples::of_reduced(&reduced),
            remembrance: &remembrance(parameters.anchors, &test, &holdout, &reduced)?,
            streams: &Streams::new(context.seed(), "unlearn/modular"),
            progress: context.progress(),
        };
        if online.remembrance.is_empty() {
            context.progress().note("the remembrance set has no class of the reduced set: the final is left alone");
        }
        let network = online.run(network, context.checkpoints())?;
        context.write("model", &model::with_facts_of(&network, &offline)?)
    }
}

fn remembrance(anchors: Anchors, test: &Dataset, holdout: &Holdout, reduced: &Reduced) -> anyhow::Result<Samples> {
    let rows = test.rows_of(&holdout.remembrance).map_err(|id| {
        Failure::new(format!("sample {id} of the remembrance set is not in the test set"), "make the holdout from the same test set")
    })?;
    let retained: BTreeSet<u32> = reduced.real_labels.iter().chain(&reduced.condensed_labels).copied().collect();
    let keep = |row: &usize| anchors == Anchors::AllClasses || retained.contains(&test.labels[*row]);
    Ok(Samples::of_dataset(test, &rows.into_iter().filter(keep).collect::<Vec<_>>()))
}

struct Online<'a> {
    parameters: &'a Parameters,
    schedule: Schedule,
    reduced: &'a Samples,
    remembrance: &'a Samples,
    streams: &'a Streams,
    progress: Progress,
}

impl Online<'_> {
    /// One optimiser serves all phases: the moments of a part rest while it is frozen. After each round is a safe point.
    fn run(&self, mut network: Network, mut checkpoints: Checkpoints) -> anyhow::Result<Network> {
        let rule = Rule::Adam { weight_decay: 0.0 };
        let (mut optimiser, mut first) = (Optimiser::new(rule), 0);
        if let Some(snapshot) = checkpoints.resume() {
            first = serde_json::from_value(snapshot.position)?;
            (network, optimiser) = train::resume(&network, rule, snapshot.tensors)?;
        }
        for round in first..self.parameters.overture {
            let epochs = self.parameters.beginning_epochs;
            self.pass_over_reduced(&mut network, Part::Beginning, round * epochs, epochs, &mut optimiser)?;
            if round < self.schedule.rounds_with_final && !self.remembrance.is_empty() {
                self.anchor_final(&mut network, round, &mut optimiser)?;
            }
            self.progress.step("overture", round + 1, self.parameters.overture);
            checkpoints.offer(|| Ok(Snapshot { position: json!(round + 1), tensors: train::snapshot(&network, &optimiser)? }))?;
        }
        self.pass_over_reduced(&mut network, Part::Intermediate, 0, self.parameters.intermediate_epochs, &mut optimiser)?;
        if self.parameters.modes == ModeRule::Corrected && self.parameters.intermediate_epochs > 0 {
            self.progress.phase("running averages");
            train::recompute_running_averages(&mut network, self.reduced, Part::Intermediate)?;
        }
        Ok(network)
    }

    fn pass_over_reduced(
        &self,
        network: &mut Network,
        part: Part,
        first: usize,
        epochs: usize,
        optimiser: &mut Optimiser,
    ) -> anyhow::Result<()> {
        let (purpose, rate) = match part {
            Part::Beginning => ("beginning", self.schedule.overture_lr),
            _ => ("intermediate", self.schedule.intermediate_lr),
        };
        self.progress.phase(purpose);
        let trainable = Trainable::parts(network.graph(), &[part]);
        let phase = Phase {
            trainable: &trainable,
            modes: self.parameters.modes(part),
            batch: self.parameters.batch,
            streams: self.streams,
            purpose,
        };
        let prepared = Prepared::new(network, self.reduced, phase)?;
        for epoch in first..first + epochs {
            train::epoch(network, &prepared, phase, epoch as u64, optimiser, rate)?;
        }
        Ok(())
    }

    fn anchor_final(&self, network: &mut Network, round: usize, optimiser: &mut Optimiser) -> anyhow::Result<()> {
        self.progress.phase("final");
        let trainable = Trainable::parts(network.graph(), &[Part::Final]);
        let phase = Phase {
            trainable: &trainable,
            modes: self.parameters.modes(Part::Final),
            batch: self.parameters.final_batch,
            streams: self.streams,
            purpose: "final",
        };
        let prepared = Prepared::new(network, self.remembrance, phase)?;
        for pass in 0..self.schedule.final_passes {
            let index = (round * self.schedule.final_passes + pass) as u64;
            train::accumulated_step(network, &prepared, phase, index, optimiser, self.schedule.overture_lr)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_is_trained_in_as_many_rounds_as_published() {
        let rounds = |parameters: &Parameters, family| parameters.schedule(family).rounds_with_final;
        assert_eq!(rounds(&Parameters::default(), Family::Mlp), 15);
        assert_eq!(rounds(&Parameters::default(), Family::Cnn), 5);
        assert_eq!(rounds(&Parameters { overture: 10, final_rest: Some(0.0), ..Parameters::default() }, Family::Cnn), 10);
    }

    #[test]
    fn the_final_is_trained_in_the_shortest_overture_too() {
        let rounds =
            |overture, final_rest, family| Parameters { overture, final_rest, ..Parameters::default() }.schedule(family).rounds_with_final;
        assert_eq!([1, 2, 3, 6].map(|overture| rounds(overture, None, Family::Cnn)), [1, 1, 1, 1]);
        assert_eq!([0, 1, 2, 4].map(|overture| rounds(overture, None, Family::Mlp)), [0, 1, 1, 2]);
        assert_eq!(rounds(5, Some(0.99), Family::Mlp), 1);
    }

    #[test]
    fn a_rest_that_would_never_train_the_final_is_refused() {
        let rejected = Modular::check(Parameters { final_rest: Some(1.0), ..Parameters::default() }).unwrap_err();
        assert_eq!(rejected.parameter.as_deref(), Some("final_rest"));
    }
}
