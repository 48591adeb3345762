//! From encoded images to equal arrays of bytes: decoding, channels, size, padding.

use std::io::{BufRead, Cursor, Seek};
use std::sync::{Condvar, Mutex};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::Array;
use dcu_stage::Failure;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder as _, ImageReader};
use rayon::prelude::*;

use crate::memory::room_for;

/// The most pixels of one image, by its header: a small file may ask for any number.
const MOST_PIXELS: u64 = 64 << 20;

/// The bytes that all images together may take while they are decoded; a single one may take more, on its own.
const BYTES_AT_ONCE: usize = 512 << 20;

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

impl Cell {
    /// Channels, height and width as they are, by the header; none where that cannot be read.
    #[must_use]
    pub fn size(&self) -> Option<[usize; 3]> {
        match self {
            Self::Planes(_, size) => Some(*size),
            Self::Encoded(bytes) => size_of(ImageReader::new(Cursor::new(bytes))),
            Self::File(path) => size_of(ImageReader::open(path).ok()?),
        }
    }
}

fn size_of(reader: ImageReader<impl BufRead + Seek>) -> Option<[usize; 3]> {
    let decoder = reader.with_guessed_format().ok()?.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    Some([if decoder.color_type().has_color() { 3 } else { 1 }, height as usize, width as usize])
}

/// How images come to one size. All pairs are heights and widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Scaled to it, whatever becomes of the proportions.
    Stretch([usize; 2]),
    /// First scaled in its proportions, so that it just covers `cover`; then `size` is cut out of its middle.
    Crop {
        /// Nothing is scaled where it is none.
        cover: Option<[usize; 2]>,
        /// What is left.
        size: [usize; 2],
    },
}

impl Fit {
    /// Height and width to scale an image to, where it is to be scaled.
    fn scaled(self, [height, width]: [usize; 2]) -> Option<[usize; 2]> {
        match self {
            Self::Stretch(size) => Some(size),
            Self::Crop { cover: None, .. } => None,
            Self::Crop { cover: Some([high, wide]), .. } if high * width >= wide * height => Some([high, width * high / height]),
            Self::Crop { cover: Some([_, wide]), .. } => Some([height * wide / width, wide]),
        }
    }
}

/// What happens to each image after decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// 1 or 3, whatever the image has; `None` leaves it as it is.
    pub channels: Option<usize>,
    /// The size that it comes to; `None` leaves it as it is.
    pub resize: Option<Fit>,
    /// Rows and columns of zeros on each side.
    pub pad: usize,
}

/// Decodes images in parallel, in order. `place` names an image for an error.
///
/// # Errors
/// Names the first image that cannot be decoded, or that has another shape than the first. Also when all together do not fit into memory.
pub fn decode(cells: &[Cell], shape: Shape, place: impl Fn(usize) -> String + Sync) -> anyhow::Result<Array<u8>> {
    let budget = Budget::new(BYTES_AT_ONCE);
    let decode = |row: usize| decode_one(&cells[row], shape, &budget).with_context(|| format!("cannot use the image {}", place(row)));
    if cells.is_empty() {
        bail!("there is no image");
    }
    let (_, first) = decode(0)?;
    let [channels, height, width] = first;
    let bytes = channels.checked_mul(height).and_then(|bytes| bytes.checked_mul(width));
    let all = bytes.and_then(|bytes| bytes.checked_mul(cells.len()));
    // Once to hold them, twice more to write them.
    let what = format!("loading {} images of {channels} x {height} x {width}", cells.len());
    room_for(all.and_then(|bytes| bytes.checked_mul(3)), &what, "give a smaller `resize` or `pad`, or `per_class` for fewer images")?;
    let (bytes, all) = bytes.zip(all).expect("checked");
    ensure!(bytes > 0, "the image {} has no pixel", place(0));
    let mut data = vec![0; all];
    let results: Vec<anyhow::Result<()>> = data
        .par_chunks_exact_mut(bytes)
        .enumerate()
        .map(|(row, target)| {
            let (planes, other) = decode(row)?;
            if other != first {
                let message = format!("the image {} is {other:?}, but the first is {first:?} (channels, height, width)", place(row));
                return Err(Failure::new(
                    message,
                    "give `resize` and `channels`, so that all images are alike; `crop` keeps their proportions",
                )
                .into());
            }
            target.copy_from_slice(&planes);
            Ok(())
        })
        .collect();
    // One after the other, so that of several that are broken it is always the first that is named.
    results.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(Array::new(vec![cells.len(), channels, height, width], data))
}

