//! Rows of cells, written for people or for Markdown.

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
    Md,
}

/// Prints cells in a format other than JSON; the first row is the heading.
pub(crate) fn print(rows: &[Vec<String>], format: Format) {
    let lines = match format {
        Format::Csv => rows.iter().map(|row| row.iter().map(|cell| csv_cell(cell)).collect::<Vec<_>>().join(",")).collect(),
        Format::Md => markdown(rows),
        Format::Table | Format::Json => aligned(rows, "  ", "", ""),
    };
    lines.iter().for_each(|line| println!("{line}"));
}

fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Columns padded to their widest cell: numbers to the right, all else to the left. The first row is the heading.
pub(crate) fn aligned(rows: &[Vec<String>], separator: &str, start: &str, end: &str) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match is_numeric(rows, column) {
                false => format!("{cell:<width$}"),
                true => format!("{cell:>width$}"),
            });
            format!("{start}{}{end}", cells.collect::<Vec<_>>().join(separator)).trim_end().to_owned()
        })
        .collect()
}

/// A table of GitHub's Markdown; the first row is the heading.
pub(crate) fn markdown(rows: &[Vec<String>]) -> Vec<String> {
    let mut lines = aligned(rows, " | ", "| ", " |");
    let columns = rows.first().map_or(0, Vec::len);
    let rule = (0..columns).map(|column| if is_numeric(rows, column) { "--:" } else { "---" });
    lines.insert(1.min(lines.len()), format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
    lines
}

fn is_numeric(rows: &[Vec<String>], column: usize) -> bool {
    rows.iter().skip(1).all(|row| row[column].is_empty() || row[column].parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_words_left() {
        let rows: Vec<Vec<String>> =
            [["name", "value", "of"], ["a", "1.5", "x"], ["longer", "", "yy"]].map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(aligned(&rows, "  ", "", ""), ["name    value  of", "a         1.5  x", "longer         yy"]);
        assert_eq!(markdown(&rows)[1], "| --- | --: | --- |");
    }
}
