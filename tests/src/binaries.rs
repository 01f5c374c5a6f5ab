//! Where the binaries under test are. Builds them only where there are none: what is tested is what the developer built.

use crate::repository;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Environment variable that names the folder of the binaries.
pub const FOLDER: &str = "GANFLEET_BIN_DIR";

/// The `coordinator` under test.
///
/// # Panics
/// When it is neither there nor can be built.
#[must_use]
pub fn coordinator() -> &'static Path {
    static COORDINATOR: LazyLock<PathBuf> = LazyLock::new(|| folder().join("coordinator"));
    &COORDINATOR
}

/// An example of a package's.
///
/// # Panics
/// When it is neither there nor can be built.
#[must_use]
pub fn example(package: &str, name: &str) -> PathBuf {
    let folder = folder();
    let program = folder.join("examples").join(name);
    if !program.is_file() {
        cargo_build(&folder, &["-p", package, "--example", name]);
    }
    assert!(program.is_file(), "{} is not there; is {FOLDER} a folder without examples?", program.display());
    program
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = PathBuf::from(folder);
        assert!(complete(&folder), "{FOLDER} is {}, where coordinator and worker are not", folder.display());
        return folder;
    }
    // target/debug/deps/<this test>
    let test = std::env::current_exe().expect("the system knows where this test is");
    let folder = test.parent().and_then(Path::parent).expect("cargo puts tests into target/<profile>/deps");
    let lock = File::create(folder.join("end-to-end.lock")).expect("the target folder can be written");
    lock.lock().expect("the target folder can be locked");
    if !complete(folder) {
        build(folder);
    }
    folder.to_owned()
}

fn complete(folder: &Path) -> bool {
    ["coordinator", "worker"].iter().all(|name| folder.join(name).is_file())
}

fn build(folder: &Path) {
    cargo_build(folder, &["-p", "coordinator", "-p", "worker"]);
    assert!(complete(folder), "coordinator and worker are not in {}", folder.display());
}

fn cargo_build(folder: &Path, what: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("build").args(what).current_dir(repository());
    if folder.file_name().is_some_and(|profile| profile == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "{} cannot be built", what.join(" "));
}
