//! Other people's networks, in a Python with PyTorch where this machine has one.

use crate::repository;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code of `scripts/peer-python` for "not laid".
const NEEDS: i32 = 69;

/// Has `original_networks.py` load what the case in `folder` names. Where there is no such Python, a line says so.
///
/// # Panics
/// When something does not load, or when `GANFLEET_NO_SKIP=1` forbids to go without.
pub fn loads(folder: &Path) {
    let Some(python) = python() else { return };
    let script = repository().join("tests/python/original_networks.py");
    let answer = Command::new(python).arg(script).arg(folder).output().expect("Python can be started");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
}

fn python() -> Option<PathBuf> {
    let script = repository().join("scripts/peer-python");
    let answer = Command::new(script).output().expect("scripts/peer-python can be started");
    if answer.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim()));
    }
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(answer.status.code(), Some(NEEDS), "{said}");
    let needs = said.trim().trim_start_matches("peer-python: needs ");
    assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
    println!("skipped: needs {needs}");
    None
}
