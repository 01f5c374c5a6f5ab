//! Membership as a pure function: [`step()`] takes a cluster, one event and the time, and returns what is to be done.
//! Its two halves, [`record()`] and [`judge()`], are for events that come together.
//!
//! Nothing here opens a socket, starts a process, draws a random number or reads a clock; the shell (crate
//! `coordinator`) does all of that, so that every decision can be replayed, and tried against thousands of random
//! histories in a second.
//!
//! ```text
//! Gathering --enough are ready--> Running --all finished--> Draining --all gone--> Done
//!     |                            |   ^ \--operator: stop-->  |
//!     |        one is lost, or all |   | the survivors         |
//!     |        regroup             v   | are ready             |
//!     |                        Reconfiguring <--one is lost----+
//!     +--missing, or unusable------+------too few, or again and again-----------> Failed
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`event`] | what can happen, what can be ordered |
//! | [`reason`] | why: every decision carries a cause that a person can read |
//! | [`state`] | the policy, and what is known of each worker |
//! | [`cluster`] | what is known of the run as a whole |
//! | [`mod@step`] | recording a fact, then judging what follows |
//! | `membership` | losses, and one generation after another |
//! | `watch` | the generation at work: what it is asked for, and whether a rank hangs |
//! | `straggler` | whether a rank keeps the others waiting, and why |
//! | `apart` | workers that cannot reach each other |
//! | `slots` | places on this machine, and the processes in them |
//! | [`journal`] | what another coordinator has to know to go on |
//! | `takeover` | going on in the place of another coordinator |
//! | `ending` | how a run is ended, and the exit code it earns |
//! | `verdict` | what the facts say about one worker |
//! | [`invariants`] | what always holds, checked in debug builds and by the property tests |

mod apart;
pub mod cluster;
mod ending;
pub mod event;
pub mod invariants;
pub mod journal;
mod membership;
pub mod reason;
mod slots;
pub mod state;
pub mod step;
mod straggler;
mod takeover;
pub mod verdict;
mod watch;

pub use cluster::{Cluster, PAUSE};
pub use event::{Action, Assignment, Command, Event, ExitStatus, Force, SessionId, Standing, Stored, WorkerId};
pub use journal::{Entry, Memory};
pub use reason::{Cause, Reason, Refusal, Slowness};
pub use state::{Link, Loss, Member, OnLoss, Phase, Policy, Process};
pub use step::{judge, record, step};
pub use verdict::Outcome;
