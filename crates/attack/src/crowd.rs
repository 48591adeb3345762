//! Scores of many models beside many others: whether the distribution of what they say of a sample is the same.
//!
//! Each takes margins [M][F] of all models and the numbers of those in either group, so that models can be dealt anew to both ([`crate::statistics::Tested`]).

use crate::statistics::{mean, percentile};

/// What no deviation of a margin over models is below: that of a few can be small by chance.
pub(crate) const FLOOR: f64 = 0.3;

/// A normal distribution of a sample's margin over models.
#[derive(Debug, Clone, Copy)]
struct Normal {
    mean: f64,
    deviation: f64,
}

/// Sums of a sample's margins over a group of models, of which one can be left out.
#[derive(Debug, Clone, Copy)]
struct Sums {
    centre: f64,
    count: f64,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn of(margins: &[&[f64]], models: &[usize], sample: usize) -> Self {
        let centre = margins[models[0]][sample];
        let (mut sum, mut squares) = (0.0, 0.0);
        for &model in models {
            let value = margins[model][sample] - centre;
            sum += value;
            squares += value * value;
        }
        Self { centre, count: models.len() as f64, sum, squares }
    }

    fn without(self, margin: f64) -> Self {
        let value = margin - self.centre;
        Self { count: self.count - 1.0, sum: self.sum - value, squares: self.squares - value * value, ..self }
    }

    fn normal(self) -> Normal {
        let mean = self.sum / self.count;
        let variance = ((self.squares - self.count * mean * mean) / (self.count - 1.0)).max(0.0);
        Normal { mean: self.centre + mean, deviation: variance.sqrt().max(FLOOR) }
    }
}

impl Normal {
    /// The logarithm of the density, without what is the same for all distributions.
    fn log_density(self, value: f64) -> f64 {
        -0.5 * ((value - self.mean) / self.deviation).powi(2) - self.deviation.ln()
    }

    /// The Kullback-Leibler divergence of `other` from this one: of retrained from unlearned margins.
    fn divergence(self, other: Self) -> f64 {
        (self.deviation / other.deviation).ln()
            + (other.deviation.powi(2) + (other.mean - self.mean).powi(2)) / (2.0 * self.deviation.powi(2))
            - 0.5
    }
}

/// The logarithms of likelihood ratios: how much more a model's margin of a sample looks like that of the first group's other models, for all models of the first group and then of
/// the second, [(own + other) * samples]. U-LiRA (Hayes et al., arXiv 2403.01218) on models that were left out.
pub(crate) fn likelihood_ratios(margins: &[&[f64]], own: &[usize], other: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let samples = margins[own[0]].len();
    let sums: Vec<[Sums; 2]> = (0..samples).map(|sample| [Sums::of(margins, own, sample), Sums::of(margins, other, sample)]).collect();
    let of_group = |group: &[usize], facing: &[usize], first: bool| {
        let mut ratios = Vec::with_capacity(group.len() * samples);
        for (place, &model) in group.iter().enumerate() {
            for sample in 0..samples {
                let value = margins[model][sample];
                let [like, unlike] = if first { sums[sample] } else { [sums[sample][1], sums[sample][0]] };
                // As many models on both sides, so that neither distribution is known better.
                let unlike = if facing.len() == group.len() { unlike.without(margins[facing[place]][sample]) } else { unlike };
                let ratio = like.without(value).normal().log_density(value) - unlike.normal().log_density(value);
                ratios.push(if first { ratio } else { -ratio });
            }
        }
        ratios
    };
    (of_group(own, other, true), of_group(other, own, false))
}

/// How often the sign of the likelihood ratio is right, of models of both groups equally.
pub(crate) fn likelihood_ratio_attack(margins: &[&[f64]], own: &[usize], other: &[usize]) -> f64 {
    let (ratios, others) = likelihood_ratios(margins, own, other);
    let right = |value: f64| if value == 0.0 { 0.5 } else { f64::from(u8::from(value > 0.0)) };
    let share = |ratios: &[f64], sign: f64| mean(&ratios.iter().map(|ratio| right(sign * ratio)).collect::<Vec<_>>());
    f64::midpoint(share(&ratios, 1.0), share(&others, -1.0))
}

/// KLoM by normal distributions (after Georgiev et al., arXiv 2410.23232), of each sample, in nats.
pub(crate) fn divergences(margins: &[&[f64]], unlearned: &[usize], retrained: &[usize]) -> Vec<f64> {
    let normal = |models: &[usize], sample: usize| Sums::of(margins, models, sample).normal();
    (0..margins[unlearned[0]].len()).map(|sample| normal(unlearned, sample).divergence(normal(retrained, sample))).collect()
}

