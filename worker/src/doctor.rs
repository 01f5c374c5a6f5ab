//! `worker doctor`: what this program finds on this machine, as one line of JSON for `coordinator doctor`, which judges it.

use crate::environment;
use crate::failure::Failure;
use children::gpus;
use native::cuda::Cuda;
use native::nccl::Library;
use serde_json::{Value, json};
use std::io::Write;

/// Says it on standard output.
///
/// # Errors
/// Nobody reads it.
pub fn say(cuda: &Cuda) -> Result<(), Failure> {
    let said = writeln!(std::io::stdout(), "{}", findings(cuda));
    said.map_err(|error| Failure::Io { doing: "say what was found".to_owned(), error })
}

/// What is found.
#[must_use]
pub fn findings(cuda: &Cuda) -> Value {
    let loaded = matches!(cuda, Cuda::Loaded(_));
    let nccl = Library::load(&environment::library_folders());
    json!({
        "build": env!("CARGO_PKG_VERSION"),
        "libtorch": environment::LIBTORCH,
        "isa": environment::isa(),
        "cuda": match cuda {
            Cuda::Loaded(_) => "loaded",
            Cuda::NoDriver => "no driver",
            Cuda::NoLibrary => "no library",
            Cuda::Failed(why) => why,
        },
        "devices": gpus::visible().len(),
        "gpus": if loaded { tch::Cuda::device_count() } else { 0 },
        "nccl": nccl.as_ref().ok().map(|library| format!("version {}, {}", library.version(), library.found().display())),
        "nccl_trouble": nccl.err().map_or_else(String::new, |error| error.to_string()),
        "nccl_environment": nccl_environment(),
        "cache": environment::cache_folder(),
    })
}

/// The variables that NCCL reads, in the order of their names.
fn nccl_environment() -> Vec<String> {
    let mut found: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)))
        .filter(|variable| variable.starts_with("NCCL_"))
        .collect();
    found.sort_unstable();
    found
}
