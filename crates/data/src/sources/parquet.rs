//! `parquet`: a file or a folder in the layout of Hugging Face image data sets: a struct column of encoded bytes and a label column.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dcu_stage::{External, Failure};
use polars::prelude::{DataType, ParquetReader, SerReader};

use super::{CIFAR10_CLASSES, Contents, Part, cifar10_normalisation, externals, files_below, missing};
use crate::images::Cell;

const IMAGE_COLUMNS: [&str; 2] = ["img", "image"];
const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

/// The files of each part: by `train` and `test` (or `valid`) in their names; files that name no part belong to the training part.
struct Files {
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
}

fn find(path: &Path) -> anyhow::Result<Files> {
    let metadata = std::fs::metadata(path).map_err(|error| missing(path, &error))?;
    if metadata.is_file() {
        return Ok(Files { train: vec![path.to_owned()], test: Vec::new() });
    }
    let all: Vec<PathBuf> =
        files_below(path)?.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "parquet")).collect();
    let is_test = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().contains("test"));
    let (test, train): (Vec<PathBuf>, Vec<PathBuf>) = all.into_iter().partition(is_test);
    if train.is_empty() {
        let message = format!("there is no parquet file for training in `{}`", path.display());
        return Err(Failure::new(message, "name the folder that holds `train*.parquet`, or a single file").into());
    }
    Ok(Files { train, test })
}

/// The outside files that reading would read.
pub(crate) fn outside(path: &Path) -> anyhow::Result<Vec<External>> {
    let files = find(path)?;
    externals(path, &[files.train, files.test].concat())
}

/// Reads a file or a folder.
pub(crate) fn read(path: &Path) -> anyhow::Result<Contents> {
    let files = find(path)?;
    read_files(&files.train, &files.test)
}

/// Reads the files of both parts.
pub(crate) fn read_files(train: &[PathBuf], test: &[PathBuf]) -> anyhow::Result<Contents> {
    let (train, class_names) = read_part(train)?;
    let test = if test.is_empty() { None } else { Some(read_part(test)?.0) };
    let is_cifar10 = class_names.as_ref().is_some_and(|names| names == &CIFAR10_CLASSES);
    Ok(Contents { name: "parquet".into(), train, test, class_names, normalisation: is_cifar10.then(cifar10_normalisation) })
}

fn read_part(files: &[PathBuf]) -> anyhow::Result<(Part, Option<Vec<String>>)> {
    let (mut whole, mut class_names) = (Part::default(), None);
    let mut names = Some(Vec::new());
    for file in files {
        let bytes = std::fs::read(file).map_err(|error| missing(file, &error))?;
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        let (part, classes) = read_bytes(bytes, &name)?;
        whole.files.push((whole.labels.len(), name));
        whole.cells.extend(part.cells);
        whole.labels.extend(part.labels);
        names = names.zip(part.names).map(|(mut all, more)| {
            all.extend(more);
            all
        });
        class_names = class_names.or(classes);
    }
    whole.names = names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len());
    Ok((whole, class_names))
}

/// Reads one file's bytes: its samples, and the names of the classes where its metadata tells.
pub(crate) fn read_bytes(bytes: Vec<u8>, name: &str) -> anyhow::Result<(Part, Option<Vec<String>>)> {
    let mut reader = ParquetReader::new(Cursor::new(bytes));
    let schema = reader.schema().with_context(|| format!("`{name}` is no parquet file"))?;
    let columns: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
    let pick = |wanted: &[&str], what: &str| {
        let found = wanted.iter().find(|wanted| columns.iter().any(|column| column == *wanted));
        found.map(ToString::to_string).ok_or_else(|| {
            let message = format!("`{name}` has no column of {what}; its columns are `{}`", columns.join("`, `"));
            Failure::new(message, format!("name it `{}`", wanted.join("` or `")))
        })
    };
    let (image_column, label_column) = (pick(&IMAGE_COLUMNS, "images")?, pick(&LABEL_COLUMNS, "labels")?);
    let class_names = class_names(&mut reader, &label_column)?;
    let frame = reader
        .with_columns(Some(vec![image_column.clone(), label_column.clone()]))
        .finish()
        .with_context(|| format!("cannot read `{name}`"))?;

    let images = frame
        .column(&image_column)?
        .struct_()
        .with_context(|| format!("`{image_column}` of `{name}` is no struct of `bytes` and `path`"))?
        .clone();
    let bytes = images.field_by_name("bytes")?;
    let cells: Vec<Cell> = bytes
        .binary()
        .with_context(|| format!("`{image_column}.bytes` of `{name}` is not binary"))?
        .iter()
        .enumerate()
        .map(|(row, cell)| cell.map(|cell| Cell::Encoded(cell.to_vec())).with_context(|| format!("row {row} of `{name}` has no image")))
        .collect::<anyhow::Result<_>>()?;
    let labels = frame.column(&label_column)?.cast(&DataType::Int64)?;
    let labels: Vec<i64> = labels
        .i64()?
        .iter()
        .enumerate()
        .map(|(row, label)| label.with_context(|| format!("row {row} of `{name}` has no label")))
        .collect::<anyhow::Result<_>>()?;
    ensure!(!labels.is_empty(), "`{name}` holds no sample");
    let names = images.field_by_name("path").ok().and_then(|paths| paths.str().ok()?.iter().map(|path| path.map(str::to_owned)).collect());
    Ok((Part { cells, labels, names, files: vec![(0, name.to_owned())] }, class_names))
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
