//! The command line.

use crate::checkpoints_cli::CheckpointsCommand;
use crate::config_cli::ConfigCommand;
use crate::credentials::CredentialsCommand;
use crate::display::{Style, line};
use crate::doctor::DoctorArgs;
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::launch::{Begin, Options, launch};
use crate::operate::operate;
use crate::origin::{self, Overrides, Resume};
use crate::plot::PlotArgs;
use crate::report::ReportArgs;
use crate::s3_args::S3Args;
use crate::submit::{self, SubmitCommand};
use crate::{checkpoints_cli, config_cli, credentials, doctor, plot, render, report, signals, trained};
use clap::{Args, Parser, Subcommand, ValueEnum};
use common::exit::Exit;
use common::families::elsewhere::Format;
use rpc::operate_request::Command as Question;
use std::path::PathBuf;
use std::time::Duration;

/// Trains GANs on every GPU it is given, and keeps what they have learned.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Form of this program's own log on standard error; RUST_LOG chooses what is logged
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 complete, or stopped on request with its state stored; 1 defect; 2 command line; \
3 configuration; 4 data; 5 storage; 6 a worker was lost (go on with `resume`); 8 network; 9 training diverged; \
75 told to go by a scheduler; \
130 interrupted twice";

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object on each line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train what an experiment file describes
    Launch {
        /// Experiment file (TOML)
        experiment: PathBuf,
        /// If the run exists: `auto` goes on from its newest good checkpoint (or begins, if it has none), `never` begins
        /// anew, a URL names the checkpoint
        #[arg(long, value_name = "auto|never|URL")]
        resume: Option<Resume>,
        /// How to run it.
        #[command(flatten)]
        how: How,
    },
    /// Go on with a run from its newest good checkpoint, or from any
    Resume {
        /// URL or path of a run, or of one manifest of it
        url: String,
        /// How to run it.
        #[command(flatten)]
        how: How,
    },
    /// Take over a run whose coordinator is dead and whose workers are at work
    Attach {
        /// Name of the run, if its coordinator was on this machine; else its URL, and its token in GANFLEET_TOKEN or
        /// its credentials
        run: String,
        /// How to run it.
        #[command(flatten)]
        how: How,
    },
    /// Show where a run on this machine stands
    Status(Target),
    /// Have a run on this machine write a checkpoint and end
    Stop(Target),
    /// Have a run on this machine write a checkpoint and go on
    Checkpoint(Target),
    /// Have a run on this machine go on with another number of workers
    Scale {
        /// Which run
        #[command(flatten)]
        target: Target,
        /// How many workers; between cluster.min_workers and cluster.max_workers
        workers: u32,
    },
    /// Make a grid of images from a checkpoint
    Sample {
        /// URL or path of a run, or of one manifest of it
        url: String,
        /// Seeds of the images
        #[arg(long, default_value = "0-63", value_name = "FROM-TO")]
        seeds: String,
        /// PNG file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How the store is reached.
        #[command(flatten)]
        s3: S3Args,
    },
    /// Translate images by the networks of a checkpoint
    Translate {
        /// URL or path of a run, or of one manifest of it
        url: String,
        /// Images of any size, or folders of images
        #[arg(required = true, value_name = "INPUT")]
        inputs: Vec<PathBuf>,
        /// Which way, as in a2b or b2a
        #[arg(long, value_name = "DIRECTION")]
        direction: String,
        /// Folder for the PNG files; nothing in it is overwritten
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// How the store is reached.
        #[command(flatten)]
        s3: S3Args,
    },
    /// Write the networks of a checkpoint into files that other programs load
    Export {
        /// URL or path of a run, or of one manifest of it
        url: String,
        /// Form of the files: pytorch-cyclegan or gan-zoo, for the repositories of that name; safetensors, with the same names
        #[arg(long, value_name = "FORMAT")]
        format: Format,
        /// Folder for the files; nothing in it is overwritten
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// How the store is reached.
        #[command(flatten)]
        s3: S3Args,
    },
    /// Make weights from another program the first checkpoint of a run: to use them, or to train on from them
    Import {
        /// Experiment file (TOML) of a run that has no checkpoint yet
        experiment: PathBuf,
        /// File of weights (.pth, .pt, .safetensors), or folder of them
        #[arg(long, value_name = "FILE|FOLDER")]
        from: PathBuf,
        /// Network that the file holds, as in G_A, where its name does not say it
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
        /// Override a value, as in --set train.total_kimg=10; may be repeated, the last one wins
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Workers at launch, as `launch` takes them
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
        workers: Option<u32>,
    },
    /// Draw the curves of a run: resolution, distances, losses, speed
    Plot(PlotArgs),
    /// Say where a run's time went: goodput, and what every fault cost
    Report(ReportArgs),
    /// List, show and verify checkpoints
    #[command(subcommand)]
    Checkpoints(CheckpointsCommand),
    /// Make, renew and show what machines of a run prove themselves with
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Have a cluster's scheduler run a training
    #[command(subcommand)]
    Submit(SubmitCommand),
    /// Look for what would hinder a run on this machine, and say what to do about it
    Doctor(DoctorArgs),
    /// Check, show and explain experiment files
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// How to run a training.
#[derive(Debug, Args)]
pub struct How {
    /// Override a value, as in --set train.total_kimg=10; may be repeated, the last one wins
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Workers of the run [default: cluster.workers, else one for each GPU, else one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers: Option<u32>,
    /// How many of them to start here; the others come by `worker join` [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=4096))]
    local: Option<u32>,
    /// Where workers and operators come.
    #[command(flatten)]
    entrance: Entrance,
    /// Write the address that workers from elsewhere are told into this file, once there is one
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// Seconds that the workers have for their last checkpoint after a stop
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stop_deadline: u64,
    /// A scheduler runs this, and may run it again: after SIGTERM the exit code is 75, and not 0, which it takes for the end of the run
    #[arg(long)]
    scheduled: bool,
    /// Faults on purpose: a plan of what is done to which worker, and when (docs/faults.md)
    #[arg(long, value_name = "FILE")]
    chaos: Option<PathBuf>,
    /// One line for each tick and decision instead of a progress bar
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// One JSON object on each line instead of a progress bar
    #[arg(long)]
    json: bool,
}

impl How {
    async fn begin(self, begin: Begin) -> Result<Exit, Failure> {
        let scheduled = self.scheduled;
        match launch(begin, &self.into()).await {
            // a run that was complete by then is so when it is tried again
            Ok(Exit::Ok) if scheduled && signals::told_to_go() => Ok(Exit::Again),
            ended => ended,
        }
    }
}

/// A run on this machine.
#[derive(Debug, Args)]
pub struct Target {
    /// Name of the run
    run: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl From<How> for Options {
    fn from(how: How) -> Self {
        let style = match (how.plain, how.json) {
            (_, true) => Style::Json,
            (true, _) => Style::Plain,
            _ => Style::Auto,
        };
        Self {
            overrides: Overrides { set: how.set, workers: how.workers },
            local: how.local,
            entrance: how.entrance,
            address_file: how.address_file,
            stop_deadline: Duration::from_secs(how.stop_deadline),
            chaos: how.chaos,
            style,
        }
    }
}

/// Does what the command line says.
///
/// # Errors
/// It could not be done.
pub async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Launch { experiment, resume, how } => how.begin(Begin::Experiment { file: experiment, resume }).await,
        Command::Resume { url, how } => how.begin(Begin::Checkpoint { url }).await,
        Command::Attach { run, how } => how.begin(Begin::Attach { run }).await,
        Command::Status(target) => ask(&target, Question::Status(rpc::StatusQuestion {})).await,
        Command::Stop(target) => ask(&target, Question::Stop(rpc::Stop::default())).await,
        Command::Scale { target, workers } => ask(&target, Question::Scale(rpc::Scale { workers })).await,
        Command::Checkpoint(target) => ask(&target, Question::Checkpoint(rpc::Checkpoint {})).await,
        Command::Sample { url, seeds, out, s3 } => match trained::sample(&url, &seeds, &out, &s3)? {},
        Command::Translate { url, inputs, direction, out, s3 } => {
            match trained::translate(&url, &direction, &inputs, &out, &s3)? {}
        }
        Command::Export { url, format, out, s3 } => match trained::export(&url, format, &out, &s3)? {},
        Command::Import { experiment, from, network, set, workers } => {
            let config = origin::of_import(experiment, &Overrides { set, workers }).await?;
            match trained::import(&config, &from, network.as_deref())? {}
        }
        Command::Plot(args) => plot::plot(&args).await.map(|()| Exit::Ok),
        Command::Report(args) => report::report(&args).await.map(|()| Exit::Ok),
        Command::Checkpoints(command) => checkpoints_cli::run(&command, &mut std::io::stdout().lock()).await,
        Command::Submit(command) => submit::submit(&command).await,
        Command::Doctor(args) => doctor::doctor(&args).await,
        Command::Credentials(command) => credentials::run(&command),
        Command::Config(command) => {
            config_cli::run(&command, &mut std::io::stdout().lock())?;
            Ok(Exit::Ok)
        }
    }
}

