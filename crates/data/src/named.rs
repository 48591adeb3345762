//! The usual data sets by name: where the hub keeps them, in which columns, and what is known of them. One table, [`SetName::facts`].
//!
//! Repositories, subsets, columns, names of files and counts of classes were compared with the hub's own pages of files, data set cards and old loading
//! scripts, as far as these were at hand; where one was not, the entry says so. Means and deviations are those that published code uses, which are not
//! always those of the pixels: the deviations of CIFAR-10 and Tiny-ImageNet are means of the deviations of single images.

use dcu_artifact::Normalisation;
use dcu_stage::Failure;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error as _, IntoDeserializer as _};
use serde::{Deserialize, Serialize};

use crate::images::Cell;
use crate::readers::{IMAGE_COLUMNS, LABEL_COLUMNS, Selection};
use crate::sources::{CIFAR10_CLASSES, Contents, Part, Share};

/// A data set that everybody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SetName {
    /// 32 x 32 colour, 10 classes; 50,000 and 10,000 images.
    Cifar10,
    /// 32 x 32 colour, 100 classes, or 20 with `label_column: coarse_label`; 50,000 and 10,000 images.
    Cifar100,
    /// 32 x 32 colour, 10 digits; 73,257 and 26,032 images, without the part `extra`.
    Svhn,
    /// 32 x 32 colour, 10 classes; 90,000 and 90,000 images, without the part for validation.
    Cinic10,
    /// 28 x 28 grey, 10 classes; 60,000 and 10,000 images.
    FashionMnist,
    /// 28 x 28 grey, 10 digits; 60,000 and 10,000 images.
    Mnist,
    /// 64 x 64 colour, 200 classes; 100,000 images, tested on the 10,000 for validation.
    TinyImagenet,
    /// Photographs of many sizes, brought to 128 x 128; 10 classes; 9,469 images, tested on the 3,925 for validation.
    Imagenette,
}

/// The official files of a set, beside parquet files and folders of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Official {
    /// Records of labels and bytes.
    CifarBinary,
    /// The files of MNIST.
    Idx,
    /// In no form of their own that is read, and what to say of it.
    Unread(&'static str),
}

/// Height and width of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// All images are squares of this side.
    Square(usize),
    /// They differ; unless told otherwise they are brought to this side.
    Any(usize),
}

/// What is known of a set.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Owner and name on the hub.
    pub(crate) repo: &'static str,
    /// The folder of the repository.
    pub(crate) subset: Option<&'static str>,
    image_column: &'static str,
    /// The columns that hold labels, each with its number of classes; the usual one first.
    labels: &'static [(&'static str, usize)],
    /// The names of the usual column's classes, where a source does not tell them.
    class_names: Option<&'static [&'static str]>,
    channels: usize,
    /// Whether some of the images are grey all the same.
    some_grey: bool,
    pub(crate) size: Size,
    /// The part to test on.
    pub(crate) test: Share,
    mean: &'static [f64],
    std: &'static [f64],
    pub(crate) official: Official,
}

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
const GARMENTS: [&str; 10] = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// What most sets have in common.
const USUAL: Facts = Facts {
    repo: "",
    subset: None,
    image_column: "image",
    labels: &[("label", 10)],
    class_names: None,
    channels: 3,
    some_grey: false,
    size: Size::Square(32),
    test: Share::Test,
    mean: &[],
    std: &[],
    official: Official::Unread(""),
};

const CIFAR10: Facts = Facts {
    repo: "uoft-cs/cifar10",
    subset: Some("plain_text"),
    image_column: "img",
    class_names: Some(&CIFAR10_CLASSES),
    mean: &[0.4914, 0.4822, 0.4465],
    std: &[0.2023, 0.1994, 0.2010],
    official: Official::CifarBinary,
    ..USUAL
};

const CIFAR100: Facts = Facts {
    repo: "uoft-cs/cifar100",
    subset: Some("cifar100"),
    image_column: "img",
    labels: &[("fine_label", 100), ("coarse_label", 20)],
    mean: &[0.5071, 0.4865, 0.4409],
    std: &[0.2673, 0.2564, 0.2762],
    official: Official::CifarBinary,
    ..USUAL
};

