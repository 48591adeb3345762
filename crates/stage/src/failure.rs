//! Errors that a user can act on.

/// A parameter that a method refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// The parameter to blame, where it is a single one.
    pub parameter: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// What the user can do, where the message does not say it.
    pub remedy: Option<String>,
}

impl Rejected {
    /// Blames `parameter`.
    pub fn parameter(parameter: &str, message: impl Into<String>) -> Self {
        Self { parameter: Some(parameter.to_owned()), message: message.into(), remedy: None }
    }

    /// Blames `parameter` for an error that using it met.
    #[must_use]
    pub fn because(parameter: &str, error: &anyhow::Error) -> Self {
        Self { parameter: Some(parameter.to_owned()), message: format!("{error:#}"), remedy: remedy_of(error) }
    }

    /// Refuses unless `fits`.
    ///
    /// # Errors
    /// When `fits` is false.
    pub fn unless(fits: bool, parameter: &str, message: impl Into<String>) -> Result<(), Self> {
        if fits { Ok(()) } else { Err(Self::parameter(parameter, message)) }
    }
}

/// An expected failure of a run, with what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub message: String,
    /// What the user can do.
    pub remedy: String,
}

impl Failure {
    /// A failure with its remedy.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// A message without the backtrace that candle's errors carry when `RUST_BACKTRACE` is set, and of a length that can be read.
pub(crate) fn plain(message: &str) -> String {
    const LIMIT: usize = 8192;
    let is_frame = |line: &str| {
        let frame = line.trim_start();
        let number = frame.find(|character: char| !character.is_ascii_digit()).unwrap_or(0);
        frame.len() < line.len() && (frame.starts_with("at ") || (number > 0 && frame[number..].starts_with(": ")))
    };
    let is_first = |line: &str| is_frame(line) && line.trim_start().starts_with("0: ");
    let mut in_backtrace = false;
    let mut lines = Vec::new();
    for line in message.lines() {
        in_backtrace = is_first(line) || (in_backtrace && is_frame(line));
        if !in_backtrace {
            lines.push(line);
        }
    }
    let text = lines.join("\n");
    let text = text.trim_end();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{} ... ({} more bytes)", &text[..end], text.len() - end),
        None => text.to_owned(),
    }
}

/// The remedy that the innermost knowing error of a chain gives.
pub(crate) fn remedy_of(error: &anyhow::Error) -> Option<String> {
    error.chain().rev().find_map(|cause| {
        let failure = cause.downcast_ref::<Failure>().map(|failure| failure.remedy.clone());
        let failure = failure.or_else(|| cause.downcast_ref::<Rejected>()?.remedy.clone());
        failure.or_else(|| cause.downcast_ref::<dcu_artifact::Error>().map(dcu_artifact::Error::remedy))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_backtrace() {
        // As candle's errors show themselves.
        let backtrace = std::backtrace::Backtrace::force_capture().to_string();
        assert!(backtrace.contains("a_message_has_no_backtrace"));
        assert_eq!(plain(&format!("shape mismatch in matmul\n{backtrace}")), "shape mismatch in matmul");
        assert_eq!(plain(&format!("outer\n{}\nmore", backtrace.trim_end())), "outer\nmore");
        let error = anyhow::Error::msg(format!("shape mismatch\n{backtrace}")).context("cannot train");
        assert_eq!(error.chain().map(|cause| plain(&cause.to_string())).collect::<Vec<_>>(), ["cannot train", "shape mismatch"]);
    }

    #[test]
    fn other_lines_stay_and_long_ones_are_cut() {
        let list = "the choices are\n   1: one\n   2: two\n  at most";
        assert_eq!(plain(list), list);
        assert_eq!(plain("0: not indented\nnext"), "0: not indented\nnext");
        let long = plain(&"ä".repeat(100_000));
        assert!(long.len() < 17_000 && long.ends_with("ä ... (183616 more bytes)"), "{}", &long[long.len() - 40..]);
    }
}
