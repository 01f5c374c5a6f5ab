//! `sample` and `translate`: images from a checkpoint. The worker makes them; this process becomes it.

use crate::failure::Failure;
use crate::machine;
use crate::s3_args::S3Args;
use common::exit::Exit;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turns this process into `worker sample`, which keeps its terminal, its signals and its exit code.
///
/// # Errors
/// There is no worker binary, or it cannot be started. Does not return otherwise.
pub fn sample(url: &str, seeds: &str, out: &Path, s3: &S3Args) -> Result<std::convert::Infallible, Failure> {
    become_worker("sample", s3, |command| {
        command.args(["--seeds", seeds, "--out"]).arg(out).arg(url);
    })
}

/// Turns this process into `worker translate`, likewise.
///
/// # Errors
/// There is no worker binary, or it cannot be started. Does not return otherwise.
pub fn translate(
    url: &str,
    direction: &str,
    inputs: &[PathBuf],
    out: &Path,
    s3: &S3Args,
) -> Result<std::convert::Infallible, Failure> {
    become_worker("translate", s3, |command| {
        command.args(["--direction", direction, "--out"]).arg(out).args(["--", url]).args(inputs);
    })
}

fn become_worker(what: &str, s3: &S3Args, ask: impl FnOnce(&mut Command)) -> Result<std::convert::Infallible, Failure> {
    let s3 = serde_json::to_string(&s3.resolve()?).map_err(|error| Failure::new(Exit::Internal, error))?;
    let worker = machine::worker_binary()?;
    let mut command = Command::new(&worker);
    command.args([what, "--s3", &s3]);
    ask(&mut command);
    let error = command.exec();
    Err(Failure::new(Exit::Internal, format!("cannot start {}: {error}", worker.display())))
}
