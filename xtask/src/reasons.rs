//! Why a result is stale.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dcu_artifact::Digest;
use serde_json::Value;

use crate::diagnostic::cut;
use crate::store::Parts;

/// One reason why an instance must run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reason {
    NeverRan,
    Forced,
    Damaged(String),
    /// Something outside that it reads cannot be had.
    Outside(String),
    /// Only the network knows what it would read, and a command that looks does not ask it.
    NotAsked(String),
    Task {
        old: Value,
        new: Value,
    },
    Version {
        old: Option<u32>,
        new: Option<u32>,
    },
    Parameter {
        name: String,
        old: Option<Value>,
        new: Option<Value>,
    },
    Seed {
        old: Option<u64>,
        new: Option<u64>,
    },
    Input {
        name: String,
        old: Vec<Digest>,
        new: Vec<Digest>,
    },
    External {
        name: String,
        old: Option<Digest>,
        new: Option<Digest>,
    },
    Outputs,
    Device {
        old: Option<String>,
        new: Option<String>,
    },
    Code(Vec<String>),
    Dependencies,
    Build,
    /// Nothing has changed, but the result is gone.
    Gone,
}

/// What differs between the parts of the last result and those of the one that is wanted.
pub(crate) fn differences(old: &Parts, new: &Parts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if old.task != new.task {
        reasons.push(Reason::Task { old: old.task.clone(), new: new.task.clone() });
    }
    if old.version != new.version {
        reasons.push(Reason::Version { old: old.version, new: new.version });
    }
    let nothing = serde_json::Map::new();
    let parameters = |parts: &Parts| parts.parameters.as_object().unwrap_or(&nothing).clone().into_iter().collect::<BTreeMap<_, _>>();
    for (name, old, new) in changed(&parameters(old), &parameters(new)) {
        reasons.push(Reason::Parameter { name, old, new });
    }
    if old.seed != new.seed {
        reasons.push(Reason::Seed { old: old.seed, new: new.seed });
    }
    for (name, old, new) in changed(&old.inputs, &new.inputs) {
        reasons.push(Reason::Input { name, old: old.unwrap_or_default(), new: new.unwrap_or_default() });
    }
    for (name, old, new) in changed(&old.externals, &new.externals) {
        reasons.push(Reason::External { name, old, new });
    }
    if old.outputs != new.outputs {
        reasons.push(Reason::Outputs);
    }
    if old.device != new.device {
        reasons.push(Reason::Device { old: old.device.clone(), new: new.device.clone() });
    }
    let files: Vec<String> = changed(&old.code.files, &new.code.files).into_iter().map(|(name, ..)| name).collect();
    if !files.is_empty() {
        reasons.push(Reason::Code(files));
    }
    if old.code.dependencies != new.code.dependencies {
        reasons.push(Reason::Dependencies);
    }
    if old.code.build != new.code.build {
        reasons.push(Reason::Build);
    }
    if reasons.is_empty() { vec![Reason::Gone] } else { reasons }
}

fn changed<T: Clone + PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<(String, Option<T>, Option<T>)> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let pairs = names.into_iter().map(|name| (name.clone(), old.get(name).cloned(), new.get(name).cloned()));
    pairs.filter(|(_, old, new)| old != new).collect()
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<Value>| value.as_ref().map_or("nothing".into(), Value::to_string);
        let number = |value: Option<u64>| value.map_or("none".into(), |value| value.to_string());
        let digest = |digest: &Option<Digest>| digest.as_ref().map_or("nothing", Digest::short).to_owned();
        match self {
            Self::NeverRan => write!(formatter, "never ran here"),
            Self::Forced => write!(formatter, "forced"),
            Self::Damaged(reason) | Self::Outside(reason) => write!(formatter, "{reason}"),
            Self::NotAsked(name) => write!(formatter, "what `{name}` is now was not asked"),
            Self::Task { old, new } => write!(formatter, "runs {new}, not {old}"),
            Self::Version { old, new } => write!(formatter, "version {} -> {}", number(old.map(u64::from)), number(new.map(u64::from))),
            Self::Parameter { name, old, new } => write!(formatter, "`{name}` {} -> {}", value(old), value(new)),
            Self::Seed { old, new } => write!(formatter, "seed {} -> {}", number(*old), number(*new)),
            Self::Input { name, old, new } => match (old.as_slice(), new.as_slice()) {
                ([old], [new]) => write!(formatter, "input `{name}` {} -> {}", old.short(), new.short()),
                _ => write!(formatter, "input `{name}` has changed"),
            },
            Self::External { name, old, new } => write!(formatter, "`{name}` {} -> {}", digest(old), digest(new)),
            Self::Outputs => write!(formatter, "declares other outputs"),
            Self::Device { old, new } => {
                let [old, new] = [old, new].map(|device| device.as_deref().unwrap_or("cpu"));
                write!(formatter, "device {old} -> {new}")
            }
            Self::Code(files) => match files.as_slice() {
                [first, second, third, rest @ ..] if !rest.is_empty() => {
                    write!(formatter, "code of {first}, {second}, {third} and {} more", rest.len())
                }
                files => write!(formatter, "code of {}", files.join(", ")),
            },
            Self::Dependencies => write!(formatter, "locked dependencies"),
            Self::Build => write!(formatter, "compiler, flags or profile"),
            Self::Gone => write!(formatter, "its result is gone from the store"),
        }
    }
}

