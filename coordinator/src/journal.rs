//! The journal of a run on this machine: `journal.jsonl` in its state folder, what a successor goes on from.
//!
//! The first line says which run, each other one is an [`Entry`] of the core. A line is written before anything follows from
//! it, and is on the disk then if it has to last. A tail that is torn is cut off. A disk that is full, read-only or stuck is
//! an alarm for people and no reason to end: the run goes on without persistence, and the whole journal is tried anew with
//! the next entry.

use coordinator_core::{Entry, Memory};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Its name in the folder.
pub const JOURNAL: &str = "journal.jsonl";
/// How this program writes it.
const FORMAT: u32 = 1;
/// Longest time that the run waits for the disk, once.
const DISK: Duration = Duration::from_secs(1);
/// A journal that has grown by this much is written anew in its short form.
const GROWN: u64 = 4 << 20;
/// Largest journal that is read.
const BYTES_MAX: u64 = 64 << 20;

/// What does not change while one coordinator lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its format.
    pub format: u32,
    /// The run's URL.
    pub url: String,
    /// The number of its coordinator.
    pub epoch: u64,
    /// The nonce of its lease; empty if it has none.
    pub nonce: String,
    /// Workers that were wanted at the start.
    pub workers: u32,
    /// How many of them were to be started here.
    pub local: u32,
    /// JSON of the configuration, as workers have it.
    pub config: String,
}

impl Header {
    /// A header of this program's format.
    #[must_use]
    pub fn new(url: &str, (epoch, nonce): (u64, &str), (workers, local): (u32, u32), config: &str) -> Self {
        let (url, nonce, config) = (url.to_owned(), nonce.to_owned(), config.to_owned());
        Self { format: FORMAT, url, epoch, nonce, workers, local, config }
    }
}

/// What another coordinator left.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// Its first line.
    pub header: Header,
    /// All others that can be read.
    pub entries: Vec<Entry>,
    /// Bytes at the end that cannot.
    pub torn: u64,
}

/// Reads the journal in `folder`. `None`: there is none that could be read.
#[must_use]
pub fn read(folder: &Path) -> Option<Left> {
    let mut bytes = Vec::new();
    File::open(folder.join(JOURNAL)).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n');
    let first = lines.next()?;
    let header: Header = serde_json::from_slice(first).ok()?;
    if header.format != FORMAT {
        return None;
    }
    let (mut entries, mut read) = (Vec::new(), first.len());
    for line in lines {
        let Ok(entry) = serde_json::from_slice(line) else { break };
        entries.push(entry);
        read += line.len();
    }
    Some(Left { header, entries, torn: (bytes.len() - read) as u64 })
}

enum Work {
    Append { bytes: Vec<u8>, sync: bool },
    Replace(Vec<u8>),
}

type Answer = mpsc::SyncSender<std::io::Result<()>>;

/// The journal of the coordinator at work.
#[derive(Debug)]
pub struct Journal {
    header: Header,
    memory: Memory,
    disk: mpsc::SyncSender<(Work, Answer)>,
    written: u64,
    alarm: Option<String>,
}

