//! `worker`: one training process. Started by the coordinator, or by hand on another host with `worker join`.
//!
//! Only parses, calls, and turns the outcome into an exit code.

use clap::{Parser, Subcommand};
use common::config::resolved::S3;
use common::exit::Exit;
use native::cuda;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use worker::{join, prepare, sample};

#[derive(Parser)]
#[command(name = "worker", version, about = "One training process of a Ganfleet run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join the run whose coordinator listens at ADDRESS (HOST:PORT); its token is read from GANFLEET_TOKEN.
    Join {
        address: String,
        /// Address of this machine where the other workers reach this one [default: the one that leads to the coordinator]
        #[arg(long)]
        listen: Option<IpAddr>,
    },
    /// Prepare the training images of the resolved configuration on standard input (JSON).
    Prepare,
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
        /// Endpoint of an S3-compatible store that is not AWS [env: AWS_ENDPOINT_URL].
        #[arg(long)]
        s3_endpoint: Option<String>,
    },
}

fn main() -> ExitCode {
    // before anything touches libtorch: it looks its CUDA hooks up once
    let cuda = cuda::load(&cuda_folders());
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
        Command::Join { address, listen } => {
            let token = std::env::var("GANFLEET_TOKEN").unwrap_or_default();
            join::join(&address, &token, listen, &cuda)
        }
        Command::Prepare => prepare::from_stdin().map(|()| Exit::Ok),
        Command::Sample { url, seeds, out, s3_endpoint } => {
            let endpoint = s3_endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
            let plain = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
            let s3 = S3 { path_style: endpoint.is_some(), allow_http: plain, endpoint, ..S3::default() };
            sample::sample(&url, &seeds, &out, &s3).map(|()| Exit::Ok)
        }
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit().into()
        }
    }
}

/// Where libtorch's CUDA half may lie: beside the binary in a package, or in the set-up's view.
fn cuda_folders() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("../lib/cuda")));
    let view = option_env!("DEP_GANFLEET_NATIVE_LIB").map(|lib| PathBuf::from(lib).join("../cuda"));
    beside.into_iter().chain(view).collect()
}
