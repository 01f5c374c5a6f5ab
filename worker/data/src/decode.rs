//! Bytes of one file -> one square RGB image: decode within bounds, turn as EXIF says, lay over the background, crop what is
//! kept of it, resample.
//!
//! Refuses files past the bounds below and never panics: a decoder that does is caught and its file called corrupt.
//! Colours stay in the file's own space (sRGB is assumed, profiles are ignored). Resampling is fixed-point Lanczos, or bicubic
//! where an image is squeezed (gan.md 2.6): both antialias and give the same bytes on every processor, unlike their
//! floating-point variants.

use crate::error::clean;
use crate::{View, Why, container, image_bytes};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::error::{ImageError, LimitErrorKind};
use image::imageops::crop_imm;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage, RgbaImage};
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest side of an image that is decoded, pixels.
pub(crate) const MAX_SIDE: u32 = 16_384;
/// Largest image that is decoded, bytes of pixels.
pub(crate) const MAX_DECODED_BYTES: u64 = 512 << 20;

/// An image ready for its pyramid.
#[derive(Debug, PartialEq)]
pub(crate) struct Square {
    /// Interleaved RGB rows.
    pub pixels: Vec<u8>,
    /// Whether the original's shorter side was below the resolution.
    pub enlarged: bool,
}

/// Decodes `bytes` into a square of side `resolution`. `None` when the decoded image takes more than `at_most` bytes: the
/// caller may try again when it has that much.
pub(crate) fn square(
    bytes: &[u8],
    view: View,
    resolution: u32,
    background: [u8; 3],
    at_most: u64,
) -> Result<Option<Square>, Why> {
    if bytes.is_empty() {
        return Err(Why::Empty);
    }
    guarded(|| {
        container::check(bytes)?;
        let Some(image) = decode(bytes, at_most)? else { return Ok(None) };
        let image = opaque(image, background);
        fit(&image, view, resolution).map(Some)
    })
}

/// Decodes `bytes` as they are, turned as EXIF says.
pub(crate) fn whole(bytes: &[u8]) -> Result<DynamicImage, Why> {
    if bytes.is_empty() {
        return Err(Why::Empty);
    }
    guarded(|| {
        container::check(bytes)?;
        let too_large = || Why::TooLarge(format!("more than {} MiB decoded", MAX_DECODED_BYTES >> 20));
        decode(bytes, MAX_DECODED_BYTES)?.ok_or_else(too_large)
    })
}

/// A panic inside a decoder is the file's fault, not the end of the run.
fn guarded<T>(work: impl FnOnce() -> Result<T, Why>) -> Result<T, Why> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Why::Corrupt("the decoder failed on it".into())))
}

fn decode(bytes: &[u8], at_most: u64) -> Result<Option<DynamicImage>, Why> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| refusal(e.into()))?;
    if reader.format().is_none() {
        return Err(Why::Unsupported("neither PNG nor JPEG nor WebP".into()));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    let needed = decoder.total_bytes();
    if width == 0 || height == 0 {
        return Err(Why::Corrupt("no pixels".into()));
    }
    if needed > MAX_DECODED_BYTES {
        return Err(Why::TooLarge(format!("{width}x{height} pixels")));
    }
    if needed > at_most {
        return Ok(None);
    }
    let orientation = decoder.orientation().map_err(refusal)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    image.apply_orientation(orientation);
    Ok(Some(image))
}

/// The decoder's error in our words.
fn refusal(error: ImageError) -> Why {
    match error {
        ImageError::Limits(limit) => Why::TooLarge(match limit.kind() {
            LimitErrorKind::DimensionError => format!("a side above {MAX_SIDE} pixels"),
            _ => format!("more than {} MiB decoded", MAX_DECODED_BYTES >> 20),
        }),
        ImageError::Unsupported(what) => Why::Unsupported(clean(&what.to_string())),
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => Why::Truncated,
        other => Why::Corrupt(clean(&other.to_string())),
    }
}

/// 8-bit RGB, transparent parts over `background`.
fn opaque(image: DynamicImage, background: [u8; 3]) -> RgbImage {
    if image.color().has_alpha() { over(&image.into_rgba8(), background) } else { image.into_rgb8() }
}

pub(crate) fn over(image: &RgbaImage, background: [u8; 3]) -> RgbImage {
    let mut pixels = Vec::with_capacity(image.len() / 4 * 3);
    for [rgb @ .., alpha] in image.as_raw().as_chunks::<4>().0 {
        let alpha = u32::from(*alpha);
        for (&colour, &behind) in rgb.iter().zip(&background) {
            pixels.push(((u32::from(colour) * alpha + u32::from(behind) * (255 - alpha) + 127) / 255) as u8);
        }
    }
    RgbImage::from_raw(image.width(), image.height(), pixels).expect("three bytes were pushed for each pixel")
}

