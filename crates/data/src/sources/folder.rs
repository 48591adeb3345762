//! `folder`: a folder for each class, with images in it; below `train` and `test` where these exist (in any case; `val` serves where there is no
//! `test`). Samples are ordered by path. A part whose classes stand in a list, as those of Tiny-ImageNet's validation part do, is read by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dcu_stage::{External, Failure};

use super::{Contents, Part, Share, externals, files_below, missing};
use crate::images::Cell;

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The list of classes in Tiny-ImageNet's archive: in each line the name of an image in `images`, its class, and more, between tabs.
const LIST: &str = "val_annotations.txt";

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

/// `test` is the part to test on, where it is known.
fn roots(folder: &Path, test: Option<Share>) -> anyhow::Result<Roots> {
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
    let mut found = None;
    for share in test.into_iter().chain([Share::Test, Share::Validation]) {
        found = found.map_or_else(|| of_share(share), |found| Ok(Some(found)))?;
    }
    let test = found;
    let is_read = |path: &PathBuf| *path == train || Some(path) == test.as_ref();
    let left_out = folders.iter().filter(|path| !is_read(path) && !name(path).starts_with('.')).map(|path| name(path)).collect();
    Ok(Roots { train, test, left_out })
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path, test: Option<Share>) -> anyhow::Result<Vec<External>> {
    let Roots { train, test, .. } = roots(folder, test)?;
    let mut files = images_below(&train)?;
    if let Some(test) = test {
        files.extend(images_below(&test)?);
        files.extend(Some(test.join(LIST)).filter(|list| list.is_file()));
    }
    externals(folder, &files)
}

/// Reads the folder.
pub(crate) fn read(folder: &Path, test: Option<Share>) -> anyhow::Result<Contents> {
    let Roots { train, test, left_out } = roots(folder, test)?;
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
    let of_test = |test: PathBuf| if test.join(LIST).is_file() { listed(&test) } else { with_classes(&test) };
    let test = test.map(|test| to_part(folder, of_test(test)?, &class_names)).transpose()?;
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
        if file == root.join(LIST) {
            continue;
        }
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

/// Each image with the class that the list gives it.
fn listed(root: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let list = root.join(LIST);
    let text = std::fs::read_to_string(&list).map_err(|error| missing(&list, &error))?;
    let classes: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('\t').map(|(file, rest)| (file, rest.split('\t').next().unwrap_or(rest).trim())))
        .collect();
    let class_of = |file: PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match classes.get(name.as_str()) {
            Some(class) => Ok((file, (*class).to_owned())),
            None => {
                let message = format!("`{}` does not stand in `{}`", file.display(), list.display());
                Err(Failure::new(message, format!("unpack the archive again; once images lie in folders of classes, remove `{LIST}`"))
                    .into())
            }
        }
    };
    images_below(root)?.into_iter().map(class_of).collect()
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
        let contents = read(with_test.path(), None).unwrap();
        assert_eq!(contents.class_names.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(
            (names(&contents.train), names(contents.test.as_ref().unwrap())),
            (vec!["Train/a/1.png", "Train/b/1.PNG"], vec!["Test/a/2.jpg"])
        );
        assert!(contents.notes[0].contains("extra, val"), "{:?}", contents.notes);
        let without = folder(&["train/a/1.png", "train/b/1.png", "Validation/b/3.png"]);
        let contents = read(without.path(), None).unwrap();
        assert_eq!(names(contents.test.as_ref().unwrap()), ["Validation/b/3.png"]);
        assert_eq!(outside(without.path(), None).unwrap().len(), 3);
        let plain = folder(&["test-tubes/1.png", "trains/1.png"]);
        assert_eq!(read(plain.path(), None).unwrap().train.labels, [0, 1]);
    }

    #[test]
    fn what_is_left_out_is_noted() {
        let folder = folder(&["a/1.png", "a/2.gif", "b/1.png", "b/3.webp", "b/4.WebP", "c/5.bmp", "b/README"]);
        let notes = read(folder.path(), None).unwrap().notes;
        assert!(notes[0].starts_with("5 files of other kinds were left out"), "{notes:?}");
        assert!(notes[0].contains(".bmp 1, .gif 1, .webp 2, without an extension 1"), "{notes:?}");
        assert!(notes[1].contains("`c`"), "{notes:?}");
    }

    #[test]
    fn two_folders_for_one_part_are_refused() {
        let folder = folder(&["train/a/1.png", "Training/a/1.png"]);
        assert!(read(folder.path(), None).unwrap_err().to_string().contains("`Training` and `train`"));
    }

    #[test]
    fn the_part_to_test_on_can_be_known() {
        let folder = folder(&["train/a/1.png", "train/b/1.png", "test/images/9.png", "val/a/2.png"]);
        let contents = read(folder.path(), Some(Share::Validation)).unwrap();
        assert_eq!(names(contents.test.as_ref().unwrap()), ["val/a/2.png"]);
        assert!(read(folder.path(), None).unwrap_err().to_string().contains("a class `images` that the training images lack"));
    }

    #[test]
    fn classes_that_stand_in_a_list_are_read_from_it() {
        let folder = folder(&["train/n1/images/n1_0.JPEG", "train/n2/images/n2_0.JPEG", "val/images/val_0.JPEG", "val/images/val_1.JPEG"]);
        std::fs::write(folder.path().join("val/val_annotations.txt"), "val_0.JPEG\tn2\t0\t1\nval_1.JPEG\tn1\t0\t1\n").unwrap();
        let contents = read(folder.path(), Some(Share::Validation)).unwrap();
        assert_eq!((contents.test.unwrap().labels, contents.notes), (vec![1, 0], Vec::<String>::new()));
        assert_eq!(outside(folder.path(), Some(Share::Validation)).unwrap().len(), 5);
        std::fs::write(folder.path().join("val/val_annotations.txt"), "val_0.JPEG\tn2\n").unwrap();
        let error = read(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("val_1.JPEG` does not stand in"), "{error}");
    }
}
