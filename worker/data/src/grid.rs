//! Sample grids: images side by side as one PNG, small ones enlarged without smoothing so that every pixel shows.

use crate::DataError;
use crate::levels::{CHANNELS, image_bytes};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Longest side of a grid in pixels.
const MAX_GRID_SIDE: u64 = 65_536;

/// The PNG of `columns` x `rows` images, given as NCHW bytes, laid out row by row. Places without an image are black.
///
/// # Errors
/// [`DataError::Grid`] when the images do not fit, [`DataError::BufferSize`] when `images` is no whole number of them.
pub fn save_grid(images: &[u8], resolution: u32, columns: u32, rows: u32) -> Result<Vec<u8>, DataError> {
    let (width, height) = (u64::from(columns) * u64::from(resolution), u64::from(rows) * u64::from(resolution));
    if width == 0 || height == 0 || width > MAX_GRID_SIDE || height > MAX_GRID_SIDE {
        return Err(DataError::Grid(format!("{width}x{height} pixels, expected 1 to {MAX_GRID_SIDE} a side")));
    }
    let count = whole(images, resolution)?;
    if count as u64 > u64::from(columns) * u64::from(rows) {
        return Err(DataError::Grid(format!("{count} images do not fit in {columns} x {rows}")));
    }
    let (side, columns, width) = (resolution as usize, columns as usize, width as usize);
    let mut pixels = vec![0; CHANNELS * width * height as usize];
    for (n, image) in images.chunks_exact(image_bytes(resolution)).enumerate() {
        let (left, top) = (n % columns * side, n / columns * side);
        for (channel, plane) in image.chunks_exact(side * side).enumerate() {
            for (y, row) in plane.chunks_exact(side).enumerate() {
                let start = CHANNELS * ((top + y) * width + left) + channel;
                for (place, &value) in pixels[start..].iter_mut().step_by(CHANNELS).zip(row) {
                    *place = value;
                }
            }
        }
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| DataError::Grid(e.to_string()))?;
    Ok(png)
}

/// NCHW images of side `from` at side `to`, each pixel repeated. `to` must be a multiple of `from`.
///
/// # Errors
/// [`DataError::Grid`] when it is not, [`DataError::BufferSize`] when `images` is no whole number of images.
pub fn upscale_nearest(images: &[u8], from: u32, to: u32) -> Result<Vec<u8>, DataError> {
    if from == 0 || to == 0 || !to.is_multiple_of(from) {
        return Err(DataError::Grid(format!("{from} pixels cannot become {to} by repeating each")));
    }
    whole(images, from)?;
    let factor = (to / from) as usize;
    let mut enlarged = Vec::with_capacity(images.len() * factor * factor);
    for row in images.chunks_exact(from as usize) {
        let start = enlarged.len();
        enlarged.extend(row.iter().flat_map(|&value| std::iter::repeat_n(value, factor)));
        let end = enlarged.len();
        for _ in 1..factor {
            enlarged.extend_from_within(start..end);
        }
    }
    Ok(enlarged)
}

fn whole(images: &[u8], resolution: u32) -> Result<usize, DataError> {
    let size = image_bytes(resolution);
    let count = images.len() / size;
    if count * size == images.len() {
        Ok(count)
    } else {
        Err(DataError::BufferSize { expected: (count + 1) * size, got: images.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_row_by_row() {
        // Three 2x2 images, each channel a constant of its own, in a 2 x 2 grid.
        let images: Vec<u8> = (1..=9u8).flat_map(|value| [value; 4]).collect();
        let png = save_grid(&images, 2, 2, 2).unwrap();
        let grid = image::load_from_memory(&png).unwrap().into_rgb8();
        assert_eq!(grid.dimensions(), (4, 4));
        let at = |x, y| grid.get_pixel(x, y).0;
        assert_eq!([at(0, 0), at(1, 1), at(2, 0), at(3, 1)], [[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]]);
        assert_eq!([at(0, 2), at(1, 3), at(2, 2), at(3, 3)], [[7, 8, 9], [7, 8, 9], [0; 3], [0; 3]]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(save_grid(&[0; 24], 2, 1, 1), Err(DataError::Grid(_))));
        assert!(matches!(save_grid(&[0; 13], 2, 4, 1), Err(DataError::BufferSize { expected: 24, got: 13 })));
        assert!(matches!(save_grid(&[], 2, 0, 1), Err(DataError::Grid(_))));
        assert!(matches!(save_grid(&[], 1024, 100, 1), Err(DataError::Grid(_))));
        assert!(matches!(upscale_nearest(&[0; 12], 2, 3), Err(DataError::Grid(_))));
        assert!(matches!(upscale_nearest(&[0; 11], 2, 4), Err(DataError::BufferSize { .. })));
    }

    #[test]
    fn every_pixel_is_repeated() {
        let image = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let enlarged = upscale_nearest(&image, 2, 4).unwrap();
        assert_eq!(enlarged[..16], [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
        assert_eq!(enlarged.len(), 48);
        assert_eq!(upscale_nearest(&image, 2, 2).unwrap(), image);
    }
}
