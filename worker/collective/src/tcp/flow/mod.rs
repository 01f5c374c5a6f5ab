//! What one call moves between the ranks, as bookkeeping without sockets: which bytes may go to whom now, and where the next
//! bytes of whom belong.
//!
//! Refuses IO, clocks and errors: a flow is driven by the engine over sockets, and by a test over queues in memory, with
//! pieces of any size.

mod chain;
mod echo;
mod exchange;
mod ring;

pub(super) use chain::Chain;
pub(super) use echo::Echo;
pub(super) use exchange::Exchange;
pub(super) use ring::Ring;

/// One rank's side of one call.
pub(super) trait Flow {
    /// Bytes that go to `peer` in all; `None` where not even a header goes.
    fn outbound(&self, peer: usize) -> Option<usize>;

    /// Bytes that come from `peer` in all; `None` where not even a header comes.
    fn inbound(&self, peer: usize) -> Option<usize>;

    /// Bytes that may go to `peer` now, of which `sent` went before. Empty while they depend on bytes still to come.
    fn ready(&self, peer: usize, sent: usize) -> &[u8];

    /// `count` of the ready bytes went.
    fn sent(&mut self, _peer: usize, _count: usize) {}

    /// Where the next bytes of `peer` belong, of which `received` came before. Not empty before all have come.
    fn room(&mut self, peer: usize, received: usize) -> &mut [u8];

    /// `count` bytes came into that room.
    fn received(&mut self, _peer: usize, _count: usize) {}
}

/// The neighbours of `rank` in the ring: where its bytes come from, and where they go.
fn neighbours(rank: usize, world: usize) -> (usize, usize) {
    ((rank + world - 1) % world, (rank + 1) % world)
}

/// Runs the flows of a whole world over queues in memory, in pieces of sizes that `piece` draws, now and then 0; panics where
/// they get stuck.
#[cfg(test)]
fn simulate(flows: &mut [impl Flow], mut piece: impl FnMut() -> usize) {
    use std::collections::VecDeque;
    let world = flows.len();
    let mut queues = vec![vec![VecDeque::<u8>::new(); world]; world];
    let mut sent = vec![vec![0; world]; world];
    let mut received = vec![vec![0; world]; world];
    let mut idle = 0;
    loop {
        let (mut moved, mut open) = (false, false);
        for from in 0..world {
            for to in (0..world).filter(|&to| to != from) {
                assert_eq!(flows[from].outbound(to), flows[to].inbound(from), "from {from} to {to}");
                let Some(total) = flows[from].outbound(to) else { continue };
                let ready = flows[from].ready(to, sent[from][to]);
                let count = ready.len().min(piece()).min(total - sent[from][to]);
                queues[from][to].extend(&ready[..count]);
                flows[from].sent(to, count);
                sent[from][to] += count;
                let room = flows[to].room(from, received[from][to]);
                assert!(!room.is_empty() || received[from][to] == total);
                let taken = room.len().min(piece()).min(queues[from][to].len());
                room[..taken].iter_mut().zip(queues[from][to].drain(..taken)).for_each(|(a, b)| *a = b);
                flows[to].received(from, taken);
                received[from][to] += taken;
                moved |= count + taken > 0;
                open |= received[from][to] < total;
            }
        }
        if !open {
            return;
        }
        idle = if moved { 0 } else { idle + 1 };
        assert!(idle < 50, "stuck: {sent:?} {received:?}");
    }
}
