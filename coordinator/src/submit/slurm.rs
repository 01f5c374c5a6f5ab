//! `coordinator submit slurm`: a readable batch script, and `sbatch`.
//!
//! Script, log and, where none are given, credentials lie in the run's folder of the state home, which all nodes must see, as they
//! must see the experiment, the programs and the data.

use super::{Job, filled, path_word, word};
use crate::credentials;
use crate::display::line;
use crate::failure::Failure;
use crate::machine;
use crate::state;
use clap::Args;
use common::exit::Exit;
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// The script, as an administrator may edit it.
pub const TEMPLATE: &str = include_str!("../../../scripts/slurm/train.sbatch");
/// Time for an answer of Slurm's.
const DEADLINE: Duration = Duration::from_secs(60);
/// Before the time is up, what is left of the notice when the last checkpoint must be stored.
const LEFT: u32 = 20;
/// A job is queued again so often after failures that may not come again.
const RESTARTS: u32 = 20;

/// What Slurm is told.
#[derive(Clone, Debug, Args)]
pub struct SlurmArgs {
    /// What is said whatever the scheduler
    #[command(flatten)]
    pub job: Job,
    /// Your own template, in place of the one that comes with this program
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Quality of service
    #[arg(long, value_name = "NAME")]
    pub qos: Option<String>,
    /// Longest time at a stretch, as Slurm writes it: minutes, or DAYS-HOURS:MINUTES:SECONDS; then the job is queued again
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// Cores of each node [default: all of them; the nodes are then not shared]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub cpus_per_node: Option<u32>,
    /// Seconds before the end at which the state is stored; Slurm may be a minute early
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u32).range(30..=3600))]
    pub notice: u32,
    /// Any other option of sbatch, as in --sbatch=--constraint=a100; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,
    /// Folder that `coordinator credentials make` has made [default: made for this run]
    #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
    pub credentials: Option<PathBuf>,
}

/// Where what belongs to the job lies.
struct Place {
    worker: PathBuf,
    folder: PathBuf,
    script: PathBuf,
    credentials: PathBuf,
}

