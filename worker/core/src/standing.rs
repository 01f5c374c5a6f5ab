//! What a worker says of itself with every sign of life. Facts only.

use common::ids::{Generation, ImagesSeen, Rank};

/// What a worker is doing. Each has a time budget of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Waiting for its place.
    #[default]
    Join = 0,
    /// Opening the data set.
    Data = 1,
    /// Reading a checkpoint.
    Restore = 2,
    /// Training.
    Train = 3,
    /// Computing a quality metric.
    Evaluate = 4,
    /// Waiting for a checkpoint to be stored.
    Checkpoint = 5,
    /// Meeting the other ranks of a generation.
    Form = 6,
}

impl Activity {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Data => "data",
            Self::Restore => "restore",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Checkpoint => "checkpoint",
            Self::Form => "form",
        }
    }

    /// The activity of this number; the first one where there is none.
    #[must_use]
    pub fn from_u8(value: u8) -> Self {
        [Self::Join, Self::Data, Self::Restore, Self::Train, Self::Evaluate, Self::Checkpoint, Self::Form]
            .into_iter()
            .find(|activity| *activity as u8 == value)
            .unwrap_or_default()
    }
}

/// Where training is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Images seen.
    pub images: ImagesSeen,
    /// Index of the step in work within its round.
    pub phase: u32,
    /// Steps taken in the present generation.
    pub steps: u32,
    /// What the worker is doing.
    pub activity: Activity,
    /// Seconds that the last step took.
    pub step_seconds: f64,
    /// Seconds of a step that are this rank's own work, on average over the last ones, waiting for images included.
    pub busy_seconds: f64,
    /// Of those, waiting for images.
    pub data_seconds: f64,
    /// Seconds that some bytes take to most other ranks and back; 0 before that is known.
    pub way_seconds: f64,
    /// Statistical groups of the minibatch that this rank holds.
    pub share: u32,
    /// The generation that took the last step of the state that this worker holds, or put the run where it stands
    /// (`common::schedule::StateVersion`); 0 without a state. Of no account while a generation is at work.
    pub line: Generation,
}

/// What ended a worker's last generation. Nothing troubled it if all left together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// For a person; empty where there was none.
    pub why: String,
    /// Training diverged, on every rank alike.
    pub diverged: bool,
    /// The rank that this one could not reach any more, or that gave this one up for silent.
    pub unreached: Option<Rank>,
}

/// Where a worker stands, as every sign of life says anew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The generation it is in; with `ready` the last one it was in, 0 before its first.
    pub generation: Generation,
    /// It is prepared, in no generation, and waits for a place.
    pub ready: bool,
    /// It holds the state of the run.
    pub has_state: bool,
    /// With `ready`: what ended its last generation for it.
    pub trouble: Trouble,
    /// It was told to go, and wants no further place.
    pub leaving: bool,
    /// It has done its part of the step and waits for others.
    pub waiting: bool,
    /// Where training is.
    pub progress: Progress,
}
