//! `data/load`: images with labels and ids, from any source, of one size, as bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dcu_artifact::{Array, Dataset, DatasetFacts, Normalisation, Part as IdPart, SampleId, digest_bytes};
use dcu_nn::rng::Streams;
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::images::{Fit, Shape, decode};
use crate::named::{self, Official, SetName, Size};
use crate::readers::{Place, Readers, Selection};
use crate::sources::{Contents, Part, Share, cifar_binary, embedded, folder, idx};

/// The method, with the readers that its program has.
#[derive(Debug)]
pub struct Load<R>(PhantomData<R>);

/// The largest height and width to scale to.
const MOST_SIDE: usize = 4096;
/// The most rows and columns of zeros on a side.
const MOST_PADDING: usize = 1024;

/// Height and width.
type Extent = [usize; 2];

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
    /// The official binary files of CIFAR-10, or of CIFAR-100 by `set: cifar100`.
    CifarBinary,
    /// The official files of MNIST and Fashion-MNIST, packed (`.gz`) or not.
    Idx,
    /// A folder for each class, below `train` and `test` where these exist.
    Folder,
}

/// How pixels become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NormaliseBy {
    /// The usual values of a `set` or of a well-known source (the embedded digits, CIFAR-10), computed for any other.
    Named,
    /// Mean and deviation of each channel of the training images.
    Computed,
    /// `mean` and `std`.
    Given,
}

/// The parameters.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    /// Where the images come from: by default the embedded digits, or the hub where there is a `set`. Parameters of other sources are ignored.
    source: Option<SourceName>,
    /// A well-known data set: where the hub has it, which columns, parts and normalisation it has, and what to check. With `path`, the same files in a
    /// folder, folders of classes, or its official files.
    #[serde(deserialize_with = "named::by_name")]
    set: Option<SetName>,
    /// The file or folder of `parquet`, `cifar-binary`, `idx` and `folder`.
    #[schemars(extend("x-location" = true))]
    path: Option<PathBuf>,
    /// Owner and name of a data set of the `hub`; by default that of the `set`.
    repo: Option<String>,
    /// Branch, tag or commit of a data set of the `hub`.
    revision: String,
    /// The folder to read of a data set of the `hub`, or of a copy of a `set`, that holds several subsets; by default that of the `set`.
    subset: Option<String>,
    /// The column of images of `parquet` and `hub`; by default that of the `set`, `img` or `image`.
    image_column: Option<String>,
    /// The column of labels of `parquet` and `hub`; by default that of the `set`, `label`, `labels` or `fine_label`. Of CIFAR-100 also in `cifar-binary`.
    label_column: Option<String>,
    /// Another `hub` than HF_ENDPOINT names.
    #[schemars(extend("x-location" = true))]
    endpoint: Option<String>,
    /// Training images of each class, drawn at random; by default all. The test set is not limited.
    per_class: Option<usize>,
    /// The share of each class that is set aside for testing where a source has no test part.
    test_fraction: f64,
    /// Height and width to scale to, at most 4096. Proportions are lost unless there is a `crop`. Images of Imagenette come to 128 x 128 by default.
    resize: Option<[usize; 2]>,
    /// Height and width to cut out of the middle. With `resize` the image is first scaled in its proportions, so that it just covers that.
    crop: Option<[usize; 2]>,
    /// Rows and columns of zeros to add on each side; by default 2 for the embedded digits, else 0; at most 1024.
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
            source: None,
            set: None,
            path: None,
            repo: None,
            revision: "main".into(),
            subset: None,
            image_column: None,
            label_column: None,
            endpoint: None,
            per_class: None,
            test_fraction: 0.2,
            resize: None,
            crop: None,
            pad: None,
            channels: None,
            normalise: NormaliseBy::Named,
            mean: None,
            std: None,
        }
    }
}

