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
    pub(crate) is_share: bool,
}

/// Those of the table; the first is what a verdict goes by.
pub(crate) const TELLS: [Tell; 9] = [
    ATTACK,
    TOLD,
    Tell { name: "rmia_auc", heading: "RMIA %", is_share: true },
    Tell { name: "loss_auc", heading: "loss %", is_share: true },
    Tell { name: "klom_median", heading: "KLoM nat", is_share: false },
    Tell { name: "forgetting_quality", heading: "quality", is_share: false },
    NEARER,
    Tell { name: "tug_of_war", heading: "tug of war %", is_share: true },
    Tell { name: "likelihood_ratio_retain_attack", heading: "single retain samples %", is_share: true },
];
pub(crate) const ATTACK: Tell = Tell { name: "likelihood_ratio_attack", heading: "single samples %", is_share: true };
pub(crate) const TOLD: Tell = Tell { name: "told_samples", heading: "told apart %", is_share: true };
pub(crate) const NEARER: Tell = Tell { name: "nearer_to_original", heading: "to original %", is_share: true };

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
}

/// One method, audited.
#[derive(Debug)]
pub(crate) struct Audit<'a> {
    pub(crate) method: &'a str,
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
        Ok(Audit { method: &model.label, model, metrics })
    };
    lineage.evaluations(&by_digest).map(of).collect()
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
        self.method != NULL && self.method != REFERENCE && self.model.forgets()
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
    pub(crate) fn told(&self) -> Vec<(&Audit<'a>, Found, bool)> {
        let mut found: Vec<(&Audit<'a>, Found)> = self.contenders().filter_map(|audit| Some((audit, audit.found(ATTACK)?))).collect();
        let places: Vec<&str> = self.contenders().map(|audit| audit.method).collect();
        found.sort_by(|(_, one), (_, other)| one.probability.total_cmp(&other.probability));
        let count = found.len();
        let mut falls = true;
        let mut told: Vec<(&Audit<'a>, Found, bool)> = Vec::new();
        for (rank, (audit, found)) in found.into_iter().enumerate() {
            falls &= found.probability * (count - rank) as f64 <= LEVEL;
            told.push((audit, found, falls && found.estimate.mean > found.floor));
        }
        told.sort_by_key(|(audit, ..)| places.iter().position(|name| *name == audit.method));
        told
    }

    /// What was found of each method, in words.
    pub(crate) fn words(&self) -> Vec<String> {
        let of = |(audit, found, is_told): (&Audit<'_>, Found, bool)| {
            let (value, chance) = (100.0 * found.estimate.mean, 100.0 * found.floor);
            let models = audit.count("unlearned").min(audit.count("retrained"));
            let first = if is_told {
                format!(
                    "single samples tell its models from retrained ones: the likelihood ratio is right in {value:.0} %, by chance in {chance:.0} %"
                )
            } else {
                format!(
                    "single samples do not tell its models from retrained ones beyond chance, with {models} of each ({value:.0} %, by chance {chance:.0} %)"
                )
            };
            let forget = audit.count("forget");
            let apart = audit
                .found(TOLD)
                .map(|told| format!("One by one {:.0} of {forget} forget samples are told apart", told.estimate.mean * forget as f64));
            let nearer = audit.found(NEARER).map(|nearer| match 100.0 * nearer.estimate.mean {
                far if far > 50.0 => format!("Its models are nearer to the originals than to retraining ({far:.0} % of the way)"),
                way => format!("Of the way from retraining to the originals it is at {way:.0} %"),
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
             KLoM: median divergence of retrained from unlearned margins. quality: forgetting quality of the NeurIPS 2023 challenge. to original: 0 is as retraining, 100 as the original. \
             tug of war: 100 is best."
                .to_owned(),
            "The floor, in tables of text in parentheses, is what a score is where there is nothing to find: of RMIA, loss and tug of war that of retrained models, of the others that of the same \
             models dealt to both groups at random. Verdicts are corrected for the number of methods (Holm)."
                .to_owned(),
        ];
        let powerless = |audit: &Audit<'_>| {
            let silent = |tell: &Tell| audit.found(*tell).is_some_and(|found| found.probability > LEVEL);
            TELLS.into_iter().filter(silent).map(|tell| tell.heading.trim_end_matches(" %")).collect::<Vec<_>>()
        };
        for audit in self.0.iter().filter(|audit| !audit.model.forgets()) {
            let silent = powerless(audit);
            if !silent.is_empty() {
                notes.push(format!(
                    "Doing nothing (`{}`) cannot be told from retraining by {}: with this data and so many models {} nothing about forgetting.",
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
            let told: Vec<(&str, bool)> = audits.told().into_iter().map(|(audit, _, told)| (audit.method, told)).collect();
            assert_eq!(told, [("first", true), ("second", true), ("third", false)]);
        });
        of(&[("first", 0.6, 0.03), ("second", 0.58, 0.04)], |audits| assert!(audits.told().iter().all(|(_, _, told)| !told)));
        // As improbable, but in the other direction.
        of(&[("first", 0.4, 0.005)], |audits| assert!(!audits.told()[0].2));
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
