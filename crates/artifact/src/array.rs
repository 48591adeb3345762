//! Typed arrays as they lie in an artifact, row-major.

use safetensors::Dtype;

/// How many values an array of this shape has; none where its extents, those beside an extent of 0 included, are more than can be counted.
pub(crate) fn volume(shape: &[usize]) -> Option<usize> {
    let counted = shape.iter().filter(|&&extent| extent > 0).try_fold(1_usize, |product, &extent| product.checked_mul(extent))?;
    Some(if shape.contains(&0) { 0 } else { counted })
}

/// A row-major array: the product of `shape` is the length of `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<T> {
    /// The extent of each dimension.
    pub shape: Vec<usize>,
    /// The values, last dimension fastest.
    pub data: Vec<T>,
}

impl<T> Array<T> {
    /// An array of the given shape.
    ///
    /// # Panics
    /// When `data` does not have as many values as `shape` says.
    #[must_use]
    pub fn new(shape: Vec<usize>, data: Vec<T>) -> Self {
        assert_eq!(volume(&shape), Some(data.len()), "shape {shape:?} against {} values", data.len());
        Self { shape, data }
    }

    /// A one-dimensional array.
    #[must_use]
    pub fn vector(data: Vec<T>) -> Self {
        Self { shape: vec![data.len()], data }
    }

    /// The number of rows, the extent of the first dimension (0 for a scalar).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// The number of values in one row.
    ///
    /// # Panics
    /// When a row of this shape has more values than can be counted, which no array from [`Array::new`] or from a file has.
    #[must_use]
    pub fn row_len(&self) -> usize {
        volume(self.shape.get(1..).unwrap_or_default()).expect("counted when the array was made")
    }

    /// The values of row `index`.
    #[must_use]
    pub fn row(&self, index: usize) -> &[T] {
        let width = self.row_len();
        &self.data[index * width..(index + 1) * width]
    }
}

impl<T: Clone> Array<T> {
    /// The rows at `indices`, in that order.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        let mut data = Vec::with_capacity(indices.len() * self.row_len());
        for &index in indices {
            data.extend_from_slice(self.row(index));
        }
        Self { shape, data }
    }
}

/// A value that an artifact can hold.
pub trait Element: Copy + Sized {
    /// Its type in the safetensors header.
    const DTYPE: Dtype;
    /// Appends the little-endian bytes.
    fn put(self, bytes: &mut Vec<u8>);
    /// Reads one value from exactly its little-endian bytes.
    fn get(bytes: &[u8]) -> Self;
    /// Wraps an array of this type.
    fn wrap(array: Array<Self>) -> Tensor;
    /// Unwraps an array of this type.
    fn unwrap(tensor: Tensor) -> Option<Array<Self>>;
}

macro_rules! elements {
    ($($variant:ident $type:ty;)*) => {
        /// An array of one of the types that artifacts use.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Tensor { $(#[doc = concat!("Values of type `", stringify!($type), "`.")] $variant(Array<$type>),)* }

        impl Tensor {
            /// The extent of each dimension.
            #[must_use]
            pub fn shape(&self) -> &[usize] {
                match self { $(Self::$variant(array) => &array.shape,)* }
            }

            /// The type in the safetensors header.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                match self { $(Self::$variant(_) => Dtype::$variant,)* }
            }

            /// The little-endian bytes, row-major.
            #[must_use]
            pub fn to_bytes(&self) -> Vec<u8> {
                match self { $(Self::$variant(array) => bytes_of(&array.data),)* }
            }

            /// Reads a tensor; `None` for a type that artifacts do not use, and where the bytes do not fill the shape.
            #[must_use]
            pub fn from_bytes(dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> Option<Self> {
                let fills = |size: usize| volume(&shape).and_then(|count| count.checked_mul(size)) == Some(bytes.len());
                match dtype {
                    $(Dtype::$variant => fills(size_of::<$type>()).then(|| Self::$variant(Array { data: values_of(bytes), shape })),)*
                    _ => None,
                }
            }
        }

        $(impl Element for $type {
            const DTYPE: Dtype = Dtype::$variant;
            fn put(self, bytes: &mut Vec<u8>) { bytes.extend_from_slice(&self.to_le_bytes()); }
            fn get(bytes: &[u8]) -> Self { Self::from_le_bytes(bytes.try_into().expect("one value's bytes")) }
            fn wrap(array: Array<Self>) -> Tensor { Tensor::$variant(array) }
            fn unwrap(tensor: Tensor) -> Option<Array<Self>> {
                match tensor { Tensor::$variant(array) => Some(array), _ => None }
            }
        })*
    };
}

elements! { U8 u8; U32 u32; U64 u64; I64 i64; F32 f32; F64 f64; }

fn bytes_of<T: Element>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(std::mem::size_of_val(values));
    values.iter().for_each(|value| value.put(&mut bytes));
    bytes
}

fn values_of<T: Element>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(T::get).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_multiplied_with_checks() {
        assert_eq!(volume(&[]), Some(1));
        assert_eq!(volume(&[2, 3, 4]), Some(24));
        assert_eq!(volume(&[5, 0]), Some(0));
        for shape in [vec![0, 1 << 40, 1 << 40], vec![1 << 40, 1 << 40, 0], vec![1 << 32, 1 << 32]] {
            assert_eq!(volume(&shape), None, "{shape:?}");
            assert_eq!(Tensor::from_bytes(Dtype::U8, shape, &[]), None);
        }
        assert_eq!(Tensor::from_bytes(Dtype::U32, vec![2], &[0; 7]), None);
        assert_eq!(Tensor::from_bytes(Dtype::U32, vec![1], &[7, 0, 0, 0]), Some(Tensor::U32(Array::vector(vec![7]))));
    }
}
