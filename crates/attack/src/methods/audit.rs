//! `attack/audit`: is what many unlearned models say to be told from what many retrained ones say? Scores of each sample's distribution over models, attacks on single models that
//! compare with models which never saw the sample, older attacks for comparison, and how far accuracies are apart.
//!
//! Beside each score stands its floor, what it is where there is nothing to be found: for scores of two groups that of the same models dealt anew to both, at random; for attacks on
//! single models that of retrained ones. Retrained models serve as references too, as none of them saw a forget or a test sample; they must not be those that are audited.

use std::collections::BTreeSet;

use dcu_artifact::{Array, Dataset, Digest, Holdout, Metrics, Predictions, Request};
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::attacks::{Scores, Strangers, alone, relative};
use crate::crowd::{Kernel, binned_divergences, class_shift, divergences, forgetting_quality, likelihood_ratio_attack, likelihood_ratios};
use crate::membership::{Comparison, FEWEST_PAIRS};
use crate::roc::Roc;
use crate::said::Said;
use crate::statistics::{Mean, Tested, discoveries, least_probability, mean, percentile, welch_test};

pub(crate) struct Audit;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Accuracies that are so far apart at most, as shares, count as equivalent.
    margin: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { margin: 0.02 }
    }
}

/// Fewer models than this on a side are no distribution, of which some are left out.
const FEWEST_MODELS: usize = 4;
/// Fewer other samples than this are no population for [`relative`].
const FEWEST_OTHERS: usize = 50;
/// Of the samples that are called told apart, this share may be wrong.
const FALSE_DISCOVERIES: f64 = 0.05;

impl Method for Audit {
    const NAME: &'static str = "audit";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str =
        "Whether many unlearned models are to be told from many retrained ones, by single samples and by all, each score beside its floor";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Dataset>("test"),
        Input::one::<Holdout>("holdout"),
        Input::one::<Request>("request"),
        Input::many::<Predictions>("unlearned"),
        Input::many::<Predictions>("retrained"),
        // Nearer to retraining or to these?
        Input { optional: true, ..Input::many::<Predictions>("originals") },
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Metrics>("metrics")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let fits = parameters.margin > 0.0 && parameters.margin < 1.0;
        Rejected::unless(fits, "margin", "`margin` must be a share between 0 and 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, test): (Dataset, Dataset) = (context.read("dataset")?, context.read("test")?);
        let (holdout, request): (Holdout, Request) = (context.read("holdout")?, context.read("request")?);
        let sets = Sets::new(&dataset, &test, &holdout, &request)?;
        let mut read = |name: &str| -> anyhow::Result<(Vec<Model>, Vec<Digest>)> {
            let predictions = context.read_many::<Predictions>(name)?;
            let models =
                predictions.iter().map(|(predictions, _)| sets.model(predictions, &dataset, &test)).collect::<anyhow::Result<_>>()?;
            Ok((models, predictions.into_iter().map(|(_, digest)| digest).collect()))
        };
        let (unlearned, of_unlearned) = read("unlearned")?;
        let (retrained, of_retrained) = read("retrained")?;
        let (originals, _) = read("originals")?;
        for (name, models) in [("unlearned", &unlearned), ("retrained", &retrained)] {
            if models.len() < FEWEST_MODELS {
                let message = format!("`{name}` has {} models; a distribution needs {FEWEST_MODELS} at least", models.len());
                return Err(Failure::new(message, "give more seeds").into());
            }
        }
        if of_unlearned.iter().any(|digest| of_retrained.contains(digest)) {
            let remedy = "audit a retraining against others, with another `replicate`";
            return Err(Failure::new("a model is among the unlearned and among the retrained ones that it is compared with", remedy).into());
        }
        context.progress().phase("scores");
        let crowd = Crowd { unlearned, retrained, originals, streams: Streams::new(0, "attack/audit") };
        let mut audited = Audited { metrics: Metrics::default(), sets: &sets, crowd: &crowd };
        audited.counts(&dataset);
        audited.single_samples();
        audited.attacks_on_models();
        audited.accuracies(parameters.margin);
        context.write("metrics", &audited.metrics)
    }
}

/// The samples that are looked at: rows of the training and the test set, with the labels under which they are.
struct Sets {
    forget: Compared,
    /// As many retained samples as forget ones, drawn at random; the attack must not find these any better than in a retraining either.
    retain: Compared,
    /// Unseen samples of neither comparison.
    population: Vec<usize>,
    /// Whole sets for the accuracies; those of classes of which nothing is retained are left out of `test`.
    all_retain: Vec<usize>,
    test: Vec<usize>,
    forget_ids: Vec<u64>,
    classes: usize,
}

