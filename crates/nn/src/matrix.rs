//! Matrix products on slices.
//!
//! Why not the `gemm` crate that candle uses: here each value of a result is the same sum in the same order, whatever the other rows and
//! columns are. So a sample's output depends neither on the batch it is in nor on the number of threads. It is also a little faster
//! on the small products of convolutions, since a right side that serves many products is laid out once.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

pub use crate::vector::Real;
use crate::vector::{Lanes, vectorised};

/// Columns that are computed together: the width of a panel.
const PANEL: usize = 16;
/// Rows that are computed together. Six rows of sixteen f32 fill the registers of AVX2.
const ROWS: usize = 6;
/// Terms that are summed up before the sum is added to the result, at most. A panel of this depth stays in the first cache, with the rows beside it.
const DEPTH: usize = 256;
/// Rows of a product that are one task.
const ROWS_PER_TASK: usize = 16 * ROWS;
/// Rows of a panel that are filled column by column at a time.
const FILLED_AT_ONCE: usize = 64;
/// Panels of a product that are one task.
const PANELS_PER_TASK: usize = 4;

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

    /// The matrix whose rows lie `stride` apart in `values`.
    ///
    /// # Panics
    /// When `values` ends before the last row does.
    pub(crate) fn apart(values: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows == 0 || values.len() >= (rows - 1) * stride + columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, without a copy.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// The values as they lie.
    pub(crate) fn values(self) -> &'a [T] {
        self.values
    }

    fn rows_from(self, from: usize, rows: usize) -> Self {
        Self { values: &self.values[from * self.row_stride..], rows, ..self }
    }
}

/// The right side of a product, laid out for it: panels of sixteen columns, row by row, the last one filled up with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a, T> {
    values: &'a [T],
    inner: usize,
    columns: usize,
    /// Values from the start of one panel to that of the next.
    stride: usize,
}

impl<'a, T: Real> Panels<'a, T> {
    /// Columns of a panel.
    pub(crate) const WIDTH: usize = PANEL;

    /// The values that panels of a right side of this size take.
    pub(crate) fn size(inner: usize, columns: usize) -> usize {
        columns.next_multiple_of(PANEL) * inner
    }

    /// Panels that lie in `values` already, one after another.
    pub(crate) fn new(values: &'a [T], inner: usize, columns: usize) -> Self {
        assert_eq!(values.len(), Self::size(inner, columns), "panels of {inner} x {columns}");
        Self::apart(values, inner, columns, inner * PANEL)
    }

    /// Panels that lie in `values` already, `stride` apart.
    pub(crate) fn apart(values: &'a [T], inner: usize, columns: usize, stride: usize) -> Self {
        let panels = Self { values, inner, columns, stride };
        let needed = if columns == 0 { 0 } else { (panels.count() - 1) * stride + inner * PANEL };
        assert!(values.len() >= needed, "panels of {inner} x {columns}");
        panels
    }

    /// Lays `right` out in `values`.
    pub(crate) fn lay_out(right: Matrix<'_, T>, values: &'a mut Vec<T>) -> Self {
        values.resize(Self::size(right.rows, right.columns), T::default());
        values.chunks_exact_mut(PANEL * right.rows.max(1)).enumerate().for_each(|(panel, values)| fill_panel(right, panel, values));
        Self::new(values, right.rows, right.columns)
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }
}

fn fill_panel<T: Real>(right: Matrix<'_, T>, panel: usize, values: &mut [T]) {
    let from = panel * PANEL;
    let columns = PANEL.min(right.columns - from);
    if right.column_stride == 1 {
        for (row, values) in values.chunks_exact_mut(PANEL).enumerate() {
            let source = &right.values[row * right.row_stride + from..];
            if columns == PANEL {
                // Of a known length, which takes no call.
                values.copy_from_slice(&source[..PANEL]);
            } else {
                values[..columns].copy_from_slice(&source[..columns]);
                values[columns..].fill(T::default());
            }
        }
        return;
    }
    // Some rows at a time, which stay in the cache while one column after the other is written into them.
    for (block, values) in values.chunks_mut(FILLED_AT_ONCE * PANEL).enumerate() {
        for column in 0..PANEL {
            let target = values[column..].iter_mut().step_by(PANEL);
            if column < columns {
                let first = block * FILLED_AT_ONCE * right.row_stride + (from + column) * right.column_stride;
                let source = right.values[first..].iter().step_by(right.row_stride);
                target.zip(source).for_each(|(target, &value)| *target = value);
            } else {
                target.for_each(|target| *target = T::default());
            }
        }
    }
}