const SVHN: Facts = Facts {
    repo: "ufldl-stanford/svhn",
    subset: Some("cropped_digits"),
    class_names: Some(&DIGITS),
    mean: &[0.4377, 0.4438, 0.4728],
    std: &[0.1980, 0.2010, 0.1970],
    official: Official::Unread("its official `.mat` files are not read"),
    ..USUAL
};

/// Whether its images from ImageNet include grey ones is unchecked; code that reads it converts them, and so does this.
const CINIC10: Facts = Facts {
    repo: "flwrlabs/cinic10",
    class_names: Some(&CIFAR10_CLASSES),
    some_grey: true,
    mean: &[0.478_895_22, 0.472_278_42, 0.430_474_04],
    std: &[0.242_057_76, 0.238_280_46, 0.258_748_35],
    official: Official::Unread("its archive is read once it is unpacked, with `source: folder`"),
    ..USUAL
};

const FASHION_MNIST: Facts = Facts {
    repo: "zalando-datasets/fashion_mnist",
    subset: Some("fashion_mnist"),
    class_names: Some(&GARMENTS),
    channels: 1,
    size: Size::Square(28),
    mean: &[0.2860],
    std: &[0.3530],
    official: Official::Idx,
    ..USUAL
};

const MNIST: Facts = Facts {
    repo: "ylecun/mnist",
    subset: Some("mnist"),
    class_names: Some(&DIGITS),
    channels: 1,
    size: Size::Square(28),
    mean: &[0.1307],
    std: &[0.3081],
    official: Official::Idx,
    ..USUAL
};

/// The labels of its test part were never published.
const TINY_IMAGENET: Facts = Facts {
    repo: "zh-plus/tiny-imagenet",
    labels: &[("label", 200)],
    some_grey: true,
    size: Size::Square(64),
    test: Share::Validation,
    mean: &[0.4802, 0.4481, 0.3975],
    std: &[0.2302, 0.2265, 0.2262],
    official: Official::Unread("its archive is read once it is unpacked, with `source: folder`"),
    ..USUAL
};

/// The repository was a script, which is not read, and has had parquet files on its main branch since; that the folder `320px` is laid out as `160px`,
/// which published code reads, is unchecked. The mean and deviation are ImageNet's.
const IMAGENETTE: Facts = Facts {
    repo: "frgfm/imagenette",
    subset: Some("320px"),
    some_grey: true,
    size: Size::Any(128),
    test: Share::Validation,
    mean: &[0.485, 0.456, 0.406],
    std: &[0.229, 0.224, 0.225],
    official: Official::Unread("its archive is read once it is unpacked, with `source: folder`"),
    ..USUAL
};

impl SetName {
    /// All of them.
    const ALL: [Self; 8] =
        [Self::Cifar10, Self::Cifar100, Self::Svhn, Self::Cinic10, Self::FashionMnist, Self::Mnist, Self::TinyImagenet, Self::Imagenette];

