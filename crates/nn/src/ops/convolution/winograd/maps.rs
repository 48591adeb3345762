//! The linear maps of Winograd's algorithm, on some channels at once.
//!
//! Tiles of 6 evaluate at 0, ±1/√2, ±√2 and ∞, which loses fewer digits than the usual 0, ±1, ±2 and ∞.
//!
//! All of it must be inlined into a function that is compiled for the processor's vectors, so it is written in loops: closures and the
//! functions of arrays are not always.

use crate::matrix::Real;

/// Some channels of one value of a tile.
pub(super) type Lanes<T, const L: usize> = [T; L];
/// The values of a tile, row by row.
pub(super) type Tile<T, const L: usize, const SIDE: usize> = [[Lanes<T, L>; SIDE]; SIDE];

#[inline(always)]
pub(super) fn load<T: Real, const L: usize>(values: &[T], at: usize) -> Lanes<T, L> {
    let mut lanes = [T::default(); L];
    lanes.copy_from_slice(&values[at..at + L]);
    lanes
}

#[inline(always)]
pub(super) fn store<T: Real, const L: usize>(values: &mut [T], at: usize, lanes: &Lanes<T, L>) {
    values[at..at + L].copy_from_slice(lanes);
}

#[inline(always)]
pub(super) fn load_tile<T: Real, const L: usize, const SIDE: usize>(values: &[T], stride: usize, at: usize) -> Tile<T, L, SIDE> {
    let mut tile = [[[T::default(); L]; SIDE]; SIDE];
    for (i, row) in tile.iter_mut().enumerate() {
        for (j, lanes) in row.iter_mut().enumerate() {
            *lanes = load(values, (i * SIDE + j) * stride + at);
        }
    }
    tile
}

#[inline(always)]
pub(super) fn store_tile<T: Real, const L: usize, const SIDE: usize>(tile: &Tile<T, L, SIDE>, values: &mut [T], stride: usize, at: usize) {
    for (i, row) in tile.iter().enumerate() {
        for (j, lanes) in row.iter().enumerate() {
            store(values, (i * SIDE + j) * stride + at, lanes);
        }
    }
}

#[inline(always)]
pub(super) fn add<T: Real, const L: usize>(mut left: Lanes<T, L>, right: Lanes<T, L>) -> Lanes<T, L> {
    for lane in 0..L {
        left[lane] += right[lane];
    }
    left
}

#[inline(always)]
fn sub<T: Real, const L: usize>(mut left: Lanes<T, L>, right: Lanes<T, L>) -> Lanes<T, L> {
    for lane in 0..L {
        left[lane] -= right[lane];
    }
    left
}

#[inline(always)]
fn times<T: Real, const L: usize>(mut values: Lanes<T, L>, factor: f64) -> Lanes<T, L> {
    let factor = T::from_f64(factor);
    for value in &mut values {
        *value *= factor;
    }
    values
}

/// `values · factor + term`.
#[inline(always)]
fn scaled<T: Real, const L: usize>(mut values: Lanes<T, L>, factor: f64, term: Lanes<T, L>) -> Lanes<T, L> {
    let factor = T::from_f64(factor);
    for lane in 0..L {
        values[lane] = values[lane].times_plus(factor, term[lane]);
    }
    values
}

/// The points at which tiles of 6 evaluate: 0, ±`NEAR`, ±`FAR`, ∞. Their squares are 1/2 and 2.
const NEAR: f64 = std::f64::consts::FRAC_1_SQRT_2;
const FAR: f64 = std::f64::consts::SQRT_2;

/// `Bᵀ x`, from pixels to the transformed domain.
#[inline(always)]
pub(super) fn data<T: Real, const L: usize, const SIDE: usize>(x: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[0] = sub(x[0], x[2]);
        y[1] = add(x[1], x[2]);
        y[2] = sub(x[2], x[1]);
        y[3] = sub(x[1], x[3]);
    } else {
        let (even, odd) = (scaled(x[2], -2.0, x[4]), scaled(x[1], -2.0, x[3]));
        y[0] = scaled(x[2], -2.5, add(x[0], x[4]));
        y[1] = scaled(odd, NEAR, even);
        y[2] = scaled(odd, -NEAR, even);
        let (even, odd) = (scaled(x[2], -0.5, x[4]), scaled(x[1], -0.5, x[3]));
        y[3] = scaled(odd, FAR, even);
        y[4] = scaled(odd, -FAR, even);
        y[5] = scaled(x[3], -2.5, add(x[1], x[5]));
    }
    y
}

