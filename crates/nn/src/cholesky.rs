//! Systems of linear equations with a symmetric positive definite matrix, in f64: the same bytes for any number of threads.
//!
//! Why not a crate: what takes the time is the product of matrices, which is here already, and faer would take longer to compile than all of this workspace's own code.

use rayon::prelude::*;

use crate::matrix::{Matrix, add_lower_product, product};
use crate::vector::vectorised;

/// Rows and columns that are worked on at a time. Larger ones leave more to the loops below, smaller ones more additions to memory.
const BLOCK: usize = 96;

/// The lower triangular L with A = L Lᵀ.
#[derive(Debug, Clone)]
pub struct Cholesky {
    /// Row-major; what lies above the diagonal means nothing.
    lower: Vec<f64>,
    size: usize,
}

impl Cholesky {
    /// Factors a symmetric matrix, row-major [n, n], of which the lower triangle is read.
    ///
    /// # Errors
    /// Gives the row in which it turns out not to be positive definite, as far as f64 can tell.
    ///
    /// # Panics
    /// When there are not n² values.
    pub fn new(matrix: Vec<f64>, size: usize) -> Result<Self, usize> {
        assert_eq!(matrix.len(), size * size, "a matrix of {size} x {size}");
        let mut lower = matrix;
        for start in (0..size).step_by(BLOCK) {
            let end = (start + BLOCK).min(size);
            factor_diagonal(&mut lower, size, start..end)?;
            let width = end - start;
            // Lᵀ of the diagonal block, so that its columns lie together.
            let mut transposed = vec![0.0; width * width];
            for row in 0..width {
                for column in 0..=row {
                    transposed[column * width + row] = lower[(start + row) * size + start + column];
                }
            }
            let (_, below) = lower.split_at_mut(end * size);
            below.par_chunks_mut(size).for_each(|row| vectorised(|| substitute(&transposed, &mut row[start..end])));
            if end < size {
                let panel: Vec<f64> = below.chunks(size).flat_map(|row| row[start..end].iter().copied()).collect();
                let negative: Vec<f64> = panel.iter().map(|value| -value).collect();
                let rows = size - end;
                let (left, right) = (Matrix::new(&negative, rows, width), Matrix::new(&panel, rows, width));
                add_lower_product(left, right.transposed(), &mut below[end..], size);
            }
        }
        Ok(Self { lower, size })
    }

    /// Puts L⁻¹ B in the place of B, row-major [n, columns].
    ///
    /// # Panics
    /// When B has other rows.
    pub fn forward(&self, right: &mut [f64], columns: usize) {
        assert_eq!(right.len(), self.size * columns, "a right side of {} rows", self.size);
        for start in (0..self.size).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.size);
            let (done, rest) = right.split_at_mut(start * columns);
            let rest = &mut rest[..(end - start) * columns];
            if start > 0 {
                let left = Matrix::apart(&self.lower[start * self.size..], end - start, start, self.size);
                subtract(rest, &product(left, Matrix::new(done, start, columns)));
            }
            vectorised(
                #[inline(always)]
                || {
                    for row in start..end {
                        let (before, own) = rest.split_at_mut((row - start) * columns);
                        for (other, values) in before.chunks_exact(columns).enumerate() {
                            subtract_scaled(&mut own[..columns], values, self.at(row, start + other));
                        }
                        let pivot = self.at(row, row);
                        own[..columns].iter_mut().for_each(|value| *value /= pivot);
                    }
                },
            );
        }
    }

    /// Puts L⁻ᵀ B in the place of B, row-major [n, columns].
    ///
    /// # Panics
    /// When B has other rows.
    pub fn backward(&self, right: &mut [f64], columns: usize) {
        assert_eq!(right.len(), self.size * columns, "a right side of {} rows", self.size);
        for start in (0..self.size).step_by(BLOCK).rev() {
            let end = (start + BLOCK).min(self.size);
            let (before, done) = right.split_at_mut(end * columns);
            let rest = &mut before[start * columns..];
            if end < self.size {
                let below = Matrix::apart(&self.lower[end * self.size + start..], self.size - end, end - start, self.size);
                subtract(rest, &product(below.transposed(), Matrix::new(done, self.size - end, columns)));
            }
            vectorised(
                #[inline(always)]
                || {
                    for row in (start..end).rev() {
                        let (above, own) = rest.split_at_mut((row - start) * columns);
                        let (own, pivot) = (&mut own[..columns], self.at(row, row));
                        own.iter_mut().for_each(|value| *value /= pivot);
                        for (other, values) in above.chunks_exact_mut(columns).enumerate() {
                            subtract_scaled(values, own, self.at(row, start + other));
                        }
                    }
                },
            );
        }
    }

    /// A⁻¹ B for B row-major [n, columns].
    ///
    /// # Panics
    /// When B has other rows.
    #[must_use]
    pub fn solve(&self, mut right: Vec<f64>, columns: usize) -> Vec<f64> {
        self.forward(&mut right, columns);
        self.backward(&mut right, columns);
        right
    }

    #[inline(always)]
    fn at(&self, row: usize, column: usize) -> f64 {
        self.lower[row * self.size + column]
    }
}

