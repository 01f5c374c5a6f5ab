//! One undisturbed run that several tests look at. They read it, or copy it; nobody changes it.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tests::experiment::Experiment;
use tests::launched::End;
use tests::machine::{Machine, copy_folder};

/// The finished run.
pub struct Finished {
    pub machine: Machine,
    pub end: End,
    pub hash: String,
}

impl Finished {
    /// URL of the run: a path is one.
    pub fn url(&self) -> String {
        self.machine.run().display().to_string()
    }

    /// A machine of its own with a copy of the run, its images and its experiment file.
    pub fn copy(&self) -> Machine {
        let machine = Machine::new();
        copy_folder(&self.machine.path("runs"), &machine.path("runs"));
        machine.experiment(&Experiment::tiny());
        machine
    }
}

/// The tiny run with two workers, undisturbed.
pub fn finished() -> &'static Finished {
    static FINISHED: LazyLock<Finished> = LazyLock::new(|| {
        let folder: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finished");
        let machine = Machine::kept(folder);
        machine.experiment(&Experiment::tiny());
        let end = machine.launch(&[]).succeed();
        let hash = machine.state_hash(&machine.run().display().to_string());
        Finished { machine, end, hash }
    });
    &FINISHED
}
