//! The data set, made ready by a `worker prepare` child before anything else is started or spent.
//!
//! The child gets the configuration on its standard input and reports in JSON lines; this side shows them and judges the
//! end. Images are the worker's business.

use crate::display::Display;
use crate::driver::tell;
use crate::failure::Failure;
use crate::records::Records;
use crate::render::News;
use children::lines::{Level, Splitter, level, message, printable};
use common::exit::Exit;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// From the request to stop until the child is killed.
const GRACE: Duration = Duration::from_secs(5);

/// After its end, how long its output is still read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the child reports, one on each line.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Report {
    Ready(Prepared),
    Progress { done: u64, total: u64 },
}

/// A data set that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Prepared {
    /// Images in it.
    pub images: u64,
    /// Images of one pass over it.
    pub epoch: u64,
    /// What the images are, as the checkpoints of a run record it.
    pub fingerprint: String,
    /// Files that could not be used.
    pub skipped: u64,
    /// Whether it was ready before.
    pub reused: bool,
}

/// Prepares the data set of `config` (JSON). `None`: the operator interrupted.
///
/// # Errors
/// The images cannot be used, or the child failed otherwise; its exit code is kept where it is one of ours.
pub async fn prepare(
    worker: &Path,
    config: &str,
    records: &mut Records,
    display: &mut Display,
    signals: &mut mpsc::Receiver<()>,
) -> Result<Option<Prepared>, Failure> {
    let broken = |what: &str, error: std::io::Error| {
        Failure::new(Exit::Internal, format!("{what} `{} prepare`: {error}", worker.display()))
    };
    let mut child = Command::new(worker)
        .arg("prepare")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| broken("cannot start", error))?;
    let (sender, mut lines) = mpsc::channel(64);
    let mut readers = tokio::task::JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        readers.spawn(forward(stdout, false, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.spawn(forward(stderr, true, sender));
    }
    if let Some(mut stdin) = child.stdin.take() {
        let config = config.to_owned();
        // a child that ends without reading is judged by its exit code
        readers.spawn(async move { _ = stdin.write_all(config.as_bytes()).await });
    }
    let (mut ready, mut last_error) = (None, None);
    let mut status = None;
    loop {
        let (is_log, line) = tokio::select! {
            // all that it wrote, before its end
            biased;
            line = lines.recv() => match line {
                Some(line) => line,
                None => break,
            },
            // something else may hold its output open
            () = sleep(LAST_WORDS), if status.is_some() => break,
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.map_err(|error| broken("no end of", error))?);
                continue;
            }
            Some(()) = signals.recv() => {
                stop(child).await;
                return Ok(None);
            }
        };
        if is_log {
            records.log("prepare", &line);
            last_error = Some(message(&line));
            let level = level(&line);
            if level > Level::Info {
                display.show(&News::Log { rank: 0, level, line: message(&line) });
            }
            continue;
        }
        match serde_json::from_str(&line) {
            Ok(Report::Progress { done, total }) => display.show(&News::Preparing { done, total }),
            Ok(Report::Ready(prepared)) => ready = Some(prepared),
            Err(_) => records.log("prepare", &line),
        }
    }
    let status = match status {
        Some(status) => status,
        None => child.wait().await.map_err(|error| broken("no end of", error))?,
    };
    match (status.success(), ready) {
        (true, Some(prepared)) => {
            let Prepared { images, skipped, reused, .. } = prepared;
            tell(records, display, &News::Prepared { images, skipped, reused });
            Ok(Some(prepared))
        }
        (true, None) => {
            Err(Failure::new(Exit::Internal, "the worker prepared the data set without saying what is in it"))
        }
        (false, _) => {
            let how = children::supervisor::ended(status);
            let exit =
                status.code().and_then(Exit::from_code).filter(|exit| *exit != Exit::Ok).unwrap_or(Exit::Internal);
            let why = last_error.map_or(String::new(), |line| format!(": {}", printable(&line)));
            Err(Failure::new(exit, format!("the data set could not be prepared ({how}){why}")))
        }
    }
}

async fn stop(mut child: Child) {
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let signal = |signal| {
        if let Some(group) = group
            && let Err(error) = killpg(group, signal)
        {
            tracing::debug!("{signal} to the preparation had no effect: {error}");
        }
    };
    signal(Signal::SIGTERM);
    if timeout(GRACE, child.wait()).await.is_err() {
        signal(Signal::SIGKILL);
        // nothing outlives SIGKILL for long
        let _ = timeout(GRACE, child.wait()).await;
    }
}

async fn forward(mut stream: impl AsyncRead + Unpin, is_log: bool, lines: mpsc::Sender<(bool, String)>) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 8 << 10];
    loop {
        let (found, ended) = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => (splitter.finish().into_iter().collect(), true),
            Ok(count) => (splitter.push(&buffer[..count]), false),
        };
        for line in found {
            if lines.send((is_log, line)).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_report_are_told_apart() {
        let read = |text: &str| serde_json::from_str::<Report>(text);
        assert_eq!(read(r#"{"done":3,"total":9}"#).unwrap(), Report::Progress { done: 3, total: 9 });
        let ready = r#"{"images":5,"epoch":5,"fingerprint":"ab","skipped":1,"reused":false}"#;
        assert!(matches!(read(ready).unwrap(), Report::Ready(prepared) if prepared.images == 5));
        assert!(read(r#"{"what":1}"#).is_err());
    }
}
