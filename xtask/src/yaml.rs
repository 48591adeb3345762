//! YAML with places. The only module that knows a YAML library: `serde_yaml` says what the values are, `saphyr-parser` where they stand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser};
use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::diagnostic::{Diagnostic, Place};

/// A way from the top of a document to a value: keys and indices.
type Way = Vec<String>;

/// A YAML file as plain values, each with the place where the user wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) file: PathBuf,
    pub(crate) value: Value,
    lines: Vec<String>,
    values: HashMap<Way, (usize, usize)>,
    keys: HashMap<Way, (usize, usize)>,
    overridden: Vec<(Way, String)>,
}

impl Document {
    /// Parses the text of `file`.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, Diagnostic> {
        let mut document = Self {
            file: file.to_owned(),
            value: Value::Null,
            lines: text.lines().map(str::to_owned).collect(),
            values: HashMap::new(),
            keys: HashMap::new(),
            overridden: Vec::new(),
        };
        let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message);
            Diagnostic::new(document.place(line, column), format!("this is no YAML: {message}"))
        })?;
        let mut events =
            Parser::new_from_str(text).filter_map(Result::ok).map(|(event, span)| (event, (span.start.line(), span.start.col() + 1)));
        while let Some((event, mark)) = events.next() {
            if !matches!(event, Event::StreamStart | Event::DocumentStart(_)) {
                document.visit(event, mark, &mut events, &mut Vec::new());
                break;
            }
        }
        let mut way = Vec::new();
        document.value = to_json(value, &mut way).map_err(|message| Diagnostic::new(document.at(&way), message))?;
        Ok(document)
    }

    fn visit<'a>(
        &mut self,
        event: Event<'a>,
        mark: (usize, usize),
        events: &mut impl Iterator<Item = (Event<'a>, (usize, usize))>,
        way: &mut Way,
    ) {
        self.values.insert(way.clone(), mark);
        match event {
            Event::MappingStart(..) => {
                while let Some((key, key_mark)) = events.next() {
                    let name = match key {
                        Event::MappingEnd => return,
                        Event::Scalar(text, ..) => text.into_owned(),
                        other => {
                            self.visit(other, key_mark, events, &mut vec!["?".into()]);
                            "?".into()
                        }
                    };
                    way.push(name);
                    self.keys.insert(way.clone(), key_mark);
                    if let Some((value, value_mark)) = events.next() {
                        self.visit(value, value_mark, events, way);
                    }
                    way.pop();
                }
            }
            Event::SequenceStart(..) => {
                for position in 0.. {
                    match events.next() {
                        None | Some((Event::SequenceEnd, _)) => return,
                        Some((item, item_mark)) => {
                            way.push(position.to_string());
                            self.visit(item, item_mark, events, way);
                            way.pop();
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Replaces the value at `way` by an argument of the command line, `argument` as the user wrote it.
    pub(crate) fn set(&mut self, way: &[&str], value: Value, argument: &str) {
        let mut target = &mut self.value;
        for key in way {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            target = target.as_object_mut().expect("just made").entry(*key).or_insert(Value::Null);
        }
        *target = value;
        self.overridden.push((to_way(way), argument.to_owned()));
    }

    /// Whether the value at `way` comes from the command line.
    pub(crate) fn is_overridden(&self, way: &[&str]) -> bool {
        self.argument(&to_way(way)).is_some()
    }

    fn argument(&self, way: &Way) -> Option<&str> {
        self.overridden.iter().rev().find(|(overridden, _)| way.starts_with(overridden)).map(|(_, argument)| argument.as_str())
    }

    /// The place of the value at `way`, or of the nearest value around it.
    pub(crate) fn at<S: AsRef<str>>(&self, way: &[S]) -> Place {
        self.find(&self.values, way)
    }

    /// The place of the key at the end of `way`, or of the nearest value around it.
    pub(crate) fn at_key<S: AsRef<str>>(&self, way: &[S]) -> Place {
        self.find(&self.keys, way)
    }

    fn find<S: AsRef<str>>(&self, first: &HashMap<Way, (usize, usize)>, way: &[S]) -> Place {
        let mut way = to_way(way);
        if let Some(argument) = self.argument(&way) {
            return Place::Argument(argument.to_owned());
        }
        if let Some(&(line, column)) = first.get(&way) {
            return self.place(line, column);
        }
        loop {
            let mark = self.keys.get(&way).or_else(|| self.values.get(&way));
            if let Some(&(line, column)) = mark {
                return self.place(line, column);
            }
            if way.pop().is_none() {
                return self.place(1, 1);
            }
        }
    }

    fn place(&self, line: usize, column: usize) -> Place {
        let text = self.lines.get(line.saturating_sub(1)).cloned().unwrap_or_default();
        Place::File { file: self.file.clone(), line, column, text }
    }
}

fn to_way<S: AsRef<str>>(way: &[S]) -> Way {
    way.iter().map(|key| key.as_ref().to_owned()).collect()
}

/// A value of the command line, read as YAML: `0.1`, `[1, 2]`, `cnn`.
pub(crate) fn parse_value(text: &str) -> Result<Value, String> {
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    to_json(value, &mut Vec::new())
}

/// Any plain value as YAML.
pub(crate) fn to_text<T: Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_yaml::to_string(value)?)
}

fn to_json(value: serde_yaml::Value, way: &mut Way) -> Result<Value, String> {
    Ok(match value {
        serde_yaml::Value::Null => Value::Null,
        serde_yaml::Value::Bool(flag) => Value::Bool(flag),
        serde_yaml::Value::String(text) => Value::String(text),
        serde_yaml::Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), _) => number.into(),
            (.., number) => Value::Number(number.and_then(Number::from_f64).ok_or("a number must be finite")?),
        },
        serde_yaml::Value::Sequence(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (position, item) in items.into_iter().enumerate() {
                way.push(position.to_string());
                values.push(to_json(item, way)?);
                way.pop();
            }
            Value::Array(values)
        }
        serde_yaml::Value::Mapping(mapping) => {
            let mut map = Map::new();
            for (key, item) in mapping {
                let key = key_text(&key)?;
                way.push(key.clone());
                let item = to_json(item, way)?;
                way.pop();
                map.insert(key, item);
            }
            Value::Object(map)
        }
        serde_yaml::Value::Tagged(tagged) => return Err(format!("the tag `{}` means nothing here", tagged.tag)),
    })
}

