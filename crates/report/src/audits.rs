//! What `attack/audit` found of each method over many models, beside what it finds where there is nothing: numbers, and what they say.

use std::collections::BTreeMap;

use anyhow::Context as _;
use dcu_artifact::{Digest, Metrics};

use crate::lineage::{Instance, Lineage};
use crate::rows::{NULL, REFERENCE};
use crate::statistics::Estimate;
use crate::verdict::listed;

/// A probability below this, corrected for the number of methods, is no chance.
const LEVEL: f64 = 0.05;

/// A score of many models, and how its value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tell {
    pub(crate) name: &'static str,
    pub(crate) heading: &'static str,
    is_share: bool,
    /// Whether it is the larger, the less a method has forgotten; otherwise the smaller.
    grows: bool,
}

/// Those of the table; the first is what a verdict goes by.
pub(crate) const TELLS: [Tell; 9] = [
    ATTACK,
    TOLD,
    Tell { name: "rmia_auc", heading: "RMIA %", is_share: true, grows: true },
    Tell { name: "loss_auc", heading: "loss %", is_share: true, grows: true },
    Tell { name: "klom_median", heading: "KLoM nat", is_share: false, grows: true },
    Tell { name: "forgetting_quality", heading: "quality", is_share: false, grows: false },
    NEARER,
    Tell { name: "tug_of_war", heading: "tug of war %", is_share: true, grows: false },
    RETAIN,
];
pub(crate) const ATTACK: Tell = Tell { name: "likelihood_ratio_attack", heading: "single samples %", is_share: true, grows: true };
/// Of samples that nobody asked to forget.
const RETAIN: Tell = Tell { name: "likelihood_ratio_retain_attack", heading: "single retain samples %", is_share: true, grows: true };
pub(crate) const TOLD: Tell = Tell { name: "told_samples", heading: "told apart %", is_share: true, grows: true };
pub(crate) const NEARER: Tell = Tell { name: "nearer_to_original", heading: "to original %", is_share: true, grows: true };

/// A score with its interval, its floor, and how likely it is by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    pub(crate) estimate: Estimate,
    pub(crate) floor: f64,
    pub(crate) probability: f64,
}

impl Tell {
    pub(crate) fn unit(self) -> f64 {
        if self.is_share { 100.0 } else { 1.0 }
    }

    /// After the point.
    pub(crate) fn decimals(self) -> usize {
        if self.is_share { 1 } else { 2 }
    }
}

impl Found {
    /// Its value, the ends of its interval and its floor, in the unit of the table.
    pub(crate) fn shown(self, tell: Tell) -> [String; 4] {
        let (low, high) = self.estimate.ends();
        let decimals = tell.decimals();
        [self.estimate.mean, low, high, self.floor].map(|value| format!("{:.decimals$}", tell.unit() * value))
    }
}

/// What single samples say of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// They tell it from retraining.
    Told,
    /// They do not.
    NotTold,
    /// So few models of so many methods could not tell whatever there is.
    Undecided,
}

/// One method, audited.
#[derive(Debug)]
pub(crate) struct Audit<'a> {
    /// The label of its models, and what tells this audit from others of the same label.
    pub(crate) method: String,
    pub(crate) instance: &'a str,
    /// The model of the first seed.
    pub(crate) model: &'a Instance,
    pub(crate) metrics: &'a Metrics,
}

/// Follows every audit to the method whose models it is of.
///
/// # Errors
/// When the timings do not name these models.
pub(crate) fn audits<'a>(lineage: &'a Lineage, metrics: &'a [(Metrics, Digest)]) -> anyhow::Result<Vec<Audit<'a>>> {
    let by_digest: BTreeMap<&str, &Metrics> = metrics.iter().map(|(metrics, digest)| (digest.as_str(), metrics)).collect();
    let of = |(audit, metrics)| {
        let audit: &Instance = audit;
        let model = lineage.audited(audit).with_context(|| format!("`{}` is no audit of models that the timings name", audit.instance))?;
        Ok((audit, model, metrics))
    };
    let found = lineage.evaluations(&by_digest).map(of).collect::<anyhow::Result<Vec<_>>>()?;
    let named = found.iter().map(|&(audit, model, metrics)| {
        let alike = || found.iter().filter(|(_, other, _)| other.label == model.label).map(|(audit, ..)| &audit.coordinates);
        let differs = |key: &&String| alike().any(|coordinates| coordinates.get(*key) != audit.coordinates.get(*key));
        let value = |key: &String| audit.coordinates[key].as_str().map_or_else(|| audit.coordinates[key].to_string(), str::to_owned);
        let coordinates: String = audit.coordinates.keys().filter(differs).map(|key| format!(", {key} {}", value(key))).collect();
        Audit { method: format!("{}{coordinates}", model.label), instance: &audit.instance, model, metrics }
    });
    Ok(named.collect())
}

