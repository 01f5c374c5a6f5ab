//! What a run leaves beside its checkpoints: `metrics.jsonl`, `ledger.jsonl` and `log.txt`.
//!
//! Object stores cannot append, so they grow in the run's local folder and are put into its storage root now and then, and
//! at the end. A store that is away delays that, and never training.

use crate::failure::Failure;
use bytes::Bytes;
use common::ids::ImagesSeen;
use common::ledger::{Entry, Ledger, Line, Span};
use common::metrics::Event;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use storage::{Content, Run, StorageError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const METRICS: &str = "metrics.jsonl";
pub(crate) const LEDGER: &str = "ledger.jsonl";
const LOG: &str = "log.txt";
/// Largest file of an earlier part of the run that is taken over.
const EARLIER_BYTES_MAX: u64 = 256 << 20;
/// Lines of another coordinator that may be said again: as many as a worker keeps.
const EARLIER_LINES: usize = 1024;
/// Least time between two copies into the store; a second more for each MB, so that big files do not keep a link busy.
const PAUSE: Duration = Duration::from_secs(10);
/// Time for the last copy.
const LAST_COPY: Duration = Duration::from_secs(60);

/// The growing files of a run.
#[derive(Debug)]
pub struct Records {
    metrics: BufWriter<File>,
    lines: BufWriter<File>,
    ledger: Ledger,
    log: BufWriter<File>,
    /// Whether a write failed already: it is told once.
    failed: bool,
    /// What another coordinator has recorded: workers that did not hear so say it again.
    earlier: BTreeSet<String>,
    wake: mpsc::Sender<()>,
    copier: JoinHandle<()>,
}

impl Records {
    /// Begins the records of a run, with those of its earlier parts up to `resume`; what was recorded after that point will
    /// be trained, and recorded, again. `None` begins anew.
    ///
    /// # Errors
    /// The store cannot be read, or the local folder not written.
    pub async fn open(folder: &Path, run: Run, resume: Option<ImagesSeen>) -> Result<Self, Failure> {
        let (mut metrics, mut lines, mut log) = (String::new(), String::new(), Bytes::new());
        if let Some(resume) = resume {
            metrics = kept(&String::from_utf8_lossy(&earlier(&run, METRICS).await?), resume);
            lines = String::from_utf8_lossy(&earlier(&run, LEDGER).await?).into_owned();
            log = earlier(&run, LOG).await?;
        }
        Self::begin(folder, run, &metrics, &lines, &log)
    }

    /// Goes on with the records of a run that is taken over: with those in the local folder if another coordinator of this
    /// machine has left them (`here`), else with their last copies in the store.
    ///
    /// # Errors
    /// The store cannot be read where it has to be, or the local folder not written.
    pub async fn take_over(folder: &Path, run: Run, here: bool) -> Result<Self, Failure> {
        let local = |name: &str| std::fs::read(folder.join(name)).ok().filter(|_| here).map(Bytes::from);
        let metrics = match local(METRICS) {
            Some(metrics) => metrics,
            None => earlier(&run, METRICS).await?,
        };
        let lines = match local(LEDGER) {
            Some(lines) => lines,
            None => earlier(&run, LEDGER).await?,
        };
        let mut log = match local(LOG) {
            Some(log) => log.to_vec(),
            None => earlier(&run, LOG).await?.to_vec(),
        };
        if log.last().is_some_and(|byte| *byte != b'\n') {
            log.push(b'\n');
        }
        let metrics = kept(&String::from_utf8_lossy(&metrics), ImagesSeen(u64::MAX));
        let mut records = Self::begin(folder, run, &metrics, &String::from_utf8_lossy(&lines), &log)?;
        records.earlier = metrics.lines().rev().take(EARLIER_LINES).map(str::to_owned).collect();
        Ok(records)
    }

    fn begin(folder: &Path, run: Run, metrics: &str, lines: &str, log: &[u8]) -> Result<Self, Failure> {
        let (lines, ledger) = sum(lines);
        let create = |name: &str, earlier: &[u8]| {
            let path = folder.join(name);
            let begin = || -> std::io::Result<BufWriter<File>> {
                let mut file = BufWriter::new(File::create(&path)?);
                file.write_all(earlier)?;
                file.flush()?;
                Ok(file)
            };
            begin().map_err(|error| Failure::new(common::exit::Exit::Config, format!("{}: {error}", path.display())))
        };
        let (metrics, log) = (create(METRICS, metrics.as_bytes())?, create(LOG, log)?);
        let lines = create(LEDGER, lines.as_bytes())?;
        let (wake, wakes) = mpsc::channel(1);
        let copier = tokio::spawn(copy_now_and_then(folder.to_owned(), run, wakes));
        Ok(Self { metrics, lines, ledger, log, failed: false, earlier: BTreeSet::new(), wake, copier })
    }

    /// Appends an event, and has the files copied soon.
    pub fn metric(&mut self, event: &Event) {
        let written = serde_json::to_string(event)
            .map_err(std::io::Error::other)
            .and_then(|line| writeln!(self.metrics, "{line}").and_then(|()| self.metrics.flush()));
        self.told_once(METRICS, written);
        // a wake that waits already will do
        let _ = self.wake.try_send(());
    }

    /// Appends steps to the ledger, unless they are known already.
    pub fn span(&mut self, span: Span) {
        if self.ledger.take(&span) {
            self.entry(Entry::Span(span));
        }
    }

    /// Appends a line to the ledger.
    pub fn entry(&mut self, entry: Entry) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let written = serde_json::to_string(&Line { at, entry })
            .map_err(std::io::Error::other)
            .and_then(|line| writeln!(self.lines, "{line}").and_then(|()| self.lines.flush()));
        self.told_once(LEDGER, written);
        let _ = self.wake.try_send(());
    }

    /// The sum of the ledger, the run's earlier parts included.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether another coordinator has recorded this already.
    #[must_use]
    pub fn has(&self, event: &Event) -> bool {
        !self.earlier.is_empty() && serde_json::to_string(event).is_ok_and(|line| self.earlier.contains(&line))
    }

    /// Appends a line of `source` to the log.
    pub fn log(&mut self, source: impl std::fmt::Display, line: &str) {
        let written = writeln!(self.log, "[{source}] {line}").and_then(|()| self.log.flush());
        self.told_once(LOG, written);
    }

    fn told_once(&mut self, name: &str, written: std::io::Result<()>) {
        if let Err(error) = written
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!("{name} cannot be written any more: {error}");
        }
    }

    /// Lets go of the files: their copies in the store are another coordinator's from now on.
    pub fn abandon(self) {
        self.copier.abort();
    }

    /// Copies the files a last time.
    pub async fn finish(mut self) {
        let written = self.metrics.flush().and_then(|()| self.lines.flush()).and_then(|()| self.log.flush());
        self.told_once("the last of the records", written);
        drop(self.wake);
        if timeout(LAST_COPY, self.copier).await.is_err() {
            tracing::error!(
                "the store did not take {METRICS}, {LEDGER} and {LOG} in time; they are in the local state folder"
            );
        }
    }
}

