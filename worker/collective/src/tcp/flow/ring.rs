//! All-reduce in a ring: every rank passes partial sums to its right neighbour until each segment is complete somewhere, then
//! passes the complete segments on.
//!
//! The buffer is cut into one segment per rank. In step `t` of `2 (world - 1)`, rank `r` sends segment `r - t` and receives
//! segment `r - t - 1`: in the first half it adds its own numbers to what comes, in the second it keeps what comes. So what is
//! sent in one step is what came in the step before, and a byte may go as soon as it came: the steps overlap, and no step waits
//! for another to end. Every segment is summed once, along one chain, and copied: all ranks hold the same bits.

use super::{Flow, neighbours};
use crate::tree::add;
use bytemuck::Pod;
use std::{ops::AddAssign, ops::Range};

/// What came is passed on in multiples of this many bytes: fewer, larger packets for a little more latency.
const HOP_BYTES: usize = 128 << 10;

/// Position in the stream of segments.
#[derive(Clone, Copy)]
struct Cursor {
    step: usize,
    /// Bytes of the step's segment that are done.
    at: usize,
}

pub(in crate::tcp) struct Ring<'a, T> {
    numbers: &'a mut [T],
    /// Where partial sums arrive: small enough to stay in the cache.
    arrivals: &'a mut [T],
    /// Bytes in `arrivals` that are not yet a whole number.
    part: usize,
    rank: usize,
    world: usize,
    outgoing: Cursor,
    incoming: Cursor,
}

impl<'a, T: Pod + AddAssign> Ring<'a, T> {
    /// Sums `numbers`; `arrivals` holds at least one number.
    pub(in crate::tcp) fn new(rank: usize, world: usize, numbers: &'a mut [T], arrivals: &'a mut [T]) -> Self {
        let start = Cursor { step: 0, at: 0 };
        let mut ring = Self { numbers, arrivals, part: 0, rank, world, outgoing: start, incoming: start };
        ring.outgoing = ring.settle(start, 0);
        ring.incoming = ring.settle(start, 1);
        ring
    }

    fn steps(&self) -> usize {
        2 * (self.world - 1)
    }

    /// The bytes of the segment that is sent in `step`; what is received in a step is sent in the next.
    fn segment(&self, step: usize) -> Range<usize> {
        let index = (self.rank + 2 * self.world - step) % self.world;
        let (each, longer) = (self.numbers.len() / self.world, self.numbers.len() % self.world);
        let start = index * each + index.min(longer);
        let end = start + each + usize::from(index < longer);
        start * size_of::<T>()..end * size_of::<T>()
    }

    /// Moves a cursor over segments that are done, empty ones included. `ahead` is 0 for what goes and 1 for what comes.
    fn settle(&self, mut cursor: Cursor, ahead: usize) -> Cursor {
        while cursor.step < self.steps() && cursor.at == self.segment(cursor.step + ahead).len() {
            cursor = Cursor { step: cursor.step + 1, at: 0 };
        }
        cursor
    }

    fn total(&self, ahead: usize) -> usize {
        (0..self.steps()).map(|step| self.segment(step + ahead).len()).sum()
    }

    fn adding(&self) -> bool {
        self.incoming.step < self.world - 1
    }
}

