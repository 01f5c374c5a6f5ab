//! What a folder or ZIP archive offers: the files that should be images, in one order everywhere, and their bytes.
//!
//! Names are labels: they sort, they are reported, nothing is ever written under them. Counts and sizes are bounded.

mod archive;
mod folder;

use crate::error::clean;
use crate::index::Digest;
use crate::{DataError, Skipped, Why};
use archive::Archive;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Files that one source may offer.
const MAX_FILES: usize = 10_000_000;
/// Bytes of one encoded image.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Read, whatever their content turns out to be.
const READ: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Images that are not read: better named than silently missed.
const NOT_READ: [&str; 14] =
    ["avif", "bmp", "dds", "exr", "gif", "hdr", "heic", "heif", "ico", "jp2", "jxl", "tga", "tif", "tiff"];

/// One file that should be an image.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Relative to the source, `/` between folders.
    pub name: String,
    at: At,
}

#[derive(Debug)]
enum At {
    File(PathBuf),
    Entry(usize),
}

/// A source that was looked through, not yet read.
pub(crate) struct Listing {
    /// Sorted by name.
    pub candidates: Vec<Candidate>,
    /// What is left out already.
    pub skipped: Vec<Skipped>,
    /// Changes when a file is added, removed, renamed or rewritten; costs no reading.
    pub stamp: Digest,
    archive: Option<Archive>,
}

impl Listing {
    /// Looks through the folder or archive at `path`; with `within`, of its files only those in a folder of that name count.
    pub(crate) fn of(path: &Path, within: Option<&str>) -> Result<Self, DataError> {
        let refuse = |why: String| DataError::Source { path: path.to_owned(), why };
        let meta =
            fs::metadata(path).map_err(|e| refuse(format!("{e}; set data.source to a folder or a ZIP archive")))?;
        let mut found = Found { stamp: Digest::new("source"), ..Found::default() };
        let archive = if meta.is_dir() {
            folder::list(path, &mut found).map_err(refuse)?;
            None
        } else if meta.is_file() {
            Some(Archive::open(path, &mut found).map_err(refuse)?)
        } else {
            return Err(refuse("neither a folder nor a ZIP archive".into()));
        };
        let Found { mut files, mut skipped, mut stamp } = found;
        if let Some(folder) = within {
            files.retain(|file| lies_in(&file.candidate.name, folder));
            skipped.retain(|one| lies_in(&one.name, folder));
        }
        files.sort_by(|a, b| a.candidate.name.cmp(&b.candidate.name));
        skipped.sort_by(|a, b| a.name.cmp(&b.name));
        for file in &files {
            stamp.text(&file.candidate.name);
            file.stamp.iter().for_each(|&part| stamp.number(part));
        }
        stamp.number(skipped.len() as u64);
        for one in &skipped {
            stamp.text(&one.name);
        }
        Ok(Self { candidates: files.into_iter().map(|file| file.candidate).collect(), skipped, stamp, archive })
    }

    /// A handle that reads candidates; one per thread.
    pub(crate) fn reader(&self) -> Reader {
        Reader(self.archive.clone())
    }
}

/// Reads the bytes of candidates.
pub(crate) struct Reader(Option<Archive>);

impl Reader {
    pub(crate) fn read(&mut self, candidate: &Candidate) -> Result<Vec<u8>, Why> {
        match (&candidate.at, &mut self.0) {
            (At::File(path), _) => folder::read(path),
            (At::Entry(index), Some(archive)) => archive.read(*index),
            (At::Entry(_), None) => Err(Why::Unreadable("the archive is not open".into())),
        }
    }
}

/// What a walk collects.
#[derive(Default)]
struct Found {
    files: Vec<File>,
    skipped: Vec<Skipped>,
    stamp: Digest,
}

struct File {
    candidate: Candidate,
    stamp: [u64; 3],
}

impl Found {
    fn skip(&mut self, name: &str, why: Why) {
        self.skipped.push(Skipped { name: clean(name), why });
    }

    fn keep(&mut self, name: String, at: At, stamp: [u64; 3]) -> Result<(), String> {
        if self.files.len() == MAX_FILES {
            return Err(format!("more than {MAX_FILES} images; split it"));
        }
        self.files.push(File { candidate: Candidate { name, at }, stamp });
        Ok(())
    }
}

/// What a name alone says about a file.
#[derive(Debug, PartialEq)]
enum Kind {
    /// To be read.
    Image,
    /// An image that is not read, of this format.
    OtherImage(String),
    /// No image: notices, hidden files, what archivers leave.
    NoImage,
}

fn kind(name: &str) -> Kind {
    if hidden(name) {
        return Kind::NoImage;
    }
    let file = name.rsplit('/').next().unwrap_or(name);
    let Some((_, extension)) = file.rsplit_once('.') else { return Kind::NoImage };
    let extension = extension.to_ascii_lowercase();
    if READ.contains(&extension.as_str()) {
        Kind::Image
    } else if NOT_READ.contains(&extension.as_str()) {
        Kind::OtherImage(extension)
    } else {
        Kind::NoImage
    }
}

/// Whether one of the folders of `name` is called `folder`.
fn lies_in(name: &str, folder: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|part| part == folder))
}

/// Whether a file or one of its folders is hidden, or is what macOS adds to archives.
fn hidden(name: &str) -> bool {
    name.split('/').any(|part| part == "__MACOSX" || (part.starts_with('.') && part != "." && part != ".."))
}

/// All of `reader` if it is within the bound of a file. A claimed size is not believed.
fn read_bounded(reader: impl Read) -> Result<Vec<u8>, Why> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| refusal(&e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

fn too_large() -> Why {
    Why::TooLarge(format!("a file above {} MiB", MAX_FILE_BYTES >> 20))
}

fn refusal(error: &io::Error) -> Why {
    Why::Unreadable(clean(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_read() {
        for name in ["a.png", "b/C.JPG", "d.e.jpeg", "ü/名.webp", "../x.png", "/etc/y.png"] {
            assert_eq!(kind(name), Kind::Image, "{name}");
        }
        for name in ["NOTICE.txt", "png", ".png", ".cache/a.png", "__MACOSX/._a.png", "a/.b.png", "README", "a.png/x"] {
            assert_eq!(kind(name), Kind::NoImage, "{name}");
        }
        assert_eq!(kind("a.GIF"), Kind::OtherImage("gif".into()));
    }

    #[test]
    fn a_file_lies_in_its_folders() {
        assert!(lies_in("trainA/1.jpg", "trainA") && lies_in("zebras/trainA/b/1.jpg", "trainA"));
        assert!(!lies_in("trainA", "trainA") && !lies_in("trainAB/1.jpg", "trainA") && !lies_in("1.jpg", "trainA"));
    }

    #[test]
    fn an_endless_file_is_cut_off() {
        assert!(matches!(read_bounded(io::repeat(7)), Err(Why::TooLarge(_))));
    }
}
