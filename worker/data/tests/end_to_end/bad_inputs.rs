//! Files and archives that lie, end early or lead astray: each a named skip or a clear error, none a panic.

use crate::support::{archive, encoded, png, prepare, put, request};
use data::{DataError, Why};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

#[test]
fn bad_files_are_named_and_the_rest_is_used() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = source.path();
    for i in 0..8 {
        put(root, &format!("good{i}.png"), &png(i, 8));
    }
    put(root, "0-empty.png", b"");
    put(root, "1-text.png", b"This is text, whatever its name says.");
    put(root, "2-short.png", &png(1, 64)[..100]);
    put(root, "3-short.jpg", &encoded(1, 64, image::ImageFormat::Jpeg)[..400]);
    put(root, "4-other.gif", b"GIF89a");
    fs::create_dir(root.join("5-folder.png")).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("6-socket.png")).unwrap();
    put(root, "7-escape\u{1b}[2J.png", b"");
    let sparse = fs::File::create(root.join("8-huge.png")).unwrap();
    sparse.set_len(1 << 40).unwrap();

    let made = prepare(&request(root, cache.path(), 8)).unwrap();
    assert_eq!(made.pyramid.len(), 8);
    let whys: Vec<_> = made.skipped.iter().map(|one| (one.name.as_str(), &one.why)).collect();
    assert!(
        matches!(
            whys.as_slice(),
            [
                ("0-empty.png", Why::Empty),
                ("1-text.png", Why::Unsupported(_)),
                ("2-short.png", Why::Truncated | Why::Corrupt(_)),
                ("3-short.jpg", Why::Truncated),
                ("4-other.gif", Why::Unsupported(_)),
                ("6-socket.png", Why::Unreadable(_)),
                ("7-escape\u{fffd}[2J.png", Why::Empty),
                ("8-huge.png", Why::TooLarge(_)),
            ]
        ),
        "{whys:#?}"
    );
}

#[test]
fn too_many_bad_files_stop_with_the_first_ten_named() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(source.path(), "good.png", &png(1, 8));
    for i in 10..22 {
        put(source.path(), &format!("bad{i}.png"), b"?");
    }
    let error = prepare(&request(source.path(), cache.path(), 8)).unwrap_err();
    assert!(matches!(error, DataError::TooManyBad { bad: 12, total: 13, .. }));
    let text = error.to_string();
    assert!(text.contains("bad19.png: ") && !text.contains("bad20.png") && text.contains("and 2 more"), "{text}");
    fs::remove_file(source.path().join("good.png")).unwrap();
    assert!(matches!(prepare(&request(source.path(), cache.path(), 8)), Err(DataError::NoImages { .. })));
    assert_eq!(fs::read_dir(cache.path().join("building")).unwrap().count(), 0, "nothing half-built may stay");
}

#[test]
fn a_source_that_is_none_is_refused() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused = |path: &Path| prepare(&request(path, cache.path(), 8)).unwrap_err();
    assert!(matches!(refused(&source.path().join("nowhere")), DataError::Source { .. }));
    assert!(matches!(refused(source.path()), DataError::NoImages { .. }));
    put(source.path(), "text.zip", b"no archive at all");
    assert!(matches!(refused(&source.path().join("text.zip")), DataError::Source { .. }));
    put(source.path(), "empty.zip", b"");
    assert!(matches!(refused(&source.path().join("empty.zip")), DataError::Source { .. }));
    put(source.path(), "notice.zip", &archive(&[("NOTICE.txt", b"x")]));
    assert!(matches!(refused(&source.path().join("notice.zip")), DataError::NoImages { .. }));
    assert!(matches!(refused(Path::new("/dev/null")), DataError::Source { .. }));
    for resolution in [0, 3, 2048] {
        let wrong = request(source.path(), cache.path(), resolution);
        assert!(matches!(prepare(&wrong), Err(DataError::Resolution(_))));
    }
    for share in [-0.1, 1.1, f64::NAN] {
        let wrong = data::Request { max_bad_share: share, ..request(source.path(), cache.path(), 8) };
        assert!(matches!(prepare(&wrong), Err(DataError::BadShare(_))));
    }
}

/// The name in place of `XX/evil.png`, in local header and central directory alike.
fn renamed(zip: &[u8], to: &[u8; 11]) -> Vec<u8> {
    let mut zip = zip.to_vec();
    for at in 0..zip.len() - to.len() {
        if &zip[at..at + to.len()] == b"XX/evil.png" {
            zip[at..at + to.len()].copy_from_slice(to);
        }
    }
    zip
}

