//! What is said about a run, as text for people and as JSON for scripts.
//!
//! Pure functions of a [`News`] or a [`Status`]; where the text goes is [`crate::display`]'s business. The names of the JSON
//! events and their fields are stable: scripts depend on them.

use crate::report;
use crate::view::{Status, Worker};
use children::lines::Level;
use common::exit::Exit;
use common::ledger::Ledger;
use common::metrics::{Quality, Tick, Verdict, names};
use coordinator_core::{Outcome, Reason, Stored};
use serde_json::{Value, json};
use std::fmt::Write;

/// One thing to tell the operator.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The data set is being prepared.
    Preparing {
        /// Images done.
        done: u64,
        /// Images in all.
        total: u64,
    },
    /// The data set is ready.
    Prepared {
        /// Images in it.
        images: u64,
        /// Files that could not be used.
        skipped: u64,
        /// Whether it was ready before.
        reused: bool,
    },
    /// Something to know before training begins.
    Note(String),
    /// The control plane listens and the workers are starting.
    Launched {
        /// Name of the run.
        run: String,
        /// Its URL.
        url: String,
        /// Workers that are needed.
        workers: u32,
        /// Where workers and operators reach the coordinator.
        address: String,
        /// Checkpoint that it starts from.
        resume: Option<Stored>,
    },
    /// The run was taken over from another coordinator.
    TakenOver {
        /// Name of the run.
        run: String,
        /// Its URL.
        url: String,
        /// The number of this coordinator.
        epoch: u64,
        /// The generation that is believed to be at work; 0 if none was.
        generation: u64,
        /// Its workers.
        workers: u32,
        /// Where workers and operators reach this coordinator.
        address: String,
    },
    /// Training goes on, but people should look after this.
    Alarm(String),
    /// The cluster decided something.
    Decision(Reason),
    /// Where the run stands.
    Progress(Box<Status>),
    /// The end of a tick.
    Tick(Box<Tick>),
    /// A quality metric.
    Quality(Quality),
    /// What was found out about the training.
    Verdict(Verdict),
    /// A checkpoint is committed.
    Checkpoint {
        /// Which.
        stored: Stored,
        /// Bytes written.
        bytes: u64,
        /// Seconds that training stood still.
        stall_seconds: f64,
        /// Seconds from the copy to the commit.
        seconds: f64,
    },
    /// A worker wrote a line.
    Log {
        /// Its rank, or its number before it has one.
        rank: u32,
        /// How much it matters.
        level: Level,
        /// The line.
        line: String,
    },
    /// The run did not begin; the binary tells a person why on standard error.
    Failed {
        /// The exit code.
        exit: Exit,
        /// Why.
        text: String,
    },
    /// Where the run's time went.
    Goodput(Box<Ledger>),
    /// The run is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// The last lines of the worker that is to blame.
        last_lines: Vec<String>,
        /// The command with which to go on.
        advice: Option<String>,
    },
}

/// The line of plain output, if this is worth one.
#[must_use]
pub fn plain(news: &News) -> Option<String> {
    Some(match news {
        News::Preparing { .. } | News::Progress(_) | News::Failed { .. } => return None,
        News::Prepared { images, skipped, reused } => prepared(*images, *skipped, *reused),
        News::Note(text) => text.clone(),
        News::Launched { run, url, workers, address, resume } => {
            let from = match resume {
                Some(stored) => format!("from {} ({})", stored.manifest, stored.images),
                None => "from the beginning".into(),
            };
            format!("run {run}: {workers} worker{}, {from}; {url}; control at {address}", plural(*workers))
        }
        News::TakenOver { run, url, epoch, generation, workers, address } => format!(
            "run {run} is taken over by coordinator {epoch}: generation {generation} of {workers} worker{}; {url}; control at \
             {address}",
            plural(*workers)
        ),
        News::Alarm(text) => format!("warning: {text}"),
        News::Decision(reason) => reason.to_string(),
        News::Tick(tick) => tick_line(tick),
        News::Quality(quality) => quality_line(quality),
        News::Verdict(verdict) => verdict_line(verdict),
        News::Checkpoint { stored, bytes, stall_seconds, seconds } => format!(
            "checkpoint {} at {}: {} written in {seconds:.1} s, training stood still for {:.0} ms",
            stored.manifest,
            stored.images,
            bytes_text(*bytes),
            stall_seconds * 1000.0
        ),
        News::Log { level: Level::Info, .. } => return None,
        News::Log { rank, level: Level::Warn, line } => format!("[{rank}] warning: {line}"),
        News::Log { rank, level: Level::Error, line } => format!("[{rank}] error: {line}"),
        News::Goodput(ledger) => report::goodput(ledger),
        News::Ended { outcome, last_lines, advice } => ended(outcome, last_lines, advice.as_deref()),
    })
}

