//! `unlearn/datamodel`: the model learns of the forget samples, and of a share of the retain samples, what it says itself less what the forget samples contributed to it (datamodel
//! matching, Georgiev et al., arXiv 2410.23232).
//!
//! What a sample contributes to a prediction is the difference between the means of the models that were trained on it and of those that were not: an ensemble by halves gives both. Its
//! noise grows with the root of the number of forget samples over that of the models, so few models say little; the authors took 20,000, and linear datamodels.

use dcu_artifact::{Array, Ensemble};
use dcu_nn::{Network, Samples, Tensor, evaluate, ops};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, Fall, check};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Datamodel;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How much of what the forget samples contributed is taken away.
    scale: f64,
    /// Passes over the forget samples.
    epochs: usize,
    /// The share of the retain set that goes along in each of them, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it, and where that is not enough, `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of the first step of Adam; it falls evenly to 0.
    lr: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { scale: 0.95, epochs: 8, share: 0.25, budget: None, lr: 1e-3, batch: 128 }
    }
}

impl Unlearn for Datamodel {
    const NAME: &'static str = "datamodel";
    const SUMMARY: &'static str =
        "Learns what the model says itself, less what the forget samples contributed to it by an ensemble of halves";
    const WIRES: Wires = Wires { ensemble: Need::Must, ..Wires::NONE };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::not_negative("scale", parameters.scale)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let ensemble = task.ensemble.as_ref().expect("checked by the frame");
        if ensemble.ids != task.dataset.ids || ensemble.classes() != task.dataset.classes() {
            return Err(
                Failure::new("the ensemble was trained on another dataset", "make ensemble and request from the same dataset").into()
            );
        }
        let (forget, retain) = (task.forget.len(), task.retain.len());
        let together = Samples::joined(&[&task.forget, &task.retain])?;
        let network = task.original()?;
        let mut targets = evaluate::judge(&network, &together)?.logits;
        let (gone, all) = (task.rows_of(&task.forgotten())?, [task.forgotten(), task.request.retain.clone()].concat());
        let contributed = contributions(ensemble, &gone, &task.rows_of(&all)?)?;
        targets.data.iter_mut().zip(&contributed.data).for_each(|(target, own)| *target -= (parameters.scale * f64::from(*own)) as f32);
        let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [1.0, 1.0], [forget, retain])?;
        let course = Course { fall: Fall::Linear, ..Course::adam(&network, epochs, parameters.lr) };
        task.teach(network, &course, |pupil, _| {
            let rows = pupil.all_and_drawn(forget, retain, share);
            pupil.pass("datamodel", &together, &rows, parameters.batch, |_, batch| {
                let wanted = targets.select(batch.rows);
                Ok(ops::squared_error(batch.logits, &Tensor::from_vec(wanted.data, wanted.shape, batch.logits.device())?)?)
            })
        })
    }
}

/// What the samples at `gone` contributed to the logits of those at `of`, [n, K]: the sum over the former of the difference between the means over the models with and
/// without each.
fn contributions(ensemble: &Ensemble, gone: &[usize], of: &[usize]) -> anyhow::Result<Array<f32>> {
    let (models, samples, classes) = (ensemble.models(), ensemble.ids.len(), ensemble.classes());
    // How much the logits of each model count.
    let mut factors = vec![0.0_f64; models];
    for &row in gone {
        let with = (0..models).filter(|model| ensemble.membership.data[model * samples + row] == 1).count();
        if with == 0 || with == models {
            let id = dcu_artifact::SampleId(ensemble.ids[row]);
            let message = format!("the ensemble has no models with the sample {id}, or none without it");
            return Err(Failure::new(message, "take an ensemble by halves, with more models").into());
        }
        for (model, factor) in factors.iter_mut().enumerate() {
            let has = ensemble.membership.data[model * samples + row] == 1;
            *factor += if has { 1.0 / with as f64 } else { -1.0 / (models - with) as f64 };
        }
    }
    let mut values = Vec::with_capacity(of.len() * classes);
    for &row in of {
        let sum = |class: usize| {
            factors.iter().enumerate().map(|(model, factor)| factor * f64::from(ensemble.of(model, row)[class])).sum::<f64>()
        };
        values.extend((0..classes).map(|class| sum(class) as f32));
    }
    Ok(Array::new(vec![of.len(), classes], values))
}

#[cfg(test)]
mod tests {
    use dcu_artifact::EnsembleFacts;

    use super::*;

    /// Models whose logits are sums of what each sample contributes, over all ways to take two of four samples.
    #[test]
    fn what_samples_contribute_to_a_sum_is_found_up_to_what_the_others_lose() {
        let parts = [1.0_f32, 2.0, 4.0, 8.0];
        let pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
        let membership = pairs.iter().flat_map(|pair| (0..4).map(|row| u8::from(pair.contains(&row)))).collect();
        let logits = pairs.iter().flat_map(|pair| {
            let sum: f32 = pair.iter().map(|&row| parts[row]).sum();
            (0..4).flat_map(move |row| [sum * (row + 1) as f32, 0.0])
        });
        let facts =
            EnsembleFacts { scheme: "halves".into(), seed: 1, architecture: serde_json::Value::Null, recipe: serde_json::Value::Null };
        let ensemble = Ensemble {
            ids: (0..4).collect(),
            membership: Array::new(vec![6, 4], membership),
            logits: Array::new(vec![6, 4, 2], logits.collect()),
            facts,
        };
        // A model with sample 3 has a third of one of the others less: 8 - (1 + 2 + 4) / 3.
        let found = contributions(&ensemble, &[3], &[0, 1]).unwrap();
        let expected = 8.0 - 7.0 / 3.0;
        for (found, expected) in found.data.iter().zip([expected, 0.0, 2.0 * expected, 0.0]) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
