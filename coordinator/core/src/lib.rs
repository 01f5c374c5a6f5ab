//! Membership as a pure function: [`step()`] takes a cluster, one event and the time, and returns what is to be done.
//!
//! Nothing here opens a socket, starts a process, draws a random number or reads a clock; the shell (crate `coordinator`)
//! does all of that, so that every decision can be replayed, and tried against thousands of random histories in a second.
//!
//! ```text
//! Gathering --all joined--> Running --all finished--> Draining --all gone--> Done
//!     |                        |  \---operator: stop--->  |
//!     +--missing, or one died--+-------one is lost------->+----------------> Failed
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`event`] | what can happen, what can be ordered |
//! | [`reason`] | why: every decision carries a cause that a person can read |
//! | [`state`] | what is known of each worker, and the policy |
//! | [`mod@step`] | recording a fact, then judging what follows |
//! | [`verdict`] | whose fault an end was, and the exit code it earns |
//! | [`invariants`] | what always holds, checked in debug builds and by the property tests |

pub mod event;
pub mod invariants;
pub mod reason;
pub mod state;
pub mod step;
pub mod verdict;

pub use event::{Action, Assignment, Command, Event, ExitStatus, Force, SessionId, Stored, WorkerId};
pub use reason::{Cause, Reason, Refusal};
pub use state::{Cluster, Link, Member, Phase, Policy, Process};
pub use step::step;
pub use verdict::Outcome;
