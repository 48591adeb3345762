//! How the user names a network, for `fit` and `import` alike.

use dcu_nn::architecture::MOST_PARAMETERS;
use dcu_nn::{Architecture, Family, Stem};
use dcu_stage::{Failure, Rejected};
use serde::Serialize;

/// A network as the user names it: its kind, and the sizes that differ from the published ones.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Chosen {
    pub(crate) model: Family,
    pub(crate) widths: Option<Vec<usize>>,
    pub(crate) hidden: Option<usize>,
    pub(crate) dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stem: Option<Stem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) depth: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) patch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cut: Option<[String; 2]>,
}

impl Chosen {
    /// The network for images and classes of the given shape.
    ///
    /// # Errors
    /// When there is no such network.
    pub(crate) fn architecture(&self, input: [usize; 3], classes: usize) -> anyhow::Result<Architecture> {
        let published = Architecture::of_family(self.model, input, classes);
        let architecture = Architecture {
            widths: self.widths.clone().unwrap_or(published.widths),
            hidden: self.hidden.unwrap_or(published.hidden),
            dropout: self.dropout.unwrap_or(published.dropout),
            stem: self.stem.or(published.stem),
            depth: self.depth.or(published.depth),
            heads: self.heads.or(published.heads),
            patch: self.patch.or(published.patch),
            cut: self.cut.clone(),
            ..published
        };
        let remedy = "change `model` or its sizes (`widths`, `hidden`, `cut`, ...), or the size of the images in `data`";
        architecture.graph().map_err(|reason| Failure::new(format!("there is no such network: {reason}"), remedy))?;
        Ok(architecture)
    }

    /// Refuses sizes that no image makes possible.
    ///
    /// # Errors
    /// Names the parameter.
    pub(crate) fn check(&self) -> Result<(), Rejected> {
        if let Some(widths) = &self.widths {
            Rejected::unless(!widths.is_empty() && !widths.contains(&0), "widths", "`widths` are positive numbers")?;
            let is_possible = |pair: &[usize]| pair[0].checked_mul(pair[1]).is_some_and(|weights| weights <= MOST_PARAMETERS);
            Rejected::unless(
                widths.windows(2).all(is_possible),
                "widths",
                format!("`widths` make a network of more than {MOST_PARAMETERS} parameters; give smaller ones"),
            )?;
        }
        for (name, size) in [("hidden", self.hidden), ("depth", self.depth), ("heads", self.heads), ("patch", self.patch)] {
            Rejected::unless(size != Some(0), name, format!("`{name}` must be at least 1"))?;
        }
        Rejected::unless(
            self.dropout.is_none_or(|dropout| (0.0..1.0).contains(&dropout)),
            "dropout",
            "`dropout` must be at least 0 and below 1",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_no_memory_holds_are_refused_before_any_data_is_read() {
        let check = |widths: &[usize]| {
            let (model, none) = (Family::Mlp, None);
            let widths = Some(widths.to_vec());
            Chosen { model, widths, hidden: none, dropout: None, stem: None, depth: none, heads: none, patch: none, cut: None }.check()
        };
        assert!(check(&[512, 128]).is_ok());
        for widths in [&[1_000_000, 1_000_000][..], &[8, usize::MAX, usize::MAX]] {
            let rejected = check(widths).unwrap_err();
            assert_eq!(rejected.parameter.as_deref(), Some("widths"));
        }
    }
}
