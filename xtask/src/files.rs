//! Files that a user names: what they are is asked before they are opened, as a pipe would keep the program waiting for ever.

use std::fs::{File, FileType};
use std::io::Read as _;
use std::path::Path;

/// So much of a file is enough to tell what it is.
const ENOUGH: u64 = 4096;
/// Beginnings of files, and what has them.
const BEGINNINGS: [(&[u8], &str); 12] = [
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a ZIP archive; weights that PyTorch has written enter through `train/import`"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"GGUF", "a GGUF model"),
    (b"\x80", "a Python pickle; weights that PyTorch has written enter through `train/import`"),
];

/// Opens a file that is one: no folder, no pipe, no device.
pub(crate) fn open(path: &Path) -> Result<File, String> {
    let failed = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if let Some(kind) = special(metadata.file_type()) {
        return Err(format!("cannot read `{}`: it is {kind}, not a file", path.display()));
    }
    File::open(path).map_err(failed)
}

fn special(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return Some("a pipe (FIFO)");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    if kind.is_dir() { Some("a folder") } else { None }
}

/// What a file seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seems {
    Safetensors,
    Pipeline,
    Other(&'static str),
}

/// Looks at the beginning of a file.
pub(crate) fn what(path: &Path) -> Result<Seems, String> {
    let mut begin = Vec::new();
    open(path)?.take(ENOUGH).read_to_end(&mut begin).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    Ok(kind_of(&begin, extension))
}

fn kind_of(begin: &[u8], extension: &str) -> Seems {
    if ["yaml", "yml"].contains(&extension) {
        return Seems::Pipeline;
    }
    if begin.get(8) == Some(&b'{') || extension == "safetensors" {
        return Seems::Safetensors;
    }
    if let Some((_, what)) = BEGINNINGS.iter().find(|(bytes, _)| begin.starts_with(bytes)) {
        return Seems::Other(what);
    }
    // The limit may have cut a character in two.
    let text = match std::str::from_utf8(begin) {
        Ok(text) => Some(text),
        Err(error) if begin.len() - error.valid_up_to() < 4 => std::str::from_utf8(&begin[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    match text.map(|text| text.trim_start_matches('\u{feff}')) {
        Some("") => Seems::Other("an empty file"),
        Some(text) if text.lines().any(|line| line.starts_with("stages:")) => Seems::Pipeline,
        Some(text) if text.starts_with(['{', '[']) => Seems::Other("JSON"),
        Some(text) if !text.contains('\0') => Seems::Other("plain text"),
        _ => Seems::Other("bytes of no kind that is known here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_how_files_begin() {
        assert_eq!(kind_of(b"\x10\0\0\0\0\0\0\0{\"a\":1}", "bin"), Seems::Safetensors);
        assert_eq!(kind_of(b"version: 1\nstages:\n", "txt"), Seems::Pipeline);
        assert_eq!(kind_of(b"", "yaml"), Seems::Pipeline);
        assert_eq!(kind_of(b"\x89PNG\r\n", "png"), Seems::Other("a PNG image"));
        assert_eq!(kind_of(b"", ""), Seems::Other("an empty file"));
        assert_eq!(kind_of("id\nä".as_bytes(), "csv"), Seems::Other("plain text"));
        assert_eq!(kind_of(&[0; 20], ""), Seems::Other("bytes of no kind that is known here"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_a_folder_and_a_device_are_refused_without_waiting() {
        let folder = std::env::temp_dir().join(format!("dcu-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pipe = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(open(&pipe).unwrap_err().contains("a pipe (FIFO), not a file"));
        assert!(open(&folder).unwrap_err().contains("a folder, not a file"));
        assert!(open(Path::new("/dev/null")).unwrap_err().contains("a device, not a file"));
        assert!(open(&folder.join("none")).unwrap_err().contains("cannot read"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
