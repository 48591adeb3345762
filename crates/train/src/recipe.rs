//! How the user says which network is trained and how, for `fit` and `import` alike: a preset, and what is to differ from it.

use dcu_nn::Family;
use dcu_nn::recipe::{Preset, Recipe};
use dcu_stage::Rejected;
use schemars::Schema;
use serde_json::{Value, json};

/// Declares the parameters of a method that has those of a network and of a recipe beside its own, all flat, each optional; its own with their defaults:
///
/// ```ignore
/// with_training! {
///     pub(crate) struct Parameters {
///         /// The state dict.
///         path: Option<PathBuf> = None,
///     }
/// }
/// ```
///
/// It has `network()` and `recipe()`, and the names, descriptions and defaults of a recipe's fields in its JSON schema. (`serde(flatten)` would cost the error messages
/// their field, and does not go with `deny_unknown_fields`.)
macro_rules! with_training {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($(#[$own_attribute:meta])* $own:ident: $own_type:ty = $default:expr,)* }) => {
        $crate::recipe::with_training! {
            @fields [$(#[$attribute])*] [$visibility] $name { $([$(#[$own_attribute])*] $own: $own_type = $default,)* }
            epochs: usize,
            batch: usize,
            lr: f64,
            optimiser: dcu_nn::recipe::OptimiserName,
            momentum: f64,
            weight_decay: f64,
            schedule: dcu_nn::recipe::Schedule,
            nesterov: bool,
            decay: dcu_nn::recipe::Decay,
            clip: f64,
            smoothing: f64,
            reconstruction: f64,
            per: dcu_nn::recipe::Per,
            warmup: f64,
            milestones: Vec<f64>,
            gamma: f64,
            cycle_peak: f64,
            cycle_start: f64,
            cycle_end: f64,
            flip: dcu_nn::augment::Flip,
            crop: usize,
            border: dcu_nn::augment::Border,
            cutout: usize,
            brightness: f64,
            contrast: f64,
            saturation: f64,
            patience: usize,
            keep: dcu_nn::recipe::Keep,
            watch: dcu_nn::recipe::Watch,
            ema: f64,
            average_last: usize,
        }
    };
    (
        @fields [$(#[$attribute:meta])*] [$visibility:vis] $name:ident { $([$(#[$own_attribute:meta])*] $own:ident: $own_type:ty = $default:expr,)* }
        $($field:ident: $type:ty,)*
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        #[schemars(transform = $name::describe)]
        $visibility struct $name {
            $($(#[$own_attribute])* $own: $own_type,)*
            /// The network.
            model: dcu_nn::Family,
            /// Outputs of the hidden layers, or channels of the blocks; by default the published ones: `cargo xtask list` names them with each network.
            widths: Option<Vec<usize>>,
            /// Outputs of the hidden fully connected layers of a CNN, a VGG-16 or a `conv-classifier`; by default as published.
            hidden: Option<usize>,
            /// The probability of dropout in the final part of these; by default as published.
            dropout: Option<f64>,
            /// How a ResNet-18 or VGG-16 starts; by default for small images.
            stem: Option<dcu_nn::Stem>,
            /// Blocks of a `vit-tiny`; by default 12.
            depth: Option<usize>,
            /// Heads of a `vit-tiny`; by default 3.
            heads: Option<usize>,
            /// Rows and columns of a patch of a `vit-tiny` (4) or of `patches` (6).
            patch: Option<usize>,
            /// The modules with which the intermediate and the final part begin, such as `[layer2, layer4]`; by default where the paper cuts.
            cut: Option<[String; 2]>,
            /// The recipe that says what is not given of the training's fields below. Where a model is imported they say how its weights were trained,
            /// which is what retraining repeats.
            preset: dcu_nn::recipe::Preset,
            $($field: Option<$type>,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($own: $default,)*
                    model: dcu_nn::Family::Cnn,
                    widths: None,
                    hidden: None,
                    dropout: None,
                    stem: None,
                    depth: None,
                    heads: None,
                    patch: None,
                    cut: None,
                    preset: dcu_nn::recipe::Preset::default(),
                    $($field: None,)*
                }
            }
        }

        impl $name {
            /// The network, checked as far as it can be without images.
            ///
            /// # Errors
            /// Names the parameter.
            fn network(&self) -> Result<$crate::network::Chosen, dcu_stage::Rejected> {
                let Self { model, hidden, dropout, stem, depth, heads, patch, .. } = *self;
                let (widths, cut) = (self.widths.clone(), self.cut.clone());
                let chosen = $crate::network::Chosen { model, widths, hidden, dropout, stem, depth, heads, patch, cut };
                chosen.check()?;
                Ok(chosen)
            }

            /// The preset with what is given in place of its own, checked as far as it can be without images.
            ///
            /// # Errors
            /// Names the parameter.
            fn recipe(&self) -> Result<dcu_nn::recipe::Recipe, dcu_stage::Rejected> {
                let mut recipe = self.preset.recipe();
                $(if let Some(value) = &self.$field {
                    recipe.$field.clone_from(value);
                })*
                $crate::recipe::check(&recipe, self.model)?;
                Ok(recipe)
            }

            fn describe(schema: &mut schemars::Schema) {
                let fields = |recipe: dcu_nn::recipe::Recipe| {
                    let fields = [$((stringify!($field).to_owned(), serde_json::json!(recipe.$field)),)*];
                    serde_json::Value::Object(fields.into_iter().collect())
                };
                $crate::recipe::describe(schema, fields);
            }
        }
    };
}

pub(crate) use with_training;

/// Refuses a recipe that cannot work with such networks.
///
/// # Errors
/// Names the parameter.
pub(crate) fn check(recipe: &Recipe, family: Family) -> Result<(), Rejected> {
    recipe.check().map_err(|(name, message)| Rejected::parameter(name, message))?;
    Rejected::unless(
        recipe.reconstruction == 0.0 || family.has_decoder(),
        "reconstruction",
        "`reconstruction` needs a network with a decoder, `model: conv-autoencoder`; leave it out for others",
    )
}

/// Describes the parameters that are a recipe's fields as the recipe does, with what each preset has; `fields` are all of a recipe's.
pub(crate) fn describe(schema: &mut Schema, fields: impl Fn(Recipe) -> Value) {
    let [(_, usual), others @ ..] = Preset::ALL.map(|(name, preset)| (name, fields(preset.recipe())));
    let recipe = schemars::schema_for!(Recipe).to_value();
    let Some(parameters) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, field) in recipe["properties"].as_object().into_iter().flatten() {
        let Some(parameter) = parameters.get_mut(name) else { continue };
        let differing = others.iter().filter(|(_, values)| values[name] != usual[name]);
        let differing: String = differing.map(|(preset, values)| format!(" With `preset: {preset}`: {}.", values[name])).collect();
        *parameter = field.clone();
        parameter["description"] = json!(format!("{}{differing}", field["description"].as_str().unwrap_or_default()));
        parameter["default"] = usual[name].clone();
    }
}

#[cfg(test)]
mod tests {
    use dcu_nn::recipe::{OptimiserName, Schedule};
    use serde_json::Map;

    use super::*;

    with_training! {
        pub(crate) struct Parameters {
            /// Something of its own.
            own: u32 = 7,
        }
    }

    fn parsed(value: Value) -> Parameters {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_preset_says_what_is_not_given() {
        assert_eq!((parsed(json!({})).own, parsed(json!({})).recipe().unwrap()), (7, Recipe::default()));
        let given = json!({ "own": 1, "preset": "quick", "epochs": 3, "schedule": "steps", "milestones": [1, 2] });
        let quick = Preset::Quick.recipe();
        let expected = Recipe { epochs: 3, schedule: Schedule::Steps, milestones: vec![1.0, 2.0], ..quick };
        assert_eq!(parsed(given).recipe().unwrap(), expected);
        let rejected = parsed(json!({ "preset": "quick", "optimiser": "adamw", "warmup": 99 })).recipe().unwrap_err();
        assert_eq!(rejected.parameter.as_deref(), Some("warmup"));
        let network = parsed(json!({ "model": "vit-tiny", "depth": 2 })).network().unwrap();
        assert_eq!(network.architecture([3, 8, 8], 4).unwrap().depth, Some(2));
        assert_eq!(parsed(json!({ "epochs": usize::MAX })).recipe().unwrap_err().parameter.as_deref(), Some("epochs"));
        assert_eq!(parsed(json!({ "depth": 0 })).network().unwrap_err().parameter.as_deref(), Some("depth"));
        assert_eq!(parsed(json!({ "optimiser": "adamw" })).recipe().unwrap().optimiser, OptimiserName::Adamw);
        let unknown = serde_json::from_value::<Parameters>(json!({ "epoch": 3 })).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `epoch`") && unknown.contains("`own`") && unknown.contains("`epochs`"), "{unknown}");
    }

    #[test]
    fn images_are_reconstructed_by_a_decoder_alone() {
        let recipe = |model: &str, weight: f64| parsed(json!({ "model": model, "reconstruction": weight })).recipe();
        assert_eq!(recipe("conv-autoencoder", 0.5).unwrap().reconstruction, 0.5);
        assert_eq!(recipe("cnn", 0.0).unwrap(), Recipe::default());
        for (model, weight, reason) in [("cnn", 0.5, "`model: conv-autoencoder`"), ("conv-autoencoder", -0.5, "0 (none) or more")] {
            let rejected = recipe(model, weight).unwrap_err();
            assert_eq!(rejected.parameter.as_deref(), Some("reconstruction"), "{model}");
            assert!(rejected.message.contains(reason), "{}", rejected.message);
        }
    }

    /// Of each field of a recipe, and of nothing else.
    #[test]
    fn the_schema_says_what_each_field_is_and_what_the_presets_have() {
        let schema = schemars::schema_for!(Parameters).to_value();
        let names =
            |schema: &Value| schema["properties"].as_object().map_or(Vec::new(), |fields| fields.keys().cloned().collect::<Vec<_>>());
        let recipe = schemars::schema_for!(Recipe).to_value();
        let beside = ["own", "preset", "model", "widths", "hidden", "dropout", "stem", "depth", "heads", "patch", "cut"].map(str::to_owned);
        let mut expected = [names(&recipe), beside.to_vec()].concat();
        expected.sort_unstable();
        let mut found = names(&schema);
        found.sort_unstable();
        assert_eq!(found, expected);
        let epochs = &schema["properties"]["epochs"];
        assert_eq!(epochs["default"], 30);
        let quick = Preset::Quick.recipe();
        assert_eq!(epochs["description"], format!("Passes over the training set. With `preset: quick`: {}.", quick.epochs));
        assert_eq!(schema["properties"]["gamma"]["default"], 0.1);
        assert_eq!(schema["properties"]["flip"]["default"], "none");
        // Every reference has its target.
        let text = schema.to_string();
        let targets: Map<String, Value> = schema["$defs"].as_object().cloned().unwrap_or_default();
        for name in text.split("#/$defs/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(targets.contains_key(name), "{name}");
        }
    }
}
