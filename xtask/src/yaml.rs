//! YAML with places. The only module that knows a YAML library: `serde_yaml` says what the values are, `saphyr-parser` where they stand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, Span};
use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::diagnostic::{Diagnostic, Place};

/// Lists and mappings lie in one another at most so deep. The parsers take time that grows with the square of the depth.
const DEEPEST: usize = 64;
/// A document has at most so many values, those that aliases repeat counted each time.
const MOST_VALUES: usize = 1_000_000;

/// A way from the top of a document to a value: keys and indices.
type Way = Vec<String>;

/// A line and a column, both from 1.
type Mark = (usize, usize);

/// A YAML file as plain values, each with the place where the user wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) file: PathBuf,
    pub(crate) value: Value,
    lines: Vec<String>,
    places: Node,
    overridden: Vec<(Way, String)>,
}

/// Where a value stands, and what is in it.
#[derive(Debug, Clone, Default)]
struct Node {
    key: Option<Mark>,
    value: Mark,
    inner: HashMap<String, Node>,
}

/// Finds the places of all values, and refuses what is too deep or too much before any other parser sees it.
struct Surveyor<'input> {
    parser: Parser<'input, saphyr_parser::StrInput<'input>>,
    count: usize,
    /// How many values the anchors stand for.
    anchors: HashMap<usize, usize>,
}

type Refusal = (Mark, String);

impl<'input> Surveyor<'input> {
    fn survey(text: &'input str) -> Result<Node, Refusal> {
        let mut surveyor = Self { parser: Parser::new_from_str(text), count: 0, anchors: HashMap::new() };
        let mut root = Node { value: (1, 1), ..Node::default() };
        while let Some((event, mark)) = surveyor.next()? {
            if !matches!(event, Event::StreamStart | Event::DocumentStart(_)) {
                surveyor.visit(event, mark, &mut root, 0)?;
                break;
            }
        }
        Ok(root)
    }

    fn next(&mut self) -> Result<Option<(Event<'input>, Mark)>, Refusal> {
        let at = |mark: &saphyr_parser::Marker| (mark.line().max(1), mark.col() + 1);
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, Span { start, .. }))) => Ok(Some((event, at(&start)))),
            Some(Err(error)) if error.info().contains("recursion limit") => Err((at(error.marker()), too_deep())),
            Some(Err(error)) => Err((at(error.marker()), format!("this is no YAML: {}", error.info()))),
        }
    }

    fn visit(&mut self, event: Event<'input>, mark: Mark, node: &mut Node, depth: usize) -> Result<(), Refusal> {
        node.value = mark;
        let before = self.count;
        let anchor = match event {
            Event::Alias(anchor) => {
                self.add(self.anchors.get(&anchor).copied().unwrap_or(1), mark)?;
                return Ok(());
            }
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => anchor,
            _ => return Ok(()),
        };
        self.add(1, mark)?;
        if depth == DEEPEST && !matches!(event, Event::Scalar(..)) {
            return Err((mark, too_deep()));
        }
        if matches!(event, Event::MappingStart(..)) {
            while let Some((key, key_mark)) = self.next()? {
                let mut inner = Node { key: Some(key_mark), ..Node::default() };
                let name = match key {
                    Event::MappingEnd => break,
                    Event::Scalar(text, ..) => text.into_owned(),
                    other => {
                        self.visit(other, key_mark, &mut Node::default(), depth + 1)?;
                        "?".into()
                    }
                };
                if let Some((value, value_mark)) = self.next()? {
                    self.visit(value, value_mark, &mut inner, depth + 1)?;
                }
                node.inner.insert(name, inner);
            }
        } else if matches!(event, Event::SequenceStart(..)) {
            for position in 0.. {
                match self.next()? {
                    None | Some((Event::SequenceEnd, _)) => break,
                    Some((item, item_mark)) => {
                        let mut inner = Node::default();
                        self.visit(item, item_mark, &mut inner, depth + 1)?;
                        node.inner.insert(position.to_string(), inner);
                    }
                }
            }
        }
        self.anchors.insert(anchor, self.count - before);
        Ok(())
    }

    fn add(&mut self, values: usize, mark: Mark) -> Result<(), Refusal> {
        self.count += values;
        match self.count > MOST_VALUES {
            true => Err((mark, format!("with its aliases this has more than {MOST_VALUES} values"))),
            false => Ok(()),
        }
    }
}

fn too_deep() -> String {
    format!("lists and mappings lie in one another deeper than {DEEPEST} levels")
}

/// The values of a text that has passed the survey.
fn load(text: &str) -> Result<serde_yaml::Value, Refusal> {
    serde_yaml::from_str(text).map_err(|error| {
        let mark = error.location().map_or((1, 1), |location| (location.line(), location.column()));
        let message = error.to_string();
        if message.contains("as u128") || message.contains("as i128") {
            return (mark, format!("a whole number lies between {} and {}", i64::MIN, u64::MAX));
        }
        (mark, format!("this is no YAML: {}", message.split(" at line ").next().unwrap_or(&message)))
    })
}

