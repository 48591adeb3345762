//! What is wrong with a pipeline: the place, the cause and what to do.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};

/// So many characters of a quoted line or value are shown.
const LONGEST_QUOTE: usize = 200;
/// So many characters of a line of a message are shown: a sentence with a quote or two.
const LONGEST_LINE: usize = 600;
/// So many mistakes are shown at once.
const MOST_SHOWN: usize = 20;
/// So many right names are listed where none is near.
const MOST_LISTED: usize = 12;
/// No name that is right has more characters.
const LONGEST_NAME: usize = 300;

/// A place that the user wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// A line (from 1) and a column (from 1, in characters) of a file.
    File { file: PathBuf, line: usize, column: usize, quote: Quote },
    /// An argument of the command line.
    Argument(String),
}

/// What is shown of a line, and under which of its characters the caret stands (from 0).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Quote {
    text: String,
    caret: usize,
}

impl Place {
    /// A place in a file, with what the line says around it.
    pub(crate) fn in_file(file: &Path, line: usize, column: usize, text: &str) -> Self {
        let target = column.saturating_sub(1);
        let start = target.saturating_sub(LONGEST_QUOTE / 2);
        // A tab has a width of its own on each screen; the caret could not follow it.
        let shown: String =
            text.chars().skip(start).take(LONGEST_QUOTE).map(|character| if character == '\t' { ' ' } else { character }).collect();
        let end = if text.chars().nth(start + LONGEST_QUOTE).is_some() { " ..." } else { "" };
        let begin = if start > 0 { "... " } else { "" };
        let quote = Quote { text: format!("{begin}{shown}{end}"), caret: target - start + begin.len() };
        Self::File { file: file.to_owned(), line, column, quote }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub(crate) place: Option<Place>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the nearest of the right names, or all of them where none is near.
    pub(crate) fn nearest<'a>(self, wrong: &str, right: impl IntoIterator<Item = &'a str>) -> Self {
        let help = nearest(wrong, right);
        Self { help: help.or(self.help), ..self }
    }
}

/// The name that the user may have meant.
pub(crate) fn near<'a>(wrong: &str, right: &[&'a str]) -> Option<&'a str> {
    if wrong.len() > LONGEST_NAME {
        return None;
    }
    let distance = |name: &str| strsim::damerau_levenshtein(wrong, name);
    let best = right.iter().copied().filter(|name| name.len() <= LONGEST_NAME).min_by_key(|name| distance(name))?;
    (distance(best) <= 1 + best.chars().count() / 3).then_some(best)
}

/// `did you mean ...?`, or the list of what there is; nothing where there is nothing.
pub(crate) fn nearest<'a>(wrong: &str, right: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let right: Vec<&str> = right.into_iter().collect();
    if let Some(best) = near(wrong, &right) {
        return Some(format!("did you mean `{best}`?"));
    }
    let listed = right.iter().take(MOST_LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match right.len() {
        0 => None,
        count if count > MOST_LISTED => Some(format!("there is {listed} and {} more", count - MOST_LISTED)),
        _ => Some(format!("there is {listed}")),
    }
}

/// A value of the user as a message quotes it: the beginning of a long one.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The beginning and the end of each long line, without characters that a terminal obeys.
fn shown(text: &str) -> String {
    let line = |line: &str| {
        let plain: Vec<char> = line.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect();
        if plain.len() <= LONGEST_LINE {
            return plain.into_iter().collect();
        }
        let (begin, end) = (&plain[..LONGEST_LINE * 2 / 3], &plain[plain.len() - LONGEST_LINE / 3..]);
        format!("{} ... {}", begin.iter().collect::<String>(), end.iter().collect::<String>())
    };
    text.split('\n').map(line).collect::<Vec<String>>().join("\n")
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", shown(&self.message))?;
        match &self.place {
            Some(Place::File { file, line, column, quote: Quote { text, caret } }) => {
                let number = line.to_string();
                let margin = " ".repeat(number.len());
                let indent = " ".repeat(*caret);
                write!(
                    formatter,
                    "\n {margin}--> {}:{line}:{column}\n {margin} |\n {number} | {}\n {margin} | {indent}^",
                    file.display(),
                    shown(text)
                )?;
            }
            Some(Place::Argument(argument)) => write!(formatter, "\n  --> {}", shown(&cut(argument)))?,
            None => {}
        }
        match &self.help {
            Some(help) => write!(formatter, "\n  help: {}", shown(help)),
            None => Ok(()),
        }
    }
}

