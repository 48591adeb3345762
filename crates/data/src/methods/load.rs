//! `data/load`: images with labels and ids, from any source, of one size, as bytes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use dcu_artifact::{Array, Dataset, DatasetFacts, Normalisation, Part as IdPart, SampleId};
use dcu_nn::rng::Streams;
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::images::{Shape, decode};
use crate::sources::hub::Place;
use crate::sources::{Contents, Part, cifar_binary, embedded, folder, hub, parquet};

pub(crate) struct Load;

/// Where the images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SourceName {
    /// 10,000 digits of MNIST that come with the program, padded to 32 x 32.
    Embedded,
    /// A file or folder in the layout of Hugging Face image data sets.
    Parquet,
    /// A data set of the Hugging Face hub.
    Hub,
    /// The official binary files of CIFAR-10.
    CifarBinary,
    /// A folder for each class, below `train` and `test` where these exist.
    Folder,
}

/// How pixels become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NormaliseBy {
    /// The usual values of a well-known source (the embedded digits, CIFAR-10), computed for any other.
    Named,
    /// Mean and deviation of each channel of the training images.
    Computed,
    /// `mean` and `std`.
    Given,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Where the images come from. Parameters of other sources are ignored.
    source: SourceName,
    /// The file or folder of `parquet`, `cifar-binary` and `folder`.
    #[schemars(extend("x-location" = true))]
    path: Option<PathBuf>,
    /// Owner and name of a data set of the `hub`.
    repo: Option<String>,
    /// Branch, tag or commit of a data set of the `hub`.
    revision: String,
    /// The folder to read of a data set of the `hub` that holds several subsets.
    subset: Option<String>,
    /// Another `hub` than HF_ENDPOINT names.
    #[schemars(extend("x-location" = true))]
    endpoint: Option<String>,
    /// Training images of each class, drawn at random; by default all. The test set is not limited.
    per_class: Option<usize>,
    /// The share of each class that is set aside for testing where a source has no test part.
    test_fraction: f64,
    /// Height and width to scale to.
    resize: Option<[usize; 2]>,
    /// Rows and columns of zeros to add on each side; by default 2 for the embedded digits, else 0.
    pad: Option<usize>,
    /// 1 or 3, whatever the images have.
    channels: Option<usize>,
    /// How pixels become numbers.
    normalise: NormaliseBy,
    /// The mean of each channel, in 0..1, for `normalise: given`.
    mean: Option<Vec<f64>>,
    /// The deviation of each channel, for `normalise: given`.
    std: Option<Vec<f64>>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            source: SourceName::Embedded,
            path: None,
            repo: None,
            revision: "main".into(),
            subset: None,
            endpoint: None,
            per_class: None,
            test_fraction: 0.2,
            resize: None,
            pad: None,
            channels: None,
            normalise: NormaliseBy::Named,
            mean: None,
            std: None,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    source: Source,
    per_class: Option<usize>,
    test_fraction: f64,
    resize: Option<[usize; 2]>,
    pad: usize,
    channels: Option<usize>,
    normalise: Normalise,
}

