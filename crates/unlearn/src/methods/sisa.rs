//! `unlearn/sisa`: of the networks that `train/sisa` trained, those whose shards hold a forget sample go on from before the first slice with one; the others stay (SISA,
//! Bourtoule et al., arXiv 1912.03817). The model is, byte for byte, that of `train/sisa` on what is retained.
//!
//! A forget set of many random samples touches all shards, and is nearly a training from scratch. The checkpoints that were given show what is forgotten still; whoever serves
//! a deletion makes them anew without it, by `train/sisa` with the `request`.

use dcu_nn::Network;
use dcu_nn::sisa::{Plan, Training};
use dcu_stage::{Failure, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Sisa;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Unlearn for Sisa {
    const NAME: &'static str = "sisa";
    const SUMMARY: &'static str = "Trains the networks whose shards hold forget samples anew, from before the first slice with one";
    const USES_SEED: bool = false;
    const WIRES: Wires = Wires { shards: Need::Must, ..Wires::NONE };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn unlearn(_: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let shards = task.shards.take().expect("checked by the frame");
        let plan = Plan::of(&shards.facts)?;
        if plan.joined(&shards.checkpoints)?.to_tensors()? != task.original()?.to_tensors()? {
            let remedy = "connect `model` and `shards` to the same `train/sisa`";
            return Err(Failure::new("the model is not the one that these shards make together", remedy).into());
        }
        let mut training = Training::without(&plan, &task.dataset, &task.request.retain, &shards)?;
        if let Some(snapshot) = task.checkpoints.as_ref().and_then(dcu_stage::Checkpoints::resume) {
            training.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
        }
        task.progress.phase("training");
        while training.next_epoch()? {
            let [done, all] = training.epochs();
            task.progress.step("epochs", done, all);
            if let Some(checkpoints) = &mut task.checkpoints {
                checkpoints.offer(|| {
                    let (position, tensors) = training.snapshot()?;
                    Ok(Snapshot { position: json!(position), tensors })
                })?;
            }
        }
        Ok(plan.joined(&training.finish())?)
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::Shards;
    use dcu_nn::recipe::Recipe;
    use dcu_nn::{Architecture, Family, model};

    use super::*;
    use crate::frame::tests::task;

    fn trained(mut training: Training<'_>) -> std::collections::BTreeMap<String, dcu_artifact::Tensor> {
        while training.next_epoch().unwrap() {}
        training.finish()
    }

    /// The samples 7 to 10 in one shard, of which 9 and 7 are to be forgotten.
    fn sharded() -> (Task, Plan) {
        let mut task = task();
        let member = Architecture { widths: vec![5, 4], ..Architecture::of_family(Family::Mlp, [1, 2, 3], 3) };
        let plan = Plan { shards: 1, slices: 2, seed: 3, member, recipe: Recipe { epochs: 3, ..Recipe::default() } };
        let checkpoints = trained(Training::from_scratch(&plan, &task.dataset, &task.dataset.ids).unwrap());
        task.model = model::to_artifact(&plan.joined(&checkpoints).unwrap(), &plan.recipe, &task.dataset).unwrap();
        task.shards = Some(Shards { ids: task.dataset.ids.clone(), checkpoints, facts: plan.facts().unwrap() });
        (task, plan)
    }

    #[test]
    fn the_model_is_that_of_training_on_what_is_retained() {
        let (mut task, plan) = sharded();
        let found = Sisa::unlearn(&Parameters {}, &mut task).unwrap().to_tensors().unwrap();
        let expected = trained(Training::from_scratch(&plan, &task.dataset, &[8, 10]).unwrap());
        assert_eq!(found, plan.joined(&expected).unwrap().to_tensors().unwrap());
        assert_ne!(found, task.model.tensors);
    }

    #[test]
    fn a_model_that_other_shards_made_is_refused() {
        let (mut task, _) = sharded();
        task.model = crate::frame::tests::task().model;
        let error = Sisa::unlearn(&Parameters {}, &mut task).map(drop).unwrap_err().to_string();
        assert!(error.contains("not the one that these shards make together"), "{error}");
    }
}
