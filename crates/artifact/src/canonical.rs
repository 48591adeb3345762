//! Canonical JSON and content digests.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// A BLAKE3 digest, written as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, enough to tell files apart on a screen.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let hexadecimal = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.len() == 64 && hexadecimal { Ok(Self(text)) } else { Err(format!("`{text}` is no digest of 64 hexadecimal digits")) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

/// The digest of some bytes.
#[must_use]
pub fn digest_bytes(bytes: &[u8]) -> Digest {
    blake3::hash(bytes).into()
}

/// The digest of a JSON value, whatever the order of its keys.
#[must_use]
pub fn digest_json(value: &Value) -> Digest {
    digest_bytes(canonical_json(value).as_bytes())
}

/// The digest of a file's bytes.
///
/// # Errors
/// When the file cannot be read, or is none: a pipe would keep the caller waiting, a device may never end.
pub fn digest_file(path: &Path) -> Result<Digest> {
    let fail = |source| Error::io("read", path, source);
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is no plain file")));
    }
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

/// JSON with sorted keys and without spaces: equal values give equal text.
#[must_use]
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    append(value, &mut text);
    text
}

fn append(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            text.push('{');
            for (position, key) in keys.into_iter().enumerate() {
                if position > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                append(&map[key], text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    text.push(',');
                }
                append(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let left: Value = serde_json::from_str(r#"{"b":[1,{"y":2,"x":"é\""}],"a":null}"#).unwrap();
        let right: Value = serde_json::from_str(r#"{"a":null,"b":[1,{"x":"é\"","y":2}]}"#).unwrap();
        assert_eq!(canonical_json(&left), r#"{"a":null,"b":[1,{"x":"é\"","y":2}]}"#);
        assert_eq!(digest_json(&left), digest_json(&right));
    }

    #[test]
    #[cfg(unix)]
    fn a_device_and_a_folder_have_no_digest() {
        for path in ["/dev/zero", "/"] {
            assert!(
                matches!(digest_file(Path::new(path)), Err(Error::Io { source, .. }) if source.to_string() == "it is no plain file"),
                "{path}"
            );
        }
    }

    #[test]
    fn a_digest_must_be_64_hexadecimal_digits() {
        assert!(Digest::try_from("0".repeat(64)).is_ok());
        assert!(Digest::try_from("0".repeat(63)).is_err());
        assert!(Digest::try_from("G".repeat(64)).is_err());
    }
}
