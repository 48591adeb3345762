//! `unlearn/boundary-shrink`: the model learns for each forget sample the class just beyond its decision boundary (Chen et al., Boundary Unlearning, CVPR 2023). That class is what
//! the original says of the image once it has taken one step up its loss (FGSM, Goodfellow et al., arXiv 1412.6572).
//!
//! Its traps: the step is one of pixels from 0 to 1, in front of the normalisation, and the image is one of bytes again; samples whose class such a step does not change are left out. Retain
//! samples have no part in it.

use dcu_artifact::{Array, Dataset};
use dcu_nn::optimiser::Rule;
use dcu_nn::{Network, Part, Samples, Var, evaluate};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn, Wires};

/// Samples whose images take the step at once.
const AT_ONCE: usize = 256;

pub(crate) struct BoundaryShrink;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How far each pixel moves, where black is 0 and white 1.
    epsilon: f64,
    /// Passes over the forget samples.
    epochs: usize,
    /// Samples backward, as a share of retraining's. Where it is given, there are no more `epochs` than it pays for, but one.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of SGD.
    lr: f64,
    /// How much of the last step is kept.
    momentum: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { epsilon: 0.1, epochs: 10, budget: None, lr: 1e-5, momentum: 0.9, batch: 64 }
    }
}

impl Unlearn for BoundaryShrink {
    const NAME: &'static str = "boundary-shrink";
    const SUMMARY: &'static str = "Teaches the class beyond the nearest decision boundary of each forget sample";
    const WIRES: Wires = Wires::NONE;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::positive("epsilon", parameters.epsilon)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::not_negative("momentum", parameters.momentum)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let network = task.original()?;
        let rows = task.rows_of(&task.forgotten())?;
        let beyond = beyond(&network, &task.dataset, &rows, parameters.epsilon)?;
        let changed: Vec<usize> = (0..rows.len()).filter(|&row| beyond[row] != task.forget.labels()[row]).collect();
        task.progress.note(&format!("{} of {} forget samples have another class in reach", changed.len(), rows.len()));
        if changed.is_empty() {
            return Ok(network);
        }
        let dataset_rows: Vec<usize> = changed.iter().map(|&row| rows[row]).collect();
        let labels = changed.iter().map(|&row| beyond[row]).collect();
        let samples = Samples::of_pixels(task.dataset.images.select(&dataset_rows), &task.dataset.facts.normalisation, labels)?;
        let epochs = task.length(parameters.budget, (parameters.epochs, 0.0), [1.0, 0.0], [samples.len(), 0])?.0;
        let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: 0.0 };
        let course = Course { rule, ..Course::adam(&network, epochs, parameters.lr) };
        let all: Vec<usize> = (0..samples.len()).collect();
        task.teach(network, &course, |pupil, _| pupil.pass("shrink", &samples, &all, parameters.batch, |_, batch| batch.cross_entropy()))
    }
}

/// What the network says of the images at `rows` once each pixel has taken a step up the loss.
fn beyond(network: &Network, dataset: &Dataset, rows: &[usize], epsilon: f64) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::with_capacity(rows.len());
    for rows in rows.chunks(AT_ONCE) {
        let samples = Samples::of_dataset(dataset, rows);
        let own: Vec<usize> = (0..rows.len()).collect();
        let images = Var::from_tensor(&samples.batch(&own)?.0)?;
        let loss = samples.loss(&network.evaluate(&images, &Part::ALL)?, &own, 0.0)?;
        let slope = loss.backward()?.remove(&images).ok_or_else(|| anyhow::anyhow!("the loss does not depend on the images"))?;
        let slope: Vec<f32> = slope.flatten_all()?.to_vec1()?;
        let pixels = dataset.images.select(rows);
        // Normalisation turns no sign around.
        let moved = pixels.data.iter().zip(slope).map(|(&pixel, slope)| {
            let sign = if slope == 0.0 { 0.0 } else { f64::from(slope.signum()) };
            (f64::from(pixel) + 255.0 * epsilon * sign).clamp(0.0, 255.0).round() as u8
        });
        let moved = Array::new(pixels.shape.clone(), moved.collect());
        let moved = Samples::of_pixels(moved, &dataset.facts.normalisation, samples.labels().to_vec())?;
        found.extend(evaluate::judge(network, &moved)?.predictions);
    }
    Ok(found)
}
