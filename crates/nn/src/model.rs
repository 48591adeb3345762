//! The way between a network and its `model/1` artifact.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Error, Result};
use dcu_artifact::{Dataset, Model, ModelFacts, RidgeHead, Tensor};

use crate::architecture::Architecture;
use crate::graph::{Role, Slot};
use crate::network::Network;
use crate::train::Recipe;

/// The artifact of a network that was trained on `dataset` by `recipe`.
///
/// # Errors
/// When a weight is not finite, or the recipe is none for the network.
pub fn to_artifact(network: &Network, recipe: &Recipe, dataset: &Dataset) -> Result<Model> {
    recipe.check_network(network.graph()).map_err(Error::Msg)?;
    let facts = ModelFacts {
        architecture: to_json(network.architecture())?,
        recipe: to_json(recipe)?,
        class_names: dataset.facts.class_names.clone(),
        normalisation: dataset.facts.normalisation.clone(),
        ridge: None,
        unseen: false,
    };
    Ok(Model { tensors: finite_tensors(network)?, facts })
}

/// The artifact of a network that was trained on from a model, whose facts it has, but that it saw the training set.
///
/// # Errors
/// When a weight is not finite.
pub fn with_facts_of(network: &Network, model: &Model) -> Result<Model> {
    let tensors = finite_tensors(network)?;
    let of_head = |name: &str| network.graph().head().is_some_and(|step| step.slots.iter().any(|slot| slot.name == name));
    let trunk_moved = tensors.iter().any(|(name, tensor)| !of_head(name) && model.tensors.get(name) != Some(tensor));
    let ridge = model
        .facts
        .ridge
        .as_ref()
        .map(|ridge| RidgeHead { trunk_saw_training_data: ridge.trunk_saw_training_data || trunk_moved, ..ridge.clone() });
    Ok(Model { tensors, facts: ModelFacts { ridge, unseen: false, ..model.facts.clone() } })
}

fn finite_tensors(network: &Network) -> Result<BTreeMap<String, Tensor>> {
    let tensors = network.to_tensors()?;
    let is_broken = |tensor: &Tensor| matches!(tensor, Tensor::F32(array) if array.data.iter().any(|value| !value.is_finite()));
    match tensors.iter().find(|(_, tensor)| is_broken(tensor)) {
        Some((name, _)) => Err(Error::Msg(format!("`{name}` holds values that are not finite: the training diverged; give a lower `lr`"))),
        None => Ok(tensors),
    }
}

/// The network of an artifact, which is checked first (see [`check`]).
///
/// # Errors
/// When its weights do not fit its architecture, or its recipe is none.
pub fn to_network(model: &Model) -> Result<Network> {
    check(model)?;
    Network::from_tensors(&architecture(model)?, &model.tensors)
}

/// The architecture of an artifact.
///
/// # Errors
/// When it is none that this release knows.
pub fn architecture(model: &Model) -> Result<Architecture> {
    serde_json::from_value(model.facts.architecture.clone()).map_err(|error| broken(&format!("its architecture does not parse: {error}")))
}

/// The recipe of an artifact.
///
/// # Errors
/// When it is none that this release knows, or the model's network cannot be trained by it.
pub fn recipe(model: &Model) -> Result<Recipe> {
    let recipe: Recipe = serde_json::from_value(model.facts.recipe.clone())
        .map_err(|error| broken(&format!("its training recipe does not parse: {error}")))?;
    let in_recipe = |message: String| broken(&format!("in its training recipe {message}"));
    recipe.check().map_err(|(_, message)| in_recipe(message))?;
    recipe.check_network(&architecture(model)?.graph().map_err(|reason| broken(&reason))?).map_err(in_recipe)?;
    Ok(recipe)
}

/// Checks that a model holds together: its architecture exists, its tensors are those of the architecture, its recipe can be trained by.
///
/// # Errors
/// Says what is wrong with the model, so that the stage that made it is blamed and not the one that reads it.
pub fn check(model: &Model) -> Result<()> {
    let architecture = architecture(model)?;
    if architecture.classes != model.facts.class_names.len() {
        let named = model.facts.class_names.len();
        return Err(broken(&format!("its architecture has {} classes, but {named} are named", architecture.classes)));
    }
    check_tensors(&architecture, &model.tensors).map_err(|reason| broken(&reason))?;
    recipe(model).map(drop)
}

fn broken(reason: &str) -> Error {
    Error::Msg(format!("the model that was given is broken, and so the stage that made it is to be mended: {reason}"))
}

/// Names listed in one error at most, of each kind: all of any network of the zoo, but not of whatever a file may hold.
const MOST_LISTED: usize = 400;

