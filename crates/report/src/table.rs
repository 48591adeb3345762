//! Plain tables of text, for the terminal and for Markdown.

/// Rows of cells under a heading. A cell may have several lines, for the sake of narrow columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextTable {
    pub(crate) heading: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl TextTable {
    /// Columns padded to their widest cell: the first to the left, the others to the right.
    pub(crate) fn to_text(&self) -> String {
        self.lines("  ", "", "")
    }

    /// A table of GitHub's Markdown, each row in one line.
    pub(crate) fn to_markdown(&self) -> String {
        let joined = |row: &Vec<String>| row.iter().map(|cell| cell.replace('\n', " ").replace('|', "\\|")).collect();
        let flat = Self { heading: joined(&self.heading), rows: self.rows.iter().map(joined).collect() };
        let mut lines: Vec<String> = flat.lines(" | ", "| ", " |").lines().map(str::to_owned).collect();
        let rule = self.heading.iter().enumerate().map(|(column, _)| if column == 0 { "---" } else { "--:" });
        lines.insert(1, format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
        lines.join("\n") + "\n"
    }

    /// Comma-separated values as RFC 4180 has them, lines ending in a newline alone.
    pub(crate) fn to_csv(&self) -> String {
        let line = |row: &Vec<String>| row.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&self.heading).chain(&self.rows).map(line).collect()
    }

    fn lines(&self, separator: &str, start: &str, end: &str) -> String {
        let all = || std::iter::once(&self.heading).chain(&self.rows);
        let widths: Vec<usize> = (0..self.heading.len()).map(|column| all().map(|row| width(&row[column])).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in all() {
            for line in 0..row.iter().map(|cell| cell.lines().count()).max().unwrap_or(0) {
                let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                    let cell = cell.lines().nth(line).unwrap_or_default();
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                });
                let line = format!("{start}{}{end}", cells.collect::<Vec<_>>().join(separator));
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// Characters in the longest line of a cell.
fn width(cell: &str) -> usize {
    cell.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// A cell of a CSV file, in quotes where it needs them.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// Characters in a line of running text on a terminal.
const LINE: usize = 100;

/// A text broken into lines at spaces, all but the first indented.
pub(crate) fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_broken_at_spaces() {
        let text = wrapped(&["word"; 50].join(" "));
        assert!(text.lines().all(|line| line.chars().count() <= LINE) && text.lines().count() == 3, "{text}");
        assert_eq!(text.split_whitespace().count(), 50);
        assert_eq!(wrapped("short"), "short");
    }

    #[test]
    fn a_cell_of_two_lines_widens_no_column() {
        let table = TextTable { heading: vec!["a".into(), "value".into()], rows: vec![vec!["b".into(), "1.0\n[0, 2]".into()]] };
        assert_eq!(table.to_text(), "a   value\nb     1.0\n   [0, 2]\n");
        assert!(table.to_markdown().ends_with("| b | 1.0 [0, 2] |\n"), "{}", table.to_markdown());
    }

    #[test]
    fn columns_are_aligned() {
        let table = TextTable { heading: vec!["a".into(), "value".into()], rows: vec![vec!["long ±".into(), "1".into()]] };
        assert_eq!(table.to_text(), "a       value\nlong ±      1\n");
        assert_eq!(table.to_csv(), "a,value\nlong ±,1\n");
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(table.to_markdown(), "| a      | value |\n| --- | --: |\n| long ± |     1 |\n");
    }
}