/// All that was found wrong, each thing once: the first of it, and how much more there is.
#[derive(Debug, Clone, Default, thiserror::Error)]
pub(crate) struct Diagnostics {
    kept: Vec<Diagnostic>,
    more: usize,
    seen: HashSet<u64>,
}

impl Diagnostics {
    /// Adds one, unless it is there already.
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((&diagnostic.place, &diagnostic.message));
        if !self.seen.insert(hash) {
            return;
        }
        if self.kept.len() < MOST_SHOWN {
            self.kept.push(diagnostic);
        } else {
            self.more += 1;
        }
    }

    /// Adds one with the nearest of the right names, which is only looked for where it will be shown.
    pub(crate) fn push_nearest<'a>(&mut self, diagnostic: Diagnostic, wrong: &str, right: impl IntoIterator<Item = &'a str>) {
        self.push(if self.kept.len() < MOST_SHOWN { diagnostic.nearest(wrong, right) } else { diagnostic });
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.kept.len() + self.more
    }

    /// The error, if there is one.
    pub(crate) fn into_result(self) -> Result<(), Self> {
        if self.kept.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        let mut diagnostics = Self::default();
        diagnostics.push(diagnostic);
        diagnostics
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, diagnostic) in self.kept.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\nerror: " };
            write!(formatter, "{separator}{diagnostic}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(formatter, "\n... and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_proposed_and_a_far_one_is_not() {
        assert_eq!(nearest("retrian", ["retrain", "finetune"]).unwrap(), "did you mean `retrain`?");
        assert_eq!(nearest("xyz", ["retrain", "finetune"]).unwrap(), "there is `retrain`, `finetune`");
        assert_eq!(nearest("xyz", []), None);
        let many: Vec<String> = (0..100).map(|number| format!("stage{number}")).collect();
        assert!(nearest("xyz", many.iter().map(String::as_str)).unwrap().ends_with("`stage11` and 88 more"));
    }

    #[test]
    fn the_caret_stands_under_the_column() {
        let place = Place::in_file(Path::new("a.yaml"), 12, 3, "  epohcs: 3");
        let text = Diagnostic::new(place, "unknown key `epohcs`").nearest("epohcs", ["epochs"]).to_string();
        assert_eq!(text, "unknown key `epohcs`\n   --> a.yaml:12:3\n    |\n 12 |   epohcs: 3\n    |   ^\n  help: did you mean `epochs`?");
    }

    #[test]
    fn of_a_long_line_only_the_part_around_the_caret_is_shown() {
        let line = format!("{}X{}", "ä".repeat(5000), "b".repeat(5000));
        let text = Diagnostic::new(Place::in_file(Path::new("a.yaml"), 1, 5001, &line), "wrong").to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[3].chars().count() < 220 && lines[1].ends_with(":1:5001"), "{text}");
        let caret = lines[4].chars().position(|character| character == '^').unwrap();
        assert_eq!(lines[3].chars().nth(caret), Some('X'), "{text}");
    }

    #[test]
    fn long_values_are_cut_and_nothing_steers_the_terminal() {
        let text = Diagnostic { place: None, message: format!("`{}` \u{1b}[2J is wrong", "a".repeat(100_000)), help: None }.to_string();
        assert!(text.chars().count() < 700 && text.ends_with("is wrong") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn twenty_mistakes_are_shown_once_each_and_the_rest_is_counted() {
        let mut problems = Diagnostics::default();
        for number in (0..1000).chain(0..1000) {
            problems.push(Diagnostic { place: None, message: format!("wrong {number}"), help: None });
        }
        let text = problems.into_result().unwrap_err().to_string();
        assert_eq!(text.lines().count(), 21);
        assert!(text.ends_with("error: wrong 19\n... and 980 more"), "{text}");
    }
}