/// Seen samples beside as many unseen ones of the same classes.
struct Compared {
    rows: Vec<usize>,
    labels: Vec<u32>,
    /// Places in `rows` of those that have an unseen one beside them.
    members: Vec<usize>,
    /// Rows of the test set.
    others: Vec<usize>,
    other_labels: Vec<u32>,
}

impl Compared {
    fn new(dataset: &Dataset, rows: Vec<usize>, test: &Dataset, unseen: &[usize], streams: &Streams) -> Self {
        let Comparison { members, others, other_labels } = Comparison::draw(dataset, &rows, test, unseen, streams);
        let members = members.iter().map(|member| rows.iter().position(|row| row == member).expect("it was drawn from these")).collect();
        Self { labels: rows.iter().map(|&row| dataset.labels[row]).collect(), rows, members, others, other_labels }
    }
}

impl Sets {
    fn new(dataset: &Dataset, test: &Dataset, holdout: &Holdout, request: &Request) -> anyhow::Result<Self> {
        let rows = |what: &str, set: &Dataset, ids: &[u64]| {
            let remedy = "audit with the data that holdout and request were made from";
            set.rows_of(ids).map_err(|id| Failure::new(format!("{what} sample {id} is not in the dataset"), remedy))
        };
        let streams = Streams::new(0, "attack/audit");
        let (forget, all_retain) = (rows("forget", dataset, &request.forget)?, rows("retain", dataset, &request.retain)?);
        let unseen = rows("test", test, &holdout.test)?;
        let retained: BTreeSet<u32> = all_retain.iter().map(|&row| dataset.labels[row]).collect();
        let mut some = all_retain.clone();
        streams.stream("retain").shuffle(&mut some);
        some.truncate(forget.len());
        let forget = Compared::new(dataset, forget, test, &unseen, &streams);
        let retain = Compared::new(dataset, some, test, &unseen, &streams.clone().replicate(2));
        let compared: BTreeSet<usize> = forget.others.iter().chain(&retain.others).copied().collect();
        Ok(Self {
            forget,
            retain,
            population: unseen.iter().copied().filter(|row| !compared.contains(row)).collect(),
            all_retain,
            test: unseen.into_iter().filter(|&row| retained.contains(&test.labels[row])).collect(),
            forget_ids: request.forget.clone(),
            classes: dataset.classes(),
        })
    }

    /// What a model says of all of them.
    fn model(&self, predictions: &Predictions, dataset: &Dataset, test: &Dataset) -> anyhow::Result<Model> {
        if predictions.ids != dataset.ids || predictions.test_ids != test.ids || predictions.classes() != dataset.classes() {
            let remedy = "make predictions, request and holdout from the same data";
            return Err(Failure::new("the predictions are of other data", remedy).into());
        }
        let (seen, unseen) = (&predictions.logits, &predictions.test_logits);
        let compared = |set: &Compared| Answers {
            seen: Said::of_rows(seen, &set.rows, &set.labels),
            unseen: Said::of_rows(unseen, &set.others, &set.other_labels),
        };
        let accuracy = |logits: &Array<f32>, rows: &[usize], set: &Dataset| {
            let labels: Vec<u32> = rows.iter().map(|&row| set.labels[row]).collect();
            let right = Said::of_rows(logits, rows, &labels).iter().zip(&labels).filter(|(said, label)| said.class == **label).count();
            right as f64 / rows.len() as f64
        };
        let labels: Vec<u32> = self.population.iter().map(|&row| test.labels[row]).collect();
        Ok(Model {
            forget: compared(&self.forget),
            retain: compared(&self.retain),
            population: Said::of_rows(unseen, &self.population, &labels),
            accuracies: [
                accuracy(seen, &self.forget.rows, dataset),
                accuracy(seen, &self.all_retain, dataset),
                accuracy(unseen, &self.test, test),
            ],
        })
    }
}

/// What a model says of seen samples, and of unseen ones beside them.
struct Answers {
    seen: Vec<Said>,
    unseen: Vec<Said>,
}

struct Model {
    forget: Answers,
    retain: Answers,
    population: Vec<Said>,
    /// On forget, retain and test samples; NaN of none.
    accuracies: [f64; 3],
}

struct Crowd {
    unlearned: Vec<Model>,
    retrained: Vec<Model>,
    originals: Vec<Model>,
    streams: Streams,
}

impl Crowd {
    /// Margins of samples over unlearned, retrained and original models, in this order.
    fn margins(&self, of: fn(&Model) -> &Answers) -> Vec<Vec<f64>> {
        let models = self.unlearned.iter().chain(&self.retrained).chain(&self.originals);
        models.map(|model| of(model).seen.iter().map(|said| said.margin).collect()).collect()
    }

