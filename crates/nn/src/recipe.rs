//! Recipes: how a network is trained from scratch, as a fact of the model, so that retraining repeats it.
//!
//! What came after the first recipes is left out of a recipe's JSON where it has its default, so that a model which does without has the facts that it
//! always had.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::augment::{Augmentation, Border, Flip};
use crate::optimiser::Rule;

/// An update rule by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimiserName {
    /// Adam with betas 0.9 and 0.999.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Momentum that is made orthogonal for each layer's weights (Muon); the other parameters go by Nesterov's momentum at a tenth of the rate. Without decay.
    Muon,
}

/// How the learning rate changes over the training, behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It does not.
    Constant,
    /// From the given rate to 0 along half a cosine.
    Cosine,
    /// Multiplied with `gamma` at each of the `milestones`.
    Steps,
    /// From `cycle_start` of the given rate up to it and down to `cycle_end` of it, along half a cosine each, as PyTorch's OneCycleLR; momentum stays.
    OneCycle,
    /// The same along straight lines.
    Triangular,
}

/// How often the learning rate is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// Once in each epoch.
    #[default]
    Epoch,
    /// Before each step.
    Step,
}

/// Which parameters weight decay acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// All.
    #[default]
    All,
    /// The weights of convolutions and linear layers; neither biases nor normalisations.
    Weights,
}

/// Which epoch's weights a training ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those of the last.
    #[default]
    Last,
    /// Those of the epoch that is best on the validation samples; the first of equals.
    Best,
}

/// What is best on the validation samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Watch {
    /// The highest accuracy.
    #[default]
    Accuracy,
    /// The lowest mean cross-entropy.
    Loss,
}

/// A recipe by name, from which others differ in some fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The paper's (arXiv 2402.00195): Adam at a constant rate.
    #[default]
    Paper,
    /// Much accuracy in little time: Nesterov's momentum, a one-cycle schedule, augmentation and label smoothing.
    Quick,
}

