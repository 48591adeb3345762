//! `train/sisa`: networks that each learn from a shard of the training set, slice by slice, and predict together, with what each had behind each slice (SISA, Bourtoule et al.,
//! arXiv 1912.03817). `unlearn/sisa` goes on from there.
//!
//! With `request` it trains on what that retains: the model that `unlearn/sisa` makes too, and checkpoints without the forgotten samples, which those that were made before still show.

use dcu_artifact::{Dataset, Model, Request, Shards};
use dcu_nn::model;
use dcu_nn::recipe::Recipe;
use dcu_nn::sisa::{Plan, Training};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected, Snapshot};
use serde::Serialize;
use serde_json::json;

use crate::network::Chosen;
use crate::recipe::with_training;

pub(crate) struct Sisa;

with_training! {
    pub(crate) struct Parameters {
        /// Networks, each with samples of its own. Few requests touch few of them, and each has less to learn from.
        shards: usize = 5,
        /// Parts in which each of them takes up its samples; a request costs what comes behind the first part that it touches.
        slices: usize = 3,
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    shards: usize,
    slices: usize,
    #[serde(flatten)]
    network: Chosen,
    #[serde(flatten)]
    recipe: Recipe,
}

impl Method for Sisa {
    const NAME: &'static str = "sisa";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str =
        "Trains a network on each shard of the training set, slice by slice, from which `unlearn/sisa` goes on; they predict together";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::optional::<Request>("request")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model"), Output::artifact::<Shards>("shards")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        for (name, value) in [("shards", parameters.shards), ("slices", parameters.slices)] {
            Rejected::unless((1..=1024).contains(&value), name, format!("`{name}` must be from 1 to 1024"))?;
        }
        Rejected::unless(parameters.cut.is_none(), "cut", "networks side by side have no `cut`; leave it out")?;
        let recipe = parameters.recipe()?;
        let fits = !recipe.needs_validation();
        Rejected::unless(fits, "patience", "no validation ends a training by slices; leave out `patience` and `keep: best`")?;
        Ok(Checked { shards: parameters.shards, slices: parameters.slices, network: parameters.network()?, recipe })
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let ids = context.read_optional::<Request>("request")?.map_or_else(|| dataset.ids.clone(), |request| request.retain);
        let plan = Plan {
            shards: parameters.shards,
            slices: parameters.slices,
            seed: context.seed(),
            member: parameters.network.architecture(dataset.image_shape(), dataset.classes())?,
            recipe: parameters.recipe.clone(),
        };
        let remedy = "change `slices`, or the training's parameters";
        plan.check().map_err(|reason| Failure::new(format!("the network cannot be trained so: {reason}"), remedy))?;
        let mut training = Training::from_scratch(&plan, &dataset, &ids)?;
        let mut checkpoints = context.checkpoints();
        if let Some(snapshot) = checkpoints.resume() {
            training.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
        }
        context.progress().phase("training");
        while training.next_epoch()? {
            let [done, all] = training.epochs();
            context.progress().step("epochs", done, all);
            checkpoints.offer(|| {
                let (position, tensors) = training.snapshot()?;
                Ok(Snapshot { position: json!(position), tensors })
            })?;
        }
        let checkpoints = training.finish();
        context.write("model", &model::to_artifact(&plan.joined(&checkpoints)?, &plan.recipe, &dataset)?)?;
        context.write("shards", &Shards { ids, checkpoints, facts: plan.facts()? })
    }
}
