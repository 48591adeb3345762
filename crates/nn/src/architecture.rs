//! The model zoo: the two networks of the paper, each cut in beginning, intermediate and final.

use serde::{Deserialize, Serialize};

/// A part of a network that is trained on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// From the image on.
    Beginning,
    /// Up to the features.
    Intermediate,
    /// From the features to the logits.
    Final,
}

impl Part {
    /// All parts, from the image to the logits.
    pub const ALL: [Self; 3] = [Self::Beginning, Self::Intermediate, Self::Final];
}

/// A kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Fully connected layers with rectification.
    Mlp,
    /// Blocks of convolution, batch normalisation, rectification and pooling, then fully connected layers.
    Cnn,
}

/// A network with all its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The kind of network.
    pub family: Family,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Outputs of the hidden layers of an MLP; channels of the blocks of a CNN.
    pub widths: Vec<usize>,
    /// Outputs of the hidden fully connected layer behind the blocks of a CNN; unused by an MLP.
    pub hidden: usize,
    /// The probability of dropout in the final part of a CNN; unused by an MLP.
    pub dropout: f64,
}

/// Parameters of a network at most: 4 GB, and three times as much again for their gradients and Adam's moments.
pub const MOST_PARAMETERS: usize = 1 << 30;
/// Hidden layers of a network at most.
const MOST_LAYERS: usize = 1024;

/// One layer, or a few that are computed together. Names are those of a PyTorch state dict.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// [N, C, H, W] to [N, H, W, C], as convolutions take them.
    ChannelsLast,
    /// Convolution of 3 x 3 with padding 1, batch normalisation, rectification, maximum over windows of 2 x 2. Of both `convolution` and
    /// `normalisation` the parameters are `NAME.weight` and `NAME.bias`; the buffers of the latter `NAME.running_mean`,
    /// `NAME.running_var`, `NAME.num_batches_tracked`.
    Block {
        /// The name of the convolution in the state dict.
        convolution: String,
        /// The name of the batch normalisation in the state dict.
        normalisation: String,
        /// Input channels.
        inputs: usize,
        /// Output channels.
        outputs: usize,
    },
    /// [N, H, W, C] to [N, C, H, W].
    ChannelsFirst,
    /// [N, C, H, W] to [N, C·H·W].
    Flatten,
    /// Fully connected: parameters `NAME.weight`, `NAME.bias`.
    Linear {
        /// The name in the state dict.
        name: String,
        /// Inputs.
        inputs: usize,
        /// Outputs.
        outputs: usize,
    },
    /// Rectification.
    Relu,
    /// Dropout with this probability.
    Dropout(f64),
}

impl Architecture {
    /// The paper's network of a family for images and classes of the given shape (arXiv 2402.00195).
    #[must_use]
    pub fn of_paper(family: Family, input: [usize; 3], classes: usize) -> Self {
        match family {
            Family::Mlp => Self { family, input, classes, widths: vec![512, 128], hidden: 0, dropout: 0.0 },
            Family::Cnn => Self { family, input, classes, widths: vec![32, 64, 128, 256], hidden: 1024, dropout: 0.5 },
        }
    }

