//! `parquet`: a file or a folder in the layout of Hugging Face image data sets: a struct column of encoded bytes and a label column.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dcu_data::images::Cell;
use dcu_data::{CIFAR10_CLASSES, Contents, List, Part, Selection, Share, cifar10_normalisation, externals, files_below, missing, room_for};
use dcu_stage::{External, Failure};
use polars::prelude::{Column, DataFrame, DataType, ParquetReader, SerReader};

/// The files of each part. Unless the selection knows the parts, files that name none belong to the training part, and those for validation serve where
/// there are none to test on.
struct Files {
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
    left_out: Vec<PathBuf>,
}

/// The part of a file, by its name, else by that of the nearest folder that says it.
pub(crate) fn share(file: &Path) -> Option<Share> {
    file.iter().rev().find_map(|name| Share::of_name(&name.to_string_lossy()))
}

fn find(path: &Path, selection: &Selection) -> anyhow::Result<Files> {
    let metadata = std::fs::metadata(path).map_err(|error| missing(path, &error))?;
    if metadata.is_file() {
        return Ok(Files { train: vec![path.to_owned()], test: Vec::new(), left_out: Vec::new() });
    }
    let (mut train, mut validation, mut test, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for file in files_below(path)?.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "parquet")) {
        match share(file.strip_prefix(path).unwrap_or(&file)) {
            share if !selection.wants(share) => others.push(file),
            Some(Share::Test) => test.push(file),
            Some(Share::Validation) => validation.push(file),
            Some(Share::Train) | None => train.push(file),
        }
    }
    if train.is_empty() {
        let message = format!("there is no parquet file for training in `{}`", path.display());
        return Err(Failure::new(message, "name the folder that holds `train*.parquet`, or a single file").into());
    }
    let (test, left_out) = if test.is_empty() { (validation, others) } else { (test, [validation, others].concat()) };
    Ok(Files { train, test, left_out })
}

/// The outside files that reading would read.
pub(crate) fn outside(path: &Path, selection: &Selection) -> anyhow::Result<Vec<External>> {
    let files = find(path, selection)?;
    externals(path, &[files.train, files.test].concat())
}

/// Reads a file or a folder.
///
/// # Errors
/// Names the file, the row and what is wrong there.
pub fn read(path: &Path, selection: &Selection) -> anyhow::Result<Contents> {
    let Files { train, test, left_out } = find(path, selection)?;
    let train = Rows::read(&train, selection)?;
    let test = if test.is_empty() { None } else { Some(Rows::read(&test, selection)?) };
    let mut notes = Vec::new();
    match selection.test {
        _ if left_out.is_empty() => {}
        None => notes.push(format!("there is a test part, so that {} files for validation were left out", left_out.len())),
        Some(_) => notes.push(format!("{} files were left out, whose part of the set is not read", left_out.len())),
    }
    let told = train.class_names.clone().or_else(|| test.as_ref()?.class_names.clone());
    if let Some(other) = test.as_ref().and_then(|test| test.class_names.as_ref()).filter(|other| Some(*other) != told.as_ref()) {
        let message = format!("the parts of `{}` name different classes: {told:?} and {other:?}", path.display());
        return Err(Failure::new(message, "give both parts the same classes, in the same order").into());
    }
    let class_names = match &train.labels {
        Labels::Names(names) => Some(told.unwrap_or_else(|| sorted(names))),
        Labels::Numbers(_) => told,
    };
    let is_cifar10 = class_names.as_ref().is_some_and(|names| names == &CIFAR10_CLASSES);
    let train = train.into_part(class_names.as_deref())?;
    let test = test.map(|test| test.into_part(class_names.as_deref())).transpose()?;
    Ok(Contents { name: "parquet".into(), train, test, class_names, normalisation: is_cifar10.then(cifar10_normalisation), notes })
}

/// Labels as a file has them.
#[derive(Debug, PartialEq, Eq)]
enum Labels {
    Numbers(Vec<i64>),
    /// Names of classes.
    Names(Vec<String>),
}

/// The classes in order: numbers by their value, else by the alphabet.
fn sorted(names: &[String]) -> Vec<String> {
    let mut distinct: Vec<String> = names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    if let Ok(numbers) = distinct.iter().map(|name| name.parse::<i64>()).collect::<Result<Vec<_>, _>>() {
        let mut pairs: Vec<(i64, String)> = numbers.into_iter().zip(distinct).collect();
        pairs.sort();
        distinct = pairs.into_iter().map(|(_, name)| name).collect();
    }
    distinct
}

/// The rows of one file, or of all files of a part.
struct Rows {
    cells: Vec<Cell>,
    labels: Labels,
    names: Option<Vec<String>>,
    files: Vec<(usize, String)>,
    class_names: Option<Vec<String>>,
}

