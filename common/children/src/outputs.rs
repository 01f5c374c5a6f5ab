//! What worker processes write: into files from which it is read line by line, so that nothing is lost while no coordinator
//! lives; through pipes where a file cannot be made.
//!
//! It only reads and reports; what a line is worth, others decide.

use crate::lines::{Level, Splitter, level, message, written_level};
use crate::supervisor::ChildEvent;
use common::ids::WorkerId;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Between two looks at a file that a worker writes.
const LOOK: Duration = Duration::from_millis(50);

/// The two files of a worker: what it writes, and how much of that is kept elsewhere.
pub(crate) struct Files {
    pub text: PathBuf,
    mark: PathBuf,
}

impl Files {
    pub(crate) fn of(folder: &Path, worker: &WorkerId) -> Self {
        let name = format!("worker-{worker}");
        Self { text: folder.join(format!("{name}.log")), mark: folder.join(format!("{name}.read")) }
    }

    /// The file as the worker writes it.
    pub(crate) fn create(&self) -> std::io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(&self.text)
    }

    pub(crate) fn mark(&self) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.mark)
    }

    pub(crate) fn remove(&self) {
        for path in [&self.text, &self.mark] {
            // they do no harm
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(crate) fn marked(mark: &File) -> u64 {
    let mut text = [0; 20];
    let read = mark.read_exact_at(&mut text, 0).is_ok();
    read.then(|| std::str::from_utf8(&text).ok()?.parse().ok()).flatten().unwrap_or_default()
}

/// Removes what workers of a run that is over have left in `folder`.
pub fn clean(folder: &Path) {
    let is_ours = |name: &str| name.starts_with("worker-") && (name.ends_with(".log") || name.ends_with(".read"));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_ours) {
            // they do no harm
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// What a stream ended with.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    pub error: Option<String>,
    pub line: Option<String>,
}

impl LastWords {
    pub(crate) fn merge(&mut self, other: Self) {
        self.error = other.error.or(self.error.take());
        self.line = other.line.or(self.line.take());
    }
}

/// Cuts what a worker writes into lines and reports them.
struct Reader {
    worker: WorkerId,
    events: mpsc::Sender<ChildEvent>,
    splitter: Splitter,
    /// Bytes taken so far.
    end: u64,
    last: LastWords,
    /// A panic names its place first and its message on the next line.
    panics: VecDeque<String>,
}

impl Reader {
    fn new(worker: WorkerId, events: mpsc::Sender<ChildEvent>, begin: u64) -> Self {
        let (splitter, last, panics) = (Splitter::default(), LastWords::default(), VecDeque::new());
        Self { worker, events, splitter, end: begin, last, panics }
    }

    /// Whether anybody still listens.
    async fn take(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.end += piece.len() as u64;
            for line in self.splitter.push(piece) {
                if !self.report(line).await {
                    return false;
                }
            }
        }
        true
    }

    async fn finish(mut self) -> LastWords {
        if let Some(line) = self.splitter.finish() {
            self.report(line).await;
        }
        self.last
    }

    async fn report(&mut self, line: String) -> bool {
        let level = level(&line);
        if let Some(place) = self.panics.pop_front() {
            self.last.error = Some(format!("{place} {}", message(&line)));
        } else if line.contains("panicked at") {
            self.panics.push_back(line.clone());
            self.last.error = Some(line.clone());
        } else if level == Level::Error {
            self.last.error = Some(message(&line));
        }
        if written_level(&line).is_none() {
            self.last.line = Some(line.clone());
        }
        let event = ChildEvent::Line { worker: self.worker.clone(), level, line, end: self.end };
        self.events.send(event).await.is_ok()
    }
}

/// Reads a pipe to its end.
pub(crate) async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    worker: WorkerId,
    events: mpsc::Sender<ChildEvent>,
) -> LastWords {
    let mut reader = Reader::new(worker, events, 0);
    let mut buffer = vec![0; 8 << 10];
    if let Some(mut stream) = stream {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            if !reader.take(&buffer[..count]).await {
                break;
            }
        }
    }
    reader.finish().await
}

/// Reads a file that grows until its writer has ended. A read of a local file that was just written waits for nothing.
pub(crate) async fn read_file(
    path: PathBuf,
    begin: u64,
    mut ended: watch::Receiver<bool>,
    worker: WorkerId,
    events: mpsc::Sender<ChildEvent>,
) -> LastWords {
    let mut reader = Reader::new(worker, events, begin);
    let mut buffer = vec![0; 8 << 10];
    let Ok(file) = File::open(&path) else { return reader.finish().await };
    loop {
        // asked first: what was written before the end is then read
        let over = *ended.borrow();
        match file.read_at(&mut buffer, reader.end) {
            Ok(count @ 1..) => {
                if !reader.take(&buffer[..count]).await {
                    break;
                }
            }
            Ok(0) | Err(_) if over => break,
            // also woken by the end
            Ok(_) | Err(_) => _ = timeout(LOOK, ended.changed()).await,
        }
    }
    reader.finish().await
}