/// Bins of a histogram, and what an empty one holds.
const BINS: usize = 20;
const EMPTY: f64 = 1e-5;
/// Where margins end.
const END: f64 = 100.0;

/// KLoM as published: of histograms in 20 bins from the least to the largest margin of both groups, of each sample.
pub(crate) fn binned_divergences(margins: &[&[f64]], unlearned: &[usize], retrained: &[usize]) -> Vec<f64> {
    let of_sample = |sample: usize| {
        let value = |&model: &usize| margins[model][sample].clamp(-END, END);
        let all = || unlearned.iter().chain(retrained).map(value);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let histogram = |models: &[usize]| {
            let mut shares = [0.0; BINS];
            for value in models.iter().map(value) {
                let bin = if high > low { ((value - low) / (high - low) * BINS as f64) as usize } else { 0 };
                shares[bin.min(BINS - 1)] += 1.0 / models.len() as f64;
            }
            shares.map(|share| if share > 0.0 { share } else { EMPTY })
        };
        histogram(retrained).iter().zip(histogram(unlearned)).map(|(of, from)| of * (of / from).ln()).sum()
    };
    (0..margins[unlearned[0]].len()).map(of_sample).collect()
}

/// What no epsilon is above, and what one counts where one group hardly varies.
const MOST: f64 = 50.0;
const DELTA: f64 = 1e-5;

/// The forgetting quality of the NeurIPS 2023 challenge, from 0 to 1, over all samples. It is not 1 for models that are alike, but about a third: beside it belongs what it is there.
pub(crate) fn forgetting_quality(margins: &[&[f64]], unlearned: &[usize], retrained: &[usize]) -> f64 {
    let fewest = unlearned.len().min(retrained.len()) as f64;
    let of = |models: &[usize], sample: usize| models.iter().map(|&model| margins[model][sample]).collect::<Vec<_>>();
    let points: Vec<f64> = (0..margins[unlearned[0]].len())
        .map(|sample| {
            let bucket = (epsilon(&of(unlearned, sample), &of(retrained, sample)) / 0.5).floor();
            if 0.5 * (bucket + 1.0) <= (fewest - 1.0).ln().ceil() { 0.5_f64.powf(bucket) } else { 0.0 }
        })
        .collect();
    mean(&points)
}

/// How well one threshold, or one interval around the narrower group, tells two groups, as the epsilon of differential privacy; cuts lie at the values themselves.
fn epsilon(one: &[f64], two: &[f64]) -> f64 {
    let range =
        |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - values.iter().copied().fold(f64::INFINITY, f64::min);
    let (narrow, wide) = if range(one) <= range(two) { (one, two) } else { (two, one) };
    if range(narrow) < 0.01 * range(wide) {
        return MOST;
    }
    let (large, small) = if percentile(one, 0.5) >= percentile(two, 0.5) { (one, two) } else { (two, one) };
    let centre = percentile(narrow, 0.5);
    let near = |values: &[f64]| values.iter().map(|value| -(value - centre).abs()).collect::<Vec<_>>();
    best_threshold(large, small).max(best_threshold(&near(narrow), &near(wide)))
}

/// Over all thresholds above which the first group is looked for.
fn best_threshold(positives: &[f64], negatives: &[f64]) -> f64 {
    let mut values: Vec<(f64, bool)> =
        positives.iter().map(|&value| (value, true)).chain(negatives.iter().map(|&value| (value, false))).collect();
    values.sort_by(|(one, _), (two, _)| two.total_cmp(one));
    let (mut found, mut wrong, mut best) = (0_usize, 0_usize, 0.0_f64);
    for (place, &(value, is_positive)) in values.iter().enumerate() {
        if is_positive {
            found += 1;
        } else {
            wrong += 1;
        }
        if values.get(place + 1).is_some_and(|(next, _)| *next == value) {
            continue;
        }
        let missed = 1.0 - found as f64 / positives.len() as f64;
        let false_positives = wrong as f64 / negatives.len() as f64;
        let of = |share: f64, other: f64| ((1.0 - DELTA - share) / other).ln();
        match (false_positives > 0.0, missed > 0.0) {
            (false, false) => return MOST,
            (true, true) => best = best.max(of(false_positives, missed)).max(of(missed, false_positives)),
            // One of two errors is none by chance.
            _ => {}
        }
    }
    best.min(MOST)
}

/// How alike models are to one another, all with all: a Gaussian kernel on their margins of all samples, as wide as the median distance between them.
#[derive(Debug)]
pub(crate) struct Kernel {
    values: Vec<Vec<f64>>,
}