impl Rows {
    fn read(files: &[PathBuf], selection: &Selection) -> anyhow::Result<Self> {
        let mut whole: Option<Self> = None;
        for file in files {
            let bytes = std::fs::read(file).map_err(|error| missing(file, &error))?;
            let rows = read_bytes(bytes, &file.file_name().unwrap_or(file.as_os_str()).to_string_lossy(), selection)?;
            match &mut whole {
                None => whole = Some(rows),
                Some(whole) => whole.extend(rows)?,
            }
        }
        whole.context("there is no file")
    }

    fn extend(&mut self, other: Self) -> anyhow::Result<()> {
        let (first, name) = (&self.files[0].1, &other.files[0].1);
        match (&mut self.labels, other.labels) {
            (Labels::Numbers(all), Labels::Numbers(more)) => all.extend(more),
            (Labels::Names(all), Labels::Names(more)) => all.extend(more),
            _ => {
                let message = format!("one of `{first}` and `{name}` has numbers as labels, the other names");
                return Err(Failure::new(message, "give all files the same kind of labels").into());
            }
        }
        if let (Some(known), Some(more)) = (&self.class_names, &other.class_names)
            && known != more
        {
            let message = format!("`{first}` and `{name}` name different classes: {known:?} and {more:?}");
            return Err(Failure::new(message, "give all files the same classes, in the same order").into());
        }
        self.class_names = self.class_names.take().or(other.class_names);
        self.files.push((self.cells.len(), name.clone()));
        self.cells.extend(other.cells);
        self.names = self.names.take().zip(other.names).map(|(mut all, more)| {
            all.extend(more);
            all
        });
        Ok(())
    }

    fn into_part(self, class_names: Option<&[String]>) -> anyhow::Result<Part> {
        let Self { cells, labels, names, files, .. } = self;
        let names = names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len());
        let mut part = Part { cells, labels: Vec::new(), names, files };
        part.labels = match labels {
            Labels::Numbers(numbers) => numbers,
            Labels::Names(labels) => {
                let classes = class_names.context("labels are names, but there is no list of classes")?;
                let mut found = Vec::with_capacity(labels.len());
                for (row, label) in labels.iter().enumerate() {
                    let Some(class) = classes.iter().position(|class| class == label) else {
                        let message = format!("the image {} is of the class `{label}`, which the training images lack", part.place(row));
                        return Err(Failure::new(message, "give both parts the same classes").into());
                    };
                    found.push(class as i64);
                }
                found
            }
        };
        Ok(part)
    }
}

/// Reads one file's bytes: its samples, and the names of the classes where its metadata tells.
fn read_bytes(bytes: Vec<u8>, name: &str, selection: &Selection) -> anyhow::Result<Rows> {
    sound(name, || {
        let mut reader = ParquetReader::new(Cursor::new(bytes));
        let schema = reader.schema().with_context(|| format!("`{name}` is no parquet file"))?;
        let columns: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
        let pick = |wanted: &[String], what: &str, parameter: &str| {
            let found = wanted.iter().find(|wanted| columns.contains(wanted));
            found.cloned().ok_or_else(|| {
                let called = if let [only] = wanted { format!(" `{only}`") } else { String::new() };
                let message = format!("`{name}` has no column{called} of {what}; its columns are `{}`", columns.join("`, `"));
                Failure::new(message, format!("say which it is with `{parameter}`"))
            })
        };
        let image_column = pick(&selection.image_columns, "images", "image_column")?;
        let label_column = pick(&selection.label_columns, "labels", "label_column")?;
        let class_names = class_names(&mut reader, &label_column)?;
        refuse_bombs(&mut reader, name)?;
        let frame = reader
            .with_columns(Some(vec![image_column.clone(), label_column.clone()]))
            .finish()
            .with_context(|| format!("cannot read `{name}`"))?;
        let labels = labels(frame.column(&label_column)?, name)?;
        let (cells, names) = images(&frame, &image_column, name)?;
        ensure!(!cells.is_empty(), "`{name}` holds no sample");
        Ok(Rows { cells, labels, names, files: vec![(0, name.to_owned())], class_names })
    })
}

/// Runs what reads a file that may be damaged: where the reader panics, that is an error.
fn sound<T>(name: &str, read: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    std::panic::set_hook(hook);
    result.unwrap_or_else(|_| Err(Failure::new(format!("`{name}` is damaged"), "make or download it again").into()))
}

/// Refuses a file that unpacks to more than fits into memory; it says how much that is.
fn refuse_bombs(reader: &mut ParquetReader<Cursor<Vec<u8>>>, name: &str) -> anyhow::Result<()> {
    let metadata = reader.get_metadata().with_context(|| format!("`{name}` is no parquet file"))?;
    let columns = metadata.row_groups.iter().flat_map(|group| group.parquet_columns());
    let bytes =
        columns.map(|column| usize::try_from(column.uncompressed_size()).ok()).try_fold(0_usize, |sum, bytes| sum.checked_add(bytes?));
    // Once as columns, once as images.
    Ok(room_for(
        bytes.and_then(|bytes| bytes.checked_mul(2)),
        &format!("unpacking `{name}`"),
        "divide it into files that fit, or free memory",
    )?)
}

