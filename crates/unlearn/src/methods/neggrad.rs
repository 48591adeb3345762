//! `unlearn/neggrad`: each step goes down the slope of a batch of retain samples and up that of a batch of forget samples (NegGrad+ in Kurmanji et al., arXiv 2302.09880, whose
//! settings are the defaults; normalisation in eval mode, as there).

use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::Rule;
use dcu_nn::{Network, Trainable};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct NegGrad;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How much the loss of the retain samples counts; that of the forget samples counts the rest, negative.
    alpha: f64,
    /// Passes over the retain samples.
    epochs: usize,
    /// The share of the retain set that each pass takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's; each step takes as many forget samples as retain samples. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of SGD.
    lr: f64,
    /// How much of the last step is kept.
    momentum: f64,
    /// Added to the gradient, times the parameter.
    weight_decay: f64,
    /// Samples of each kind in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { alpha: 0.95, epochs: 10, share: 1.0, budget: None, lr: 0.01, momentum: 0.9, weight_decay: 5e-4, batch: 128 }
    }
}

impl Unlearn for NegGrad {
    const NAME: &'static str = "neggrad";
    const SUMMARY: &'static str = "Steps down the slope of retain samples and up that of forget samples at once (NegGrad+)";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::share("alpha", parameters.alpha)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::not_negative("momentum", parameters.momentum)?;
        check::not_negative("weight_decay", parameters.weight_decay)?;
        check::at_least("batch", 1, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain) = (task.forget.clone(), task.retain.clone());
        let of_batch = parameters.batch.min(forget.len());
        let share = task.share_beside(parameters.budget, (parameters.epochs, parameters.share), [parameters.batch, of_batch])?;
        let network = task.original()?;
        let trainable = Trainable::all(network.graph());
        let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: parameters.weight_decay };
        let course = Course { rule, modes: network::all(Mode::EVAL), ..Course::adam(&network, parameters.epochs, parameters.lr) };
        let streams = task.streams.clone();
        task.teach(network, &course, |pupil, epoch| {
            let drawn = pupil.drawn("draw", retain.len(), share);
            // Forget samples one after the other, in a new order when they have all had their turn.
            let mut turns = (0..).flat_map(|turn| streams.indexed(&format!("forget {turn}"), epoch as u64).permutation(forget.len()));
            pupil.pass("neggrad", &retain, &drawn, parameters.batch, |network, batch| {
                let rows: Vec<usize> = turns.by_ref().take(of_batch).collect();
                let logits = network.judge(&forget.batch(&rows)?.0, &trainable)?;
                let (down, up) = (batch.cross_entropy()? * parameters.alpha, forget.loss(&logits, &rows, 0.0)? * (1.0 - parameters.alpha));
                Ok((down? - up?)?)
            })
        })
    }
}
