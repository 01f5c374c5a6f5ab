//! [`Tcp`]: the collective of many workers, over TCP.
//!
//! - `mesh`, `dial`, `listener`, `handshake`, `socket`: how a generation forms.
//! - `flow`: what a call moves, as pure bookkeeping; `header`: which call it is.
//! - `engine`: drives a flow over the connections; `links`, `control`: how everything ends, and who is told why.

mod control;
mod dial;
mod engine;
mod flow;
mod handshake;
mod header;
mod links;
mod listener;
mod mesh;
mod socket;
mod tree_sum;

pub use listener::Listener;
pub use mesh::{DEADLINE_DEFAULT, Membership, Mesh, WORLD_MAX};

use crate::{
    Aborter, Collective, CollectiveError, GATHER_BYTES_MAX, Part, Traffic, TreeSum,
    solo::{check_broadcast, check_echo, check_gather, check_tree},
    tree::add,
};
use bytemuck::Pod;
use engine::Engine;
use flow::{Chain, Echo, Exchange, Ring};
use half::bf16;
use header::{Call, Kind};
use std::{
    fmt,
    ops::AddAssign,
    time::{Duration, Instant},
};

/// Up to this many bytes to all peers together, a sum goes straight from everybody to everybody: one step instead of
/// `2 (world - 1)`. About where the two take equally long.
const DIRECT_BYTES_MAX: usize = 192 << 10;

/// Most bytes that an echo sends to all peers together, each way.
const ECHOES_BYTES_MAX: usize = 4 << 20;

/// Room for partial sums on arrival: within a core's own cache.
const ARRIVAL_WORDS: usize = (256 << 10) / size_of::<u64>();

/// Room for all ranks' numbers in a direct sum, this rank's included.
const SCRATCH_WORDS: usize = 2 * DIRECT_BYTES_MAX / size_of::<u64>();

/// A member of a formed generation. Dropping it leaves: the others' next call fails with [`crate::How::Left`].
pub struct Tcp {
    engine: Engine,
    generation: u64,
    /// Where what comes waits to be added.
    scratch: Vec<u64>,
}

impl Tcp {
    fn new(engine: Engine, generation: u64) -> Self {
        Self { engine, generation, scratch: vec![0; SCRATCH_WORDS] }
    }

    fn index(&self) -> usize {
        self.engine.rank as usize
    }

    fn sum<T: Pod + AddAssign>(&mut self, kind: Kind, numbers: &mut [T]) -> Result<(), CollectiveError> {
        let (rank, world, size) = (self.index(), self.engine.world(), size_of_val(numbers));
        let call = Call::new(kind, size);
        if size * (world - 1) > DIRECT_BYTES_MAX || size > DIRECT_BYTES_MAX {
            let arrivals = bytemuck::cast_slice_mut(&mut self.scratch[..ARRIVAL_WORDS]);
            return self.engine.run(call, &mut Ring::new(rank, world, numbers, arrivals));
        }
        // Everybody adds everybody's numbers in rank order: the same additions, so the same bits.
        let len = numbers.len();
        let words = (world * size).div_ceil(size_of::<u64>());
        let all: &mut [T] = &mut bytemuck::cast_slice_mut(&mut self.scratch[..words])[..world * len];
        self.engine.run(
            call,
            &mut Exchange {
                rank,
                rows: &[bytemuck::cast_slice(numbers)],
                columns: &|_| 0..size,
                into: bytemuck::cast_slice_mut(all),
                spans: &|peer| peer * size..(peer + 1) * size,
            },
        )?;
        all[rank * len..][..len].copy_from_slice(numbers);
        numbers.copy_from_slice(&all[..len]);
        (1..world).for_each(|other| add(numbers, &all[other * len..][..len]));
        Ok(())
    }
}

impl Collective for Tcp {
    fn rank(&self) -> u32 {
        self.engine.rank
    }

    fn world(&self) -> u32 {
        self.engine.world() as u32
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.engine.set_deadline(deadline);
    }

    fn all_reduce_sum_f32(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.sum(Kind::SumF32, numbers)
    }

    fn all_reduce_sum_bf16(&mut self, numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        self.sum(Kind::SumBf16, numbers)
    }

    fn all_reduce_sum_f64(&mut self, numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.sum(Kind::SumF64, numbers)
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_gather(mine)?;
        let (rank, world) = (self.index(), self.engine.world());
        let mut lengths = vec![0u64; world];
        let length = mine.len() as u64;
        self.engine.run(
            Call::new(Kind::GatherLengths, 0),
            &mut Exchange {
                rank,
                rows: &[bytemuck::bytes_of(&length)],
                columns: &|_| 0..8,
                into: bytemuck::cast_slice_mut(&mut lengths),
                spans: &|peer| 8 * peer..8 * (peer + 1),
            },
        )?;
        lengths[rank] = length;
        let mut ends = Vec::with_capacity(world);
        let mut end = 0;
        for (peer, &length) in (0..).zip(&lengths) {
            match usize::try_from(length) {
                Ok(length) if length <= GATHER_BYTES_MAX => end += length,
                _ => {
                    let what = format!("it announces {length} bytes to gather, more than {GATHER_BYTES_MAX}");
                    return Err(self.engine.fate().end(CollectiveError::Protocol { rank: peer, what }));
                }
            }
            ends.push(end);
        }
        let span = |peer: usize| peer.checked_sub(1).map_or(0, |before| ends[before])..ends[peer];
        let mut all = vec![0; end];
        self.engine.run(
            Call::new(Kind::GatherBytes, end),
            &mut Exchange { rank, rows: &[mine], columns: &|_| 0..mine.len(), into: &mut all, spans: &span },
        )?;
        all[span(rank)].copy_from_slice(mine);
        Ok((0..world).map(|peer| all[span(peer)].to_vec()).collect())
    }

    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError> {
        check_broadcast(&part, root, to, self.rank(), self.world())?;
        let call = Call { kind: Kind::Broadcast, root, size: part.bytes() };
        self.engine.run(call, &mut Chain::new(self.index(), root as usize, to, part))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        let nothing = |_| 0..0;
        let rank = self.index();
        self.engine.run(
            Call::new(Kind::Barrier, 0),
            &mut Exchange { rank, rows: &[], columns: &nothing, into: &mut [], spans: &nothing },
        )
    }

    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        check_echo(bytes)?;
        // who is late would seem to be far away
        self.barrier()?;
        let (rank, world) = (self.index(), self.engine.world());
        let bytes = vec![0u8; bytes.min(ECHOES_BYTES_MAX / (world - 1).max(1)).max(1)];
        let mut times = vec![Duration::ZERO; world];
        let begun = Instant::now();
        let mut back = |peer: usize| times[peer] = begun.elapsed();
        let scratch = bytemuck::cast_slice_mut(&mut self.scratch[..ARRIVAL_WORDS]);
        self.engine
            .run(Call::new(Kind::Echo, bytes.len()), &mut Echo::new((rank, world), &bytes, scratch, &mut back))?;
        Ok(times)
    }

    fn tree_sum_f32(&mut self, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
        check_tree(mine, out)?;
        tree_sum::run(&mut self.engine, mine, out)
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.engine.check()
    }

    fn aborter(&self) -> Aborter {
        self.engine.fate().aborter()
    }

    fn traffic(&self) -> Traffic {
        Traffic { bytes: self.engine.bytes, seconds: self.engine.time.as_secs_f64() }
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tcp {{ generation: {}, rank: {}, world: {} }}",
            self.generation,
            self.engine.rank,
            self.engine.world()
        )
    }
}