impl Audit<'_> {
    pub(crate) fn found(&self, tell: Tell) -> Option<Found> {
        let value = |suffix: &str| self.metrics.scalars.get(&format!("{}{suffix}", tell.name)).copied();
        let estimate = Estimate { mean: value("")?, interval: value("_low").zip(value("_high")), is_over_seeds: true };
        Some(Found { estimate, floor: value("_floor")?, probability: value("_p")? })
    }

    fn count(&self, name: &str) -> u64 {
        self.metrics.facts.get("counts").and_then(|counts| counts[name].as_u64()).unwrap_or(0)
    }

    /// Whether it is a method of forgetting that is to be judged.
    pub(crate) fn is_contender(&self) -> bool {
        self.model.label != NULL && self.model.label != REFERENCE && self.model.forgets()
    }

    /// The least probability that its models can show.
    fn least_probability(&self) -> f64 {
        self.metrics.facts.get("least_probability").and_then(serde_json::Value::as_f64).unwrap_or(0.0)
    }
}

/// All audits of a report.
pub(crate) struct Audits<'a>(pub(crate) Vec<Audit<'a>>);

impl<'a> Audits<'a> {
    /// The scores that some audit has.
    pub(crate) fn tells(&self) -> Vec<Tell> {
        TELLS.into_iter().filter(|tell| self.0.iter().any(|audit| audit.found(*tell).is_some())).collect()
    }

