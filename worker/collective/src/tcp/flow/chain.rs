//! Broadcast along the ring: each rank passes on what it gets, as soon as it gets it. Of a large buffer every rank sends at
//! most one copy.
//!
//! The last rank sends the root its header and nothing else, so that ranks that disagree about the root find out.

use super::{Flow, neighbours};

pub(in crate::tcp) struct Chain<'a> {
    bytes: &'a mut [u8],
    rank: usize,
    world: usize,
    root: usize,
    /// How many of the bytes are the root's.
    have: usize,
}

impl<'a> Chain<'a> {
    pub(in crate::tcp) fn new(rank: usize, world: usize, root: usize, bytes: &'a mut [u8]) -> Self {
        let have = if rank == root { bytes.len() } else { 0 };
        Self { bytes, rank, world, root, have }
    }

    /// Bytes that go to `rank`.
    fn due(&self, rank: usize) -> usize {
        if rank == self.root { 0 } else { self.bytes.len() }
    }
}

impl Flow for Chain<'_> {
    fn outbound(&self, peer: usize) -> Option<usize> {
        (peer == neighbours(self.rank, self.world).1).then(|| self.due(peer))
    }

    fn inbound(&self, peer: usize) -> Option<usize> {
        (peer == neighbours(self.rank, self.world).0).then(|| self.due(self.rank))
    }

    fn ready(&self, peer: usize, sent: usize) -> &[u8] {
        if peer == self.root { &[] } else { &self.bytes[sent..self.have] }
    }

    fn room(&mut self, _peer: usize, received: usize) -> &mut [u8] {
        if self.rank == self.root { &mut [] } else { &mut self.bytes[received..] }
    }

    fn received(&mut self, _peer: usize, count: usize) {
        self.have += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulate;
    use super::*;

    #[test]
    fn everybody_ends_with_the_roots_bytes() {
        for world in 1..5 {
            for root in 0..world {
                let mut buffers = (0..world).map(|r| vec![r as u8; 11]).collect::<Vec<_>>();
                let mut flows = buffers
                    .iter_mut()
                    .enumerate()
                    .map(|(rank, bytes)| Chain::new(rank, world, root, bytes))
                    .collect::<Vec<_>>();
                let mut turn = 0;
                simulate(&mut flows, || {
                    turn += 1;
                    turn % 5
                });
                drop(flows);
                assert!(buffers.iter().all(|bytes| *bytes == [root as u8; 11]));
            }
        }
    }
}