/// The parameters after the check.
#[derive(Debug, Serialize)]
pub struct Checked {
    source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<SetName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_column: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_column: Option<String>,
    /// Where a copy of the set's repository has it: a location.
    #[serde(skip)]
    subset: Option<String>,
    per_class: Option<usize>,
    test_fraction: f64,
    resize: Option<[usize; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crop: Option<[usize; 2]>,
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
    Hub(Place),
    CifarBinary(#[serde(skip)] PathBuf),
    Idx(#[serde(skip)] PathBuf),
    Folder(#[serde(skip)] PathBuf),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Normalise {
    Named,
    Computed,
    Given(Normalisation),
}

impl<R: Readers> Method for Load<R> {
    const NAME: &'static str = "load";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Loads labelled images from the program, a file, a folder or the Hugging Face hub";
    const USES_SEED: bool = true;
    const PINNED: bool = true;
    const INPUTS: &'static [Input] = &[];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Dataset>("train"), Output::artifact::<Dataset>("test")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let Parameters { set, per_class, test_fraction, pad, .. } = parameters;
        Rejected::unless(per_class != Some(0), "per_class", "`per_class` must be at least 1")?;
        Rejected::unless(test_fraction > 0.0 && test_fraction < 1.0, "test_fraction", "`test_fraction` must lie between 0 and 1")?;
        let (resize, crop) = sizes(&parameters)?;
        Rejected::unless(matches!(parameters.channels, None | Some(1 | 3)), "channels", "`channels` must be 1 or 3")?;
        let name = parameters.source.unwrap_or(if set.is_some() { SourceName::Hub } else { SourceName::Embedded });
        let pad = pad.unwrap_or(if name == SourceName::Embedded { 2 } else { 0 });
        Rejected::unless(pad <= MOST_PADDING, "pad", format!("`pad` must be at most {MOST_PADDING}"))?;
        if let Some(set) = set {
            refuse_other_files(set, name, parameters.label_column.as_deref())?;
        }
        Ok(Checked {
            set,
            image_column: parameters.image_column.clone(),
            label_column: parameters.label_column.clone(),
            subset: set.and_then(|set| parameters.subset.clone().or_else(|| Some(set.facts().subset?.to_owned()))),
            per_class,
            test_fraction,
            resize,
            crop,
            pad,
            channels: parameters.channels.or_else(|| set.and_then(SetName::channels)),
            normalise: normalise(&parameters)?,
            source: source(parameters, name)?,
        })
    }

    fn elsewhere(parameters: &Checked) -> Option<&'static str> {
        R::ELSEWHERE.filter(|_| matches!(parameters.source, Source::Parquet(_) | Source::Hub(_)))
    }

    fn pin(parameters: &Checked) -> anyhow::Result<Map<String, Value>> {
        let Source::Hub(place) = &parameters.source else { return Ok(Map::new()) };
        if place.is_commit() {
            return Ok(Map::new());
        }
        Ok(R::commit(place)?.map(|commit| ("revision".to_owned(), commit.into())).into_iter().collect())
    }

    fn externals(parameters: &Checked) -> anyhow::Result<Vec<External>> {
        match &parameters.source {
            Source::Embedded => Ok(Vec::new()),
            Source::Parquet(path) => R::parquet_files(&parameters.folder(path), &parameters.selection()),
            Source::CifarBinary(path) => cifar_binary::outside(path, parameters.kind()),
            Source::Idx(path) => idx::outside(path),
            Source::Folder(path) => folder::outside(path, parameters.test()),
            // What the revision stands for has taken its place, but where the hub would have to be asked for it.
            Source::Hub(place) => {
                let digest = place.is_commit().then(|| digest_bytes(format!("hub:{}@{}", place.repo, place.revision).as_bytes()));
                Ok(vec![External { name: place.repo.clone(), digest }])
            }
        }
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        context.progress().phase("read");
        let mut contents = match &parameters.source {
            Source::Embedded => embedded::read(),
            Source::Parquet(path) => R::read_parquet(&parameters.folder(path), &parameters.selection()),
            Source::CifarBinary(path) => cifar_binary::read(path, parameters.kind()),
            Source::Idx(path) => idx::read(path),
            Source::Folder(path) => folder::read(path, parameters.test()),
            Source::Hub(place) => R::read_hub(place, &parameters.selection()),
        }?;
        if let Some(set) = parameters.set {
            set.complete(&mut contents, parameters.label_column.as_deref(), parameters.channels)?;
        }
        contents.notes.iter().for_each(|note| context.progress().note(note));
        let streams = Streams::new(context.seed(), "data/load");
        let classes = class_names(&contents)?;
        remarks(&contents, &classes).iter().for_each(|note| context.progress().note(note));
        let (train, test) = load(contents, classes, parameters, &streams)?;
        context.write("train", &train)?;
        context.write("test", &test)
    }
}

impl Checked {
    /// What to read of parquet files.
    fn selection(&self) -> Selection {
        named::selection(self.set, self.image_column.as_deref(), self.label_column.as_deref())
    }

    /// The part to test on, where it is known.
    fn test(&self) -> Option<Share> {
        self.set.map(|set| set.facts().test)
    }

    /// The folder of the set's subset in a copy of its whole repository.
    fn folder(&self, path: &Path) -> PathBuf {
        let subset = self.subset.as_ref().map(|subset| path.join(subset));
        subset.filter(|subset| subset.is_dir()).unwrap_or_else(|| path.to_owned())
    }

    fn kind(&self) -> cifar_binary::Kind {
        match (self.set, self.label_column.as_deref()) {
            (Some(SetName::Cifar100), Some("coarse_label")) => cifar_binary::Kind::Coarse,
            (Some(SetName::Cifar100), _) => cifar_binary::Kind::Fine,
            _ => cifar_binary::Kind::Ten,
        }
    }
}

/// The sizes to scale to and to cut out. Images of a set whose sizes differ come to one without being told to, in their proportions.
fn sizes(parameters: &Parameters) -> Result<(Option<Extent>, Option<Extent>), Rejected> {
    let fits = |size: Extent| size.iter().all(|side| (1..=MOST_SIDE).contains(side));
    for (name, size) in [("resize", parameters.resize), ("crop", parameters.crop)] {
        Rejected::unless(size.is_none_or(fits), name, format!("`{name}` needs a height and a width from 1 to {MOST_SIDE}"))?;
    }
    let (resize, crop) = match parameters.set.map(|set| set.facts().size) {
        Some(Size::Any(side)) => {
            let usual = parameters.resize.or(parameters.crop).unwrap_or([side; 2]);
            (Some(usual), parameters.crop.or(Some(usual)))
        }
        _ => (parameters.resize, parameters.crop),
    };
    let inside = |([high, wide], [height, width]): (Extent, Extent)| high <= height && wide <= width;
    Rejected::unless(crop.zip(resize).is_none_or(inside), "crop", "`crop` must not be larger than `resize`")?;
    Ok((resize, crop))
}

/// Refuses a source that cannot hold the set.
fn refuse_other_files(set: SetName, source: SourceName, label_column: Option<&str>) -> Result<(), Rejected> {
    let (name, official) = (set.name(), set.facts().official);
    let fits = match source {
        SourceName::Hub | SourceName::Parquet | SourceName::Folder => true,
        SourceName::CifarBinary => official == Official::CifarBinary,
        SourceName::Idx => official == Official::Idx,
        SourceName::Embedded => {
            let message = format!(
                "the embedded digits are not the whole of `{name}`; give `source: hub`, or another with its `path`, or leave `set` out"
            );
            return Err(Rejected::parameter("source", message));
        }
    };
    let own = match official {
        Official::CifarBinary => ", or as its official files with `source: cifar-binary`".to_owned(),
        Official::Idx => ", or as its official files with `source: idx`".to_owned(),
        Official::Unread(why) => format!("; {why}"),
    };
    Rejected::unless(fits, "source", format!("`{name}` is read with `source: hub`, `parquet` or `folder`{own}"))?;
    let known = source != SourceName::CifarBinary || label_column.is_none_or(|column| set.is_label(column));
    Rejected::unless(
        known,
        "label_column",
        format!("the binary files of `{name}` have no such label; CIFAR-100 has `fine_label` and `coarse_label`"),
    )
}

fn source(parameters: Parameters, name: SourceName) -> Result<Source, Rejected> {
    let path = || parameters.path.clone().ok_or_else(|| Rejected::parameter("path", "`path` must name the file or folder to load"));
    Ok(match name {
        SourceName::Embedded => Source::Embedded,
        SourceName::Parquet => Source::Parquet(path()?),
        SourceName::CifarBinary => Source::CifarBinary(path()?),
        SourceName::Idx => Source::Idx(path()?),
        SourceName::Folder => Source::Folder(path()?),
        SourceName::Hub => {
            // What is known of the set's repository says nothing of another one.
            let known = parameters.set.map(SetName::facts).filter(|_| parameters.repo.is_none());
            let repo = parameters.repo.or_else(|| Some(known?.repo.to_owned()));
            Source::Hub(Place {
                repo: repo.ok_or_else(|| {
                    Rejected::parameter("repo", "`repo` must name a data set, such as `uoft-cs/cifar10`, or `set` a known one")
                })?,
                revision: parameters.revision,
                subset: parameters.subset.or_else(|| Some(known?.subset?.to_owned())),
                endpoint: parameters.endpoint,
            })
        }
    })
}

fn normalise(parameters: &Parameters) -> Result<Normalise, Rejected> {
    for (name, values) in [("mean", &parameters.mean), ("std", &parameters.std)] {
        let has_use = values.is_none() || parameters.normalise == NormaliseBy::Given;
        Rejected::unless(has_use, name, format!("`{name}` counts with `normalise: given` alone; set that as well, or leave `{name}` out"))?;
    }
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

/// A sample of the source: its part, and its row there.
type Position = (IdPart, usize);

fn load(contents: Contents, classes: Vec<String>, parameters: &Checked, streams: &Streams) -> anyhow::Result<(Dataset, Dataset)> {
    let (train, test) = divide(&contents, parameters, streams);
    let train = limit(train, &contents, parameters.per_class, streams)?;
    let resize = match (parameters.resize, parameters.crop) {
        (cover, Some(size)) => Some(Fit::Crop { cover, size }),
        (resize, None) => resize.map(Fit::Stretch),
    };
    let shape = Shape { channels: parameters.channels, resize, pad: parameters.pad };
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

/// The names of the classes, after every label was found to be in range. Where the source names none, there can be no more than samples: a label that
/// is an id of something else would ask for a network of any width.
fn class_names(contents: &Contents) -> anyhow::Result<Vec<String>> {
    let parts = || std::iter::once(&contents.train).chain(&contents.test);
    let samples = contents.train.labels.len();
    let most = contents.class_names.as_ref().map_or(samples, Vec::len);
    for part in parts() {
        if let Some(row) = part.labels.iter().position(|&label| usize::try_from(label).map_or(true, |label| label >= most)) {
            let known = match contents.class_names {
                Some(_) => format!("there are {most} classes"),
                None => format!("{samples} training images can't be of more than {samples} classes"),
            };
            let message = format!("the label {} of the image {} is out of range: {known}", part.labels[row], part.place(row));
            return Err(Failure::new(message, "labels count from 0; mend or leave out the sample").into());
        }
    }
    let largest = parts().flat_map(|part| &part.labels).copied().max().unwrap_or(0);
    Ok(contents.class_names.clone().unwrap_or_else(|| (0..=largest).map(|class| class.to_string()).collect()))
}

/// What may be a mistake in the source: classes without a training image, and classes of the same name.
fn remarks(contents: &Contents, classes: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    let present: BTreeSet<i64> = contents.train.labels.iter().copied().collect();
    let absent: Vec<&str> = (0_i64..).zip(classes).filter(|(class, _)| !present.contains(class)).map(|(_, name)| name.as_str()).collect();
    if !absent.is_empty() {
        notes.push(format!("{} of {} classes have no training image: {}", absent.len(), classes.len(), some(&absent)));
    }
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&str> = classes.iter().map(String::as_str).filter(|name| !seen.insert(*name)).collect();
    if !repeated.is_empty() {
        notes.push(format!("several classes have the same name: {}", some(&repeated.into_iter().collect::<Vec<_>>())));
    }
    notes
}

/// The first few of many names.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    format!("{}{}", shown.join(", "), if names.len() > SHOWN { ", ..." } else { "" })
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

#[cfg(test)]
mod tests {
    use dcu_artifact::{Producer, Provenance};

    use super::*;
    use crate::images::Cell;
    use crate::readers::Without;

    fn contents(labels: &[i64], class_names: Option<&[&str]>) -> Contents {
        let train = Part {
            cells: vec![Cell::Planes(vec![0], [1, 1, 1]); labels.len()],
            labels: labels.to_vec(),
            names: None,
            files: vec![(0, "a.parquet".into())],
        };
        let class_names = class_names.map(|names| names.iter().map(ToString::to_string).collect());
        Contents { name: "test".into(), train, test: None, class_names, normalisation: None, notes: Vec::new() }
    }

    #[test]
    fn the_embedded_digits_have_the_content_that_results_were_accepted_for() {
        let (contents, checked) = (embedded::read().unwrap(), Load::<Without>::check(Parameters::default()).unwrap());
        let classes = class_names(&contents).unwrap();
        let (train, test) = load(contents, classes, &checked, &Streams::new(0, "data/load")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let producer = Producer { crate_name: "dcu-data".into(), method: "load".into(), version: 1 };
        let provenance = Provenance { producer, parameters: Value::Null, seed: None, inputs: BTreeMap::new(), externals: BTreeMap::new() };
        let digest = |set: &Dataset| dcu_artifact::write(&folder.path().join("set"), set, &provenance).unwrap().to_string();
        assert_eq!(digest(&train), "3e9a3da3d3e93a2ba7235b5ff2c7932ef2bc45afc35e45c5d27811da973acc14");
        assert_eq!(digest(&test), "7599dc65344176fce4ee3d2acf2a422ff40faa81f546b0cd071df5d0aa929c64");
    }

    #[test]
    fn a_byte_that_is_no_class_of_cifar_10_is_refused_with_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let record = |label: u8| [vec![label], vec![0; 3072]].concat();
        std::fs::write(folder.path().join("data_batch_1.bin"), [record(9), record(0)].concat()).unwrap();
        std::fs::write(folder.path().join("data_batch_2.bin"), [record(3), record(10)].concat()).unwrap();
        let error = class_names(&cifar_binary::read(folder.path(), cifar_binary::Kind::Ten).unwrap()).unwrap_err();
        assert!(error.to_string().contains("the label 10 of the image in row 1 of `data_batch_2.bin` is out of range"), "{error}");
    }

    #[test]
    fn labels_that_are_no_classes_are_refused() {
        for label in [1 << 62, 3_000_000_000, 1_000_000, 4, -1] {
            let error = class_names(&contents(&[0, 1, label, 0], None)).unwrap_err().to_string();
            assert!(error.contains(&format!("the label {label} of the image in row 2 of `a.parquet` is out of range")), "{error}");
        }
        assert!(class_names(&contents(&[0, 1, 2], Some(&["a", "b"]))).unwrap_err().to_string().contains("there are 2 classes"));
    }

    #[test]
    fn gaps_in_labels_and_names_that_come_twice_are_noted() {
        let gap = contents(&[0, 3, 3, 0], None);
        assert_eq!(remarks(&gap, &class_names(&gap).unwrap()), ["2 of 4 classes have no training image: `1`, `2`"]);
        let twice = contents(&[0, 1, 2], Some(&["crane", "dog", "crane"]));
        assert_eq!(remarks(&twice, &class_names(&twice).unwrap()), ["several classes have the same name: `crane`"]);
        let sound = contents(&[0, 1], Some(&["a", "b"]));
        assert_eq!(remarks(&sound, &class_names(&sound).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn sizes_beyond_all_use_are_refused() {
        let refused = |parameters: Parameters| Load::<Without>::check(parameters).unwrap_err().parameter.unwrap();
        assert_eq!(refused(Parameters { pad: Some(1_000_000), ..Parameters::default() }), "pad");
        assert_eq!(refused(Parameters { resize: Some([32, 1_000_000]), ..Parameters::default() }), "resize");
    }

    #[test]
    fn parquet_and_the_hub_are_left_to_the_program_that_has_their_readers() {
        let elsewhere = |parameters: Parameters| Load::<Without>::elsewhere(&Load::<Without>::check(parameters).unwrap());
        assert_eq!(elsewhere(Parameters::default()), None);
        assert_eq!(
            elsewhere(Parameters { source: Some(SourceName::Parquet), path: Some("x".into()), ..Parameters::default() }),
            Some("tables")
        );
        assert_eq!(
            elsewhere(Parameters { source: Some(SourceName::Hub), repo: Some("a/b".into()), ..Parameters::default() }),
            Some("tables")
        );
    }

    #[test]
    fn a_revision_is_no_part_of_the_parameters_but_its_commit_is_that_of_the_content() {
        let checked = |revision: &str| {
            let parameters =
                Parameters { source: Some(SourceName::Hub), repo: Some("a/b".into()), revision: revision.into(), ..Parameters::default() };
            Load::<Without>::check(parameters).unwrap()
        };
        let (main, commit, other) = (checked("main"), checked(&"a".repeat(40)), checked(&"b".repeat(40)));
        let json = |checked: &Checked| serde_json::to_value(checked).unwrap();
        assert_eq!(json(&main), json(&commit));
        let digest = |checked: &Checked| Load::<Without>::externals(checked).unwrap()[0].digest.clone();
        assert!(digest(&main).is_none() && digest(&commit).is_some() && digest(&commit) != digest(&other));
    }

    fn of_set(set: &str, more: Value) -> Result<Checked, Rejected> {
        let mut parameters = serde_json::json!({ "set": set });
        parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Load::<Without>::check(serde_json::from_value(parameters).unwrap())
    }

    #[test]
    fn what_is_not_given_is_no_part_of_the_parameters() {
        let checked =
            Load::<Without>::check(Parameters { path: Some("x".into()), source: Some(SourceName::Parquet), ..Parameters::default() });
        let json = serde_json::to_value(checked.unwrap()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["source", "per_class", "test_fraction", "resize", "pad", "channels", "normalise"]);
    }

    #[test]
    fn a_set_is_of_the_hub_unless_told_otherwise() {
        let place = |set: &str, more: Value| match of_set(set, more).unwrap().source {
            Source::Hub(place) => (place.repo, place.subset),
            other => panic!("{other:?}"),
        };
        assert_eq!(place("svhn", serde_json::json!({})), ("ufldl-stanford/svhn".into(), Some("cropped_digits".into())));
        assert_eq!(place("svhn", serde_json::json!({ "subset": "other" })).1, Some("other".into()));
        // Of another repository nothing is known.
        assert_eq!(place("svhn", serde_json::json!({ "repo": "a/b" })), ("a/b".into(), None));
        let folder = of_set("svhn", serde_json::json!({ "source": "folder", "path": "x" })).unwrap();
        assert!(matches!(folder.source, Source::Folder(_)) && folder.test() == Some(Share::Test));
    }

    #[test]
    fn images_of_many_sizes_come_to_one_in_their_proportions() {
        let sizes = |set: &str, more: Value| of_set(set, more).map(|checked| (checked.resize, checked.crop, checked.channels));
        assert_eq!(sizes("imagenette", serde_json::json!({})).unwrap(), (Some([128, 128]), Some([128, 128]), Some(3)));
        assert_eq!(sizes("imagenette", serde_json::json!({ "resize": [96, 96] })).unwrap(), (Some([96, 96]), Some([96, 96]), Some(3)));
        assert_eq!(sizes("imagenette", serde_json::json!({ "crop": [64, 64] })).unwrap(), (Some([64, 64]), Some([64, 64]), Some(3)));
        assert_eq!(sizes("mnist", serde_json::json!({ "resize": [32, 32] })).unwrap(), (Some([32, 32]), None, None));
        let error = sizes("mnist", serde_json::json!({ "resize": [32, 32], "crop": [32, 33] })).unwrap_err();
        assert_eq!(error.parameter.as_deref(), Some("crop"));
    }

    #[test]
    fn files_that_a_set_does_not_have_are_refused() {
        let refused = |set: &str, more: Value| of_set(set, more).unwrap_err().message;
        let source = |name: &str| serde_json::json!({ "source": name, "path": "x" });
        assert!(refused("svhn", source("cifar-binary")).contains("its official `.mat` files are not read"));
        assert!(refused("imagenette", source("idx")).contains("its archive is read once it is unpacked, with `source: folder`"));
        assert!(refused("cifar10", source("idx")).contains("`source: cifar-binary`"));
        assert!(refused("mnist", source("cifar-binary")).contains("`source: idx`"));
        assert!(refused("mnist", source("embedded")).contains("the embedded digits are not the whole of `mnist`"));
        let column = serde_json::json!({ "source": "cifar-binary", "path": "x", "label_column": "name" });
        assert!(refused("cifar100", column).contains("`fine_label` and `coarse_label`"));
        let parse = serde_json::from_value::<Parameters>(serde_json::json!({ "set": "cifar-100" }));
        assert!(parse.unwrap_err().to_string().contains("did you mean `cifar100`?"));
    }

    #[test]
    fn official_files_are_read_as_the_set_that_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let records =
            |classes: u8| (0..classes).flat_map(|class| [vec![class / 5, class], vec![class; 3072]].concat()).collect::<Vec<u8>>();
        for part in ["train", "test"] {
            std::fs::write(folder.path().join(format!("{part}.bin")), records(100)).unwrap();
        }
        let read = |more: Value| {
            let checked = of_set("cifar100", more).unwrap();
            let mut contents = cifar_binary::read(folder.path(), checked.kind()).unwrap();
            checked.set.unwrap().complete(&mut contents, checked.label_column.as_deref(), checked.channels).unwrap();
            let classes = class_names(&contents).unwrap();
            load(contents, classes, &checked, &Streams::new(0, "data/load")).unwrap().0
        };
        let fine = read(serde_json::json!({ "source": "cifar-binary", "path": "x" }));
        assert_eq!((fine.facts.class_names.len(), fine.labels[7], fine.facts.normalisation.std[0]), (100, 7, 0.2673));
        let coarse = read(serde_json::json!({ "source": "cifar-binary", "path": "x", "label_column": "coarse_label" }));
        assert_eq!((coarse.facts.class_names.len(), coarse.labels[7]), (20, 1));
    }
}
