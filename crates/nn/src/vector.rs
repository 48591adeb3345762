//! Numbers, and vectors of them as wide as the processor's.

use std::ops::{Add, Neg, Sub};

use candle_core::WithDType;
use pulp::Simd;

/// A number that matrix products and operations are written for: `f32`, and `f64` where a reference needs it.
pub trait Real:
    WithDType
    + Default
    + std::iter::Sum
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::ops::DivAssign
    + std::ops::Neg<Output = Self>
{
    /// One.
    const ONE: Self;
    /// Whether this is not a number.
    #[allow(clippy::wrong_self_convention, reason = "a number is passed as it is")]
    fn is_nan(self) -> bool;
    /// The square root.
    fn root(self) -> Self;
    /// The natural logarithm.
    fn log(self) -> Self;
    /// e to this power.
    fn exponential(self) -> Self;
    /// e to this power, in f32 within two units in the last place, without branches: loops that call it become vectors.
    fn quick_exponential(self) -> Self;
    /// `x Φ(x)` and its derivative, where Φ is the distribution of the standard normal.
    fn gelu(self) -> [Self; 2];
    /// `self · factor + term`, rounded once.
    fn times_plus(self, factor: Self, term: Self) -> Self;

    /// What [`Lanes`] are made of.
    #[doc(hidden)]
    type Vector<S: Simd>: Copy;
    #[doc(hidden)]
    fn vector_of<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    #[doc(hidden)]
    fn vector_sum<S: Simd>(simd: S, left: Self::Vector<S>, right: Self::Vector<S>) -> Self::Vector<S>;
    #[doc(hidden)]
    fn vector_difference<S: Simd>(simd: S, left: Self::Vector<S>, right: Self::Vector<S>) -> Self::Vector<S>;
    #[doc(hidden)]
    fn vector_product<S: Simd>(simd: S, left: Self::Vector<S>, right: Self::Vector<S>) -> Self::Vector<S>;
    #[doc(hidden)]
    fn vector_times_plus<S: Simd>(simd: S, left: Self::Vector<S>, right: Self::Vector<S>, term: Self::Vector<S>) -> Self::Vector<S>;
}

macro_rules! real {
    ($($type:ty, $vector:ident, $splat:ident, $add:ident, $subtract:ident, $multiply:ident, $multiply_add:ident, $exponential:path, $gelu:path;)*) => { $(
        impl Real for $type {
            const ONE: Self = 1.0;
            #[inline(always)]
            fn is_nan(self) -> bool { <$type>::is_nan(self) }
            fn root(self) -> Self { self.sqrt() }
            fn log(self) -> Self { self.ln() }
            fn exponential(self) -> Self { self.exp() }
            #[inline(always)]
            fn quick_exponential(self) -> Self { $exponential(self) }
            #[inline(always)]
            fn gelu(self) -> [Self; 2] { $gelu(self) }
            #[inline(always)]
            fn times_plus(self, factor: Self, term: Self) -> Self { self.mul_add(factor, term) }

            type Vector<S: Simd> = S::$vector;
            #[inline(always)]
            fn vector_of<S: Simd>(simd: S, value: Self) -> S::$vector { simd.$splat(value) }
            #[inline(always)]
            fn vector_sum<S: Simd>(simd: S, left: S::$vector, right: S::$vector) -> S::$vector { simd.$add(left, right) }
            #[inline(always)]
            fn vector_difference<S: Simd>(simd: S, left: S::$vector, right: S::$vector) -> S::$vector { simd.$subtract(left, right) }
            #[inline(always)]
            fn vector_product<S: Simd>(simd: S, left: S::$vector, right: S::$vector) -> S::$vector { simd.$multiply(left, right) }
            #[inline(always)]
            fn vector_times_plus<S: Simd>(simd: S, left: S::$vector, right: S::$vector, term: S::$vector) -> S::$vector {
                simd.$multiply_add(left, right, term)
            }
        }
    )* };
}

real! {
    f32, f32s, splat_f32s, add_f32s, sub_f32s, mul_f32s, mul_add_f32s, crate::special::exponential, crate::special::gelu_f32;
    f64, f64s, splat_f64s, add_f64s, sub_f64s, mul_f64s, mul_add_f64s, f64::exp, crate::special::gelu_f64;
}

/// Numbers of the widest vector: sixteen f32 of 512 bits.
pub(crate) const WIDEST: usize = 16;

/// As many numbers as fit into a register. What is written in these is compiled to vector instructions for certain; of loops the compiler
/// makes them where it sees through.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd, T: Real> {
    simd: S,
    vector: T::Vector<S>,
}

impl<S: Simd, T: Real> Lanes<S, T> {
    /// How many numbers these are.
    pub(crate) const COUNT: usize = {
        let count = size_of::<T::Vector<S>>() / size_of::<T>();
        assert!(count <= WIDEST, "vectors of 512 bits at most");
        count
    };

