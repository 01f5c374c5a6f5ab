//! What can go wrong with training data: [`DataError`] stops a run before it starts, [`Why`] says why one file is left out.
//!
//! Texts name the file and the remedy; nothing that came from a file name or a decoder reaches a terminal unescaped.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Skipped files that an error lists.
const LISTED: usize = 10;

/// Why no training data came out.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The source as a whole cannot be used.
    #[error("training images {}: {why}", path.display())]
    Source {
        /// The folder or archive.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Not one usable image.
    #[error("training images {}: no usable PNG, JPEG or WebP image{}", path.display(), listed(skipped))]
    NoImages {
        /// The folder or archive.
        path: PathBuf,
        /// Every file that was left out.
        skipped: Vec<Skipped>,
    },
    /// More unusable files than `max_bad_share` allows.
    #[error(
        "training images {}: {bad} of {total} images cannot be used, more than the allowed share of {allowed}; \
         repair or remove them, or raise data.max_bad_share{}", path.display(), listed(skipped)
    )]
    TooManyBad {
        /// The folder or archive.
        path: PathBuf,
        /// Unusable images.
        bad: usize,
        /// All images, usable or not.
        total: usize,
        /// `max_bad_share` of the request.
        allowed: f64,
        /// Every file that was left out.
        skipped: Vec<Skipped>,
    },
    /// A share that is no share.
    #[error("data.max_bad_share is {0}, expected a number from 0 to 1")]
    BadShare(f64),
    /// A resolution that no pyramid has.
    #[error("resolution {0} is not a power of two from {min} to {max}", min = crate::MIN_RESOLUTION, max = crate::MAX_RESOLUTION)]
    Resolution(u32),
    /// A side that no image is kept at.
    #[error("side {0} is not from {min} to {max}", min = crate::MIN_RESOLUTION, max = crate::MAX_SIDE)]
    Side(u32),
    /// The disk refused.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was attempted: a verb phrase.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
    /// A prepared pyramid is not what its index says. [`crate::prepare`] rebuilds it.
    #[error("prepared images {} are damaged: {why}; prepare them again", path.display())]
    Damaged {
        /// The pyramid's folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Another process holds the lock of this pyramid and makes no progress.
    #[error(
        "another process is preparing the same images and made no progress for {seconds} s (lock {}); \
         end that process or choose another data.cache", lock.display()
    )]
    Stalled {
        /// The lock file.
        lock: PathBuf,
        /// How long nothing moved.
        seconds: u64,
    },
    /// An index past the last image.
    #[error("image {index} was asked for, the data set has {count}")]
    NoSuchImage {
        /// The index asked for.
        index: usize,
        /// Images in the pyramid.
        count: usize,
    },
    /// A level above the pyramid's top.
    #[error("resolution {asked} was asked for, the prepared images go from {min} to {top}", min = crate::MIN_RESOLUTION)]
    NoSuchLevel {
        /// The resolution asked for.
        asked: u32,
        /// The highest there is.
        top: u32,
    },
    /// A buffer of the wrong size.
    #[error("a buffer of {expected} bytes is needed, {got} were given")]
    BufferSize {
        /// What the operation needs.
        expected: usize,
        /// What it got.
        got: usize,
    },
    /// A picture that cannot be laid out or encoded.
    #[error("sample grid: {0}")]
    Grid(String),
}

impl DataError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { doing, path: path.to_owned(), error }
    }
}

/// One file that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name relative to the source, `/` between folders; control characters replaced.
    pub name: String,
    /// The reason.
    pub why: Why,
}

/// Why a file was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Zero bytes.
    Empty,
    /// The file ends before its image does.
    Truncated,
    /// Not what its format demands.
    Corrupt(String),
    /// Neither PNG nor JPEG nor WebP, or a variant of them that is not read.
    Unsupported(String),
    /// More bytes or pixels than are read.
    TooLarge(String),
    /// The system or the archive did not hand it out.
    Unreadable(String),
    /// A link to a folder that was read already, such as one that contains the link.
    LinkedTwice,
}

impl Why {
    /// Whether it counts against `max_bad_share`: everything that should have been an image does.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        !matches!(self, Self::LinkedTwice)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "empty file"),
            Self::Truncated => write!(f, "truncated"),
            Self::Corrupt(what) => write!(f, "corrupt: {what}"),
            Self::Unsupported(what) => write!(f, "unsupported: {what}"),
            Self::TooLarge(what) => write!(f, "too large: {what}"),
            Self::Unreadable(what) => write!(f, "unreadable: {what}"),
            Self::LinkedTwice => write!(f, "link to a folder that is read already"),
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// `text` with control characters replaced, so that a file name cannot drive a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn listed(skipped: &[Skipped]) -> String {
    let mut text = String::new();
    for one in skipped.iter().take(LISTED) {
        text.push_str(&format!("\n  {one}"));
    }
    if skipped.len() > LISTED {
        text.push_str(&format!("\n  and {} more", skipped.len() - LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_lists_the_first_ten_and_counts_the_rest() {
        let skipped = (0..13).map(|i| Skipped { name: format!("{i}.png"), why: Why::Empty }).collect();
        let text = DataError::NoImages { path: "faces".into(), skipped }.to_string();
        assert!(
            text.contains("9.png: empty file") && !text.contains("10.png") && text.ends_with("and 3 more"),
            "{text}"
        );
    }

    #[test]
    fn names_cannot_drive_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\n.png"), "a\u{fffd}[2Jb\u{fffd}.png");
    }
}
