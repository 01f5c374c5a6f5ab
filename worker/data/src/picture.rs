//! One image of any size, read to be made into another: its colours as planes, its transparency kept aside.
//!
//! Bounded and turned like training images ([`crate::decode`]).

use crate::decode::{self, over};
use crate::levels::CHANNELS;
use crate::{DataError, Why};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// An image with its transparency.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// CHW bytes; what is transparent lies over a background.
    pub pixels: Vec<u8>,
    /// How opaque each pixel is, where the file says so.
    pub alpha: Option<Vec<u8>>,
}

impl Picture {
    /// Reads the bytes of a PNG, JPEG or WebP file.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(bytes: &[u8], background: [u8; 3]) -> Result<Self, Why> {
        let image = decode::whole(bytes)?;
        let (width, height) = (image.width(), image.height());
        let (colours, alpha) = if image.color().has_alpha() {
            let image = image.into_rgba8();
            let alpha = image.as_raw().iter().skip(3).step_by(4).copied().collect();
            (over(&image, background), Some(alpha))
        } else {
            (image.into_rgb8(), None)
        };
        let plane = |channel: usize| colours.as_raw()[channel..].iter().step_by(CHANNELS).copied();
        Ok(Self { width, height, pixels: (0..CHANNELS).flat_map(plane).collect(), alpha })
    }

    /// The same transparency with other colours.
    ///
    /// # Errors
    /// [`DataError::BufferSize`] when `pixels` is of another size.
    pub fn with_pixels(self, pixels: Vec<u8>) -> Result<Self, DataError> {
        match pixels.len() == self.pixels.len() {
            true => Ok(Self { pixels, ..self }),
            false => Err(DataError::BufferSize { expected: self.pixels.len(), got: pixels.len() }),
        }
    }

    /// As a PNG.
    ///
    /// # Errors
    /// [`DataError::Grid`] when it cannot be encoded.
    pub fn to_png(&self) -> Result<Vec<u8>, DataError> {
        let area = self.width as usize * self.height as usize;
        let (colour, bytes) =
            if self.alpha.is_some() { (ExtendedColorType::Rgba8, 4) } else { (ExtendedColorType::Rgb8, 3) };
        let mut rows = vec![0; bytes * area];
        let planes = self.pixels.chunks_exact(area.max(1)).chain(self.alpha.as_deref());
        for (channel, plane) in planes.enumerate() {
            for (place, &value) in rows[channel..].iter_mut().step_by(bytes).zip(plane) {
                *place = value;
            }
        }
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&rows, self.width, self.height, colour)
            .map_err(|error| DataError::Grid(error.to_string()))?;
        Ok(png)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_transparency_come_through() {
        let image = image::RgbaImage::from_fn(3, 2, |x, y| image::Rgba([x as u8, y as u8, 7, (100 * y + 55) as u8]));
        let mut png = Vec::new();
        image.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
        let picture = Picture::read(&png, [255; 3]).unwrap();
        assert_eq!((picture.width, picture.height, picture.pixels.len()), (3, 2, 18));
        assert_eq!(picture.alpha.as_deref(), Some(&[55, 55, 55, 155, 155, 155][..]));
        let again = Picture::read(&picture.to_png().unwrap(), [255; 3]).unwrap();
        assert_eq!(again.alpha, picture.alpha);

        let opaque = Picture { alpha: None, ..picture };
        assert_eq!(Picture::read(&opaque.to_png().unwrap(), [0; 3]).unwrap(), opaque);
        assert!(matches!(opaque.with_pixels(vec![0; 5]), Err(DataError::BufferSize { expected: 18, got: 5 })));
        assert_eq!(Picture::read(b"", [0; 3]), Err(Why::Empty));
    }
}
