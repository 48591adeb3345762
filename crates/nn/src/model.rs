//! The way between a network and its `model/1` artifact.

use std::collections::BTreeMap;

use candle_core::{Error, Result};
use dcu_artifact::{Dataset, Model, ModelFacts, Tensor};

use crate::architecture::Architecture;
use crate::network::Network;
use crate::train::Recipe;

/// The artifact of a network that was trained on `dataset` by `recipe`.
///
/// # Errors
/// When a weight is not finite.
pub fn to_artifact(network: &Network, recipe: &Recipe, dataset: &Dataset) -> Result<Model> {
    let facts = ModelFacts {
        architecture: to_json(network.architecture())?,
        recipe: to_json(recipe)?,
        class_names: dataset.facts.class_names.clone(),
        normalisation: dataset.facts.normalisation.clone(),
    };
    Ok(Model { tensors: finite_tensors(network)?, facts })
}

/// The artifact of a network that has the facts of the model that it was made from.
///
/// # Errors
/// When a weight is not finite.
pub fn with_facts_of(network: &Network, model: &Model) -> Result<Model> {
    Ok(Model { tensors: finite_tensors(network)?, facts: model.facts.clone() })
}

fn finite_tensors(network: &Network) -> Result<BTreeMap<String, Tensor>> {
    let tensors = network.to_tensors()?;
    let is_broken = |tensor: &Tensor| matches!(tensor, Tensor::F32(array) if array.data.iter().any(|value| !value.is_finite()));
    match tensors.iter().find(|(_, tensor)| is_broken(tensor)) {
        Some((name, _)) => Err(Error::Msg(format!("`{name}` holds values that are not finite: the training diverged; give a lower `lr`"))),
        None => Ok(tensors),
    }
}

/// The network of an artifact.
///
/// # Errors
/// When its weights do not fit its architecture.
pub fn to_network(model: &Model) -> Result<Network> {
    Network::from_tensors(&architecture(model)?, &model.tensors)
}

/// The architecture of an artifact.
///
/// # Errors
/// When it is none that this release knows.
pub fn architecture(model: &Model) -> Result<Architecture> {
    serde_json::from_value(model.facts.architecture.clone())
        .map_err(|error| Error::Msg(format!("the model's architecture does not parse: {error}")))
}

/// The recipe of an artifact.
///
/// # Errors
/// When it is none that this release knows.
pub fn recipe(model: &Model) -> Result<Recipe> {
    serde_json::from_value(model.facts.recipe.clone())
        .map_err(|error| Error::Msg(format!("the model's training recipe does not parse: {error}")))
}

/// Checks that a model takes the images of a dataset and knows its classes.
///
/// # Errors
/// Says what differs.
pub fn check_fit(model: &Model, dataset: &Dataset) -> Result<()> {
    let architecture = architecture(model)?;
    let reason = if architecture.input != dataset.image_shape() {
        format!("images are {:?}, the network takes {:?}", dataset.image_shape(), architecture.input)
    } else if architecture.classes != dataset.classes() {
        format!("the dataset has {} classes, the network {}", dataset.classes(), architecture.classes)
    } else if model.facts.normalisation != dataset.facts.normalisation {
        "the dataset is normalised otherwise than the model's training set was".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Msg(format!("the model does not fit the dataset: {reason}")))
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(Error::wrap)
}
