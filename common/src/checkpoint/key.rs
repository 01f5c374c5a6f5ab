//! The name of a checkpoint: where in training it was taken, and by which generation.

use crate::ids::{Generation, ImagesSeen};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// `manifests/<images:012>-<generation:06>.json`, relative to the run.
///
/// **Order**: by generation, then by images. A generation is formed later than every smaller one, so its checkpoints are
/// newer even where it started from an older checkpoint, and a writer of a dead generation that still lives cannot push
/// itself to the front by having trained on. This rests on generations that only grow within a run: a run that is resumed
/// goes on from the highest generation in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ManifestKey {
    /// Images seen when the state was copied.
    pub images: ImagesSeen,
    /// Generation that wrote it.
    pub generation: Generation,
}

/// Text that is not the name of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not the name of a checkpoint (manifests/<images>-<generation>.json, such as manifests/000000060000-000001.json)"
)]
pub struct BadKey(String);

impl ManifestKey {
    /// Folder of the manifests, relative to the run, with its slash.
    pub const FOLDER: &'static str = "manifests/";

    /// The key of a checkpoint of `generation` at `images`.
    #[must_use]
    pub fn new(images: ImagesSeen, generation: Generation) -> Self {
        Self { images, generation }
    }
}

impl Ord for ManifestKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.generation, self.images).cmp(&(other.generation, other.images))
    }
}

impl PartialOrd for ManifestKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:012}-{:06}.json", Self::FOLDER, self.images.0, self.generation.0)
    }
}

impl FromStr for ManifestKey {
    type Err = BadKey;

    /// Only what [`fmt::Display`] writes is accepted, so a checkpoint has one name.
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bad = || BadKey(text.chars().take(200).collect());
        let stem = text.strip_prefix(Self::FOLDER).and_then(|t| t.strip_suffix(".json")).ok_or_else(bad)?;
        let (images, generation) = stem.split_once('-').ok_or_else(bad)?;
        let number = |t: &str| t.parse::<u64>().map_err(|_| bad());
        let key = Self::new(ImagesSeen(number(images)?), Generation(number(generation)?));
        if key.to_string() == text { Ok(key) } else { Err(bad()) }
    }
}

impl Serialize for ManifestKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ManifestKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(images: u64, generation: u64) -> ManifestKey {
        ManifestKey::new(ImagesSeen(images), Generation(generation))
    }

    #[test]
    fn has_the_documented_form() {
        assert_eq!(key(60_000, 1).to_string(), "manifests/000000060000-000001.json");
    }

    #[test]
    fn refuses_other_names() {
        for bad in [
            "",
            "manifests/",
            "manifests/000000060000-000001",
            "manifests/60000-1.json",
            "manifests/+00000060000-000001.json",
            "manifests/0000000060000-000001.json",
            "manifests/000000060000-000001.json.json",
            "000000060000-000001.json",
            "manifests/99999999999999999999-000001.json",
            "manifests/../x.json",
        ] {
            assert!(bad.parse::<ManifestKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_generation_is_newer_wherever_it_started() {
        assert!(key(40_000, 2) > key(90_000, 1));
        assert!(key(50_000, 2) > key(40_000, 2));
    }

    proptest! {
        #[test]
        fn every_key_reads_back(images: u64, generation: u64) {
            prop_assert_eq!(key(images, generation).to_string().parse(), Ok(key(images, generation)));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            if let Ok(key) = text.parse::<ManifestKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