/// Writes the script and submits it.
///
/// # Errors
/// The experiment is wrong, such a job is queued already, or Slurm refuses.
pub async fn submit(args: &SlurmArgs) -> Result<Exit, Failure> {
    let experiment = args.job.experiment()?;
    let config = &experiment.resolved.config;
    let folder = state::home()?.join(&config.name).join("slurm");
    // Slurm may give notice a minute early, and something must come of the rest
    let least = u64::from(args.notice) + 120;
    if let Some(time) = args.time.as_deref().filter(|time| seconds(time).is_some_and(|seconds| seconds < least)) {
        let message = format!(
            "--time {time} leaves nothing to train in before the notice, {} s before its end: ask for {} minutes or more, or a shorter --notice",
            args.notice,
            least.div_ceil(60)
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let given = args.credentials.as_ref().map(std::path::absolute).transpose();
    let given = given.map_err(|error| Failure::new(Exit::Usage, format!("--credentials: {error}")))?;
    let place = Place {
        worker: machine::worker_binary()?,
        script: folder.join("train.sbatch"),
        credentials: given.clone().unwrap_or_else(|| folder.join("credentials")),
        folder,
    };
    let text = script(args, &config.name, &place)?;
    if args.job.dry_run {
        line(text.trim_end());
        return Ok(Exit::Ok);
    }
    if let Some(job) = queued(&config.name).await? {
        let message = format!(
            "job {job} of the run `{}` is queued or running already: look at it with `squeue -j {job}`, end it with `scancel {job}`",
            config.name
        );
        return Err(Failure::new(Exit::Config, message));
    }
    let broken =
        |path: &Path, error: std::io::Error| Failure::new(Exit::Config, format!("{}: {error}", path.display()));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place.folder);
    made.map_err(|error| broken(&place.folder, error))?;
    if given.is_none() && !place.credentials.exists() {
        credentials::made(&place.credentials, credentials::DAYS)?;
    }
    state::write_private(&place.script, text.as_bytes()).map_err(|error| broken(&place.script, error))?;
    let path = place.script.as_os_str();
    // what can never run would wait for ever
    slurm("sbatch", &["--test-only".as_ref(), path]).await?;
    let job = slurm("sbatch", &["--parsable".as_ref(), path]).await?;
    let job = job.trim().split(';').next().unwrap_or_default().to_owned();
    let (name, folder) = (&config.name, place.folder.display());
    line(&format!(
        "job {job}: run {name}, {} workers on {} nodes\n\
         script  {}\n\
         log     {folder}/job-{job}.log\n\
         status  coordinator status {name}; squeue -j {job}\n\
         end     scancel {job}; the state is stored, and submitting again goes on with it",
        args.job.nodes * args.job.workers_per_node(),
        args.job.nodes,
        place.script.display(),
    ));
    Ok(Exit::Ok)
}

/// Seconds of a time as Slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. `None` is without end, or what Slurm itself will refuse.
fn seconds(time: &str) -> Option<u64> {
    let numbers = |text: &str| text.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u64>().ok()?), numbers(rest)?),
        None => (None, numbers(time)?),
    };
    let (hours, minutes, seconds) = match (days, &rest[..]) {
        (_, [hours, minutes, seconds]) => (*hours, *minutes, *seconds),
        (Some(_), [hours, minutes]) => (*hours, *minutes, 0),
        (Some(_), [hours]) => (*hours, 0, 0),
        (None, [minutes, seconds]) => (0, *minutes, *seconds),
        (None, [minutes]) => (0, *minutes, 0),
        _ => return None,
    };
    let hours = days.unwrap_or(0).checked_mul(24)?.checked_add(hours)?;
    hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60)?.checked_add(seconds)
}

/// The whole script.
fn script(args: &SlurmArgs, name: &str, place: &Place) -> Result<String, Failure> {
    let job = &args.job;
    let here = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Internal, format!("where this program is: {error}")))?;
    let gpus = job.gpus_per_node.map(|gpus| format!("--gpus-per-node={gpus}"));
    let settings: Vec<String> = job.set.iter().flat_map(|set| ["--set".to_owned(), word(set)]).collect();
    let folder = path_word(&place.folder)?;
    // what follows a directive is no shell: it knows no quotes within a word
    if place.folder.to_string_lossy().contains(|c: char| c.is_whitespace() || "'\"\\%".contains(c)) {
        let message =
            format!("Slurm cannot write its log into {}: name another XDG_STATE_HOME", place.folder.display());
        return Err(Failure::new(Exit::Config, message));
    }
    let values = BTreeMap::from([
        ("name", name.to_owned()),
        ("nodes", job.nodes.to_string()),
        ("directives", directives(args, gpus.as_deref())?),
        ("notice", args.notice.to_string()),
        ("deadline", (args.notice - LEFT).to_string()),
        ("folder_pattern", place.folder.to_string_lossy().into_owned()),
        ("folder", folder),
        ("coordinator", path_word(&here)?),
        ("worker", path_word(&place.worker)?),
        ("experiment", path_word(&job.file()?)?),
        ("settings", settings.join(" ")),
        ("workers_per_node", job.workers_per_node().to_string()),
        ("restarts", RESTARTS.to_string()),
        ("credentials", path_word(&place.credentials)?),
        ("gpus", gpus.map_or_else(String::new, |gpus| gpus + " ")),
    ]);
    let template = match &args.template {
        None => TEMPLATE.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("the template {}: {error}", path.display())))?,
    };
    filled(&template, &values)
}