impl Preset {
    /// All presets with their names.
    pub const ALL: [(&'static str, Self); 2] = [("paper", Self::Paper), ("quick", Self::Quick)];

    /// The recipe of this name.
    #[must_use]
    pub fn recipe(self) -> Recipe {
        let paper = Recipe {
            epochs: 30,
            batch: 256,
            lr: 1e-3,
            optimiser: OptimiserName::Adam,
            momentum: 0.9,
            weight_decay: 0.0,
            schedule: Schedule::Constant,
            nesterov: false,
            decay: Decay::All,
            clip: 0.0,
            smoothing: 0.0,
            per: Per::Epoch,
            warmup: 0.0,
            milestones: Vec::new(),
            gamma: gamma(),
            cycle_peak: cycle_peak(),
            cycle_start: cycle_start(),
            cycle_end: cycle_end(),
            flip: Flip::None,
            crop: 0,
            border: Border::Zero,
            cutout: 0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            patience: 0,
            keep: Keep::Last,
            watch: Watch::Accuracy,
            ema: 0.0,
            average_last: 0,
        };
        match self {
            Self::Paper => paper,
            Self::Quick => Recipe {
                epochs: 16,
                lr: 0.1,
                optimiser: OptimiserName::Sgd,
                nesterov: true,
                weight_decay: 5e-4,
                decay: Decay::Weights,
                schedule: Schedule::Triangular,
                per: Per::Step,
                cycle_peak: 0.25,
                cycle_start: 0.2,
                cycle_end: 0.01,
                smoothing: 0.1,
                flip: Flip::Alternating,
                crop: 2,
                border: Border::Reflect,
                ..paper
            },
        }
    }
}

/// Defaults other than zero, and whether a field has its own.
macro_rules! defaults {
    ($($field:ident, $is_default:ident = $value:expr;)*) => { $(
        fn $field() -> f64 {
            $value
        }

        fn $is_default(value: &f64) -> bool {
            *value == $value
        }
    )* };
}

defaults! {
    gamma, is_usual_gamma = 0.1;
    cycle_peak, is_usual_peak = 0.3;
    cycle_start, is_usual_start = 0.04;
    cycle_end, is_usual_end = 4e-6;
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How a network is trained from scratch. Where a number says how much of something there is, 0 is none of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Passes over the training set.
    pub epochs: usize,
    /// Samples in a batch; the last, smaller batch counts too.
    pub batch: usize,
    /// The learning rate; the largest one, where warm-up or schedule change it.
    pub lr: f64,
    /// The update rule.
    pub optimiser: OptimiserName,
    /// How much of the last step SGD keeps.
    pub momentum: f64,
    /// Weight decay: added to the gradient, times the parameter; with `adamw` taken from the parameter, times the rate.
    pub weight_decay: f64,
    /// How the learning rate changes over the training, behind the warm-up.
    pub schedule: Schedule,
    /// Whether SGD's momentum is Nesterov's, which looks ahead.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nesterov: bool,
    /// Which parameters weight decay acts on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub decay: Decay,
    /// The largest norm of all gradients of a step together, to which larger ones are scaled; 0: any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clip: f64,
    /// Label smoothing: the share of a label that is spread evenly over all classes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub smoothing: f64,
    /// How often the learning rate is set.
    #[serde(default, skip_serializing_if = "is_default")]
    pub per: Per,
    /// Epochs (2.5 is two and a half) in which the rate rises evenly to `lr`, before the schedule begins; it has the epochs that are left. In epoch (or
    /// step) i of w, counted from 1, it is i / (w + 1) of `lr`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub warmup: f64,
    /// The epochs before which the schedule `steps` multiplies the rate, counted from the beginning of the training; rising.
    #[serde(default, skip_serializing_if = "is_default")]
    pub milestones: Vec<f64>,
    /// What the schedule `steps` multiplies the rate with.
    #[serde(default = "gamma", skip_serializing_if = "is_usual_gamma")]
    pub gamma: f64,
    /// The share of the training after which the rate of `one-cycle` or `triangular` is largest.
    #[serde(default = "cycle_peak", skip_serializing_if = "is_usual_peak")]
    pub cycle_peak: f64,
    /// Where their rate begins, as a share of `lr`.
    #[serde(default = "cycle_start", skip_serializing_if = "is_usual_start")]
    pub cycle_start: f64,
    /// Where their rate ends, as a share of `lr`.
    #[serde(default = "cycle_end", skip_serializing_if = "is_usual_end")]
    pub cycle_end: f64,
    /// Which images are mirrored, left to right.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flip: Flip,
    /// Pixels at most by which an image is moved, up or down and left or right (a random crop of the image with so wide a border).
    #[serde(default, skip_serializing_if = "is_default")]
    pub crop: usize,
    /// What lies beyond the border of an image that is moved.
    #[serde(default, skip_serializing_if = "is_default")]
    pub border: Border,
    /// The side of a square around a random pixel that is set to the mean colour.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cutout: usize,
    /// What is added to an image at most, in standard deviations of the data.
    #[serde(default, skip_serializing_if = "is_default")]
    pub brightness: f64,
    /// How much an image's distance from its mean is stretched or shrunk at most, as a share of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub contrast: f64,
    /// How much each pixel's distance from its grey is stretched or shrunk at most, as a share of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub saturation: f64,
    /// Epochs without a better result on the validation samples after which training stops; 0: never.
    #[serde(default, skip_serializing_if = "is_default")]
    pub patience: usize,
    /// Which epoch's weights the training ends with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep: Keep,
    /// What is best on the validation samples.
    #[serde(default, skip_serializing_if = "is_default")]
    pub watch: Watch,
    /// The decay, per step, of a moving average of weights and running averages, with which the training ends: at most (1 + n) / (10 + n) after n
    /// steps, so that a short training forgets its beginning too; 0: no average.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ema: f64,
    /// Of how many of the last epochs the weights are averaged at the end, each as much as the others; the averages of batch normalisation are then
    /// computed anew. 0: no average.
    #[serde(default, skip_serializing_if = "is_default")]
    pub average_last: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Preset::default().recipe()
    }
}

impl Recipe {
    /// The update rule with its numbers.
    #[must_use]
    pub fn rule(&self) -> Rule {
        let (momentum, weight_decay) = (self.momentum, self.weight_decay);
        match self.optimiser {
            OptimiserName::Adam => Rule::Adam { weight_decay },
            OptimiserName::Adamw => Rule::AdamW { weight_decay },
            OptimiserName::Sgd if self.nesterov => Rule::Nesterov { momentum, weight_decay },
            OptimiserName::Sgd => Rule::Sgd { momentum, weight_decay },
            OptimiserName::Muon => Rule::Muon { momentum, others: 0.1 },
        }
    }

    /// The learning rate of a step of an epoch that has `steps`, both counted from 0.
    #[must_use]
    pub fn rate(&self, epoch: usize, step: usize, steps: usize) -> f64 {
        // Time goes in epochs, or in steps.
        let (now, unit) = match self.per {
            Per::Epoch => (epoch as f64, 1.0),
            Per::Step => ((epoch * steps + step) as f64, steps as f64),
        };
        let (warmup, total) = (self.warmup * unit, self.epochs as f64 * unit);
        if now < warmup {
            return self.lr * (now + 1.0) / (warmup + 1.0);
        }
        let (since, span) = (now - warmup, total - warmup);
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Cosine => self.lr * 0.5 * (1.0 + (std::f64::consts::PI * since / span).cos()),
            Schedule::Steps => {
                let passed = self.milestones.iter().take_while(|&&milestone| milestone * unit <= now).count();
                self.lr * self.gamma.powi(passed as i32)
            }
            Schedule::OneCycle => self.lr * self.cycle(since, span, |share| 0.5 * (1.0 - (std::f64::consts::PI * share).cos())),
            Schedule::Triangular => self.lr * self.cycle(since, span, |share| share),
        }
    }

