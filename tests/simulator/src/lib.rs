//! Whole runs on a virtual clock and network: the production code of `coordinator-core` and `worker-core`, and around it a world that
//! one seed decides, with everything in it that goes wrong.
//!
//! Time is a number, the network a queue, training a count of steps. A seed gives the same story every time. Nothing here decides what
//! a coordinator or a worker does; it only carries out, as the shells `coordinator`, `agent` and `worker` do, and checks after
//! every step what must always hold ([`invariants`]).
//!
//! A seed that fails is named with its story and the command that tells it again ([`replay`]):
//!
//!     cargo run -p simulator --example simulate -- --seed N --story
//!
//! Seeds that have found something are kept: those of planted defects in `mutations.toml`, those of real ones in `regressions.toml`
//! (`tests/mutations.rs`).
//!
//! | file | holds |
//! |---|---|
//! | [`plan`] | what a seed stands for: policy, delays, faults |
//! | `world` | the queue, and the faults |
//! | `streams` | messages between workers and coordinator |
//! | `coordinator` | the shell around `coordinator-core` |
//! | `succession` | one coordinator in the place of another |
//! | `worker` | the shell around `worker-core` |
//! | `training` | a worker's training thread |
//! | `ranks` | calls between the ranks of a generation |
//! | [`history`] | every step that was ever taken |
//! | [`invariants`] | what must hold |

pub mod chance;
mod coordinator;
pub mod history;
pub mod invariants;
pub mod plan;
mod ranks;
mod streams;
mod succession;
mod training;
mod worker;
mod world;

use invariants::Broken;
use plan::Plan;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// What came of one schedule.
#[derive(Clone, Debug)]
pub struct Report {
    /// What did not hold, if anything.
    pub broken: Option<Broken>,
    /// Things that happened.
    pub events: u64,
    /// What happened in words, if asked for.
    pub story: Vec<String>,
    /// Generations that began.
    pub generations: u64,
    /// Coordinators that took it, one after the other.
    pub coordinators: usize,
    /// How it ended.
    pub ended: String,
}

/// Runs the schedule of `seed`; with `tells`, its story is written down.
#[must_use]
pub fn run(seed: u64, tells: bool) -> Report {
    let mut world = World::new(Plan::new(seed), tells);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let broken = match ran {
        Ok(holds) => holds.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Broken { invariant: "nothing panics", found: text.unwrap_or_default() })
        }
    };
    let last = world.present();
    let ended =
        last.cluster.outcome().map_or_else(|| format!("{:?}", last.phase()), |outcome| outcome.reason.to_string());
    let coordinators = world.coordinators.len();
    Report {
        broken,
        events: world.events,
        story: world.story.take().unwrap_or_default(),
        generations: world.history.generation.0,
        coordinators,
        ended,
    }
}

/// The command that tells the story of a seed.
#[must_use]
pub fn replay(seed: u64) -> String {
    format!("cargo run -p simulator --example simulate -- --seed {seed} --story")
}