/// The encoded images, and their names where the file has them.
fn images(frame: &DataFrame, image_column: &str, name: &str) -> anyhow::Result<(Vec<Cell>, Option<Vec<String>>)> {
    let images = frame
        .column(image_column)?
        .struct_()
        .with_context(|| format!("`{image_column}` of `{name}` is no struct of `bytes` and `path`"))?
        .clone();
    let bytes = images.field_by_name("bytes").with_context(|| format!("`{image_column}` of `{name}` has no `bytes`"))?;
    let cells = bytes
        .binary()
        .with_context(|| format!("`{image_column}.bytes` of `{name}` is not binary"))?
        .iter()
        .enumerate()
        .map(|(row, cell)| cell.map(|cell| Cell::Encoded(cell.to_vec())).with_context(|| format!("row {row} of `{name}` has no image")))
        .collect::<anyhow::Result<_>>()?;
    let names = images.field_by_name("path").ok().and_then(|paths| paths.str().ok()?.iter().map(|path| path.map(str::to_owned)).collect());
    Ok((cells, names))
}

/// The labels of a file: whole numbers whatever their type, or names.
fn labels(column: &Column, name: &str) -> anyhow::Result<Labels> {
    let (label, dtype) = (column.name(), column.dtype());
    if let Some(row) = column.is_null().iter().position(|null| null == Some(true)) {
        return Err(Failure::new(format!("row {row} of `{name}` has no label"), "label it or leave it out").into());
    }
    let numbers = |column: &Column| -> anyhow::Result<Labels> {
        let cast = column.cast(&DataType::Int64)?;
        let row = |(row, label): (usize, Option<i64>)| label.with_context(|| format!("the label in row {row} of `{name}` is out of range"));
        Ok(Labels::Numbers(cast.i64()?.iter().enumerate().map(row).collect::<anyhow::Result<_>>()?))
    };
    match dtype {
        dtype if dtype.is_integer() || dtype.is_bool() => numbers(column),
        dtype if dtype.is_float() => {
            let values = column.cast(&DataType::Float64)?;
            // Above this, neighbouring whole numbers are the same number.
            let is_label = |value: f64| value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
            if let Some((row, value)) =
                values.f64()?.iter().enumerate().find_map(|(row, value)| Some((row, value?)).filter(|(_, value)| !is_label(*value)))
            {
                let message = format!("the label in row {row} of `{name}` is {value}, which is no whole number");
                return Err(Failure::new(message, "labels are classes, counted from 0").into());
            }
            numbers(&values)
        }
        DataType::String | DataType::Categorical(..) | DataType::Enum(..) => {
            let texts = column.cast(&DataType::String)?;
            Ok(Labels::Names(texts.str()?.iter().flatten().map(str::to_owned).collect()))
        }
        other => {
            let message = format!("`{label}` of `{name}` holds values of the type {other:?}");
            Err(Failure::new(message, "labels are whole numbers or names").into())
        }
    }
}

/// The class names in the metadata that the `datasets` library writes.
fn class_names(reader: &mut ParquetReader<Cursor<Vec<u8>>>, label_column: &str) -> anyhow::Result<Option<Vec<String>>> {
    let metadata = reader.get_metadata()?;
    let entries = metadata.key_value_metadata().as_ref();
    let Some(text) = entries.and_then(|entries| entries.iter().find(|entry| entry.key == "huggingface")?.value.clone()) else {
        return Ok(None);
    };
    let Ok(info) = serde_json::from_str::<serde_json::Value>(&text) else { bail!("its `huggingface` metadata is no JSON") };
    let names = info["info"]["features"][label_column]["names"]
        .as_array()
        .map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
    Ok(names)
}

/// Reads a list of samples: a column `id` or `path`.
///
/// # Errors
/// When there is neither, or a row is empty.
pub fn read_list(file: &Path) -> anyhow::Result<List> {
    let name = file.display().to_string();
    sound(&name, || {
        let opened = std::fs::File::open(file).map_err(|error| missing(file, &error))?;
        let frame = ParquetReader::new(opened).finish().with_context(|| format!("`{name}` is no parquet file"))?;
        let column = frame.column("id").or_else(|_| frame.column("path")).map_err(|_| {
            let message = format!("`{name}` has neither a column `id` nor a column `path`");
            Failure::new(message, "name it `id` or `path`")
        })?;
        let texts = column.cast(&DataType::String)?;
        let text =
            |(row, text): (usize, Option<&str>)| text.map(str::to_owned).with_context(|| format!("row {row} of `{name}` names nothing"));
        let texts = texts.str()?.iter().enumerate().map(text).collect::<anyhow::Result<_>>()?;
        Ok(if column.name() == "id" { List::Ids(texts) } else { List::Paths(texts) })
    })
}