async fn ask(target: &Target, question: Question) -> Result<Exit, Failure> {
    let status = operate(&target.run, question).await?;
    if target.json {
        let text = serde_json::to_string(&status);
        line(&text.map_err(|error| Failure::new(Exit::Internal, format!("the status: {error}")))?);
    } else {
        line(render::status(&status).trim_end());
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_the_usual_ones_parse() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for line in [
            "coordinator launch a.toml --set train.total_kimg=1 --set seed=2 --workers 2 --resume auto --plain",
            "coordinator resume s3://bucket/run --json --listen 0.0.0.0:4000 --insecure",
            "coordinator attach toy --plain",
            "coordinator attach s3://bucket/run --local 1",
            "coordinator status toy --json",
            "coordinator stop toy --log-format json",
            "coordinator checkpoint toy",
            "coordinator sample /runs/toy --seeds 0-63 --out grid.png",
            "coordinator translate /runs/toy in.png more --direction a2b --out made",
            "coordinator export /runs/toy --format pytorch-cyclegan --out weights",
            "coordinator import a.toml --from latest_net_G.pth --network G_A --set seed=2",
            "coordinator config default",
            "coordinator credentials make secrets --days 30",
            "coordinator credentials renew secrets --authority",
            "coordinator doctor a.toml --workers 2 --listen [::1]:4000 --json",
            "coordinator launch a.toml --listen [::]:4000 --credentials secrets",
            "coordinator launch a.toml --listen [::]:0 --credentials secrets --advertise fe80::1 --address-file here",
            "coordinator submit slurm a.toml --nodes 4 --gpus-per-node 8 --time 1-0 --sbatch --mem=0 --dry-run",
            "coordinator submit k8s a.toml --nodes 4 --gpus-per-node 8 --image ganfleet:1 --kind jobset --volume faces:/faces -o yaml",
            "coordinator report /runs/toy --json",
            "coordinator checkpoints ls /runs/toy --json",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "coordinator",
            "coordinator launch",
            "coordinator launch a --plain --json",
            "coordinator launch a --advertise somewhere:0",
            "coordinator launch a --advertise ::",
            "coordinator submit slurm a.toml --nodes 0",
            "coordinator launch a --advertise 0.0.0.0:4000",
            "coordinator launch a --workers 0",
            "coordinator export /runs/toy --format pickle --out weights",
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
