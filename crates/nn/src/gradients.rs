//! The gradients of a loss, by parameter.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};

/// A tensor for each of some parameters, by name: gradients, or anything else of their shape, such as a direction, an importance or a mask.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl FromIterator<(String, Tensor)> for Gradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self(tensors.into_iter().collect())
    }
}

impl Gradients {
    /// That of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The number of parameters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scalar product, in f64.
    ///
    /// # Errors
    /// When these are not of the same parameters.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        let mut sum = 0.0;
        for (_, left, right) in self.pairs(other)? {
            let wide = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64);
            sum += (wide(left)? * wide(right)?)?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum)
    }

    /// The Euclidean norm of all values together.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.dot(self)?.sqrt())
    }

    /// `self + factor · other`.
    ///
    /// # Errors
    /// When these are not of the same parameters.
    pub fn plus(&self, factor: f64, other: &Self) -> Result<Self> {
        let pairs = self.pairs(other)?;
        // Without a product that would round, or cost, for nothing.
        let sum = |left: &Tensor, right: &Tensor| if factor == 1.0 { left + right } else { left + (right * factor)? };
        pairs.map(|(name, left, right)| Ok((name.to_owned(), sum(left, right)?))).collect()
    }

    /// Each value times `factor`.
    ///
    /// # Errors
    /// When a tensor cannot be multiplied.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        self.map(|_, tensor| tensor * factor)
    }

    /// Each value times that of a mask.
    ///
    /// # Errors
    /// When the mask is not of the same parameters.
    pub fn masked(&self, mask: &Self) -> Result<Self> {
        self.pairs(mask)?.map(|(name, tensor, mask)| Ok((name.to_owned(), (tensor * mask)?))).collect()
    }

    /// Each value where a mask is not 0, elsewhere that of `other`.
    ///
    /// # Errors
    /// When these are not of the same parameters.
    pub fn chosen(&self, mask: &Self, other: &Self) -> Result<Self> {
        let chosen = |(name, tensor, mask): (&str, &Tensor, &Tensor)| {
            let (_, _, other) = self.pairs(other)?.find(|(known, _, _)| *known == name).expect("of the same parameters");
            Ok((name.to_owned(), mask.ne(0.0)?.where_cond(tensor, other)?))
        };
        self.pairs(mask)?.map(chosen).collect()
    }

    /// What `change` makes of each tensor.
    ///
    /// # Errors
    /// The first that `change` gives.
    pub fn map(&self, change: impl Fn(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        self.0.iter().map(|(name, tensor)| Ok((name.clone(), change(name, tensor)?))).collect()
    }

    /// Both tensors of each parameter.
    fn pairs<'a>(&'a self, other: &'a Self) -> Result<impl Iterator<Item = (&'a str, &'a Tensor, &'a Tensor)>> {
        if let Some(name) =
            self.0.keys().find(|name| !other.0.contains_key(*name)).or(other.0.keys().find(|name| !self.0.contains_key(*name)))
        {
            bail!("`{name}` is among one of the two sets of parameters only");
        }
        for ((name, left), right) in self.0.iter().zip(other.0.values()) {
            if left.dims() != right.dims() {
                bail!("`{name}` has the shape {:?} in one of the two sets of parameters and {:?} in the other", left.dims(), right.dims());
            }
        }
        Ok(self.0.iter().zip(other.0.values()).map(|((name, left), right)| (name.as_str(), left, right)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn of(values: &[(&str, &[f64])]) -> Gradients {
        values.iter().map(|(name, values)| ((*name).to_owned(), Tensor::new(*values, &Device::Cpu).unwrap())).collect()
    }

    fn values(gradients: &Gradients) -> Vec<Vec<f64>> {
        gradients.iter().map(|(_, tensor)| tensor.to_vec1().unwrap()).collect()
    }

    #[test]
    fn they_are_one_vector() {
        let (left, right) = (of(&[("a", &[1.0, 2.0]), ("b", &[3.0])]), of(&[("a", &[4.0, -1.0]), ("b", &[0.5])]));
        assert_eq!(left.dot(&right).unwrap(), 3.5);
        assert_eq!(of(&[("a", &[3.0]), ("b", &[4.0])]).norm().unwrap(), 5.0);
        assert_eq!(values(&left.plus(2.0, &right).unwrap()), [vec![9.0, 0.0], vec![4.0]]);
        assert_eq!(values(&left.plus(1.0, &right).unwrap()), [vec![5.0, 1.0], vec![3.5]]);
        assert_eq!(values(&left.scaled(-1.0).unwrap()), [vec![-1.0, -2.0], vec![-3.0]]);
        assert_eq!(values(&left.masked(&of(&[("a", &[0.0, 1.0]), ("b", &[1.0])])).unwrap()), [vec![0.0, 2.0], vec![3.0]]);
        assert_eq!(
            values(&left.map(|name, tensor| if name == "b" { tensor.sqr() } else { tensor.neg() }).unwrap()),
            [vec![-1.0, -2.0], vec![9.0]]
        );
    }

    #[test]
    fn what_is_masked_out_comes_from_the_other() {
        let (left, right) = (of(&[("a", &[1.0, 2.0]), ("b", &[3.0])]), of(&[("a", &[4.0, -1.0]), ("b", &[0.5])]));
        let mask = of(&[("a", &[0.0, 1.0]), ("b", &[0.0])]);
        assert_eq!(values(&left.chosen(&mask, &right).unwrap()), [vec![4.0, 2.0], vec![0.5]]);
    }

    #[test]
    fn those_of_other_parameters_are_refused() {
        let left = of(&[("a", &[1.0]), ("b", &[2.0])]);
        for (right, name) in [
            (of(&[("a", &[1.0])]), "`b`"),
            (of(&[("a", &[1.0]), ("b", &[2.0]), ("c", &[3.0])]), "`c`"),
            (of(&[("a", &[1.0]), ("b", &[2.0; 2])]), "`b`"),
        ] {
            for result in [left.dot(&right).map(drop), left.plus(1.0, &right).map(drop), left.masked(&right).map(drop)] {
                assert!(result.unwrap_err().to_string().contains(name));
            }
        }
    }
}