    #[inline(always)]
    pub(crate) fn splat(simd: S, value: T) -> Self {
        Self { simd, vector: T::vector_of(simd, value) }
    }

    #[inline(always)]
    pub(crate) fn zero(simd: S) -> Self {
        Self::splat(simd, T::default())
    }

    /// The values, [`Self::COUNT`] at most, and zeros where they are fewer.
    #[inline(always)]
    pub(crate) fn load(simd: S, values: &[T]) -> Self {
        // SAFETY: so many values can be read there.
        unsafe { Self::read(simd, values.as_ptr(), values.len()) }
    }

    /// `count` values, [`Self::COUNT`] at most, and zeros where they are fewer.
    ///
    /// # Safety
    /// So many values can be read there.
    #[inline(always)]
    pub(crate) unsafe fn read(simd: S, values: *const T, count: usize) -> Self {
        // SAFETY: of the caller; a vector consists of its numbers, and the widest one has as many as the buffer.
        unsafe {
            if count == Self::COUNT {
                return Self { simd, vector: values.cast::<T::Vector<S>>().read_unaligned() };
            }
            let mut buffer = [T::default(); WIDEST];
            buffer.as_mut_ptr().copy_from_nonoverlapping(values, count.min(WIDEST));
            Self { simd, vector: buffer.as_ptr().cast::<T::Vector<S>>().read_unaligned() }
        }
    }

    /// As many of the numbers as there is room for, [`Self::COUNT`] at most.
    #[inline(always)]
    pub(crate) fn store(self, values: &mut [T]) {
        // SAFETY: so many values can be written there.
        unsafe { self.write(values.as_mut_ptr(), values.len()) }
    }

    /// The first `count` numbers, [`Self::COUNT`] at most. What was there before is not read.
    ///
    /// # Safety
    /// So many values can be written there.
    #[inline(always)]
    pub(crate) unsafe fn write(self, values: *mut T, count: usize) {
        // SAFETY: as for reading.
        unsafe {
            if count == Self::COUNT {
                return values.cast::<T::Vector<S>>().write_unaligned(self.vector);
            }
            let mut buffer = [T::default(); WIDEST];
            buffer.as_mut_ptr().cast::<T::Vector<S>>().write_unaligned(self.vector);
            values.copy_from_nonoverlapping(buffer.as_ptr(), count.min(WIDEST));
        }
    }

    #[inline(always)]
    pub(crate) fn times(self, factor: Self) -> Self {
        Self { vector: T::vector_product(self.simd, self.vector, factor.vector), ..self }
    }

    /// `self · factor + term`, rounded once.
    #[inline(always)]
    pub(crate) fn times_plus(self, factor: Self, term: Self) -> Self {
        Self { vector: T::vector_times_plus(self.simd, self.vector, factor.vector, term.vector), ..self }
    }

    /// `self · factor`.
    #[inline(always)]
    pub(crate) fn scaled(self, factor: f64) -> Self {
        self.times(Self::splat(self.simd, T::from_f64(factor)))
    }

    /// `self · factor + term`, rounded once.
    #[inline(always)]
    pub(crate) fn scaled_plus(self, factor: f64, term: Self) -> Self {
        self.times_plus(Self::splat(self.simd, T::from_f64(factor)), term)
    }
}

impl<S: Simd, T: Real> Add for Lanes<S, T> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { vector: T::vector_sum(self.simd, self.vector, other.vector), ..self }
    }
}

impl<S: Simd, T: Real> Sub for Lanes<S, T> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self { vector: T::vector_difference(self.simd, self.vector, other.vector), ..self }
    }
}

impl<S: Simd, T: Real> Neg for Lanes<S, T> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Self::zero(self.simd) - self
    }
}

/// `body(first, lanes)` for `count` values, as many at a time as a vector has and then the rest of them.
#[inline(always)]
pub(crate) fn in_lanes<S: Simd, T: Real>(count: usize, body: impl FnMut(usize, usize)) {
    some_at_a_time(count, Lanes::<S, T>::COUNT, body);
}

/// `body(first, some)` for `count` values, `at_once` at a time and then the rest of them. Where `at_once` is a constant, so is its
/// argument in all calls but the last.
#[inline(always)]
pub(crate) fn some_at_a_time(count: usize, at_once: usize, mut body: impl FnMut(usize, usize)) {
    let whole = count / at_once * at_once;
    for first in (0..whole).step_by(at_once) {
        body(first, at_once);
    }
    if whole < count {
        body(whole, count - whole);
    }
}

/// Runs `work`, compiled for the vector instructions that this processor has; on x86 for those of 256 bits at most. Products take wider ones, loops that move and
/// add values gained nothing by them (a step of the CNN took 5 % longer).
#[inline]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(work);
    }
    pulp::Arch::new().dispatch(work)
}
