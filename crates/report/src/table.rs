//! Plain tables of text, for the terminal and for Markdown.

/// Rows of cells under a heading. A cell may have several lines, for the sake of narrow columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextTable {
    pub(crate) heading: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A heading and the cells beneath it.
pub(crate) type Column = Vec<String>;

/// Characters in a line on a terminal.
pub(crate) const LINE: usize = 80;
/// Characters in a line of a row's name there.
const NAME: usize = 20;

impl TextTable {
    pub(crate) fn of_columns(columns: Vec<Column>) -> Self {
        let row = |which: usize| columns.iter().map(|column| column[which].clone()).collect();
        let count = columns.first().map_or(0, Vec::len);
        Self { heading: row(0), rows: (1..count).map(row).collect() }
    }

    /// Tables as wide as a terminal at most, as few as it takes, each with the names in front. Names are broken into lines, and what follows a `±` goes below
    /// what it belongs to.
    pub(crate) fn fitting(names: Column, columns: Vec<Column>) -> Vec<Self> {
        let names: Column = names.iter().map(|name| broken(name, NAME)).collect();
        let columns = columns.into_iter().map(|column| column.iter().map(|cell| cell.replace(" ±", "\n±")).collect::<Column>());
        let widest = |column: &Column| column.iter().map(|cell| width(cell)).max().unwrap_or(0);
        let mut tables: Vec<Vec<Column>> = Vec::new();
        let mut left = 0;
        for column in columns {
            let needs = GAP.len() + widest(&column);
            if needs > left || tables.is_empty() {
                tables.push(vec![names.clone()]);
                left = LINE - widest(&names);
            }
            left = left.saturating_sub(needs);
            tables.last_mut().expect("one was just begun").push(column);
        }
        tables.into_iter().map(Self::of_columns).collect()
    }

    /// Columns padded to their widest cell: the first to the left, the others to the right.
    pub(crate) fn to_text(&self) -> String {
        self.lines(GAP, "", "")
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

/// What stands between two columns on a terminal.
const GAP: &str = "  ";

/// A text in lines of so many characters at most: broken at spaces, and inside of a word that alone is longer.
fn broken(text: &str, limit: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let characters: Vec<char> = word.chars().collect();
        for (part, piece) in characters.chunks(limit).enumerate() {
            let line = lines.last_mut().expect("there is a line");
            let used = line.chars().count();
            if part > 0 || used > 0 && used + 1 + piece.len() > limit {
                lines.push(piece.iter().collect());
            } else {
                if used > 0 {
                    line.push(' ');
                }
                line.extend(piece);
            }
        }
    }
    lines.join("\n")
}

/// Characters in the longest line of a cell.
fn width(cell: &str) -> usize {
    cell.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// A cell of a CSV file, in quotes where it needs them.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// A text broken into lines at spaces, but before no unit, all but the first indented.
pub(crate) fn wrapped(text: &str) -> String {
    const TOGETHER: &str = "\u{a0}%";
    let text = text.replace(" %", TOGETHER);
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
    lines.join("\n").replace(TOGETHER, " %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_broken_at_spaces() {
        let text = wrapped(&["word"; 50].join(" "));
        assert!(text.lines().all(|line| line.chars().count() <= LINE) && text.lines().count() == 4, "{text}");
        assert_eq!(text.split_whitespace().count(), 50);
        assert_eq!(wrapped("short"), "short");
        assert!(wrapped(&["5 %"; 50].join(" ")).lines().all(|line| line.ends_with("5 %")));
    }

    #[test]
    fn a_cell_of_two_lines_widens_no_column() {
        let table = TextTable { heading: vec!["a".into(), "value".into()], rows: vec![vec!["b".into(), "1.0\n[0, 2]".into()]] };
        assert_eq!(table.to_text(), "a   value\nb     1.0\n   [0, 2]\n");
        assert!(table.to_markdown().ends_with("| b | 1.0 [0, 2] |\n"), "{}", table.to_markdown());
    }

    #[test]
    fn what_is_wider_than_a_terminal_becomes_several_tables() {
        let column = |heading: &str, cell: &str| vec![heading.to_owned(), cell.to_owned()];
        let names = column("method", "a name that is longer than the column has room for, and-a-word-without-any-space");
        let columns: Vec<Column> = (0..12).map(|which| column(&format!("number {which}"), "85.1 ± 2.6")).collect();
        let tables = TextTable::fitting(names, columns);
        assert_eq!(tables.iter().map(|table| table.heading.len()).collect::<Vec<_>>(), [7, 6, 2]);
        for text in tables.iter().map(TextTable::to_text) {
            assert!(text.lines().all(|line| line.chars().count() <= LINE), "{text}");
            assert!(text.contains("\nand-a-word-without-a") && text.contains(" ± 2.6") && !text.contains("85.1 ±"), "{text}");
        }
        assert_eq!(broken("one two", 3), "one\ntwo");
        assert_eq!(broken("abcde f", 3), "abc\nde\nf");
        assert_eq!(broken("abcde f", 4), "abcd\ne f");
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
