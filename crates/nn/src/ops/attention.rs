//! Scaled dot-product attention, forward and backward, a head at a time.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{composed, dtype_of, for_real, stored, values, with_values};
use crate::matrix::{Matrix, Panels, Real, multiply};

/// `softmax(q · kᵀ / √D) · v` of each head (Vaswani et al., arXiv 1706.03762): queries, keys, values and result are [N, heads, T, D].
///
/// # Errors
/// When the shapes differ or a tensor is neither f32 nor f64.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (_, _, tokens, width) = queries.dims4()?;
    if keys.dims() != queries.dims() || values.dims() != queries.dims() || tokens == 0 || width == 0 {
        bail!("attention of queries {:?}, keys {:?} and values {:?}", queries.dims(), keys.dims(), values.dims());
    }
    if !queries.device().is_cpu() {
        return composed::attention(queries, keys, values);
    }
    queries.contiguous()?.apply_op3(&keys.contiguous()?, &values.contiguous()?, Attention { tokens, width })
}

struct Attention {
    tokens: usize,
    width: usize,
}

impl Attention {
    fn head(&self) -> usize {
        self.tokens * self.width
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.width as f64).sqrt())
    }

    fn matrix<'a, T>(&self, values: &'a [T]) -> Matrix<'a, T> {
        Matrix::new(values, self.tokens, self.width)
    }

    /// The share of attention that each token (row) gives to each (column), [T, T].
    fn shares<T: Real>(&self, queries: &[T], keys: &[T], panels: &mut Vec<T>, shares: &mut Vec<T>) {
        shares.resize(self.tokens * self.tokens, T::default());
        multiply(self.matrix(queries), Panels::lay_out(self.matrix(keys).transposed(), panels), shares, false);
        for row in shares.chunks_exact_mut(self.tokens) {
            let largest = row.iter().copied().fold(row[0], |largest, value| if value > largest { value } else { largest });
            row.iter_mut().for_each(|value| *value = ((*value - largest) * self.scale()).exponential());
            let sum: T = row.iter().copied().sum();
            row.iter_mut().for_each(|value| *value /= sum);
        }
    }

    fn forward<T: Real>(&self, [queries, keys, values]: [&[T]; 3]) -> Vec<T> {
        let mut output = vec![T::default(); queries.len()];
        let heads = output.par_chunks_mut(self.head()).zip(queries.par_chunks(self.head()));
        heads.zip(keys.par_chunks(self.head()).zip(values.par_chunks(self.head()))).for_each_init(
            Default::default,
            |(panels, shares): &mut (Vec<T>, Vec<T>), ((output, queries), (keys, values))| {
                self.shares(queries, keys, panels, shares);
                let shares = Matrix::new(shares, self.tokens, self.tokens);
                multiply(shares, Panels::lay_out(self.matrix(values), panels), output, false);
            },
        );
        output
    }

    /// The gradients of queries, keys and values.
    fn backward<T: Real>(&self, [queries, keys, values, gradient]: [&[T]; 4]) -> [Vec<T>; 3] {
        let mut gradients: [Vec<T>; 3] = std::array::from_fn(|_| vec![T::default(); queries.len()]);
        let [of_queries, of_keys, of_values] = &mut gradients;
        let targets =
            of_queries.par_chunks_mut(self.head()).zip(of_keys.par_chunks_mut(self.head())).zip(of_values.par_chunks_mut(self.head()));
        let arguments = queries.par_chunks(self.head()).zip(keys.par_chunks(self.head())).zip(values.par_chunks(self.head()));
        let heads = targets.zip(arguments).zip(gradient.par_chunks(self.head()));
        heads.for_each_init(
            Default::default,
            |(panels, shares, slopes): &mut (Vec<T>, Vec<T>, Vec<T>),
             ((((of_queries, of_keys), of_values), ((queries, keys), values)), gradient)| {
                self.shares(queries, keys, panels, shares);
                let square = |values| Matrix::new(values, self.tokens, self.tokens);
                multiply(square(shares).transposed(), Panels::lay_out(self.matrix(gradient), panels), of_values, false);
                slopes.resize(shares.len(), T::default());
                multiply(self.matrix(gradient), Panels::lay_out(self.matrix(values).transposed(), panels), slopes, false);
                for (slopes, shares) in slopes.chunks_exact_mut(self.tokens).zip(shares.chunks_exact(self.tokens)) {
                    let mean: T = slopes.iter().zip(shares).map(|(&slope, &share)| slope * share).sum();
                    slopes.iter_mut().zip(shares).for_each(|(slope, &share)| *slope = share * (*slope - mean) * self.scale());
                }
                multiply(square(slopes), Panels::lay_out(self.matrix(keys), panels), of_queries, false);
                multiply(square(slopes).transposed(), Panels::lay_out(self.matrix(queries), panels), of_keys, false);
            },
        );
        gradients
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(s1), T => {
            let output = self.forward([values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?]);
            Ok((stored(output), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        for_real!(queries.dtype(), T => with_values::<T, _>(&[queries, keys, values, gradient], |arguments| {
            let [of_queries, of_keys, of_values] = self.backward([arguments[0], arguments[1], arguments[2], arguments[3]]);
            let tensor = |wanted: &Tensor, values: Vec<T>| wanted.track_op().then(|| Tensor::from_vec(values, wanted.shape(), wanted.device())).transpose();
            Ok((tensor(queries, of_queries)?, tensor(keys, of_keys)?, tensor(values, of_values)?))
        }))
    }
}
