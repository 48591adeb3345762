//! The usual sets by name, each in the layout that it has on the hub, made up: one image of each class in each part.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use dcu_artifact::Dataset;
use polars::prelude::{Column, DataFrame, IntoColumn, IntoSeries, KeyValueMetadata, NamedFrom, ParquetWriter, Series, StructChunked};
use serde_json::{Value, json};

/// A set as the hub has it.
struct Layout {
    set: &'static str,
    /// Train, test, and what is not read.
    files: [&'static str; 3],
    image: &'static str,
    /// Columns of labels with their classes.
    labels: &'static [(&'static str, i64)],
    /// Whether the images have three channels.
    colour: bool,
    /// Height and width of the files' images.
    size: [u32; 2],
    /// Shape of the images that come out.
    shape: [usize; 3],
    /// Of the first channel.
    mean: f64,
}

const LAYOUTS: [Layout; 8] = [
    Layout {
        set: "cifar10",
        files: ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet", "other/train.parquet"],
        image: "img",
        labels: &[("label", 10)],
        colour: true,
        size: [32, 32],
        shape: [3, 32, 32],
        mean: 0.4914,
    },
    Layout {
        set: "cifar100",
        files: ["cifar100/train-00000-of-00001.parquet", "cifar100/test-00000-of-00001.parquet", "other/train.parquet"],
        image: "img",
        labels: &[("fine_label", 100), ("coarse_label", 20)],
        colour: true,
        size: [32, 32],
        shape: [3, 32, 32],
        mean: 0.5071,
    },
    Layout {
        set: "svhn",
        files: [
            "cropped_digits/train-00000-of-00001.parquet",
            "cropped_digits/test-00000-of-00001.parquet",
            "cropped_digits/extra-00000-of-00002.parquet",
        ],
        image: "image",
        labels: &[("label", 10)],
        colour: true,
        size: [32, 32],
        shape: [3, 32, 32],
        mean: 0.4377,
    },
    Layout {
        set: "cinic10",
        files: ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
        image: "image",
        labels: &[("label", 10)],
        colour: true,
        size: [32, 32],
        shape: [3, 32, 32],
        mean: 0.478_895_22,
    },
    Layout {
        set: "fashion-mnist",
        files: ["fashion_mnist/train-00000-of-00001.parquet", "fashion_mnist/test-00000-of-00001.parquet", "other/train.parquet"],
        image: "image",
        labels: &[("label", 10)],
        colour: false,
        size: [28, 28],
        shape: [1, 28, 28],
        mean: 0.2860,
    },
    Layout {
        set: "mnist",
        files: ["mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet", "other/train.parquet"],
        image: "image",
        labels: &[("label", 10)],
        colour: false,
        size: [28, 28],
        shape: [1, 28, 28],
        mean: 0.1307,
    },
    // Some of its images are grey; here the first of each part.
    Layout {
        set: "tiny-imagenet",
        files: [
            "data/train-00000-of-00001-1359597a978bc4fa.parquet",
            "data/valid-00000-of-00001-70d52db3c749a935.parquet",
            "data/test.parquet",
        ],
        image: "image",
        labels: &[("label", 200)],
        colour: true,
        size: [64, 64],
        shape: [3, 64, 64],
        mean: 0.4802,
    },
    Layout {
        set: "imagenette",
        files: ["320px/train-00000-of-00001.parquet", "320px/validation-00000-of-00001.parquet", "160px/train-00000-of-00001.parquet"],
        image: "image",
        labels: &[("label", 10)],
        colour: true,
        size: [40, 60],
        shape: [3, 128, 128],
        mean: 0.485,
    },
];

fn layout(set: &str) -> &'static Layout {
    LAYOUTS.iter().find(|layout| layout.set == set).unwrap()
}

impl Layout {
    /// Writes the three files into a folder.
    fn write(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (index, file) in self.files.iter().enumerate() {
            self.write_file(&folder.path().join(file), index as u8);
        }
        folder
    }

    /// An image of each class, whose pixels are `shade`; the names of the classes stand in the metadata.
    fn write_file(&self, path: &Path, shade: u8) {
        let rows = self.labels[0].1;
        let bytes: Vec<Vec<u8>> = (0..rows).map(|row| self.png(shade, self.set == "tiny-imagenet" && row == 0)).collect();
        let paths: Vec<String> = (0..rows).map(|row| format!("{shade}-{row}.png")).collect();
        let fields =
            [Series::new("bytes".into(), bytes.iter().map(Vec::as_slice).collect::<Vec<&[u8]>>()), Series::new("path".into(), paths)];
        let image = StructChunked::from_series(self.image.into(), rows as usize, fields.iter()).unwrap().into_series().into_column();
        let label = |(name, classes): &(&str, i64)| Column::new((*name).into(), (0..rows).map(|row| row % classes).collect::<Vec<i64>>());
        let columns = std::iter::once(image).chain(self.labels.iter().map(label)).collect();
        let names = |classes: i64| (0..classes).map(|class| format!("class {class}")).collect::<Vec<_>>();
        let features: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(name, classes)| ((*name).to_owned(), json!({ "names": names(*classes), "_type": "ClassLabel" })))
            .collect();
        let metadata = json!({ "info": { "features": features } }).to_string();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        ParquetWriter::new(std::fs::File::create(path).unwrap())
            .with_key_value_metadata(Some(KeyValueMetadata::from_static(vec![("huggingface".into(), metadata)])))
            .finish(&mut DataFrame::new(rows as usize, columns).unwrap())
            .unwrap();
    }

    fn png(&self, shade: u8, is_grey: bool) -> Vec<u8> {
        let ([height, width], mut bytes) = (self.size, Cursor::new(Vec::new()));
        let image = match self.colour && !is_grey {
            true => image::DynamicImage::ImageRgb8(image::RgbImage::from_pixel(width, height, image::Rgb([shade; 3]))),
            false => image::DynamicImage::ImageLuma8(image::GrayImage::from_pixel(width, height, image::Luma([shade]))),
        };
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }
}