/// What `view` keeps, as a square of side `resolution`.
fn fit(image: &RgbImage, view: View, resolution: u32) -> Result<Square, Why> {
    let (width, height) = image.dimensions();
    let (side, half) = (width.min(height), width / 2);
    let (left, top, across, down) = match view {
        View::Centre => ((width - side) / 2, (height - side) / 2, side, side),
        View::Whole => (0, 0, width, height),
        View::Left | View::Right if half == 0 => {
            return Err(Why::Corrupt("one pixel wide, and so without halves".into()));
        }
        // cut off first: a filter looks beyond its window, and the other half is another image
        View::Left => return fit(&crop_imm(image, 0, 0, half, height).to_image(), View::Whole, resolution),
        View::Right => return fit(&crop_imm(image, half, 0, width - half, height).to_image(), View::Whole, resolution),
    };
    let filter = if view.is_pyramid() { FilterType::Lanczos3 } else { FilterType::CatmullRom };
    let unfit = |e: &dyn std::fmt::Display| Why::Corrupt(format!("cannot be resized: {e}"));
    let mut pixels = vec![0; image_bytes(resolution)];
    // Typed: the resizer's dispatch over all pixel types would be compiled into this crate, minutes for nothing.
    let from = TypedImageRef::<U8x3>::from_buffer(width, height, image.as_raw()).map_err(|e| unfit(&e))?;
    let mut to = TypedImage::<U8x3>::from_buffer(resolution, resolution, &mut pixels).map_err(|e| unfit(&e))?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false).crop(
        f64::from(left),
        f64::from(top),
        f64::from(across),
        f64::from(down),
    );
    Resizer::new().resize_typed(&from, &mut to, &options).map_err(|e| unfit(&e))?;
    Ok(Square { pixels, enlarged: across.min(down) < resolution })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, Rgba};

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn squared(bytes: &[u8], resolution: u32) -> Square {
        viewed(bytes, View::Centre, resolution)
    }

    fn viewed(bytes: &[u8], view: View, resolution: u32) -> Square {
        square(bytes, view, resolution, [10, 20, 30], u64::MAX).unwrap().unwrap()
    }

    #[test]
    fn a_whole_image_is_squeezed_and_halves_are_its_halves() {
        let halves = RgbImage::from_fn(16, 4, |x, _| if x < 8 { Rgb([200, 0, 0]) } else { Rgb([0, 0, 200]) });
        let bytes = encoded(halves, ImageFormat::Png);
        assert_eq!(viewed(&bytes, View::Left, 6).pixels, [200, 0, 0].repeat(36));
        assert_eq!(viewed(&bytes, View::Right, 6).pixels, [0, 0, 200].repeat(36));
        let whole = viewed(&bytes, View::Whole, 6).pixels;
        for row in whole.chunks_exact(18) {
            assert_eq!((&row[..3], &row[15..]), (&[200, 0, 0][..], &[0, 0, 200][..]));
        }
        let line = encoded(RgbImage::new(1, 4), ImageFormat::Png);
        for half in [View::Left, View::Right] {
            assert!(matches!(square(&line, half, 6, [0; 3], u64::MAX), Err(Why::Corrupt(_))));
        }
    }

    #[test]
    fn an_image_of_the_right_size_is_itself() {
        let image = RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 31) as u8, (y * 29) as u8, (x * y * 5) as u8]));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let got = squared(&encoded(image.clone(), format), 8);
            assert_eq!(got, Square { pixels: image.as_raw().clone(), enlarged: false });
        }
    }

    #[test]
    fn the_centre_is_kept() {
        let stripes =
            RgbImage::from_fn(10, 4, |x, _| if (3..7).contains(&x) { Rgb([200, 0, 0]) } else { Rgb([0, 0, 200]) });
        assert_eq!(squared(&encoded(stripes, ImageFormat::Png), 4).pixels, [200, 0, 0].repeat(16));
    }

    #[test]
    fn alpha_lies_over_the_background() {
        let image = RgbaImage::from_fn(4, 4, |x, _| match x {
            0 => Rgba([255, 255, 255, 0]),
            1 => Rgba([110, 120, 130, 255]),
            _ => Rgba([110, 120, 130, 128]),
        });
        let got = squared(&encoded(image, ImageFormat::Png), 4).pixels;
        // 10 + 100 * 128 / 255 = 60.2
        assert_eq!(&got[..9], [10, 20, 30, 110, 120, 130, 60, 70, 80]);
    }

    #[test]
    fn grey_and_16_bits_become_8_bit_rgb() {
        let grey = GrayImage::from_pixel(4, 4, Luma([77]));
        assert_eq!(squared(&encoded(grey, ImageFormat::Png), 4).pixels, [77; 48]);
        let deep: ImageBuffer<Rgb<u16>, Vec<u16>> = ImageBuffer::from_pixel(4, 4, Rgb([0x8080, 0xffff, 0]));
        assert_eq!(squared(&encoded(deep, ImageFormat::Png), 4).pixels, [128, 255, 0].repeat(16));
    }

    #[test]
    fn a_constant_survives_every_scale() {
        for side in [3, 31, 32, 33, 500, 2000] {
            let image = RgbImage::from_pixel(side, side, Rgb([200, 3, 255]));
            let got = squared(&encoded(image, ImageFormat::Png), 32);
            assert_eq!(got.pixels, [200, 3, 255].repeat(32 * 32), "{side}");
            assert_eq!(got.enlarged, side < 32);
        }
    }

    #[test]
    fn shrinking_antialiases() {
        let checks = RgbImage::from_fn(256, 256, |x, y| Rgb([if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
        let got = squared(&encoded(checks, ImageFormat::Png), 16);
        assert!(got.pixels.iter().all(|x| (120..=136).contains(x)), "{:?}", &got.pixels[..9]);
    }

    /// An APP1 segment with orientation 6 ("rotate 90 clockwise") put behind the start marker of a JPEG.
    #[test]
    fn exif_orientation_is_applied() {
        let image = RgbImage::from_fn(16, 16, |_, y| if y < 8 { Rgb([255; 3]) } else { Rgb([0; 3]) });
        let jpeg = encoded(image, ImageFormat::Jpeg);
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = vec![0xff, 0xd8, 0xff, 0xe1, 0, (2 + 6 + tiff.len()) as u8];
        turned.extend(b"Exif\0\0");
        turned.extend(tiff);
        turned.extend(&jpeg[2..]);
        let got = squared(&turned, 16).pixels;
        // White was on top; turned clockwise it is on the right.
        assert!(got[0] < 20 && got[45] > 235, "{} {}", got[0], got[45]);
        let plain = squared(&jpeg, 16).pixels;
        assert!(plain[0] > 235 && plain[45] > 235);
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let png = encoded(RgbImage::new(32, 32), ImageFormat::Png);
        let refused = |bytes: &[u8]| square(bytes, View::Centre, 32, [0; 3], u64::MAX).unwrap_err();
        assert_eq!(refused(b""), Why::Empty);
        assert!(matches!(refused(b"This is no image at all."), Why::Unsupported(_)));
        assert!(matches!(refused(b"GIF89a\x01\0\x01\0\0\0\0;"), Why::Unsupported(_)));
        assert!(matches!(refused(&png[..png.len() / 2]), Why::Truncated | Why::Corrupt(_)));
        // A header that claims 2^31 - 1 pixels a side, with the checksum that belongs to it.
        let mut lying = png.clone();
        lying[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        seal(&mut lying);
        assert!(matches!(refused(&lying), Why::TooLarge(_)), "{:?}", refused(&lying));
        // ... and one that claims 64 rows where 32 are.
        let mut short = png.clone();
        short[23] = 64;
        seal(&mut short);
        assert!(matches!(refused(&short), Why::Truncated | Why::Corrupt(_)), "{:?}", refused(&short));
        assert_eq!(
            guarded::<()>(|| panic!("a defect in a decoder")),
            Err(Why::Corrupt("the decoder failed on it".into()))
        );
    }

    #[test]
    fn a_truncated_file_of_any_format_is_refused() {
        let image = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, (x * 3) as u8, (y * 5) as u8]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let bytes = encoded(image.clone(), format);
            for share in [1, 5, 9] {
                let cut = &bytes[..bytes.len() * share / 10];
                let why = square(cut, View::Centre, 64, [0; 3], u64::MAX).unwrap_err();
                assert!(why.is_bad(), "{format:?} {share}/10: {why}");
            }
        }
    }

    #[test]
    fn a_heavy_image_waits_for_its_turn() {
        let png = encoded(RgbImage::new(100, 100), ImageFormat::Png);
        assert_eq!(square(&png, View::Centre, 32, [0; 3], 29_999), Ok(None));
        assert!(square(&png, View::Centre, 32, [0; 3], 30_000).unwrap().is_some());
    }

    /// Gives a PNG's altered header its checksum.
    fn seal(png: &mut [u8]) {
        let crc = !png[12..29].iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        });
        png[29..33].copy_from_slice(&crc.to_be_bytes());
    }
}