impl<T: Pod + AddAssign> Flow for Ring<'_, T> {
    fn outbound(&self, peer: usize) -> Option<usize> {
        (peer == neighbours(self.rank, self.world).1).then(|| self.total(0))
    }

    fn inbound(&self, peer: usize) -> Option<usize> {
        (peer == neighbours(self.rank, self.world).0).then(|| self.total(1))
    }

    fn ready(&self, _peer: usize, _sent: usize) -> &[u8] {
        let Cursor { step, at } = self.outgoing;
        if step == self.steps() {
            return &[];
        }
        let segment = self.segment(step);
        let limit = if step == 0 || self.incoming.step >= step {
            segment.len()
        } else if self.incoming.step + 1 == step {
            self.incoming.at / HOP_BYTES * HOP_BYTES
        } else {
            0
        };
        let bytes = bytemuck::cast_slice(self.numbers);
        &bytes[segment.start + at..segment.start + limit.max(at)]
    }

    fn sent(&mut self, _peer: usize, count: usize) {
        self.outgoing.at += count;
        self.outgoing = self.settle(self.outgoing, 0);
    }

    fn room(&mut self, _peer: usize, _received: usize) -> &mut [u8] {
        let Cursor { step, at } = self.incoming;
        if step == self.steps() {
            return &mut [];
        }
        let segment = self.segment(step + 1);
        if self.adding() {
            let arrivals: &mut [u8] = bytemuck::cast_slice_mut(self.arrivals);
            let end = arrivals.len().min(segment.len() - at);
            &mut arrivals[self.part..end]
        } else {
            &mut bytemuck::cast_slice_mut(self.numbers)[segment.start + at..segment.end]
        }
    }

    fn received(&mut self, _peer: usize, count: usize) {
        if self.adding() {
            let size = size_of::<T>();
            let whole = (self.part + count) / size;
            let first = (self.segment(self.incoming.step + 1).start + self.incoming.at) / size;
            add(&mut self.numbers[first..first + whole], &self.arrivals[..whole]);
            let arrived = self.part + count;
            bytemuck::cast_slice_mut::<T, u8>(self.arrivals).copy_within(whole * size..arrived, 0);
            self.part = arrived - whole * size;
            self.incoming.at += whole * size;
        } else {
            self.incoming.at += count;
        }
        self.incoming = self.settle(self.incoming, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulate;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_in_pieces_of_any_size(world in 1usize..6, len in 0usize..40, pieces in proptest::collection::vec(0usize..23, 9)) {
            let mut buffers = (0..world).map(|r| (0..len).map(|i| (r * 100 + i) as f64).collect::<Vec<_>>()).collect::<Vec<_>>();
            let mut arrivals = vec![[0f64; 3]; world];
            let mut flows = buffers.iter_mut().zip(&mut arrivals).enumerate()
                .map(|(rank, (numbers, arrivals))| Ring::new(rank, world, numbers, arrivals))
                .collect::<Vec<_>>();
            let mut turn = 0;
            simulate(&mut flows, || { turn += 1; pieces[turn % pieces.len()] + usize::from(turn % 7 == 0) });
            drop(flows);
            let expected = (0..len).map(|i| (0..world).map(|r| (r * 100 + i) as f64).sum::<f64>()).collect::<Vec<_>>();
            prop_assert!(buffers.iter().all(|buffer| *buffer == expected));
        }
    }

    #[test]
    fn long_segments_go_in_hops_and_all_bits_agree() {
        let (world, len) = (3, 300_001);
        let mut buffers = (0..world)
            .map(|r| (0..len).map(|i| ((i * 7919 + r * 104_729) % 1000) as f32 * 0.1).collect::<Vec<_>>())
            .collect::<Vec<_>>();
        let mut arrivals = vec![vec![0f32; 1000]; world];
        let mut flows = buffers
            .iter_mut()
            .zip(&mut arrivals)
            .enumerate()
            .map(|(rank, (numbers, arrivals))| Ring::new(rank, world, numbers, arrivals))
            .collect::<Vec<_>>();
        simulate(&mut flows, || 77_777);
        drop(flows);
        let bits = |buffer: &[f32]| buffer.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&buffers[0]), bits(&buffers[1]));
        assert_eq!(bits(&buffers[0]), bits(&buffers[2]));
        let exact = |i: usize| (0..world).map(|r| ((i * 7919 + r * 104_729) % 1000) as f64 * 0.1).sum::<f64>();
        assert!((0..len).all(|i| (f64::from(buffers[0][i]) - exact(i)).abs() < 1e-4));
    }
}