/// Checks that `tensors` are the weights of a network: all of them, of the right shape and type, and no others. `num_batches_tracked` may be
/// left out.
///
/// # Errors
/// Lists every tensor that is missing, left over or wrong, with the nearest right name.
pub fn check_tensors(architecture: &Architecture, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<(), String> {
    let graph = architecture.graph()?;
    let (counters, needed): (Vec<&Slot>, Vec<&Slot>) = graph.slots().partition(|slot| slot.role == Role::Counter);
    let expected: BTreeMap<&str, &Slot> = needed.into_iter().map(|slot| (slot.name.as_str(), slot)).collect();
    let counters: BTreeSet<&str> = counters.into_iter().map(|slot| slot.name.as_str()).collect();
    let missing = expected.iter().filter(|(name, _)| !tensors.contains_key(**name));
    let missing: Vec<String> = missing.map(|(name, slot)| format!("`{name}` is missing; it has the shape {:?}", slot.shape)).collect();
    let absent: Vec<&str> = expected.keys().copied().filter(|&name| !tensors.contains_key(name)).collect();
    let (mut surplus, mut wrong) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        if let Some(slot) = expected.get(name.as_str()) {
            wrong.extend(unfit(slot, tensor));
        } else if counters.contains(name.as_str()) {
            if !matches!(tensor, Tensor::I64(count) if count.shape.is_empty() && count.data[0] >= 0) {
                wrong.push(format!("`{name}` is {:?} of {:?}; it is one I64, 0 or more", tensor.shape(), tensor.dtype()));
            }
        } else if surplus.len() <= MOST_LISTED {
            let hint = nearest(name, &absent).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
            surplus.push(format!("`{name}` {:?} is not part of the network{hint}", tensor.shape()));
        }
    }
    let listed: Vec<String> = [missing, surplus, wrong].into_iter().flat_map(shortened).collect();
    if listed.is_empty() { Ok(()) } else { Err(listed.join("\n  ")) }
}

/// What is wrong with a tensor whose name is right.
fn unfit(slot: &Slot, tensor: &Tensor) -> Option<String> {
    let Slot { name, shape, role, .. } = slot;
    let Tensor::F32(array) = tensor else {
        return Some(format!("`{name}` is of {:?}, but the network needs F32", tensor.dtype()));
    };
    if array.shape != *shape {
        return Some(format!("`{name}` is {:?}, but the network needs {shape:?}", array.shape));
    }
    let is_variance = *role == Role::RunningVariance;
    let position = array.data.iter().position(|value| !value.is_finite() || is_variance && *value < 0.0)?;
    let rule = if is_variance { "a variance is a number, 0 or more" } else { "weights are finite" };
    Some(format!("`{name}` holds {} at position {position}; {rule}", array.data[position]))
}

/// The most similar of the names, where one is similar enough, or is the end of what stands before it (`module.NAME`).
fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let wrapped = names.iter().find(|known| name.strip_suffix(**known).is_some_and(|before| before.ends_with('.')));
    let distance = |known: &&&str| strsim::damerau_levenshtein(name, known);
    let close = || names.iter().min_by_key(distance).filter(|known| distance(known) <= 1 + known.len() / 4);
    wrapped.or_else(close).copied()
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > MOST_LISTED {
        lines.truncate(MOST_LISTED);
        lines.push("and more of this kind".to_owned());
    }
    lines
}