/// `result = left · right`, or `result += left · right`, on one thread. `result` is row-major.
pub(crate) fn multiply<T: Real>(left: Matrix<'_, T>, right: Panels<'_, T>, result: &mut [T], add: bool) {
    assert_eq!(left.columns, right.inner, "inner dimensions");
    assert_eq!(result.len(), left.rows * right.columns, "the result's size");
    if left.columns == 0 && !add {
        result.fill(T::default());
    }
    // SAFETY: `result` is exclusively borrowed and holds all rows.
    unsafe { multiply_panels(left, right, 0..right.count(), (result.as_mut_ptr(), right.columns), add) }
}

/// The same for a result whose rows lie `stride` apart.
pub(crate) fn multiply_apart<T: Real>(left: Matrix<'_, T>, right: Panels<'_, T>, result: &mut [T], stride: usize) {
    assert_eq!(left.columns, right.inner, "inner dimensions");
    assert!(left.columns > 0 && left.rows > 0 && stride >= right.columns, "a product of some size");
    assert!(result.len() >= (left.rows - 1) * stride + right.columns, "the result's size");
    // SAFETY: `result` is exclusively borrowed and holds all rows.
    unsafe { multiply_panels(left, right, 0..right.count(), (result.as_mut_ptr(), stride), false) }
}

/// `left · right` row-major, on all threads.
///
/// # Panics
/// When the shapes do not fit.
#[must_use]
pub fn product<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>) -> Vec<T> {
    product_plus(left, right, &[])
}

/// Adds `left · right`, of as many rows as columns, to the lower triangle of `sum`, whose rows lie `stride` apart, on all threads. Above the diagonal some
/// values are added to and others are not.
///
/// # Panics
/// When the shapes do not fit.
pub(crate) fn add_lower_product<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>, sum: &mut [T], stride: usize) {
    let size = left.rows;
    assert!(left.columns == right.rows && right.columns == size && size <= stride, "a product of {size} rows and columns");
    if size == 0 {
        return;
    }
    assert!(sum.len() >= (size - 1) * stride + size, "a sum of {size} rows and columns");
    let tasks = RowTasks::of(left);
    let mut values = Vec::new();
    let panels = lay_out_on_all_threads(right, &mut values);
    // The last rows have the most columns, and so go first.
    sum.chunks_mut(ROWS_PER_TASK * stride).enumerate().rev().collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(|(task, sum)| {
        let first = task * ROWS_PER_TASK;
        if first >= size {
            return;
        }
        let rows = tasks.rows_of(task);
        // SAFETY: `sum` is exclusively borrowed, and holds as many rows, the last one up to `size` at least.
        unsafe {
            multiply_panels(rows, panels, 0..(first + rows.rows).div_ceil(PANEL), (sum.as_mut_ptr(), stride), true);
        }
    });
}

/// The left factor of a product, cut into tasks of [`ROWS_PER_TASK`] rows.
struct RowTasks<'a, T> {
    left: Matrix<'a, T>,
    /// Of a transpose, the tasks' values one after another, each column by column: they lie together, and lines of memory were copied whole.
    gathered: Vec<T>,
}

