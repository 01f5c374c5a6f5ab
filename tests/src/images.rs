//! Tiny data sets: images that any training can use, made anew for each test and the same each time.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::io::Write;
use std::path::Path;

/// One PNG of `side` pixels: two smooth colours and a bright block whose place and colour depend on `number`.
///
/// # Panics
/// When it cannot be encoded.
#[must_use]
pub fn png(number: u32, side: u32) -> Vec<u8> {
    let at = |x: u32, y: u32| {
        let block = (x * 4 / side + y * 4 / side * 4) == number % 16;
        let shade = |base: u32| (if block { 255 - base * 40 } else { base * 60 + (x * 7 + y * 3) % 50 } % 256) as u8;
        [shade(number % 3), shade((number + 1) % 4), shade(number % 5)]
    };
    let pixels: Vec<u8> = (0..side * side).flat_map(|i| at(i % side, i / side)).collect();
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new(&mut bytes);
    encoder.write_image(&pixels, side, side, ExtendedColorType::Rgb8).expect("a small image can be encoded");
    bytes
}

/// Fills `folder` with `count` images of `side` pixels.
///
/// # Panics
/// When the folder cannot be written.
pub fn folder(folder: &Path, count: u32, side: u32) {
    std::fs::create_dir_all(folder).expect("a folder for images");
    for number in 0..count {
        std::fs::write(folder.join(format!("{number:03}.png")), png(number, side)).expect("an image is written");
    }
}

/// A ZIP archive of `count` images of `side` pixels.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn archive(count: u32, side: u32) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for number in 0..count {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(format!("{number:03}.png"), options).expect("an archive takes a file");
        archive.write_all(&png(number, side)).expect("an archive takes an image");
    }
    archive.finish().expect("an archive is closed").into_inner()
}