impl Kernel {
    pub(crate) fn new(margins: &[&[f64]]) -> Self {
        let distance = |one: &[f64], two: &[f64]| one.iter().zip(two).map(|(one, two)| (one - two).powi(2)).sum::<f64>();
        let distances: Vec<Vec<f64>> = margins.iter().map(|one| margins.iter().map(|two| distance(one, two)).collect()).collect();
        let apart: Vec<f64> = (0..margins.len()).flat_map(|one| distances[one][..one].to_vec()).collect();
        let width = percentile(&apart, 0.5).max(f64::MIN_POSITIVE);
        Self { values: distances.into_iter().map(|row| row.into_iter().map(|distance| (-distance / width).exp()).collect()).collect() }
    }

    /// The squared maximum mean discrepancy of two groups, without bias (Gretton et al. 2012): about 0 where they are alike, below it by chance. Each group has two models at least.
    pub(crate) fn discrepancy(&self, one: &[usize], two: &[usize]) -> f64 {
        let within = |group: &[usize]| {
            let sum: f64 = group
                .iter()
                .flat_map(|&a| group.iter().map(move |&b| (a, b)))
                .filter(|(a, b)| a != b)
                .map(|(a, b)| self.values[a][b])
                .sum();
            sum / (group.len() * (group.len() - 1)) as f64
        };
        let between: f64 = one.iter().map(|&a| two.iter().map(|&b| self.values[a][b]).sum::<f64>()).sum();
        within(one) + within(two) - 2.0 * between / (one.len() * two.len()) as f64
    }

    /// Where the first group lies between retraining (0) and the original (1), by the two discrepancies.
    pub(crate) fn position(&self, unlearned: &[usize], retrained: &[usize], originals: &[usize]) -> f64 {
        let from = |others: &[usize]| self.discrepancy(unlearned, others).max(0.0);
        let (retrained, original) = (from(retrained), from(originals));
        if retrained + original > 0.0 { retrained / (retrained + original) } else { 0.5 }
    }
}

/// Of classes that both groups of models give to samples, how differently: half the sum of the differences of shares (total variation), in each class of samples, and the mean of
/// these. `classes` is [M][F], `labels` [F].
pub(crate) fn class_shift(classes: &[&[u32]], labels: &[u32], count: usize, own: &[usize], other: &[usize]) -> f64 {
    let mut shifts = Vec::new();
    for label in 0..count as u32 {
        let samples: Vec<usize> = (0..labels.len()).filter(|&sample| labels[sample] == label).collect();
        if samples.is_empty() {
            continue;
        }
        let shares = |models: &[usize]| {
            let mut shares = vec![0.0; count];
            for &model in models {
                samples.iter().for_each(|&sample| shares[classes[model][sample] as usize] += 1.0 / (models.len() * samples.len()) as f64);
            }
            shares
        };
        shifts.push(0.5 * shares(own).iter().zip(shares(other)).map(|(own, other)| (own - other).abs()).sum::<f64>());
    }
    mean(&shifts)
}

#[cfg(test)]
mod tests {
    use dcu_nn::rng::Streams;

    use super::*;

    /// Margins of so many models and samples around a mean, each sample with a mean of its own.
    pub(crate) fn drawn(name: &str, models: usize, samples: usize, shift: f64) -> Vec<Vec<f64>> {
        let streams = Streams::new(3, "test");
        let mut means = streams.stream("means");
        let means: Vec<f64> = (0..samples).map(|_| f64::from(means.normal())).collect();
        let of_model = |model: usize| {
            let mut stream = streams.indexed(name, model as u64);
            means.iter().map(|mean| mean + f64::from(stream.normal()) + shift).collect()
        };
        (0..models).map(of_model).collect()
    }