/// YAML reads a plain `null`, `true` or `1` as something else than text; as a key, each is its own name.
fn key_text(key: &serde_yaml::Value) -> Result<String, String> {
    match key {
        serde_yaml::Value::String(text) => Ok(text.clone()),
        serde_yaml::Value::Null => Ok("null".into()),
        serde_yaml::Value::Bool(flag) => Ok(flag.to_string()),
        serde_yaml::Value::Number(number) => Ok(number.to_string()),
        _ => Err("a key must be plain text".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str =
        "version: 1\nstages:\n  base: { uses: train/fit, with: { epochs: 3 } }\n  null: {}\n  list:\n    - a\n    - [b, c]\n";

    fn line_and_column(place: Place) -> (usize, usize) {
        match place {
            Place::File { line, column, .. } => (line, column),
            Place::Argument(argument) => panic!("{argument}"),
        }
    }

    #[test]
    fn values_and_keys_know_their_places() {
        let document = Document::parse(Path::new("p.yaml"), TEXT).unwrap();
        assert_eq!(document.value["stages"]["null"], json!({}));
        assert_eq!(line_and_column(document.at(&["stages", "base", "with", "epochs"])), (3, 44));
        assert_eq!(line_and_column(document.at_key(&["stages", "base", "with", "epochs"])), (3, 36));
        assert_eq!(line_and_column(document.at(&["stages", "list", "1", "1"])), (7, 11));
        assert_eq!(line_and_column(document.at(&["stages", "base", "with", "unknown"])), (3, 28));
        assert_eq!(line_and_column(document.at_key(&["stages", "null"])), (4, 3));
    }

    #[test]
    fn an_override_is_the_place_of_what_it_sets() {
        let mut document = Document::parse(Path::new("p.yaml"), TEXT).unwrap();
        document.set(&["stages", "base", "with", "lr"], json!(0.1), "--set base.lr=0.1");
        assert_eq!(document.value["stages"]["base"]["with"], json!({ "epochs": 3, "lr": 0.1 }));
        assert_eq!(document.at(&["stages", "base", "with", "lr"]), Place::Argument("--set base.lr=0.1".into()));
        assert!(!document.is_overridden(&["stages", "base", "with", "epochs"]));
    }

    #[test]
    fn broken_yaml_and_doubled_keys_are_refused_with_the_place() {
        let error = Document::parse(Path::new("p.yaml"), "a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(matches!(error.place, Some(Place::File { line: 2 | 3, .. })), "{error}");
        let error = Document::parse(Path::new("p.yaml"), "a: 1\na: 2\n").unwrap_err();
        assert!(error.message.contains("duplicate"), "{error}");
    }
}
