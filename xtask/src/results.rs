//! `cargo xtask results`: the tables of a pipeline as a section of a Markdown file, so that figures which are quoted are those that were computed.

use std::path::Path;

use anyhow::{Context as _, bail};
use dcu_artifact::replace_file;

use crate::session::Session;

/// Replaces what the file has of this section, or adds it at the end; all else in the file stays as it is.
pub(crate) fn write(session: &Session, settings: &[String], file: &Path, section: Option<&str>) -> anyhow::Result<()> {
    let section = section.unwrap_or_else(|| session.pipeline_name());
    if section.is_empty() || section.contains("-->") || section.contains('\n') {
        bail!("`{section}` cannot be the name of a section\n  help: give a name in one line, without `-->`");
    }
    let (_, known) = session.states();
    let mut reports = Vec::new();
    for (instance, known) in session.plan.instances.iter().zip(&known) {
        for output in instance.outputs.iter().filter(|output| output.schema == "file/md") {
            let Some(stored) = known else {
                let pipeline = session.plan.pipeline.document.file.display();
                bail!("`{}` is not up to date\n  help: run `cargo xtask run {pipeline}` first, with the same `--set`", instance.name);
            };
            let path = stored.path(&output.name);
            reports.push(std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?);
        }
    }
    if reports.is_empty() {
        bail!("the pipeline `{}` makes no table in Markdown\n  help: add a stage that uses `report/table`", session.pipeline_name());
    }
    let command = command(session, settings);
    let body = reports.iter().map(|report| demoted(report)).collect::<Vec<_>>().join("\n");
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", file.display())),
    };
    let text = replaced(&before, section, &format!("## {section}\n\n    {command}\n\n{body}"))
        .with_context(|| format!("`{}` cannot be written to\n  help: mend the markers by hand", file.display()))?;
    replace_file(file, text.as_bytes())?;
    println!("{}: section `{section}`", file.display());
    Ok(())
}

/// What a reader types to get the same; where a copy of the hub's images lies is his own affair.
fn command(session: &Session, settings: &[String]) -> String {
    let is_local = |setting: &&String| setting.starts_with("data.path=") || setting.as_str() == "data.source=parquet";
    let is_plain = |setting: &str| setting.chars().all(|character| character.is_ascii_alphanumeric() || "_.=,/-".contains(character));
    let quoted = |setting: &String| {
        if is_plain(setting) { format!(" --set {setting}") } else { format!(" --set '{}'", setting.replace('\'', "'\\''")) }
    };
    let settings: String = settings.iter().filter(|setting| !is_local(setting)).map(quoted).collect();
    let file = session.plan.pipeline.document.file.display().to_string();
    let shown = std::env::current_dir().ok().and_then(|here| file.strip_prefix(&format!("{}/", here.display())).map(str::to_owned));
    format!("cargo xtask run {}{settings}", shown.unwrap_or(file))
}

/// A report without its title, its headings a level below that of the section.
fn demoted(report: &str) -> String {
    let lines = report
        .lines()
        .filter(|line| !line.starts_with("# "))
        .map(|line| if line.starts_with('#') { format!("#{line}\n") } else { format!("{line}\n") });
    lines.collect::<String>().trim_start().to_owned()
}

/// The text with this section in the place of the one of its name.
fn replaced(text: &str, section: &str, body: &str) -> anyhow::Result<String> {
    let (start, end) = (format!("<!-- results: {section} -->"), format!("<!-- end of {section} -->"));
    let whole = format!("{start}\n{}\n{end}", body.trim_end());
    let places = |marker: &str| text.match_indices(marker).map(|(place, _)| place).collect::<Vec<_>>();
    match (places(&start).as_slice(), places(&end).as_slice()) {
        ([], []) if text.is_empty() => Ok(format!("{whole}\n")),
        ([], []) => Ok(format!("{}\n\n{whole}\n", text.trim_end())),
        (&[first], &[last]) if first < last => Ok(format!("{}{whole}{}", &text[..first], &text[last + end.len()..])),
        _ => bail!("the markers `{start}` and `{end}` are not there once each, one after the other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_added_then_replaced_and_nothing_else_changes() {
        let first = replaced("# Results\n\nWords.\n", "audit", "## audit\n\none\n").unwrap();
        assert_eq!(first, "# Results\n\nWords.\n\n<!-- results: audit -->\n## audit\n\none\n<!-- end of audit -->\n");
        let more = format!("{first}\nIn three sentences.\n");
        let both = replaced(&more, "audit of cnn", "two").unwrap();
        let again = replaced(&both, "audit", "three").unwrap();
        assert!(again.contains("Words.\n\n<!-- results: audit -->\nthree\n<!-- end of audit -->\n\nIn three sentences.\n\n<!-- results: audit of cnn -->\ntwo\n"), "{again}");
        assert!(!again.contains("one"));
        assert_eq!(replaced("", "a", "b").unwrap(), "<!-- results: a -->\nb\n<!-- end of a -->\n");
    }

    #[test]
    fn broken_markers_are_refused() {
        for text in
            ["<!-- results: a -->", "<!-- end of a --> <!-- results: a -->", "<!-- results: a --><!-- results: a --><!-- end of a -->"]
        {
            assert!(replaced(text, "a", "b").is_err(), "{text}");
        }
    }

    #[test]
    fn headings_go_below_that_of_the_section() {
        assert_eq!(demoted("# quickstart\n\n| a |\n\n## Verdict\n\n- b\n"), "| a |\n\n### Verdict\n\n- b\n");
    }
}
