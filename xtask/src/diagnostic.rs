//! What is wrong with a pipeline: the place, the cause and what to do.

use std::fmt;
use std::path::PathBuf;

/// A place that the user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line (from 1) and a column (from 1, in characters) of a file, with the text of the line.
    File { file: PathBuf, line: usize, column: usize, text: String },
    /// An argument of the command line.
    Argument(String),
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

/// `did you mean ...?`, or the list of what there is; nothing where there is nothing.
pub(crate) fn nearest<'a>(wrong: &str, right: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let right: Vec<&str> = right.into_iter().collect();
    let distance = |name: &str| strsim::damerau_levenshtein(wrong, name);
    let best = right.iter().copied().min_by_key(|name| distance(name))?;
    if distance(best) <= 1 + best.chars().count() / 3 {
        return Some(format!("did you mean `{best}`?"));
    }
    Some(format!("there is `{}`", right.join("`, `")))
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.message)?;
        match &self.place {
            Some(Place::File { file, line, column, text }) => {
                let number = line.to_string();
                let margin = " ".repeat(number.len());
                let indent = " ".repeat(column.saturating_sub(1));
                write!(
                    formatter,
                    "\n {margin}--> {}:{line}:{column}\n {margin} |\n {number} | {text}\n {margin} | {indent}^",
                    file.display()
                )?;
            }
            Some(Place::Argument(argument)) => write!(formatter, "\n  --> {argument}")?,
            None => {}
        }
        match &self.help {
            Some(help) => write!(formatter, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// All that was found wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) struct Diagnostics(pub(crate) Vec<Diagnostic>);

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, diagnostic) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\nerror: " };
            write!(formatter, "{separator}{diagnostic}")?;
        }
        Ok(())
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
    }

    #[test]
    fn the_caret_stands_under_the_column() {
        let place = Place::File { file: "a.yaml".into(), line: 12, column: 3, text: "  epohcs: 3".into() };
        let text = Diagnostic::new(place, "unknown key `epohcs`").nearest("epohcs", ["epochs"]).to_string();
        assert_eq!(text, "unknown key `epohcs`\n   --> a.yaml:12:3\n    |\n 12 |   epohcs: 3\n    |   ^\n  help: did you mean `epochs`?");
    }
}
