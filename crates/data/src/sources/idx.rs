//! `idx`: the official files of MNIST and of sets in the same form, `train-images-idx3-ubyte` and its three companions, packed (`.gz`) or not: big-endian
//! sizes, then bytes.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dcu_stage::{External, Failure};
use flate2::read::GzDecoder;

use super::{Contents, Part, externals, files_below, missing};
use crate::images::Cell;
use crate::memory::room_for;

/// The two files of a part.
struct Pair {
    images: PathBuf,
    labels: PathBuf,
}

struct Files {
    train: Pair,
    test: Option<Pair>,
}

impl Files {
    fn paths(&self) -> Vec<PathBuf> {
        std::iter::once(&self.train).chain(&self.test).flat_map(|pair| [pair.images.clone(), pair.labels.clone()]).collect()
    }
}

fn find(folder: &Path) -> anyhow::Result<Files> {
    let files = files_below(folder)?;
    let train = pair(&files, &["train"])?;
    let test = pair(&files, &["t10k", "test"])?;
    let Some(train) = train else {
        let message = format!("there is no `train-images-idx3-ubyte` with its `train-labels-idx1-ubyte` in `{}`", folder.display());
        return Err(Failure::new(message, "name the folder that holds the official files, packed (`.gz`) or not").into());
    };
    Ok(Files { train, test })
}

/// The files whose names say one of these words; none where one of the two is not there.
fn pair(files: &[PathBuf], words: &[&str]) -> anyhow::Result<Option<Pair>> {
    let (images, labels) = (one(files, words, "images")?, one(files, words, "labels")?);
    Ok(images.zip(labels).map(|(images, labels)| Pair { images, labels }))
}

/// Where a file is there both packed and unpacked, the latter.
fn one(files: &[PathBuf], words: &[&str], kind: &str) -> anyhow::Result<Option<PathBuf>> {
    let says = |file: &&PathBuf| {
        let name = name_of(file);
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        name.ends_with("ubyte") && name.contains("idx") && name.contains(kind) && words.iter().any(|word| name.contains(word))
    };
    let found: Vec<&PathBuf> = files.iter().filter(says).collect();
    let plain: Vec<&PathBuf> = found.iter().copied().filter(|file| !is_packed(file)).collect();
    match if plain.is_empty() { &found[..] } else { &plain[..] } {
        [] => Ok(None),
        [file] => Ok(Some((*file).clone())),
        [first, second, ..] => {
            let message = format!("`{}` and `{}` are for the same part", first.display(), second.display());
            Err(Failure::new(message, "name the folder that holds a single set").into())
        }
    }
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn is_packed(file: &Path) -> bool {
    name_of(file).ends_with(".gz")
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path) -> anyhow::Result<Vec<External>> {
    externals(folder, &find(folder)?.paths())
}

/// Reads the folder.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Contents> {
    let files = find(folder)?;
    Ok(Contents {
        name: "idx".into(),
        train: read_part(&files.train)?,
        test: files.test.as_ref().map(read_part).transpose()?,
        class_names: None,
        normalisation: None,
        notes: Vec::new(),
    })
}

fn read_part(pair: &Pair) -> anyhow::Result<Part> {
    let (sizes, pixels) = read_file::<3>(&pair.images)?;
    let ([count], labels) = read_file::<1>(&pair.labels)?;
    let [images, height, width] = sizes;
    if images != count || images == 0 {
        let message = format!("`{}` has {images} images, but `{}` has {count} labels", pair.images.display(), pair.labels.display());
        return Err(Failure::new(message, "download both again; they do not belong together").into());
    }
    ensure!(height * width > 0, "the images of `{}` have no pixel", pair.images.display());
    Ok(Part {
        cells: pixels.chunks_exact(height * width).map(|image| Cell::Planes(image.to_vec(), [1, height, width])).collect(),
        labels: labels.into_iter().map(i64::from).collect(),
        names: None,
        files: vec![(0, pair.images.file_name().unwrap_or_default().to_string_lossy().into_owned())],
    })
}

