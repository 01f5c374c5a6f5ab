//! The same bytes to each peer and back, to all of them at once: how far away they are, and how wide the way is.

use super::Flow;

pub(in crate::tcp) struct Echo<'a> {
    rank: usize,
    /// What goes there, and what goes back.
    bytes: &'a [u8],
    /// Where what comes is put down, and forgotten.
    scratch: &'a mut [u8],
    /// How much has come from each: first what that peer began, then what comes back.
    came: Vec<usize>,
    /// Is called when all has come back from a peer.
    back: &'a mut dyn FnMut(usize),
}

impl<'a> Echo<'a> {
    /// `scratch` holds a byte at least.
    pub(in crate::tcp) fn new(
        (rank, world): (usize, usize),
        bytes: &'a [u8],
        scratch: &'a mut [u8],
        back: &'a mut dyn FnMut(usize),
    ) -> Self {
        Self { rank, bytes, scratch, came: vec![0; world], back }
    }
}

impl Flow for Echo<'_> {
    fn outbound(&self, peer: usize) -> Option<usize> {
        (peer != self.rank).then_some(2 * self.bytes.len())
    }

    fn inbound(&self, peer: usize) -> Option<usize> {
        self.outbound(peer)
    }

    fn ready(&self, peer: usize, sent: usize) -> &[u8] {
        let once = self.bytes.len();
        match sent.checked_sub(once) {
            None => &self.bytes[sent..],
            Some(back) if self.came[peer] >= once => &self.bytes[back..],
            Some(_) => &[],
        }
    }

    fn room(&mut self, _peer: usize, received: usize) -> &mut [u8] {
        let left = 2 * self.bytes.len() - received;
        let room = left.min(self.scratch.len());
        &mut self.scratch[..room]
    }

    fn received(&mut self, peer: usize, count: usize) {
        self.came[peer] += count;
        if count > 0 && self.came[peer] == 2 * self.bytes.len() {
            (self.back)(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulate;
    use super::*;

    #[test]
    fn nothing_goes_back_before_it_has_come() {
        let (mut scratch, mut back) = ([0; 3], |_| {});
        let mut flow = Echo::new((0, 2), &[1, 2, 3], &mut scratch, &mut back);
        assert_eq!(flow.ready(1, 1), [2, 3]);
        flow.received(1, 2);
        assert!(flow.ready(1, 3).is_empty());
        flow.received(1, 1);
        assert_eq!((flow.ready(1, 3), flow.ready(1, 5)), (&[1, 2, 3][..], &[3][..]));
    }

    #[test]
    fn what_goes_out_comes_back_from_everybody_once() {
        let world = 4;
        for (bytes, room) in [(1, 1), (7, 3), (7, 100)] {
            for piece in [1, 2, 5, 100] {
                let content = vec![9u8; bytes];
                let mut scratch = vec![vec![0u8; room]; world];
                let mut back = vec![Vec::new(); world];
                let mut notes: Vec<_> =
                    back.iter_mut().map(|back: &mut Vec<usize>| move |peer| back.push(peer)).collect();
                let mut flows: Vec<_> = (notes.iter_mut().zip(&mut scratch).enumerate())
                    .map(|(rank, (note, scratch))| Echo::new((rank, world), &content, scratch, note))
                    .collect();
                simulate(&mut flows, || piece);
                drop(flows);
                drop(notes);
                for (rank, mut peers) in back.into_iter().enumerate() {
                    peers.sort_unstable();
                    assert_eq!(peers, (0..world).filter(|&peer| peer != rank).collect::<Vec<_>>());
                }
            }
        }
    }
}