/// What Slurm is told besides what every job is told.
fn directives(args: &SlurmArgs, gpus: Option<&str>) -> Result<String, Failure> {
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("--{name}={value}"));
    let cores = match args.cpus_per_node {
        Some(cores) => format!("--cpus-per-task={cores}"),
        None => "--exclusive".to_owned(),
    };
    let said = [
        option("partition", &args.partition),
        option("account", &args.account),
        option("qos", &args.qos),
        option("time", &args.time),
        gpus.map(str::to_owned),
        Some(cores),
    ];
    let all: Vec<String> = said.into_iter().flatten().chain(args.sbatch.iter().cloned()).collect();
    if let Some(wrong) = all.iter().find(|option| !option.starts_with('-') || option.contains(char::is_control)) {
        return Err(Failure::new(Exit::Usage, format!("`{}` is no option of sbatch", wrong.escape_debug())));
    }
    Ok(all.iter().map(|option| format!("#SBATCH {option}")).collect::<Vec<_>>().join("\n"))
}

/// A job of this user with the name of the run.
async fn queued(name: &str) -> Result<Option<String>, Failure> {
    let jobs = slurm("squeue", &["--me", "--noheader", "--name", name, "--format", "%i"].map(AsRef::as_ref)).await?;
    Ok(jobs.lines().next().map(|job| job.trim().to_owned()).filter(|job| !job.is_empty()))
}

/// What a program of Slurm's answers.
async fn slurm(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<String, Failure> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let message = format!(
                "{program} cannot be started: {error}. Submit on a machine with Slurm's programs, or see the script with --dry-run"
            );
            return Err(Failure::new(Exit::Config, message));
        }
        Err(_) => {
            let message =
                format!("{program} has not answered within {} s: is Slurm well? (scontrol ping)", DEADLINE.as_secs());
            return Err(Failure::new(Exit::Network, message));
        }
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = children::lines::printable(said.trim());
            Err(Failure::new(Exit::Config, format!("{program} refuses: {said}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SlurmArgs,
    }

    fn of(line: &str) -> SlurmArgs {
        Line::try_parse_from(["submit"].into_iter().chain(line.split(' '))).unwrap().args
    }

    fn made(line: &str) -> Result<String, Failure> {
        let place = Place {
            worker: "/opt/ganfleet/bin/worker".into(),
            folder: "/home/ann/state".into(),
            script: "/home/ann/state/train.sbatch".into(),
            credentials: "/home/ann/my secrets".into(),
        };
        script(&of(line), "toy", &place)
    }

    #[test]
    fn the_script_says_what_was_asked_for() {
        let text =
            made("a.toml --nodes 4 --gpus-per-node 8 --partition big --time 60 --sbatch=--constraint=a100").unwrap();
        for expected in [
            "#SBATCH --job-name=toy\n",
            "#SBATCH --nodes=4\n",
            "#SBATCH --partition=big\n#SBATCH --time=60\n#SBATCH --gpus-per-node=8\n#SBATCH --exclusive\n#SBATCH --constraint=a100\n",
            "#SBATCH --signal=B:USR1@180\n",
            "export GANFLEET_CREDENTIALS='/home/ann/my secrets'\n",
            "workers_per_node=8\n",
        ] {
            assert!(text.contains(expected), "{expected}\nin\n{text}");
        }
        assert!(!text.contains("{{"));
    }

    #[test]
    fn times_are_read_as_slurm_writes_them() {
        let cases =
            [("30", 1800), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86_400), ("1-1:30", 91_800), ("0-0:1:1", 61)];
        for (text, expected) in cases {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in ["UNLIMITED", "", "1:2:3:4", "a-1", "99999999999999999999"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn directives_are_options() {
        assert!(directives(&of("a.toml --sbatch=nodes"), None).is_err());
        assert!(directives(&of("a.toml --partition=a\n#SBATCH\t--x"), None).is_err());
        assert_eq!(directives(&of("a.toml --cpus-per-node 3"), None).unwrap(), "#SBATCH --cpus-per-task=3");
    }
}
