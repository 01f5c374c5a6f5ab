//! Small images, folders and archives for the tests of this crate.

use data::{DataError, Prepared, Request, View};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;

/// An image that differs by `seed`, encoded.
pub fn encoded(seed: u8, side: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(side, side, |x, y| {
        Rgb([(x * 7) as u8 ^ seed, (y * 11) as u8, ((x * y) as u8).wrapping_add(seed)])
    });
    let mut bytes = Vec::new();
    DynamicImage::from(image).write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A PNG that differs by `seed`.
pub fn png(seed: u8, side: u32) -> Vec<u8> {
    encoded(seed, side, ImageFormat::Png)
}

/// A ZIP archive of these files, in this order.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Puts `bytes` at `root/name`, making folders.
pub fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A request for `source` at `resolution`, half of the images may be bad.
pub fn request(source: &Path, cache: &Path, resolution: u32) -> Request {
    Request {
        source: source.into(),
        within: None,
        view: View::Centre,
        resolution,
        background: [255; 3],
        cache: cache.into(),
        max_bad_share: 0.5,
    }
}

/// Prepares without watching.
pub fn prepare(request: &Request) -> Result<Prepared, DataError> {
    data::prepare(request, &|_| ())
}