/// Reasons that are told, one by one; of more only the number is.
const MOST_REASONS: usize = 8;

/// The reasons in one line that fits on a screen or two: long values are cut, and of many reasons the first are told.
pub(crate) fn in_one_line(reasons: &[Reason]) -> String {
    let shown = reasons.iter().take(MOST_REASONS).map(|reason| cut(&reason.to_string()));
    let more = reasons.len().saturating_sub(MOST_REASONS);
    let more = (more > 0).then(|| format!("and {more} more"));
    shown.chain(more).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fingerprint::Code;

    fn parts() -> Parts {
        Parts {
            task: json!("train/fit"),
            version: Some(1),
            parameters: json!({ "epochs": 30, "lr": 0.1 }),
            seed: Some(1),
            inputs: BTreeMap::from([("dataset".to_owned(), vec![dcu_artifact::digest_bytes(b"a")])]),
            externals: BTreeMap::new(),
            outputs: BTreeMap::from([("model".to_owned(), "model/1".to_owned())]),
            code: Code { files: BTreeMap::new(), dependencies: None, build: None },
            device: None,
        }
    }

    #[test]
    fn each_difference_has_its_reason() {
        let old = parts();
        assert_eq!(differences(&old, &old), [Reason::Gone]);
        let mut new = parts();
        new.parameters["epochs"] = json!(40);
        new.seed = Some(2);
        new.device = Some("cuda:0".into());
        new.inputs.insert("dataset".into(), vec![dcu_artifact::digest_bytes(b"b")]);
        new.code.files.insert("crates/nn/src/lib.rs".into(), dcu_artifact::digest_bytes(b"c"));
        let line = in_one_line(&differences(&old, &new));
        assert!(
            line.starts_with("`epochs` 30 -> 40; seed 1 -> 2; input `dataset` ")
                && line.ends_with("; device cpu -> cuda:0; code of crates/nn/src/lib.rs"),
            "{line}"
        );
    }

    #[test]
    fn many_and_long_reasons_are_cut() {
        let old = parts();
        let mut new = parts();
        for number in 0..500 {
            new.parameters[format!("p{number}")] = json!("x".repeat(10_000));
        }
        let line = in_one_line(&differences(&old, &new));
        assert!(line.len() < 4_000 && line.ends_with("; and 492 more"), "{}", line.len());
    }

    #[test]
    fn every_part_enters_the_key() {
        let old = parts();
        let edits: [fn(&mut Parts); 8] = [
            |parts| parts.task = json!("train/import"),
            |parts| parts.version = Some(2),
            |parts| parts.parameters["lr"] = json!(0.2),
            |parts| parts.seed = None,
            |parts| drop(parts.inputs.remove("dataset")),
            |parts| drop(parts.externals.insert("file".into(), dcu_artifact::digest_bytes(b"x"))),
            |parts| parts.device = Some("cpu-composed".into()),
            |parts| parts.code.build = Some(dcu_artifact::digest_bytes(b"x")),
        ];
        for edit in edits {
            let mut new = parts();
            edit(&mut new);
            assert_ne!(old.key(), new.key());
        }
        assert_eq!(old.key(), parts().key());
        // As it was before there were devices.
        assert!(serde_json::to_value(&old).unwrap().get("device").is_none());
    }
}