/// Factors a block on the diagonal, from which the columns before it are taken already.
fn factor_diagonal(lower: &mut [f64], size: usize, range: std::ops::Range<usize>) -> Result<(), usize> {
    for row in range.clone() {
        for column in range.start..=row {
            let products: f64 = (range.start..column).map(|inner| lower[row * size + inner] * lower[column * size + inner]).sum();
            let rest = lower[row * size + column] - products;
            lower[row * size + column] = if column < row {
                rest / lower[column * size + column]
            } else if rest > 0.0 && rest.is_finite() {
                rest.sqrt()
            } else {
                return Err(row);
            };
        }
    }
    Ok(())
}

/// Solves x Lᵀ = row for x, in its place.
#[inline(always)]
fn substitute(transposed: &[f64], row: &mut [f64]) {
    let width = row.len();
    for column in 0..width {
        let (own, later) = row[column..].split_first_mut().expect("a value of each column");
        let factors = &transposed[column * width + column..(column + 1) * width];
        *own /= factors[0];
        subtract_scaled(later, &factors[1..], *own);
    }
}

#[inline(always)]
fn subtract_scaled(values: &mut [f64], others: &[f64], factor: f64) {
    values.iter_mut().zip(others).for_each(|(value, other)| *value = (-factor).mul_add(*other, *value));
}

fn subtract(values: &mut [f64], others: &[f64]) {
    values.iter_mut().zip(others).for_each(|(value, other)| *value -= other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    /// X Xᵀ + I for random X, row-major.
    fn positive(size: usize) -> Vec<f64> {
        let mut stream = Streams::new(size as u64, "test").stream("matrix");
        let values: Vec<f64> = (0..size * size).map(|_| f64::from(stream.normal())).collect();
        let matrix = Matrix::new(&values, size, size);
        let mut result = product(matrix, matrix.transposed());
        (0..size).for_each(|row| result[row * size + row] += 1.0);
        result
    }

    #[test]
    fn a_solution_solves_the_equations() {
        for size in [1, 2, BLOCK, BLOCK + 1, 2 * BLOCK + 37] {
            for columns in [1, 3, 40] {
                let matrix = positive(size);
                let expected: Vec<f64> = (0..size * columns).map(|index| (index as f64).sin()).collect();
                let right = product(Matrix::new(&matrix, size, size), Matrix::new(&expected, size, columns));
                let found = Cholesky::new(matrix, size).unwrap().solve(right, columns);
                let error = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max);
                assert!(error < 1e-10, "{size}, {columns}: {error}");
            }
        }
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        let size = 2 * BLOCK + 5;
        let matrix = positive(size);
        let factor = Cholesky::new(matrix.clone(), size).unwrap();
        for (row, column) in [(0, 0), (5, 3), (BLOCK, BLOCK - 1), (size - 1, 0), (size - 1, size - 1)] {
            let found: f64 = (0..=column).map(|inner| factor.at(row, inner) * factor.at(column, inner)).sum();
            assert!((found - matrix[row * size + column]).abs() < 1e-11 * size as f64, "{row}, {column}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused_with_its_row() {
        let size = BLOCK + 20;
        let mut matrix = positive(size);
        matrix[(BLOCK + 7) * size + BLOCK + 7] = -1.0;
        assert_eq!(Cholesky::new(matrix, size).unwrap_err(), BLOCK + 7);
        assert_eq!(Cholesky::new(vec![f64::NAN], 1).unwrap_err(), 0);
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_threads() {
        let size = 3 * BLOCK + 11;
        let solve = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Cholesky::new(positive(size), size).unwrap().solve(vec![1.0; 3 * size], 3))
        };
        assert_eq!(solve(1), solve(3));
    }
}
