//! `worker translate`: images of one domain as ones of the other, by the networks of a checkpoint.
//!
//! Images of any size: what is large goes through in overlapping tiles, blended where they meet. Transparency is kept, EXIF
//! orientation applied. Nothing that exists is overwritten; an image that cannot be read is named, and the others are made.

use crate::failure::Failure;
use crate::generate::to_bytes;
use crate::models::{Role, Translator};
use crate::trained;
use common::config::resolved::S3;
use common::ids::ImagesSeen;
use data::Picture;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Side of a tile in pixels, and how many of them it shares with its neighbour.
const TILE: i64 = 1024;
const OVERLAP: i64 = 128;
/// Reflections need a few pixels to reflect.
const SMALLEST: i64 = 16;

/// Files that are taken for images within a folder.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Translates the files `inputs` (of a folder, those in it) in `direction` by the checkpoint at `url`, each into a PNG of its name
/// in the folder `out`.
///
/// # Errors
/// The checkpoint, the direction or a file cannot be used; other files were translated nevertheless.
pub fn translate(url: &str, direction: &str, inputs: &[PathBuf], out: &Path, s3: &S3) -> Result<(), Failure> {
    let work = plan(inputs, out).map_err(Failure::Usage)?;
    let trained = trained::open(url, s3)?;
    let Role::Translator(translator) = trained.model.role() else {
        let (run, family) = (&trained.manifest.run, trained.manifest.config.model.family());
        return Err(Failure::Usage(format!(
            "{run} is a \"{family}\", which makes images of seeds: coordinator sample"
        )));
    };
    let known = translator.directions();
    let direction = known.iter().position(|name| *name == direction).ok_or_else(|| {
        Failure::Usage(format!("--direction {direction}: {} has {}", trained.manifest.run, known.join(" and ")))
    })?;
    let failed = |doing: String| move |error| Failure::Io { doing, error };
    std::fs::create_dir_all(out).map_err(failed(format!("create {}", out.display())))?;
    let background = trained.manifest.config.data.background;
    let (mut made, mut unusable) = (0, Vec::new());
    for (from, to) in &work {
        let read = std::fs::read(from).map_err(|error| error.to_string());
        let picture = read.and_then(|bytes| Picture::read(&bytes, background).map_err(|why| why.to_string()));
        match picture {
            Ok(picture) => {
                let pixels = whole(translator, direction, &picture);
                let png = picture.with_pixels(pixels)?.to_png()?;
                std::fs::write(to, png).map_err(failed(format!("write {}", to.display())))?;
                made += 1;
            }
            Err(why) => {
                tracing::warn!("{} is left out: {why}", from.display());
                unusable.push(from);
            }
        }
    }
    let (run, at) = (&trained.manifest.run, ImagesSeen(trained.manifest.cursor.images));
    eprintln!("{made} images translated {} by {run} at {at}, in {}", known[direction], out.display());
    match unusable.first() {
        None => Ok(()),
        Some(first) => {
            let more = if unusable.len() > 1 { format!(" and {} more", unusable.len() - 1) } else { String::new() };
            Err(Failure::UnusableImages(format!("{}{more}", first.display())))
        }
    }
}

/// Which file becomes which; nothing is begun that could not be ended.
fn plan(inputs: &[PathBuf], out: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let mut files = Vec::new();
    for input in inputs {
        let unreadable = |error| format!("{}: {error}", input.display());
        if !std::fs::metadata(input).map_err(unreadable)?.is_dir() {
            files.push(input.clone());
            continue;
        }
        let before = files.len();
        for entry in std::fs::read_dir(input).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            if EXTENSIONS.contains(&extension.as_str()) && path.is_file() {
                files.push(path);
            }
        }
        if files.len() == before {
            return Err(format!("{} holds no PNG, JPEG or WebP image", input.display()));
        }
    }
    let mut work: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for file in files {
        let mut name = file.file_stem().ok_or_else(|| format!("{} is no file", file.display()))?.to_owned();
        name.push(".png");
        let to = out.join(name);
        if to.exists() {
            return Err(format!("{} exists already: choose another --out", to.display()));
        }
        if let Some(other) = work.get(&to) {
            return Err(format!("{} and {} would both become {}", other.display(), file.display(), to.display()));
        }
        work.insert(to, file);
    }
    Ok(work.into_iter().map(|(to, from)| (from, to)).collect())
}

