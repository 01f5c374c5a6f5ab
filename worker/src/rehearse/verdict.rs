//! What follows from what the widest step has said, and from how its process ended. Refuses to look at anything itself.

use children::lines::{Level, level, message};
use common::memory::amount;
use native::DeviceMemory;
use serde::{Deserialize, Serialize};
use std::process::ExitStatus;
use tch::Device;

/// What contexts and displays take of a GPU, which are nobody else's work.
const SMALL: u64 = 1 << 30;
/// A step that takes more than this part of a GPU leaves little.
const MUCH: f64 = 0.9;
/// Of what the process said last so much is told.
const TOLD_MAX: usize = 300;
/// How libtorch's allocators say that there is no more: a GPU's, and the host's.
const LACKING_ON_GPU: &str = "CUDA out of memory";
const LACKING_ON_HOST: &str = "can't allocate memory";

/// What the step has to say, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) resolution: u32,
    /// Samples that were taken through the networks at once.
    pub(super) samples: u32,
    /// The device before it and behind it; `None` in host memory.
    pub(super) before: Option<DeviceMemory>,
    pub(super) after: Option<DeviceMemory>,
    /// What libtorch said where memory was too small.
    pub(super) lacking: Option<String>,
    /// What would make the step smaller.
    pub(super) remedies: Vec<String>,
}

/// What follows.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Fits(String),
    /// So little is left that other things may not fit.
    Tight(String),
    /// It takes too long to be known.
    Slow(String),
    TooLarge(String),
    /// It says nothing about the run, and why.
    Untried(String),
}

/// What a process that ended with `status`, reported this, and said that on standard error tells of the step.
pub(super) fn judge(device: Device, status: ExitStatus, report: &str, said: &str) -> Verdict {
    let Some(report) = report.lines().last().and_then(|line| serde_json::from_str::<Report>(line).ok()) else {
        let lines: Vec<&str> = said.lines().collect();
        let error = lines.iter().rposition(|line| level(line) == Level::Error).or(lines.len().checked_sub(1));
        let mut last = error.map(|at| message(lines[at])).unwrap_or_default();
        // what a panic was about stands on the next line
        if let Some(about) = error.filter(|_| last.contains("panicked at")).and_then(|at| lines.get(at + 1)) {
            last = message(about);
        }
        let last: String = last.chars().take(TOLD_MAX).collect();
        return Verdict::Untried(format!("trying it ended with {}: {last}", children::supervisor::ended(status)));
    };
    let step = format!("the widest step, {0}x{0} with {1} images at once,", report.resolution, report.samples);
    if device.is_cuda() && report.before.is_none() {
        return Verdict::Untried("the GPU is not there for another process".to_owned());
    }
    let Some(lacking) = report.lacking else {
        return match report.after {
            None => Verdict::Fits(format!("{step} fits into this machine's memory")),
            Some(after) => {
                let fits = format!("{step} fits: it takes {} of the GPU's {}", amount(after.most), amount(after.total));
                match after.most as f64 > MUCH * after.total as f64 {
                    true => Verdict::Tight(format!("{fits}, and what sums and scores need comes on top")),
                    false => Verdict::Fits(fits),
                }
            }
        };
    };
    if device.is_cuda() && !lacking.contains(LACKING_ON_GPU) {
        return Verdict::Untried(format!("{step} finds too little of the host's memory: {lacking}"));
    }
    let others = [&report.before, &report.after].into_iter().flatten().map(|memory| (memory.others(), memory.total));
    if let Some((others, total)) = others.max().filter(|(others, _)| *others > SMALL) {
        let (others, total) = (amount(others), amount(total));
        return Verdict::Untried(format!(
            "{step} does not fit beside what others hold of the GPU, {others} of {total}: {lacking}"
        ));
    }
    let place =
        report.before.map_or("this machine's memory".to_owned(), |at| format!("the GPU's {}", amount(at.total)));
    let remedies = report.remedies.join(", or ");
    Verdict::TooLarge(format!(
        "{step} does not fit into {place}: {lacking}. What makes it smaller: {remedies}. (cluster.rehearse = \"never\" begins without \
         trying.)"
    ))
}

/// Whether libtorch says that memory is lacking.
#[must_use]
pub fn lacks(message: &str) -> bool {
    [LACKING_ON_GPU, LACKING_ON_HOST].iter().any(|lacking| message.contains(lacking))
}