/// The sizes of an array of bytes, and the bytes.
fn read_file<const D: usize>(file: &Path) -> anyhow::Result<([usize; D], Vec<u8>)> {
    let opened = BufReader::new(File::open(file).map_err(|error| missing(file, &error))?);
    let read = || if is_packed(file) { parse(GzDecoder::new(opened)) } else { parse(opened) };
    read().with_context(|| format!("cannot read `{}`", file.display()))
}

fn parse<const D: usize>(mut from: impl Read) -> anyhow::Result<([usize; D], Vec<u8>)> {
    let damaged = |message: String| Failure::new(message, "download it again; it was cut short, or is a file of another kind");
    let mut word = || -> anyhow::Result<[u8; 4]> {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes).map_err(|error| damaged(format!("its head cannot be read: {error}")))?;
        Ok(bytes)
    };
    // 8 stands for unsigned bytes.
    let magic = word()?;
    if magic != [0, 0, 8, D as u8] {
        return Err(damaged(format!("it begins with {magic:?}, not with {:?}", [0, 0, 8, D as u8])).into());
    }
    let mut sizes = [0; D];
    for size in &mut sizes {
        *size = u32::from_be_bytes(word()?) as usize;
    }
    let length = sizes.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    // Once as a file, once as images.
    room_for(length.and_then(|length| length.checked_mul(2)), &format!("reading {sizes:?} bytes"), "check the file; free memory")?;
    let length = length.expect("what overflows has no room");
    let mut bytes = Vec::new();
    from.take(length as u64 + 1).read_to_end(&mut bytes).map_err(|error| damaged(format!("it cannot be unpacked: {error}")))?;
    if bytes.len() != length {
        let found = if bytes.len() > length { "more".to_owned() } else { bytes.len().to_string() };
        return Err(damaged(format!("its head says {sizes:?}, {length} bytes, but {found} follow")).into());
    }
    Ok((sizes, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn array(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
        let head = [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes.iter().flat_map(|size| size.to_be_bytes()));
        head.chain(bytes.iter().copied()).collect()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
        folder
    }

    #[test]
    fn both_parts_are_read_packed_or_not() {
        let (images, labels) = (array(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]), array(&[2], &[9, 7]));
        let both = folder(&[
            ("train-images-idx3-ubyte", images.clone()),
            ("train-images-idx3-ubyte.gz", vec![1]),
            ("train-labels-idx1-ubyte.gz", packed(&labels)),
            ("t10k-images.idx3-ubyte.gz", packed(&images)),
            ("t10k-labels.idx1-ubyte", labels),
        ]);
        let contents = read(both.path()).unwrap();
        for part in [&contents.train, contents.test.as_ref().unwrap()] {
            assert_eq!(part.labels, [9, 7]);
            assert!(matches!(&part.cells[1], Cell::Planes(pixels, [1, 1, 3]) if pixels == &[4, 5, 6]));
        }
        assert_eq!(outside(both.path()).unwrap().len(), 4);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |images: Vec<u8>, labels: Vec<u8>| {
            let folder = folder(&[("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)]);
            format!("{:#}", read(folder.path()).unwrap_err())
        };
        let labels = || array(&[2], &[0, 1]);
        assert!(refused(array(&[3, 1, 1], &[1, 2, 3]), labels()).contains("has 3 images, but"));
        assert!(refused(array(&[2, 1, 2], &[1, 2, 3]), labels()).contains("4 bytes, but 3 follow"));
        assert!(refused(array(&[2, 1, 1], &[1, 2, 3]), labels()).contains("but more follow"));
        assert!(refused(labels(), labels()).contains("it begins with [0, 0, 8, 1]"));
        assert!(refused(array(&[u32::MAX; 3], &[]), labels()).contains("more bytes than can be counted"));
        assert!(refused(vec![0, 0], labels()).contains("its head cannot be read"));
        assert!(read(folder(&[]).path()).unwrap_err().to_string().contains("there is no `train-images-idx3-ubyte`"));
        let two = folder(&[("train-images-idx3-ubyte", vec![]), ("emnist-train-images-idx3-ubyte", vec![])]);
        assert!(read(two.path()).unwrap_err().to_string().contains("are for the same part"));
    }
}
