//! A ZIP archive, read where it lies: nothing is unpacked to disk, so no entry's name can lead anywhere, and an entry that
//! swells past its bound is cut off whatever size it claims. The list of entries is held in memory; it grows with the
//! archive's own bytes (46 each at least), never with a number that the archive claims.

use super::{At, Found, Kind, MAX_FILE_BYTES, kind, read_bounded, too_large};
use crate::Why;
use crate::error::clean;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use zip::ZipArchive;
use zip::result::ZipError;

/// An open archive; clones share the file and the list of entries.
#[derive(Clone)]
pub(super) struct Archive(ZipArchive<SharedFile>);

impl Archive {
    /// Opens the archive and collects what it holds.
    pub(super) fn open(path: &Path, found: &mut Found) -> Result<Self, String> {
        let file = fs::File::open(path).map_err(|e| e.to_string())?;
        let len = file.metadata().map_err(|e| e.to_string())?.len();
        let archive = ZipArchive::new(SharedFile { file: Arc::new(file), len, at: 0 }).map_err(|e| {
            format!("neither a folder nor a readable ZIP archive ({}); is the file whole?", clean(&e.to_string()))
        })?;
        found.stamp.number(len);
        for index in 0..archive.len() {
            let entry = archive.by_index_data(index).map_err(|e| clean(&e.to_string()))?;
            let name = match entry.name() {
                Ok(name) => name.replace('\\', "/"),
                Err(_) => String::from_utf8_lossy(entry.name_raw()).replace('\\', "/"),
            };
            if entry.is_dir() {
                continue;
            }
            match kind(&name) {
                Kind::NoImage => {}
                Kind::OtherImage(format) => found.skip(&name, Why::Unsupported(format)),
                Kind::Image if entry.is_symlink() => {
                    found.skip(&name, Why::Unsupported("a link within an archive".into()))
                }
                Kind::Image if entry.encrypted() => found.skip(&name, Why::Unsupported("encrypted".into())),
                Kind::Image if entry.size() > MAX_FILE_BYTES => found.skip(&name, too_large()),
                Kind::Image => {
                    let stamp = [entry.size(), u64::from(entry.crc32()), entry.compressed_size()];
                    found.keep(name, At::Entry(index), stamp)?;
                }
            }
        }
        Ok(Self(archive))
    }

    /// The bytes of one entry, its checksum verified.
    pub(super) fn read(&mut self, index: usize) -> Result<Vec<u8>, Why> {
        let entry = self.0.by_index(index).map_err(|e| match e {
            ZipError::UnsupportedArchive(what) => Why::Unsupported(clean(what)),
            ZipError::CompressionMethodNotSupported(method) => Why::Unsupported(format!("compression method {method}")),
            other => Why::Corrupt(clean(&other.to_string())),
        })?;
        read_bounded(entry).map_err(|why| match why {
            // The file itself can be read; what it holds is wrong.
            Why::Unreadable(what) => Why::Corrupt(what),
            other => other,
        })
    }
}

/// A file read at a position of one's own.
#[derive(Clone)]
struct SharedFile {
    file: Arc<fs::File>,
    len: u64,
    at: u64,
}

impl Read for SharedFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(out, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at =
            at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start of the archive"))?;
        Ok(self.at)
    }
}