/// The event as one JSON object.
#[must_use]
pub fn json(news: &News) -> Value {
    match news {
        News::Preparing { done, total } => json!({"event": "preparing", "done": done, "total": total}),
        News::Prepared { images, skipped, reused } => {
            json!({"event": "prepared", "images": images, "skipped": skipped, "reused": reused})
        }
        News::Note(text) => json!({"event": "note", "text": text}),
        News::Launched { run, url, workers, address, resume } => json!({
            "event": "launched", "run": run, "url": url, "workers": workers, "address": address,
            "resume": resume.as_ref().map(|stored| &stored.manifest),
        }),
        News::TakenOver { run, url, epoch, generation, workers, address } => json!({
            "event": "taken_over", "run": run, "url": url, "epoch": epoch, "generation": generation, "workers": workers,
            "address": address,
        }),
        News::Alarm(text) => json!({"event": "alarm", "text": text}),
        News::Decision(reason) => json!({"event": "decision", "decision": reason, "text": reason.to_string()}),
        News::Progress(status) => json!({"event": "progress", "status": status}),
        News::Tick(tick) => json!({"event": "tick", "tick": tick}),
        News::Quality(quality) => json!({"event": "quality", "quality": quality}),
        News::Verdict(verdict) => json!({"event": "verdict", "verdict": verdict}),
        News::Checkpoint { stored, bytes, stall_seconds, seconds } => json!({
            "event": "checkpoint", "manifest": stored.manifest, "images": stored.images, "bytes": bytes,
            "stall_seconds": stall_seconds, "seconds": seconds,
        }),
        News::Log { rank, level, line } => json!({"event": "log", "rank": rank, "level": level, "line": line}),
        News::Failed { exit, text } => json!({"event": "failed", "exit": *exit as u8, "text": text}),
        News::Goodput(ledger) => report::json(ledger),
        News::Ended { outcome, last_lines, advice } => json!({
            "event": "ended", "outcome": outcome, "text": outcome.reason.to_string(), "last_lines": last_lines,
            "resume_with": advice,
        }),
    }
}

/// The text beside the progress bar.
#[must_use]
pub fn bar(status: &Status) -> String {
    let mut text = String::new();
    match (&status.tick, status.phase.as_str()) {
        (_, "gathering") => {
            let here = status.workers.iter().filter(|worker| worker.state == "connected").count();
            let _ = write!(text, "waiting for workers: {here} of {}", status.workers.len());
        }
        (None, phase) => {
            let activity = status.workers.first().map_or("", |worker| worker.activity.as_str());
            let _ = write!(text, "{} {}", kimg(status.images), if phase == "running" { activity } else { phase });
        }
        (Some(tick), phase) => {
            let _ = write!(text, "{}  {}", growth(tick), kimg(status.images));
            let _ = write!(text, "  {:.1} img/s", tick.img_per_sec);
            for (name, value) in losses(tick) {
                let _ = write!(text, "  {name} {value:.3}");
            }
            match (phase, seconds_left(status.images, tick)) {
                ("running", Some(seconds)) => _ = write!(text, "  {} left", duration(seconds)),
                ("running", None) => {}
                (phase, _) => _ = write!(text, "  {phase}"),
            }
        }
    }
    text
}

