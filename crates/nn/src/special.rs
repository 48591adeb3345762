//! Functions of a number, written without branches, so that the compiler makes vectors of the loops that call them.

/// e to this power: within two units in the last place, and 0 below 2e-38, where the numbers end that are as exact as others.
#[inline(always)]
pub(crate) fn exponential(value: f32) -> f32 {
    // Added to a number it leaves the nearest whole number in the last bits.
    const ROUNDS: f32 = 12_582_912.0;
    const LEAST: f32 = -86.8;
    const LARGEST: f32 = 88.722_83;
    // ln 2 in two parts, of which the first has few bits.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // (eʳ - 1 - r) / r² for |r| <= ln 2 / 2, fitted in Chebyshev nodes.
    const TERMS: [f32; 5] = [0.001392625, 0.008363233, 0.041666552, 0.16666576, 0.5];
    let bounded = if value > LARGEST { LARGEST } else { value };
    let bounded = if bounded < LEAST { LEAST } else { bounded };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUNDS);
    let power = shifted - ROUNDS;
    let rest = power.mul_add(-LN_2[1], power.mul_add(-LN_2[0], bounded));
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum.mul_add(rest, *term);
    }
    let result = sum.mul_add(rest * rest, rest) + 1.0;
    // In two steps, since 2^128 is too large for one.
    let half = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let scaled = result * half * 2.0;
    let scaled = if value > LARGEST { f32::INFINITY } else { scaled };
    if value < LEAST { 0.0 } else { scaled }
}

macro_rules! gelu {
    ($name:ident, $type:ident, $exponential:path, $pace:literal, $coefficients:expr) => {
        /// `x Φ(x)` and its derivative `Φ(x) + x φ(x)`, with the standard normal's distribution Φ and density φ.
        ///
        /// For a <= 0, `Φ(a) = exp(-a²/2) · t · q(t)` with `t = 1 / (1 - pace · a)`, where the polynomial q in `2t - 1` was fitted in Chebyshev nodes to
        /// the complementary error function of forty digits; for larger ones it is `1 - Φ(-a)`.
        #[inline(always)]
        pub(crate) fn $name(value: $type) -> [$type; 2] {
            const TERMS: &[$type] = &$coefficients;
            const ROOT_OF_INVERSE_TAU: $type = 0.398_942_280_401_432_7_f64 as $type;
            let size = value.abs();
            let square = size * size;
            // What the rounding of the square took away.
            let lost = size.mul_add(size, -square);
            let lost = if square < 1e30 { lost } else { 0.0 };
            let bell = $exponential(-0.5 * square) * lost.mul_add(-0.5, 1.0);
            let place = 1.0 / size.mul_add($pace, 1.0);
            let centred = place.mul_add(2.0, -1.0);
            let mut sum = TERMS[0];
            for &term in &TERMS[1..] {
                sum = sum.mul_add(centred, term);
            }
            let tail = bell * place * sum;
            let share = if value > 0.0 { 1.0 - tail } else { tail };
            [value * share, (value * bell).mul_add(ROOT_OF_INVERSE_TAU, share)]
        }
    };
}

gelu!(
    gelu_f32,
    f32,
    exponential,
    0.3,
    [
        -4.0848357e-5,
        7.7834586e-5,
        2.8041695e-4,
        -5.7051383e-4,
        -2.4231635e-3,
        1.8162151e-3,
        2.7760258e-2,
        8.65497e-2,
        1.645795e-1,
        2.2197062e-1
    ]
);
gelu!(
    gelu_f64,
    f64,
    f64::exp,
    0.2,
    [
        -4.449877535432887e-10,
        1.5260820835746365e-9,
        2.1236548348478752e-9,
        -1.3335058678455143e-8,
        -8.75168319657115e-9,
        8.688781452752917e-8,
        6.749930407049264e-8,
        -5.540641888293904e-7,
        -7.962365483065155e-7,
        3.3363407219545358e-6,
        9.952570633006027e-6,
        -1.1875173233472142e-5,
        -1.0897981253917042e-4,
        -1.5957387497823867e-4,
        5.986753538188945e-4,
        4.159013359513971e-3,
        1.3823727741295963e-2,
        3.300407323410014e-2,
        6.270663133425942e-2,
        9.906112319399482e-2,
        1.3307650057801135e-1,
        1.5383860995001258e-1
    ]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_exact_to_the_last_places() {
        for step in -90_000..90_000 {
            let value = step as f32 * 1e-3;
            let (found, exact) = (f64::from(exponential(value)), f64::from(value).exp());
            if value < -86.8 {
                assert_eq!(found, 0.0, "{value}");
            } else if exact > f64::from(f32::MAX) {
                assert_eq!(found, f64::INFINITY, "{value}");
            } else {
                assert!((found / exact - 1.0).abs() <= 1.5e-7, "{value}: {found} where {exact} is right");
            }
        }
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY, 0.0].map(exponential), [f32::INFINITY, 0.0, 1.0]);
        assert!(exponential(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_that_of_the_error_function() {
        for step in -15_000..15_000 {
            let value = f64::from(step) * 1e-3;
            let share = 0.5 * candle_core::cpu::erf::erfc_f64(-value / std::f64::consts::SQRT_2);
            let slope = share + value * (-0.5 * value * value).exp() / std::f64::consts::TAU.sqrt();
            let [found, found_slope] = gelu_f64(value);
            assert!((found - value * share).abs() <= 1e-14 && (found_slope - slope).abs() <= 1e-14, "{value}: {found} {found_slope}");
            let [found, found_slope] = gelu_f32(value as f32).map(f64::from);
            let scale = value.abs().max(1.0);
            assert!((found - value * share).abs() <= 2e-7 * scale && (found_slope - slope).abs() <= 4e-7, "{value}: {found} {found_slope}");
        }
        assert!(gelu_f32(f32::NAN)[0].is_nan() && gelu_f64(f64::NAN)[0].is_nan());
        assert_eq!((gelu_f32(f32::INFINITY)[0], gelu_f64(f64::INFINITY)[0]), (f32::INFINITY, f64::INFINITY));
    }
}