async fn earlier(run: &Run, name: &str) -> Result<Bytes, Failure> {
    match run.get_file(name, EARLIER_BYTES_MAX).await {
        Ok(bytes) => Ok(bytes),
        Err(StorageError::NotFound { .. }) => Ok(Bytes::new()),
        Err(StorageError::TooLarge { bytes, .. }) => {
            tracing::warn!("{name} of the earlier part of this run has {bytes} bytes and is not continued");
            Ok(Bytes::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// The lines of events up to `resume`, without any that cannot be read: a copy may have been cut short.
fn kept(text: &str, resume: ImagesSeen) -> String {
    let images = |line: &str| serde_json::from_str::<Event>(line).ok().map(|event| event.images());
    text.lines().filter(|line| images(line).is_some_and(|images| images <= resume.0)).fold(
        String::new(),
        |mut kept, line| {
            kept.push_str(line);
            kept.push('\n');
            kept
        },
    )
}

/// The lines of a ledger that can be read, and their sum.
pub(crate) fn sum(text: &str) -> (String, Ledger) {
    let (mut kept, mut ledger) = (String::new(), Ledger::default());
    for (line, read) in text.lines().filter_map(|line| Some((line, serde_json::from_str::<Line>(line).ok()?))) {
        if let Entry::Span(span) = &read.entry {
            ledger.take(span);
        }
        kept.push_str(line);
        kept.push('\n');
    }
    (kept, ledger)
}

async fn copy_now_and_then(folder: PathBuf, run: Run, mut wakes: mpsc::Receiver<()>) {
    let mut next = Instant::now();
    let mut open = true;
    while open {
        open = wakes.recv().await.is_some();
        while open && Instant::now() < next {
            tokio::select! {
                () = sleep(next - Instant::now()) => {}
                more = wakes.recv() => open = more.is_some(),
            }
        }
        let bytes = copy(&folder, &run).await;
        next = Instant::now() + PAUSE + Duration::from_secs(bytes / 1_000_000);
    }
}

async fn copy(folder: &Path, run: &Run) -> u64 {
    let mut total = 0;
    for (name, content) in [(METRICS, Content::JsonLines), (LEDGER, Content::JsonLines), (LOG, Content::Text)] {
        let path = folder.join(name);
        // also where it fails: a big file is not sent again at once
        total += tokio::fs::metadata(&path).await.map_or(0, |file| file.len());
        if let Err(error) = run.put_file_from(name, &path, content).await {
            tracing::warn!("{name} could not be copied into the store and will be tried again: {error}");
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::resolved::S3;
    use common::metrics::{Quality, Tick};

    fn tick(images: u64) -> Event {
        Event::Tick(Tick { images, ..Tick::default() })
    }

    fn run(name: &str) -> Run {
        storage::Store::open(&format!("memory://{name}"), &S3::default()).unwrap().run("toy").unwrap()
    }

    async fn stored(run: &Run, name: &str) -> String {
        String::from_utf8(run.get_file(name, 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn events_after_the_resume_point_and_torn_lines_are_dropped() {
        let lines = [tick(10), tick(20), tick(30)].map(|event| serde_json::to_string(&event).unwrap());
        let levels = [(16, 1.5)].into();
        let quality = Event::Quality(Quality { images: 20, metric: "swd".into(), levels, ..Quality::default() });
        let text = serde_json::to_string(&quality).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), quality);
        let quality = text;
        let text = format!("{}\n{}\n{quality}\n{}\n{{\"kind\":\"ti", lines[0], lines[1], lines[2]);
        assert_eq!(kept(&text, ImagesSeen(20)), format!("{}\n{}\n{quality}\n", lines[0], lines[1]));
        assert_eq!(kept(&text, ImagesSeen(0)), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resumed_run_continues_its_records_in_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let run = run("records");
        let mut first = Records::open(folder.path(), run.clone(), None).await.unwrap();
        first.log("c", "begun");
        first.metric(&tick(10));
        first.metric(&tick(20));
        first.finish().await;
        assert_eq!(stored(&run, METRICS).await.lines().count(), 2);

        let mut second = Records::open(folder.path(), run.clone(), Some(ImagesSeen(10))).await.unwrap();
        second.log(0, "resumed");
        second.metric(&tick(20));
        second.finish().await;
        let metrics = stored(&run, METRICS).await;
        let images: Vec<u64> =
            metrics.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().images()).collect();
        assert_eq!(images, [10, 20]);
        assert_eq!(stored(&run, LOG).await, "[c] begun\n[0] resumed\n");
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_are_taken_over_go_on_and_count_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let run = run("taken-over");
        let mut first = Records::open(folder.path(), run.clone(), None).await.unwrap();
        first.log("c", "begun");
        first.metric(&tick(10));
        first.finish().await;
        // what the store has not heard of any more, and a line that was cut short
        let path = folder.path().join(METRICS);
        let line = serde_json::to_string(&tick(20)).unwrap();
        let local = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{local}{line}\n{{\"kind\"")).unwrap();

        let mut second = Records::take_over(folder.path(), run.clone(), true).await.unwrap();
        assert!(second.has(&tick(10)) && second.has(&tick(20)) && !second.has(&tick(30)));
        second.log("c", "taken over");
        second.metric(&tick(30));
        second.finish().await;
        assert_eq!(stored(&run, METRICS).await.lines().count(), 3);
        assert_eq!(stored(&run, LOG).await, "[c] begun\n[c] taken over\n");

        // on another machine there is only the store
        let elsewhere = tempfile::tempdir().unwrap();
        let third = Records::take_over(elsewhere.path(), run.clone(), false).await.unwrap();
        assert!(third.has(&tick(30)));
        third.abandon();
        assert_eq!(stored(&run, METRICS).await.lines().count(), 3);
    }
}
