//! The whole report in one paragraph, for a reader who knows nothing of machine learning: what was asked, what was done, what was found, what is left, and what all this is worth.

use std::collections::BTreeSet;

use dcu_artifact::Request;
use serde_json::Value;

use crate::audits::Said;
use crate::page::shortened;
use crate::report::Report;
use crate::rows::{ATTACK, FORGET, Row};
use crate::statistics::attack_noise;
use crate::verdict::{Beside, attack_difference, beside, listed};

/// Names that are listed; of more only the number is said.
const NAMES: usize = 6;
/// Characters of a name.
const NAME: usize = 40;

/// What each part of the paragraph is about, and the part.
pub(crate) fn summary(report: &Report<'_>, requests: &[Request]) -> Vec<(&'static str, String)> {
    let contenders: Vec<&Row<'_>> = report.rows.iter().filter(|row| row.is_contender()).collect();
    [
        ("Asked", asked(report, requests)),
        ("Done", Some(done(report, &contenders))),
        ("Found", found(&contenders)),
        ("Found by single samples", single_samples(report)),
        ("Left", left(report, &contenders)),
        ("Strength of the evidence", strength(report, &contenders)),
        ("Not proven", Some(not_proven(report))),
    ]
    .into_iter()
    .filter_map(|(title, text)| Some((title, text?)))
    .collect()
}

