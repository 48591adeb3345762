//! Random numbers from named streams: the same name gives the same numbers, whatever else draws.
//!
//! A stream is named by seed, method, replicate, purpose and index. Nothing in this workspace draws from anywhere else.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The streams of one run of a method.
#[derive(Debug, Clone)]
pub struct Streams {
    seed: u64,
    method: String,
    replicate: u32,
}

impl Streams {
    /// The streams of `method`, such as `train/fit`, under `seed`.
    #[must_use]
    pub fn new(seed: u64, method: &str) -> Self {
        Self { seed, method: method.to_owned(), replicate: 1 }
    }

    /// The seed that all of them come from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The streams of another independent run with the same seed.
    #[must_use]
    pub fn replicate(self, replicate: u32) -> Self {
        Self { replicate, ..self }
    }

    /// The stream for `purpose`.
    #[must_use]
    pub fn stream(&self, purpose: &str) -> Stream {
        self.indexed(purpose, 0)
    }

    /// The stream for step `index` of `purpose`, such as the shuffle of one epoch.
    #[must_use]
    pub fn indexed(&self, purpose: &str, index: u64) -> Stream {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&u64::from(self.replicate).to_le_bytes());
        hasher.update(&index.to_le_bytes());
        for text in [self.method.as_str(), purpose] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Stream { generator: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()) }
    }
}

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// A number in 0..1, with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.generator.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// A number in 0..1, with 53 random bits.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A standard normal number (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform_f64()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform_f64()).cos()) as f32
    }

    /// A number in 0..bound.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.generator.random_range(0..bound)
    }

    /// The numbers 0..count in random order.
    #[must_use]
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        self.shuffle(&mut order);
        order
    }

    /// Puts the values in random order.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        values.shuffle(&mut self.generator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_name_gives_another_stream() {
        let draw = |mut stream: Stream| stream.generator.next_u64();
        let base = Streams::new(1, "train/fit");
        let draws = [
            draw(base.stream("shuffle")),
            draw(Streams::new(2, "train/fit").stream("shuffle")),
            draw(Streams::new(1, "train/offline").stream("shuffle")),
            draw(base.stream("init")),
            draw(base.indexed("shuffle", 1)),
            draw(base.clone().replicate(2).stream("shuffle")),
        ];
        let distinct: std::collections::BTreeSet<u64> = draws.into_iter().collect();
        assert_eq!(distinct.len(), draws.len());
        assert_eq!(draws[0], draw(base.stream("shuffle")));
    }

    #[test]
    fn numbers_have_the_moments_of_their_distribution() {
        let mut stream = Streams::new(7, "test").stream("moments");
        let count = 100_000;
        let uniform: f64 = (0..count).map(|_| f64::from(stream.uniform())).sum::<f64>() / f64::from(count);
        assert!((uniform - 0.5).abs() < 0.005, "{uniform}");
        let normal: Vec<f64> = (0..count).map(|_| f64::from(stream.normal())).collect();
        let mean = normal.iter().sum::<f64>() / f64::from(count);
        let variance = normal.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / f64::from(count);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = Streams::new(7, "test").stream("order").permutation(1000);
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
