//! Which network: the facts from which a model's graph is built again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{Builder, Graph};
use crate::zoo;

/// A part of a network that is trained on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// From the image on.
    Beginning,
    /// Up to the final.
    Intermediate,
    /// Up to the logits.
    Final,
}

impl Part {
    /// All parts, from the image to the logits.
    pub const ALL: [Self; 3] = [Self::Beginning, Self::Intermediate, Self::Final];
}

/// A kind of network. Parameters have the names that PyTorch, torchvision and timm give them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// The paper's fully connected network: 512, 128. Layers `linear1`, `linear2`, ...
    Mlp,
    /// The paper's CNN: four blocks of convolution, batch normalisation, rectification and pooling with 32, 64, 128, 256 channels, then 1024. Convolutions
    /// `features.0`, `features.4`, ..., normalisations `features.1`, `features.5`, ...; `classifier.0` and `classifier.3`.
    Cnn,
    /// The paper's weak CNN: two convolutions of 5 x 5 with pooling, 6 and 16 channels, then 120 and 84. Layers `conv1`, `conv2`, `fc1`, `fc2`, `fc3`.
    WeakCnn,
    /// ResNet-18 under torchvision's names, 64 to 512 channels. By default with the stem for small images; a `stem` of `imagenet` is torchvision's.
    Resnet18,
    /// VGG-16 without batch normalisation under torchvision's names. By default without the pooling to 7 x 7; a `stem` of `imagenet` has it.
    Vgg16,
    /// VGG-16 with batch normalisation, as torchvision's `vgg16_bn`. By default without the pooling to 7 x 7; a `stem` of `imagenet` has it.
    Vgg16Bn,
    /// The vision transformer ViT-tiny under timm's names: patches of 4 x 4, width 192, depth 12, 3 heads.
    VitTiny,
    /// ConvNet-3 of the condensation field: three blocks of convolution, instance normalisation, rectification and average pooling with 128 channels.
    Convnet3,
    /// The paper's condensed model: an encoder and a decoder of convolutions, whose image a `conv-classifier` reads. With `reconstruction` the decoder
    /// learns to give the image back.
    ConvAutoencoder,
    /// The paper's classifier of decoded images: three convolutions with pooling, 64, 128, 256 channels, then 512.
    ConvClassifier,
    /// A linear head on rectified responses to a fixed dictionary of 400 filters of 6 x 6, averaged over quadrants (Coates and Ng 2011; arXiv 2101.07528).
    /// The filters are drawn at random; those of an imported model can be patches of images.
    Patches,
}

impl Family {
    /// Whether these networks make an image of the features, with which a recipe's `reconstruction` compares theirs.
    #[must_use]
    pub fn has_decoder(self) -> bool {
        self == Self::ConvAutoencoder
    }
}

/// How a network for large images starts on small ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// ResNet-18: a convolution of 3 x 3 and no pooling. VGG-16: no pooling to 7 x 7 before the fully connected layers.
    Cifar,
    /// As in torchvision.
    Imagenet,
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
    /// Outputs of the hidden layers, or channels of the blocks.
    pub widths: Vec<usize>,
    /// Outputs of the hidden fully connected layers behind the blocks; 0 where there are none.
    pub hidden: usize,
    /// The probability of dropout in the final part; 0 where there is none.
    pub dropout: f64,
    /// How the network starts; none where there is no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// Blocks of a transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Heads of a transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Rows and columns of a patch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// The modules with which the intermediate and the final begin; by default the paper's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<[String; 2]>,
    /// So many of these networks side by side, whose predictions are averaged; none where it is one network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
}

/// Parameters of a network at most: 4 GB, and three times as much again for their gradients and Adam's moments.
pub const MOST_PARAMETERS: usize = 1 << 30;
/// Hidden layers of a network at most.
const MOST_LAYERS: usize = 1024;

