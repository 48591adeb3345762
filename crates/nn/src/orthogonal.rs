//! Steps in which all directions of a layer move by about as much: the nearest orthogonal matrix, roughly.

use crate::matrix::{Matrix, Real, product};
use crate::tally;

/// p(s) = 3.4445 - 4.775 s + 2.0315 s², by which a singular value σ becomes p(σ²) σ: small ones grow fastest (Jordan et al. 2024).
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
const STEPS: usize = 5;
const EPSILON: f64 = 1e-7;

/// A matrix of so many rows and columns with about the same singular vectors, whose singular values are nearer to one another: five steps of a Newton-Schulz iteration of the fifth order. Those
/// that are 0.002 of the root of the sum of their squares or more come to lie between 0.68 and 1.21; smaller ones come to 430 to 485 times their share of that root. One of zeros stays so.
///
/// With S = X Xᵀ, step after step multiplies X by a polynomial in S, and S by its square. So the iteration runs on matrices of the shorter side alone, and X is
/// multiplied once, at the end.
///
/// # Panics
/// When the values are not as many.
pub(crate) fn orthogonal<T: Real>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    // Squares are formed before they are divided by the norm, and must be numbers. A power of two changes no digit.
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.to_f64().abs()));
    let exponent = if largest > 0.0 && largest.is_finite() { largest.log2().floor() as i32 } else { 0 };
    let scale = 2.0_f64.powi(-exponent.clamp(-1000, 1000));
    let scaled: Vec<T> = values.iter().map(|value| T::from_f64(value.to_f64() * scale)).collect();
    iterated(&scaled, rows, columns, EPSILON * scale)
}