/// The answer of `coordinator status`.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut text = format!("run {} is {} ({})\n", status.run, status.phase, status.url);
    let share = 100.0 * status.images as f64 / status.total_images.max(1) as f64;
    let _ = writeln!(text, "{} of {}, {share:.1} %", kimg(status.images), kimg(status.total_images));
    if let Some(tick) = &status.tick {
        let _ = writeln!(text, "{}", tick_line(tick));
    }
    match (&status.checkpoint, status.checkpoint_images) {
        (Some(key), Some(images)) => _ = writeln!(text, "newest checkpoint: {key} ({})", kimg(images)),
        _ => text.push_str("no checkpoint yet\n"),
    }
    if status.epoch > 0 {
        let how = if status.taken_over { ", which took the run over" } else { "" };
        let _ = writeln!(text, "coordinator {} of this run{how}", status.epoch);
    }
    if let Some(alarm) = &status.alarm {
        let _ = writeln!(text, "warning: {alarm}");
    }
    for verdict in &status.health {
        let _ = writeln!(text, "{}", verdict_line(verdict));
    }
    for worker in &status.workers {
        let rank = worker.rank.map_or("-".into(), |rank| rank.to_string());
        let pid = worker.pid.map_or(String::new(), |pid| format!(", process {pid}"));
        let Worker { id, device, host, state, activity, images, .. } = worker;
        let _ =
            writeln!(text, "  rank {rank}: {state}, {activity} at {} ({id}, {device} on {host}{pid})", kimg(*images));
    }
    if let Some(verdict) = &status.verdict {
        let _ = writeln!(text, "{verdict}");
    }
    text
}

fn prepared(images: u64, skipped: u64, reused: bool) -> String {
    let how = if reused { "were ready" } else { "are prepared" };
    let skipped = if skipped == 0 { String::new() } else { format!("; {skipped} files were skipped") };
    format!("data: {images} images {how}{skipped}")
}

/// `16x16 fade 0.25` or `16x16 stable`.
fn growth(tick: &Tick) -> String {
    let side = tick.resolution;
    if tick.alpha < 1.0 { format!("{side}x{side} fade {:.2}", tick.alpha) } else { format!("{side}x{side} stable") }
}

fn tick_line(tick: &Tick) -> String {
    let mut text = format!(
        "{}  lod {:.2}  {}  minibatch {}  {:.1} img/s  {:.1} s/kimg",
        kimg(tick.images),
        tick.lod,
        growth(tick),
        tick.minibatch,
        tick.img_per_sec,
        tick.sec_per_kimg
    );
    for (name, value) in losses(tick) {
        let _ = write!(text, "  {name} {value:.3}");
    }
    if tick.skipped_updates > 0 {
        let _ = write!(text, "  {} updates skipped", tick.skipped_updates);
    }
    if let Some(seconds) = seconds_left(tick.images, tick) {
        let _ = write!(text, "  {} left", duration(seconds));
    }
    text
}

fn quality_line(quality: &Quality) -> String {
    let mut text = quality.metric.clone();
    if !quality.of.is_empty() {
        let _ = write!(text, " {}", quality.of);
    }
    if !quality.features.is_empty() {
        let _ = write!(text, " ({})", quality.features);
    }
    let _ = write!(text, " at {}:", kimg(quality.images));
    let digits = if quality.metric == names::SWD { 2 } else { 4 };
    for (resolution, value) in &quality.levels {
        let _ = write!(text, "  {resolution}: {value:.digits$}");
        let beside = [("floor", &quality.floor), ("untouched", &quality.untouched)];
        let beside = beside.into_iter().filter_map(|(name, of)| Some((name, of.get(resolution)?)));
        let beside: Vec<String> = beside.map(|(name, value)| format!("{name} {value:.digits$}")).collect();
        if !beside.is_empty() {
            let _ = write!(text, " ({})", beside.join(", "));
        }
    }
    text
}

fn verdict_line(Verdict { images, what, evidence, advice }: &Verdict) -> String {
    let at = kimg(*images);
    if advice.is_empty() {
        format!("{what} at {at}: {evidence}")
    } else {
        format!("warning: {what} at {at}: {evidence}. Try: {advice}")
    }
}