    /// As a pipeline says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Svhn => "svhn",
            Self::Cinic10 => "cinic10",
            Self::FashionMnist => "fashion-mnist",
            Self::Mnist => "mnist",
            Self::TinyImagenet => "tiny-imagenet",
            Self::Imagenette => "imagenette",
        }
    }

    /// What is known of it.
    pub(crate) fn facts(self) -> &'static Facts {
        match self {
            Self::Cifar10 => &CIFAR10,
            Self::Cifar100 => &CIFAR100,
            Self::Svhn => &SVHN,
            Self::Cinic10 => &CINIC10,
            Self::FashionMnist => &FASHION_MNIST,
            Self::Mnist => &MNIST,
            Self::TinyImagenet => &TINY_IMAGENET,
            Self::Imagenette => &IMAGENETTE,
        }
    }

    /// The number of classes by a column of labels; by the usual one where the column is the user's own.
    fn classes(self, label_column: Option<&str>) -> usize {
        let labels = self.facts().labels;
        labels.iter().find(|(column, _)| Some(*column) == label_column).unwrap_or(&labels[0]).1
    }

    /// Refuses images that are not those of the set, and gives the rest its names and normalisation.
    ///
    /// # Errors
    /// When the number of classes, the channels or the size are others.
    pub(crate) fn complete(self, contents: &mut Contents, label_column: Option<&str>, channels: Option<usize>) -> anyhow::Result<()> {
        let (name, facts, wanted) = (self.name(), self.facts(), self.classes(label_column));
        let refuse = |message: String| {
            let remedy = format!("name what holds {name} itself, or leave `set` out for images of your own");
            anyhow::Error::from(Failure::new(message, remedy))
        };
        let parts = || [(&contents.train, "training"), (contents.test.as_ref().unwrap_or(&contents.train), "test")];
        let largest = parts().iter().flat_map(|(part, _)| &part.labels).copied().max().unwrap_or(-1);
        let found = contents.class_names.as_ref().map_or_else(|| usize::try_from(largest.saturating_add(1)).unwrap_or(0), Vec::len);
        if found != wanted {
            return Err(refuse(format!("`{name}` has {wanted} classes, but what was read has {found}")));
        }
        for (part, what) in parts() {
            self.check_first(part, what).map_or_else(|| Ok(()), |message| Err(refuse(message)))?;
        }
        let known = facts.class_names.filter(|names| names.len() == wanted);
        contents.class_names = contents.class_names.take().or_else(|| Some(known?.iter().map(ToString::to_string).collect()));
        contents.normalisation = self.normalisation(channels.unwrap_or(facts.channels));
        Ok(())
    }

    /// What is wrong with the first image of a part. One that cannot be decoded is left to those who decode it.
    fn check_first(self, part: &Part, what: &str) -> Option<String> {
        let facts = self.facts();
        let [channels, height, width] = part.cells.first().and_then(Cell::size)?;
        let colour = |channels: usize| if channels == 1 { "grey" } else { "in colour" };
        if channels != facts.channels && !(facts.some_grey && channels == 1) {
            let (wanted, found) = (colour(facts.channels), colour(channels));
            return Some(format!("the images of `{}` are {wanted}, but the first {what} image is {found}", self.name()));
        }
        match facts.size {
            Size::Square(side) if [height, width] != [side; 2] => {
                Some(format!("the images of `{}` are {side} x {side}, but the first {what} image is {height} x {width}", self.name()))
            }
            _ => None,
        }
    }

    /// The usual normalisation; for grey images that become three equal channels, three times the same. None for colour that becomes grey.
    fn normalisation(self, channels: usize) -> Option<Normalisation> {
        let Facts { mean, std, .. } = self.facts();
        match (mean.len(), channels) {
            (known, wanted) if known == wanted => Some(Normalisation { mean: mean.to_vec(), std: std.to_vec() }),
            (1, wanted) => Some(Normalisation { mean: vec![mean[0]; wanted], std: vec![std[0]; wanted] }),
            _ => None,
        }
    }

    /// The channels to convert to, where not all images have the same.
    pub(crate) fn channels(self) -> Option<usize> {
        Some(self.facts().channels).filter(|_| self.facts().some_grey)
    }

    /// Whether it has labels of this name.
    pub(crate) fn is_label(self, column: &str) -> bool {
        self.facts().labels.iter().any(|(known, _)| *known == column)
    }
}

/// What to read of a table: the user's columns, else those of the set, else the usual ones.
pub(crate) fn selection(set: Option<SetName>, image_column: Option<&str>, label_column: Option<&str>) -> Selection {
    let facts = set.map(SetName::facts);
    let columns = |given: Option<&str>, known: Option<&str>, usual: &[&str]| match given {
        Some(given) => vec![given.to_owned()],
        None => known.into_iter().chain(usual.iter().copied()).map(str::to_owned).collect(),
    };
    Selection {
        image_columns: columns(image_column, facts.map(|facts| facts.image_column), &IMAGE_COLUMNS),
        label_columns: columns(label_column, facts.map(|facts| facts.labels[0].0), &LABEL_COLUMNS),
        test: facts.map(|facts| facts.test),
    }
}

/// Reads a name; for one that is unknown, the nearest or all.
pub(crate) fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SetName>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let known: Result<SetName, serde::de::value::Error> = SetName::deserialize(text.as_str().into_deserializer());
    known.map(Some).map_err(|_| D::Error::custom(unknown(&text)))
}

