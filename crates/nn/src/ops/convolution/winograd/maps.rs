//! The linear maps of Winograd's algorithm, on some channels at once.
//!
//! Tiles of 6 evaluate at 0, ±1/√2, ±√2 and ∞, which loses fewer digits than the usual 0, ±1, ±2 and ∞.

use pulp::Simd;

use crate::vector::{Lanes, Real};

/// A linear map applied to `$columns` columns of a tile and then to `$rows` of its rows: `$load` gives the value at `($i, $j)`, and `$store`
/// takes `$value` there. No function, since one that is handed a map calls it out of line.
macro_rules! both_ways {
    ($simd:expr, $map:ident, $columns:expr => $rows:expr, ($i:ident, $j:ident) => $load:expr, $value:ident => $store:expr) => {{
        // Not filled with zeros, which would be a call for each tile.
        let mut tile = [[const { std::mem::MaybeUninit::<Lanes<S, T>>::uninit() }; SIDE]; SIDE];
        for $j in 0..$columns {
            let mut column = [Lanes::zero($simd); SIDE];
            for $i in 0..SIDE {
                column[$i] = $load;
            }
            let column = $map(column);
            for $i in 0..SIDE {
                tile[$i][$j].write(column[$i]);
            }
        }
        for $i in 0..$rows {
            let mut row = [Lanes::zero($simd); SIDE];
            for $j in 0..$columns {
                // SAFETY: these columns were written.
                row[$j] = unsafe { tile[$i][$j].assume_init() };
            }
            let row = $map(row);
            for $j in 0..SIDE {
                let $value = row[$j];
                $store;
            }
        }
    }};
}
pub(super) use both_ways;

/// The points at which tiles of 6 evaluate: 0, ±`NEAR`, ±`FAR`, ∞. Their squares are 1/2 and 2.
const NEAR: f64 = std::f64::consts::FRAC_1_SQRT_2;
const FAR: f64 = std::f64::consts::SQRT_2;

/// `Bᵀ x`, from pixels to the transformed domain.
#[inline(always)]
pub(super) fn data<S: Simd, T: Real, const SIDE: usize>(x: [Lanes<S, T>; SIDE]) -> [Lanes<S, T>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[0] = x[0] - x[2];
        y[1] = x[1] + x[2];
        y[2] = x[2] - x[1];
        y[3] = x[1] - x[3];
    } else {
        let (even, odd) = (x[2].scaled_plus(-2.0, x[4]), x[1].scaled_plus(-2.0, x[3]));
        y[0] = x[2].scaled_plus(-2.5, x[0] + x[4]);
        y[1] = odd.scaled_plus(NEAR, even);
        y[2] = odd.scaled_plus(-NEAR, even);
        let (even, odd) = (x[2].scaled_plus(-0.5, x[4]), x[1].scaled_plus(-0.5, x[3]));
        y[3] = odd.scaled_plus(FAR, even);
        y[4] = odd.scaled_plus(-FAR, even);
        y[5] = x[3].scaled_plus(-2.5, x[1] + x[5]);
    }
    y
}

/// `B y`, its adjoint.
#[inline(always)]
pub(super) fn data_adjoint<S: Simd, T: Real, const SIDE: usize>(y: [Lanes<S, T>; SIDE]) -> [Lanes<S, T>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[1] = y[1] - y[2] + y[3];
        x[2] = y[1] + y[2] - y[0];
        x[3] = -y[3];
    } else {
        let (near, far) = (y[1] + y[2], y[3] + y[4]);
        let (near_odd, far_odd) = (y[1] - y[2], y[3] - y[4]);
        x[1] = near_odd.scaled_plus(-2.0 * NEAR, far_odd.scaled_plus(-0.5 * FAR, y[5]));
        x[2] = y[0].scaled_plus(-2.5, near.scaled_plus(-2.0, far.scaled(-0.5)));
        x[3] = near_odd.scaled_plus(NEAR, far_odd.scaled_plus(FAR, y[5].scaled(-2.5)));
        x[4] = y[0] + (near + far);
    }
    x
}

