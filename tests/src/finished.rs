//! An undisturbed run to compare others with. Tests read it, or copy it; nobody changes it.

use crate::experiment::Experiment;
use crate::launched::End;
use crate::machine::{Machine, copy_folder};
use std::path::PathBuf;

/// The finished run.
#[derive(Debug)]
pub struct Finished {
    /// Where it ran.
    pub machine: Machine,
    /// How it ended.
    pub end: End,
    /// The state hash of its last checkpoint.
    pub hash: String,
}

impl Finished {
    /// Runs `experiment` to its end, in `folder`, which is emptied first and stays.
    ///
    /// # Panics
    /// When the run fails.
    #[must_use]
    pub fn run(folder: PathBuf, experiment: &Experiment) -> Self {
        let machine = Machine::kept(folder);
        machine.experiment(experiment);
        let end = machine.launch(&[]).succeed();
        let hash = machine.state_hash(&machine.run().display().to_string());
        Self { machine, end, hash }
    }

    /// URL of the run: a path is one.
    #[must_use]
    pub fn url(&self) -> String {
        self.machine.run().display().to_string()
    }

    /// A machine of its own with a copy of the tiny run, its images and its experiment file.
    #[must_use]
    pub fn copy(&self) -> Machine {
        let machine = Machine::new();
        copy_folder(&self.machine.path("runs"), &machine.path("runs"));
        machine.experiment(&Experiment::tiny());
        machine
    }
}