fn ended(outcome: &Outcome, last_lines: &[String], advice: Option<&str>) -> String {
    let mut text = String::new();
    if !last_lines.is_empty() {
        text.push_str("the last lines of that worker:\n");
        for line in last_lines {
            let _ = writeln!(text, "  {line}");
        }
    }
    let failed = outcome.exit != Exit::Ok;
    let _ = write!(text, "{}{}", if failed { "failed: " } else { "" }, outcome.reason);
    if failed {
        match &outcome.newest {
            Some(stored) => _ = write!(text, "\nnewest checkpoint: {} ({})", stored.manifest, stored.images),
            None => text.push_str("\nno checkpoint was written"),
        }
    }
    if let Some(advice) = advice {
        let _ = write!(text, "\nresume with: {advice}");
    }
    text
}

/// Statistics whose name says that they are losses, without that prefix.
fn losses(tick: &Tick) -> impl Iterator<Item = (String, f64)> {
    tick.stats
        .iter()
        .filter_map(|(name, value)| name.strip_prefix("loss/").map(|name| (format!("loss {name}"), *value)))
}

/// Time left if every image took as long as in the last tick. Later resolutions take longer, so early on it is too short.
fn seconds_left(images: u64, tick: &Tick) -> Option<f64> {
    let left = tick.total_images.checked_sub(images)? as f64 / tick.img_per_sec;
    left.is_finite().then_some(left)
}