impl<'a, T: Real> RowTasks<'a, T> {
    fn of(left: Matrix<'a, T>) -> Self {
        if left.column_stride == 1 || left.columns == 0 {
            return Self { left, gathered: Vec::new() };
        }
        assert_eq!(left.row_stride, 1, "the rows of a transpose lie side by side");
        let count = left.rows * left.columns;
        let mut gathered = Vec::with_capacity(count);
        gathered.spare_capacity_mut()[..count].par_chunks_mut(ROWS_PER_TASK * left.columns).enumerate().for_each(|(task, values)| {
            let rows = values.len() / left.columns;
            for (column, values) in values.chunks_exact_mut(rows).enumerate() {
                values.write_copy_of_slice(&left.values[column * left.column_stride + task * ROWS_PER_TASK..][..rows]);
            }
        });
        // SAFETY: the tasks have written every value.
        unsafe { gathered.set_len(count) };
        Self { left, gathered }
    }

    fn rows_of(&self, task: usize) -> Matrix<'_, T> {
        let first = task * ROWS_PER_TASK;
        let (rows, columns) = (ROWS_PER_TASK.min(self.left.rows - first), self.left.columns);
        if self.gathered.is_empty() {
            return self.left.rows_from(first, rows);
        }
        Matrix::new(&self.gathered[first * columns..][..rows * columns], columns, rows).transposed()
    }
}

fn lay_out_on_all_threads<'a, T: Real>(right: Matrix<'_, T>, values: &'a mut Vec<T>) -> Panels<'a, T> {
    // As zeros that the system hands out, on the threads that write over them.
    *values = vec![T::default(); Panels::<T>::size(right.rows, right.columns)];
    values
        .par_chunks_mut(PANEL * right.rows.max(1))
        .enumerate()
        .for_each(|(panel, values)| vectorised(|| fill_panel(right, panel, values)));
    Panels::new(values, right.rows, right.columns)
}

/// `left · right` row-major with `row` added to each row, unless that is empty, on all threads.
pub(crate) fn product_plus<T: Real>(left: Matrix<'_, T>, right: Matrix<'_, T>, row: &[T]) -> Vec<T> {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    assert!(row.is_empty() || row.len() == right.columns, "a row of {} values", right.columns);
    if left.columns == 0 {
        return if row.is_empty() { vec![T::default(); left.rows * right.columns] } else { row.repeat(left.rows) };
    }
    let tasks = RowTasks::of(left);
    let mut result: Vec<T> = Vec::with_capacity(left.rows * right.columns);
    let mut values = Vec::new();
    let panels = lay_out_on_all_threads(right, &mut values);
    let start = SharedPointer(result.as_mut_ptr());
    let (row_tasks, panel_tasks) = (left.rows.div_ceil(ROWS_PER_TASK), panels.count().div_ceil(PANELS_PER_TASK));
    (0..row_tasks * panel_tasks).into_par_iter().for_each(|task| {
        let (first_row, first_panel) = (task / panel_tasks * ROWS_PER_TASK, task % panel_tasks * PANELS_PER_TASK);
        let rows = tasks.rows_of(task / panel_tasks);
        let columns = first_panel..(first_panel + PANELS_PER_TASK).min(panels.count());
        let added = if row.is_empty() { row } else { &row[columns.start * PANEL..right.columns.min(columns.end * PANEL)] };
        // SAFETY: each task writes its own block of `result`, which has room for all and outlives the loop, and reads what it has written.
        unsafe {
            let block = start.get().add(first_row * right.columns);
            multiply_panels(rows, panels, columns, (block, right.columns), false);
            for index in 0..if added.is_empty() { 0 } else { rows.rows } {
                let values = std::slice::from_raw_parts_mut(block.add(index * right.columns + first_panel * PANEL), added.len());
                values.iter_mut().zip(added).for_each(|(value, added)| *value += *added);
            }
        }
    });
    // SAFETY: the tasks have written every value.
    unsafe { result.set_len(left.rows * right.columns) };
    result
}

