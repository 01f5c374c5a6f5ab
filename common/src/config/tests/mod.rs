//! What the pieces of this module do together. No test touches anything but the files of this repository.

mod layering;
mod presets;
mod problems;
mod round_trip;

use super::*;
use crate::config::resolved::RunConfig;
use std::path::Path;

const HOME: &str = "/home/ada/experiments";
const DESK: &str = "/home/ada/desk";

/// A file with no more than it must have.
const SMALL: &str = "name = \"small\"\n[data]\nsource = \"faces.zip\"\n";

/// Resolves a file together with environment and `--set`, for 1 worker.
fn layered(text: &str, env: &[(&str, &str)], set: &[&str]) -> Result<Resolved, ConfigError> {
    for_workers(text, env, set, 1)
}

fn for_workers(text: &str, env: &[(&str, &str)], set: &[&str], workers: u32) -> Result<Resolved, ConfigError> {
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
    let base = Base::File { path: "run.toml", text, folder: Path::new(HOME) };
    resolve(&Layers { base, env: &env, set: &set, working_dir: Path::new(DESK) }, workers)
}

/// Resolves a run that exists together with `--set`.
fn amended(run: &RunConfig, set: &[&str]) -> Result<Resolved, ConfigError> {
    let set: Vec<_> = set.iter().map(|text| (*text).to_owned()).collect();
    resolve(&Layers { base: Base::Run(run), env: &[], set: &set, working_dir: Path::new(DESK) }, 1)
}

fn config(text: &str) -> RunConfig {
    layered(text, &[], &[]).unwrap_or_else(|error| panic!("{error}")).config
}

/// Every file of `experiments/`, with its name.
fn experiments() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    files.sort();
    files
}
