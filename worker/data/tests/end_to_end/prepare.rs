//! A folder or archive becomes a pyramid once: its content, its order, its cache.

use crate::support::{archive, encoded, png, prepare, put, request};
use data::{DataError, Progress, Pyramid, Why, image_bytes};
use image::ImageFormat;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

fn names(pyramid: &Pyramid) -> Vec<&str> {
    (0..pyramid.len()).map(|i| pyramid.name(i).unwrap()).collect()
}

fn pixels(pyramid: &Pyramid, resolution: u32) -> Vec<u8> {
    let indices: Vec<u32> = (0..pyramid.len() as u32).collect();
    let mut out = vec![0; indices.len() * image_bytes(resolution)];
    pyramid.read_batch(resolution, &indices, &mut out).unwrap();
    out
}

/// Three formats, nested, sizes apart, with everything that is to be ignored.
fn folder(root: &Path) {
    put(root, "b.png", &png(1, 16));
    put(root, "a/c.jpg", &encoded(2, 40, ImageFormat::Jpeg));
    put(root, "ü/名前.webp", &encoded(3, 9, ImageFormat::WebP));
    put(root, "NOTICE.txt", b"not an image");
    put(root, ".hidden/x.png", b"not looked at");
    put(root, "__MACOSX/b.png", b"not looked at");
}

#[test]
fn a_folder_becomes_every_level_in_order_of_names() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let seen = Mutex::new(Vec::new());
    let made = data::prepare(&request(source.path(), cache.path(), 16), &|p| seen.lock().unwrap().push(p)).unwrap();
    assert_eq!(names(&made.pyramid), ["a/c.jpg", "b.png", "ü/名前.webp"]);
    assert_eq!((made.skipped.len(), made.enlarged, made.reused), (0, 1, false));
    let mut seen = seen.into_inner().unwrap();
    seen.sort_by_key(|progress| format!("{progress:?}"));
    assert_eq!(seen, [1, 2, 3].map(|done| Progress::Preparing { done, total: 3 }));

    // b.png is 16x16 already: the top level holds its own pixels, plane by plane.
    let original = image::load_from_memory(&png(1, 16)).unwrap().into_rgb8();
    let mut top = vec![0; image_bytes(16)];
    made.pyramid.read(16, 1, &mut top).unwrap();
    for (x, y, pixel) in original.enumerate_pixels() {
        for channel in 0..3 {
            assert_eq!(top[channel * 256 + (16 * y + x) as usize], pixel[channel]);
        }
    }
    assert!([4, 8].iter().all(|&r| pixels(&made.pyramid, r).len() == 3 * image_bytes(r)));
}

#[test]
fn reads_out_of_bounds_are_refused() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let pyramid = prepare(&request(source.path(), cache.path(), 8)).unwrap().pyramid;
    let mut out = vec![0; image_bytes(8)];
    assert!(matches!(pyramid.read(8, 3, &mut out), Err(DataError::NoSuchImage { index: 3, count: 3 })));
    assert!(matches!(pyramid.read(16, 0, &mut out), Err(DataError::NoSuchLevel { asked: 16, top: 8 })));
    assert!(matches!(pyramid.read(0, 0, &mut out), Err(DataError::NoSuchLevel { .. })));
    assert!(matches!(pyramid.read(4, 0, &mut out), Err(DataError::BufferSize { expected: 48, got: 192 })));
    assert!(matches!(pyramid.read_batch(8, &[0, 1], &mut out), Err(DataError::BufferSize { .. })));
    assert!(matches!(pyramid.read_batch(8, &[7], &mut out), Err(DataError::NoSuchImage { .. })));
    pyramid.read_batch(8, &[], &mut []).unwrap();
}

#[test]
fn an_archive_of_a_folder_is_the_same_data() {
    let (source, cache, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let zip = source.path().join("all.zip");
    let files = ["ü/名前.webp", "b.png", "NOTICE.txt", "a/c.jpg"]
        .map(|name| (name, fs::read(source.path().join(name)).unwrap()));
    fs::write(&zip, archive(&files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice())))).unwrap();
    let from_folder = prepare(&request(source.path(), cache.path(), 16)).unwrap();
    let from_zip = prepare(&request(&zip, other.path(), 16)).unwrap();
    assert_eq!(from_folder.pyramid.fingerprint(), from_zip.pyramid.fingerprint());
    assert_eq!(pixels(&from_folder.pyramid, 16), pixels(&from_zip.pyramid, 16));
    // In one cache they share one pyramid, though the second source had to be read once.
    let shared = prepare(&request(&zip, cache.path(), 16)).unwrap();
    assert!(!shared.reused);
    assert_eq!(fs::read_dir(cache.path().join("pyramids")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(cache.path().join("building")).unwrap().count(), 0);
}

