//! Exit codes of both binaries: stable, so that a job script can tell "fix the file" from "try again".

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a process ended, as its exit code says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The run is complete, or was stopped on request with its state in a checkpoint.
    Ok = 0,
    /// A defect of the program. Please report it.
    Internal = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The experiment file, the environment or a `--set` is wrong. Nothing was started.
    Config = 3,
    /// The training data cannot be used, and nothing was started; or images to be translated, and the others were; or weights that were
    /// to be imported.
    Data = 4,
    /// The checkpoint store cannot be reached, refuses, or holds no checkpoint that verifies.
    Storage = 5,
    /// A worker died or left; the newest checkpoint is intact. Trying again with `--resume auto` makes sense.
    WorkerLost = 6,
    /// A worker's coordinator vanished; the worker wrote a checkpoint and left.
    Orphaned = 7,
    /// A listening address, a connection or the join was refused.
    Network = 8,
    /// Training went wrong numerically beyond what skipping can cure.
    Diverged = 9,
    /// A scheduler's notice ended it with the state stored, before the run was over. Trying again goes on with it (sysexits' EX_TEMPFAIL).
    Again = 75,
    /// Stopped by a second interrupt, at once; checkpoints already committed are intact.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Ends that would come again wherever it is tried again, until a person has mended their cause.
    pub const LASTING: [Self; 5] = [Self::Usage, Self::Config, Self::Data, Self::Storage, Self::Diverged];

    /// The exit of a child process, where its code is one of ours.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        Some(match code {
            0 => Self::Ok,
            1 => Self::Internal,
            2 => Self::Usage,
            3 => Self::Config,
            4 => Self::Data,
            5 => Self::Storage,
            6 => Self::WorkerLost,
            7 => Self::Orphaned,
            8 => Self::Network,
            9 => Self::Diverged,
            75 => Self::Again,
            130 => Self::Interrupted,
            _ => return None,
        })
    }
}

/// How a child process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Nobody learned it: another coordinator had started it.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Unknown => f.write_str("in a way that only its parent could learn"),
            Self::Signal(9) => f.write_str("signal 9, SIGKILL: from outside, possibly because memory ran out"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "signal {signal}, {name}"),
                None => write!(f, "signal {signal}"),
            },
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        2 => "SIGINT",
        4 => "SIGILL: this processor lacks an instruction that the build uses",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => return None,
    })
}