    fn tested(&self, statistic: impl Fn(&[usize], &[usize]) -> f64 + Sync) -> Tested {
        Tested::new(self.unlearned.len(), self.retrained.len(), &self.streams, statistic)
    }

    /// The retrained models that never saw anything of what this one is asked: all of them, but itself where it is one of them.
    fn strangers(&self, which: Option<usize>, answers: impl Fn(&Model) -> &[Said]) -> Strangers {
        let others = self.retrained.iter().enumerate().filter(|(place, _)| Some(*place) != which).map(|(_, model)| answers(model));
        Strangers::new(&others.collect::<Vec<_>>())
    }
}

/// An attack on one model: scores of members and of others.
type Attacked = (Scores, Scores);

struct Audited<'a> {
    metrics: Metrics,
    sets: &'a Sets,
    crowd: &'a Crowd,
}

impl Audited<'_> {
    fn counts(&mut self, dataset: &Dataset) {
        let Self { metrics, sets, crowd } = self;
        metrics.facts.insert(
            "counts".into(),
            json!({
                "unlearned": crowd.unlearned.len(), "retrained": crowd.retrained.len(), "originals": crowd.originals.len(),
                "forget": sets.forget.rows.len(), "pairs": sets.forget.others.len(), "population": sets.population.len(),
            }),
        );
        // No verdict by dealing models anew can be surer than this.
        metrics.facts.insert("least_probability".into(), json!(least_probability(crowd.unlearned.len(), crowd.retrained.len())));
        metrics.facts.insert("class_names".into(), json!(dataset.facts.class_names));
        metrics.ids.insert("forget_ids".into(), sets.forget_ids.clone());
    }

    /// A score of two groups of models.
    fn tested(&mut self, name: &str, tested: Tested, unit: &str, definition: &str) {
        let Tested { value, interval, floor, probability } = tested;
        self.score(name, value, interval, unit, &format!("{definition}; interval by leaving out one model after the other"));
        let dealt = format!("mean of {name} where the same models are dealt to both groups at random");
        self.metrics.scalar(&format!("{name}_floor"), floor, unit, &dealt);
        let how = format!("share of such deals whose {name} is as far from alike, itself counted with them");
        self.metrics.scalar(&format!("{name}_p"), probability, "probability", &how);
    }

    fn score(&mut self, name: &str, value: f64, (low, high): (f64, f64), unit: &str, definition: &str) {
        // A symmetric interval of a share can reach beyond what shares are.
        let (low, high) = if unit == "fraction" { (low.max(0.0), high.min(1.0)) } else { (low, high) };
        self.metrics.scalar(name, value, unit, definition);
        self.metrics.scalar(&format!("{name}_low"), low, unit, &format!("lower end of the 95 % interval of {name}"));
        self.metrics.scalar(&format!("{name}_high"), high, unit, &format!("upper end of the 95 % interval of {name}"));
    }

    /// Whether the distribution over models of what is said of a sample is the same.
    fn single_samples(&mut self) {
        let (crowd, sets) = (self.crowd, self.sets);
        let (forget, retain) = (crowd.margins(|model| &model.forget), crowd.margins(|model| &model.retain));
        let margins: Vec<&[f64]> = forget.iter().map(Vec::as_slice).collect();
        let groups = [crowd.unlearned.len(), crowd.retrained.len(), crowd.originals.len()];
        let unlearned: Vec<usize> = (0..groups[0]).collect();
        let retrained: Vec<usize> = (groups[0]..groups[0] + groups[1]).collect();

        let attack = "how often the likelihood ratio of a sample's margin, under normal distributions over the other models of both kinds, tells an unlearned from a retrained model, mean \
                      over samples and both kinds (U-LiRA); its floor is chance";
        let of_forget = crowd.tested(|own, other| likelihood_ratio_attack(&margins, own, other));
        self.tested("likelihood_ratio_attack", of_forget, "fraction", &format!("of forget samples: {attack}"));
        if sets.retain.rows.is_empty() {
            self.absent("likelihood_ratio_retain_attack", "no sample is retained");
        } else {
            let margins: Vec<&[f64]> = retain.iter().map(Vec::as_slice).collect();
            let of_retain = crowd.tested(|own, other| likelihood_ratio_attack(&margins, own, other));
            self.tested("likelihood_ratio_retain_attack", of_retain, "fraction", &format!("of as many retain samples: {attack}"));
        }
        let (ratios, others) = likelihood_ratios(&margins, &unlearned, &retrained);
        let roc = Roc::new(&ratios, &others);
        for (name, rate, words) in RATES {
            let name = format!("likelihood_ratio_tpr_{name}");
            // Of one model less, too, for the interval.
            let resolves = (retrained.len() - 1) as f64 * sets.forget.rows.len() as f64 * rate >= 1.0;
            match roc.at(rate).filter(|_| resolves) {
                Some(_) => {
                    let tested = crowd.tested(|own, other| {
                        let (ratios, others) = likelihood_ratios(&margins, own, other);
                        Roc::new(&ratios, &others).at(rate).unwrap_or(0.0)
                    });
                    let definition = format!(
                        "share of (unlearned model, forget sample) that the likelihood ratio finds, at the threshold that {words} of (retrained model, forget sample) exceed"
                    );
                    self.tested(&name, tested, "fraction", &definition);
                }
                None => {
                    self.absent(&name, &format!("{} pairs of a retrained model and a sample are too few to show {words}", others.len()))
                }
            }
        }
        self.roc("likelihood_ratio_roc", &[roc], "the likelihood ratio of forget samples, all models together");

        type Divergences = fn(&[&[f64]], &[usize], &[usize]) -> Vec<f64>;
        let normal = "as normal distributions of a deviation of 0.3 at least";
        let binned = "as histograms of 20 bins from the least to the largest, where an empty bin holds 1e-5";
        for (name, of, share, words, how) in [
            ("klom_median", divergences as Divergences, 0.5, "median", normal),
            ("klom_95", divergences, 0.95, "95th percentile", normal),
            ("klom_binned_95", binned_divergences, 0.95, "95th percentile", binned),
        ] {
            let tested = crowd.tested(|own, other| percentile(&of(&margins, own, other), share));
            let definition = format!(
                "{words} over the forget samples of the Kullback-Leibler divergence of retrained from unlearned margins, {how}; less its floor, 0 where they are alike"
            );
            self.tested(name, tested, "nat", &definition);
        }
        let Tested { value, interval: (low, high), floor, probability } =
            crowd.tested(|own, other| -forgetting_quality(&margins, own, other));
        let quality = Tested { value: -value, interval: (-high, -low), floor: -floor, probability };
        let definition = "forgetting quality of the NeurIPS 2023 challenge, from 0 to 1: mean over the forget samples of 2^-b for the best attacker's epsilon in the b-th bucket of 0.5; alike \
                          models have its floor, not 1";
        self.tested("forgetting_quality", quality, "score", definition);

        let classes: Vec<Vec<u32>> = crowd.unlearned.iter().chain(&crowd.retrained).map(classes_of).collect();
        let classes: Vec<&[u32]> = classes.iter().map(Vec::as_slice).collect();
        let shift = crowd.tested(|own, other| class_shift(&classes, &sets.forget.labels, sets.classes, own, other));
        let definition = "how differently unlearned and retrained models divide the forget samples of a class among the classes that they predict: total variation, mean over classes";
        self.tested("class_shift", shift, "fraction", definition);

        // Each is as wide as the distances between the models that it compares.
        let (kernel, with_originals) = (Kernel::new(&margins[..groups[0] + groups[1]]), Kernel::new(&margins));
        let discrepancy = crowd.tested(|own, other| kernel.discrepancy(own, other));
        let definition = "squared maximum mean discrepancy of the margins of all forget samples, models being points, by a Gaussian kernel as wide as the median distance between two of these models; 0 where they are alike";
        self.tested("discrepancy", discrepancy, "score", definition);
        if groups[2] < FEWEST_MODELS {
            self.absent("nearer_to_original", &format!("it needs {FEWEST_MODELS} models or more at the input `originals`"));
        } else {
            let originals: Vec<usize> = (groups[0] + groups[1]..groups.iter().sum()).collect();
            let position = crowd.tested(|own, other| with_originals.position(own, other, &originals));
            let definition = "discrepancy from retrained models as a share of that from retrained and that from original ones; 0 where unlearned models are as retrained ones, 1 as originals";
            self.tested("nearer_to_original", position, "fraction", definition);
        }
        self.each_sample(&margins, &unlearned, &retrained);
    }

    /// Which of the samples are told apart, and by how much.
    fn each_sample(&mut self, margins: &[&[f64]], unlearned: &[usize], retrained: &[usize]) {
        let count = self.sets.forget.rows.len();
        let of = |models: &[usize], sample: usize| models.iter().map(|&model| margins[model][sample]).collect::<Vec<f64>>();
        let probabilities = |own: &[usize], other: &[usize]| -> Vec<f64> {
            (0..count).map(|sample| welch_test(&of(own, sample), &of(other, sample))).collect()
        };
        let told = |own: &[usize], other: &[usize]| {
            let found = discoveries(&probabilities(own, other), FALSE_DISCOVERIES);
            found.iter().filter(|found| **found).count() as f64 / count as f64
        };
        let tested = self.crowd.tested(told);
        let definition = "share of the forget samples whose mean margin is another over unlearned than over retrained models (Welch's test, at a false discovery rate of 5 %)";
        self.tested("told_samples", tested, "fraction", definition);
        let values = probabilities(unlearned, retrained);
        self.metrics.array(
            "p_by_sample",
            Array::vector(values),
            "probability",
            "of Welch's test of each forget sample's margin; ids in `forget_ids`",
        );
        let shifts = (0..count).map(|sample| mean(&of(unlearned, sample)) - mean(&of(retrained, sample))).collect();
        let definition = "mean margin of each forget sample over unlearned less that over retrained models; ids in `forget_ids`";
        self.metrics.array("shift_by_sample", Array::vector(shifts), "nat", definition);
        let divergences = divergences(margins, unlearned, retrained);
        let definition = "divergence of each forget sample, of which klom_median is the median; ids in `forget_ids`";
        self.metrics.array("klom_by_sample", Array::vector(divergences), "nat", definition);
    }

    /// Attacks on one model after the other. What they are on retrained models is their floor.
    fn attacks_on_models(&mut self) {
        let sets = self.sets;
        let of_older = [
            ("loss", "by the loss", (|said: &Said| -said.loss()) as fn(&Said) -> f64),
            ("entropy", "by the entropy of what the model says", |said| -said.entropy),
            ("confidence", "by the largest probability", |said| said.confidence),
        ];
        let rmia = "by how much more probable their label is than to models that never saw them, beside other samples (RMIA, offline, a = 0.3, gamma = 1)";
        let lira = "by the deviations of their margin above that of models which never saw them (LiRA, offline)";
        if sets.forget.others.len() < FEWEST_PAIRS {
            let reason = format!(
                "{} pairs of a forget sample and an unseen one of its class are too few; {FEWEST_PAIRS} are needed",
                sets.forget.others.len()
            );
            ["rmia_auc", "lira_auc", "loss_auc", "entropy_auc", "confidence_auc"].iter().for_each(|name| self.absent(name, &reason));
            return;
        }
        if sets.population.len() < FEWEST_OTHERS {
            let reason = format!("{} test samples are left as a population; {FEWEST_OTHERS} are needed", sets.population.len());
            self.absent("rmia_auc", &reason);
        } else {
            self.attack("rmia", &format!("forget samples, {rmia}"), |model, which, crowd| {
                let population = crowd.strangers(which, |model| &model.population).ratios(&model.population);
                let seen = crowd.strangers(which, |model| &model.forget.seen).ratios(&model.forget.seen);
                let unseen = crowd.strangers(which, |model| &model.forget.unseen).ratios(&model.forget.unseen);
                (relative(&picked(&seen, &sets.forget.members), &population), relative(&unseen, &population))
            });
        }
        self.attack("lira", &format!("forget samples, {lira}"), |model, which, crowd| {
            let (seen, unseen) = (crowd.strangers(which, |model| &model.forget.seen), crowd.strangers(which, |model| &model.forget.unseen));
            (picked(&seen.likelihood(&model.forget.seen), &sets.forget.members), unseen.likelihood(&model.forget.unseen))
        });
        for (name, words, score) in of_older {
            self.attack(name, &format!("forget samples, {words} alone"), |model, _, _| {
                (picked(&alone(&model.forget.seen, score), &sets.forget.members), alone(&model.forget.unseen, score))
            });
        }
        if sets.retain.others.len() < FEWEST_PAIRS {
            self.absent("loss_retain_auc", "there are too few retain samples with an unseen one of their class");
        } else {
            let (_, words, score) = of_older[0];
            self.attack("loss_retain", &format!("retain samples, {words} alone, which is right where they are members"), |model, _, _| {
                (picked(&alone(&model.retain.seen, score), &sets.retain.members), alone(&model.retain.unseen, score))
            });
        }
        let pairs = sets.forget.others.len();
        let definition =
            "half the range in which 95 % of the areas under the curve lie, around 0.5, where members and others are labelled at random";
        self.metrics.scalar("auc_noise", Roc::noise(pairs, pairs), "fraction", definition);
    }

    fn attack(&mut self, name: &str, whom: &str, attack: impl Fn(&Model, Option<usize>, &Crowd) -> Attacked + Sync) {
        let crowd = self.crowd;
        let curve = |(members, others): Attacked| Roc::new(&members, &others);
        let unlearned: Vec<Roc> = crowd.unlearned.par_iter().map(|model| curve(attack(model, None, crowd))).collect();
        let retrained: Vec<Roc> =
            crowd.retrained.par_iter().enumerate().map(|(place, model)| curve(attack(model, Some(place), crowd))).collect();
        let definition = format!(
            "area under the curve of an attack that tells {whom}, from unseen samples of the same classes, mean over unlearned models; 0.5 is chance"
        );
        let areas = |curves: &[Roc]| Some(curves.iter().map(Roc::area).collect::<Vec<_>>());
        self.of_models(&format!("{name}_auc"), areas(&unlearned).zip(areas(&retrained)), &definition, "");
        for (suffix, rate, words) in RATES {
            let rates = |curves: &[Roc]| curves.iter().map(|curve| curve.at(rate)).collect::<Option<Vec<f64>>>();
            let definition = format!(
                "share of members that this attack finds where it takes {words} of the others for members, mean over unlearned models: {whom}"
            );
            let reason = format!("{} unseen samples are too few to show {words}", self.sets.forget.others.len());
            self.of_models(&format!("{name}_tpr_{suffix}"), rates(&unlearned).zip(rates(&retrained)), &definition, &reason);
        }
        self.roc(&format!("{name}_roc"), &unlearned, &format!("this attack, mean over unlearned models: {whom}"));
    }

    /// A score of one model, over the unlearned and over the retrained ones.
    fn of_models(&mut self, name: &str, values: Option<(Vec<f64>, Vec<f64>)>, definition: &str, reason: &str) {
        let Some((unlearned, retrained)) = values else { return self.absent(name, reason) };
        let own = Mean::of(&unlearned);
        self.score(
            name,
            own.value,
            own.interval(),
            "fraction",
            &format!("{definition}; interval over the unlearned models, references as they are"),
        );
        self.metrics.scalar(
            &format!("{name}_floor"),
            mean(&retrained),
            "fraction",
            &format!("mean {name} over retrained models, each beside the others"),
        );
        let how = format!(
            "probability of so different means of {name} over unlearned and over retrained models, were there no difference (Welch's test)"
        );
        self.metrics.scalar(&format!("{name}_p"), welch_test(&unlearned, &retrained), "probability", &how);
    }

    /// True positive rates at false positive rates from 0.1 % to 1, in equal steps of their logarithm, as far as so many others can show them.
    fn roc(&mut self, name: &str, curves: &[Roc], what: &str) {
        let rates = (0..=ROC_STEPS).map(|step| 10.0_f64.powf(-3.0 + 3.0 * step as f64 / ROC_STEPS as f64));
        let point = |rate: f64| Some([rate, mean(&curves.iter().map(|curve| curve.at(rate)).collect::<Option<Vec<f64>>>()?)]);
        let points: Vec<f64> = rates.filter_map(point).flatten().collect();
        let definition = format!("false and true positive rate of {what}, [points, 2]");
        self.metrics.array(name, Array::new(vec![points.len() / 2, 2], points), "fraction", &definition);
    }

    /// How far accuracies are apart, pair by pair where there are as many models of both kinds.
    fn accuracies(&mut self, margin: f64) {
        let crowd = self.crowd;
        let of = |models: &[Model], which: usize| models.iter().map(|model| model.accuracies[which]).collect::<Vec<f64>>();
        let names = ["forget", "retain", "test"];
        for (which, name) in names.into_iter().enumerate() {
            let (own, other) = (of(&crowd.unlearned, which), of(&crowd.retrained, which));
            let name = format!("{name}_gap");
            if own[0].is_nan() {
                self.absent(&name, "there is no such sample");
                continue;
            }
            let gap = Mean::of_difference(&own, &other);
            let paired = if own.len() == other.len() { "pair by pair" } else { "by Welch's rule" };
            self.score(
                &name,
                gap.value,
                gap.interval(),
                "difference of fractions",
                &format!("accuracy of unlearned less that of retrained models, {paired}"),
            );
            if gap.is_rigid() {
                self.absent(&format!("{name}_equivalence_p"), "all models agree, which says nothing of how they vary");
                continue;
            }
            let how = format!(
                "probability of a {name} as near to 0 where it is {margin} or more in truth, on either side (two one-sided tests): below 0.05 both are equivalent"
            );
            self.metrics.scalar(&format!("{name}_equivalence_p"), gap.equivalence(margin), "probability", &how);
        }
        let present: Vec<usize> = (0..names.len()).filter(|&which| !crowd.retrained[0].accuracies[which].is_nan()).collect();
        let beside = |own: &Model, others: &[f64; 3]| {
            present.iter().map(|&which| 1.0 - (own.accuracies[which] - others[which]).abs()).product::<f64>()
        };
        let means = |without: Option<usize>| -> [f64; 3] {
            std::array::from_fn(|which| {
                let others = of(&crowd.retrained, which).into_iter().enumerate().filter(|(place, _)| Some(*place) != without);
                mean(&others.map(|(_, value)| value).collect::<Vec<_>>())
            })
        };
        let all = means(None);
        let own: Vec<f64> = crowd.unlearned.iter().map(|model| beside(model, &all)).collect();
        let retrained = crowd.retrained.iter().enumerate().map(|(place, model)| beside(model, &means(Some(place)))).collect();
        let definition = "tug of war: product over forget, retain and test samples of 1 - |accuracy less the mean of retrained models|, mean over unlearned models; 1 is best";
        self.of_models("tug_of_war", Some((own, retrained)), definition, "");
    }

    fn absent(&mut self, name: &str, reason: &str) {
        self.metrics.absent.insert(name.to_owned(), reason.to_owned());
    }
}

