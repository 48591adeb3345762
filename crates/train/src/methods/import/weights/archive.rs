//! The ZIP archives that PyTorch writes: entries lie in them as they are, none is compressed, so that nothing is larger than the file itself.

use std::collections::BTreeMap;

/// An archive in memory.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
}

/// What the directory says of an entry.
#[derive(Debug)]
struct Entry {
    method: u16,
    checksum: u32,
    size: u64,
    header: u64,
}

const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const DIRECTORY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// The length of the end record without its comment, which has 65,535 bytes at most.
const END_LENGTH: usize = 22;
/// Marks a size that stands in the extra field.
const ELSEWHERE: u64 = u32::MAX as u64;

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// When there is none, or it does not lie inside of the file.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let tail = bytes.len().saturating_sub(END_LENGTH + usize::from(u16::MAX));
        let place = bytes[tail..].windows(END.len()).rposition(|window| window == END);
        let end = tail + place.ok_or("the directory at its end is missing: it is not whole")?;
        let record = slice(bytes, end as u64, END_LENGTH as u64)?;
        let (mut count, mut start) = (u64::from(u16_at(record, 10)?), u64::from(u32_at(record, 16)?));
        if let Some(locator) = end.checked_sub(20).filter(|&locator| bytes[locator..].starts_with(LOCATOR_64)) {
            let end = u64_at(bytes, locator as u64 + 8)?;
            if slice(bytes, end, 4)? != END_64 {
                return Err("its directory is damaged".into());
            }
            (count, start) = (u64_at(bytes, end + 32)?, u64_at(bytes, end + 48)?);
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let (name, entry, length) = directory_entry(bytes, start)?;
            entries.insert(name, entry);
            start += length;
        }
        Ok(Self { bytes, entries })
    }

    /// The names of all entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The bytes of an entry, whose checksum is right.
    ///
    /// # Errors
    /// When there is none of this name, it is compressed, damaged or not inside of the file.
    pub(super) fn read(&self, name: &str) -> Result<&'a [u8], String> {
        let entry = self.entries.get(name).ok_or_else(|| format!("its part `{name}` is missing"))?;
        if entry.method != 0 {
            return Err(format!("its part `{name}` is compressed, which PyTorch never does"));
        }
        let damaged = || format!("its part `{name}` is damaged");
        if slice(self.bytes, entry.header, 4)? != LOCAL {
            return Err(damaged());
        }
        let skipped = u64::from(u16_at(self.bytes, entry.header + 26)?) + u64::from(u16_at(self.bytes, entry.header + 28)?);
        let bytes = slice(self.bytes, entry.header + 30 + skipped, entry.size)?;
        if checksum(bytes) == entry.checksum { Ok(bytes) } else { Err(damaged()) }
    }
}

/// Name and content of an entry of the directory, and how long that is.
fn directory_entry(bytes: &[u8], start: u64) -> Result<(String, Entry, u64), String> {
    let record = slice(bytes, start, 46)?;
    if !record.starts_with(DIRECTORY) {
        return Err("its directory is damaged".into());
    }
    let [name_length, extra_length, comment_length] = [28, 30, 32].map(|at| u16_at(record, at));
    let (name_length, extra_length, comment_length) = (u64::from(name_length?), u64::from(extra_length?), u64::from(comment_length?));
    let name = String::from_utf8_lossy(slice(bytes, start + 46, name_length)?).into_owned();
    let extra = slice(bytes, start + 46 + name_length, extra_length)?;
    // Where a size is too large for its field, they follow one another in the extra field.
    let mut large = extra_field(extra, 1).unwrap_or_default().chunks_exact(8);
    let mut whole = |at: u64| -> Result<u64, String> {
        let value = u64::from(u32_at(record, at)?);
        if value != ELSEWHERE {
            return Ok(value);
        }
        let value = large.next().ok_or("its directory is damaged")?;
        Ok(u64::from_le_bytes(value.try_into().expect("eight bytes")))
    };
    let (size, _, header) = (whole(24)?, whole(20)?, whole(42)?);
    let entry = Entry { method: u16_at(record, 10)?, checksum: u32_at(record, 16)?, size, header };
    Ok((name, entry, 46 + name_length + extra_length + comment_length))
}

/// The content of the extra field of this kind.
fn extra_field(mut extra: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (kind, length) = (u16_at(extra, 0).ok()?, u16_at(extra, 2).ok()?);
        let content = slice(extra, 4, length.into()).ok()?;
        if kind == wanted {
            return Some(content);
        }
        extra = &extra[4 + content.len()..];
    }
}

/// Bytes that lie inside of the file.
pub(super) fn slice(bytes: &[u8], start: u64, length: u64) -> Result<&[u8], String> {
    let end = start.checked_add(length).and_then(|end| usize::try_from(end).ok());
    end.and_then(|end| bytes.get(start as usize..end)).ok_or_else(|| "it ends too early: it is not whole".to_owned())
}

fn u16_at(bytes: &[u8], start: u64) -> Result<u16, String> {
    Ok(u16::from_le_bytes(slice(bytes, start, 2)?.try_into().expect("two bytes")))
}

fn u32_at(bytes: &[u8], start: u64) -> Result<u32, String> {
    Ok(u32::from_le_bytes(slice(bytes, start, 4)?.try_into().expect("four bytes")))
}

/// A number of eight bytes.
pub(super) fn u64_at(bytes: &[u8], start: u64) -> Result<u64, String> {
    Ok(u64::from_le_bytes(slice(bytes, start, 8)?.try_into().expect("eight bytes")))
}

/// The cyclic redundancy check of ZIP (polynomial 0xEDB88320, reflected).
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut value, mut bit) = (byte as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |sum, &byte| TABLE[(sum as u8 ^ byte) as usize] ^ (sum >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_format() {
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
    }
}