    /// The layers of each part, or why there is no such network.
    ///
    /// # Errors
    /// Names the size that does not work.
    pub fn layers(&self) -> Result<[Vec<Layer>; 3], String> {
        if self.input.contains(&0) || self.classes < 2 || self.widths.contains(&0) {
            return Err(format!(
                "a network needs pixels, two classes and no empty layer, not {:?}, {} and {:?}",
                self.input, self.classes, self.widths
            ));
        }
        if self.widths.len() < 2 {
            return Err(format!("{} layer widths are too few to cut the network in three; give two at least", self.widths.len()));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("a dropout of {} is no probability below 1", self.dropout));
        }
        if self.widths.len() > MOST_LAYERS {
            return Err(format!("{} layer widths are too many; give {MOST_LAYERS} at most", self.widths.len()));
        }
        if self.input.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)).is_none() {
            return Err(format!("an image of {:?} is too large", self.input));
        }
        let parts = match self.family {
            Family::Mlp => self.mlp_layers(),
            Family::Cnn => self.cnn_layers()?,
        };
        self.check_size(parts.iter().flatten())?;
        Ok(parts)
    }

    /// Refuses layers that no memory holds, and says which of the sizes make them.
    fn check_size<'a>(&self, layers: impl Iterator<Item = &'a Layer>) -> Result<(), String> {
        let mut total = 0_usize;
        for layer in layers {
            let (name, sizes, count) = match layer {
                Layer::Block { convolution, inputs, outputs, .. } => (convolution, [*inputs, *outputs], inputs.checked_mul(9)),
                Layer::Linear { name, inputs, outputs } => (name, [*inputs, *outputs], Some(*inputs)),
                _ => continue,
            };
            // Bias, and scale and shift of a normalisation.
            let count = count.and_then(|inputs| inputs.checked_add(3)?.checked_mul(sizes[1])?.checked_add(total));
            total = count.filter(|&count| count <= MOST_PARAMETERS).ok_or_else(|| {
                let blame = match (self.family, name.as_str()) {
                    (Family::Mlp, _) => "`widths`, or smaller images",
                    (Family::Cnn, "classifier.0") => "`hidden`, or more `widths`, which halve the image",
                    (Family::Cnn, "classifier.3") => "`hidden`",
                    (Family::Cnn, _) => "`widths`",
                };
                format!(
                    "with `{name}` of {} to {} the network has more than {MOST_PARAMETERS} parameters; give smaller {blame}",
                    sizes[0], sizes[1]
                )
            })?;
        }
        Ok(())
    }

    /// The most values that a sample takes on both sides of a layer; 0 where there is no such network.
    pub(crate) fn widest(&self) -> usize {
        let [channels, mut height, mut width] = self.input;
        let mut widest = channels.saturating_mul(height).saturating_mul(width);
        for layer in self.layers().iter().flatten().flatten() {
            let values = match layer {
                Layer::Block { inputs, outputs, .. } => {
                    let values = inputs.saturating_add(*outputs).saturating_mul(height).saturating_mul(width);
                    (height, width) = (height / 2, width / 2);
                    values
                }
                Layer::Linear { inputs, outputs, .. } => inputs + outputs,
                _ => 0,
            };
            widest = widest.max(values);
        }
        widest
    }

    /// `linear1`, `linear2`, ...: the first hidden layer is the beginning, the others the intermediate, the output layer the final.
    fn mlp_layers(&self) -> [Vec<Layer>; 3] {
        let mut inputs = self.input.iter().product();
        let mut hidden = self.widths.iter().enumerate().map(|(index, &outputs)| {
            let layer = Layer::Linear { name: format!("linear{}", index + 1), inputs, outputs };
            inputs = outputs;
            [layer, Layer::Relu]
        });
        let beginning = [Layer::Flatten].into_iter().chain(hidden.next().into_iter().flatten()).collect();
        let intermediate = hidden.flatten().collect();
        let name = format!("linear{}", self.widths.len() + 1);
        [beginning, intermediate, vec![Layer::Linear { name, inputs, outputs: self.classes }]]
    }

    /// `features.*` and `classifier.*` as in an `nn.Sequential` each: the first half of the blocks is the beginning, the others the
    /// intermediate, the fully connected layers the final.
    fn cnn_layers(&self) -> Result<[Vec<Layer>; 3], String> {
        let [channels, mut height, mut width] = self.input;
        let blocks = self.widths.len();
        let smallest = 1_usize.checked_shl(blocks as u32).unwrap_or(usize::MAX);
        if height < smallest || width < smallest {
            return Err(format!(
                "{blocks} blocks that each halve the image need {smallest} x {smallest} pixels at least, not {height} x {width}; \
                 resize or pad the images, or give fewer `widths`"
            ));
        }
        if self.hidden == 0 {
            return Err("the hidden layer of a CNN cannot be empty".into());
        }
        let mut parts = [vec![Layer::ChannelsLast], Vec::new(), Vec::new()];
        let mut inputs = channels;
        for (block, &outputs) in self.widths.iter().enumerate() {
            let name = |offset: usize| format!("features.{}", 4 * block + offset);
            let part = &mut parts[usize::from(block >= blocks / 2)];
            part.push(Layer::Block { convolution: name(0), normalisation: name(1), inputs, outputs });
            (inputs, height, width) = (outputs, height / 2, width / 2);
        }
        parts[1].extend([Layer::ChannelsFirst, Layer::Flatten]);
        parts[2] = vec![
            Layer::Linear {
                name: "classifier.0".into(),
                inputs: inputs.saturating_mul(height).saturating_mul(width),
                outputs: self.hidden,
            },
            Layer::Relu,
            Layer::Dropout(self.dropout),
            Layer::Linear { name: "classifier.3".into(), inputs: self.hidden, outputs: self.classes },
        ];
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(layers: &[Layer]) -> usize {
        layers
            .iter()
            .map(|layer| match layer {
                Layer::Block { inputs, outputs, .. } => (inputs * 9 + 1) * outputs + 2 * outputs,
                Layer::Linear { inputs, outputs, .. } => (inputs + 1) * outputs,
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn the_parts_have_as_many_parameters_as_published() {
        for (family, expected) in [(Family::Mlp, [1_573_376, 65_664, 1_290]), (Family::Cnn, [19_584, 369_792, 1_059_850])] {
            let parts = Architecture::of_paper(family, [3, 32, 32], 10).layers().unwrap();
            assert_eq!(parts.map(|layers| parameters(&layers)), expected);
        }
    }

    #[test]
    fn an_impossible_network_is_refused_with_the_reason() {
        let error = Architecture::of_paper(Family::Cnn, [1, 28, 12], 10).layers().unwrap_err();
        assert!(error.contains("16 x 16 pixels at least, not 28 x 12"), "{error}");
        assert!(Architecture::of_paper(Family::Mlp, [1, 0, 12], 10).layers().is_err());
        assert!(Architecture { widths: vec![5], ..Architecture::of_paper(Family::Mlp, [1, 8, 8], 10) }.layers().is_err());
    }

    /// Not built, but refused: nor does a product overflow.
    #[test]
    fn a_network_that_no_memory_holds_is_refused_with_the_size_to_blame() {
        let with = |family, widths: &[usize], hidden| Architecture {
            widths: widths.to_vec(),
            hidden,
            ..Architecture::of_paper(family, [3, 64, 64], 10)
        };
        for (architecture, blame) in [
            (with(Family::Mlp, &[1_000_000, 128], 0), "smaller `widths`"),
            (with(Family::Mlp, &[128, 1_000_000, 1_000_000], 0), "`linear3` of 1000000 to 1000000"),
            (with(Family::Mlp, &[usize::MAX, usize::MAX], 0), "smaller `widths`"),
            (with(Family::Cnn, &[32, usize::MAX / 2], 100), "smaller `widths`"),
            (with(Family::Cnn, &[32, 1_000_000], 100), "smaller `hidden`"),
            (with(Family::Cnn, &[32, 64], 1 << 40), "smaller `hidden`"),
            (with(Family::Cnn, &[2; 64], 10), "resize or pad"),
            (with(Family::Mlp, &[1; 5000], 0), "1024 at most"),
            (Architecture { input: [1 << 40, 1 << 40, 1], ..with(Family::Mlp, &[8, 8], 0) }, "too large"),
            (Architecture { classes: usize::MAX, ..with(Family::Mlp, &[8, 8], 0) }, "`linear3`"),
        ] {
            let error = architecture.layers().unwrap_err();
            assert!(error.contains(blame), "{error}");
        }
        assert!(with(Family::Mlp, &[8192, 4096], 0).layers().is_ok());
    }

    #[test]
    fn any_image_size_gives_a_fitting_flatten() {
        let parts = Architecture::of_paper(Family::Cnn, [1, 45, 33], 7).layers().unwrap();
        assert!(matches!(parts[2][0], Layer::Linear { inputs, .. } if inputs == 256 * 2 * 2));
    }
}
