//! Averages of a network's weights over its training.

use std::collections::BTreeMap;

use candle_core::{Result, bail};
use dcu_artifact::{Array, Tensor as Stored};
use rayon::prelude::*;

use crate::network::{Network, Values};
use crate::vector::vectorised;

const CHUNK: usize = 1 << 14;
/// What the names of an average's tensors end with in a snapshot.
pub(crate) const SUFFIX: &str = "@average";
/// How many networks went into it.
const COUNT: &str = "@averaged";

/// How much each network counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weighting {
    /// As much as each other.
    Even,
    /// The average keeps this share of itself, at most (1 + n) / (10 + n) where it was made of n networks before, and takes the rest from the new one.
    Decaying(f64),
}

/// An average of the parameters and buffers of one network over time, or of several alike. Whole numbers are not averaged; the last ones count.
#[derive(Debug, Clone, PartialEq)]
pub struct Average {
    weighting: Weighting,
    tensors: BTreeMap<String, Stored>,
    count: u64,
}

/// What takes a tensor: its name, its shape and its values.
type Take<'a> = dyn FnMut(&str, &[usize], Values<'_>) -> Result<()> + 'a;

impl Average {
    /// An average of nothing.
    #[must_use]
    pub fn new(weighting: Weighting) -> Self {
        Self { weighting, tensors: BTreeMap::new(), count: 0 }
    }

    /// Takes a network as it is now into the average; the first one becomes it.
    ///
    /// # Errors
    /// When its tensors are not those of the networks before, or cannot be read.
    pub fn add(&mut self, network: &Network) -> Result<()> {
        self.add_each(|take| network.for_each_tensor(take))
    }

    /// Takes the tensors with which `each` calls the function that it is given.
    fn add_each(&mut self, each: impl FnOnce(&mut Take<'_>) -> Result<()>) -> Result<()> {
        let weight = match self.weighting {
            Weighting::Even => 1.0 / (self.count + 1) as f64,
            Weighting::Decaying(decay) => 1.0 - decay.min((1 + self.count) as f64 / (10 + self.count) as f64),
        };
        let (first, mut met) = (self.count == 0, 0);
        each(&mut |name, shape, values| {
            met += 1;
            if first {
                self.tensors.insert(name.to_owned(), values.to_stored(shape));
                return Ok(());
            }
            let Some(average) = self.tensors.get_mut(name) else { bail!("the average is of tensors with other names than `{name}`") };
            if average.shape() != shape {
                bail!("the average of `{name}` has the shape {:?}, the tensor {shape:?}", average.shape());
            }
            match (average, values) {
                (Stored::F32(average), Values::F32(new)) => blend(&mut average.data, new, weight as f32),
                (Stored::F64(average), Values::F64(new)) => blend(&mut average.data, new, weight),
                (Stored::I64(average), Values::I64(new)) => average.data.copy_from_slice(new),
                (average, _) => bail!("the average of `{name}` is of {:?}, the tensor of another type", average.dtype()),
            }
            Ok(())
        })?;
        if met != self.tensors.len() {
            bail!("the average is of {} tensors, and now there are {met}", self.tensors.len());
        }
        self.count += 1;
        Ok(())
    }

    /// The average; nothing, before there is one.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// The state, as tensors by names that end with `@average` or `@averaged`.
    #[must_use]
    pub fn to_tensors(&self) -> BTreeMap<String, Stored> {
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{name}{SUFFIX}"), tensor.clone()));
        named.chain([(COUNT.to_owned(), Stored::U64(Array::vector(vec![self.count])))]).collect()
    }

    /// An average with the state that is among the tensors of a snapshot, from which it is taken.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_from(weighting: Weighting, snapshot: &mut BTreeMap<String, Stored>) -> Result<Self> {
        let count = match snapshot.remove(COUNT) {
            Some(Stored::U64(array)) if array.data.len() == 1 => array.data[0],
            _ => bail!("`{COUNT}` is missing, or not one U64"),
        };
        let tensors = take_ending(snapshot, SUFFIX);
        if tensors.is_empty() != (count == 0) {
            bail!("the average is of {count} networks, but has {} tensors", tensors.len());
        }
        Ok(Self { weighting, tensors, count })
    }
}

