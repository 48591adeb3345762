//! From encoded images to equal arrays of bytes: decoding, channels, size, padding.

use anyhow::{Context as _, bail};
use dcu_artifact::Array;
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use rayon::prelude::*;

/// An image as its source holds it.
#[derive(Debug, Clone)]
pub enum Cell {
    /// A PNG or JPEG file's bytes.
    Encoded(Vec<u8>),
    /// A file that is read when it is needed.
    File(std::path::PathBuf),
    /// Planes of bytes, [C, H, W].
    Planes(Vec<u8>, [usize; 3]),
}

/// What happens to each image after decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// 1 or 3, whatever the image has; `None` leaves it as it is.
    pub channels: Option<usize>,
    /// Height and width to scale to.
    pub resize: Option<[usize; 2]>,
    /// Rows and columns of zeros on each side.
    pub pad: usize,
}

/// Decodes images in parallel, in order. `place` names an image for an error.
///
/// # Errors
/// Names the first image that cannot be decoded, or that has another shape than the first.
pub fn decode(cells: &[Cell], shape: Shape, place: impl Fn(usize) -> String + Sync) -> anyhow::Result<Array<u8>> {
    let results: Vec<anyhow::Result<_>> = cells
        .par_iter()
        .enumerate()
        .map(|(row, cell)| decode_one(cell, shape).with_context(|| format!("cannot use the image {}", place(row))))
        .collect();
    // One after the other, so that of several that are broken it is always the first that is named.
    let decoded: Vec<(Vec<u8>, [usize; 3])> = results.into_iter().collect::<anyhow::Result<_>>()?;
    let Some((_, first)) = decoded.first() else { bail!("there is no image") };
    let first = *first;
    if let Some((row, (_, other))) = decoded.iter().enumerate().find(|(_, (_, other))| *other != first) {
        let message = format!("the image {} is {other:?}, but the first is {first:?} (channels, height, width)", place(row));
        return Err(dcu_stage::Failure::new(message, "give `resize` and `channels`, so that all images are alike").into());
    }
    let mut data = Vec::with_capacity(decoded.len() * first.iter().product::<usize>());
    decoded.iter().for_each(|(planes, _)| data.extend_from_slice(planes));
    Ok(Array::new([&[decoded.len()], first.as_slice()].concat(), data))
}

fn decode_one(cell: &Cell, shape: Shape) -> anyhow::Result<(Vec<u8>, [usize; 3])> {
    let (planes, size) = match cell {
        Cell::Planes(planes, size) if shape.resize.is_none() && shape.channels.is_none_or(|channels| channels == size[0]) => {
            (planes.clone(), *size)
        }
        Cell::Planes(planes, size) => to_planes(&reshape(from_planes(planes, *size)?, shape)),
        Cell::Encoded(bytes) => to_planes(&reshape(image::load_from_memory(bytes).context("it cannot be decoded")?, shape)),
        Cell::File(path) => {
            let reader = ImageReader::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            to_planes(&reshape(reader.decode().context("it cannot be decoded")?, shape))
        }
    };
    Ok(pad(planes, size, shape.pad))
}

/// Grey becomes three equal channels; colour becomes grey by the luminance of ITU-R BT.709, as the `image` crate has it.
fn reshape(image: DynamicImage, shape: Shape) -> DynamicImage {
    let image = match shape.channels {
        Some(1) => DynamicImage::ImageLuma8(image.into_luma8()),
        Some(_) => DynamicImage::ImageRgb8(image.into_rgb8()),
        None if image.color().has_color() => DynamicImage::ImageRgb8(image.into_rgb8()),
        None => DynamicImage::ImageLuma8(image.into_luma8()),
    };
    match shape.resize {
        Some([height, width]) => image.resize_exact(width as u32, height as u32, FilterType::Triangle),
        None => image,
    }
}

fn from_planes(planes: &[u8], [channels, height, width]: [usize; 3]) -> anyhow::Result<DynamicImage> {
    let area = height * width;
    let interleaved: Vec<u8> = (0..area).flat_map(|pixel| (0..channels).map(move |channel| planes[channel * area + pixel])).collect();
    let (width, height) = (width as u32, height as u32);
    let image = match channels {
        1 => image::GrayImage::from_raw(width, height, interleaved).map(DynamicImage::ImageLuma8),
        _ => image::RgbImage::from_raw(width, height, interleaved).map(DynamicImage::ImageRgb8),
    };
    image.context("the planes do not make an image")
}

