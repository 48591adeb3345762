//! Rows of cells, written for people or for Markdown.

/// Columns padded to their widest cell: the first to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>], separator: &str, start: &str, end: &str) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            format!("{start}{}{end}", cells.collect::<Vec<_>>().join(separator)).trim_end().to_owned()
        })
        .collect()
}

/// A table of GitHub's Markdown; the first row is the heading.
pub(crate) fn markdown(rows: &[Vec<String>]) -> Vec<String> {
    let mut lines = aligned(rows, " | ", "| ", " |");
    let columns = rows.first().map_or(0, Vec::len);
    let rule = (0..columns).map(|column| if column == 0 { "---" } else { "--:" });
    lines.insert(1.min(lines.len()), format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
    lines
}
