//! Steps in which all directions of a layer move by about as much: the nearest orthogonal matrix, roughly.

use crate::matrix::{Matrix, Real, product};
use crate::tally;

/// p(s) = 3.4445 - 4.775 s + 2.0315 s², by which a singular value σ becomes p(σ²) σ: small ones grow fastest (Jordan et al. 2024).
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
const STEPS: usize = 5;
const EPSILON: f64 = 1e-7;

/// A matrix of so many rows and columns with about the same singular vectors, whose singular values lie between 0.7 and 1.2: five steps of a Newton-Schulz iteration of the fifth order. One of
/// zeros stays so.
///
/// With S = X Xᵀ, step after step multiplies X by a polynomial in S, and S by its square. So the iteration runs on matrices of the shorter side alone, and X is
/// multiplied once, at the end.
///
/// # Panics
/// When the values are not as many.
pub(crate) fn orthogonal<T: Real>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let matrix = Matrix::new(values, rows, columns);
    let is_tall = rows > columns;
    let (side, other) = if is_tall { (columns, rows) } else { (rows, columns) };
    // S as often as it is squared, and the products of polynomials: the last step needs no S behind it.
    let products = 3 + 4 * (STEPS - 2) + 2;
    tally::others(2 * (2 * side * side * other + products * side.pow(3)) as u64);
    let mut square = if is_tall { product(matrix.transposed(), matrix) } else { product(matrix, matrix.transposed()) };
    let norm = values.iter().map(|value| value.to_f64().powi(2)).sum::<f64>().sqrt() + EPSILON;
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