/// False positive rates at which attacks are given: the end of a name, the rate and its words.
const RATES: [(&str, f64, &str); 2] = [("1", 0.01, "1 %"), ("01", 0.001, "0.1 %")];
const ROC_STEPS: usize = 60;

fn classes_of(model: &Model) -> Vec<u32> {
    model.forget.seen.iter().map(|said| said.class).collect()
}

fn picked(scores: &[f64], places: &[usize]) -> Scores {
    places.iter().map(|&place| scores[place]).collect()
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation, RequestFacts};

    use super::*;

    const CLASSES: usize = 4;
    const FORGET_SET: usize = 300;
    const TRAINING_SET: usize = 1200;
    const TEST_SET: usize = 2000;

    fn dataset(count: usize, first: u64) -> Dataset {
        Dataset {
            images: Array::new(vec![count, 1, 1, 1], vec![0; count]),
            labels: (0..count as u32).map(|sample| sample % CLASSES as u32).collect(),
            original_labels: None,
            ids: (first..).take(count).collect(),
            facts: DatasetFacts {
                source: "test".into(),
                class_names: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
                normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
                names: None,
            },
        }
    }

    /// Predictions of a model that is surer of what it was trained on: the first samples are forgotten, the others retained. `more` is added to the margin of a forget sample.
    fn model(name: &str, number: u64, more: impl Fn(usize, f64) -> f64) -> Predictions {
        let streams = Streams::new(7, "test");
        let said = |first: u64, count: usize, margin: &dyn Fn(usize, f64) -> f64| {
            let (mut usual, mut own) = (streams.indexed("samples", first), streams.indexed(name, 2 * number + u64::from(first > 0)));
            let mut logits = Vec::with_capacity(count * CLASSES);
            for sample in 0..count {
                let value = margin(sample, 1.0 + 2.0 * f64::from(usual.normal()) + f64::from(own.normal()));
                logits.extend((0..CLASSES).map(|class| if class == sample % CLASSES { value as f32 } else { own.uniform() }));
            }
            Array::new(vec![count, CLASSES], logits)
        };
        let seen = |sample: usize, margin: f64| if sample < FORGET_SET { more(sample, margin) } else { margin + 4.0 };
        Predictions {
            ids: (0..TRAINING_SET as u64).collect(),
            logits: said(0, TRAINING_SET, &seen),
            test_ids: (5000..5000 + TEST_SET as u64).collect(),
            test_logits: said(5000, TEST_SET, &|_, margin| margin),
        }
    }

    fn audited(unlearned: &[Predictions]) -> Metrics {
        let (dataset, test) = (dataset(TRAINING_SET, 0), dataset(TEST_SET, 5000));
        let request = Request {
            forget: (0..FORGET_SET as u64).collect(),
            retain: (FORGET_SET as u64..TRAINING_SET as u64).collect(),
            earlier: Vec::new(),
            facts: RequestFacts { scenario: "random".into(), classes: Vec::new(), cumulative: false },
        };
        let holdout = Holdout { train: request.retain.clone(), remembrance: vec![], validation: vec![], test: test.ids.clone() };
        let sets = Sets::new(&dataset, &test, &holdout, &request).unwrap();
        let models = |of: &[Predictions]| of.iter().map(|said| sets.model(said, &dataset, &test).unwrap()).collect::<Vec<_>>();
        let retrained: Vec<Predictions> = (0..12).map(|number| model("retrained", number, |_, margin| margin)).collect();
        let originals: Vec<Predictions> = (0..12).map(|number| model("original", number, |_, margin| margin + 4.0)).collect();
        let crowd = Crowd {
            unlearned: models(unlearned),
            retrained: models(&retrained),
            originals: models(&originals),
            streams: Streams::new(0, "attack/audit"),
        };
        let mut audited = Audited { metrics: Metrics::default(), sets: &sets, crowd: &crowd };
        audited.counts(&dataset);
        audited.single_samples();
        audited.attacks_on_models();
        audited.accuracies(0.02);
        audited.metrics
    }

    fn unlearned(name: &str, more: impl Fn(usize, f64) -> f64) -> Metrics {
        audited(&(0..12).map(|number| model(name, number, &more)).collect::<Vec<_>>())
    }

    const ATTACKS: [&str; 5] = ["rmia_auc", "lira_auc", "loss_auc", "entropy_auc", "confidence_auc"];

    #[test]
    fn a_retraining_that_was_held_out_passes() {
        let metrics = unlearned("held out", |_, margin| margin);
        let value = |name: &str| metrics.scalars[name];
        for score in [
            "likelihood_ratio_attack",
            "klom_median",
            "klom_95",
            "klom_binned_95",
            "forgetting_quality",
            "class_shift",
            "discrepancy",
            "told_samples",
        ] {
            assert!(value(&format!("{score}_p")) > 0.05, "{score}: {}", value(&format!("{score}_p")));
            let (low, high, floor) = (value(&format!("{score}_low")), value(&format!("{score}_high")), value(&format!("{score}_floor")));
            assert!(low - 0.02 <= floor && floor <= high + 0.02, "{score}: {floor} is not from {low} to {high}");
        }
        for attack in ATTACKS {
            assert!((value(attack) - 0.5).abs() < 0.06 && value(&format!("{attack}_p")) > 0.05, "{attack}: {}", value(attack));
        }
        assert!(value("nearer_to_original") < 0.2, "{}", value("nearer_to_original"));
        for gap in ["retain_gap", "test_gap"] {
            assert!(value(&format!("{gap}_equivalence_p")) < 0.05, "{gap}");
        }
        assert!(value("forget_gap_low") < 0.0 && value("forget_gap_high") > 0.0);
        assert!(value("tug_of_war") > 0.95);
    }

    #[test]
    fn doing_nothing_fails_everywhere() {
        let metrics = unlearned("original", |_, margin| margin + 4.0);
        let value = |name: &str| metrics.scalars[name];
        assert!(value("likelihood_ratio_attack") > 0.9 && value("likelihood_ratio_attack_p") < 0.01);
        assert!(
            value("klom_median") - value("klom_median_floor") > 3.0
                && value("forgetting_quality") < 0.5 * value("forgetting_quality_floor")
        );
        assert!(value("told_samples") > 0.9 && value("nearer_to_original") > 0.9 && value("forget_gap") > 0.1);
        for attack in ATTACKS {
            assert!(value(attack) > 0.6 && value(&format!("{attack}_p")) < 0.001, "{attack}: {}", value(attack));
        }
        // Retain samples are as they were.
        assert!(value("likelihood_ratio_retain_attack_p") > 0.05 && value("loss_retain_auc_p") > 0.05);
    }

    #[test]
    fn a_constant_and_a_random_model_fail() {
        for (name, of) in [("constant", (|_, _| 0.0) as fn(usize, f64) -> f64), ("random", |_, _| 0.5)] {
            let predictions: Vec<Predictions> = (0..12)
                .map(|number| {
                    let mut said = model(name, number, of);
                    let mut stream = Streams::new(9, "test").indexed(name, number);
                    for logit in said.logits.data.iter_mut().chain(&mut said.test_logits.data) {
                        *logit = if name == "constant" { 0.0 } else { stream.normal() };
                    }
                    said
                })
                .collect();
            let metrics = audited(&predictions);
            let value = |name: &str| metrics.scalars[name];
            assert!(value("klom_95") > value("klom_95_floor") + 1.0 && value("klom_95_p") < 0.01, "{name}: {}", value("klom_95"));
            assert!(value("tug_of_war") < 0.5 && value("tug_of_war_floor") > 0.95, "{name}: {}", value("tug_of_war"));
            assert!(value("retain_gap_equivalence_p") > 0.99);
        }
    }

    #[test]
    fn a_leak_of_ten_samples_is_seen_by_what_looks_at_samples_alone() {
        let metrics = unlearned("leak", |sample, margin| if sample % 30 == 0 { margin + 4.0 } else { margin });
        let value = |name: &str| metrics.scalars[name];
        assert!(value("told_samples_p") < 0.01 && value("told_samples") >= 10.0 / 300.0, "{}", value("told_samples"));
        let leaking: Vec<f64> = metrics.arrays["p_by_sample"].data.iter().copied().step_by(30).collect();
        assert!(leaking.iter().all(|probability| *probability < 1e-3), "{leaking:?}");
        // One model gives none of them away.
        for attack in ATTACKS {
            assert!((value(attack) - 0.5).abs() < value("auc_noise"), "{attack}: {}", value(attack));
        }
    }
}
