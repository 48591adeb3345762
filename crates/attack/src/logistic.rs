//! Logistic regression on one feature, solved directly, and its accuracy under repeated splits.

use dcu_nn::rng::Streams;
use rayon::prelude::*;

const SPLITS: u64 = 10;
const TEST_SHARE: f64 = 0.1;
const MOST_STEPS: usize = 100;
/// The share of the objective that a Newton step gains at most where the step after it would gain nothing that counts: each squares the error.
const CLOSE: f64 = 1e-9;
/// Factors of at most 2 whose product cannot overflow.
const FACTORS: usize = 64;

/// `P(member) = 1 / (1 + exp(-(slope · feature + intercept)))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Logistic {
    slope: f64,
    intercept: f64,
}

impl Logistic {
    const START: Self = Self { slope: 0.0, intercept: 0.0 };

    /// Minimises `½·slope² + Σ log-loss`, the intercept free (scikit-learn's defaults: L2 penalty, C = 1), by Newton's steps with halving.
    pub(crate) fn fit(samples: &[(f64, bool)]) -> Self {
        Self::START.refined(Self::START.objective(samples), samples)
    }

    /// The same minimum from another start, at which the objective is known.
    fn refined(self, objective: Objective, samples: &[(f64, bool)]) -> Self {
        let (mut current, mut reached) = (self, objective);
        for _ in 0..MOST_STEPS {
            let Some((slope, intercept)) = reached.newton_step() else { break };
            let moved = |scale: f64| Self { slope: current.slope - scale * slope, intercept: current.intercept - scale * intercept };
            // What a quadratic would still gain.
            let expected = 0.5 * (slope * reached.gradient[1] + intercept * reached.gradient[0]);
            if expected <= CLOSE * reached.value.abs() {
                return moved(1.0);
            }
            let improved = (0..40).map(|halvings| moved(0.5_f64.powi(halvings))).find_map(|next| {
                let objective = next.objective(samples);
                (objective.value < reached.value).then_some((next, objective))
            });
            let Some((next, objective)) = improved else { break };
            (current, reached) = (next, objective);
        }
        current
    }

    fn objective(self, samples: &[(f64, bool)]) -> Objective {
        let penalty = Objective { value: 0.5 * self.slope * self.slope, gradient: [0.0, self.slope], hessian: [0.0, 0.0, 1.0] };
        penalty.plus(1.0, &self.log_loss(samples))
    }

    /// The samples' part of the objective with its derivatives, in one pass.
    fn log_loss(self, samples: &[(f64, bool)]) -> Objective {
        let (mut value, mut gradient, mut hessian) = (0.0, [0.0; 2], [0.0; 3]);
        for samples in samples.chunks(FACTORS) {
            // The logarithm of a product instead of a sum of logarithms.
            let mut product = 1.0;
            for &(feature, member) in samples {
                let score = self.slope * feature + self.intercept;
                // Of exp(-|score|) everything follows without overflow.
                let small = (-score.abs()).exp();
                let larger = 1.0 / (1.0 + small);
                let probability = if score > 0.0 { larger } else { small * larger };
                let wrong = if member { -score } else { score };
                product *= 1.0 + small;
                value += wrong.max(0.0);
                let error = probability - f64::from(u8::from(member));
                let weight = small * larger * larger;
                gradient[0] += error;
                gradient[1] += error * feature;
                hessian[0] += weight;
                hessian[1] += weight * feature;
                hessian[2] += weight * feature * feature;
            }
            value += product.ln();
        }
        Objective { value, gradient, hessian }
    }

    fn is_right(self, feature: f64, member: bool) -> bool {
        (self.slope * feature + self.intercept > 0.0) == member
    }
}

/// What is minimised, at one point, with its derivatives by intercept and slope.
struct Objective {
    value: f64,
    gradient: [f64; 2],
    /// Twice by the intercept, by both, twice by the slope.
    hessian: [f64; 3],
}

