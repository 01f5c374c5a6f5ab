//! Collectives between the workers of one generation, on host memory: the sum of gradients, and the few other things that
//! all ranks have to do together.
//!
//! - [`Collective`] is the contract. [`Solo`] keeps it for one worker, [`Tcp`] for many over a ring of authenticated TCP
//!   connections. Where gradients lie on GPUs, others sum those, and this is how their ranks stay in touch.
//! - [`Listener`] and [`Mesh`] form a [`Tcp`] for one generation; the listener outlives it and forms the next.
//! - [`TreeSum`] and [`deal`] make a sum whose bits do not depend on the number of ranks.
//!
//! What holds for every backend: a call ends, with a result or an error, when the deadline has passed without progress; an
//! abort from another thread ends it at once, here and on every other rank; a lost rank is an error value that names it,
//! never a hang and never a panic. Bits are the same on all ranks after every sum.
//!
//! Refuses to know tensors, the coordinator, or what is being summed; and refuses to mend a broken generation: after an
//! error the communicator is dead, and a new generation is the only way on.

mod collective;
mod deal;
mod error;
mod solo;
mod tcp;
mod tree;

#[cfg(feature = "testing")]
pub mod contract;
#[cfg(feature = "testing")]
mod faulty;

pub use collective::{Aborter, Collective, ECHO_BYTES_MAX, GATHER_BYTES_MAX, Part, Traffic};
pub use deal::deal;
pub use error::{CollectiveError, How};
#[cfg(feature = "testing")]
pub use faulty::Faulty;
pub use solo::Solo;
pub use tcp::{DEADLINE_DEFAULT, Listener, Membership, Mesh, Tcp, WORLD_MAX};
pub use tree::{TreeSum, partials};
