//! How the user names a network and its training, for `fit` and `import` alike.

use dcu_nn::architecture::MOST_PARAMETERS;
use dcu_nn::train::{OptimiserName, Recipe, Schedule};
use dcu_nn::{Architecture, Family, Stem};
use dcu_stage::{Failure, Rejected};

/// Sizes that differ from the published ones.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes<'a> {
    pub(crate) widths: Option<&'a [usize]>,
    pub(crate) hidden: Option<usize>,
    pub(crate) dropout: Option<f64>,
    pub(crate) stem: Option<Stem>,
    pub(crate) depth: Option<usize>,
    pub(crate) heads: Option<usize>,
    pub(crate) patch: Option<usize>,
    pub(crate) cut: Option<&'a [String; 2]>,
}

/// The network of the given family for images and classes of the given shape.
///
/// # Errors
/// When there is no such network.
pub(crate) fn architecture(family: Family, sizes: Sizes<'_>, input: [usize; 3], classes: usize) -> anyhow::Result<Architecture> {
    let published = Architecture::of_family(family, input, classes);
    let architecture = Architecture {
        widths: sizes.widths.map_or(published.widths, <[usize]>::to_vec),
        hidden: sizes.hidden.unwrap_or(published.hidden),
        dropout: sizes.dropout.unwrap_or(published.dropout),
        stem: sizes.stem.or(published.stem),
        depth: sizes.depth.or(published.depth),
        heads: sizes.heads.or(published.heads),
        patch: sizes.patch.or(published.patch),
        cut: sizes.cut.cloned(),
        ..published
    };
    let remedy = "change `model` or its sizes (`widths`, `hidden`, ...), or the size of the images in `data`";
    architecture.graph().map_err(|reason| Failure::new(format!("there is no such network: {reason}"), remedy))?;
    Ok(architecture)
}

/// Refuses sizes that no image makes possible.
///
/// # Errors
/// Names the parameter.
pub(crate) fn check_sizes(sizes: Sizes<'_>) -> Result<(), Rejected> {
    if let Some(widths) = sizes.widths {
        Rejected::unless(!widths.is_empty() && !widths.contains(&0), "widths", "`widths` are positive numbers")?;
        let is_possible = |pair: &[usize]| pair[0].checked_mul(pair[1]).is_some_and(|weights| weights <= MOST_PARAMETERS);
        Rejected::unless(
            widths.windows(2).all(is_possible),
            "widths",
            format!("`widths` make a network of more than {MOST_PARAMETERS} parameters; give smaller ones"),
        )?;
    }
    Rejected::unless(sizes.hidden != Some(0), "hidden", "`hidden` must be at least 1")?;
    Rejected::unless(
        sizes.dropout.is_none_or(|dropout| (0.0..1.0).contains(&dropout)),
        "dropout",
        "`dropout` must be at least 0 and below 1",
    )
}

/// Refuses a recipe that cannot work.
///
/// # Errors
/// Names the parameter.
pub(crate) fn check_recipe(recipe: &Recipe) -> Result<(), Rejected> {
    recipe.check().map_err(|(name, message)| Rejected::parameter(name, message))
}

/// The paper's recipe: 30 epochs of Adam at 1e-3 with batches of 256.
pub(crate) fn recipe_of_paper() -> Recipe {
    Recipe {
        epochs: 30,
        batch: 256,
        lr: 1e-3,
        optimiser: OptimiserName::Adam,
        momentum: 0.9,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_no_memory_holds_are_refused_before_any_data_is_read() {
        let check = |widths: &[usize]| check_sizes(Sizes { widths: Some(widths), ..Sizes::default() });
        assert!(check(&[512, 128]).is_ok());
        for widths in [&[1_000_000, 1_000_000][..], &[8, usize::MAX, usize::MAX]] {
            let rejected = check(widths).unwrap_err();
            assert_eq!(rejected.parameter.as_deref(), Some("widths"));
        }
    }
}
