//! Broadcast along a chain: the root's bytes go to the first rank that wants them, and each passes on what it gets, as soon as
//! it gets it. Of a large buffer every rank sends at most one copy.
//!
//! The last one sends the root its header and nothing else, so that ranks that disagree about the root find out; ranks that are
//! not meant get the root's header, and a byte now and then, so that they know that it goes on.

use super::Flow;
use crate::Part;

/// Of so many bytes that go out, those who only hear of them get one: none of them takes a slow network for a silent one.
const BEAT_BYTES: usize = if cfg!(test) { 4 } else { 4 << 20 };

/// Most of these that go at once.
const BEATS: usize = 16;

pub(in crate::tcp) struct Chain<'a, 'b> {
    part: Part<'a, 'b>,
    rank: usize,
    /// From the root to the last rank that wants the bytes.
    route: Vec<usize>,
    /// This rank's place on it.
    place: Option<usize>,
    bytes: usize,
    /// How many of the bytes are the root's.
    have: usize,
    /// How many of them have gone to the next on the route.
    gone: usize,
    beats: [u8; BEATS],
}

impl<'a, 'b> Chain<'a, 'b> {
    pub(in crate::tcp) fn new(rank: usize, root: usize, to: &[u32], part: Part<'a, 'b>) -> Self {
        // in the order of the ring: neighbours by rank are often neighbours in the network
        let (before, behind) = to.split_at(to.partition_point(|&to| (to as usize) < root));
        let wanting = behind.iter().chain(before).map(|&rank| rank as usize);
        let route = [root].into_iter().chain(wanting).collect::<Vec<_>>();
        let (place, bytes) = (route.iter().position(|&on| on == rank), part.bytes());
        let have = if rank == root { bytes } else { 0 };
        Self { part, rank, route, place, bytes, have, gone: 0, beats: [0; BEATS] }
    }

    fn root(&self) -> usize {
        self.route[0]
    }

    /// Bytes that go to `rank`, which is on the route.
    fn due(&self, rank: usize) -> usize {
        if rank == self.root() { 0 } else { self.bytes }
    }

    /// Whether `rank` hears of it from the root, and nothing else.
    fn only_hears(&self, rank: usize) -> bool {
        !self.route.contains(&rank)
    }

    /// What goes to who only hears.
    fn beats_due(&self, of: usize) -> usize {
        if self.route.len() > 1 { of / BEAT_BYTES } else { 0 }
    }
}

impl Flow for Chain<'_, '_> {
    fn outbound(&self, peer: usize) -> Option<usize> {
        let place = self.place?;
        if self.route[(place + 1) % self.route.len()] == peer {
            return Some(self.due(peer));
        }
        (self.rank == self.root() && self.only_hears(peer)).then(|| self.beats_due(self.bytes))
    }

    fn inbound(&self, peer: usize) -> Option<usize> {
        match self.place {
            None => (peer == self.root()).then(|| self.beats_due(self.bytes)),
            Some(place) => {
                let before = self.route[(place + self.route.len() - 1) % self.route.len()];
                (peer == before).then(|| self.due(self.rank))
            }
        }
    }

    fn ready(&self, peer: usize, sent: usize) -> &[u8] {
        if self.only_hears(peer) {
            return &self.beats[..BEATS.min(self.beats_due(self.gone) - sent)];
        }
        if peer == self.root() {
            return &[];
        }
        let ready = match &self.part {
            Part::Gives(slices) => rest(slices.iter().copied(), sent),
            Part::Takes(slices) => rest(slices.iter().map(|slice| &**slice), sent),
            Part::Hears(_) => &[],
        };
        &ready[..ready.len().min(self.have - sent)]
    }

    fn sent(&mut self, peer: usize, count: usize) {
        if !self.only_hears(peer) {
            self.gone += count;
        }
    }

    fn room(&mut self, _peer: usize, received: usize) -> &mut [u8] {
        let beats = self.beats_due(self.bytes);
        match &mut self.part {
            Part::Takes(slices) => {
                let mut at = received;
                let slice = slices.iter_mut().find(|slice| {
                    let here = at < slice.len();
                    at -= if here { 0 } else { slice.len() };
                    here
                });
                slice.map_or(&mut [], |slice| &mut slice[at..])
            }
            Part::Hears(_) => &mut self.beats[..BEATS.min(beats - received)],
            Part::Gives(_) => &mut [],
        }
    }

    fn received(&mut self, _peer: usize, count: usize) {
        self.have += count;
    }
}

/// What follows the first `at` bytes within the slice to which the next one belongs.
fn rest<'s>(slices: impl Iterator<Item = &'s [u8]>, mut at: usize) -> &'s [u8] {
    for slice in slices {
        if at < slice.len() {
            return &slice[at..];
        }
        at -= slice.len();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::super::simulate;
    use super::*;

    /// World 4, from `root` to `to`, 11 bytes in three slices, of which one is empty; what every rank has in the end.
    fn play(root: usize, to: &[u32], piece: usize) -> Vec<[u8; 11]> {
        let mut buffers: Vec<[u8; 11]> = (0..4).map(|rank| [rank; 11]).collect();
        let source: [u8; 11] = std::array::from_fn(|i| 100 + i as u8);
        buffers[root] = source;
        let given = [&source[..4], &source[4..4], &source[4..]];
        let mut slices: Vec<_> = (buffers.iter_mut())
            .map(|bytes| {
                let (first, second) = bytes.split_at_mut(7);
                [&mut first[..], &mut [], second]
            })
            .collect();
        let part = |(rank, slices)| match rank {
            rank if rank == root => Part::Gives(&given),
            rank if to.contains(&(rank as u32)) => Part::Takes(slices),
            _ => Part::Hears(11),
        };
        let chain = |(rank, slices)| Chain::new(rank, root, to, part((rank, slices)));
        let mut flows: Vec<_> =
            slices.iter_mut().enumerate().map(|(rank, slices)| chain((rank, &mut slices[..]))).collect();
        let mut turn = 0;
        simulate(&mut flows, || {
            turn += 1;
            turn % piece
        });
        drop(flows);
        buffers
    }

    #[test]
    fn those_who_are_meant_end_with_the_roots_bytes_and_the_others_with_their_own() {
        let source: [u8; 11] = std::array::from_fn(|i| 100 + i as u8);
        for root in 0..4usize {
            for chosen in 0..16u32 {
                let to: Vec<u32> = (0..4).filter(|&rank| rank as usize != root && chosen >> rank & 1 == 1).collect();
                for piece in [5, 7, 101] {
                    for (rank, bytes) in play(root, &to, piece).into_iter().enumerate() {
                        let changed = rank == root || to.contains(&(rank as u32));
                        assert_eq!(bytes, if changed { source } else { [rank as u8; 11] }, "{root} to {to:?}");
                    }
                }
            }
        }
    }
}