/// Bytes that several threads share; who needs more than is left waits until others are done.
struct Budget {
    whole: usize,
    left: Mutex<usize>,
    returned: Condvar,
}

/// A share of the budget, until it is dropped.
struct Granted<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    fn new(whole: usize) -> Self {
        Self { whole, left: Mutex::new(whole), returned: Condvar::new() }
    }

    fn take(&self, bytes: usize) -> Granted<'_> {
        let bytes = bytes.min(self.whole);
        let left = self.left.lock().expect("no thread panics while it holds the lock");
        let mut left = self.returned.wait_while(left, |left| *left < bytes).expect("no thread panics while it holds the lock");
        *left -= bytes;
        Granted { budget: self, bytes }
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        *self.budget.left.lock().expect("no thread panics while it holds the lock") += self.bytes;
        self.budget.returned.notify_all();
    }
}

fn decode_one(cell: &Cell, shape: Shape, budget: &Budget) -> anyhow::Result<(Vec<u8>, [usize; 3])> {
    let (planes, size) = match cell {
        Cell::Planes(planes, size) if shape.resize.is_none() && shape.channels.is_none_or(|channels| channels == size[0]) => {
            (planes.clone(), *size)
        }
        Cell::Planes(planes, size) => to_planes(&reshape(from_planes(planes, *size)?, shape)?),
        Cell::Encoded(bytes) => decode_encoded(ImageReader::new(Cursor::new(bytes)), shape, budget)?,
        Cell::File(path) => {
            let reader = ImageReader::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            decode_encoded(reader, shape, budget)?
        }
    };
    Ok(pad(planes, size, shape.pad))
}

