//! `index.json` of a prepared pyramid: which images, in which order, from which bytes, prepared how. The fingerprint is
//! the hash of exactly that, so an index proves itself.
//!
//! Pure: text in, value out.

use crate::levels::View;
use serde::{Deserialize, Serialize};

/// Version of everything that decides about pixels and layout. Raise it with any change to them.
pub(crate) const FORMAT: u32 = 1;

/// What a pyramid holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// [`Index::fingerprint_of`] the rest.
    pub fingerprint: String,
    /// Side of the top level.
    pub resolution: u32,
    /// Colour under transparent pixels.
    pub background: [u8; 3],
    /// What of each image is kept.
    #[serde(default, skip_serializing_if = "View::is_pyramid")]
    pub view: View,
    /// In the order of the level files.
    pub images: Vec<Source>,
}

/// Where one image came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Name relative to the folder or archive.
    pub name: String,
    /// BLAKE3 of the file.
    pub blake3: String,
}

impl Index {
    pub(crate) fn new(resolution: u32, background: [u8; 3], view: View, images: Vec<Source>) -> Self {
        let mut index = Self { format: FORMAT, fingerprint: String::new(), resolution, background, view, images };
        index.fingerprint = index.fingerprint_of();
        index
    }

    fn fingerprint_of(&self) -> String {
        let mut digest = Digest::new("pyramid");
        digest.number(u64::from(self.format));
        digest.number(u64::from(self.resolution));
        self.background.iter().for_each(|&part| digest.number(u64::from(part)));
        if !self.view.is_pyramid() {
            digest.text(self.view.name());
        }
        for image in &self.images {
            digest.text(&image.name);
            digest.text(&image.blake3);
        }
        digest.hex()
    }

    /// Reads an index and refuses one that does not prove itself.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(text).map_err(|e| format!("index.json: {e}"))?;
        if index.format != FORMAT {
            return Err(format!("format {}, this program reads {FORMAT}", index.format));
        }
        if index.fingerprint != index.fingerprint_of() {
            return Err("index.json does not match its fingerprint".into());
        }
        if index.view.check(index.resolution).is_err()
            || index.images.is_empty()
            || index.images.len() > u32::MAX as usize
        {
            return Err("index.json describes no pyramid".into());
        }
        Ok(index)
    }
}

/// BLAKE3 over a list of fields, each with its length, so that no two lists share bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest(blake3::Hasher);

impl Digest {
    pub(crate) fn new(what: &str) -> Self {
        let mut digest = Self::default();
        digest.text(what);
        digest
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let image = |name: &str| Source { name: name.into(), blake3: "00".into() };
        Index::new(16, [1, 2, 3], View::Centre, vec![image("a"), image("b")])
    }

    #[test]
    fn an_index_survives_its_file() {
        assert_eq!(Index::parse(&serde_json::to_vec(&index()).unwrap()), Ok(index()));
    }

    #[test]
    fn whatever_decides_about_pixels_is_in_the_fingerprint() {
        let base = index().fingerprint;
        let changes: [fn(&mut Index); 6] = [
            |i| i.view = View::Whole,
            |i| i.resolution = 32,
            |i| i.background[2] = 0,
            |i| i.images.swap(0, 1),
            |i| i.images[0].blake3 = "01".into(),
            |i| drop(i.images.pop()),
        ];
        for change in changes {
            let mut other = index();
            change(&mut other);
            assert_ne!(other.fingerprint_of(), base);
            assert!(Index::parse(&serde_json::to_vec(&other).unwrap()).is_err(), "an altered index must not pass");
        }
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let digest = |parts: [&str; 2]| {
            let mut digest = Digest::new("test");
            parts.iter().for_each(|part| digest.text(part));
            digest.hex()
        };
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
    }
}
