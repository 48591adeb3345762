//! Matrix products on slices, on the `gemm` crate that candle uses too.

use candle_core::WithDType;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// Columns that one task computes. Fixed, so that the result does not depend on the number of threads.
const COLUMNS_PER_TASK: usize = 64;

/// A number that matrix products and operations are written for: `f32`, and `f64` where a reference needs it.
pub trait Real:
    WithDType + Default + std::iter::Sum + std::ops::AddAssign + std::ops::SubAssign + std::ops::MulAssign + std::ops::Neg<Output = Self>
{
    /// One.
    const ONE: Self;
    /// The square root.
    fn root(self) -> Self;
    /// The natural logarithm.
    fn log(self) -> Self;
    /// e to this power.
    fn exponential(self) -> Self;
}

macro_rules! real {
    ($($type:ty)*) => { $(
        impl Real for $type {
            const ONE: Self = 1.0;
            fn root(self) -> Self { self.sqrt() }
            fn log(self) -> Self { self.ln() }
            fn exponential(self) -> Self { self.exp() }
        }
    )* };
}

real! { f32 f64 }

/// A row-major matrix, or the transpose of one, on borrowed values.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// The matrix whose rows lie one after another in `values`.
    ///
    /// # Panics
    /// When `values` has another length than `rows * columns`.
    #[must_use]
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without a copy.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// `result = left · right`, or `result += left · right`, on one thread. `result` is row-major.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>, result: &mut [T], add: bool) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    assert_eq!(result.len(), left.rows * right.columns, "the result's size");
    let stride = right.columns;
    // SAFETY: `result` is exclusively borrowed and holds all `left.rows` rows of `stride` values.
    unsafe { multiply_into(left, right, result.as_mut_ptr(), stride, add) }
}

/// # Safety
/// `result` points to `left.rows` rows of `right.columns` values, `stride` apart, that nobody else touches.
unsafe fn multiply_into<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>, result: *mut T, stride: usize, add: bool) {
    if left.rows == 0 || right.columns == 0 {
        return;
    }
    let signed = |stride: usize| stride as isize;
    // SAFETY: the strides describe matrices inside of the slices (checked in `Matrix::new`); the caller vouches for `result`.
    unsafe {
        gemm(
            left.rows,
            right.columns,
            left.columns,
            result,
            1,
            signed(stride),
            add,
            left.values.as_ptr(),
            signed(left.column_stride),
            signed(left.row_stride),
            right.values.as_ptr(),
            signed(right.column_stride),
            signed(right.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `left · right` row-major, on all threads.
///
/// # Panics
/// When the shapes do not fit.
#[must_use]
pub fn product<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>) -> Vec<T> {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    let mut result = vec![T::default(); left.rows * right.columns];
    let (start, width) = (SharedPointer(result.as_mut_ptr()), right.columns);
    (0..width.div_ceil(COLUMNS_PER_TASK)).into_par_iter().for_each(|task| {
        let from = task * COLUMNS_PER_TASK;
        let columns = COLUMNS_PER_TASK.min(width - from);
        let slice = Matrix { values: &right.values[from * right.column_stride..], columns, ..right };
        // SAFETY: each task writes its own columns of `result`, which outlives the loop.
        unsafe { multiply_into(left, slice, start.get().add(from), width, false) }
    });
    result
}

/// A pointer that tasks share, each writing to a place of its own.
pub(crate) struct SharedPointer<T>(pub(crate) *mut T);

// SAFETY: only the address is shared; whoever writes through it keeps the places apart.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(left: Matrix<'_, f64>, right: Matrix<'_, f64>) -> Vec<f64> {
        let at =
            |matrix: Matrix<'_, f64>, row: usize, column: usize| matrix.values[row * matrix.row_stride + column * matrix.column_stride];
        let mut result = Vec::new();
        for row in 0..left.rows {
            for column in 0..right.columns {
                result.push((0..left.columns).map(|inner| at(left, row, inner) * at(right, inner, column)).sum());
            }
        }
        result
    }

    #[test]
    fn products_of_transposes_agree_with_the_definition() {
        let values = |count: usize, step: usize| (0..count).map(|index| ((index * step) % 17) as f64 - 8.0).collect::<Vec<f64>>();
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 150), (70, 9, 129)] {
            let (left, right) = (values(rows * inner, 5), values(inner * columns, 7));
            for (left_matrix, right_matrix) in [
                (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns)),
                (Matrix::new(&left, inner, rows).transposed(), Matrix::new(&right, columns, inner).transposed()),
            ] {
                let expected = naive(left_matrix, right_matrix);
                assert_eq!(product(left_matrix, right_matrix), expected);
                let mut twice = expected.clone();
                multiply(left_matrix, right_matrix, &mut twice, true);
                assert!(twice.iter().zip(&expected).all(|(twice, once)| *twice == 2.0 * once));
            }
        }
    }
}