/// A source with what it needs. Paths and endpoints are locations, which say nothing of the content.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Embedded,
    Parquet(#[serde(skip)] PathBuf),
    Hub {
        repo: String,
        revision: String,
        subset: Option<String>,
        #[serde(skip)]
        endpoint: Option<String>,
    },
    CifarBinary(#[serde(skip)] PathBuf),
    Folder(#[serde(skip)] PathBuf),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Normalise {
    Named,
    Computed,
    Given(Normalisation),
}

impl Method for Load {
    const NAME: &'static str = "load";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Loads labelled images from the program, a file, a folder or the Hugging Face hub";
    const USES_SEED: bool = true;
    const PINNED: bool = true;
    const INPUTS: &'static [Input] = &[];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Dataset>("train"), Output::artifact::<Dataset>("test")];
    const READS_FILES: bool = true;

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let Parameters { per_class, test_fraction, resize, pad, channels, .. } = parameters;
        Rejected::unless(per_class != Some(0), "per_class", "`per_class` must be at least 1")?;
        Rejected::unless(test_fraction > 0.0 && test_fraction < 1.0, "test_fraction", "`test_fraction` must lie between 0 and 1")?;
        Rejected::unless(resize.is_none_or(|size| !size.contains(&0)), "resize", "`resize` needs a positive height and width")?;
        Rejected::unless(matches!(channels, None | Some(1 | 3)), "channels", "`channels` must be 1 or 3")?;
        let pad = pad.unwrap_or(if parameters.source == SourceName::Embedded { 2 } else { 0 });
        let normalise = normalise(&parameters)?;
        Ok(Checked { source: source(parameters)?, per_class, test_fraction, resize, pad, channels, normalise })
    }

    fn externals(parameters: &Checked) -> anyhow::Result<Vec<External>> {
        match &parameters.source {
            Source::Embedded => Ok(Vec::new()),
            Source::Parquet(path) => parquet::outside(path),
            Source::CifarBinary(path) => cifar_binary::outside(path),
            Source::Folder(path) => folder::outside(path),
            Source::Hub { .. } => hub::outside(&parameters.source.place().expect("a hub")),
        }
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        context.progress().phase("read");
        let contents = parameters.source.read()?;
        let streams = Streams::new(context.seed(), "data/load");
        let (train, test) = load(contents, parameters, &streams)?;
        context.write("train", &train)?;
        context.write("test", &test)
    }
}

fn source(parameters: Parameters) -> Result<Source, Rejected> {
    let path = || parameters.path.clone().ok_or_else(|| Rejected::parameter("path", "`path` must name the file or folder to load"));
    Ok(match parameters.source {
        SourceName::Embedded => Source::Embedded,
        SourceName::Parquet => Source::Parquet(path()?),
        SourceName::CifarBinary => Source::CifarBinary(path()?),
        SourceName::Folder => Source::Folder(path()?),
        SourceName::Hub => Source::Hub {
            repo: parameters.repo.ok_or_else(|| Rejected::parameter("repo", "`repo` must name a data set, such as `uoft-cs/cifar10`"))?,
            revision: parameters.revision,
            subset: parameters.subset,
            endpoint: parameters.endpoint,
        },
    })
}

fn normalise(parameters: &Parameters) -> Result<Normalise, Rejected> {
    match parameters.normalise {
        NormaliseBy::Named => Ok(Normalise::Named),
        NormaliseBy::Computed => Ok(Normalise::Computed),
        NormaliseBy::Given => {
            let missing = |name: &str| Rejected::parameter(name, format!("`normalise: given` needs `{name}`"));
            let mean = parameters.mean.clone().ok_or_else(|| missing("mean"))?;
            let std = parameters.std.clone().ok_or_else(|| missing("std"))?;
            let given = Normalisation { mean, std };
            given.check(given.mean.len()).map_err(|message| Rejected::parameter("std", message))?;
            Ok(Normalise::Given(given))
        }
    }
}

impl Source {
    fn place(&self) -> Option<Place> {
        let Self::Hub { repo, revision, subset, endpoint } = self else { return None };
        Some(Place { repo: repo.clone(), revision: revision.clone(), subset: subset.clone(), endpoint: endpoint.clone() })
    }

    fn read(&self) -> anyhow::Result<Contents> {
        match self {
            Self::Embedded => embedded::read(),
            Self::Parquet(path) => parquet::read(path),
            Self::CifarBinary(path) => cifar_binary::read(path),
            Self::Folder(path) => folder::read(path),
            Self::Hub { .. } => hub::read(&self.place().expect("a hub")),
        }
    }
}

/// A sample of the source: its part, and its row there.
type Position = (IdPart, usize);

fn load(contents: Contents, parameters: &Checked, streams: &Streams) -> anyhow::Result<(Dataset, Dataset)> {
    let classes = class_names(&contents)?;
    let (train, test) = divide(&contents, parameters, streams);
    let train = limit(train, &contents, parameters.per_class, streams)?;
    let shape = Shape { channels: parameters.channels, resize: parameters.resize, pad: parameters.pad };
    let (train_images, test_images) = (images(&contents, &train, shape)?, images(&contents, &test, shape)?);
    if train_images.shape[1..] != test_images.shape[1..] {
        let message = format!(
            "training images are {:?}, test images {:?} (channels, height, width)",
            &train_images.shape[1..],
            &test_images.shape[1..]
        );
        return Err(Failure::new(message, "give `resize` and `channels`, so that all images are alike").into());
    }
    let channels = train_images.shape[1];
    let normalisation = match &parameters.normalise {
        Normalise::Given(given) => given.clone(),
        Normalise::Named => {
            contents.normalisation.clone().filter(|named| named.mean.len() == channels).unwrap_or_else(|| computed(&train_images))
        }
        Normalise::Computed => computed(&train_images),
    };
    normalisation
        .check(channels)
        .map_err(|reason| Failure::new(reason, "give as many values of `mean` and `std` as the images have channels"))?;
    let dataset = |places: &[Position], images| {
        let facts = DatasetFacts {
            source: contents.name.clone(),
            class_names: classes.clone(),
            normalisation: normalisation.clone(),
            names: places.iter().map(|place| name(&contents, *place)).collect(),
        };
        Dataset {
            images,
            labels: places.iter().map(|&place| label(&contents, place) as u32).collect(),
            original_labels: None,
            ids: places.iter().map(|&(part, row)| SampleId::new(part, row as u32).0).collect(),
            facts,
        }
    };
    Ok((dataset(&train, train_images), dataset(&test, test_images)))
}

fn part(contents: &Contents, part: IdPart) -> &Part {
    match part {
        IdPart::Train => &contents.train,
        IdPart::Test => contents.test.as_ref().expect("only rows of a part that exists are named"),
    }
}

fn label(contents: &Contents, (of, row): Position) -> i64 {
    part(contents, of).labels[row]
}

fn name(contents: &Contents, (of, row): Position) -> Option<String> {
    part(contents, of).names.as_ref().map(|names| names[row].clone())
}

/// The names of the classes, after every label was found to be in range.
fn class_names(contents: &Contents) -> anyhow::Result<Vec<String>> {
    let parts = || std::iter::once(&contents.train).chain(&contents.test);
    let largest = parts().flat_map(|part| &part.labels).copied().max().unwrap_or(0);
    let names = contents.class_names.clone().unwrap_or_else(|| (0..=largest).map(|class| class.to_string()).collect());
    for part in parts() {
        if let Some(row) = part.labels.iter().position(|&label| usize::try_from(label).map_or(true, |label| label >= names.len())) {
            let message = format!(
                "the label {} of the image {} is out of range: there are {} classes",
                part.labels[row],
                part.place(row),
                names.len()
            );
            return Err(Failure::new(message, "labels count from 0; mend or leave out the sample").into());
        }
    }
    Ok(names)
}

/// All samples of the training and of the test set. Without a test part of its own, a share of each class of the source is set aside.
fn divide(contents: &Contents, parameters: &Checked, streams: &Streams) -> (Vec<Position>, Vec<Position>) {
    let all = |part: IdPart, count: usize| (0..count).map(move |row| (part, row));
    let train = all(IdPart::Train, contents.train.labels.len());
    if let Some(test) = &contents.test {
        return (train.collect(), all(IdPart::Test, test.labels.len()).collect());
    }
    let mut aside = vec![false; contents.train.labels.len()];
    for (class, mut rows) in by_class(contents, &train.clone().collect::<Vec<_>>()) {
        streams.indexed("test", class as u64).shuffle(&mut rows);
        let count = (rows.len() as f64 * parameters.test_fraction).round() as usize;
        rows[..count].iter().for_each(|&(_, row)| aside[row] = true);
    }
    train.partition(|&(_, row)| !aside[row])
}

fn by_class(contents: &Contents, places: &[Position]) -> BTreeMap<i64, Vec<Position>> {
    let mut classes: BTreeMap<i64, Vec<Position>> = BTreeMap::new();
    places.iter().for_each(|&place| classes.entry(label(contents, place)).or_default().push(place));
    classes
}

fn limit(places: Vec<Position>, contents: &Contents, per_class: Option<usize>, streams: &Streams) -> anyhow::Result<Vec<Position>> {
    let Some(per_class) = per_class else { return Ok(places) };
    let mut kept = Vec::new();
    for (class, mut rows) in by_class(contents, &places) {
        if rows.len() < per_class {
            let message = format!("class {class} has {} training images, fewer than `per_class: {per_class}`", rows.len());
            return Err(Failure::new(message, format!("give `per_class: {}` at most", rows.len())).into());
        }
        streams.indexed("limit", class as u64).shuffle(&mut rows);
        kept.extend(&rows[..per_class]);
    }
    kept.sort_unstable();
    Ok(kept)
}

fn images(contents: &Contents, places: &[Position], shape: Shape) -> anyhow::Result<Array<u8>> {
    let cells: Vec<_> = places.iter().map(|&(of, row)| part(contents, of).cells[row].clone()).collect();
    decode(&cells, shape, |index| {
        let (of, row) = places[index];
        part(contents, of).place(row)
    })
    .context("cannot load the images")
}

fn computed(images: &Array<u8>) -> Normalisation {
    let (channels, area) = (images.shape[1], images.shape[2] * images.shape[3]);
    let count = (images.rows() * area) as f64;
    let moments = (0..channels).map(|channel| {
        let planes = images.data.chunks_exact(area).skip(channel).step_by(channels);
        let (sum, squares) = planes.flatten().fold((0_u64, 0_u64), |(sum, squares), &pixel| {
            let pixel = u64::from(pixel);
            (sum + pixel, squares + pixel * pixel)
        });
        let mean = sum as f64 / count / 255.0;
        let variance = (squares as f64 / count / (255.0 * 255.0) - mean * mean).max(0.0);
        // A constant channel carries nothing; any positive deviation serves it.
        (mean, if variance > 0.0 { variance.sqrt() } else { 1.0 })
    });
    let (mean, std) = moments.unzip();
    Normalisation { mean, std }
}
