//! Atomic writing: a temporary sibling, fsync, rename. A reader sees the old file or the whole new one.

use std::io::Write;
use std::path::Path;

use crate::envelope::encode;
use crate::{Content, Digest, Error, Payload, Provenance, Result};

/// Writes `payload` to `path` and returns its content digest.
///
/// # Errors
/// When the payload breaks a rule of its schema or the file cannot be written; nothing is left behind then.
pub fn write<P: Payload>(path: &Path, payload: &P, provenance: &Provenance) -> Result<Digest> {
    let content: Content = payload.to_content();
    P::from_content(content.clone()).map_err(|reason| Error::Invalid { path: path.to_owned(), schema: P::SCHEMA.into(), reason })?;
    let (bytes, digest) =
        encode(&content, provenance).map_err(|reason| Error::Invalid { path: path.to_owned(), schema: P::SCHEMA.into(), reason })?;
    replace_file(path, &bytes)?;
    Ok(digest)
}

/// Puts `bytes` under `path` in one step, with the permissions that the user's umask grants.
///
/// # Errors
/// When the folder does not exist or is full or read-only; `path` is unchanged then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file_by_way_of(folder_of(path), path, bytes)
}

/// As [`replace_file`], but the unfinished file lies in `temporary`, a folder of the same file system.
///
/// # Errors
/// When one of the folders does not exist or is full or read-only; `path` is unchanged then.
pub fn replace_file_by_way_of(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| Error::io("write", path, source);
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    let permissions = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    let mut file = builder.prefix(".partial-").tempfile_in(temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    #[cfg(unix)]
    std::fs::File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(fail)?;
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
