//! What a running stage says: events for the runner, or lines for a person, on stderr.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};

use serde_json::{Value, json};

use crate::failure::plain;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Style {
    /// One JSON object a line.
    Json,
    /// Lines for a person; counts only on a terminal.
    Text,
    /// Nothing.
    None,
}

/// Where a stage reports what it is doing. Never affects a result.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    style: Style,
}

impl Progress {
    pub(crate) fn new(style: Style) -> Self {
        Self { style }
    }

    /// A progress that shows nothing, for use as a library.
    #[must_use]
    pub fn silent() -> Self {
        Self { style: Style::None }
    }

    /// A new phase of the work begins, or one that was interrupted goes on. The runner adds up the time of each.
    pub fn phase(self, name: &str) {
        self.say(|| json!({ "event": "phase", "name": name }), || format!("{name} ..."));
    }

    /// `done` of `total` steps of the work called `name` are done.
    pub fn step(self, name: &str, done: usize, total: usize) {
        if self.style == Style::Text && std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r{name} {done}/{total}{}", if done == total { "\n" } else { "" });
        } else if self.style == Style::Json {
            self.say(|| json!({ "event": "progress", "name": name, "done": done, "total": total }), String::new);
        }
    }

    /// Something the user should know, though nothing is wrong.
    pub fn note(self, text: &str) {
        self.say(|| json!({ "event": "note", "text": text }), || format!("note: {text}"));
    }

    pub(crate) fn failed(self, error: &anyhow::Error) {
        let message = plain(&error.to_string());
        let causes: Vec<String> = error.chain().skip(1).map(|cause| plain(&cause.to_string())).collect();
        let remedy = crate::failure::remedy_of(error);
        if self.style == Style::Json {
            line(format_args!("{}", json!({ "event": "error", "message": message, "causes": causes, "remedy": remedy })));
            return;
        }
        line(format_args!("error: {message}"));
        causes.iter().for_each(|cause| line(format_args!("  caused by: {cause}")));
        if let Some(remedy) = remedy {
            line(format_args!("  help: {remedy}"));
        }
    }

    fn say(self, event: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        match self.style {
            Style::Json => line(format_args!("{}", event())),
            Style::Text => line(format_args!("{}", text())),
            Style::None => {}
        }
    }
}

/// A line on stderr. Where nobody can hear it the work goes on.
fn line(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