/// Of an error of libtorch's, its own first line; any other text as far as its first line goes.
pub(super) fn first_line(text: &str) -> &str {
    let text = text.split_once("Torch(\"").map_or(text, |(_, words)| words);
    // the line's end, as it stands or as `Debug` writes it
    text.split(['\n', '\\']).next().unwrap_or_default().trim_end_matches("\")")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const GB: u64 = 1_000_000_000;

    fn judged(before: Option<(u64, u64)>, after: Option<(u64, u64)>, lacking: Option<&str>) -> Verdict {
        let memory = |(free, held)| DeviceMemory { free, total: 80 * GB, held, most: held };
        let (before, after, lacking) = (before.map(memory), after.map(memory), lacking.map(str::to_owned));
        let remedies = vec!["this".to_owned(), "that".to_owned()];
        let report = Report { resolution: 1024, samples: 3, before, after, lacking, remedies };
        let device = if before.is_some() { Device::Cuda(0) } else { Device::Cpu };
        judge(device, ExitStatus::from_raw(0), &serde_json::to_string(&report).unwrap(), "")
    }

    #[test]
    fn what_fits_is_told_with_what_is_left() {
        let Verdict::Fits(how) = judged(Some((79 * GB, 0)), Some((76 * GB, 3 * GB)), None) else { panic!("fits") };
        assert_eq!(how, "the widest step, 1024x1024 with 3 images at once, fits: it takes 3.0 GB of the GPU's 80.0 GB");
        assert!(matches!(judged(Some((79 * GB, 0)), Some((0, 79 * GB)), None), Verdict::Tight(_)));
        assert!(matches!(judged(None, None, None), Verdict::Fits(_)));
    }

    #[test]
    fn only_a_device_that_nobody_else_uses_says_that_a_step_never_fits() {
        let lacking = Some("CUDA out of memory.");
        let Verdict::TooLarge(why) = judged(Some((79 * GB, 0)), Some((10 * GB, 69 * GB)), lacking) else {
            panic!("free")
        };
        assert!(why.contains("80.0 GB: CUDA out of memory.") && why.contains("smaller: this, or that."), "{why}");
        let Verdict::Untried(why) = judged(Some((50 * GB, 0)), Some((10 * GB, 69 * GB)), lacking) else {
            panic!("held")
        };
        assert!(why.contains("30.0 GB of 80.0 GB"), "{why}");
        // a context and a display
        assert!(matches!(judged(Some((79 * GB + GB / 2, 0)), Some((GB / 2, 79 * GB)), lacking), Verdict::TooLarge(_)));
        // somebody came meanwhile
        assert!(matches!(judged(Some((79 * GB, 0)), Some((0, 40 * GB)), lacking), Verdict::Untried(_)));
        // it was the host's memory
        assert!(matches!(
            judged(Some((79 * GB, 0)), Some((79 * GB, 0)), Some("can't allocate memory")),
            Verdict::Untried(_)
        ));
        assert!(matches!(judged(None, None, Some("can't allocate memory")), Verdict::TooLarge(_)));
    }

    #[test]
    fn a_process_that_ends_without_a_word_says_nothing_about_the_step() {
        let told = "2026-01-01T00:00:00Z ERROR the disk is on fire\nnote: a backtrace\n   1: frame\n";
        let panicked =
            "thread 'main' (7) panicked at src/x.rs:1:1:\nthe disk is on fire\nstack backtrace:\n   1: frame\n";
        for (status, how, said) in [(9, "SIGKILL", told), (101 << 8, "exit code 101", panicked)] {
            let verdict = judge(Device::Cpu, ExitStatus::from_raw(status), "half a li", said);
            let Verdict::Untried(why) = verdict else { panic!("{how}") };
            assert!(why.contains(how) && why.ends_with("the disk is on fire"), "{why}");
        }
        assert!(matches!(judge(Device::Cpu, ExitStatus::from_raw(0), "", ""), Verdict::Untried(_)));
        // a step that was taken on the host says nothing about a GPU
        let report =
            Report { resolution: 8, samples: 1, before: None, after: None, lacking: None, remedies: Vec::new() };
        let report = serde_json::to_string(&report).unwrap();
        assert!(matches!(judge(Device::Cuda(0), ExitStatus::from_raw(0), &report, ""), Verdict::Untried(_)));
    }

    #[test]
    fn of_an_error_libtorch_s_own_line_is_told() {
        let error = "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc".to_owned();
        let unwrapped =
            format!("called `Result::unwrap()` on an `Err` value: {:?}", tch::TchError::Torch(error.clone()));
        for text in [unwrapped, error] {
            assert_eq!(first_line(&text), "CUDA out of memory. Tried to allocate 2.00 GiB.");
        }
        assert!(lacks("CUDA out of memory.") && !lacks("CUDA error: an illegal memory access"));
    }
}
