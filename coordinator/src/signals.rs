//! The operator's interrupts: SIGINT, SIGTERM and SIGHUP, one message each, in the order in which they come.
//!
//! A SIGTERM or SIGHUP that is repeated says nothing new: schedulers send it to a job's script and to all that it started, which hand it
//! on. Whoever presses Ctrl-C again means it. A SIGHUP that is ignored already stays so: that is what `nohup` is for.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

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
    // more than two say nothing new
    let (sender, receiver) = mpsc::channel(2);
    for (kind, mut signals) in kinds {
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if sender.send(()).await.is_err() || kind != SignalKind::interrupt() {
                    break;
                }
            }
            // caught for ever: the system's own answer would be death
            while signals.recv().await.is_some() {}
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
