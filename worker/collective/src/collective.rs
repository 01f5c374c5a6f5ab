//! The contract between a trainer and whatever moves its numbers.
//!
//! Refuses convenience: what can be built from these calls is built by the caller.

use crate::{CollectiveError, TreeSum};
use half::bf16;
use std::{fmt, sync::Arc, time::Duration};

/// Longest contribution of one rank to [`Collective::all_gather_bytes`], in bytes.
pub const GATHER_BYTES_MAX: usize = 16 << 20;

/// Most bytes of a [`Collective::echo`].
pub const ECHO_BYTES_MAX: usize = 256 << 10;

/// What the ranks of one generation do together.
///
/// All ranks make the same calls in the same order; a backend that can see that they do not says so with
/// [`CollectiveError::Protocol`]. After any error but [`CollectiveError::Misuse`], buffers that were being written are
/// undefined and every later call returns that error at once.
///
/// Sums end with the same bits on every rank.
pub trait Collective: Send {
    /// Position of this worker, `0..world`.
    fn rank(&self) -> u32;

    /// Number of workers.
    fn world(&self) -> u32;

    /// Number of the formation; nothing of another one is ever taken in.
    fn generation(&self) -> u64;

    /// How long a call may wait without a single byte moving before it ends with [`CollectiveError::TimedOut`]. A slow network
    /// is no reason to give up while it delivers; a silent one is.
    fn set_deadline(&mut self, deadline: Duration);

    /// Replaces every number by its sum over all ranks. In an order that depends on the world: see
    /// [`Collective::tree_sum_f32`].
    ///
    /// # Errors
    /// Any [`CollectiveError`] but `Stale`.
    fn all_reduce_sum_f32(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError>;

    /// As [`Collective::all_reduce_sum_f32`], in bfloat16: half the bytes, and each partial sum is rounded to its 8 bits.
    ///
    /// # Errors
    /// Any [`CollectiveError`] but `Stale`.
    fn all_reduce_sum_bf16(&mut self, numbers: &mut [bf16]) -> Result<(), CollectiveError>;

    /// As [`Collective::all_reduce_sum_f32`], in double precision.
    ///
    /// # Errors
    /// Any [`CollectiveError`] but `Stale`.
    fn all_reduce_sum_f64(&mut self, numbers: &mut [f64]) -> Result<(), CollectiveError>;

    /// Every rank's bytes, in rank order. Lengths may differ, each at most [`GATHER_BYTES_MAX`].
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for too long a contribution, and any other but `Stale`.
    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// Brings the bytes of rank `root` to the ranks `to`, which are named in ascending order. The others hear that it goes on.
    /// All bring the same number of bytes, cut as each likes.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for ranks outside the world and for a part that is not this rank's, and any other but `Stale`.
    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError>;

    /// Returns once every rank has made this call.
    ///
    /// # Errors
    /// Any [`CollectiveError`] but `Stale`.
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// How long so many bytes, at most [`ECHO_BYTES_MAX`], take to each rank and back, by rank, all at once: what the network between
    /// them is like. Zero for this rank itself. In a large world fewer go.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for too many bytes, and any other but `Stale`.
    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError>;

    /// The sum over all groups in the one fixed order of [`TreeSum`], into `out`: the same bits for every number of ranks and
    /// every deal of the groups in contiguous runs by rank, also where ranks hold none. All zero for no groups at all.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] where groups are missing from `mine` or `out` has another width,
    /// [`CollectiveError::Protocol`] where the ranks' runs do not adjoin, and any other but `Stale`.
    fn tree_sum_f32(&mut self, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError>;

    /// Whether the generation is whole as far as this rank has heard. Waits for nothing and moves no data: it is for the time
    /// in which ranks are busy together by other means, say on their GPUs.
    ///
    /// # Errors
    /// [`CollectiveError::Aborted`], [`CollectiveError::PeerLost`], or the error that ended the communicator before. A rank that
    /// has left in good order is told as lost but ends nothing: what it had its part in may still complete.
    fn check(&mut self) -> Result<(), CollectiveError>;

    /// A handle that ends the call in progress and every later one, from any thread.
    fn aborter(&self) -> Aborter;

    /// What the calls so far have moved and taken.
    fn traffic(&self) -> Traffic;
}

/// What a rank brings to a [`Collective::broadcast`].
#[derive(Debug)]
pub enum Part<'a, 'b> {
    /// The root: these bytes go out, one slice after the other.
    Gives(&'a [&'b [u8]]),
    /// A rank to which they go: where they belong.
    Takes(&'a mut [&'b mut [u8]]),
    /// Any other: how many they are.
    Hears(usize),
}

impl Part<'_, '_> {
    /// Bytes that the call is about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Gives(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Self::Takes(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Self::Hears(bytes) => *bytes,
        }
    }
}

/// Ends a communicator from another thread: the blocked call returns [`CollectiveError::Aborted`] at once, and every other rank's
/// call fails as soon as the news arrives, whatever any peer is doing. Aborting what has ended does nothing.
#[derive(Clone)]
pub struct Aborter(Arc<dyn Fn() + Send + Sync>);

impl Aborter {
    /// For backends: `abort` must return at once and be harmless when called again.
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// Aborts.
    pub fn abort(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Aborter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aborter")
    }
}

/// What a communicator has done since it was formed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes this rank has sent, headers included.
    pub bytes: u64,
    /// Time spent within calls, waiting for others included.
    pub seconds: f64,
}