impl Architecture {
    /// The network of a family for images and classes of the given shape, in the sizes in which it was published.
    #[must_use]
    pub fn of_family(family: Family, input: [usize; 3], classes: usize) -> Self {
        let (widths, hidden, dropout): (&[usize], _, _) = match family {
            Family::Mlp => (&[512, 128], 0, 0.0),
            Family::Cnn => (&[32, 64, 128, 256], 1024, 0.5),
            Family::WeakCnn => (&[6, 16, 120, 84], 0, 0.0),
            Family::Resnet18 => (&[64, 128, 256, 512], 0, 0.0),
            Family::Vgg16 | Family::Vgg16Bn => (&[64, 128, 256, 512, 512], 4096, 0.5),
            Family::VitTiny => (&[192], 0, 0.0),
            Family::Convnet3 => (&[128, 128, 128], 0, 0.0),
            Family::ConvAutoencoder => (&[32, 64, 128, 64, 128, 256], 512, 0.5),
            Family::ConvClassifier => (&[64, 128, 256], 512, 0.5),
            Family::Patches => (&[400], 0, 0.0),
        };
        let stem = matches!(family, Family::Resnet18 | Family::Vgg16 | Family::Vgg16Bn).then_some(Stem::Cifar);
        let is_transformer = family == Family::VitTiny;
        let patch = match family {
            Family::VitTiny => Some(4),
            Family::Patches => Some(6),
            _ => None,
        };
        Self {
            family,
            input,
            classes,
            widths: widths.to_vec(),
            hidden,
            dropout,
            stem,
            depth: is_transformer.then_some(12),
            heads: is_transformer.then_some(3),
            patch,
            cut: None,
            shards: None,
        }
    }

