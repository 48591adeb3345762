//! Tables of the page: each in a box of its own that it can be scrolled in, its numbers with what they are sorted by.

use maud::{Markup, html};

/// A heading that leads to the definition of its numbers.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    text: String,
    definition: Option<String>,
}

impl Column {
    pub(crate) fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), definition: None }
    }

    /// With the definition of this name.
    pub(crate) fn linked(text: &str, definition: &str) -> Self {
        Self { text: text.to_owned(), definition: Some(definition.to_owned()) }
    }
}

/// What a cell shows, and the number that it is sorted by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    /// Smaller, beneath the text: an interval.
    pub(crate) below: Option<String>,
    pub(crate) value: Option<f64>,
    /// Digests and names of programs.
    pub(crate) is_code: bool,
}

impl Cell {
    /// A number with so many decimals; a dash where there is none.
    pub(crate) fn number(value: Option<f64>, decimals: usize) -> Self {
        let value = value.filter(|value| value.is_finite());
        Self { text: value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}")), value, ..Self::default() }
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(crate) fn code(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_code: true, ..Self::default() }
    }

    fn render(&self) -> Markup {
        let class = if self.value.is_some() || self.text == "–" { "number" } else { "text" };
        html! {
            td class=(class) data-value=[self.value] {
                @if self.is_code { code { (self.text) } } @else { (self.text) }
                @if let Some(below) = &self.below { " " span.below { (below) } }
            }
        }
    }
}

/// A table with a caption; `first` heads the names of the rows.
pub(crate) fn table(id: &str, caption: &str, first: &str, columns: &[Column], rows: Vec<(String, Vec<Cell>)>) -> Markup {
    html! {
        // A box that is scrolled must be reached by the keyboard, and so have a name.
        div.scroll role="region" aria-labelledby={ (id) "-caption" } tabindex="0" {
            table id=(id) {
                caption id={ (id) "-caption" } { (caption) }
                thead {
                    tr {
                        th scope="col" { (first) }
                        @for column in columns {
                            th scope="col" {
                                @match &column.definition {
                                    Some(name) => a href={ "#definition-" (name) } { (column.text) },
                                    None => (column.text),
                                }
                            }
                        }
                    }
                }
                tbody {
                    @for (name, cells) in rows {
                        tr {
                            th scope="row" { (name) }
                            @for cell in cells { (cell.render()) }
                        }
                    }
                }
            }
        }
    }
}

/// A number to three digits, without an exponent where it is not tiny.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let power = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if !(-6..15).contains(&power) {
        return format!("{value:.2e}");
    }
    let text = format!("{:.*}", usize::try_from(2 - power).unwrap_or(0), value);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A count with its thousands apart.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).expect("digits")).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        assert_eq!([0.1, 10.0, 1.23456, 12_345.6, 0.001, 1e-9].map(number), ["0.1", "10", "1.23", "12346", "0.001", "1.00e-9"]);
        assert_eq!([0.0, f64::NAN, f64::INFINITY, -0.5].map(number), ["0", "–", "–", "-0.5"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_missing_number_is_a_dash_and_names_are_escaped() {
        let cells = vec![Cell::number(Some(f64::NAN), 1), Cell::number(None, 1), Cell::number(Some(2.0), 1)];
        let text = table("t", "a & b", "method", &[Column::linked("x", "x\"y")], vec![("<script>\"".to_owned(), cells)]).into_string();
        assert_eq!(text.matches(r#"<td class="number">–</td>"#).count(), 2, "{text}");
        assert!(text.contains(r#"<td class="number" data-value="2">2.0</td>"#), "{text}");
        assert!(
            text.contains("&lt;script&gt;&quot;") && text.contains("a &amp; b") && text.contains("x&quot;y") && !text.contains("<script"),
            "{text}"
        );
    }
}
