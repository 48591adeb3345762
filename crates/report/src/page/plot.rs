//! Plots as inline SVG. They are made by hand: plotters writes fixed colours and bare text into its SVG, where these follow the page's colours, light or dark,
//! and carry a title and a description.

use maud::{Markup, Render, html};

use super::axis::{Scale, tick};

/// A rectangle of the page that values are drawn in, with room for the axes around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) width: f64,
    pub(crate) height: f64,
    /// Room on the left, right, top and bottom.
    pub(crate) room: [f64; 4],
    pub(crate) x: Scale,
    pub(crate) y: Scale,
}

impl Frame {
    pub(crate) fn left(&self) -> f64 {
        self.room[0]
    }

    pub(crate) fn right(&self) -> f64 {
        self.width - self.room[1]
    }

    pub(crate) fn top(&self) -> f64 {
        self.room[2]
    }

    pub(crate) fn bottom(&self) -> f64 {
        self.height - self.room[3]
    }

    pub(crate) fn x(&self, value: f64) -> f64 {
        self.left() + self.x.at(value) * (self.right() - self.left())
    }

    pub(crate) fn y(&self, value: f64) -> f64 {
        self.bottom() - self.y.at(value) * (self.bottom() - self.top())
    }

    /// A path through these values.
    pub(crate) fn path(&self, points: impl IntoIterator<Item = (f64, f64)>) -> String {
        let points = points.into_iter().enumerate();
        points.map(|(place, (x, y))| format!("{}{} {}", if place == 0 { "M" } else { "L" }, Px(self.x(x)), Px(self.y(y)))).collect()
    }

    /// Both axes with grid, ticks and names; values are shown times `unit`.
    pub(crate) fn axes(&self, x: Name<'_>, y: Name<'_>) -> Markup {
        html! {
            (self.x_axis(x))
            @for value in self.y.ticks() {
                line.grid x1=(Px(self.left())) x2=(Px(self.right())) y1=(Px(self.y(value))) y2=(Px(self.y(value))) {}
                text.tick x=(Px(self.left() - 5.0)) y=(Px(self.y(value) + 3.5)) text-anchor="end" { (tick(value * y.unit)) }
            }
            text.name x="2" y="11" { (y.text) }
        }
    }

    pub(crate) fn x_axis(&self, x: Name<'_>) -> Markup {
        html! {
            @for value in self.x.ticks() {
                line.grid x1=(Px(self.x(value))) x2=(Px(self.x(value))) y1=(Px(self.top())) y2=(Px(self.bottom())) {}
                text.tick x=(Px(self.x(value))) y=(Px(self.bottom() + 14.0)) text-anchor="middle" { (tick(value * x.unit)) }
            }
            text.name x=(Px(self.right())) y=(Px(self.bottom() + 29.0)) text-anchor="end" { (x.text) }
        }
    }
}

/// What an axis shows, and what its values are multiplied with to be in the unit that the text names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) text: &'a str,
    pub(crate) unit: f64,
}

impl<'a> Name<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        Self { text, unit: 1.0 }
    }

    /// Of shares, shown in percent.
    pub(crate) fn percent(text: &'a str) -> Self {
        Self { text, unit: 100.0 }
    }
}

/// A plot with its name and what it shows in words, for who does not see it.
pub(crate) fn plot(id: &str, (width, height): (f64, f64), title: &str, description: &str, body: &Markup) -> Markup {
    html! {
        svg viewBox={ "0 0 " (Px(width)) " " (Px(height)) } role="img" aria-labelledby={ (id) "-title " (id) "-desc" } {
            title id={ (id) "-title" } { (title) }
            desc id={ (id) "-desc" } { (description) }
            (body)
        }
    }
}

/// A coordinate, to a tenth of a pixel.
pub(crate) struct Px(pub(crate) f64);