/// The names of rows, or how many there are.
pub(crate) fn named(rows: &[&Row<'_>]) -> String {
    let names: Vec<String> = rows.iter().map(|row| shortened(&row.name(), NAME)).collect();
    some(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn some(names: &[&str]) -> String {
    if names.len() <= NAMES { listed(names) } else { format!("{} and {} others", names[..NAMES - 1].join(", "), names.len() - NAMES + 1) }
}

fn counted(count: u64) -> String {
    crate::page::count(count)
}

fn asked(report: &Report<'_>, requests: &[Request]) -> Option<String> {
    let mut kinds: Vec<(&Request, usize)> = Vec::new();
    for request in requests {
        let alike = |other: &&mut (&Request, usize)| {
            let sizes = |request: &Request| (request.forget.len(), request.retain.len(), request.earlier.len());
            other.0.facts == request.facts && sizes(other.0) == sizes(request)
        };
        match kinds.iter_mut().find(alike) {
            Some((_, times)) => *times += 1,
            None => kinds.push((request, 1)),
        }
    }
    let of_request = |(request, times): &(&Request, usize)| {
        let sizes = [request.forget.len(), request.retain.len(), request.earlier.len()].map(|size| size as u64);
        let drawn = if *times > 1 { format!(", for each of {times} seeds") } else { String::new() };
        format!("{}{drawn}", that_it_forgets(sizes, Some(&chosen(report, request))))
    };
    if !kinds.is_empty() {
        return Some(kinds.iter().map(of_request).collect::<Vec<_>>().join("; and ") + ".");
    }
    let sizes: BTreeSet<_> = report
        .rows
        .iter()
        .filter_map(|row| Some([row.count("forget")?, row.count("retain")?, row.count("earlier").unwrap_or(0)]))
        .collect();
    let texts: Vec<String> = sizes.into_iter().map(|sizes| that_it_forgets(sizes, None)).collect();
    (!texts.is_empty()).then(|| texts.join("; and ") + ".")
}

fn that_it_forgets([forget, retain, earlier]: [u64; 3], chosen: Option<&str>) -> String {
    let all = forget + retain + earlier;
    let share = 100.0 * forget as f64 / all as f64;
    let chosen = chosen.map(|chosen| format!(": {chosen}")).unwrap_or_default();
    let before = if earlier > 0 { format!(", beside {} that earlier requests took out", counted(earlier)) } else { String::new() };
    format!(
        "that an image classifier forget {} of the {} samples it was trained on ({share:.1} %){chosen}{before}",
        counted(forget),
        counted(all)
    )
}

/// By what rule the samples were chosen.
fn chosen(report: &Report<'_>, request: &Request) -> String {
    let names = report.judged.first().and_then(|judged| judged.metrics.facts.get("class_names"));
    let name = |class: &u32| names.and_then(|names| names[*class as usize].as_str()).map_or_else(|| class.to_string(), str::to_owned);
    let classes: Vec<String> = request.facts.classes.iter().map(|class| format!("\u{201c}{}\u{201d}", name(class))).collect();
    let classes = listed(&classes.iter().map(String::as_str).collect::<Vec<_>>());
    match request.facts.scenario.as_str() {
        "random" => "drawn at random".to_owned(),
        "class" if request.facts.classes.len() == 1 => format!("all of the class {classes}"),
        "class" => format!("all of the classes {classes}"),
        "partial" => "a part of some classes".to_owned(),
        "ids" => "those on a list".to_owned(),
        "poisoned" => "those whose labels had been altered".to_owned(),
        "exposed" => "those that models had learned by heart the most".to_owned(),
        other => format!("chosen by the rule \u{201c}{other}\u{201d}"),
    }
}

fn done(report: &Report<'_>, contenders: &[&Row<'_>]) -> String {
    let (anew, applied): (Vec<&Row<'_>>, Vec<&Row<'_>>) = contenders.iter().partition(|row| row.runs[0].model.starts_anew());
    let what = match applied.as_slice() {
        [] => "no method of forgetting was applied".to_owned(),
        [only] => format!("the method {} was applied to a model that had been trained on all of the data", named(&[only])),
        several => {
            format!("{} methods ({}) were applied to models that had been trained on all of the data", several.len(), named(several))
        }
    };
    let anew = match anew.as_slice() {
        [] => String::new(),
        [only] => format!("; {} is trained anew in another way than retraining", named(&[only])),
        several => format!("; {} are trained anew in other ways than retraining", named(several)),
    };
    let (retrained, again) = (report.rows.iter().any(|row| !row.references.is_empty()), report.rows.iter().any(|row| row.null.is_some()));
    let measure = match (retrained, again) {
        (true, true) => {
            ". What came out is measured against training anew without these samples (\u{201c}retraining\u{201d}), which is what forgetting \
                means here, and against a second such retraining, which shows how far chance alone goes"
        }
        (true, false) => {
            ". What came out is measured against training anew without these samples (\u{201c}retraining\u{201d}), which is what forgetting \
                means here. There was no second retraining to show how far chance alone goes"
        }
        _ => ". There was no retraining to measure it against",
    };
    format!("{what}{anew}{measure}.{}", report.yardstick().map_or_else(String::new, |warning| format!(" {warning}")))
}

fn found(contenders: &[&Row<'_>]) -> Option<String> {
    let mut sentences: Vec<String> = nearness(contenders).into_iter().collect();
    let compared = contenders.iter().filter_map(|row| Some((*row, beside(row, FORGET)?)));
    let compared: Vec<(&Row<'_>, Beside)> = compared.collect();
    for (kind, one, several, what) in [
        (Beside::Above, "still gives", "still give", "the forgotten samples their label more often than retraining"),
        (Beside::Below, "gives", "give", "the forgotten samples their label less often than retraining, which betrays them as well"),
        (Beside::Alike, "gives", "give", "the forgotten samples their label as often as retraining"),
        (
            Beside::Near,
            "is",
            "are",
            "not as retraining in how often the forgotten samples get their label, though it is not sure that it is by more than 2 points",
        ),
        (
            Beside::NotToBeTold,
            "cannot",
            "cannot",
            "be told from retraining by how often the forgotten samples get their label, with so few samples or seeds",
        ),
    ] {
        let rows: Vec<&Row<'_>> = compared.iter().filter(|(_, own)| *own == kind).map(|(row, _)| *row).collect();
        if !rows.is_empty() {
            sentences.push(format!("{} {} {what}", named(&rows), if rows.len() == 1 { one } else { several }));
        }
    }
    let attacked: Vec<(&Row<'_>, f64, f64)> =
        contenders.iter().filter_map(|row| attack_difference(row).map(|(difference, noise)| (*row, difference, noise))).collect();
    if !attacked.is_empty() {
        let found: Vec<&Row<'_>> = attacked.iter().filter(|(_, difference, noise)| difference > noise).map(|(row, ..)| *row).collect();
        sentences.push(match found.as_slice() {
            [] => {
                "an attack on the losses finds the forgotten samples of no method more often than those of retraining, as far as so many \
                samples can tell"
                    .to_owned()
            }
            rows => format!("an attack on the losses finds the forgotten samples of {} more often than those of retraining", named(rows)),
        });
        let hidden: Vec<&Row<'_>> = attacked.iter().filter(|(_, difference, noise)| -difference > *noise).map(|(row, ..)| *row).collect();
        if !hidden.is_empty() {
            sentences.push(format!("those of {} less often, which betrays them as well", named(&hidden)));
        }
    }
    (!sentences.is_empty()).then(|| sentences.join("; ") + ".")
}

/// Which methods are told from retraining by what many models say of single samples.
fn single_samples(report: &Report<'_>) -> Option<String> {
    let told = report.audits.told();
    let names = |said: Said| {
        let names: Vec<String> = told.iter().filter(|(.., told)| *told == said).map(|(audit, ..)| shortened(&audit.method, NAME)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| some(&names))
    };
    let sentences = [
        names(Said::Told).map(|names| {
            format!("over many models, what is said of single samples tells {names} from retraining, beyond what chance explains")
        }),
        names(Said::NotTold).map(|names| format!("{names} cannot be told from retraining in this way, with so many models")),
        names(Said::Undecided).map(|names| format!("so few models cannot decide it for {names}")),
    ];
    let sentences: Vec<String> = sentences.into_iter().flatten().collect();
    (!sentences.is_empty()).then(|| sentences.join("; ") + ".")
}

/// Which method is the nearest to retraining, and which are no further than a second retraining, as far as seeds can tell.
fn nearness(contenders: &[&Row<'_>]) -> Option<String> {
    let distance = |row: &Row<'_>| row.distance.as_ref().ok().map(|distance| distance.mean).filter(|distance| distance.is_finite());
    let mut near: Vec<(&Row<'_>, f64)> = contenders.iter().filter_map(|row| Some((*row, distance(row)?))).collect();
    near.sort_by(|one, other| one.1.total_cmp(&other.1));
    let (nearest, away) = near.first()?;
    let first = match contenders {
        [only] => format!("{} is {away:.1} points away from retraining in the mean of four scores", named(&[only])),
        _ => format!("the nearest to retraining is {}, {away:.1} points away in the mean of four scores", named(&[nearest])),
    };
    let Some(null) = nearest.null else { return Some(first) };
    let second = format!("{first}, a second retraining {:.1}", null.mean);
    let compared: Vec<(&Row<'_>, f64)> = near.iter().filter_map(|(row, _)| Some((*row, row.excess?.ends().0))).collect();
    if compared.is_empty() {
        return Some(format!("{second}; each is a single draw, so that the two cannot be ranked"));
    }
    let within: Vec<&Row<'_>> = compared.iter().filter(|(_, low)| *low <= 0.0).map(|(row, _)| *row).collect();
    Some(match within.as_slice() {
        [] => format!("{second}; every method is further away than that, beyond what chance explains"),
        rows => format!("{second}; by distance {} cannot be told from a second retraining", named(rows)),
    })
}

fn left(report: &Report<'_>, contenders: &[&Row<'_>]) -> Option<String> {
    /// The stages that a model rests on, and whether it was solved for by a number that was chosen before.
    type Rests<'a> = (Vec<&'a str>, bool);
    let mut groups: Vec<(Rests<'_>, Vec<&Row<'_>>)> = Vec::new();
    for row in contenders {
        let model = row.runs[0].model;
        let rests = (report.lineage.learned_before_the_request(model, row.runs[0].metrics), model.solves());
        match groups.iter_mut().find(|(known, _)| *known == rests) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((rests, vec![row])),
        }
    }
    let of_group = |((learned, solves), rows): &(Rests<'_>, Vec<&Row<'_>>)| {
        let ending = if rows.len() == 1 { "s" } else { "" };
        match learned.as_slice() {
            [] => {
                let but = if *solves { ", but for the one number `lambda`" } else { "" };
                format!("nothing that {} rest{ending} on learned from the forgotten samples before{but}", named(rows))
            }
            stages => {
                format!("{} still rest{ending} on what {} learned when the forgotten samples were there", named(rows), stages_of(stages))
            }
        }
    };
    let texts: Vec<String> = groups.iter().map(of_group).collect();
    (!texts.is_empty()).then(|| texts.join("; ") + ". The data itself, its copies, and models made of it elsewhere are not touched.")
}

fn stages_of(stages: &[&str]) -> String {
    if stages.len() == 1 { format!("the stage {}", stages[0]) } else { format!("the stages {}", listed(stages)) }
}

fn strength(report: &Report<'_>, contenders: &[&Row<'_>]) -> Option<String> {
    let seeds = report.seeds().len();
    let runs = match seeds {
        0 | 1 => {
            "each model was trained once, so that nothing is known of how training varies, and intervals are over samples alone".to_owned()
        }
        several => format!("each model was trained with {several} seeds, and intervals are over these"),
    };
    let forgotten: BTreeSet<u64> = report.rows.iter().filter_map(|row| row.count("forget")).collect();
    let samples = match (forgotten.first(), forgotten.last()) {
        (Some(fewest), Some(most)) if fewest == most => format!("; it rests on {} forgotten samples", counted(*fewest)),
        (Some(fewest), Some(most)) => format!("; it rests on {} to {} forgotten samples", counted(*fewest), counted(*most)),
        _ => String::new(),
    };
    let pairs = contenders.iter().filter(|row| row.scores.contains_key(ATTACK.name)).filter_map(|row| row.count(ATTACK.count)).min();
    let noise = pairs.filter(|_| seeds < 2).map(|pairs| {
        let points = 100.0 * std::f64::consts::SQRT_2 * attack_noise(pairs);
        format!(". A difference of up to {points:.0} points between two attacks may be chance with {} pairs", counted(pairs))
    });
    let noise = noise.unwrap_or_else(|| if pairs.is_some() { String::new() } else { ". There is no attack to tell by".to_owned() });
    (!contenders.is_empty()).then(|| format!("{runs}{samples}{noise}."))
}

fn not_proven(report: &Report<'_>) -> String {
    let classes = report
        .judged
        .iter()
        .any(|judged| judged.metrics.facts.get("forgotten_classes").and_then(Value::as_array).is_some_and(|classes| !classes.is_empty()));
    let whole = if classes { " Of a class that was forgotten whole, the model's other knowledge may still say much." } else { "" };
    let which = if report.audits.0.is_empty() { "one that looks at single samples, or that knows more," } else { "one that knows more" };
    format!(
        "that no trace is left. Scores that agree with those of retraining are not the same model, and an attack that finds nothing is one \
            attack: {which} may find what this does not.{whole} Nothing here says whether the \
            request named all that it should, or whether it satisfies a law."
    )
}

#[cfg(test)]
mod tests {
    use dcu_artifact::RequestFacts;

    use super::*;
    use crate::rows::judged;
    use crate::rows::tests::{Case, evaluated};

    fn request(scenario: &str, classes: &[u32]) -> Request {
        let facts = RequestFacts { scenario: scenario.to_owned(), classes: classes.to_vec(), cumulative: false };
        Request { forget: (0..60).collect(), retain: (60..3000).collect(), earlier: Vec::new(), facts }
    }

    fn text(cases: &[Case], requests: &[Request]) -> String {
        let (lineage, metrics) = evaluated(cases, |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        let parts = summary(&Report::new(&lineage, &judged, Vec::new()), requests);
        parts.into_iter().map(|(title, text)| format!("{title}: {text}\n")).collect()
    }

    const CASES: [Case; 4] = [
        Case("modular", 1, &[], [0.9, 0.9, 0.8, 0.9]),
        Case("finetune", 1, &[], [1.0, 0.0, 0.9, 0.505]),
        Case("retrain", 1, &[], [1.0, 0.0, 0.9, 0.5]),
        Case("null", 1, &[], [1.0, 0.0, 0.9, 0.52]),
    ];

    #[test]
    fn it_says_what_was_asked_done_found_and_left() {
        let text = text(&CASES, &[request("poisoned", &[])]);
        for expected in [
            "Asked: that an image classifier forget 60 of the 3,000 samples it was trained on (2.0 %): those whose labels had been altered.",
            "Done: 2 methods (modular and finetune) were applied",
            "Found: the nearest to retraining is finetune, 0.1 points away in the mean of four scores, a second retraining 0.5; each is a single draw, so that the two cannot be ranked; ",
            "; modular still gives the forgotten samples their label more often than retraining; ",
            "; an attack on the losses finds the forgotten samples of modular more often than those of retraining.",
            "Left: modular still rests on what the stages base and offline learned",
            "finetune still rests on what the stage base learned",
            "each model was trained once",
            "it rests on 60 forgotten samples",
        ] {
            assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
        }
    }

    #[test]
    fn requests_are_told_by_their_rule_and_how_often_they_were_drawn() {
        let asked = |requests: &[Request]| text(&CASES, requests).lines().next().unwrap().to_owned();
        assert!(asked(&[request("class", &[1])]).ends_with("all of the class \u{201c}b\u{201d}."));
        assert!(asked(&[request("random", &[]), request("random", &[])]).ends_with("drawn at random, for each of 2 seeds."));
        assert!(asked(&[request("mine", &[])]).ends_with("chosen by the rule \u{201c}mine\u{201d}."));
        assert_eq!(asked(&[]), "Asked: that an image classifier forget 60 of the 1,060 samples it was trained on (5.7 %).");
    }

    #[test]
    fn without_retraining_or_methods_nothing_is_claimed() {
        let alone = text(&CASES[..1], &[]);
        assert!(alone.contains("There was no retraining to measure it against.") && !alone.contains("Found"), "{alone}");
        let none = text(&CASES[2..], &[]);
        assert!(none.contains("no method of forgetting was applied") && !none.contains("Found") && !none.contains("Left"), "{none}");
        let unsure = text(&CASES[1..3], &[]);
        assert!(
            unsure.contains("no second retraining") && unsure.contains("Found: finetune is 0.1 points away from retraining"),
            "{unsure}"
        );
    }
}
