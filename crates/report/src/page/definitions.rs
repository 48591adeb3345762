//! What the numbers of the page mean, and what they cannot say.

use std::collections::BTreeMap;

use maud::html;

use super::{Section, prose};
use crate::report::Report;
use crate::rows::REFERENCE;

/// What is computed here and not in the metrics, as name, heading and definition with unit.
const OWN: [(&str, &str, &str); 15] = [
    (
        "distance",
        "distance",
        "in points (hundredths): mean absolute difference of the four scores retain, forget, test and attack to their means over the \
            retrainings; over several seeds its mean",
    ),
    (
        "null",
        "null",
        "in points: the distance of a second retraining, which differs from the first by chance alone. What is not clearly further away \
            than this cannot be told from retraining by these scores",
    ),
    (
        "passes",
        "passes",
        "in percent: samples that go backward through a network for a request, as a share of those of retraining. They do not depend on the machine",
    ),
    ("once", "once", "in seconds: what is computed before any request and does not depend on one, but for the data and the original model"),
    ("each", "each", "in seconds: what is computed for each request"),
    (
        "break-even",
        "break-even",
        "in requests: once / (what retraining takes for a request \u{2212} what the method takes for one); after so many requests what was \
            paid once has been saved. \u{201c}Never\u{201d} where a request saves nothing",
    ),
    (
        "phases",
        "seconds by phase",
        "cluster, offline, condense and prepare are paid once; request, reduce and unlearn for each request. Wall-clock time of the stages, \
            with reading and writing",
    ),
    ("count-forward", "samples forward", "samples that went forward through a network, counted each time"),
    ("count-backward", "samples backward", "samples that went backward through a network, counted each time"),
    ("count-steps", "gradient steps", "changes of a network's weights by a gradient"),
    ("count-operations", "operations", "floating point operations of networks, a multiplication and an addition being two"),
    ("changed", "parameters changed", "in percent: the share of the model's parameters that the method's own stage changed"),
    ("gap", "gap", "in points: a score less that of the retraining with the same seed; the mean over the seeds with its 95 % t interval"),
    (
        "roc-area",
        "area below the curve",
        "how often, of a forgotten sample and an unseen one, the forgotten one has the lower loss (ties count half); from 0 to 1, 0.5 is chance",
    ),
    (
        "roc-found",
        "found at false alarms of",
        "in percent: forgotten samples whose loss is at most a threshold that is chosen so that no more than this share of unseen samples \
            has so low a loss. A dash: too few samples for such a share",
    ),
];

/// Of every number on the page, with its unit.
pub(crate) fn section(report: &Report<'_>) -> Section {
    let mut found: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for (name, definition) in report
        .judged
        .iter()
        .map(|judged| judged.metrics)
        .chain(report.audits.0.iter().map(|audit| audit.metrics))
        .flat_map(|metrics| &metrics.definitions)
    {
        found.entry(name).or_insert((&definition.unit, &definition.definition));
    }
    for score in report.scores() {
        found.entry(score.name).or_insert(("fraction", "a score that no model here has"));
    }
    let heading = |name: &str| report.scores().iter().find(|score| score.name == name).map(|score| score.heading.trim_end_matches(" %"));
    let body = html! {
        p { "Scores are stored as fractions and shown in percent; a point is a hundredth." }
        dl {
            @for (name, (unit, definition)) in &found {
                dt id={ "definition-" (name) } {
                    @if let Some(heading) = heading(name) { (heading) " (" code { (name) } ")" } @else { code { (name) } }
                }
                dd { (prose(definition)) " (" (unit) ")" }
            }
            @for (id, heading, definition) in OWN {
                dt id={ "definition-" (id) } { (heading) }
                dd { (definition) }
            }
        }
    };
    Section { id: "definitions", title: "Definitions", body }
}

/// What the numbers cannot say.
pub(crate) fn limits(report: &Report<'_>) -> Section {
    let has_retraining = report.rows.iter().any(|row| row.method == REFERENCE);
    let body = html! {
        ul {
            @if !has_retraining { li { "There is no retraining here, so that no number says how much a model that never saw the forgotten \
                samples would know of them." } }
            li { (report.attack()) " It looks at average losses: a leak of a few samples that most others hide would not show in its \
                accuracy, though it may at the left end of its curve." }
            li { "A retraining forgets in full, but its scores depend on chance as all training does. The null shows how much, from one \
                more retraining alone." }
            li { "What a method rests on that learned from the forgotten samples before is listed by stage, not measured." }
            li { "Seconds depend on the machine and on what else it did; counted work does not." }
            @for note in report.apart() { li { (prose(&note)) } }
        }
    };
    Section { id: "limits", title: "Limits", body }
}
