//! The life of a worker as pure functions: what it obeys, what it says of itself, what it keeps until it is confirmed, when it is
//! an orphan, and what ranks agree on.
//!
//! Nothing here opens a socket, waits, reads a clock or knows a tensor. The shells are `agent`, which speaks to the coordinator,
//! and `worker`, which trains; the simulator drives the same code through thousands of histories.
//!
//! ```text
//!            ready, and a later generation
//! waiting ----------------------------------> in a generation --all agree: complete, stop, orphaned--> gone
//!   |  ^                                          |
//!   |  +--a peer is lost, aborted, all regroup----+
//!   +--told to leave, or no coordinator: store alone--> gone
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`place`] | the generation that a worker is in, and what it is told there |
//! | [`standing`] | what every sign of life says |
//! | [`outbox`] | numbered messages until they are confirmed |
//! | [`away`] | broken streams: when to try again, and when nobody is there any more |
//! | [`agreement`] | whose state the ranks of a generation go on from |
//! | [`flags`] | what ranks tell each other with every step, and what follows from the sum |
//! | [`ending`] | what follows when a generation ends for a worker |
//! | [`restarts`] | what a node does when one of its workers has ended |

pub mod agreement;
pub mod away;
pub mod ending;
pub mod flags;
pub mod outbox;
pub mod place;
pub mod restarts;
pub mod standing;

pub use agreement::{Agreement, agree};
pub use away::{Away, Epoch, Retry, desertion, heartbeat};
pub use ending::{After, Ending, after};
pub use flags::{Agreed, FLAGS, Flags, Wishes};
pub use outbox::Outbox;
pub use place::{Commands, Effect, Place, Word};
pub use standing::{Activity, Progress, Standing, Trouble};