impl std::fmt::Display for Px {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = (10.0 * self.0).round() / 10.0;
        // Neither `-0` nor what is no number.
        write!(formatter, "{}", if rounded == 0.0 || !rounded.is_finite() { 0.0 } else { rounded })
    }
}

impl Render for Px {
    fn render_to(&self, buffer: &mut String) {
        buffer.push_str(&self.to_string());
    }
}

/// A rectangle: left, top, right, bottom.
type Rectangle = [f64; 4];

/// Width of a character of a label, on average, and height of its line.
const CHARACTER: (f64, f64) = (6.3, 13.0);

/// Where labels stand beside their points, so that none covers another label or a point: the place of the text's start on its baseline, or nothing where there is no room.
pub(crate) fn place_labels(points: &[(f64, f64)], labels: &[String], bounds: Rectangle) -> Vec<Option<(f64, f64)>> {
    let mut taken: Vec<Rectangle> = points.iter().map(|(x, y)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
    let places = points.iter().zip(labels).map(|((x, y), label)| {
        let (width, height) = (CHARACTER.0 * label.chars().count() as f64, CHARACTER.1);
        let starts = [
            (x + 8.0, y + 4.0),
            (x - 8.0 - width, y + 4.0),
            (x + 8.0, *y),
            (x - 8.0 - width, *y),
            (x - 0.5 * width, y - 8.0),
            (x - 0.5 * width, y + 17.0),
            (x + 6.0, y - 7.0),
            (x + 6.0, y + 15.0),
            (x - 6.0 - width, y - 7.0),
            (x - 6.0 - width, y + 15.0),
        ];
        let boxed = |(x, y): (f64, f64)| [x, y - height + 3.0, x + width, y + 3.0];
        let found = starts.into_iter().find(|&start| {
            let own = boxed(start);
            let inside = own[0] >= bounds[0] && own[1] >= bounds[1] && own[2] <= bounds[2] && own[3] <= bounds[3];
            inside && !taken.iter().any(|other| overlap(own, *other))
        })?;
        taken.push(boxed(found));
        Some(found)
    });
    places.collect()
}

fn overlap(one: Rectangle, other: Rectangle) -> bool {
    one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3]
}

/// A text of so many characters at most: its beginning and its end, which tells names of one kind apart.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= limit {
        return text.to_owned();
    }
    let tail = (limit - 1) * 2 / 5;
    let head = limit - 1 - tail;
    characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cover_neither_one_another_nor_points() {
        let points = [(50.0, 50.0), (52.0, 50.0), (50.0, 52.0), (150.0, 50.0)];
        let labels = ["first", "second", "third", "at the edge"].map(str::to_owned);
        let placed = place_labels(&points, &labels, [0.0, 0.0, 200.0, 100.0]);
        let boxes: Vec<Rectangle> = placed
            .iter()
            .zip(&labels)
            .filter_map(|(place, label)| place.map(|(x, y)| [x, y - 10.0, x + 6.3 * label.chars().count() as f64, y + 3.0]))
            .collect();
        assert!(boxes.len() >= 3, "{placed:?}");
        for (position, one) in boxes.iter().enumerate() {
            assert!(boxes[position + 1..].iter().all(|other| !overlap(*one, *other)), "{placed:?}");
            assert!(one[0] >= 0.0 && one[2] <= 200.0);
        }
        // Too many at one place: some have no label.
        let placed = place_labels(&[(50.0, 50.0); 40], &vec!["name".to_owned(); 40], [0.0, 0.0, 100.0, 100.0]);
        assert!(placed.iter().any(Option::is_none) && placed.iter().any(Option::is_some));
    }

    #[test]
    fn coordinates_are_short_and_always_numbers() {
        assert_eq!([1.0 / 3.0, -0.01, f64::NAN, 12.0].map(|value| Px(value).to_string()), ["0.3", "0", "0", "12"]);
        assert_eq!((shortened("abcdefghi", 6).as_str(), shortened("abcdef", 6).as_str()), ("abc…hi", "abcdef"));
    }
}
