//! `folder`: a folder for each class, with images in it; below `train` and `test` where these exist (in any case; `val` serves where there is no
//! `test`). Samples are ordered by path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dcu_stage::{External, Failure};

use super::{Contents, Part, Share, externals, files_below, missing};
use crate::images::Cell;

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The extension in lower case; empty where there is none.
fn extension(file: &Path) -> String {
    file.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn images_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(files_below(folder)?.into_iter().filter(|file| EXTENSIONS.contains(&extension(file).as_str())).collect())
}

/// The folders of the parts.
struct Roots {
    train: PathBuf,
    test: Option<PathBuf>,
    /// What lies beside them, and is not read.
    left_out: Vec<String>,
}

fn roots(folder: &Path) -> anyhow::Result<Roots> {
    let entries = std::fs::read_dir(folder).map_err(|error| missing(folder, &error))?;
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in entries {
        folders.extend(Some(entry?.path()).filter(|path| path.is_dir()));
    }
    folders.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The whole name must be the word: `test-tubes` is a class.
    let share = |path: &Path| Share::of_name(&name(path)).filter(|_| name(path).chars().all(char::is_alphabetic));
    let of_share = |wanted: Share| -> anyhow::Result<Option<PathBuf>> {
        let mut found = folders.iter().filter(|path| share(path) == Some(wanted));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                let message = format!("`{}` and `{}` of `{}` are for the same part", name(first), name(second), folder.display());
                Err(Failure::new(message, "leave one of them, or name the folder to read").into())
            }
            (first, _) => Ok(first.cloned()),
        }
    };
    let Some(train) = of_share(Share::Train)? else {
        return Ok(Roots { train: folder.to_owned(), test: None, left_out: Vec::new() });
    };
    let test = of_share(Share::Test)?.map_or_else(|| of_share(Share::Validation), |test| Ok(Some(test)))?;
    let is_read = |path: &PathBuf| *path == train || Some(path) == test.as_ref();
    let left_out = folders.iter().filter(|path| !is_read(path) && !name(path).starts_with('.')).map(|path| name(path)).collect();
    Ok(Roots { train, test, left_out })
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path) -> anyhow::Result<Vec<External>> {
    let Roots { train, test, .. } = roots(folder)?;
    let mut files = images_below(&train)?;
    if let Some(test) = test {
        files.extend(images_below(&test)?);
    }
    externals(folder, &files)
}

/// Reads the folder.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Contents> {
    let Roots { train, test, left_out } = roots(folder)?;
    let train_images = with_classes(&train)?;
    let class_names: Vec<String> = train_images.iter().map(|(_, class)| class.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    if class_names.len() < 2 {
        let message = format!("`{}` has images of {} classes", train.display(), class_names.len());
        return Err(Failure::new(message, "put the images of each class into a folder of its own: `CLASS/IMAGE.png`").into());
    }
    let mut notes = Vec::new();
    if !left_out.is_empty() {
        notes.push(format!("beside the parts that are read, these folders were left out: {}", left_out.join(", ")));
    }
    for root in std::iter::once(&train).chain(&test) {
        notes.extend(left_out_below(root)?);
    }
    let test = test.map(|test| to_part(folder, with_classes(&test)?, &class_names)).transpose()?;
    Ok(Contents {
        name: "folder".into(),
        train: to_part(folder, train_images, &class_names)?,
        test,
        class_names: Some(class_names),
        normalisation: None,
        notes,
    })
}

/// Files that are no PNG or JPEG, and classes without an image.
fn left_out_below(root: &Path) -> anyhow::Result<Vec<String>> {
    let (mut kinds, mut with_images) = (BTreeMap::<String, usize>::new(), BTreeSet::new());
    let class_of = |file: &Path| file.strip_prefix(root).ok()?.components().next().map(|class| root.join(class));
    for file in files_below(root)? {
        let kind = extension(&file);
        if EXTENSIONS.contains(&kind.as_str()) {
            with_images.extend(class_of(&file));
        } else {
            *kinds.entry(if kind.is_empty() { "without an extension".into() } else { format!(".{kind}") }).or_default() += 1;
        }
    }
    let mut notes = Vec::new();
    if !kinds.is_empty() {
        let count: usize = kinds.values().sum();
        let listed: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let noun = if count == 1 { "file of another kind was" } else { "files of other kinds were" };
        notes.push(format!("{count} {noun} left out of `{}`: {}; only PNG and JPEG are read", root.display(), listed.join(", ")));
    }
    let mut empty: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|error| missing(root, &error))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !with_images.contains(&path) && !name.starts_with('.') {
            empty.push(format!("`{name}`"));
        }
    }
    if !empty.is_empty() {
        empty.sort();
        notes.push(format!("no image of its own in {} of `{}`: no class", empty.join(", "), root.display()));
    }
    Ok(notes)
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
        let Ok(label) = class_names.binary_search(&class) else {
            let message = format!("the test images have a class `{class}` that the training images lack");
            return Err(Failure::new(message, "give both parts the same classes").into());
        };
        part.labels.push(label as i64);
        part.names.as_mut().expect("set above").push(file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/"));
        part.cells.push(Cell::File(file));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(part: &Part) -> Vec<&str> {
        part.names.as_ref().unwrap().iter().map(String::as_str).collect()
    }

    #[test]
    fn parts_are_found_in_any_case_and_validation_serves_where_there_is_no_test() {
        let with_test = folder(&["Train/a/1.png", "Train/b/1.PNG", "Test/a/2.jpg", "val/b/3.png", "extra/c/4.png"]);
        let contents = read(with_test.path()).unwrap();
        assert_eq!(contents.class_names.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(
            (names(&contents.train), names(contents.test.as_ref().unwrap())),
            (vec!["Train/a/1.png", "Train/b/1.PNG"], vec!["Test/a/2.jpg"])
        );
        assert!(contents.notes[0].contains("extra, val"), "{:?}", contents.notes);
        let without = folder(&["train/a/1.png", "train/b/1.png", "Validation/b/3.png"]);
        let contents = read(without.path()).unwrap();
        assert_eq!(names(contents.test.as_ref().unwrap()), ["Validation/b/3.png"]);
        assert_eq!(outside(without.path()).unwrap().len(), 3);
        let plain = folder(&["test-tubes/1.png", "trains/1.png"]);
        assert_eq!(read(plain.path()).unwrap().train.labels, [0, 1]);
    }

    #[test]
    fn what_is_left_out_is_noted() {
        let folder = folder(&["a/1.png", "a/2.gif", "b/1.png", "b/3.webp", "b/4.WebP", "c/5.bmp", "b/README"]);
        let notes = read(folder.path()).unwrap().notes;
        assert!(notes[0].starts_with("5 files of other kinds were left out"), "{notes:?}");
        assert!(notes[0].contains(".bmp 1, .gif 1, .webp 2, without an extension 1"), "{notes:?}");
        assert!(notes[1].contains("`c`"), "{notes:?}");
    }

    #[test]
    fn two_folders_for_one_part_are_refused() {
        let folder = folder(&["train/a/1.png", "Training/a/1.png"]);
        assert!(read(folder.path()).unwrap_err().to_string().contains("`Training` and `train`"));
    }
}