    /// The share of the largest rate at `now` of `span`; `ease` goes from 0 to 1.
    fn cycle(&self, now: f64, span: f64, ease: impl Fn(f64) -> f64) -> f64 {
        let (peak, last) = ((self.cycle_peak * span - 1.0).max(0.0), span - 1.0);
        let between = |from: f64, to: f64, share: f64| from + (to - from) * ease(share);
        if now < peak {
            between(self.cycle_start, 1.0, now / peak)
        } else if now > peak {
            between(1.0, self.cycle_end, (now - peak) / (last - peak))
        } else {
            1.0
        }
    }

    /// What is done to the images of a training batch, where anything is.
    #[must_use]
    pub fn augmentation(&self) -> Option<Augmentation> {
        let augmentation = Augmentation {
            flip: self.flip,
            crop: self.crop,
            border: self.border,
            cutout: self.cutout,
            brightness: self.brightness as f32,
            contrast: self.contrast as f32,
            saturation: self.saturation as f32,
        };
        augmentation.does_something().then_some(augmentation)
    }

    /// Whether it depends on validation samples how a training ends.
    #[must_use]
    pub fn needs_validation(&self) -> bool {
        self.patience > 0 || self.keep == Keep::Best
    }

    /// Checks the ranges, and that what is given has a use.
    ///
    /// # Errors
    /// The name of the field to blame, and what would be right.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |value: f64, least: f64, most: f64| value >= least && value <= most;
        let rules = [
            (self.epochs > 0, "epochs", "at least 1"),
            (self.batch > 1, "batch", "at least 2"),
            (self.lr > 0.0 && self.lr.is_finite(), "lr", "a positive number"),
            ((0.0..1.0).contains(&self.momentum), "momentum", "at least 0 and below 1"),
            (self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", "0 or more"),
            (self.optimiser != OptimiserName::Muon || self.weight_decay == 0.0, "weight_decay", "0 with `optimiser: muon`"),
            (!matches!(self.rule(), Rule::Nesterov { momentum: 0.0, .. }), "nesterov", "false where `momentum` is 0"),
            (self.clip >= 0.0 && self.clip.is_finite(), "clip", "0 (none) or more"),
            ((0.0..1.0).contains(&self.smoothing), "smoothing", "at least 0 and below 1"),
            (self.warmup >= 0.0 && self.warmup < self.epochs as f64, "warmup", "at least 0 and less than `epochs`"),
            (
                self.milestones.iter().all(|&epoch| epoch > 0.0 && epoch.is_finite())
                    && self.milestones.is_sorted_by(|one, next| one < next),
                "milestones",
                "a rising list of positive numbers",
            ),
            (self.milestones.is_empty() != (self.schedule == Schedule::Steps), "milestones", "given with `schedule: steps`, and only then"),
            (self.gamma > 0.0 && self.gamma.is_finite(), "gamma", "a positive number"),
            ((0.0..1.0).contains(&self.cycle_peak), "cycle_peak", "at least 0 and below 1"),
            (within(self.cycle_start, 0.0, 1.0), "cycle_start", "from 0 to 1"),
            (within(self.cycle_end, 0.0, 1.0), "cycle_end", "from 0 to 1"),
            (self.brightness >= 0.0 && self.brightness.is_finite(), "brightness", "0 (unchanged) or more"),
            (within(self.contrast, 0.0, 1.0), "contrast", "from 0 (unchanged) to 1"),
            (within(self.saturation, 0.0, 1.0), "saturation", "from 0 (unchanged) to 1"),
            (self.watch == Watch::Accuracy || self.needs_validation(), "watch", "left out but with `patience` or `keep: best`"),
            ((0.0..1.0).contains(&self.ema), "ema", "at least 0 (none) and below 1"),
            (self.average_last <= self.epochs, "average_last", "at most `epochs`"),
            (self.average_last == 0 || self.ema == 0.0, "average_last", "0 where there is an `ema`"),
            (
                self.average_last == 0 || !self.needs_validation(),
                "average_last",
                "0 with `patience` or `keep: best`, which choose one epoch",
            ),
        ];
        rules.into_iter().find(|(fits, ..)| !fits).map_or(Ok(()), |(_, name, rule)| Err((name, format!("`{name}` must be {rule}"))))
    }
}
