//! One image with its padding around it, so that no window has to ask where the image ends.

use super::Geometry;
use crate::matrix::Real;

/// Values of a padded image's row.
pub(super) fn row(geometry: &Geometry) -> usize {
    (geometry.width + 2 * geometry.convolution.padding) * geometry.channels
}

/// Values of a padded image.
pub(super) fn size(geometry: &Geometry) -> usize {
    (geometry.height + 2 * geometry.convolution.padding) * row(geometry)
}

/// Where the rows of the image lie in the padded one.
fn rows(geometry: &Geometry) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let Geometry { height, width, channels, convolution, .. } = *geometry;
    let (row, padding) = (row(geometry), convolution.padding);
    (padding..padding + height).map(move |y| y * row + padding * channels..y * row + (padding + width) * channels)
}

/// Writes the image into a padded one, whose padding holds zeros.
pub(super) fn write<T: Real>(geometry: &Geometry, image: &[T], padded: &mut [T]) {
    for (row, range) in image.chunks_exact(geometry.width * geometry.channels).zip(rows(geometry)) {
        padded[range].copy_from_slice(row);
    }
}

/// Reads the image out of a padded one.
pub(super) fn read<T: Real>(geometry: &Geometry, padded: &[T], image: &mut [T]) {
    for (row, range) in image.chunks_exact_mut(geometry.width * geometry.channels).zip(rows(geometry)) {
        row.copy_from_slice(&padded[range]);
    }
}
