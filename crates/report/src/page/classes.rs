//! Accuracies class by class.

use std::collections::{BTreeMap, BTreeSet};

use maud::html;
use serde_json::Value;

use super::Section;
use super::table::{Cell, Column, table};
use crate::report::Report;
use crate::rows::{REFERENCE, Row};

/// Classes that are shown at most: those in which methods differ the most from retraining.
const MOST: usize = 20;

/// The accuracy of each class that has samples in the set, mean over the runs.
fn accuracies(row: &Row<'_>, set: &str) -> BTreeMap<u64, f64> {
    let mut found: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for array in row.runs.iter().filter_map(|run| run.metrics.arrays.get(&format!("{set}_accuracy_per_class"))) {
        for pair in array.data.chunks_exact(2).filter(|pair| pair[1].is_finite()) {
            found.entry(pair[0] as u64).or_default().push(pair[1]);
        }
    }
    found.into_iter().map(|(class, values)| (class, values.iter().sum::<f64>() / values.len() as f64)).collect()
}

pub(crate) fn section(report: &Report<'_>) -> Option<Section> {
    let facts = &report.judged.first()?.metrics.facts;
    let name = |class: u64| {
        facts.get("class_names").and_then(|names| names[class as usize].as_str()).map_or_else(|| class.to_string(), str::to_owned)
    };
    let gone: BTreeSet<u64> =
        facts.get("forgotten_classes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64).collect();
    let tables = [("test", "unseen samples"), ("forget", "samples to be forgotten")].into_iter().filter_map(|(set, whom)| {
        let rows: Vec<(&Row<'_>, BTreeMap<u64, f64>)> = report.rows.iter().map(|row| (row, accuracies(row, set))).collect();
        let (classes, there) = chosen(&rows);
        if classes.is_empty() {
            return None;
        }
        let heading = |class: &u64| format!("{}{}", name(*class), if gone.contains(class) { " (forgotten)" } else { "" });
        let columns: Vec<Column> =
            classes.iter().map(|class| Column::linked(&heading(class), &format!("{set}_accuracy_per_class"))).collect();
        let lines = rows.iter().map(|(row, found)| {
            (row.name(), classes.iter().map(|class| Cell::number(found.get(class).map(|share| 100.0 * share), 1)).collect())
        });
        let left_out = if there > classes.len() {
            format!(": the {} of {there} classes in which methods differ the most from retraining", classes.len())
        } else {
            String::new()
        };
        Some(table(&format!("classes-{set}"), &format!("Accuracy on {whom} by class, %{left_out}"), "method", &columns, lines.collect()))
    });
    let tables: Vec<_> = tables.collect();
    let body = html! {
        p { "The share of the samples of each class that the model gives their label; for samples to be forgotten that is the label that \
            they were trained with. Over several seeds the mean. A dash: there is no such sample." }
        @for table in &tables { (table) }
    };
    (!tables.is_empty()).then_some(Section { id: "classes", title: "Class by class", body })
}

/// The classes to show, ascending, and how many there are.
fn chosen(rows: &[(&Row<'_>, BTreeMap<u64, f64>)]) -> (Vec<u64>, usize) {
    let all: BTreeSet<u64> = rows.iter().flat_map(|(_, found)| found.keys().copied()).collect();
    let reference = rows.iter().find(|(row, _)| row.method == REFERENCE).map(|(_, found)| found);
    let gap = |class: u64| {
        let Some(expected) = reference.and_then(|found| found.get(&class)) else { return 0.0 };
        let own = rows.iter().filter(|(row, _)| row.is_contender()).filter_map(|(_, found)| found.get(&class));
        own.map(|share| (share - expected).abs()).fold(0.0, f64::max)
    };
    let mut classes: Vec<u64> = all.iter().copied().collect();
    classes.sort_by(|one, other| gap(*other).total_cmp(&gap(*one)).then(one.cmp(other)));
    classes.truncate(MOST);
    classes.sort_unstable();
    (classes, all.len())
}
