//! `worker`: one training process. Started by the coordinator, or by hand on another host with `worker join`.
//!
//! Only parses, calls, and turns the outcome into an exit code.

use agent::Reach;
use clap::{Parser, Subcommand};
use common::config::resolved::S3;
use common::exit::Exit;
use native::cuda;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use worker::failure::Failure;
use worker::node::{self, Node};
use worker::{doctor, environment, examined, export, import, join, prepare, rehearse, sample, translate};

#[derive(Parser)]
#[command(name = "worker", version, about = "One training process of a Ganfleet run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join the run whose coordinator listens at ADDRESS (HOST:PORT); its token is read from GANFLEET_TOKEN, else from the credentials.
    Join {
        address: String,
        /// Folder of this worker's credentials: the connection is then encrypted, and both sides prove who they are.
        #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
        credentials: Option<PathBuf>,
        /// Address of this machine where the other workers reach this one [default: the one that leads to the coordinator, any port]
        #[arg(long, value_name = "IP[:PORT]", value_parser = place)]
        listen: Option<SocketAddr>,
        /// Where they reach it instead, if something between rewrites addresses.
        #[arg(long, value_name = "IP:PORT", requires = "listen")]
        advertise: Option<SocketAddr>,
    },
    /// Run all workers of this machine for the coordinator at ADDRESS (HOST:PORT): one for each GPU. One that fails is started anew. The
    /// token is read from GANFLEET_TOKEN, else from the credentials.
    Node {
        address: String,
        /// Folder of the workers' credentials.
        #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
        credentials: Option<PathBuf>,
        /// Address of this machine where the other workers reach these [default: the one that leads to the coordinator]
        #[arg(long, value_name = "IP")]
        listen: Option<IpAddr>,
        /// How many [default: one for each GPU, else one].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
        workers: Option<u32>,
        /// A place whose workers have failed for so long is given up.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(0..=86_400))]
        patience: u64,
        /// Seconds that workers have for leaving after SIGTERM or SIGINT; a second SIGINT ends them at once.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        grace: u64,
    },
    /// Say what this program finds on this machine, as JSON: libraries, GPUs, places. With ADDRESS (HOST:PORT), take part as one of the hosts
    /// that `coordinator doctor --hosts` looks at there.
    Doctor {
        address: Option<String>,
        /// Folder of this host's credentials.
        #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
        credentials: Option<PathBuf>,
        /// As `worker join` would: where other hosts reach this one.
        #[arg(long, value_name = "IP[:PORT]", value_parser = place, requires = "address")]
        listen: Option<SocketAddr>,
        /// Where they reach it instead, if something between rewrites addresses.
        #[arg(long, value_name = "IP:PORT", requires = "listen")]
        advertise: Option<SocketAddr>,
        /// The coordinator is waited for so long.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
        patience: u64,
    },
    /// Prepare the training images of the resolved configuration on standard input (JSON).
    Prepare,
    /// Take the widest step of the resolved configuration on standard input (JSON) on made-up images: whether it fits into memory, as JSON.
    Rehearse {
        /// As the first of so many [default: those of the configuration, else one].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
        workers: Option<u32>,
        /// End with this process, which began it.
        #[arg(long, value_name = "PID")]
        of: Option<i32>,
    },
    /// Make images from a checkpoint.
    Sample {
        /// A run or one of its checkpoints.
        url: String,
        /// Seeds: numbers and ranges, as in 0-63 or 1,5,9.
        #[arg(long, default_value = "0-63")]
        seeds: String,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
        /// How an S3-compatible store is reached: `checkpoint.s3` of a resolved configuration (JSON).
        #[arg(long, value_name = "JSON")]
        s3: Option<String>,
    },
    /// Translate images by the networks of a checkpoint.
    Translate {
        /// A run or one of its checkpoints.
        url: String,
        /// Images, or folders of images.
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
        /// One of the run's directions, as in a2b.
        #[arg(long)]
        direction: String,
        /// Folder to write to.
        #[arg(long)]
        out: PathBuf,
        /// How an S3-compatible store is reached: `checkpoint.s3` of a resolved configuration (JSON).
        #[arg(long, value_name = "JSON")]
        s3: Option<String>,
    },
    /// Write the networks of a checkpoint into files that other programs load.
    Export {
        /// A run or one of its checkpoints.
        url: String,
        /// Form of the files, as in pytorch-cyclegan.
        #[arg(long)]
        format: String,
        /// Folder to write to.
        #[arg(long)]
        out: PathBuf,
        /// How an S3-compatible store is reached: `checkpoint.s3` of a resolved configuration (JSON).
        #[arg(long, value_name = "JSON")]
        s3: Option<String>,
    },
    /// Make weights that others have trained the first checkpoint of a run.
    Import {
        /// The run's resolved configuration (JSON).
        #[arg(long, value_name = "JSON")]
        config: String,
        /// A file of weights, or a folder of them.
        #[arg(long)]
        from: PathBuf,
        /// Network that the file holds, where its name does not say it.
        #[arg(long)]
        network: Option<String>,
    },
}