/// Looks at the header first.
fn decode_encoded(reader: ImageReader<impl BufRead + Seek>, shape: Shape, budget: &Budget) -> anyhow::Result<(Vec<u8>, [usize; 3])> {
    let decoder = reader.with_guessed_format().context("it cannot be read")?.into_decoder().context("it cannot be decoded")?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MOST_PIXELS {
        let message = format!("it has {width} x {height} pixels, more than the {MOST_PIXELS} that an image may have");
        return Err(Failure::new(message, "scale it down before loading it, or leave it out").into());
    }
    // Decoded, converted, as planes; and scaled, first in one direction, in f32.
    let scaled = shape.resize.and_then(|fit| fit.scaled([height as usize, width as usize]));
    let scaled = scaled.map_or(0, |[high, wide]| (16 * u64::from(width) + 6 * wide as u64).saturating_mul(high as u64));
    let bytes = decoder.total_bytes().saturating_add(6 * pixels).saturating_add(scaled);
    let _granted = budget.take(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(to_planes(&reshape(DynamicImage::from_decoder(decoder).context("it cannot be decoded")?, shape)?))
}

/// Grey becomes three equal channels; colour becomes grey by the luminance of ITU-R BT.709, as the `image` crate has it.
fn reshape(image: DynamicImage, shape: Shape) -> anyhow::Result<DynamicImage> {
    let image = match shape.channels {
        Some(1) => DynamicImage::ImageLuma8(image.into_luma8()),
        Some(_) => DynamicImage::ImageRgb8(image.into_rgb8()),
        None if image.color().has_color() => DynamicImage::ImageRgb8(image.into_rgb8()),
        None => DynamicImage::ImageLuma8(image.into_luma8()),
    };
    let Some(fit) = shape.resize else { return Ok(image) };
    let image = match fit.scaled([image.height() as usize, image.width() as usize]) {
        Some([high, wide]) if high as u64 * wide as u64 > MOST_PIXELS => {
            let message = format!(
                "scaled in its proportions it would have {high} x {wide} pixels, more than the {MOST_PIXELS} that an image may have"
            );
            return Err(Failure::new(message, "leave it out, or leave out `crop`, so that it is stretched").into());
        }
        Some([high, wide]) => image.resize_exact(wide as u32, high as u32, FilterType::Triangle),
        None => image,
    };
    match fit {
        Fit::Stretch(_) => Ok(image),
        Fit::Crop { size, .. } => middle(&image, size),
    }
}

/// Cuts a height and a width out of the middle. Half a pixel is rounded to an even number, which is where PyTorch's `CenterCrop` cuts.
fn middle(image: &DynamicImage, [high, wide]: [usize; 2]) -> anyhow::Result<DynamicImage> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    if height < high || width < wide {
        let message = format!("it is {height} x {width}, which is less than the {high} x {wide} that `crop` cuts out");
        return Err(Failure::new(message, "give `resize` too, so that it is scaled first, or a smaller `crop`").into());
    }
    let margin = |excess: usize| (excess / 2 + usize::from(excess % 4 == 3)) as u32;
    Ok(image.crop_imm(margin(width - wide), margin(height - high), wide as u32, high as u32))
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

    /// A grey PNG that is all zeros, which is small whatever its size.
    fn zeros(width: u32, height: u32) -> Cell {
        png(&DynamicImage::ImageLuma8(image::GrayImage::new(width, height)))
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bomb = zeros(9000, 9000);
        let Cell::Encoded(bytes) = &bomb else { unreachable!() };
        assert!(bytes.len() < 1 << 20);
        // Cut off after the header: it is refused before a pixel is decoded.
        let cells = vec![Cell::Encoded(bytes[..100].to_vec()); 20];
        let error = decode(&cells, AS_IS, |row| format!("number {row}")).unwrap_err();
        assert!(format!("{error:#}").contains("it has 9000 x 9000 pixels, more than"), "{error:#}");
    }

    #[test]
    fn images_that_do_not_fit_together_are_refused_before_they_are_decoded() {
        let cells = vec![Cell::Planes(vec![0], [1, 1, 1]); 1 << 20];
        let error = decode(&cells, Shape { pad: 2000, ..AS_IS }, |row| row.to_string()).unwrap_err();
        assert!(error.to_string().starts_with("loading 1048576 images of 1 x 4001 x 4001 would need"), "{error}");
    }

    #[test]
    fn threads_wait_for_their_share_of_the_budget() {
        let (budget, most) = (Budget::new(10), Mutex::new((0, 0)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for bytes in [3, 4, 20] {
                        let granted = budget.take(bytes);
                        let held = granted.bytes;
                        {
                            let mut most = most.lock().unwrap();
                            most.0 += held;
                            most.1 = most.1.max(most.0);
                        }
                        std::thread::yield_now();
                        most.lock().unwrap().0 -= held;
                    }
                });
            }
        });
        assert_eq!(*budget.left.lock().unwrap(), 10);
        assert_eq!(most.lock().unwrap().1, 10);
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
        let resized = decode(&cells, Shape { resize: Some(Fit::Stretch([2, 2])), ..AS_IS }, |row| row.to_string()).unwrap();
        assert_eq!(resized.shape, vec![2, 1, 2, 2]);
    }

    #[test]
    fn cropping_keeps_proportions_and_the_middle() {
        // 0 to 5 from left to right, twice as large below each other.
        let wide = Cell::Planes((0..2).flat_map(|_| 0..6).collect(), [1, 2, 6]);
        let cropped =
            |cover, size| decode(std::slice::from_ref(&wide), Shape { resize: Some(Fit::Crop { cover, size }), ..AS_IS }, |_| "0".into());
        let cut = cropped(None, [2, 2]).unwrap();
        assert_eq!((cut.shape, cut.data), (vec![1, 1, 2, 2], vec![2, 3, 2, 3]));
        // An excess of 3 is cut as 2 and 1, one of 1 as 0 and 1.
        assert_eq!(cropped(None, [1, 3]).unwrap().data, [2, 3, 4]);
        assert_eq!(cropped(None, [1, 5]).unwrap().data, [0, 1, 2, 3, 4]);
        let covered = cropped(Some([4, 4]), [4, 4]).unwrap();
        assert_eq!(covered.shape, [1, 1, 4, 4]);
        assert!(covered.data[..4].iter().all(|&pixel| (1..=4).contains(&pixel)), "{:?}", covered.data);
        let error = format!("{:#}", cropped(None, [3, 3]).unwrap_err());
        assert!(error.contains("it is 2 x 6, which is less than the 3 x 3"), "{error}");
    }

    #[test]
    fn both_sides_cover_what_they_are_to_cover() {
        let scaled = |size, cover| Fit::Crop { cover: Some(cover), size: cover }.scaled(size).unwrap();
        assert_eq!(scaled([320, 427], [128, 128]), [128, 170]);
        assert_eq!(scaled([427, 320], [128, 128]), [170, 128]);
        assert_eq!(scaled([100, 100], [128, 64]), [128, 128]);
        assert_eq!(scaled([10, 1000], [64, 128]), [64, 6400]);
    }

    #[test]
    fn a_strip_that_would_become_a_bomb_is_refused() {
        let shape = Shape { resize: Some(Fit::Crop { cover: Some([1000, 1000]), size: [1000, 1000] }), ..AS_IS };
        let error = format!("{:#}", decode(&[zeros(100_000, 1)], shape, |_| "0".into()).unwrap_err());
        assert!(error.contains("it would have 1000 x 100000000 pixels"), "{error}");
    }
}