    /// The steps of the network, or why there is none.
    ///
    /// # Errors
    /// Names the size that does not work.
    pub fn graph(&self) -> Result<Graph, String> {
        if self.input.contains(&0) || self.classes < 2 || self.widths.contains(&0) {
            return Err(format!(
                "a network needs pixels, two classes and no empty layer, not {:?}, {} and {:?}",
                self.input, self.classes, self.widths
            ));
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
        self.refuse_foreign_sizes()?;
        let network = zoo::builder(self)?;
        let Some(shards) = self.shards else { return network.finish(self.cut.as_ref()) };
        if shards == 0 || self.cut.is_some() {
            return Err(format!("{shards} networks side by side are cut nowhere else than behind them; give one at least, and no `cut`"));
        }
        Builder::side_by_side(&network.finish(None)?, shards, |_| "networks, or fewer `shards`")?.finish(None)
    }

    /// One of the networks that stand side by side, or the network.
    #[must_use]
    pub fn member(&self) -> Self {
        Self { shards: None, ..self.clone() }
    }

    /// Sizes that a family knows nothing of would be passed over without a word.
    fn refuse_foreign_sizes(&self) -> Result<(), String> {
        let usual = Self::of_family(self.family, self.input, self.classes);
        let foreign = [
            ("hidden", self.hidden > 0 && usual.hidden == 0),
            ("dropout", self.dropout > 0.0 && usual.dropout == 0.0),
            ("stem", self.stem.is_some() != usual.stem.is_some()),
            ("depth", self.depth.is_some() != usual.depth.is_some()),
            ("heads", self.heads.is_some() != usual.heads.is_some()),
            ("patch", self.patch.is_some() != usual.patch.is_some()),
        ];
        if let Some((name, _)) = foreign.into_iter().find(|(_, is_foreign)| *is_foreign) {
            return Err(format!("`{name}` is no size of this network, or is missing; leave it out for the usual one"));
        }
        let (given, expected) = (self.widths.len(), usual.widths.len());
        match self.family {
            Family::Mlp | Family::Cnn if given < 2 => {
                Err(format!("{given} layer widths are too few to cut the network in three; give two at least"))
            }
            Family::Mlp | Family::Cnn => Ok(()),
            _ if given != expected => Err(format!("this network has {expected} `widths` ({:?} by default), not {given}", usual.widths)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Operation;

    const ALL: [Family; 11] = [
        Family::Mlp,
        Family::Cnn,
        Family::WeakCnn,
        Family::Resnet18,
        Family::Vgg16,
        Family::Vgg16Bn,
        Family::VitTiny,
        Family::Convnet3,
        Family::ConvAutoencoder,
        Family::ConvClassifier,
        Family::Patches,
    ];

    fn of(family: Family) -> Architecture {
        Architecture::of_family(family, [3, 32, 32], 10)
    }

    fn parameters(graph: &Graph) -> [usize; 3] {
        Part::ALL.map(|part| graph.steps()[graph.range(part)].iter().map(crate::graph::Step::parameters).sum())
    }

    #[test]
    fn the_parts_have_as_many_parameters_as_published() {
        for (family, expected) in [
            (Family::Mlp, [1_573_376, 65_664, 1_290]),
            (Family::Cnn, [19_584, 369_792, 1_059_850]),
            (Family::Resnet18, [675_392, 2_099_712, 8_398_858]),
            (Family::Vgg16, [260_160, 5_015_296, 28_362_762]),
            (Family::ConvAutoencoder, [165_600, 165_475, 2_473_610]),
        ] {
            assert_eq!(parameters(&of(family).graph().unwrap()), expected, "{family:?}");
        }
        assert_eq!(parameters(&of(Family::ConvClassifier).graph().unwrap()).iter().sum::<usize>(), 2_473_610);
    }

    /// Wherever it is cut.
    #[test]
    fn a_decoder_ends_in_an_image_of_the_input() {
        for family in ALL {
            let graph = of(family).graph().unwrap();
            assert_eq!(
                graph.reconstruction().map(|image| graph.shape(image)),
                family.has_decoder().then_some(&[3, 32, 32][..]),
                "{family:?}"
            );
        }
        let cut = Some(["encoder.2", "classifier.features.3"].map(str::to_owned));
        let graph = Architecture { cut, ..of(Family::ConvAutoencoder) }.graph().unwrap();
        assert_eq!(graph.reconstruction(), of(Family::ConvAutoencoder).graph().unwrap().reconstruction());
    }

    #[test]
    fn features_are_as_long_as_published() {
        for (family, expected) in [
            (Family::Mlp, 128),
            (Family::Cnn, 1024),
            (Family::WeakCnn, 400),
            (Family::Resnet18, 512),
            (Family::Vgg16, 512),
            (Family::Vgg16Bn, 512),
            (Family::VitTiny, 192),
            (Family::Convnet3, 2048),
            (Family::ConvAutoencoder, 2048),
            (Family::Patches, 3200),
        ] {
            let graph = of(family).graph().unwrap();
            assert_eq!(graph.shape(graph.features()).iter().product::<usize>(), expected, "{family:?}");
        }
    }

    /// The facts of the two networks that there were first are what they were.
    #[test]
    fn sizes_that_a_family_does_not_have_are_not_written() {
        let written = |family| serde_json::to_string(&of(family)).unwrap();
        assert_eq!(
            written(Family::Cnn),
            r#"{"family":"cnn","input":[3,32,32],"classes":10,"widths":[32,64,128,256],"hidden":1024,"dropout":0.5}"#
        );
        assert!(written(Family::Mlp).ends_with(r#""hidden":0,"dropout":0.0}"#));
        for family in ALL {
            assert_eq!(serde_json::from_str::<Architecture>(&written(family)).unwrap(), of(family));
        }
    }

    #[test]
    fn an_impossible_network_is_refused_with_the_reason() {
        let error = Architecture::of_family(Family::Cnn, [1, 28, 12], 10).graph().unwrap_err();
        assert!(error.contains("16 x 16 pixels at least, not 28 x 12"), "{error}");
        assert!(Architecture::of_family(Family::Mlp, [1, 0, 12], 10).graph().is_err());
        assert!(Architecture { widths: vec![5], ..of(Family::Mlp) }.graph().is_err());
        for (architecture, blame) in [
            (Architecture { heads: Some(5), ..of(Family::VitTiny) }, "`heads`"),
            (Architecture { patch: Some(0), ..of(Family::VitTiny) }, "`patch`"),
            (Architecture { patch: Some(5), ..of(Family::VitTiny) }, "`patch`"),
            (Architecture { patch: Some(33), ..of(Family::Patches) }, "`dictionary`"),
            (Architecture { depth: Some(12), ..of(Family::Cnn) }, "`depth`"),
            (Architecture { hidden: 9, ..of(Family::Resnet18) }, "`hidden`"),
            (Architecture { stem: None, ..of(Family::Resnet18) }, "`stem`"),
            (Architecture { widths: vec![8; 3], ..of(Family::Resnet18) }, "has 4 `widths`"),
            (Architecture { input: [3, 8, 8], ..of(Family::Vgg16) }, "32 x 32 pixels at least"),
        ] {
            let error = architecture.graph().unwrap_err();
            assert!(error.contains(blame), "{error}");
        }
    }

    /// Not built, but refused: nor does a product overflow.
    #[test]
    fn a_network_that_no_memory_holds_is_refused_with_the_size_to_blame() {
        let with = |family, widths: &[usize], hidden| Architecture {
            widths: widths.to_vec(),
            hidden,
            ..Architecture::of_family(family, [3, 64, 64], 10)
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
            (with(Family::Resnet18, &[usize::MAX; 4], 0), "smaller `widths`"),
            (with(Family::VitTiny, &[usize::MAX], 0), "smaller `widths`"),
            (Architecture { depth: Some(usize::MAX), ..of(Family::VitTiny) }, "`depth`"),
            (Architecture { input: [1 << 40, 1 << 40, 1], ..with(Family::Mlp, &[8, 8], 0) }, "too large"),
            (Architecture { classes: usize::MAX, ..with(Family::Mlp, &[8, 8], 0) }, "`linear3`"),
        ] {
            let error = architecture.graph().unwrap_err();
            assert!(error.contains(blame), "{error}");
        }
        assert!(with(Family::Mlp, &[8192, 4096], 0).graph().is_ok());
    }

    #[test]
    fn any_image_size_gives_a_fitting_flatten() {
        let graph = Architecture::of_family(Family::Cnn, [1, 45, 33], 7).graph().unwrap();
        let hidden = graph.steps().iter().find(|step| step.name == "classifier.0").unwrap();
        assert_eq!(hidden.slots[0].shape, [1024, 256 * 2 * 2]);
        for family in ALL.into_iter().filter(|family| *family != Family::VitTiny) {
            let architecture = Architecture::of_family(family, [2, 40, 56], 7);
            assert!(architecture.graph().is_ok(), "{family:?} {:?}", architecture.graph().err());
        }
    }

    #[test]
    fn a_cut_is_legal_where_one_value_is_live() {
        let cut = |family, names: [&str; 2]| Architecture { cut: Some(names.map(str::to_owned)), ..of(family) }.graph();
        let graph = cut(Family::Resnet18, ["layer1", "layer2.1"]).unwrap();
        assert_eq!(graph.steps()[graph.range(Part::Intermediate).start].name, "layer1.0.conv1");
        assert_eq!(graph.steps()[graph.range(Part::Final).start].name, "layer2.1.conv1");
        for (names, reason) in [
            (["layer1.0.conv2", "layer4"], "cannot begin at `layer1.0.conv2`"),
            (["layer3", "layer2"], "does not come after it"),
            (["layer2", "layer2"], "does not come after it"),
            (["conv1", "layer2"], "cannot begin at `conv1`"),
            (["layer9", "fc"], "no step or module `layer9`"),
            (["layer", "fc"], "no step or module `layer`"),
        ] {
            let error = cut(Family::Resnet18, names).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(error.contains("does not come after") || error.contains("`layer3.0.conv1`"), "{error}");
        }
        // Between convolution and normalisation too.
        assert!(cut(Family::Cnn, ["features.1", "features.14"]).is_ok());
        assert!(cut(Family::VitTiny, ["blocks.1.norm1", "norm"]).is_ok());
        assert!(cut(Family::VitTiny, ["blocks.1.attn", "norm"]).is_err());
    }

    #[test]
    fn every_step_has_the_operations_of_its_definition() {
        let graph = of(Family::Cnn).graph().unwrap();
        let total: u64 = graph.steps().iter().map(crate::graph::Step::operations).sum();
        let blocks =
            [(3, 32, 32), (32, 64, 16), (64, 128, 8), (128, 256, 4)].map(|(inputs, outputs, side)| 18 * inputs * outputs * side * side);
        assert_eq!(total, blocks.iter().sum::<u64>() + 2 * 1024 * 1024 + 2 * 1024 * 10);
        let graph = of(Family::VitTiny).graph().unwrap();
        let attention = graph.steps().iter().find(|step| matches!(step.operation, Operation::Attention { .. })).unwrap();
        assert_eq!(attention.operations(), 4 * 65 * 65 * 192);
    }
}