fn to_planes(image: &DynamicImage) -> (Vec<u8>, [usize; 3]) {
    let channels = usize::from(image.color().channel_count());
    let (bytes, area) = (image.as_bytes(), image.width() as usize * image.height() as usize);
    let planes = (0..channels).flat_map(|channel| (0..area).map(move |pixel| bytes[pixel * channels + channel])).collect();
    (planes, [channels, image.height() as usize, image.width() as usize])
}

fn pad(planes: Vec<u8>, [channels, height, width]: [usize; 3], pad: usize) -> (Vec<u8>, [usize; 3]) {
    if pad == 0 {
        return (planes, [channels, height, width]);
    }
    let (padded_height, padded_width) = (height + 2 * pad, width + 2 * pad);
    let mut padded = vec![0; channels * padded_height * padded_width];
    for (line, row) in planes.chunks_exact(width).enumerate() {
        let (channel, y) = (line / height, line % height);
        let start = (channel * padded_height + y + pad) * padded_width + pad;
        padded[start..start + width].copy_from_slice(row);
    }
    (padded, [channels, padded_height, padded_width])
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IS: Shape = Shape { channels: None, resize: None, pad: 0 };

    fn png(image: &DynamicImage) -> Cell {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        Cell::Encoded(bytes.into_inner())
    }

    #[test]
    fn colours_become_planes() {
        let image = image::RgbImage::from_fn(2, 1, |x, _| image::Rgb([10 + x as u8, 20 + x as u8, 30 + x as u8]));
        let decoded = decode(&[png(&DynamicImage::ImageRgb8(image))], AS_IS, |_| "0".into()).unwrap();
        assert_eq!((decoded.shape, decoded.data), (vec![1, 3, 1, 2], vec![10, 11, 20, 21, 30, 31]));
    }

    #[test]
    fn grey_becomes_three_equal_channels_and_back() {
        let grey = Cell::Planes(vec![7, 9], [1, 1, 2]);
        let colour = decode(&[grey], Shape { channels: Some(3), ..AS_IS }, |_| "0".into()).unwrap();
        assert_eq!(colour.data, vec![7, 9, 7, 9, 7, 9]);
        let back = decode(&[Cell::Planes(colour.data, [3, 1, 2])], Shape { channels: Some(1), ..AS_IS }, |_| "0".into()).unwrap();
        assert_eq!(back.data, vec![7, 9]);
    }

    #[test]
    fn padding_surrounds_each_plane_with_zeros() {
        let padded = decode(&[Cell::Planes(vec![5], [1, 1, 1])], Shape { pad: 1, ..AS_IS }, |_| "0".into()).unwrap();
        assert_eq!((padded.shape, padded.data), (vec![1, 1, 3, 3], vec![0, 0, 0, 0, 5, 0, 0, 0, 0]));
    }

    #[test]
    fn of_several_broken_images_the_first_is_named() {
        let whole = || Cell::Planes(vec![0], [1, 1, 1]);
        let cells: Vec<Cell> = (0..200).map(|row| if row < 7 { whole() } else { Cell::Encoded(vec![1, 2, 3]) }).collect();
        for _ in 0..50 {
            let error = decode(&cells, AS_IS, |row| format!("number {row}.")).unwrap_err();
            assert!(format!("{error:#}").contains("number 7."), "{error:#}");
        }
    }

    #[test]
    fn a_broken_or_different_image_is_named() {
        let error = decode(&[Cell::Encoded(vec![1, 2, 3])], AS_IS, |row| format!("in row {row} of x.parquet")).unwrap_err();
        assert!(format!("{error:#}").contains("row 0 of x.parquet: it cannot be decoded"), "{error:#}");
        let cells = [Cell::Planes(vec![0], [1, 1, 1]), Cell::Planes(vec![0, 0], [1, 1, 2])];
        assert!(decode(&cells, AS_IS, |row| format!("number {row}")).unwrap_err().to_string().contains("number 1"));
        let resized = decode(&cells, Shape { resize: Some([2, 2]), ..AS_IS }, |row| row.to_string()).unwrap();
        assert_eq!(resized.shape, vec![2, 1, 2, 2]);
    }
}
