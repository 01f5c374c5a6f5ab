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
    encoded(&pixels(number, side), side, side)
}

fn pixels(number: u32, side: u32) -> Vec<[u8; 3]> {
    let at = |x: u32, y: u32| {
        let block = (x * 4 / side + y * 4 / side * 4) == number % 16;
        let shade = |base: u32| (if block { 255 - base * 40 } else { base * 60 + (x * 7 + y * 3) % 50 } % 256) as u8;
        [shade(number % 3), shade((number + 1) % 4), shade(number % 5)]
    };
    (0..side * side).map(|i| at(i % side, i / side)).collect()
}

fn encoded(pixels: &[[u8; 3]], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new(&mut bytes);
    encoder
        .write_image(pixels.as_flattened(), width, height, ExtendedColorType::Rgb8)
        .expect("a small image can be encoded");
    bytes
}

/// Two domains in `folder`, as the original CycleGAN repository lays them out: 12 images of A, 20 of B, and 3 of each to test with.
///
/// # Panics
/// When the folder cannot be written.
pub fn domains(folder: &Path, side: u32) {
    for (name, count) in [("trainA", 12), ("trainB", 20), ("testA", 3), ("testB", 3)] {
        self::folder(&folder.join(name), count, side);
    }
}

/// A soft spot of the second colour on the first, whose place and size depend on `number`.
fn blob(number: u32, side: u32, [ground, spot]: [[u8; 3]; 2]) -> Vec<[u8; 3]> {
    let place = |n: u32| (n % 5) as f32 / 4.0 * 0.7 + 0.15;
    let (x, y, size) = (place(number), place(number / 5 + 2 * number), 0.1 + 0.05 * (number % 3) as f32);
    let at = |i: u32| {
        let (dx, dy) = ((i % side) as f32 / side as f32 - x, (i / side) as f32 / side as f32 - y);
        let share = (-(dx * dx + dy * dy) / (2.0 * size * size)).exp();
        std::array::from_fn(|c| (f32::from(ground[c]) + share * (f32::from(spot[c]) - f32::from(ground[c]))) as u8)
    };
    (0..side * side).map(at).collect()
}

/// Two domains in `folder` that show the same things in other colours: 24 images of each to train with, 8 twins to test with. Where
/// `repeated`, those of B are all one.
///
/// # Panics
/// When the folder cannot be written.
pub fn two_hands(folder: &Path, side: u32, repeated: bool) {
    let palettes = [[[30, 40, 120], [240, 200, 60]], [[70, 30, 40], [150, 240, 200]]];
    for (name, numbers) in [("trainA", 0..24), ("trainB", 24..48), ("testA", 48..56), ("testB", 48..56)] {
        let place = folder.join(name);
        std::fs::create_dir_all(&place).expect("a folder for images");
        for number in numbers {
            let shown = if repeated && name.ends_with('B') { 24 } else { number };
            let drawn = blob(shown, side, palettes[usize::from(name.ends_with('B'))]);
            std::fs::write(place.join(format!("{number:03}.png")), encoded(&drawn, side, side))
                .expect("an image is written");
        }
    }
}

/// 20 images in `folder/train` whose left half belongs to their right one, and 3 in `folder/val`.
///
/// # Panics
/// When the folder cannot be written.
pub fn pairs(folder: &Path, side: u32) {
    for (name, count) in [("train", 20), ("val", 3)] {
        let place = folder.join(name);
        std::fs::create_dir_all(&place).expect("a folder for images");
        for number in 0..count {
            let (left, right) = (pixels(number, side), pixels(number + 7, side));
            let rows = left.chunks_exact(side as usize).zip(right.chunks_exact(side as usize));
            let both: Vec<[u8; 3]> = rows.flat_map(|(left, right)| left.iter().chain(right).copied()).collect();
            let bytes = encoded(&both, 2 * side, side);
            std::fs::write(place.join(format!("{number:03}.png")), bytes).expect("an image is written");
        }
    }
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