fn main() {
    // before anything touches libtorch: it looks its CUDA hooks up once
    let cuda = cuda::load(&environment::library_folders());
    let kept = native::keep_memory();
    tracing_subscriber::fmt()
        // a closed stderr (the coordinator is gone) must not end a worker that still has a state to store
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("GANFLEET_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    if let Err(error) = kept {
        tracing::warn!("{error}");
    }
    let outcome = match Cli::parse().command {
        Command::Join { address, credentials, listen, advertise } => {
            join::join(Reach { address, token: token(), credentials }, listen, advertise, &cuda)
        }
        Command::Node { address, credentials, listen, workers, patience, grace } => {
            let (patience, grace) = (Duration::from_secs(patience), Duration::from_secs(grace));
            node::node(&Node { address, credentials, listen, workers, patience, grace })
        }
        Command::Doctor { address: Some(address), credentials, listen, advertise, patience } => {
            let reach = Reach { address, token: token(), credentials };
            examined::examined(&reach, listen, advertise, Duration::from_secs(patience), &cuda)
        }
        Command::Doctor { .. } => doctor::say(&cuda).map(|()| Exit::Ok),
        Command::Prepare => prepare::from_stdin().map(|()| Exit::Ok),
        Command::Rehearse { workers, of } => rehearse::from_stdin(workers, of, join::device(&cuda)).map(|()| Exit::Ok),
        Command::Sample { url, seeds, out, s3 } => {
            s3_settings(s3.as_deref()).and_then(|s3| sample::sample(&url, &seeds, &out, &s3)).map(|()| Exit::Ok)
        }
        Command::Translate { url, inputs, direction, out, s3 } => s3_settings(s3.as_deref())
            .and_then(|s3| translate::translate(&url, &direction, &inputs, &out, &s3))
            .map(|()| Exit::Ok),
        Command::Export { url, format, out, s3 } => {
            s3_settings(s3.as_deref()).and_then(|s3| export::export(&url, &format, &out, &s3)).map(|()| Exit::Ok)
        }
        Command::Import { config, from, network } => {
            import::import(&config, &from, network.as_deref()).map(|()| Exit::Ok)
        }
    };
    let exit = outcome.unwrap_or_else(|failure| {
        tracing::error!("{failure}");
        failure.exit()
    });
    // whoever read it may have gone
    let _ = std::io::stdout().flush();
    native::end(exit as u8)
}

/// The run's token, as the environment gives it.
fn token() -> String {
    std::env::var("GANFLEET_TOKEN").unwrap_or_default().trim().to_owned()
}

/// An address with a port, or with any.
fn place(text: &str) -> Result<SocketAddr, String> {
    let any_port = |ip: IpAddr| SocketAddr::new(ip, 0);
    text.parse()
        .or_else(|_| text.parse().map(any_port))
        .map_err(|_| "expected IP or IP:PORT ([IP]:PORT for IPv6)".to_owned())
}

fn s3_settings(json: Option<&str>) -> Result<S3, Failure> {
    json.map_or_else(|| Ok(S3::default()), serde_json::from_str)
        .map_err(|error| Failure::Usage(format!("--s3 is not what coordinator sample gives: {error}")))
}