impl Document {
    /// Parses the text of `file`.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, Diagnostic> {
        let text = text.trim_start_matches('\u{feff}');
        let mut document = Self {
            file: file.to_owned(),
            value: Value::Null,
            lines: text.lines().map(str::to_owned).collect(),
            places: Node::default(),
            overridden: Vec::new(),
        };
        let refused = |document: &Self, ((line, column), message): Refusal| Diagnostic::new(document.place(line, column), message);
        document.places = Surveyor::survey(text).map_err(|refusal| refused(&document, refusal))?;
        let value = load(text).map_err(|refusal| refused(&document, refusal))?;
        let mut way = Vec::new();
        document.value = to_json(value, &mut way).map_err(|message| Diagnostic::new(document.at(&way), message))?;
        Ok(document)
    }

    /// Replaces the value at `way` by an argument of the command line, `argument` as the user wrote it. What is there and has no keys is the error.
    pub(crate) fn set(&mut self, way: &[&str], value: Value, argument: &str) -> Result<(), String> {
        let mut target = &mut self.value;
        for (position, key) in way.iter().enumerate() {
            if target.is_null() {
                *target = Value::Object(Map::new());
            }
            let holder = way[..position].last().copied().unwrap_or_default();
            let map = target
                .as_object_mut()
                .ok_or_else(|| format!("`{holder}` has no keys, so that `{key}` in it cannot be set; set `{holder}` whole"))?;
            target = map.entry(*key).or_insert(Value::Null);
        }
        *target = value;
        self.overridden.push((to_way(way), argument.to_owned()));
        Ok(())
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
        self.find(way, false)
    }

    /// The place of the key at the end of `way`, or of the nearest value around it.
    pub(crate) fn at_key<S: AsRef<str>>(&self, way: &[S]) -> Place {
        self.find(way, true)
    }

    fn find<S: AsRef<str>>(&self, way: &[S], by_key: bool) -> Place {
        let way = to_way(way);
        if let Some(argument) = self.argument(&way) {
            return Place::Argument(argument.to_owned());
        }
        let (mut node, mut found) = (&self.places, 0);
        while let Some(inner) = way.get(found).and_then(|key| node.inner.get(key)) {
            (node, found) = (inner, found + 1);
        }
        // Where the file has no such value, what was set inside of it is the nearest.
        if found < way.len()
            && let Some((_, argument)) = self.overridden.iter().rev().find(|(overridden, _)| overridden.starts_with(&way))
        {
            return Place::Argument(argument.clone());
        }
        let is_value = found == way.len() && !by_key;
        let (line, column) = if is_value { node.value } else { node.key.unwrap_or(node.value) };
        self.place(line, column)
    }

    fn place(&self, line: usize, column: usize) -> Place {
        let text = self.lines.get(line.saturating_sub(1)).map_or("", String::as_str);
        Place::in_file(&self.file, line, column, text)
    }
}

fn to_way<S: AsRef<str>>(way: &[S]) -> Way {
    way.iter().map(|key| key.as_ref().to_owned()).collect()
}

/// A value of the command line, read as YAML: `0.1`, `[1, 2]`, `cnn`.
pub(crate) fn parse_value(text: &str) -> Result<Value, String> {
    Surveyor::survey(text).map_err(|(_, message)| message)?;
    let value = load(text).map_err(|(_, message)| message)?;
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
        document.set(&["stages", "base", "with", "lr"], json!(0.1), "--set base.lr=0.1").unwrap();
        assert_eq!(document.value["stages"]["base"]["with"], json!({ "epochs": 3, "lr": 0.1 }));
        assert_eq!(document.at(&["stages", "base", "with", "lr"]), Place::Argument("--set base.lr=0.1".into()));
        assert!(!document.is_overridden(&["stages", "base", "with", "epochs"]));
        document.set(&["stages", "null", "in", "model"], json!("base"), "--set null.in.model=base").unwrap();
        assert_eq!(document.at(&["stages", "null", "in"]), Place::Argument("--set null.in.model=base".into()));
        let error = document.set(&["stages", "list", "0", "x"], json!(1), "--set list.0.x=1").unwrap_err();
        assert!(error.contains("set `list` whole"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_moves_no_column() {
        let document = Document::parse(Path::new("p.yaml"), &format!("\u{feff}{TEXT}")).unwrap();
        assert_eq!((&document.value["version"], line_and_column(document.at(&["version"]))), (&json!(1), (1, 10)));
    }

    #[test]
    fn what_is_too_deep_or_too_much_is_refused_at_once() {
        let begin = std::time::Instant::now();
        let deep = format!("a: {}", "[".repeat(100_000));
        let error = Document::parse(Path::new("p.yaml"), &deep).unwrap_err();
        assert!(error.message.contains("deeper than 64"), "{error}");
        let broken = format!("a: {}]\n", "{[".repeat(50_000));
        assert!(Document::parse(Path::new("p.yaml"), &broken).is_err());
        assert!(parse_value(&"[".repeat(100_000)).unwrap_err().contains("deeper than 64"));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", "));
        }
        let error = Document::parse(Path::new("p.yaml"), &bomb).unwrap_err();
        assert!(error.message.contains("more than 1000000 values"), "{error}");
        assert!(begin.elapsed().as_secs() < 10, "it took {:?}", begin.elapsed());
        let fits = format!("a: {}{}", "[".repeat(60), "]".repeat(60));
        assert!(Document::parse(Path::new("p.yaml"), &fits).is_ok());
    }

    #[test]
    fn broken_yaml_and_doubled_keys_are_refused_with_the_place() {
        let error = Document::parse(Path::new("p.yaml"), "a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(matches!(error.place, Some(Place::File { line: 2 | 3, .. })), "{error}");
        let error = Document::parse(Path::new("p.yaml"), "a: 1\na: 2\n").unwrap_err();
        assert!(error.message.contains("duplicate"), "{error}");
    }
}