fn kimg(images: u64) -> String {
    format!("{:.1} kimg", images as f64 / 1000.0)
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds.div_ceil(60)),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{ImagesSeen, Rank};
    use coordinator_core::{Cause, ExitStatus, WorkerId};

    fn tick() -> Tick {
        Tick {
            images: 20_000,
            total_images: 60_000,
            lod: 2.25,
            resolution: 16,
            alpha: 0.75,
            minibatch: 16,
            img_per_sec: 200.0,
            sec_per_kimg: 5.0,
            stats: [("loss/d", 1.5), ("loss/g", -0.25), ("score/real", 0.5)].map(|(k, v)| (k.to_owned(), v)).into(),
            ..Tick::default()
        }
    }

    fn running() -> Status {
        let worker = Worker {
            id: "w0".into(),
            rank: Some(0),
            device: "cpu".into(),
            host: "here".into(),
            pid: Some(41),
            state: "connected".into(),
            activity: "train".into(),
            images: 20_500,
        };
        Status {
            run: "toy".into(),
            url: "file:///runs/toy".into(),
            phase: "running".into(),
            generation: 1,
            images: 20_500,
            total_images: 60_000,
            checkpoint: Some("manifests/000000020000-000001.json".into()),
            checkpoint_images: Some(20_000),
            tick: Some(tick()),
            workers: vec![worker],
            ..Status::default()
        }
    }

    fn lost() -> Outcome {
        Outcome {
            exit: Exit::WorkerLost,
            reason: Reason::Lost {
                worker: WorkerId("w1".into()),
                rank: Some(Rank(1)),
                cause: Cause::Exited { status: ExitStatus::Signal(9), last_error: None },
            },
            images: ImagesSeen(20_500),
            newest: Some(Stored { images: ImagesSeen(20_000), manifest: "manifests/m.json".into() }),
        }
    }

    #[test]
    fn the_bar_shows_where_the_run_stands() {
        let text = bar(&running());
        assert_eq!(text, "16x16 fade 0.75  20.5 kimg  200.0 img/s  loss d 1.500  loss g -0.250  4 min left");
        let stable = Tick { alpha: 1.0, img_per_sec: 0.0, ..tick() };
        let text = bar(&Status { tick: Some(stable), ..running() });
        assert_eq!(text, "16x16 stable  20.5 kimg  0.0 img/s  loss d 1.500  loss g -0.250");
        let text = bar(&Status { phase: "draining".into(), ..running() });
        assert!(text.ends_with("  draining"), "{text}");
        let text = bar(&Status { tick: None, ..running() });
        assert_eq!(text, "20.5 kimg train");
        let text = bar(&Status { phase: "gathering".into(), tick: None, ..running() });
        assert_eq!(text, "waiting for workers: 1 of 1");
    }

    #[test]
    fn a_tick_is_one_line() {
        let expected = "20.0 kimg  lod 2.25  16x16 fade 0.75  minibatch 16  200.0 img/s  5.0 s/kimg  loss d 1.500  \
                        loss g -0.250  4 min left";
        assert_eq!(plain(&News::Tick(Box::new(tick()))).as_deref(), Some(expected));
        assert_eq!(json(&News::Tick(Box::new(tick())))["tick"]["resolution"], 16);
    }

    #[test]
    fn a_failure_says_what_happened_and_what_to_do() {
        let news = News::Ended {
            outcome: lost(),
            last_lines: vec!["one".into(), "two".into()],
            advice: Some("coordinator resume file:///runs/toy".into()),
        };
        let expected = "\
the last lines of that worker:
  one
  two
failed: worker w1 (rank 1) ended without a farewell: signal 9, SIGKILL: from outside, possibly because memory ran out
newest checkpoint: manifests/m.json (20.0 kimg)
resume with: coordinator resume file:///runs/toy";
        assert_eq!(plain(&news).as_deref(), Some(expected));
        let json = json(&news);
        assert_eq!((&json["event"], &json["outcome"]["exit"]), (&"ended".into(), &6.into()));
        assert_eq!(json["outcome"]["reason"]["reason"], "lost");
        assert_eq!(json["outcome"]["reason"]["cause"]["cause"], "exited");
        assert_eq!(json["resume_with"], "coordinator resume file:///runs/toy");
    }

    #[test]
    fn only_what_matters_reaches_plain_output() {
        let log = |level| News::Log { rank: 1, level, line: "text".into() };
        assert_eq!(plain(&log(Level::Info)), None);
        assert_eq!(plain(&log(Level::Warn)).as_deref(), Some("[1] warning: text"));
        assert_eq!(json(&log(Level::Info))["level"], "info");
        assert_eq!(plain(&News::Progress(Box::default())), None);
    }

    #[test]
    fn the_status_names_every_worker() {
        let expected = "\
run toy is running (file:///runs/toy)
20.5 kimg of 60.0 kimg, 34.2 %
20.0 kimg  lod 2.25  16x16 fade 0.75  minibatch 16  200.0 img/s  5.0 s/kimg  loss d 1.500  loss g -0.250  4 min left
newest checkpoint: manifests/000000020000-000001.json (20.0 kimg)
  rank 0: connected, train at 20.5 kimg (w0, cpu on here, process 41)
";
        assert_eq!(status(&running()), expected);
    }

    #[test]
    fn quality_stands_beside_its_floor() {
        let quality = Quality {
            images: 60_000,
            metric: "swd".into(),
            count: 100,
            levels: [(16, 12.0), (32, 20.5)].into(),
            floor: [(16, 3.0)].into(),
            ..Quality::default()
        };
        let text = plain(&News::Quality(quality)).unwrap();
        assert_eq!(text, "swd at 60.0 kimg:  16: 12.00 (floor 3.00)  32: 20.50");
        let (metric, of, features) = (names::KID.into(), "a2b".into(), "net".into());
        let levels = [(64, 0.0812)].into();
        let (floor, untouched) = ([(64, 0.001)].into(), [(64, 0.13)].into());
        let quality = Quality { images: 500, metric, of, features, count: 9, levels, floor, untouched };
        let text = plain(&News::Quality(quality)).unwrap();
        assert_eq!(text, "kid a2b (net) at 0.5 kimg:  64: 0.0812 (floor 0.0010, untouched 0.1300)");
    }

    #[test]
    fn a_verdict_says_what_to_try() {
        let (what, evidence) = ("collapse".to_owned(), "all alike".to_owned());
        let verdict = Verdict { images: 2000, what, evidence, advice: "something else".to_owned() };
        let text = plain(&News::Verdict(verdict.clone())).unwrap();
        assert_eq!(text, "warning: collapse at 2.0 kimg: all alike. Try: something else");
        let status = Status { health: vec![verdict], ..running() };
        assert!(super::status(&status).contains("warning: collapse at 2.0 kimg"));
    }

    #[test]
    fn durations_and_sizes_read_well() {
        assert_eq!([5.0, 61.0, 3725.0, 90_000.0].map(duration), ["5 s", "2 min", "1 h 02 min", "1 d 1 h"]);
        assert_eq!([900, 1_500_000, 2_000_000_000].map(bytes_text), ["1 kB", "1.5 MB", "2.00 GB"]);
    }
}
