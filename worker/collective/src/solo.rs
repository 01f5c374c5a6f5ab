//! The collective of a worker that is alone: a real backend, for which every sum is already there.
//!
//! Refuses what a larger world would refuse, so that a program tried with one worker fails where it would fail with many.

use crate::{Aborter, Collective, CollectiveError, ECHO_BYTES_MAX, GATHER_BYTES_MAX, Part, Traffic, TreeSum};
use half::bf16;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// World of one.
#[derive(Debug)]
pub struct Solo {
    generation: u64,
    aborted: Arc<AtomicBool>,
}

impl Solo {
    /// The only member of `generation`.
    #[must_use]
    pub fn new(generation: u64) -> Self {
        Self { generation, aborted: Arc::default() }
    }

    fn alive(&self) -> Result<(), CollectiveError> {
        if self.aborted.load(Ordering::Acquire) { Err(CollectiveError::Aborted) } else { Ok(()) }
    }
}

impl Collective for Solo {
    fn rank(&self) -> u32 {
        0
    }

    fn world(&self) -> u32 {
        1
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn set_deadline(&mut self, _deadline: Duration) {}

    fn all_reduce_sum_f32(&mut self, _numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn all_reduce_sum_bf16(&mut self, _numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn all_reduce_sum_f64(&mut self, _numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.alive()?;
        check_gather(mine)?;
        Ok(vec![mine.to_vec()])
    }

    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError> {
        self.alive()?;
        check_broadcast(&part, root, to, 0, 1)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        self.alive()?;
        check_echo(bytes)?;
        Ok(vec![Duration::ZERO])
    }

    fn tree_sum_f32(&mut self, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
        self.alive()?;
        check_tree(mine, out)?;
        if mine.mine() != (0..mine.groups()) {
            let what = format!("the only rank holds groups {:?} of {}", mine.mine(), mine.groups());
            return Err(CollectiveError::Misuse(what));
        }
        match mine.rows()?.next() {
            Some((_, sum)) => out.copy_from_slice(sum),
            None => out.fill(0.0),
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn aborter(&self) -> Aborter {
        let aborted = Arc::clone(&self.aborted);
        Aborter::new(move || aborted.store(true, Ordering::Release))
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// Refuses too long a contribution to a gather.
pub(crate) fn check_gather(mine: &[u8]) -> Result<(), CollectiveError> {
    if mine.len() <= GATHER_BYTES_MAX {
        return Ok(());
    }
    let what = format!("{} bytes to gather, at most {GATHER_BYTES_MAX} per rank: broadcast them in pieces", mine.len());
    Err(CollectiveError::Misuse(what))
}

/// Refuses too long an echo.
pub(crate) fn check_echo(bytes: usize) -> Result<(), CollectiveError> {
    if bytes <= ECHO_BYTES_MAX {
        return Ok(());
    }
    Err(CollectiveError::Misuse(format!("an echo of {bytes} bytes, at most {ECHO_BYTES_MAX}")))
}

/// Refuses ranks outside the world or out of order, and what is not the part of `rank`.
pub(crate) fn check_broadcast(
    part: &Part<'_, '_>,
    root: u32,
    to: &[u32],
    rank: u32,
    world: u32,
) -> Result<(), CollectiveError> {
    let known =
        root < world && !to.contains(&root) && to.is_sorted_by(|a, b| a < b) && to.last().is_none_or(|&r| r < world);
    let fits = match part {
        Part::Gives(_) => rank == root,
        Part::Takes(_) => to.contains(&rank),
        Part::Hears(_) => rank != root && !to.contains(&rank),
    };
    if known && fits {
        return Ok(());
    }
    let what = format!("broadcast from rank {root} to {to:?} in a world of {world}, where rank {rank} brings {part:?}");
    Err(CollectiveError::Misuse(what))
}

/// Refuses a sum with missing groups, or an output of another width.
pub(crate) fn check_tree(mine: &TreeSum, out: &[f32]) -> Result<(), CollectiveError> {
    mine.complete()?;
    if mine.width() == out.len() {
        return Ok(());
    }
    let what = format!("a tree sum of {} numbers into room for {}", mine.width(), out.len());
    Err(CollectiveError::Misuse(what))
}