#[test]
fn names_in_an_archive_lead_nowhere() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let zip = archive(&[("XX/evil.png", &png(1, 8)), ("good.png", &png(2, 8))]);
    for name in [b"../evil.png", b"/a/evil.png", b"C:\\evil.png", b"X\0/evil.png"] {
        let path = source.path().join("inner/set.zip");
        put(source.path(), "inner/set.zip", &renamed(&zip, name));
        let made = prepare(&request(&path, &cache.path().join("deep/cache"), 8)).unwrap();
        assert_eq!(made.pyramid.len(), 2, "{:?}", String::from_utf8_lossy(name));
        let inside = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(inside(source.path()), ["inner"]);
        assert_eq!(inside(&source.path().join("inner")), ["set.zip"]);
        assert_eq!(inside(cache.path()), ["deep"]);
        assert_eq!(inside(&cache.path().join("deep")), ["cache"]);
    }
}

/// 300 MiB of zeros in 300 KiB of archive, once with the size declared and once with a small one claimed.
#[test]
fn a_bomb_is_cut_off() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let size: u64 = 300 << 20;
    let bomb = vec![0; size as usize];
    let mut zip = archive(&[("bomb.png", &bomb), ("good.png", &png(2, 8))]);
    drop(bomb);
    let path = source.path().join("set.zip");
    for lie in [false, true] {
        if lie {
            let real = (size as u32).to_le_bytes();
            let places: Vec<_> = (0..zip.len() - 4).filter(|&at| zip[at..at + 4] == real).collect();
            assert!(!places.is_empty());
            for at in places {
                zip[at..at + 4].copy_from_slice(&1000u32.to_le_bytes());
            }
        }
        fs::write(&path, &zip).unwrap();
        let made = prepare(&request(&path, cache.path(), 8)).unwrap();
        assert_eq!((made.pyramid.len(), made.skipped.len()), (1, 1));
        assert!(made.skipped[0].why.is_bad(), "{}", made.skipped[0]);
    }
}

/// A small archive: three formats, a folder, a notice.
fn small() -> Vec<u8> {
    archive(&[
        ("a.png", &png(1, 8)),
        ("b/c.jpg", &encoded(2, 8, image::ImageFormat::Jpeg)),
        ("d.webp", &encoded(3, 8, image::ImageFormat::WebP)),
        ("NOTICE.txt", b"text"),
    ])
}

/// Whatever came in: at most three images, and all of them readable.
fn survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join("set.zip");
    fs::write(&path, bytes).unwrap();
    match prepare(&data::Request { max_bad_share: 1.0, ..request(&path, cache.path(), 8) }) {
        Ok(made) => {
            prop_assert!(made.pyramid.len() + made.skipped.len() <= 3);
            let mut out = vec![0; data::image_bytes(8)];
            for index in 0..made.pyramid.len() {
                made.pyramid.read(8, index, &mut out).unwrap();
            }
        }
        Err(error) => prop_assert!(
            matches!(error, DataError::Source { .. } | DataError::NoImages { .. }),
            "a bad archive is the source's fault, not {error:?}"
        ),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_archive_cut_anywhere_never_panics(share in 0.0f64..1.0) {
        let zip = small();
        survives(&zip[..(zip.len() as f64 * share) as usize])?;
    }

    #[test]
    fn an_archive_with_flipped_bits_never_panics(flips in proptest::collection::vec((0.0f64..1.0, 0u8..8), 1..6)) {
        let mut zip = small();
        for (share, bit) in flips {
            let at = (zip.len() as f64 * share) as usize;
            zip[at] ^= 1 << bit;
        }
        survives(&zip)?;
    }

    /// Flips within the images themselves: the decoders' own trial.
    #[test]
    fn an_image_with_flipped_bits_never_panics(format in 0usize..3, flips in proptest::collection::vec((0.0f64..1.0, 0u8..8), 1..6)) {
        let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let format = [image::ImageFormat::Png, image::ImageFormat::Jpeg, image::ImageFormat::WebP][format];
        let mut bytes = encoded(5, 24, format);
        for (share, bit) in flips {
            let at = (bytes.len() as f64 * share) as usize;
            bytes[at] ^= 1 << bit;
        }
        put(source.path(), "flipped.png", &bytes);
        put(source.path(), "good.png", &png(1, 8));
        let made = prepare(&request(source.path(), cache.path(), 8)).unwrap();
        prop_assert_eq!(made.pyramid.len() + made.skipped.len(), 2);
    }
}