/// Checks that a model holds together (see [`check`]), takes the images of a dataset and knows its classes.
///
/// # Errors
/// Says what is wrong or differs.
pub fn check_fit(model: &Model, dataset: &Dataset) -> Result<()> {
    check(model)?;
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

/// The share of parameters, buffers left out, whose bytes are not the same in `after` as in `before`; 1 where the networks differ.
#[must_use]
pub fn share_changed(before: &Model, after: &Model) -> f64 {
    let (Ok(network), Ok(other)) = (architecture(before), architecture(after)) else { return 1.0 };
    let Some(graph) = (network == other).then(|| network.graph().ok()).flatten() else { return 1.0 };
    let (mut changed, mut all) = (0_usize, 0_usize);
    for slot in graph.slots().filter(|slot| slot.role.is_parameter()) {
        let count = slot.shape.iter().product::<usize>();
        all += count;
        changed += match (before.tensors.get(&slot.name), after.tensors.get(&slot.name)) {
            (Some(Tensor::F32(before)), Some(Tensor::F32(after))) if before.shape == after.shape => {
                before.data.iter().zip(&after.data).filter(|(before, after)| before.to_bits() != after.to_bits()).count()
            }
            _ => count,
        };
    }
    changed as f64 / all.max(1) as f64
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(Error::wrap)
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, Normalisation};
    use serde_json::json;

    use super::*;
    use crate::architecture::Family;
    use crate::rng::Streams;

    fn model() -> Model {
        let architecture = Architecture { widths: vec![4, 6], hidden: 5, ..Architecture::of_family(Family::Cnn, [1, 8, 8], 2) };
        let recipe = json!({ "epochs": 1, "batch": 2, "lr": 0.1, "optimiser": "adam", "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant" });
        let facts = ModelFacts {
            architecture: serde_json::to_value(&architecture).unwrap(),
            recipe,
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
            ridge: None,
            unseen: false,
        };
        Model { tensors: Network::initialised(&architecture, &Streams::new(1, "test")).unwrap().to_tensors().unwrap(), facts }
    }

    fn refused(change: impl FnOnce(&mut Model)) -> String {
        let mut changed = model();
        change(&mut changed);
        to_network(&changed).unwrap_err().to_string()
    }

    #[test]
    fn a_model_is_its_own_network() {
        assert_eq!(to_network(&model()).unwrap().to_tensors().unwrap(), model().tensors);
        let mut without = model();
        without.tensors.retain(|name, _| !name.ends_with("num_batches_tracked"));
        to_network(&without).unwrap();
    }

    #[test]
    fn the_share_that_changed_counts_parameters_and_no_buffers() {
        let (before, mut after) = (model(), model());
        let graph = architecture(&before).unwrap().graph().unwrap();
        let all = graph.steps().iter().map(crate::graph::Step::parameters).sum::<usize>() as f64;
        for name in ["features.1.running_mean", "features.0.bias"] {
            match after.tensors.get_mut(name) {
                Some(Tensor::F32(array)) => array.data[..2].iter_mut().for_each(|value| *value += 1.0),
                other => panic!("{name} is {other:?}"),
            }
        }
        assert_eq!((share_changed(&before, &before), share_changed(&before, &after)), (0.0, 2.0 / all));
        let mut other = model();
        other.facts.architecture["hidden"] = json!(6);
        assert_eq!(share_changed(&before, &other), 1.0);
        after.tensors.remove("features.0.bias");
        assert_eq!(share_changed(&before, &after), 4.0 / all, "what is not there any more has changed");
    }

    #[test]
    fn all_that_is_missing_left_over_or_wrong_is_listed() {
        let message = refused(|model| {
            let weight = model.tensors.remove("classifier.0.weight").unwrap();
            model.tensors.insert("module.classifier.0.weight".into(), weight);
            let bias = model.tensors.remove("features.0.bias").unwrap();
            model.tensors.insert("features.0.bais".into(), bias);
            model.tensors.insert("classifier.3.bias".into(), Tensor::F32(Array::vector(vec![0.0; 3])));
            model.tensors.insert("features.1.running_var".into(), Tensor::F32(Array::vector(vec![1.0, -1.0, 1.0, 1.0])));
            model.tensors.insert("features.1.num_batches_tracked".into(), Tensor::I64(Array::vector(vec![1])));
            model.tensors.insert("classifier.3.weight".into(), Tensor::F64(Array::new(vec![2, 5], vec![0.0; 10])));
        });
        for expected in [
            "the stage that made it is to be mended",
            "`classifier.0.weight` is missing; it has the shape [5, 24]",
            "`module.classifier.0.weight` [5, 24] is not part of the network (did you mean `classifier.0.weight`?)",
            "`features.0.bais` [4] is not part of the network (did you mean `features.0.bias`?)",
            "`classifier.3.bias` is [3], but the network needs [2]",
            "`features.1.running_var` holds -1 at position 1",
            "`features.1.num_batches_tracked` is [1] of I64",
            "`classifier.3.weight` is of F64",
        ] {
            assert!(message.contains(expected), "`{expected}` is not in:\n{message}");
        }
    }

    #[test]
    fn facts_that_are_none_are_the_fault_of_the_model() {
        let wrong_recipe = |name: &str, value: serde_json::Value| refused(|model| model.facts.recipe[name] = value);
        assert!(wrong_recipe("schedule", json!("step")).contains("its training recipe does not parse: unknown variant `step`"));
        assert!(wrong_recipe("epochs", json!(0)).contains("in its training recipe `epochs` must be at least 1"));
        assert!(wrong_recipe("lr", json!(-1.0)).contains("in its training recipe `lr` must be a positive number"));
        assert!(
            wrong_recipe("reconstruction", json!(0.5)).contains("in its training recipe `reconstruction` needs a network with a decoder")
        );
        assert!(refused(|model| model.facts.architecture["family"] = json!("perceptron")).contains("its architecture does not parse"));
        assert!(refused(|model| model.facts.architecture["widths"] = json!([4, 1_000_000_000_u64])).contains("parameters"));
        assert!(refused(|model| model.facts.class_names.push("c".into())).contains("has 2 classes, but 3 are named"));
    }

    #[test]
    fn a_long_list_is_cut_short() {
        let message = refused(|model| {
            model.tensors.extend((0..10_000).map(|index| (format!("more.{index}"), Tensor::F32(Array::vector(vec![0.0])))));
        });
        assert!(message.contains("and more of this kind") && message.len() < 40_000, "{}", message.len());
    }
}
