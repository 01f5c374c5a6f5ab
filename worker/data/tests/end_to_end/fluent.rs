//! The images that come with the project, whole.

use crate::support::{prepare, request};
use std::path::Path;

#[test]
fn the_quickstarts_images_are_660_and_prepared_once() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/data/fluent-people-256.zip");
    let cache = tempfile::tempdir().unwrap();
    let first = prepare(&request(&source, cache.path(), 32)).unwrap();
    assert_eq!((first.pyramid.len(), first.skipped.len(), first.enlarged), (660, 0, 0));
    assert!(!first.reused);
    let second = prepare(&request(&source, cache.path(), 32)).unwrap();
    assert!(second.reused);
    assert_eq!(second.pyramid.fingerprint(), first.pyramid.fingerprint());
    // Transparent corners show the background.
    let mut image = vec![0; data::image_bytes(32)];
    second.pyramid.read(32, 0, &mut image).unwrap();
    assert_eq!([image[0], image[1024], image[2048]], [255; 3]);
    assert!(image.iter().any(|&x| x < 200));
}
