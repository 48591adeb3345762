//! Parquet files as others write them; `fixtures/make.py` made most of them.

use std::path::{Path, PathBuf};

use dcu_data::images::Cell;
use dcu_data::{Contents, List, Part, Selection};
use dcu_tables::parquet::read_list;

fn read(path: &Path) -> anyhow::Result<Contents> {
    dcu_tables::parquet::read(path, &Selection::default())
}

fn folder_of_crate() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"))
}

fn fixture(name: &str) -> PathBuf {
    folder_of_crate().join("fixtures").join(format!("{name}.parquet"))
}

fn labels_of(name: &str) -> (Vec<i64>, Option<Vec<String>>) {
    let contents = read(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    (contents.train.labels, contents.class_names)
}

fn error(name: &str) -> String {
    format!("{:#}", read(&fixture(name)).unwrap_err())
}

#[test]
fn labels_keep_their_values_whatever_their_type() {
    for (name, labels) in
        [("int8", vec![1, 0, 1]), ("uint64", vec![1, 0, 1]), ("whole_floats", vec![1, 0, 1]), ("dictionary_of_numbers", vec![2, 1, 0, 2])]
    {
        assert_eq!(labels_of(name), (labels, None), "{name}");
    }
    let digits = ["0", "1", "2"].map(str::to_owned).to_vec();
    assert_eq!(labels_of("dictionary_of_digits"), (vec![2, 1, 0, 2], Some(digits)));
}

#[test]
fn names_become_classes_in_their_order() {
    let animals = ["cat", "dog"].map(str::to_owned).to_vec();
    assert_eq!(labels_of("names"), (vec![1, 0, 1], Some(animals.clone())));
    assert_eq!(labels_of("dictionary_of_names"), (vec![1, 0, 1], Some(animals)));
    assert_eq!(labels_of("numbers_as_names"), (vec![1, 0, 0], Some(vec!["9".into(), "10".into()])));
}

#[test]
fn labels_that_are_none_are_refused_with_their_row() {
    for (name, part) in [
        ("broken_floats", "the label in row 1 of `broken_floats.parquet` is 0.5"),
        ("no_label", "row 1 of `no_label.parquet` has no label"),
        ("no_name", "row 1 of `no_name.parquet` has no label"),
        ("lists", "holds values of the type"),
    ] {
        assert!(error(name).contains(part), "{}", error(name));
    }
}

/// A folder with these copies of fixtures.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, of) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(fixture(of), path).unwrap();
    }
    folder
}

fn files(part: &Part) -> Vec<&str> {
    part.files.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn parts_are_told_by_whole_words_of_file_and_folder() {
    let mixed = folder(&[("train-latest.parquet", "int8"), ("latest.parquet", "int8"), ("validation-0.parquet", "uint64")]);
    let contents = read(mixed.path()).unwrap();
    assert_eq!(files(&contents.train), ["latest.parquet", "train-latest.parquet"]);
    assert_eq!(files(&contents.test.unwrap()), ["validation-0.parquet"]);
    let all = folder(&[("train/a.parquet", "int8"), ("val/b.parquet", "int8"), ("test/c.parquet", "int8")]);
    let contents = read(all.path()).unwrap();
    assert_eq!((files(&contents.train), files(&contents.test.unwrap())), (vec!["a.parquet"], vec!["c.parquet"]));
    assert!(contents.notes[0].contains("1 files for validation were left out"), "{:?}", contents.notes);
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let mixed = folder(&[("train-0.parquet", "names"), ("train-1.parquet", "int8")]);
    assert!(read(mixed.path()).unwrap_err().to_string().contains("has numbers as labels, the other names"));
    let other = folder(&[("train.parquet", "names"), ("test.parquet", "other_names")]);
    assert!(read(other.path()).unwrap_err().to_string().contains("the class `cow`, which the training images lack"));
}

#[test]
fn a_damaged_file_is_an_error_whatever_is_damaged() {
    let whole = std::fs::read(fixture("dictionary_of_names")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.parquet");
    let mut random = 0x9e37_79b9_u64;
    let mut next = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..=next(4) {
            let place = next(bytes.len());
            bytes[place] ^= 1 << next(8);
        }
        bytes.truncate(if next(4) == 0 { next(bytes.len()) } else { bytes.len() });
        std::fs::write(&file, bytes).unwrap();
        refused += usize::from(read(&file).is_err());
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn lists_of_any_type_are_read() {
    let list = |name: &str| read_list(&fixture(name));
    assert_eq!(list("ids").unwrap(), List::Ids(vec!["3".into(), "7".into()]));
    assert_eq!(list("paths").unwrap(), List::Paths(vec!["3/2.png".into(), "3/1.png".into()]));
    assert!(list("ids_with_null").unwrap_err().to_string().contains("row 1 of"));
    assert!(list("names").unwrap_err().to_string().contains("neither a column `id`"));
}

/// The pixels of all digits, one after the other.
fn pixels(part: &Part) -> Vec<u8> {
    let of = |cell: &Cell| match cell {
        Cell::Encoded(png) => image::load_from_memory(png).unwrap().into_luma8().into_raw(),
        Cell::Planes(pixels, _) => pixels.clone(),
        Cell::File(_) => unreachable!("nobody reads a folder"),
    };
    part.cells.iter().flat_map(of).collect()
}

/// The digits that come with `dcu-data` are made of the parquet files in this crate's `data/`. With `DCU_WRITE_DIGITS=1` they are written anew.
#[test]
fn the_embedded_digits_are_those_of_the_parquet_files() {
    let made = read(&folder_of_crate().join("data")).unwrap();
    let embedded = dcu_data::embedded::read().unwrap();
    let parts = [("train", made.train, embedded.train), ("test", made.test.unwrap(), embedded.test.unwrap())];
    for (name, made, embedded) in parts {
        if std::env::var_os("DCU_WRITE_DIGITS").is_some() {
            write(&folder_of_crate().join("../data/data").join(name), &made);
        } else {
            let same = pixels(&made) == pixels(&embedded) && made.labels == embedded.labels;
            assert!(same, "{name} differs; write it with DCU_WRITE_DIGITS=1");
        }
    }
}

fn write(target: &Path, part: &Part) {
    let labels: String = part.labels.iter().map(ToString::to_string).collect();
    let image = image::GrayImage::from_raw(28, 28 * part.labels.len() as u32, pixels(part)).unwrap();
    image.save(target.with_extension("png")).unwrap();
    std::fs::write(target.with_extension("txt"), labels + "\n").unwrap();
}