#[test]
fn the_second_launch_reads_nothing_and_a_change_is_seen() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    put(source.path(), "broken.png", b"");
    let base = request(source.path(), cache.path(), 16);
    let first = prepare(&base).unwrap();
    let again = data::prepare(&base, &|_| panic!("a reused pyramid needs no work")).unwrap();
    assert!(!first.reused && again.reused);
    assert_eq!((&again.skipped, again.enlarged), (&first.skipped, first.enlarged));
    assert_eq!(again.skipped[0].why, Why::Empty);
    // What is remembered is judged by today's bounds.
    let strict = data::Request { max_bad_share: 0.0, ..base.clone() };
    assert!(matches!(prepare(&strict), Err(DataError::TooManyBad { bad: 1, total: 4, .. })));

    let darker = prepare(&data::Request { background: [0; 3], ..base.clone() }).unwrap();
    let smaller = prepare(&data::Request { resolution: 8, ..base.clone() }).unwrap();
    put(source.path(), "b.png", &png(9, 16 + 1));
    let changed = prepare(&base).unwrap();
    let prints = [&first, &darker, &smaller, &changed].map(|made| made.pyramid.fingerprint().to_owned());
    assert!((0..4).all(|i| (0..i).all(|j| prints[i] != prints[j])), "{prints:?}");
    assert!(!darker.reused && !smaller.reused && !changed.reused);
}

/// The one folder with a pyramid in it.
fn only_pyramid(cache: &Path) -> PathBuf {
    let mut folders = fs::read_dir(cache.join("pyramids")).unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    assert!(folders.next().is_none());
    folder
}

#[test]
fn damage_is_noticed_and_repaired() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let base = request(source.path(), cache.path(), 16);
    let whole = pixels(&prepare(&base).unwrap().pyramid, 16);
    let place = only_pyramid(cache.path());
    let damages: [&dyn Fn(); 5] = [
        &|| fs::write(place.join("r03.u8"), b"short").unwrap(),
        &|| fs::remove_file(place.join("r04.u8")).unwrap(),
        &|| fs::remove_file(place.join("index.json")).unwrap(),
        &|| fs::write(place.join("index.json"), b"{").unwrap(),
        &|| {
            let text = fs::read_to_string(place.join("index.json")).unwrap();
            fs::write(place.join("index.json"), text.replace("b.png", "d.png")).unwrap();
        },
    ];
    for damage in damages {
        damage();
        assert!(Pyramid::open(&place).is_err());
        let repaired = prepare(&base).unwrap();
        assert!(!repaired.reused);
        assert_eq!(pixels(&repaired.pyramid, 16), whole);
    }
    let record = fs::read_dir(cache.path().join("sources")).unwrap().next().unwrap().unwrap().path();
    fs::write(record, b"{}").unwrap();
    assert!(!prepare(&base).unwrap().reused);
    assert!(prepare(&base).unwrap().reused);
    assert_eq!(only_pyramid(cache.path()), place);
}

/// A builder that died left half a pyramid; the next one starts afresh.
#[test]
fn what_a_dead_builder_left_is_swept() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let base = request(source.path(), cache.path(), 16);
    prepare(&base).unwrap();
    let lock = fs::read_dir(cache.path().join("locks")).unwrap().next().unwrap().unwrap().path();
    let half = cache.path().join("building").join(lock.file_stem().unwrap());
    put(&half, "r02.u8", b"half");
    fs::remove_dir_all(only_pyramid(cache.path())).unwrap();
    assert!(!prepare(&base).unwrap().reused);
    assert!(!half.exists());
}

#[test]
fn of_many_at_once_one_builds_and_all_get_it() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    folder(source.path());
    let base = request(source.path(), cache.path(), 16);
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| prepare(&base).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|one| !one.reused).count(), 1);
    assert!(made.iter().all(|one| one.pyramid.fingerprint() == made[0].pyramid.fingerprint()));
}

#[test]
fn links_are_followed_once() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(source.path(), "a/x.png", &png(1, 8));
    put(source.path(), "outside.png", &png(2, 8));
    symlink("../..", source.path().join("a/up")).unwrap();
    symlink(source.path(), source.path().join("a/loop")).unwrap();
    symlink("a", source.path().join("b")).unwrap();
    symlink("outside.png", source.path().join("link.png")).unwrap();
    symlink("nowhere", source.path().join("dangling.png")).unwrap();
    symlink("nowhere", source.path().join("dangling.txt")).unwrap();
    // "a/up" leads to the parent of the source: keep that to a folder of our own.
    let nested = tempfile::tempdir().unwrap();
    fs::rename(source.path(), nested.path().join("set")).unwrap();
    symlink(nested.path().join("set"), source.path()).unwrap();

    let made = prepare(&request(&nested.path().join("set"), cache.path(), 8)).unwrap();
    let skipped: Vec<_> = made.skipped.iter().map(|one| (one.name.as_str(), one.why.is_bad())).collect();
    assert_eq!(names(&made.pyramid), ["a/x.png", "link.png", "outside.png"]);
    assert_eq!(skipped, [("a/loop", false), ("a/up/set", false), ("b", false), ("dangling.png", true)]);
    fs::remove_file(source.path()).unwrap();
}