/// `Aᵀ y`, from the transformed domain to the first `SIDE - 2` results; the others are not used.
#[inline(always)]
pub(super) fn results<S: Simd, T: Real, const SIDE: usize>(y: [Lanes<S, T>; SIDE]) -> [Lanes<S, T>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[0] = y[0] + (y[1] + y[2]);
        x[1] = y[1] - y[2] - y[3];
    } else {
        let (near, far) = (y[1] + y[2], y[3] + y[4]);
        let (near_odd, far_odd) = (y[1] - y[2], y[3] - y[4]);
        x[0] = y[0] + (near + far);
        x[1] = near_odd.scaled_plus(NEAR, far_odd.scaled(FAR));
        x[2] = near.scaled_plus(0.5, far + far);
        x[3] = near_odd.scaled_plus(0.5 * NEAR, far_odd.scaled_plus(2.0 * FAR, y[5]));
    }
    x
}

/// `A x`, its adjoint: only the first `SIDE - 2` values are read.
#[inline(always)]
pub(super) fn results_adjoint<S: Simd, T: Real, const SIDE: usize>(x: [Lanes<S, T>; SIDE]) -> [Lanes<S, T>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[1] = x[0] + x[1];
        y[2] = x[0] - x[1];
        y[3] = -x[1];
    } else {
        let (even, odd) = (x[2].scaled_plus(0.5, x[0]), x[3].scaled_plus(0.5, x[1]));
        y[1] = odd.scaled_plus(NEAR, even);
        y[2] = odd.scaled_plus(-NEAR, even);
        let (even, odd) = (x[2].scaled_plus(2.0, x[0]), x[3].scaled_plus(2.0, x[1]));
        y[3] = odd.scaled_plus(FAR, even);
        y[4] = odd.scaled_plus(-FAR, even);
        y[5] = x[3];
    }
    y
}

/// The other factors of `G` for the points ±`NEAR` and ±`FAR`.
const NEAR_WEIGHT: f64 = -2.0 / 3.0;
const FAR_WEIGHT: f64 = 1.0 / 6.0;

/// `G w`, from the weight to the transformed domain.
#[inline(always)]
pub(super) fn weight<S: Simd, T: Real, const SIDE: usize>(w: [Lanes<S, T>; 3]) -> [Lanes<S, T>; SIDE] {
    let mut u = [w[0]; SIDE];
    u[SIDE - 1] = w[2];
    if SIDE == 4 {
        let (even, odd) = ((w[0] + w[2]).scaled(0.5), w[1].scaled(0.5));
        u[1] = even + odd;
        u[2] = even - odd;
    } else {
        let even = w[2].scaled_plus(0.5, w[0]).scaled(NEAR_WEIGHT);
        u[1] = w[1].scaled_plus(NEAR_WEIGHT * NEAR, even);
        u[2] = w[1].scaled_plus(-NEAR_WEIGHT * NEAR, even);
        let even = w[2].scaled_plus(2.0, w[0]).scaled(FAR_WEIGHT);
        u[3] = w[1].scaled_plus(FAR_WEIGHT * FAR, even);
        u[4] = w[1].scaled_plus(-FAR_WEIGHT * FAR, even);
    }
    u
}

/// `Gᵀ u`, its adjoint.
#[inline(always)]
pub(super) fn weight_adjoint<S: Simd, T: Real, const SIDE: usize>(u: [Lanes<S, T>; SIDE]) -> [Lanes<S, T>; 3] {
    if SIDE == 4 {
        let (even, odd) = ((u[1] + u[2]).scaled(0.5), (u[1] - u[2]).scaled(0.5));
        [u[0] + even, odd, even + u[3]]
    } else {
        let (near, far) = ((u[1] + u[2]).scaled(NEAR_WEIGHT), (u[3] + u[4]).scaled(FAR_WEIGHT));
        let odd = (u[3] - u[4]).scaled_plus(FAR_WEIGHT * FAR, (u[1] - u[2]).scaled(NEAR_WEIGHT * NEAR));
        [u[0] + (near + far), odd, near.scaled_plus(0.5, far.scaled_plus(2.0, u[5]))]
    }
}
