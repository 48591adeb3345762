//! Condensed images as a grid: one picture a class, inside of the page.

use std::collections::BTreeMap;

use base64::Engine as _;
use dcu_artifact::{Reach, Retain, Shown};
use maud::html;

use super::Section;
use crate::report::Report;

/// Images of a class, and classes, that are shown at most; and bytes of pixels in all.
const A_CLASS: usize = 8;
const CLASSES: usize = 20;
const BYTES: usize = 400_000;

/// Images of the first reduced set that has some. These are what a method learns from.
pub(crate) fn section(report: &Report<'_>, sets: &[Retain]) -> anyhow::Result<Option<Section>> {
    let Some(set) = sets.iter().find(|set| !set.condensed_buckets.is_empty()) else { return Ok(None) };
    let count = set.condensed_buckets.len();
    let images = match showable(set) {
        Ok(images) => images,
        Err(why) => {
            let body = html! { p { (count) " condensed images are among what was learned from. None is shown here: " (why) } };
            return Ok(Some(Section { id: "images", title: "Condensed images", body }));
        }
    };
    let left_out = match count - images.len() {
        0 => String::new(),
        1 => "One that stands for a single sample, and would show it, is left out. ".to_owned(),
        several => format!("{several} that stand for a single sample each, and would show it, are left out. "),
    };
    let mut classes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for image in images {
        let targets = set.condensed_targets.row(image);
        let class = (0..targets.len()).fold(0, |best, class| if targets[class] > targets[best] { class } else { best });
        classes.entry(class).or_default().push(image);
    }
    let bytes = set.condensed_images.row_len();
    let each = (BYTES / bytes.max(1) / classes.len().min(CLASSES)).min(A_CLASS);
    if each == 0 {
        return Ok(None);
    }
    let name = |class: usize| {
        let names = report.judged.first().and_then(|judged| judged.metrics.facts.get("class_names"));
        names.and_then(|names| names[class].as_str()).map_or_else(|| class.to_string(), str::to_owned)
    };
    let made = match set.facts.reach {
        Reach::Bucket => "Each was made of its own members alone, of which none is forgotten.",
        Reach::Class => {
            "Each stands for samples of which none is forgotten, but was made by looking at others of its class, forgotten ones among them."
        }
        Reach::Global => {
            "Each stands for samples of which none is forgotten, but was made by looking at all of the data, or by a model that was trained on it."
        }
    };
    let shown = classes.iter().take(CLASSES).map(|(class, images)| {
        let images = &images[..images.len().min(each)];
        let (png, width, height) = picture(set, images)?;
        let scale = (48 / height.max(1) as usize).max(1) as u32;
        let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png));
        Ok((name(*class), images.len(), url, scale * width, scale * height))
    });
    let shown = shown.collect::<anyhow::Result<Vec<_>>>()?;
    let body = html! {
        p {
            (count) " condensed images stand for samples of the retain set. " (made)
            " Shown are " (each) " of a class at most. " (left_out) "No forgotten sample is shown."
        }
        div.images {
            @for (name, count, url, width, height) in &shown {
                figure {
                    figcaption { (name) }
                    img src=(url) width=(width) height=(height) alt={ (count) " condensed images of the class " (name) };
                }
            }
        }
    };
    Ok(Some(Section { id: "images", title: "Condensed images", body }))
}

/// The images that may be shown, or why none may: the page can be handed on, and so must show neither what is to be forgotten nor anybody's photograph.
fn showable(set: &Retain) -> Result<Vec<usize>, String> {
    let count = set.condensed_buckets.len();
    let Some(Shown { forgotten, single }) = &set.facts.shown else {
        return Err(
            "the set does not say whether forgotten samples are behind them, as it was made without the request or by an earlier release."
                .into(),
        );
    };
    if !forgotten.is_empty() {
        return Err(format!("{} stand for buckets that hold forgotten samples, and were kept all the same.", forgotten.len()));
    }
    let images: Vec<usize> = (0..count).filter(|&image| !single.contains(&(image as u32))).collect();
    if images.is_empty() {
        return Err("each stands for a single sample, and would show it.".into());
    }
    Ok(images)
}

/// These images side by side, as a PNG, with its width and height.
fn picture(set: &Retain, images: &[usize]) -> anyhow::Result<(Vec<u8>, u32, u32)> {
    let &[_, channels, height, width] = set.condensed_images.shape.as_slice() else {
        anyhow::bail!("condensed images have four dimensions")
    };
    let shown = if channels == 3 { 3 } else { 1 };
    let mut pixels = vec![0_u8; images.len() * width * height * shown];
    for (place, &image) in images.iter().enumerate() {
        let values = set.condensed_images.row(image);
        for channel in 0..shown {
            let (mean, deviation) = (set.facts.normalisation.mean[channel], set.facts.normalisation.std[channel]);
            for (y, row) in values[channel * width * height..][..width * height].chunks_exact(width).enumerate() {
                for (x, value) in row.iter().enumerate() {
                    let shade = 255.0 * (f64::from(*value) * deviation + mean);
                    pixels[((y * images.len() + place) * width + x) * shown + channel] = shade.round().clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    let size = ((images.len() * width) as u32, height as u32);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
    encoder.set_color(if shown == 3 { png::ColorType::Rgb } else { png::ColorType::Grayscale });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok((bytes, size.0, size.1))
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, Normalisation, RetainFacts};

    use super::*;

    /// Two images of two rows and one column, in three channels.
    fn set(shown: Option<Shown>) -> Retain {
        let images = Array::new(vec![2, 3, 2, 1], vec![-0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 9.0, -9.0, 0.0, 0.0, 0.0, 0.1]);
        let facts = RetainFacts {
            maker: "reduce".into(),
            retain: 2,
            reach: Reach::Bucket,
            normalisation: Normalisation { mean: vec![0.5; 3], std: vec![1.0, 1.0, 2.0] },
            shown,
        };
        Retain {
            ids: Vec::new(),
            weights: Vec::new(),
            condensed_images: images,
            condensed_targets: Array::new(vec![2, 1], vec![1.0, 1.0]),
            condensed_buckets: vec![0, 1],
            condensed_weights: vec![1.0, 1.0],
            facts,
        }
    }

    #[test]
    fn images_of_forgotten_and_of_single_samples_are_not_shown() {
        let of = |forgotten: &[u32], single: &[u32]| showable(&set(Some(Shown { forgotten: forgotten.to_vec(), single: single.to_vec() })));
        assert_eq!(of(&[], &[]), Ok(vec![0, 1]));
        assert_eq!(of(&[], &[0]), Ok(vec![1]));
        assert!(of(&[], &[0, 1]).unwrap_err().contains("single sample"));
        assert!(of(&[1], &[]).unwrap_err().contains("1 stand for buckets that hold forgotten samples"));
        assert!(showable(&set(None)).unwrap_err().contains("without the request or by an earlier release"));
    }

    #[test]
    fn pixels_are_those_before_the_normalisation() {
        let (bytes, width, height) = picture(&set(None), &[0, 1]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!((width, height), (2, 2));
        assert_eq!(pixels, [0, 128, 128, 255, 128, 128, 255, 128, 128, 0, 128, 179]);
    }
}