/// # Safety
/// `result` points to `left.rows` rows of `right.columns` values, as far apart as it says, of which nobody else touches those of the given panels.
unsafe fn multiply_panels<T: Real>(
    left: Matrix<'_, T>,
    right: Panels<'_, T>,
    panels: std::ops::Range<usize>,
    (result, stride): (*mut T, usize),
    add: bool,
) {
    if left.columns == 0 {
        return;
    }
    struct Task<'a, T> {
        left: Matrix<'a, T>,
        right: Panels<'a, T>,
        panels: std::ops::Range<usize>,
        result: *mut T,
        stride: usize,
        add: bool,
    }
    impl<T: Real> WithSimd for Task<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self { left, right, .. } = self;
            let depth = left.columns.div_ceil(left.columns.div_ceil(DEPTH));
            for from in (0..left.columns).step_by(depth) {
                let steps = depth.min(left.columns - from);
                for panel in self.panels.clone() {
                    let columns = PANEL.min(right.columns - panel * PANEL);
                    let values = right.values[panel * right.stride + from * PANEL..][..steps * PANEL].as_ptr();
                    let blocks = left.rows.div_ceil(ROWS);
                    for block in 0..blocks {
                        // As even as can be: a block of one or two rows would wait for its values.
                        let (row, end) = (left.rows * block / blocks, left.rows * (block + 1) / blocks);
                        // SAFETY: the strides describe a matrix inside of `left.values`; the caller vouches for `result`.
                        unsafe {
                            let block = Block {
                                left: left.values.as_ptr().add(row * left.row_stride + from * left.column_stride),
                                row_stride: left.row_stride,
                                step: left.column_stride,
                                panel: values,
                                steps,
                                result: self.result.add(row * self.stride + panel * PANEL),
                                stride: self.stride,
                                columns,
                                add: self.add || from > 0,
                            };
                            match end - row {
                                1 => block.compute::<S, 1>(simd),
                                2 => block.compute::<S, 2>(simd),
                                3 => block.compute::<S, 3>(simd),
                                4 => block.compute::<S, 4>(simd),
                                5 => block.compute::<S, 5>(simd),
                                _ => block.compute::<S, ROWS>(simd),
                            }
                        }
                    }
                }
            }
        }
    }
    pulp::Arch::new().dispatch(Task { left, right, panels, result, stride, add });
}

/// A few rows of one panel of a product.
struct Block<T> {
    left: *const T,
    row_stride: usize,
    step: usize,
    panel: *const T,
    steps: usize,
    result: *mut T,
    stride: usize,
    columns: usize,
    add: bool,
}

impl<T: Real> Block<T> {
    /// # Safety
    /// All of `HEIGHT` rows lie inside of the left side and of the result, which holds values where they are added to.
    #[inline(always)]
    unsafe fn compute<S: Simd, const HEIGHT: usize>(self, simd: S) {
        // SAFETY: of the caller; as many vectors as make up a panel.
        unsafe {
            match PANEL / Lanes::<S, T>::COUNT {
                1 => self.compute_in::<S, HEIGHT, 1>(simd),
                2 => self.compute_in::<S, HEIGHT, 2>(simd),
                4 => self.compute_in::<S, HEIGHT, 4>(simd),
                8 => self.compute_in::<S, HEIGHT, 8>(simd),
                16 => self.compute_in::<S, HEIGHT, 16>(simd),
                _ => unreachable!("vectors of a power of two"),
            }
        }
    }

    /// # Safety
    /// As for [`Self::compute`]; `WIDTH` vectors make up a panel.
    #[inline(always)]
    unsafe fn compute_in<S: Simd, const HEIGHT: usize, const WIDTH: usize>(self, simd: S) {
        // SAFETY: of the caller.
        unsafe {
            let mut sums = [[Lanes::<S, T>::zero(simd); WIDTH]; HEIGHT];
            let (mut panel, mut left) = (self.panel, self.left);
            for _ in 0..self.steps {
                let values: [_; WIDTH] = std::array::from_fn(
                    #[inline(always)]
                    |vector| Lanes::read(simd, panel.add(vector * Lanes::<S, T>::COUNT), Lanes::<S, T>::COUNT),
                );
                for (row, sums) in sums.iter_mut().enumerate() {
                    let factor = Lanes::splat(simd, *left.add(row * self.row_stride));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = factor.times_plus(value, *sum);
                    }
                }
                panel = panel.add(PANEL);
                left = left.add(self.step);
            }
            for (row, sums) in sums.iter().enumerate() {
                let target = self.result.add(row * self.stride);
                for (vector, sum) in sums.iter().enumerate() {
                    let first = vector * Lanes::<S, T>::COUNT;
                    if first >= self.columns {
                        break;
                    }
                    let room = (self.columns - first).min(Lanes::<S, T>::COUNT);
                    let target = target.add(first);
                    // What is not added to may be uninitialised.
                    let sum = if self.add { Lanes::read(simd, target, room) + *sum } else { *sum };
                    sum.write(target, room);
                }
            }
        }
    }
}

