//! Rows of cells, written for people or for Markdown.

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
