//! `model/1`: parameters and buffers under PyTorch's names, so that weights travel both ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Normalisation, OpenFacts, Payload, check_class_names, check_finite_f32, open};
use crate::{Content, Tensor};

/// A trained network.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Parameters and buffers by PyTorch's name.
    pub tensors: BTreeMap<String, Tensor>,
    /// What is not a tensor.
    pub facts: ModelFacts,
}

/// The facts of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The network: family, input shape, classes, widths, cut.
    pub architecture: Value,
    /// How it was trained from scratch, which is how retraining trains.
    pub recipe: Value,
    /// The name of each class.
    pub class_names: Vec<String>,
    /// How pixels become its input.
    pub normalisation: Normalisation,
    /// How its last layer was solved for, where that was not trained like the others; retraining does so too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ridge: Option<RidgeHead>,
    /// Whether all of its weights come from samples that are held out, none from the training set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unseen: bool,
}

/// A last layer that is the ridge regression of the classes on the features before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RidgeHead {
    /// What was added to the diagonal of the sums of the features' products.
    pub lambda: f64,
    /// Whether weights of the layers before it were learned from the training set.
    pub trunk_saw_training_data: bool,
}

impl Payload for Model {
    const SCHEMA: &'static str = "model/1";

    fn to_content(&self) -> Content {
        Content {
            schema: Self::SCHEMA.into(),
            facts: serde_json::to_value(&self.facts).expect("facts are plain data"),
            tensors: self.tensors.clone(),
        }
    }

    /// What holds for any network is checked here; whether the weights are those of the architecture is for those who know it.
    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, fields) = open(content)?;
        let model = Self { tensors: fields.tensors, facts };
        if model.tensors.is_empty() {
            return Err("there is no parameter".into());
        }
        for (name, tensor) in &model.tensors {
            check_tensor(name, tensor)?;
        }
        check_siblings(&model.tensors)?;
        check_facts(&model.facts)?;
        Ok(model)
    }
}

fn check_tensor(name: &str, tensor: &Tensor) -> Result<(), String> {
    match tensor {
        Tensor::F32(array) => {
            check_finite_f32(name, &array.data)?;
            if name.ends_with(".running_var")
                && let Some(position) = array.data.iter().position(|&value| value < 0.0)
            {
                return Err(format!("`{name}` holds {} at position {position}; a variance is 0 or more", array.data[position]));
            }
            Ok(())
        }
        Tensor::I64(array) if name.ends_with(".num_batches_tracked") => match (array.shape.as_slice(), array.data.as_slice()) {
            ([], &[count]) if count >= 0 => Ok(()),
            _ => Err(format!("`{name}` is {:?} of the shape {:?}; it counts batches: one number, 0 or more", array.data, array.shape)),
        },
        Tensor::I64(_) => Ok(()),
        other => Err(format!("tensor `{name}` has the type {:?}; weights are F32, counters I64", other.dtype())),
    }
}

/// The tensors of a linear layer or a normalisation agree in the number of outputs. (Of a convolution the first extent may be the inputs.)
fn check_siblings(tensors: &BTreeMap<String, Tensor>) -> Result<(), String> {
    for (name, weight) in tensors {
        let Some(layer) = name.strip_suffix(".weight").filter(|_| matches!(weight.shape().len(), 1 | 2)) else { continue };
        for sibling in ["bias", "running_mean", "running_var"] {
            let sibling = format!("{layer}.{sibling}");
            let Some(found) = tensors.get(&sibling) else { continue };
            if found.shape() != &weight.shape()[..1] {
                return Err(format!("`{sibling}` has the shape {:?} beside `{name}` with {:?}", found.shape(), weight.shape()));
            }
        }
    }
    Ok(())
}

fn check_facts(facts: &ModelFacts) -> Result<(), String> {
    check_class_names(&facts.class_names)?;
    facts.normalisation.check(facts.normalisation.mean.len())?;
    let object = |name: &str, value: &Value| value.as_object().cloned().ok_or(format!("the fact `{name}` is no object"));
    let architecture = object("architecture", &facts.architecture)?;
    let named = facts.class_names.len();
    if architecture.get("classes").is_some_and(|classes| classes.as_u64() != Some(named as u64)) {
        return Err(format!("the architecture has {} classes, but {named} are named", architecture["classes"]));
    }
    let channels = facts.normalisation.mean.len();
    if let Some(input) = architecture.get("input").and_then(Value::as_array)
        && input.first().is_some_and(|found| found.as_u64() != Some(channels as u64))
    {
        return Err(format!("the architecture takes images of {} channels, the normalisation has {channels}", input[0]));
    }
    if let Some(RidgeHead { lambda, .. }) = facts.ridge
        && !(lambda > 0.0 && lambda.is_finite())
    {
        return Err(format!("the `lambda` of its ridge regression is {lambda}; it is a positive number"));
    }
    check_recipe(&object("recipe", &facts.recipe)?)
}

/// Retraining repeats the recipe: numbers with which nothing can be trained are refused with the model that states them.
fn check_recipe(recipe: &OpenFacts) -> Result<(), String> {
    let whole = |least: u64| move |value: &Value| value.as_u64().is_some_and(|value| value >= least);
    let number = |fits: fn(f64) -> bool| move |value: &Value| value.as_f64().is_some_and(|value| value.is_finite() && fits(value));
    type Rule<'a> = (&'a str, &'a dyn Fn(&Value) -> bool, &'a str);
    let below_one = number(|value| (0.0..1.0).contains(&value));
    let (positive, not_negative) = (number(|value| value > 0.0), number(|value| value >= 0.0));
    let share = number(|value| (0.0..=1.0).contains(&value));
    let rising = |value: &Value| {
        let epochs: Option<Vec<f64>> = value.as_array().and_then(|epochs| epochs.iter().map(Value::as_f64).collect());
        epochs.is_some_and(|epochs| epochs.iter().all(|&epoch| epoch > 0.0) && epochs.is_sorted_by(|one, next| one < next))
    };
    let rules: [Rule<'_>; 23] = [
        ("epochs", &whole(1), "a whole number, at least 1"),
        ("batch", &whole(2), "a whole number, at least 2"),
        ("lr", &positive, "a positive number"),
        ("momentum", &below_one, "at least 0 and below 1"),
        ("weight_decay", &not_negative, "0 or more"),
        ("clip", &not_negative, "0 or more"),
        ("smoothing", &below_one, "at least 0 and below 1"),
        ("reconstruction", &not_negative, "0 or more"),
        ("warmup", &not_negative, "0 or more"),
        ("milestones", &rising, "a rising list of positive numbers"),
        ("gamma", &positive, "a positive number"),
        ("cycle_peak", &below_one, "at least 0 and below 1"),
        ("cycle_start", &share, "from 0 to 1"),
        ("cycle_end", &share, "from 0 to 1"),
        ("crop", &whole(0), "a whole number, 0 or more"),
        ("cutout", &whole(0), "a whole number, 0 or more"),
        ("brightness", &not_negative, "0 or more"),
        ("contrast", &share, "from 0 to 1"),
        ("saturation", &share, "from 0 to 1"),
        ("patience", &whole(0), "a whole number, 0 or more"),
        ("ema", &below_one, "at least 0 and below 1"),
        ("average_last", &whole(0), "a whole number, 0 or more"),
        ("nesterov", &Value::is_boolean, "true or false"),
    ];
    for (name, fits, rule) in rules {
        if let Some(value) = recipe.get(name).filter(|value| !fits(value)) {
            return Err(format!("the recipe says `{name}: {value}`, but `{name}` must be {rule}"));
        }
    }
    Ok(())
}
