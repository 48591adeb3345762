//! One grammar for names. They become parts of instance names, of file names in the store and of arguments of stages, so that no character
//! in them may mean something there.

use dcu_artifact::digest_bytes;

/// A name has at most so many characters.
const LONGEST: usize = 64;
/// A matrix value of at most so many characters stands whole in an instance's name.
const LONGEST_VALUE: usize = 48;
/// A file that is named after an instance has at most so many bytes before its extension.
const LONGEST_FILE: usize = 200;

/// Checks a name; `kind` is what it names: `stage`, `output`, `input`, `matrix key`, `label`, `pipeline`.
pub(crate) fn check(kind: &str, name: &str) -> Result<(), String> {
    let is_label = kind == "label";
    let fits = |character: char| match character {
        '-' | '_' => true,
        ' ' | '.' | '+' => is_label,
        other => other.is_ascii_alphanumeric(),
    };
    let length = name.chars().count();
    if length > LONGEST {
        return Err(format!("the name of this {kind} has {length} characters, but may have {LONGEST}"));
    }
    if name.is_empty() || !name.chars().all(fits) {
        let more = if is_label { ", `-`, `_`, `+`, dots and blanks" } else { ", `-` and `_`" };
        return Err(format!("`{name}` cannot be the name of this {kind}: it may have letters, digits{more}"));
    }
    if name.starts_with('-') {
        return Err(format!("`{name}` cannot be the name of this {kind}: it starts with `-`, like an option"));
    }
    Ok(())
}

/// Whether `file/EXT` can be the schema of a plain file: its extension has 1 to 16 letters and digits.
pub(crate) fn is_file_schema(schema: &str) -> bool {
    schema
        .strip_prefix("file/")
        .is_some_and(|extension| (1..=16).contains(&extension.len()) && extension.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// A value of a matrix as it stands in the names of instances: what could mean something there is percent-encoded, and a long one is
/// shortened, with a digest that keeps it apart.
pub(crate) fn encode(value: &str) -> String {
    let encoded = percent_encoded(value, b".-_+");
    match encoded.len() > LONGEST_VALUE {
        true => format!("{}~{}", &encoded[..32], &digest_bytes(value.as_bytes()).as_str()[..8]),
        false => encoded,
    }
}

/// The name of a file about an instance, without extension: fit for any file system, and different for different instances.
pub(crate) fn file_name(instance: &str) -> String {
    let encoded = percent_encoded(instance, b".-_+@#~%");
    match encoded.len() > LONGEST_FILE {
        true => format!("{}~{}", &encoded[..LONGEST_FILE - 17], &digest_bytes(instance.as_bytes()).as_str()[..16]),
        false => encoded,
    }
}

fn percent_encoded(text: &str, plain: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            true => encoded.push(byte.into()),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        for name in ["a", "base-2", "_x", "null", &"a".repeat(64)] {
            assert_eq!(check("stage", name), Ok(()), "{name}");
        }
        for name in ["", "a b", "a.b", "../../x", "/etc/x", "a#1", "a@b", "-x", "ü", "a\nb", &"a".repeat(65), &"a".repeat(300)] {
            assert!(check("stage", name).unwrap_err().contains("stage"), "{name}");
        }
        assert_eq!(check("label", "fine tuning"), Ok(()));
        assert_eq!(check("label", "v1.2+more"), Ok(()));
        assert!(check("label", "a/b").is_err());
    }

    #[test]
    fn an_extension_is_letters_and_digits() {
        assert!(is_file_schema("file/csv") && is_file_schema("file/mp4"));
        for wrong in ["file/", "file/.", "file/json/../x", "file/tar.gz", "file/ü", "model/1", "file/aaaaaaaaaaaaaaaaa"] {
            assert!(!is_file_schema(wrong), "{wrong}");
        }
    }

    #[test]
    fn values_are_encoded_and_stay_apart() {
        assert_eq!(encode("uoft-cs/cifar10"), "uoft-cs%2Fcifar10");
        assert_eq!(encode("a#1@b%"), "a%231%40b%25");
        assert_eq!(encode("0.5"), "0.5");
        assert_eq!(encode("ü"), "%C3%BC");
        let (left, right) = (format!("{}1", "x".repeat(300)), format!("{}2", "x".repeat(300)));
        assert_eq!(encode(&left).len(), 41);
        assert!(encode(&left) != encode(&right) && encode(&left).starts_with(&format!("{}~", "x".repeat(32))));
        assert!(encode(&"ü".repeat(40)).is_ascii());
    }

    #[test]
    fn file_names_are_short_whatever_the_instance() {
        assert_eq!(file_name("evaluate@a%2Fb@0.5#42"), "evaluate@a%2Fb@0.5#42");
        assert_eq!(file_name("a/b"), "a%2Fb");
        let (left, right) = (format!("s{}#1", "@value".repeat(100)), format!("s{}#2", "@value".repeat(100)));
        assert!(file_name(&left).len() == 200 && file_name(&left) != file_name(&right));
    }
}
