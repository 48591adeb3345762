//! How the user names a network, for `fit` and `import` alike.

use dcu_artifact::Dataset;
use dcu_nn::architecture::MOST_PARAMETERS;
use dcu_nn::{Architecture, Family};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network of the zoo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Name {
    /// Fully connected: 512, 128.
    Mlp,
    /// Four blocks of convolution: 32, 64, 128, 256; then 1024.
    Cnn,
}

/// Sizes that differ from the paper's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes<'a> {
    pub(crate) widths: Option<&'a [usize]>,
    pub(crate) hidden: Option<usize>,
    pub(crate) dropout: Option<f64>,
}

/// The network of the given name for the images and classes of a dataset.
///
/// # Errors
/// When there is no such network.
pub(crate) fn architecture(name: Name, sizes: Sizes<'_>, dataset: &Dataset) -> anyhow::Result<Architecture> {
    let family = match name {
        Name::Mlp => Family::Mlp,
        Name::Cnn => Family::Cnn,
    };
    let paper = Architecture::of_paper(family, dataset.image_shape(), dataset.classes());
    let architecture = Architecture {
        widths: sizes.widths.map_or(paper.widths, <[usize]>::to_vec),
        hidden: sizes.hidden.unwrap_or(paper.hidden),
        dropout: sizes.dropout.unwrap_or(paper.dropout),
        ..paper
    };
    let remedy = "change `model`, `widths`, `hidden` or `dropout`, or the size of the images in `data`";
    architecture.layers().map_err(|reason| Failure::new(format!("there is no such network: {reason}"), remedy))?;
    Ok(architecture)
}

/// Refuses sizes that no image makes possible.
///
/// # Errors
/// Names the parameter.
pub(crate) fn check_sizes(sizes: Sizes<'_>) -> Result<(), Rejected> {
    if let Some(widths) = sizes.widths {
        Rejected::unless(
            widths.len() >= 2 && !widths.contains(&0),
            "widths",
            "`widths` needs two positive numbers at least, to cut the network in three",
        )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_no_memory_holds_are_refused_before_any_data_is_read() {
        let check = |widths: &[usize]| check_sizes(Sizes { widths: Some(widths), hidden: None, dropout: None });
        assert!(check(&[512, 128]).is_ok());
        for widths in [&[1_000_000, 1_000_000][..], &[8, usize::MAX, usize::MAX]] {
            let rejected = check(widths).unwrap_err();
            assert_eq!(rejected.parameter.as_deref(), Some("widths"));
        }
    }
}