/// `B y`, its adjoint.
#[inline(always)]
pub(super) fn data_adjoint<T: Real, const L: usize, const SIDE: usize>(y: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[1] = add(sub(y[1], y[2]), y[3]);
        x[2] = sub(add(y[1], y[2]), y[0]);
        x[3] = sub([T::default(); L], y[3]);
    } else {
        let (near, far) = (add(y[1], y[2]), add(y[3], y[4]));
        let (near_odd, far_odd) = (sub(y[1], y[2]), sub(y[3], y[4]));
        x[1] = scaled(near_odd, -2.0 * NEAR, scaled(far_odd, -0.5 * FAR, y[5]));
        x[2] = scaled(y[0], -2.5, scaled(near, -2.0, scaled(far, -0.5, [T::default(); L])));
        x[3] = scaled(near_odd, NEAR, scaled(far_odd, FAR, scaled(y[5], -2.5, [T::default(); L])));
        x[4] = add(y[0], add(near, far));
    }
    x
}

/// `Aᵀ y`, from the transformed domain to the first `SIDE - 2` results; the others are not used.
#[inline(always)]
pub(super) fn results<T: Real, const L: usize, const SIDE: usize>(y: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[0] = add(y[0], add(y[1], y[2]));
        x[1] = sub(sub(y[1], y[2]), y[3]);
    } else {
        let (near, far) = (add(y[1], y[2]), add(y[3], y[4]));
        let (near_odd, far_odd) = (sub(y[1], y[2]), sub(y[3], y[4]));
        x[0] = add(y[0], add(near, far));
        x[1] = scaled(near_odd, NEAR, scaled(far_odd, FAR, [T::default(); L]));
        x[2] = scaled(near, 0.5, add(far, far));
        x[3] = scaled(near_odd, 0.5 * NEAR, scaled(far_odd, 2.0 * FAR, y[5]));
    }
    x
}

/// `A x`, its adjoint: only the first `SIDE - 2` values are read.
#[inline(always)]
pub(super) fn results_adjoint<T: Real, const L: usize, const SIDE: usize>(x: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[1] = add(x[0], x[1]);
        y[2] = sub(x[0], x[1]);
        y[3] = sub([T::default(); L], x[1]);
    } else {
        let (even, odd) = (scaled(x[2], 0.5, x[0]), scaled(x[3], 0.5, x[1]));
        y[1] = scaled(odd, NEAR, even);
        y[2] = scaled(odd, -NEAR, even);
        let (even, odd) = (scaled(x[2], 2.0, x[0]), scaled(x[3], 2.0, x[1]));
        y[3] = scaled(odd, FAR, even);
        y[4] = scaled(odd, -FAR, even);
        y[5] = x[3];
    }
    y
}

/// The other factors of `G` for the points ±`NEAR` and ±`FAR`.
const NEAR_WEIGHT: f64 = -2.0 / 3.0;
const FAR_WEIGHT: f64 = 1.0 / 6.0;

/// `G w`, from the weight to the transformed domain.
#[inline(always)]
pub(super) fn weight<T: Real, const L: usize, const SIDE: usize>(w: [Lanes<T, L>; 3]) -> [Lanes<T, L>; SIDE] {
    let mut u = [[T::default(); L]; SIDE];
    u[0] = w[0];
    u[SIDE - 1] = w[2];
    if SIDE == 4 {
        let (even, odd) = (times(add(w[0], w[2]), 0.5), times(w[1], 0.5));
        u[1] = add(even, odd);
        u[2] = sub(even, odd);
    } else {
        let even = times(scaled(w[2], 0.5, w[0]), NEAR_WEIGHT);
        u[1] = scaled(w[1], NEAR_WEIGHT * NEAR, even);
        u[2] = scaled(w[1], -NEAR_WEIGHT * NEAR, even);
        let even = times(scaled(w[2], 2.0, w[0]), FAR_WEIGHT);
        u[3] = scaled(w[1], FAR_WEIGHT * FAR, even);
        u[4] = scaled(w[1], -FAR_WEIGHT * FAR, even);
    }
    u
}

/// `Gᵀ u`, its adjoint.
#[inline(always)]
pub(super) fn weight_adjoint<T: Real, const L: usize, const SIDE: usize>(u: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; 3] {
    if SIDE == 4 {
        let (even, odd) = (times(add(u[1], u[2]), 0.5), times(sub(u[1], u[2]), 0.5));
        [add(u[0], even), odd, add(even, u[3])]
    } else {
        let (near, far) = (times(add(u[1], u[2]), NEAR_WEIGHT), times(add(u[3], u[4]), FAR_WEIGHT));
        let odd = scaled(sub(u[3], u[4]), FAR_WEIGHT * FAR, times(sub(u[1], u[2]), NEAR_WEIGHT * NEAR));
        [add(u[0], add(near, far)), odd, scaled(near, 0.5, scaled(far, 2.0, u[5]))]
    }
}
