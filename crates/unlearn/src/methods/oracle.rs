//! `unlearn/match`: the model learns of each forget sample what models say that never saw it, and keeps to the labels of a share of the retain set. This is
//! oracle matching (Georgiev et al., arXiv 2410.23232) towards cross-fitted models, which are trained once, before any request.
//!
//! Its limits: those models saw the other forget samples; outputs come to match, weights need not; and a judge must use other models than these.

use dcu_artifact::{Array, SampleId};
use dcu_nn::{Network, Samples};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, Fall, check, within_budget};
use crate::frame::{Need, Task, Unlearn, Wires};
use crate::targets::probabilities;

pub(crate) struct Match;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the forget set, which takes in those of earlier requests.
    passes: usize,
    /// The share of the retain set that goes along in each pass, drawn anew each time.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// How much a forget sample counts beside a retain sample.
    forget_weight: f64,
    /// The learning rate of the first step of Adam; it falls evenly to 0.
    lr: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { passes: 8, share: 0.25, budget: None, forget_weight: 1.0, lr: 1e-3, batch: 128 }
    }
}

impl Unlearn for Match {
    const NAME: &'static str = "match";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str =
        "Teaches the model, of each forget sample, the prediction of models that never saw it (an ensemble by folds)";
    const WIRES: Wires = Wires { ensemble: Need::Must, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("passes", 1, parameters.passes)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("forget_weight", parameters.forget_weight)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain) = (task.forget.len(), task.retain.len());
        let weighted = task.forget.clone().with_targets(targets(task)?)?.with_weights(vec![parameters.forget_weight as f32; forget])?;
        let together = Samples::joined(&[&weighted, &task.retain])?;
        let (passes, share) = match parameters.budget {
            Some(budget) => within_budget(budget * task.retraining()? as f64, parameters.passes, [1.0, 1.0], [forget, retain]),
            None => (parameters.passes, parameters.share),
        };
        let network = task.original()?;
        let course = Course { fall: Fall::Linear, ..Course::adam(&network, passes, parameters.lr) };
        task.teach(network, &course, |pupil, _| {
            let drawn = pupil.drawn("draw", retain, share).into_iter().map(|row| forget + row);
            let rows: Vec<usize> = (0..forget).chain(drawn).collect();
            pupil.pass("match", &together, &rows, parameters.batch, |_, batch| batch.cross_entropy())
        })
    }
}

/// What the models that never saw a forget sample say of it, [F, K]: the mean of their logits as probabilities, without the classes that are forgotten whole, of
/// which they saw other samples.
fn targets(task: &Task) -> anyhow::Result<Array<f32>> {
    let ensemble = task.ensemble.as_ref().expect("checked by the frame");
    if ensemble.ids != task.dataset.ids || ensemble.classes() != task.dataset.classes() {
        return Err(Failure::new("the ensemble was trained on another dataset", "make ensemble and request from the same dataset").into());
    }
    let rows = task.rows_of(&task.forgotten())?;
    let mut logits = vec![0.0; rows.len() * ensemble.classes()];
    for (&row, mean) in rows.iter().zip(logits.chunks_exact_mut(ensemble.classes())) {
        let strangers: Vec<usize> = ensemble.strangers_to(row).collect();
        if strangers.is_empty() {
            let message = format!("every model of the ensemble saw the forget sample {}", SampleId(task.dataset.ids[row]));
            return Err(
                Failure::new(message, "take an ensemble that leaves each sample out somewhere, as `train/ensemble` makes it").into()
            );
        }
        for &model in &strangers {
            mean.iter_mut().zip(ensemble.of(model, row)).for_each(|(mean, value)| *mean += value / strangers.len() as f32);
        }
    }
    Ok(probabilities(&Array::new(vec![rows.len(), ensemble.classes()], logits), &task.classes_gone()))
}
