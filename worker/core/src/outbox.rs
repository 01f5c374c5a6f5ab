//! Messages that count, numbered, and kept until the coordinator confirms them: said again on the next stream if one breaks.

use std::collections::VecDeque;

/// What is not yet known to have arrived.
#[derive(Clone, Debug)]
pub struct Outbox<M> {
    last: u64,
    unconfirmed: VecDeque<(u64, M)>,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self { last: 0, unconfirmed: VecDeque::new() }
    }
}

impl<M> Outbox<M> {
    /// Numbers a message, from 1, and keeps it until it is confirmed.
    pub fn keep(&mut self, message: M) -> u64 {
        self.last += 1;
        self.unconfirmed.push_back((self.last, message));
        self.last
    }

    /// Everything up to the number `received` has arrived.
    pub fn confirm(&mut self, received: u64) {
        while self.unconfirmed.front().is_some_and(|(sequence, _)| *sequence <= received) {
            self.unconfirmed.pop_front();
        }
    }

    /// What a new stream begins with, in order.
    pub fn unconfirmed(&self) -> impl Iterator<Item = &(u64, M)> {
        self.unconfirmed.iter()
    }

    /// The last message that is not confirmed.
    #[must_use]
    pub fn newest(&self) -> Option<&M> {
        self.unconfirmed.back().map(|(_, message)| message)
    }

    /// How many are not confirmed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Whether all is confirmed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unconfirmed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_confirmed_is_said_again_in_order() {
        let mut outbox = Outbox::default();
        assert_eq!(["a", "b", "c"].map(|message| outbox.keep(message)), [1, 2, 3]);
        outbox.confirm(1);
        assert_eq!(outbox.unconfirmed().copied().collect::<Vec<_>>(), [(2, "b"), (3, "c")]);
        // an old confirmation that comes late
        outbox.confirm(0);
        assert_eq!((outbox.len(), outbox.newest()), (2, Some(&"c")));
        outbox.confirm(3);
        assert!(outbox.is_empty());
        assert_eq!(outbox.keep("d"), 4);
    }
}