/// A pointer that tasks share, each writing to a place of its own.
struct SharedPointer<T>(*mut T);

// SAFETY: only the address is shared; whoever writes through it keeps the places apart.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    fn get(&self) -> *mut T {
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
        for (rows, inner, columns) in
            [(1, 1, 1), (3, 5, 150), (200, 9, 20), (70, 9, 129), (13, 800, 16), (3, 0, 2), (0, 3, 2), (3, 2, 0), (0, 0, 0)]
        {
            let (left, right) = (values(rows * inner, 5), values(inner * columns, 7));
            for (left_matrix, right_matrix) in [
                (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns)),
                (Matrix::new(&left, inner, rows).transposed(), Matrix::new(&right, columns, inner).transposed()),
            ] {
                let expected = naive(left_matrix, right_matrix);
                assert_eq!(product(left_matrix, right_matrix), expected);
                let mut twice = expected.clone();
                multiply(left_matrix, Panels::lay_out(right_matrix, &mut Vec::new()), &mut twice, true);
                assert!(twice.iter().zip(&expected).all(|(twice, once)| *twice == 2.0 * once));
                let mut anew = vec![f64::NAN; expected.len()];
                multiply(left_matrix, Panels::lay_out(right_matrix, &mut Vec::new()), &mut anew, false);
                assert_eq!(anew, expected);
            }
        }
    }

    #[test]
    fn a_lower_triangle_is_that_of_the_product() {
        for (size, inner, stride) in [(1, 1, 1), (7, 3, 9), (130, 40, 130), (233, 300, 240)] {
            let values: Vec<f64> = (0..size * inner).map(|index| ((index * 5) % 17) as f64 - 8.0).collect();
            let rows = Matrix::new(&values, size, inner);
            let expected = naive(rows, rows.transposed());
            let columns: Vec<f64> = (0..inner)
                .flat_map(|column| (0..size).map(move |row| (row, column)))
                .map(|(row, column)| values[row * inner + column])
                .collect();
            for left in [rows, Matrix::new(&columns, inner, size).transposed()] {
                let mut sum = vec![0.5; (size - 1) * stride + size];
                add_lower_product(left, rows.transposed(), &mut sum, stride);
                for row in 0..size {
                    let (found, expected) = (&sum[row * stride..][..=row], &expected[row * size..][..=row]);
                    assert!(found.iter().zip(expected).all(|(found, expected)| *found == expected + 0.5));
                    assert!(
                        sum[row * stride..].iter().take(stride).skip(size).all(|value| *value == 0.5),
                        "nothing is written between rows"
                    );
                }
            }
        }
    }

    /// What the batch normalisation, the features and the reuse of frozen parts rely on.
    #[test]
    fn a_row_does_not_depend_on_the_rows_and_columns_beside_it() {
        let values = |count: usize, step: usize| (0..count).map(|index| ((index * step) % 1009) as f32 / 7.0).collect::<Vec<f32>>();
        let (rows, inner, columns) = (100, 700, 90);
        let (left, right) = (values(rows * inner, 31), values(inner * columns, 17));
        let whole = product(Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns));
        for row in [0, 5, 6, 47, 99] {
            let alone = product(Matrix::new(&left[row * inner..][..inner], 1, inner), Matrix::new(&right, inner, columns));
            assert_eq!(alone, whole[row * columns..][..columns]);
        }
    }
}