impl Objective {
    /// The sum with a multiple of another at the same point.
    fn plus(&self, factor: f64, other: &Self) -> Self {
        Self {
            value: self.value + factor * other.value,
            gradient: std::array::from_fn(|at| self.gradient[at] + factor * other.gradient[at]),
            hessian: std::array::from_fn(|at| self.hessian[at] + factor * other.hessian[at]),
        }
    }

    /// Gradient divided by Hessian, as slope and intercept; `None` where the Hessian is singular.
    fn newton_step(&self) -> Option<(f64, f64)> {
        let ([g0, g1], [h00, h01, h11]) = (self.gradient, self.hessian);
        let determinant = h00 * h11 - h01 * h01;
        (determinant > 1e-300).then(|| ((g1 * h00 - g0 * h01) / determinant, (g0 * h11 - g1 * h01) / determinant))
    }
}

/// The mean accuracy over ten stratified random splits, each trained on nine tenths and tested on the rest.
#[must_use]
pub fn split_accuracy(members: &[f64], others: &[f64], streams: &Streams) -> f64 {
    let whole: Vec<(f64, bool)> = members.iter().map(|&loss| (loss, true)).chain(others.iter().map(|&loss| (loss, false))).collect();
    // A split's minimum lies close to that of all samples, and its objective there is theirs without the tests'.
    let start = Logistic::fit(&whole);
    let objective = start.objective(&whole);
    let accuracies = (0..SPLITS).into_par_iter().map(|split| {
        let mut stream = streams.indexed("split", split);
        let (mut training, mut tests) = (Vec::new(), Vec::new());
        for (losses, member) in [(members, true), (others, false)] {
            let order = stream.permutation(losses.len());
            let tested = ((losses.len() as f64 * TEST_SHARE).ceil() as usize).max(1);
            tests.extend(order[..tested].iter().map(|&row| (losses[row], member)));
            training.extend(order[tested..].iter().map(|&row| (losses[row], member)));
        }
        let attack = start.refined(objective.plus(-1.0, &start.log_loss(&tests)), &training);
        tests.iter().filter(|&&(loss, member)| attack.is_right(loss, member)).count() as f64 / tests.len() as f64
    });
    // Collected first: a parallel sum has no fixed order.
    accuracies.collect::<Vec<f64>>().into_iter().sum::<f64>() / SPLITS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> Streams {
        Streams::new(0, "test")
    }

    fn normals(count: usize, mean: f64, purpose: &str) -> Vec<f64> {
        let mut stream = streams().stream(purpose);
        (0..count).map(|_| mean + f64::from(stream.normal())).collect()
    }

    #[test]
    fn the_fit_is_a_stationary_point() {
        let samples: Vec<(f64, bool)> =
            normals(200, 0.0, "a").into_iter().map(|x| (x, true)).chain(normals(150, 1.5, "b").into_iter().map(|x| (x, false))).collect();
        let fitted = Logistic::fit(&samples);
        let best = fitted.objective(&samples).value;
        for (slope, intercept) in [(1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)] {
            let moved = Logistic { slope: fitted.slope + slope, intercept: fitted.intercept + intercept };
            assert!(moved.objective(&samples).value > best);
        }
    }

    #[test]
    fn equal_distributions_cannot_be_told_apart() {
        let accuracy = split_accuracy(&normals(4500, 0.0, "a"), &normals(4500, 0.0, "b"), &streams());
        assert!((accuracy - 0.5).abs() < 0.02, "{accuracy}");
    }

    #[test]
    fn a_shift_of_two_deviations_gives_the_accuracy_of_the_best_threshold() {
        let accuracy = split_accuracy(&normals(4000, 0.0, "a"), &normals(4000, 2.0, "b"), &streams());
        assert!((accuracy - 0.841).abs() < 0.02, "{accuracy}");
    }

    #[test]
    fn separable_and_constant_losses_are_no_trouble() {
        assert!(split_accuracy(&[1e-9; 50], &[40.0; 50], &streams()) > 0.999);
        let constant = split_accuracy(&[1.0; 50], &[1.0; 50], &streams());
        assert!((constant - 0.5).abs() < 1e-9, "{constant}");
    }
}