impl Journal {
    /// Begins a journal in `folder` in the place of any other, with what is known already.
    #[must_use]
    pub fn begin(folder: &Path, header: Header, memory: Memory) -> Self {
        let (disk, works) = mpsc::sync_channel(1);
        let path = folder.join(JOURNAL);
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || write_all(&path, &works));
        let mut journal = Self { header, memory, disk, written: 0, alarm: None };
        match thread {
            Ok(_) => journal.replace(),
            Err(error) => journal.alarm = Some(error.to_string()),
        }
        journal
    }

    /// Writes an entry down.
    pub fn record(&mut self, entry: &Entry) {
        self.memory.add(entry);
        if self.alarm.is_some() || self.written > GROWN {
            return self.replace();
        }
        let bytes = line(entry);
        self.written += bytes.len() as u64;
        let work = Work::Append { bytes, sync: entry.must_last() };
        self.alarm = self.perform(work).err();
    }

    /// What a successor would know.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Its first line.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Why nothing can be written at present.
    #[must_use]
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    fn replace(&mut self) {
        let mut bytes = line(&self.header);
        self.memory.entries().iter().for_each(|entry| bytes.extend(line(entry)));
        self.written = 0;
        self.alarm = self.perform(Work::Replace(bytes)).err();
    }

    fn perform(&self, work: Work) -> Result<(), String> {
        let (answer, answered) = mpsc::sync_channel(1);
        let stuck = || format!("the disk has not answered for {:.0} s", DISK.as_secs_f64());
        self.disk.try_send((work, answer)).map_err(|_| stuck())?;
        answered.recv_timeout(DISK).map_err(|_| stuck())?.map_err(|error| error.to_string())
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // plain data: it has no value that JSON lacks
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Does the work of one journal until it is dropped. A disk may take its time; the run does not.
fn write_all(path: &Path, works: &mpsc::Receiver<(Work, Answer)>) {
    let mut file = None;
    for (work, answer) in works {
        let done = match work {
            Work::Replace(bytes) => replace(path, &bytes).map(|new| file = Some(new)),
            Work::Append { bytes, sync } => match &mut file {
                Some(file) => append(file, &bytes, sync),
                None => Err(std::io::Error::other("it could not be begun")),
            },
        };
        // who asked may have stopped waiting
        let _ = answer.try_send(done);
    }
}

fn append(file: &mut File, bytes: &[u8], sync: bool) -> std::io::Result<()> {
    file.write_all(bytes)?;
    if sync { file.sync_data() } else { Ok(()) }
}

/// Writes it whole, in the place of the old one.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    let part = path.with_extension("part");
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&part)?;
    file.set_len(0)?;
    append(&mut file, bytes, true)?;
    std::fs::rename(&part, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{Generation, ImagesSeen};
    use coordinator_core::Stored;

    fn header() -> Header {
        Header::new("file:///runs/toy", (2, "ab"), (3, 1), "{}")
    }

    fn stored(images: u64) -> Entry {
        Entry::Stored(Stored { images: ImagesSeen(images), manifest: format!("m{images}") })
    }

    #[test]
    fn what_was_written_comes_back_but_for_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), None);
        let mut journal = Journal::begin(folder.path(), header(), Memory::default());
        for entry in [Entry::Wanted(3), stored(10), stored(20)] {
            journal.record(&entry);
        }
        assert_eq!(journal.alarm(), None);
        let left = read(folder.path()).unwrap();
        assert_eq!((&left.header, left.torn), (&header(), 0));
        assert_eq!(Memory::of(&left.entries), *journal.memory());
        let whole = std::fs::read(folder.path().join(JOURNAL)).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(folder.path().join(JOURNAL), &whole[..whole.len() - cut]).unwrap();
            if let Some(left) = read(folder.path()) {
                assert!(left.entries.len() < 4 || cut == 0, "{left:?}");
            }
        }
        std::fs::write(folder.path().join(JOURNAL), [&whole[..], b"{\"formed\":{\"gen"].concat()).unwrap();
        let left = read(folder.path()).unwrap();
        assert_eq!((left.entries.len(), left.torn), (4, 15));
    }

    #[test]
    fn a_successor_begins_with_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let begun = Entry::Begun { generation: Generation(4), went_back: Generation(0), newest: None };
        let memory = Memory::of(&[begun, stored(10)]);
        let journal = Journal::begin(folder.path(), header(), memory.clone());
        assert_eq!(journal.alarm(), None);
        assert_eq!(Memory::of(&read(folder.path()).unwrap().entries), memory);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_an_alarm_until_it_does_again() {
        let folder = tempfile::tempdir().unwrap();
        let obstacle = folder.path().join("journal.part");
        std::fs::create_dir(&obstacle).unwrap();
        let mut journal = Journal::begin(folder.path(), header(), Memory::default());
        assert!(journal.alarm().is_some());
        journal.record(&Entry::Wanted(3));
        assert!(journal.alarm().is_some());
        std::fs::remove_dir(&obstacle).unwrap();
        journal.record(&stored(10));
        assert_eq!(journal.alarm(), None);
        assert_eq!(Memory::of(&read(folder.path()).unwrap().entries), *journal.memory(), "nothing is missing");
    }
}