fn unknown(text: &str) -> String {
    let letters = |name: &str| name.to_lowercase().chars().filter(|letter| letter.is_alphanumeric()).collect::<String>();
    let written = letters(text);
    let distance = |name: &str| strsim::osa_distance(&written, &letters(name));
    let names = SetName::ALL.map(SetName::name);
    let nearest = names.into_iter().min_by_key(|name| distance(name)).filter(|name| distance(name) * 3 <= name.len());
    let hint = nearest.map_or_else(|| format!("there is `{}`", names.join("`, `")), |name| format!("did you mean `{name}`?"));
    format!("unknown set `{}`; {hint}", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::cifar10_normalisation;

    fn contents(classes: usize, size: [usize; 3]) -> Contents {
        let cells = vec![Cell::Planes(vec![0; size.iter().product()], size); classes];
        let train = Part { cells, labels: (0..classes as i64).collect(), names: None, files: vec![(0, "a".into())] };
        Contents { name: "a".into(), train, test: None, class_names: None, normalisation: None, notes: Vec::new() }
    }

    #[test]
    fn the_table_is_consistent() {
        for set in SetName::ALL {
            assert_eq!(serde_json::to_value(set).unwrap(), set.name());
            let facts = set.facts();
            let normalisation = set.normalisation(facts.channels).unwrap();
            normalisation.check(facts.channels).unwrap();
            assert!(facts.class_names.is_none_or(|names| names.len() == facts.labels[0].1), "{}", set.name());
            assert_eq!(facts.repo.split('/').count(), 2);
            assert!(matches!(facts.test, Share::Test | Share::Validation));
        }
        assert_eq!(SetName::Cifar10.normalisation(3), Some(cifar10_normalisation()));
    }

    #[test]
    fn a_set_brings_its_names_and_normalisation() {
        let mut digits = contents(10, [1, 28, 28]);
        SetName::Mnist.complete(&mut digits, None, None).unwrap();
        assert_eq!(digits.class_names.unwrap()[9], "9");
        assert_eq!(digits.normalisation.unwrap().mean, [0.1307]);
        let mut colour = contents(10, [1, 28, 28]);
        SetName::Mnist.complete(&mut colour, None, Some(3)).unwrap();
        assert_eq!(colour.normalisation.unwrap().std, [0.3081; 3]);
        let mut coarse = contents(20, [3, 32, 32]);
        SetName::Cifar100.complete(&mut coarse, Some("coarse_label"), None).unwrap();
        assert_eq!(coarse.class_names, None);
    }

    #[test]
    fn what_is_another_set_is_refused() {
        let refused = |set: SetName, mut contents: Contents| set.complete(&mut contents, None, None).unwrap_err().to_string();
        assert!(refused(SetName::Cifar100, contents(10, [3, 32, 32])).contains("`cifar100` has 100 classes, but what was read has 10"));
        assert!(refused(SetName::Svhn, contents(10, [1, 32, 32])).contains("are in colour, but the first training image is grey"));
        assert!(refused(SetName::Mnist, contents(10, [3, 28, 28])).contains("are grey, but the first training image is in colour"));
        assert!(refused(SetName::Mnist, contents(10, [1, 32, 32])).contains("are 28 x 28, but the first training image is 32 x 32"));
        let mut test = contents(10, [3, 32, 32]);
        test.test = Some(contents(10, [3, 48, 32]).train);
        assert!(refused(SetName::Cifar10, test).contains("the first test image is 48 x 32"));
        let mut ids = contents(10, [3, 32, 32]);
        ids.train.labels[3] = i64::MAX;
        assert!(refused(SetName::Cifar10, ids).contains("`cifar10` has 10 classes"));
        SetName::TinyImagenet.complete(&mut contents(200, [1, 64, 64]), None, None).unwrap();
    }

    #[test]
    fn a_name_that_is_mistyped_is_guessed() {
        assert_eq!(unknown("CIFAR-10"), "unknown set `CIFAR-10`; did you mean `cifar10`?");
        assert_eq!(unknown("fashoin_mnist"), "unknown set `fashoin_mnist`; did you mean `fashion-mnist`?");
        assert!(unknown("food").starts_with("unknown set `food`; there is `cifar10`, `cifar100`"));
    }

    #[test]
    fn columns_of_the_user_come_before_those_of_the_set() {
        let selection = |set, label| selection(set, None, label).label_columns;
        assert_eq!(selection(None, None), LABEL_COLUMNS);
        assert_eq!(selection(Some(SetName::Cifar100), None)[0], "fine_label");
        assert_eq!(selection(Some(SetName::Cifar100), Some("coarse_label")), ["coarse_label"]);
    }
}
