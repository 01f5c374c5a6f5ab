//! A collective that fails when it is told to: for tests of what stands above a collective.
//!
//! Refuses randomness: a fault happens at a call that the test names, every time.

use crate::{Aborter, Collective, CollectiveError, How, Part, Traffic, TreeSum};
use half::bf16;
use std::{collections::BTreeMap, thread, time::Duration};

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Fail,
    Delay(Duration),
    Lose(u32),
}

/// Passes every call on to another backend, but for the planned faults. Calls are counted from 0.
///
/// ```
/// use collective::{Collective, CollectiveError, Faulty, Solo};
///
/// let mut group = Faulty::new(Solo::new(1)).fail_at(1);
/// assert!(group.barrier().is_ok());
/// assert!(matches!(group.barrier(), Err(CollectiveError::Aborted)));
/// assert!(group.barrier().is_err(), "it stays dead");
/// ```
#[derive(Debug)]
pub struct Faulty<C> {
    inner: C,
    calls: u64,
    plan: BTreeMap<u64, Fault>,
    dead: Option<CollectiveError>,
}

impl<C: Collective> Faulty<C> {
    /// Without a plan: passes everything on.
    pub fn new(inner: C) -> Self {
        Self { inner, calls: 0, plan: BTreeMap::new(), dead: None }
    }

    /// At this call the communicator is aborted, as by [`Aborter::abort`] on this rank.
    #[must_use]
    pub fn fail_at(self, call: u64) -> Self {
        self.plan(call, Fault::Fail)
    }

    /// This call begins late by `delay`.
    #[must_use]
    pub fn delay_at(self, call: u64, delay: Duration) -> Self {
        self.plan(call, Fault::Delay(delay))
    }

    /// At this call rank `peer` is found lost; the other ranks see this one abort.
    #[must_use]
    pub fn lose_peer_at(self, call: u64, peer: u32) -> Self {
        self.plan(call, Fault::Lose(peer))
    }

    fn plan(mut self, call: u64, fault: Fault) -> Self {
        self.plan.insert(call, fault);
        self
    }

    /// Counts a call and lets its fault happen.
    fn begin(&mut self) -> Result<&mut C, CollectiveError> {
        if let Some(cause) = &self.dead {
            return Err(cause.clone());
        }
        let fault = self.plan.get(&self.calls).copied();
        self.calls += 1;
        let cause = match fault {
            None => return Ok(&mut self.inner),
            Some(Fault::Delay(delay)) => {
                thread::sleep(delay);
                return Ok(&mut self.inner);
            }
            Some(Fault::Fail) => CollectiveError::Aborted,
            Some(Fault::Lose(rank)) => CollectiveError::PeerLost { rank, how: How::Closed },
        };
        self.inner.aborter().abort();
        self.dead = Some(cause.clone());
        Err(cause)
    }
}

impl<C: Collective> Collective for Faulty<C> {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn world(&self) -> u32 {
        self.inner.world()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.inner.set_deadline(deadline);
    }

    fn all_reduce_sum_f32(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.begin()?.all_reduce_sum_f32(numbers)
    }

    fn all_reduce_sum_bf16(&mut self, numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        self.begin()?.all_reduce_sum_bf16(numbers)
    }

    fn all_reduce_sum_f64(&mut self, numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.begin()?.all_reduce_sum_f64(numbers)
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.begin()?.all_gather_bytes(mine)
    }

    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError> {
        self.begin()?.broadcast(part, root, to)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.begin()?.barrier()
    }

    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        self.begin()?.echo(bytes)
    }

    fn tree_sum_f32(&mut self, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
        self.begin()?.tree_sum_f32(mine, out)
    }

    /// Not counted as a call: how often somebody looks is nobody's plan.
    fn check(&mut self) -> Result<(), CollectiveError> {
        match &self.dead {
            Some(cause) => Err(cause.clone()),
            None => self.inner.check(),
        }
    }

    fn aborter(&self) -> Aborter {
        self.inner.aborter()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }
}