/// Both parts, or what the program says.
fn load(path: &Path, more: Value) -> Result<[Dataset; 2], String> {
    let out = tempfile::tempdir().unwrap();
    let mut parameters = json!({ "source": "parquet", "path": path });
    parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(out.path().join("parameters.json"), parameters.to_string()).unwrap();
    let files = ["train", "test"].map(|part| out.path().join(format!("{part}.safetensors")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_dcu-tables"));
    command.args(["load", "--seed", "1", "--params"]).arg(out.path().join("parameters.json"));
    for (part, file) in ["train", "test"].iter().zip(&files) {
        command.arg("--out").arg(format!("{part}={}", file.display()));
    }
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    }
    Ok(files.map(|file| dcu_artifact::read::<Dataset>(&file).unwrap().0))
}

#[test]
fn each_set_is_read_in_the_layout_of_the_hub() {
    for layout in &LAYOUTS {
        let folder = layout.write();
        let parts = load(folder.path(), json!({ "set": layout.set })).unwrap_or_else(|error| panic!("{}: {error}", layout.set));
        let classes = layout.labels[0].1 as usize;
        for (shade, part) in parts.iter().enumerate() {
            assert_eq!(part.images.shape, [&[classes][..], &layout.shape].concat(), "{}", layout.set);
            assert!(part.images.data.iter().all(|&pixel| usize::from(pixel) == shade), "{}: a file of another part was read", layout.set);
            assert_eq!(part.labels, (0..classes as u32).collect::<Vec<_>>(), "{}", layout.set);
            assert_eq!(part.facts.class_names[classes - 1], format!("class {}", classes - 1));
            assert!((part.facts.normalisation.mean[0] - layout.mean).abs() < 1e-12, "{}", layout.set);
        }
    }
}

#[test]
fn coarse_labels_and_sizes_can_be_chosen() {
    let folder = layout("cifar100").write();
    let [train, _] = load(folder.path(), json!({ "set": "cifar100", "label_column": "coarse_label" })).unwrap();
    assert_eq!((train.facts.class_names.len(), train.labels[21]), (20, 1));
    let folder = layout("imagenette").write();
    let [train, test] = load(folder.path(), json!({ "set": "imagenette", "resize": [36, 36], "crop": [32, 24] })).unwrap();
    assert_eq!((&train.images.shape[1..], &test.images.shape[1..]), (&[3, 32, 24][..], &[3, 32, 24][..]));
    // Another subset.
    layout("imagenette").write_file(&folder.path().join("160px/validation-00000-of-00001.parquet"), 2);
    let [train, _] = load(folder.path(), json!({ "set": "imagenette", "subset": "160px" })).unwrap();
    assert!(train.images.data.iter().all(|&pixel| pixel == 2));
}

#[test]
fn another_set_than_the_one_named_is_refused() {
    let ten = layout("cifar10").write();
    let refused = |path: PathBuf, set: &str| load(&path, json!({ "set": set })).unwrap_err();
    let error = refused(ten.path().join("plain_text"), "cifar100");
    assert!(error.contains("`cifar100` has 100 classes, but what was read has 10"), "{error}");
    let error = refused(ten.path().join("plain_text"), "mnist");
    assert!(error.contains("the images of `mnist` are grey, but the first training image is in colour"), "{error}");
    let error = refused(layout("tiny-imagenet").write().path().join("nowhere"), "tiny-imagenet");
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn columns_are_named_and_listed_where_they_are_not_there() {
    let folder = layout("cifar100").write();
    let path = folder.path().join("cifar100");
    // Without a set, what the columns are called is guessed.
    let [train, _] = load(&path, json!({})).unwrap();
    assert_eq!(train.facts.class_names.len(), 100);
    let [train, _] = load(&path, json!({ "image_column": "img", "label_column": "coarse_label" })).unwrap();
    assert_eq!(train.facts.class_names.len(), 20);
    for (parameter, kind) in [("image_column", "images"), ("label_column", "labels")] {
        let error = load(&path, json!({ parameter: "colour" })).unwrap_err();
        let expected = format!("has no column `colour` of {kind}; its columns are `img`, `fine_label`, `coarse_label`");
        assert!(error.contains(&expected) && error.contains(&format!("say which it is with `{parameter}`")), "{error}");
    }
}
