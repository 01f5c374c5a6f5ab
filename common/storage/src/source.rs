//! What is written into a store: bytes in memory, or a file of this machine that is read while it is sent.

use crate::error::StorageError;
use crate::run::blocking;
use bytes::Bytes;
use object_store::{Error, PutPayload};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of one part of a large object. One part is one request: at the client's 30 s of silence, 0.3 MB/s suffice.
const PART: usize = 8 << 20;
/// Parts of one object on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// The same for a file, of which no more is to be in memory than need be: the least that S3 takes as a part.
const FILE_PART: usize = 5 << 20;
/// Bytes of a file that are read at once. Smaller than what the C library maps for itself, of which it then keeps ever more.
const PIECE: usize = 64 << 10;

/// The bytes of an object to be. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Held in memory.
    Memory(Bytes),
    /// As many bytes of a file as it had when it was opened: it may grow.
    File { file: Arc<File>, name: Arc<str>, bytes: u64 },
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl Source {
    /// The file at `path`, as long as it is now.
    pub(crate) async fn open(path: &Path) -> Result<Self, StorageError> {
        let (path, name) = (path.to_owned(), path.display().to_string());
        let opened = blocking(move || {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok::<_, std::io::Error>((Arc::new(file), bytes))
        });
        match opened.await? {
            Ok((file, bytes)) => Ok(Self::File { file, name: name.into(), bytes }),
            Err(error) => Err(StorageError::Unreadable { file: name, detail: error.to_string() }),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }

    /// Where it is cut if it is sent in parts. One part alone is sent whole.
    pub(crate) fn parts(&self) -> Vec<Range<u64>> {
        let (bytes, part) = (self.bytes(), self.part() as u64);
        (0..bytes.div_ceil(part)).map(|number| number * part..bytes.min((number + 1) * part)).collect()
    }

    /// Parts on their way at once.
    pub(crate) fn parts_at_once(&self) -> usize {
        if matches!(self, Self::Memory(_)) { PARTS_AT_ONCE } else { 1 }
    }

    fn part(&self) -> usize {
        if matches!(self, Self::Memory(_)) { PART } else { FILE_PART }
    }

    /// The bytes of a range of [`Source::parts`]. A failure is final: the store is not to blame.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<PutPayload, Error> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize).into()),
            Self::File { file, name, .. } => {
                let (file, end) = (file.clone(), range.end);
                let piece = move |at: u64| {
                    let mut bytes = vec![0; PIECE.min((end - at) as usize)];
                    file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
                };
                let read = blocking(move || range.step_by(PIECE).map(piece).collect::<Result<PutPayload, _>>());
                read.await.map_err(|error| unreadable(name, &error))?.map_err(|error| unreadable(name, &error))
            }
        }
    }
}

/// A file of this machine that could be opened, and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be read: {detail}")]
pub(crate) struct LocalFile {
    /// Its path.
    pub(crate) file: String,
    /// The system's words.
    pub(crate) detail: String,
}

impl LocalFile {
    /// What lies behind an error of the store's client, if it is this.
    pub(crate) fn behind(error: &Error) -> Option<&Self> {
        let Error::NotSupported { source } = error else { return None };
        source.downcast_ref()
    }
}

/// An error that is not tried again, unlike one of input and output in the store.
fn unreadable(name: &str, error: &dyn std::error::Error) -> Error {
    Error::NotSupported { source: Box::new(LocalFile { file: name.to_owned(), detail: error.to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_cover_every_byte_once() {
        for (bytes, parts) in [(0, 0), (1, 1), (PART, 1), (PART + 1, 2), (3 * PART, 3)] {
            let cut = Source::Memory(Bytes::from(vec![0; bytes])).parts();
            assert_eq!(cut.len(), parts);
            assert_eq!(cut.iter().map(|range| range.end - range.start).sum::<u64>(), bytes as u64);
            assert!(
                cut.windows(2).all(
                    |pair| pair[0].end == pair[1].start && pair[0].end == PART as u64 * (pair[0].end / PART as u64)
                )
            );
        }
    }

    #[tokio::test]
    async fn a_file_is_as_long_as_it_was_when_it_was_opened() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"as long").unwrap();
        let source = Source::open(file.path()).await.unwrap();
        file.write_all(b", and longer").unwrap();
        assert_eq!((source.bytes(), source.parts().first(), source.parts().len()), (7, Some(&(0..7)), 1));
        assert_eq!(Bytes::from(source.read(0..7).await.unwrap()), "as long");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named_and_not_the_store_s_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let missing = Source::open(&path).await.unwrap_err();
        assert!(missing.to_string().contains("metrics.jsonl of this machine cannot be read"), "{missing}");
        std::fs::write(&path, "a few bytes").unwrap();
        let source = Source::open(&path).await.unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
        let shorter = source.read(0..11).await.unwrap_err();
        let class = crate::retry::classify(&shorter);
        assert_eq!(class, crate::retry::Class::Never);
        let told = crate::retry::failure(class, "put metrics.jsonl", &shorter);
        assert!(matches!(&told, StorageError::Unreadable { file, .. } if file.ends_with("metrics.jsonl")), "{told}");
    }
}
