//! The `coordinator` binary: parse, run, say what went wrong, exit as documented. Everything else is in the library.

use clap::Parser;
use common::exit::Exit;
use coordinator::cli::{Cli, LogFormat, run};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Threads that wait for a disk go away so soon after it: with the usual ten seconds each burst of work would leave some for ever.
const IDLE_THREADS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    coordinator::machine::raise_open_files();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(2).thread_keep_alive(IDLE_THREADS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot be started: {error}"));
            return Exit::Internal.into();
        }
    };
    let exit = match runtime.block_on(run(cli.command)) {
        Ok(exit) => exit,
        Err(failure) => {
            complain(&failure.message);
            failure.exit
        }
    };
    // whatever still runs in the background has nothing left to say
    runtime.shutdown_background();
    exit.into()
}

/// Standard error may be a pipe that nobody reads any more: that is no reason to fail otherwise than asked.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "error: {message}");
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // its complaint about a standard error that is gone would itself go there, and panic
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false);
    match format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
