//! The operator's interrupts: SIGINT, SIGTERM and SIGHUP, one message each, in the order in which they come.
//!
//! A SIGTERM or SIGHUP that is repeated, or follows the other, says nothing new: schedulers send it to a job's script and to all that it
//! started, which hand it on, and the end of a session sends both. Whoever presses Ctrl-C again means it. A SIGHUP that is ignored already
//! stays so: that is what `nohup` is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Whether a SIGTERM has come.
static TOLD_TO_GO: AtomicBool = AtomicBool::new(false);

/// Whether a SIGTERM has come since the signals are caught.
#[must_use]
pub fn told_to_go() -> bool {
    TOLD_TO_GO.load(Ordering::Relaxed)
}

/// Catches the signals from now on.
///
/// # Errors
/// The operating system refuses.
pub fn catch() -> std::io::Result<mpsc::Receiver<()>> {
    let mut kinds: Vec<(SignalKind, Signal)> = Vec::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        if kind != SignalKind::hangup() || !is_ignored(&status, kind) {
            kinds.push((kind, signal(kind)?));
        }
    }
    let said = Arc::new(AtomicBool::new(false));
    // more than two say nothing new
    let (sender, receiver) = mpsc::channel(2);
    for (kind, mut signals) in kinds {
        let (sender, said) = (sender.clone(), Arc::clone(&said));
        tokio::spawn(async move {
            // caught for ever: the system's own answer would be death
            while signals.recv().await.is_some() {
                TOLD_TO_GO.fetch_or(kind == SignalKind::terminate(), Ordering::Relaxed);
                if kind == SignalKind::interrupt() || !said.swap(true, Ordering::Relaxed) {
                    // there may be nobody any more to whom it says anything
                    let _ = sender.send(()).await;
                }
            }
        });
    }
    Ok(receiver)
}

/// Whether a process ignores a signal, by the text of its `/proc/<pid>/status`.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(is_ignored(status, SignalKind::hangup()));
        assert!(!is_ignored(status, SignalKind::interrupt()));
        assert!(!is_ignored("", SignalKind::hangup()));
    }
}