    fn together<'a>(one: &'a [Vec<f64>], two: &'a [Vec<f64>]) -> (Vec<&'a [f64]>, Vec<usize>, Vec<usize>) {
        let all = one.iter().chain(two).map(Vec::as_slice).collect();
        (all, (0..one.len()).collect(), (one.len()..one.len() + two.len()).collect())
    }

    #[test]
    fn the_divergence_of_normal_distributions_is_the_closed_form() {
        let (unlearned, retrained) = (Normal { mean: 1.0, deviation: 2.0 }, Normal { mean: 0.0, deviation: 1.0 });
        assert!((unlearned.divergence(retrained) - (2.0_f64.ln() + 2.0 / 8.0 - 0.5)).abs() < 1e-12);
        assert!(retrained.divergence(retrained).abs() < 1e-12);
    }

    #[test]
    fn sums_without_one_are_those_of_the_others() {
        let margins = [vec![1e3], vec![1e3 + 1.0], vec![1e3 + 4.0]];
        let margins: Vec<&[f64]> = margins.iter().map(Vec::as_slice).collect();
        let normal = Sums::of(&margins, &[0, 1, 2], 0).without(1e3).normal();
        assert!((normal.mean - 1002.5).abs() < 1e-9 && (normal.deviation - 4.5_f64.sqrt()).abs() < 1e-9, "{normal:?}");
    }

    #[test]
    fn alike_models_are_at_chance_and_those_that_leak_are_told() {
        let retrained = drawn("retrained", 12, 400, 0.0);
        let attack = |models: &[Vec<f64>]| {
            let (margins, own, other) = together(models, &retrained);
            likelihood_ratio_attack(&margins, &own, &other)
        };
        let alike = attack(&drawn("null", 12, 400, 0.0));
        assert!((alike - 0.5).abs() < 0.015, "{alike}");
        // Two deviations between the means: 84 % where both distributions are known.
        let leaking = attack(&drawn("leak", 12, 400, 2.0));
        assert!((0.78..0.85).contains(&leaking), "{leaking}");
        let constant = attack(&vec![vec![0.0; 400]; 12]);
        assert!(constant > 0.7, "{constant}");
    }

    #[test]
    fn binned_divergences_are_the_published_rule() {
        let (one, two) = (vec![vec![0.0], vec![1.0], vec![1.0], vec![4.0]], vec![vec![0.1], vec![0.1], vec![2.0], vec![4.0]]);
        let (margins, own, other) = together(&one, &two);
        let eps = 1e-5_f64;
        // Bins 0.2 wide: retrained has 2, 0, 1 and 1 in those where something is, unlearned 1, 2, 0 and 1.
        let expected = 0.5 * (0.5_f64 / 0.25).ln() + eps * (eps / 0.5).ln() + 0.25 * (0.25 / eps).ln();
        let found = binned_divergences(&margins, &own, &other)[0];
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        assert_eq!(binned_divergences(&[&[1.0], &[1.0]], &[0], &[1]), [0.0]);
    }

    #[test]
    fn forgetting_quality_is_a_third_where_models_are_alike_and_none_where_they_are_not() {
        let retrained = drawn("retrained", 64, 300, 0.0);
        let quality = |models: &[Vec<f64>]| {
            let (margins, own, other) = together(models, &retrained);
            forgetting_quality(&margins, &own, &other)
        };
        let alike = quality(&drawn("null", 64, 300, 0.0));
        assert!((0.2..0.4).contains(&alike), "{alike}");
        assert!(quality(&drawn("leak", 64, 300, 8.0)) < 0.01 && quality(&vec![vec![0.0; 300]; 64]) == 0.0);
        // One of four wrong and one of four missed: ln((1 - 1e-5 - 0.25) / 0.25).
        let epsilon = best_threshold(&[4.0, 3.0, 2.0, 0.0], &[2.5, 1.0, -1.0, -2.0]);
        assert!((epsilon - ((0.75 - 1e-5) / 0.25_f64).ln()).abs() < 1e-9, "{epsilon}");
    }

    #[test]
    fn a_kernel_sees_to_whom_models_are_nearer() {
        let (unlearned, retrained, originals) =
            (drawn("own", 12, 50, 0.1), drawn("retrained", 12, 50, 0.0), drawn("original", 12, 50, 1.0));
        let all: Vec<&[f64]> = unlearned.iter().chain(&retrained).chain(&originals).map(Vec::as_slice).collect();
        let kernel = Kernel::new(&all);
        let group = |which: usize| (12 * which..12 * (which + 1)).collect::<Vec<_>>();
        assert!(kernel.position(&group(0), &group(1), &group(2)) < 0.2);
        assert!(kernel.position(&group(2), &group(1), &group(0)) > 0.4);
        assert!(kernel.discrepancy(&group(0), &group(1)).abs() < 0.05 && kernel.discrepancy(&group(1), &group(2)) > 0.1);
    }

    #[test]
    fn classes_that_samples_are_taken_for_are_compared_in_each_class() {
        let (own, other): (&[u32], &[u32]) = (&[1, 1, 2, 0], &[1, 2, 2, 0]);
        // Of class 0 half of the samples go elsewhere, of class 1 none.
        assert_eq!(class_shift(&[own, other], &[0, 0, 1, 1], 3, &[0], &[1]), 0.25);
        assert_eq!(class_shift(&[own, own], &[0, 0, 1, 1], 3, &[0], &[1]), 0.0);
    }
}