/// Takes the tensors whose names end with `suffix` out of a snapshot, under their names without it.
pub(crate) fn take_ending(snapshot: &mut BTreeMap<String, Stored>, suffix: &str) -> BTreeMap<String, Stored> {
    let (taken, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        std::mem::take(snapshot).into_iter().partition(|(name, _)| name.ends_with(suffix));
    *snapshot = rest;
    taken.into_iter().map(|(name, tensor)| (name[..name.len() - suffix.len()].to_owned(), tensor)).collect()
}

/// `average += weight · (new - average)`.
fn blend<T>(average: &mut [T], new: &[T], weight: T)
where
    T: Copy + Send + Sync + std::ops::Sub<Output = T> + std::ops::Mul<Output = T> + std::ops::AddAssign,
{
    average.par_chunks_mut(CHUNK).zip(new.par_chunks(CHUNK)).for_each(|(average, new)| {
        vectorised(
            #[inline(always)]
            || {
                for (average, &new) in average.iter_mut().zip(new) {
                    *average += weight * (new - *average);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f64) -> BTreeMap<String, Stored> {
        BTreeMap::from([
            ("count".to_owned(), Stored::I64(Array::vector(vec![value as i64]))),
            ("single".to_owned(), Stored::F32(Array::vector(vec![value as f32, -2.0 * value as f32]))),
            ("wide".to_owned(), Stored::F64(Array::vector(vec![value]))),
        ])
    }

    fn add(average: &mut Average, tensors: BTreeMap<String, Stored>) -> Result<()> {
        average.add_each(|take| {
            tensors.iter().try_for_each(|(name, tensor)| {
                let values = match tensor {
                    Stored::F32(array) => Values::F32(&array.data),
                    Stored::F64(array) => Values::F64(&array.data),
                    Stored::I64(array) => Values::I64(&array.data),
                    other => panic!("{other:?}"),
                };
                take(name, tensor.shape(), values)
            })
        })
    }

    fn wide(average: &Average) -> f64 {
        match &average.tensors()["wide"] {
            Stored::F64(array) => array.data[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_average_is_even_or_forgets() {
        let values = [4.0, 1.0, 7.0, 0.0];
        let (mut even, mut decaying) = (Average::new(Weighting::Even), Average::new(Weighting::Decaying(0.25)));
        for value in values {
            add(&mut even, tensors(value)).unwrap();
            add(&mut decaying, tensors(value)).unwrap();
        }
        assert!((wide(&even) - 3.0).abs() < 1e-15);
        assert_eq!(even.tensors()["count"], Stored::I64(Array::vector(vec![0])), "the last");
        // After one set it keeps 2 / 11 of itself, then 3 / 12 and, as given, 0.25.
        let expected =
            values[1..].iter().zip([2.0 / 11.0, 0.25, 0.25]).fold(4.0, |average, (value, kept)| kept * average + (1.0 - kept) * value);
        assert!((wide(&decaying) - expected).abs() < 1e-15);
        assert_eq!(decaying.tensors()["single"].shape(), [2]);
    }

    #[test]
    fn an_average_goes_on_from_its_state() {
        let mut whole = Average::new(Weighting::Decaying(0.9));
        add(&mut whole, tensors(1.0)).unwrap();
        let mut snapshot = whole.to_tensors();
        snapshot.extend(tensors(5.0));
        let mut resumed = Average::take_from(Weighting::Decaying(0.9), &mut snapshot).unwrap();
        assert_eq!(snapshot, tensors(5.0));
        add(&mut whole, tensors(2.0)).unwrap();
        add(&mut resumed, tensors(2.0)).unwrap();
        assert_eq!(resumed, whole);
        assert!(Average::take_from(Weighting::Even, &mut snapshot).is_err());
    }

    #[test]
    fn other_tensors_are_refused() {
        let refused = |change: &dyn Fn(&mut BTreeMap<String, Stored>)| {
            let (mut average, mut other) = (Average::new(Weighting::Even), tensors(1.0));
            change(&mut other);
            add(&mut average, tensors(1.0)).unwrap();
            add(&mut average, other).unwrap_err().to_string()
        };
        assert!(refused(&|tensors| drop(tensors.remove("wide"))).contains("of 3 tensors, and now there are 2"));
        assert!(refused(&|tensors| drop(tensors.insert("other".into(), tensors["wide"].clone()))).contains("other names than `other`"));
        assert!(refused(&|tensors| drop(tensors.insert("wide".into(), Stored::F64(Array::vector(vec![1.0; 2]))))).contains("`wide`"));
        assert!(refused(&|tensors| drop(tensors.insert("wide".into(), Stored::F32(Array::vector(vec![1.0]))))).contains("`wide`"));
    }
}
