//! `sample`, `translate`, `export`, `import`: what is done with networks that are trained. The worker does it; this process becomes it.

use crate::failure::Failure;
use crate::machine;
use crate::s3_args::S3Args;
use common::config::resolved::RunConfig;
use common::exit::Exit;
use common::families::elsewhere::Format;
use serde::Serialize;
use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turns this process into `worker sample`, which keeps its terminal, its signals and its exit code.
///
/// # Errors
/// There is no worker binary, or it cannot be started. Does not return otherwise.
pub fn sample(url: &str, seeds: &str, out: &Path, s3: &S3Args) -> Result<Infallible, Failure> {
    let s3 = json(&s3.resolve()?)?;
    become_worker("sample", |command| {
        command.args(["--s3", &s3, "--seeds", seeds, "--out"]).arg(out).arg(url);
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
) -> Result<Infallible, Failure> {
    let s3 = json(&s3.resolve()?)?;
    become_worker("translate", |command| {
        command.args(["--s3", &s3, "--direction", direction, "--out"]).arg(out).args(["--", url]).args(inputs);
    })
}

/// Turns this process into `worker export`, likewise.
///
/// # Errors
/// There is no worker binary, or it cannot be started. Does not return otherwise.
pub fn export(url: &str, format: Format, out: &Path, s3: &S3Args) -> Result<Infallible, Failure> {
    let s3 = json(&s3.resolve()?)?;
    become_worker("export", |command| {
        command.args(["--s3", &s3, "--format", &format.to_string(), "--out"]).arg(out).args(["--", url]);
    })
}

/// Turns this process into `worker import`, likewise, for the run of `config`.
///
/// # Errors
/// There is no worker binary, or it cannot be started. Does not return otherwise.
pub fn import(config: &RunConfig, from: &Path, network: Option<&str>) -> Result<Infallible, Failure> {
    let config = json(config)?;
    become_worker("import", |command| {
        command.args(["--config", &config, "--from"]).arg(from);
        if let Some(name) = network {
            command.args(["--network", name]);
        }
    })
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::new(Exit::Internal, error))
}

fn become_worker(what: &str, ask: impl FnOnce(&mut Command)) -> Result<Infallible, Failure> {
    let worker = machine::worker_binary()?;
    let mut command = Command::new(&worker);
    command.arg(what);
    ask(&mut command);
    let error = command.exec();
    Err(Failure::new(Exit::Internal, format!("cannot start {}: {error}", worker.display())))
}