    pub(crate) fn contenders(&self) -> impl Iterator<Item = &Audit<'a>> {
        self.0.iter().filter(|audit| audit.is_contender())
    }

    /// Whether single samples tell each method from retraining, the probabilities of all methods corrected by Holm's rule (1979).
    pub(crate) fn told(&self) -> Vec<(&Audit<'a>, Found, Said)> {
        let found: Vec<(&Audit<'a>, Found)> = self.contenders().filter_map(|audit| Some((audit, audit.found(ATTACK)?))).collect();
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|&one, &other| found[one].1.probability.total_cmp(&found[other].1.probability));
        // Once one cannot fall, those after it cannot either.
        let (mut falls, mut can_fall) = (true, true);
        let mut told = vec![Said::NotTold; found.len()];
        for (rank, place) in order.into_iter().enumerate() {
            let (audit, own) = found[place];
            let left = (found.len() - rank) as f64;
            can_fall &= audit.least_probability() * left <= LEVEL;
            falls &= own.probability * left <= LEVEL;
            told[place] = match falls && own.estimate.mean > own.floor {
                true => Said::Told,
                false if !can_fall => Said::Undecided,
                false => Said::NotTold,
            };
        }
        found.into_iter().zip(told).map(|((audit, found), told)| (audit, found, told)).collect()
    }

    /// What was found of each method, in words.
    pub(crate) fn words(&self) -> Vec<String> {
        let of = |(audit, found, said): (&Audit<'_>, Found, Said)| {
            let (value, chance) = (100.0 * found.estimate.mean, 100.0 * found.floor);
            let models = audit.count("unlearned").min(audit.count("retrained"));
            let first = match said {
                Said::Told => {
                    format!(
                        "single samples tell its models from retrained ones: the likelihood ratio is right in {value:.0} %, by chance in {chance:.0} %"
                    )
                }
                Said::NotTold => format!(
                    "single samples do not tell its models from retrained ones beyond chance, with {models} of each ({value:.0} %, by chance {chance:.0} %)"
                ),
                Said::Undecided => format!(
                    "whether single samples tell its models from retrained ones cannot be decided with {models} of each and so many methods ({value:.0} %, by chance {chance:.0} %)"
                ),
            };
            let sure = |tell: Tell| audit.found(tell).filter(|found| found.probability <= LEVEL);
            let forget = audit.count("forget");
            let apart = sure(TOLD).map(|told| (told.estimate.mean * forget as f64).round()).map(|told| {
                format!("One by one {told:.0} of {forget} forget samples {} told apart", if told == 1.0 { "is" } else { "are" })
            });
            let nearer = sure(NEARER).and_then(|nearer| {
                let way = 100.0 * nearer.estimate.mean;
                match nearer.estimate.ends() {
                    (low, _) if low > 0.5 => {
                        Some(format!("Its models are nearer to the originals than to retraining ({way:.0} % of the way)"))
                    }
                    (_, high) if high < 0.5 => Some(format!("Of the way from retraining to the originals it is at {way:.0} %")),
                    _ => None,
                }
            });
            let sentences: Vec<String> = [Some(first), apart, nearer].into_iter().flatten().collect();
            format!("{}: {}.", audit.method, sentences.join(". "))
        };
        self.told().into_iter().map(of).collect()
    }

    /// What a reader must know to use the numbers, and which of them say nothing here.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "single samples: how often the likelihood ratio of a forget sample's margin tells an unlearned model from a retrained one (U-LiRA); single retain samples: the same of retain samples. \
             told apart: forget samples whose mean margin is another over unlearned than over retrained models, false discovery rate 5 %. RMIA, loss: area under the curve of attacks on one model. \
             A margin is the logarithm of p / (1 - p) of the label's probability p. KLoM: median divergence of retrained from unlearned margins. quality: forgetting quality of the NeurIPS 2023 \
             challenge; the best there is is its floor. to original: 0 is as retraining, 100 as the original. tug of war: 100 is best."
                .to_owned(),
            "The floor, in tables of text in parentheses, is what a score is where there is nothing to find: of RMIA, loss and tug of war that of retrained models, of the others that of the same \
             models dealt to both groups at random. p is the probability of so much by chance, before any correction; verdicts are corrected for the number of methods (Holm)."
                .to_owned(),
        ];
        // As sure as a verdict on the first of so many methods must be, and in the direction of a leak.
        let level = LEVEL / self.contenders().count().max(1) as f64;
        let powerless = |audit: &Audit<'_>| {
            let shows = |found: Found, grows: bool| found.probability <= level && (found.estimate.mean > found.floor) == grows;
            let silent = |tell: &Tell| *tell != RETAIN && audit.found(*tell).is_some_and(|found| !shows(found, tell.grows));
            TELLS.into_iter().filter(silent).map(|tell| tell.heading.trim_end_matches(" %")).collect::<Vec<_>>()
        };
        for audit in self.0.iter().filter(|audit| !audit.model.forgets()) {
            let silent = powerless(audit);
            if !silent.is_empty() {
                notes.push(format!(
                    "Doing nothing (`{}`) cannot be told from retraining by {}: with this data, so many models and so many methods {} nothing about forgetting.",
                    audit.method,
                    listed(&silent),
                    if silent.len() == 1 { "this says" } else { "these say" }
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Audits of methods with the rate of the attack and its probability; `original` forgets nothing.
    pub(crate) fn audited(cases: &[(&str, f64, f64)]) -> (Value, Vec<(Metrics, Digest)>) {
        let (mut instances, mut all) = (Vec::new(), Vec::new());
        for (method, rate, probability) in cases {
            let digest = dcu_artifact::digest_bytes(format!("audit of {method}").as_bytes());
            let inputs = if *method == "original" { json!({}) } else { json!({ "model": ["base"], "request": ["request"] }) };
            let uses = if *method == "original" { "train/fit" } else { "unlearn/any" };
            let instance = |name: String, uses: &str, inputs: Value, outputs: Value| json!({ "stage": name, "instance": name, "uses": uses, "label": method, "seed": 1, "seconds": { "total": 1.0 }, "inputs": inputs, "outputs": outputs });
            instances.push(instance(format!("{method}-model"), uses, inputs, json!({ "model": { "schema": "model/1", "digest": "m" } })));
            let said = json!({ "model": [format!("{method}-model")] });
            instances.push(instance(format!("{method}-said"), "attack/predict", said, json!({})));
            let of = json!({ "unlearned": [format!("{method}-said")] });
            let made = json!({ "metrics": { "schema": "metrics/1", "digest": digest } });
            instances.push(instance(format!("{method}-audit"), "attack/audit", of, made));
            let mut metrics = Metrics::default();
            for (score, value, floor) in
                [("likelihood_ratio_attack", *rate, 0.5), ("told_samples", 0.1, 0.0), ("nearer_to_original", 0.7, 0.1)]
            {
                for (suffix, value) in
                    [("", value), ("_low", value - 0.01), ("_high", value + 0.01), ("_floor", floor), ("_p", *probability)]
                {
                    metrics.scalar(&format!("{score}{suffix}"), value, "fraction", "a score");
                }
            }
            metrics.array("likelihood_ratio_roc", dcu_artifact::Array::new(vec![2, 2], vec![0.01, *rate, 1.0, 1.0]), "fraction", "a curve");
            metrics.facts.insert("counts".into(), json!({ "unlearned": 12, "retrained": 12, "forget": 300 }));
            all.push((metrics, digest));
        }
        (json!({ "pipeline": "test", "instances": instances }), all)
    }

    fn of(cases: &[(&str, f64, f64)], check: impl Fn(&Audits<'_>)) {
        let (timings, metrics) = audited(cases);
        let lineage = Lineage::parse(timings).unwrap();
        check(&Audits(audits(&lineage, &metrics).unwrap()));
    }

    #[test]
    fn a_method_is_told_where_chance_and_the_number_of_methods_do_not_explain_it() {
        // Holm: 0.02 falls at 3 methods only after 0.005 has; 0.04 of one left does, 0.03 of two does not.
        let cases = [("first", 0.6, 0.005), ("second", 0.58, 0.02), ("third", 0.56, 0.2), ("original", 0.9, 0.005), ("null", 0.5, 0.7)];
        of(&cases, |audits| {
            let told: Vec<(&str, Said)> =
                audits.0.iter().zip(audits.told()).map(|(audit, (.., told))| (audit.method.as_str(), told)).collect();
            assert_eq!(told, [("first", Said::Told), ("second", Said::Told), ("third", Said::NotTold)]);
        });
        of(&[("first", 0.6, 0.03), ("second", 0.58, 0.04)], |audits| {
            assert!(audits.told().iter().all(|(.., told)| *told == Said::NotTold));
        });
        // As improbable, but in the other direction.
        of(&[("first", 0.4, 0.005)], |audits| assert_eq!(audits.told()[0].2, Said::NotTold));
    }

    #[test]
    fn nobody_is_acquitted_where_nobody_could_be_found() {
        let (timings, mut metrics) = audited(&[("first", 0.99, 0.03), ("second", 0.98, 0.03), ("original", 0.99, 0.03)]);
        for (metrics, _) in &mut metrics {
            metrics.facts.insert("least_probability".into(), json!(2.0 / 70.0));
        }
        let lineage = Lineage::parse(timings).unwrap();
        let audits = Audits(audits(&lineage, &metrics).unwrap());
        assert!(audits.told().iter().all(|(.., told)| *told == Said::Undecided));
        assert!(audits.words()[0].contains("cannot be decided with 12 of each and so many methods (99 %"), "{:?}", audits.words());
        assert!(audits.notes()[2].contains("cannot be told from retraining by single samples"), "{:?}", audits.notes());
    }

    #[test]
    fn audits_of_one_label_are_told_by_their_coordinates() {
        let (mut timings, mut metrics) = audited(&[("match", 0.6, 0.005)]);
        let (more, others) = audited(&[("match", 0.7, 0.3)]);
        let rename = |value: &Value| Value::from(value.to_string().replace("match-", "other-"));
        for instance in more["instances"].as_array().unwrap() {
            let mut other: Value = serde_json::from_str(rename(instance).as_str().unwrap()).unwrap();
            other["coordinates"] = json!({ "request": "exposed" });
            if let Some(metrics) = other["outputs"].get_mut("metrics") {
                metrics["digest"] = json!(dcu_artifact::digest_bytes(b"another"));
            }
            timings["instances"].as_array_mut().unwrap().push(other);
        }
        metrics.push((others[0].0.clone(), dcu_artifact::digest_bytes(b"another")));
        let lineage = Lineage::parse(timings).unwrap();
        let found = audits(&lineage, &metrics).unwrap();
        assert_eq!(found.iter().map(|audit| audit.method.as_str()).collect::<Vec<_>>(), ["match", "match, request exposed"]);
    }

    #[test]
    fn words_say_what_was_found_and_what_cannot_be_found() {
        of(&[("match", 0.57, 0.005), ("original", 0.55, 0.3)], |audits| {
            let words = audits.words();
            assert_eq!(words.len(), 1);
            for expected in [
                "right in 57 %, by chance in 50 %",
                "30 of 300 forget samples",
                "nearer to the originals than to retraining (70 % of the way)",
            ] {
                assert!(words[0].contains(expected), "{words:?}");
            }
            assert!(
                audits.notes()[2]
                    .starts_with("Doing nothing (`original`) cannot be told from retraining by single samples, told apart and to original"),
                "{:?}",
                audits.notes()
            );
        });
        of(&[("match", 0.51, 0.4)], |audits| {
            assert!(audits.words()[0].contains("do not tell its models from retrained ones beyond chance, with 12 of each"))
        });
    }
}