/// `picture`, translated: CHW bytes.
fn whole(translator: &dyn Translator, direction: usize, picture: &Picture) -> Vec<u8> {
    let (width, height) = (i64::from(picture.width), i64::from(picture.height));
    let bytes = Tensor::from_data_size(&picture.pixels, &[1, 3, height, width], Kind::Uint8);
    let image = bytes.to_kind(Kind::Float) / 127.5 - 1.0;
    let sum = Tensor::zeros_like(&image);
    let weights = Tensor::zeros([1, 1, height, width], (Kind::Float, image.device()));
    for (top, bottom) in spans(height) {
        for (left, right) in spans(width) {
            let (h, w) = (bottom - top, right - left);
            let made = padded(translator, direction, &image.narrow(2, top, h).narrow(3, left, w));
            let ramp = slope(top, bottom, height).view([1, 1, h, 1]) * slope(left, right, width).view([1, 1, 1, w]);
            let mut place = sum.narrow(2, top, h).narrow(3, left, w);
            place += made * &ramp;
            let mut place = weights.narrow(2, top, h).narrow(3, left, w);
            place += ramp;
        }
    }
    to_bytes(&(sum / weights))
}

/// One tile; where its sides are no multiples of what the networks take, its edge is repeated.
fn padded(translator: &dyn Translator, direction: usize, tile: &Tensor) -> Tensor {
    let (_, _, h, w) = tile.size4().unwrap_or((1, 3, 1, 1));
    let multiple = i64::from(translator.multiple());
    let side = |length: i64| (length.max(SMALLEST).max(2 * multiple) + multiple - 1) / multiple * multiple;
    let wide = tile.replication_pad2d([0, side(w) - w, 0, side(h) - h]);
    translator.translate(direction, &wide).narrow(2, 0, h).narrow(3, 0, w)
}

/// `0..length` as tiles that overlap, as `(from, to)`.
fn spans(length: i64) -> Vec<(i64, i64)> {
    if length <= TILE {
        return vec![(0, length)];
    }
    let count = (length - OVERLAP + TILE - OVERLAP - 1) / (TILE - OVERLAP);
    // the last one ends at the edge; the others are spread evenly
    (0..count)
        .map(|i| {
            let from = (length - TILE) * i / (count - 1).max(1);
            (from, from + TILE)
        })
        .collect()
}

/// Weight of each place of a tile: rising over the overlap at an inner edge.
fn slope(from: i64, to: i64, length: i64) -> Tensor {
    let weight = |place: i64| {
        let before = if from > 0 { place - from + 1 } else { OVERLAP };
        let after = if to < length { to - place } else { OVERLAP };
        before.min(after).min(OVERLAP) as f32 / OVERLAP as f32
    };
    Tensor::from_slice(&(from..to).map(weight).collect::<Vec<f32>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image becomes itself, but only in sizes that it takes.
    struct Itself;

    impl Translator for Itself {
        fn directions(&self) -> &[&'static str] {
            &["a2b"]
        }

        fn source(&self, direction: usize) -> usize {
            direction
        }

        fn translate(&self, _direction: usize, images: &Tensor) -> Tensor {
            let (_, _, h, w) = images.size4().unwrap();
            assert!(h % 4 == 0 && w % 4 == 0 && h >= 16 && w >= 16 && h <= TILE && w <= TILE, "{h}x{w}");
            images.shallow_clone()
        }

        fn multiple(&self) -> u32 {
            4
        }
    }

    #[test]
    fn tiles_cover_every_length_and_overlap() {
        for length in [1, 4, 1023, 1024, 1025, 1919, 1920, 1921, 3000, 16_384] {
            let spans = spans(length);
            assert_eq!((spans[0].0, spans.last().unwrap().1), (0, length));
            assert!(spans.iter().all(|(from, to)| to - from <= TILE && to > from), "{length}");
            assert!(spans.windows(2).all(|pair| pair[0].1 - pair[1].0 >= OVERLAP), "{length}: {spans:?}");
        }
    }

    #[test]
    fn an_image_of_any_size_comes_through_without_a_seam() {
        for (width, height) in [(1, 1), (5, 7), (64, 64), (1025, 30), (2500, 1100)] {
            let pixels: Vec<u8> = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
            let picture = Picture { width, height, pixels: pixels.clone(), alpha: None };
            assert_eq!(whole(&Itself, 0, &picture), pixels, "{width}x{height}");
        }
    }

    #[test]
    fn nothing_is_begun_that_could_not_be_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a.png", "b.JPG", "notes.txt"] {
            std::fs::write(path(name), b"x").unwrap();
        }
        let out = path("out");
        let planned = plan(&[folder.path().to_owned()], &out).unwrap();
        assert_eq!(planned, [(path("a.png"), out.join("a.png")), (path("b.JPG"), out.join("b.png"))]);
        std::fs::write(path("a.webp"), b"x").unwrap();
        assert!(plan(&[path("a.png"), path("a.webp")], &out).unwrap_err().contains("both become"));
        assert!(plan(&[path("c.png")], &out).is_err());
        std::fs::create_dir(&out).unwrap();
        assert!(plan(std::slice::from_ref(&out), &out).unwrap_err().contains("no PNG"));
        std::fs::write(out.join("a.png"), b"x").unwrap();
        assert!(plan(&[path("a.png")], &out).unwrap_err().contains("exists already"));
    }
}
