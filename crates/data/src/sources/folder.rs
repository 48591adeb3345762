//! `folder`: a folder for each class, with images in it; below `train` and `test` where these exist. Samples are ordered by path.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dcu_stage::{External, Failure};

use super::{Contents, Part, externals, files_below, missing};
use crate::images::Cell;

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

fn images_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_image = |file: &PathBuf| {
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        EXTENSIONS.contains(&extension.as_str())
    };
    Ok(files_below(folder)?.into_iter().filter(is_image).collect())
}

fn roots(folder: &Path) -> (PathBuf, Option<PathBuf>) {
    let (train, test) = (folder.join("train"), folder.join("test"));
    if train.is_dir() { (train, Some(test).filter(|test| test.is_dir())) } else { (folder.to_owned(), None) }
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path) -> anyhow::Result<Vec<External>> {
    std::fs::metadata(folder).map_err(|error| missing(folder, &error))?;
    let (train, test) = roots(folder);
    let mut files = images_below(&train)?;
    if let Some(test) = test {
        files.extend(images_below(&test)?);
    }
    externals(folder, &files)
}

/// Reads the folder.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Contents> {
    std::fs::metadata(folder).map_err(|error| missing(folder, &error))?;
    let (train, test) = roots(folder);
    let train_images = with_classes(&train)?;
    let class_names: Vec<String> = train_images.iter().map(|(_, class)| class.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    if class_names.len() < 2 {
        let message = format!("`{}` has images of {} classes", train.display(), class_names.len());
        return Err(Failure::new(message, "put the images of each class into a folder of its own: `CLASS/IMAGE.png`").into());
    }
    let test = test.map(|test| to_part(folder, with_classes(&test)?, &class_names)).transpose()?;
    Ok(Contents {
        name: "folder".into(),
        train: to_part(folder, train_images, &class_names)?,
        test,
        class_names: Some(class_names),
        normalisation: None,
    })
}

/// Each image with the name of the folder right below `root` that it lies in.
fn with_classes(root: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    images_below(root)?
        .into_iter()
        .map(|file| {
            let relative = file.strip_prefix(root).unwrap_or(&file).to_owned();
            let mut components = relative.components();
            match (components.next(), components.next()) {
                (Some(class), Some(_)) => Ok((file, class.as_os_str().to_string_lossy().into_owned())),
                _ => Err(Failure::new(format!("`{}` lies in no class's folder", file.display()), "move it to `CLASS/IMAGE.png`").into()),
            }
        })
        .collect()
}

fn to_part(root: &Path, images: Vec<(PathBuf, String)>, class_names: &[String]) -> anyhow::Result<Part> {
    let mut part = Part { names: Some(Vec::new()), ..Part::default() };
    for (file, class) in images {
        let Some(label) = class_names.iter().position(|name| *name == class) else {
            let message = format!("the test images have a class `{class}` that the training images lack");
            return Err(Failure::new(message, "give both parts the same classes").into());
        };
        part.labels.push(label as i64);
        part.names.as_mut().expect("set above").push(file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/"));
        part.cells.push(Cell::File(file));
    }
    Ok(part)
}