/// The steps of [`orthogonal`], with so much added to the norm.
fn iterated<T: Real>(values: &[T], rows: usize, columns: usize, epsilon: f64) -> Vec<T> {
    let matrix = Matrix::new(values, rows, columns);
    let is_tall = rows > columns;
    let (side, other) = if is_tall { (columns, rows) } else { (rows, columns) };
    // S as often as it is squared, and the products of polynomials: the last step needs no S behind it.
    let products = 3 + 4 * (STEPS - 2) + 2;
    tally::others(2 * (2 * side * side * other + products * side.pow(3)) as u64);
    let mut square = if is_tall { product(matrix.transposed(), matrix) } else { product(matrix, matrix.transposed()) };
    let norm = values.iter().map(|value| value.to_f64().powi(2)).sum::<f64>().sqrt() + epsilon;
    square.iter_mut().for_each(|value| *value = T::from_f64(value.to_f64() / (norm * norm)));
    let times = |left: &[T], right: &[T]| product(Matrix::new(left, side, side), Matrix::new(right, side, side));
    let mut factor: Option<Vec<T>> = None;
    for step in 1..=STEPS {
        let [first, third, fifth] = COEFFICIENTS.map(T::from_f64);
        let mut polynomial = times(&square, &square);
        polynomial.iter_mut().zip(&square).for_each(|(value, square)| *value = *value * fifth + *square * third);
        polynomial.iter_mut().step_by(side + 1).for_each(|value| *value += first);
        if step < STEPS {
            square = times(&times(&polynomial, &square), &polynomial);
        }
        factor = Some(match factor {
            Some(factor) => times(&polynomial, &factor),
            None => polynomial,
        });
    }
    let mut factor = factor.expect("there is a step");
    factor.iter_mut().for_each(|value| *value = T::from_f64(value.to_f64() / norm));
    let factor = Matrix::new(&factor, side, side);
    if is_tall { product(matrix, factor) } else { product(factor, matrix) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn drawn(rows: usize, columns: usize) -> Vec<f64> {
        let mut stream = Streams::new(1, "test").stream("matrix");
        (0..rows * columns).map(|_| f64::from(stream.normal())).collect()
    }

    /// The iteration as it is written down, on the matrix itself.
    fn naive(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt() + EPSILON;
        let mut found: Vec<f64> = values.iter().map(|value| value / norm).collect();
        for _ in 0..STEPS {
            let [first, third, fifth] = COEFFICIENTS;
            let matrix = Matrix::new(&found, rows, columns);
            let square = product(matrix, matrix.transposed());
            let square = Matrix::new(&square, rows, rows);
            let (cube, fourth) = (product(square, matrix), product(square, square));
            let fifths = product(Matrix::new(&fourth, rows, rows), matrix);
            found = found.iter().zip(cube).zip(fifths).map(|((one, three), five)| first * one + third * three + fifth * five).collect();
        }
        found
    }

    #[test]
    fn it_is_the_iteration_on_the_matrix_itself() {
        for (rows, columns) in [(6, 20), (20, 6), (5, 5), (1, 7), (7, 1)] {
            let values = drawn(rows, columns);
            let (found, expected) = (orthogonal(&values, rows, columns), naive(&values, rows, columns));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-9, "{rows} x {columns}: {found} {expected}");
            }
            let in_f32 = orthogonal(&values.iter().map(|&value| value as f32).collect::<Vec<_>>(), rows, columns);
            for (found, expected) in in_f32.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-3, "{rows} x {columns}: {found} {expected}");
            }
        }
        assert_eq!(orthogonal(&[0.0_f32; 12], 3, 4), [0.0; 12]);
    }

    #[test]
    fn large_and_small_values_come_out_as_ordinary_ones() {
        let values: Vec<f32> = drawn(20, 6).iter().map(|&value| value as f32).collect();
        let expected = orthogonal(&values, 20, 6);
        for factor in [1e20_f32, 1e36, 1e-3] {
            let scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
            for (found, expected) in orthogonal(&scaled, 20, 6).iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-3, "{factor}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_scale_changes_no_bit_of_ordinary_values() {
        for (rows, columns) in [(6, 20), (20, 6), (5, 5), (1, 7), (64, 48)] {
            for factor in [1e-4, 0.37, 1.0, 3e3] {
                let values: Vec<f32> = drawn(rows, columns).iter().map(|&value| (factor * value) as f32).collect();
                let (found, plain) = (orthogonal(&values, rows, columns), iterated(&values, rows, columns, EPSILON));
                assert!(
                    found.iter().zip(&plain).all(|(found, plain)| found.to_bits() == plain.to_bits()),
                    "{rows} x {columns} by {factor}"
                );
            }
        }
    }

    #[test]
    fn singular_values_come_as_near_to_one_another_as_it_says() {
        // Of a diagonal matrix these are its values; the last makes up the rest of the sum of squares.
        let mut shares: Vec<f64> = (0..40).map(|place| 10_f64.powf(-5.0 + 4.0 * f64::from(place) / 39.0)).collect();
        shares.push((1.0 - shares.iter().map(|share| share * share).sum::<f64>()).sqrt());
        let side = shares.len();
        let mut matrix = vec![0.0; side * side];
        matrix.iter_mut().step_by(side + 1).zip(&shares).for_each(|(value, share)| *value = 7.0 * share);
        let found = orthogonal(&matrix, side, side);
        for (found, share) in found.iter().step_by(side + 1).zip(shares) {
            let is_as_said = if share >= 0.002 { (0.68..1.21).contains(found) } else { (429.0..485.0).contains(&(found / share)) };
            assert!(is_as_said, "{share}: {found}");
        }
    }

    #[test]
    fn all_directions_move_by_about_as_much() {
        for (rows, columns) in [(6, 20), (5, 5)] {
            let found = orthogonal(&drawn(rows, columns), rows, columns);
            let matrix = Matrix::new(&found, rows, columns);
            for (row, values) in product(matrix, matrix.transposed()).chunks_exact(rows).enumerate() {
                // Squares of singular values between 0.5 and 1.5: nearly a multiple of the identity.
                let (own, others) = (values[row], values.iter().sum::<f64>() - values[row]);
                assert!((0.4..1.6).contains(&own) && others.abs() < 1.0, "{rows} x {columns}: {own} {others}");
            }
        }
    }
}
