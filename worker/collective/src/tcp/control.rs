//! What the ranks of one generation tell each other beside the data, on a connection of its own that is never congested: whom
//! they wait for, and why they leave.
//!
//! Refuses to judge: notes of fixed size, to bytes and back.

use crate::{CollectiveError, How};

/// Bytes of a note on the wire.
pub(super) const NOTE_BYTES: usize = 16;

/// One message of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// The sender waits for rank `on` in its call number `call`.
    Waiting { call: u64, on: u32 },
    /// The sender's last word: its communicator is over because of what was seen of rank `origin`.
    Farewell { origin: u32, how: How },
}

impl Note {
    pub(super) fn encode(self) -> [u8; NOTE_BYTES] {
        let (tag, how, rank, call) = match self {
            Self::Waiting { call, on } => (1, 0, on, call),
            Self::Farewell { origin, how } => (2, code(how), origin, 0),
        };
        let mut bytes = [0; NOTE_BYTES];
        bytes[0] = tag;
        bytes[1] = how;
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(rank));
        bytes[8..].copy_from_slice(&u64::to_le_bytes(call));
        bytes
    }

    /// `None` for bytes that no member sends.
    pub(super) fn decode(bytes: [u8; NOTE_BYTES]) -> Option<Self> {
        let [tag, how, _, _, r0, r1, r2, r3, call @ ..] = bytes;
        let rank = u32::from_le_bytes([r0, r1, r2, r3]);
        match tag {
            1 => Some(Self::Waiting { call: u64::from_le_bytes(call), on: rank }),
            2 => HOWS.get(usize::from(how)).map(|&how| Self::Farewell { origin: rank, how }),
            _ => None,
        }
    }

    /// What rank `me` tells its peers when its communicator ends with `cause`.
    pub(super) fn farewell(me: u32, cause: &CollectiveError) -> Self {
        let (origin, how) = match *cause {
            CollectiveError::PeerLost { how: How::GaveUp, .. } => (me, How::Silent),
            CollectiveError::PeerLost { rank, how } => (rank, how),
            CollectiveError::TimedOut { waiting_for, .. } => (waiting_for, How::Silent),
            CollectiveError::Aborted => (me, How::Aborted),
            CollectiveError::Protocol { rank, .. } => (rank, How::Failed),
            CollectiveError::Stale { .. }
            | CollectiveError::Misuse(_)
            | CollectiveError::Device(_)
            | CollectiveError::Io { .. } => (me, How::Failed),
        };
        Self::Farewell { origin, how }
    }
}

/// What rank `me` makes of a farewell that rank `peer` sent.
pub(super) fn understand(me: u32, peer: u32, origin: u32, how: How) -> CollectiveError {
    match how {
        How::Silent if origin == me => CollectiveError::PeerLost { rank: peer, how: How::GaveUp },
        _ if origin == me => CollectiveError::PeerLost { rank: peer, how },
        _ => CollectiveError::PeerLost { rank: origin, how },
    }
}

/// The rank at the end of the chain of waiting: `me` waits for `on`, and `waits[r]` is whom rank `r` said it waits for. Where all
/// wait for each other nobody is to blame but the nearest.
pub(super) fn culprit(me: u32, on: u32, world: usize, waits: impl Fn(u32) -> Option<u32>) -> u32 {
    let mut end = on;
    for _ in 0..world {
        match waits(end) {
            None => return end,
            Some(next) if next == me => return on,
            Some(next) => end = next,
        }
    }
    on
}

/// Every [`How`], at the place of its code.
const HOWS: [How; 7] = [How::Closed, How::Aborted, How::Left, How::Silent, How::GaveUp, How::Refused, How::Failed];

fn code(how: How) -> u8 {
    match how {
        How::Closed => 0,
        How::Aborted => 1,
        How::Left => 2,
        How::Silent => 3,
        How::GaveUp => 4,
        How::Refused => 5,
        How::Failed => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notes_survive_the_wire() {
        let farewells = HOWS.map(|how| Note::Farewell { origin: 70_000, how });
        for note in farewells.into_iter().chain([Note::Waiting { call: u64::MAX - 5, on: 3 }]) {
            assert_eq!(Note::decode(note.encode()), Some(note));
        }
    }

    #[test]
    fn the_end_of_the_chain_is_to_blame() {
        // 1 waits for 0, 0 for 3, 2 for 1; 3 says nothing.
        let waits = |rank: u32| [Some(3), Some(0), Some(1), None][rank as usize];
        assert_eq!(culprit(1, 0, 4, waits), 3);
        assert_eq!(culprit(2, 1, 4, waits), 3);
        assert_eq!(culprit(0, 3, 4, waits), 3);
        let circle = |rank: u32| Some((rank + 1) % 4);
        assert_eq!(culprit(0, 1, 4, circle), 1);
        let apart = |rank: u32| [None, Some(2), Some(3), Some(1)][rank as usize];
        assert_eq!(culprit(0, 1, 4, apart), 1, "a circle that this rank is not part of");
    }

    #[test]
    fn a_rank_that_was_given_up_on_learns_by_whom() {
        let Note::Farewell { origin, how } =
            Note::farewell(1, &CollectiveError::TimedOut { after: std::time::Duration::from_secs(1), waiting_for: 2 })
        else {
            panic!("not a farewell")
        };
        let seen = |me| match understand(me, 1, origin, how) {
            CollectiveError::PeerLost { rank, how } => (rank, how),
            other => panic!("{other}"),
        };
        assert_eq!(seen(0), (2, How::Silent));
        assert_eq!(seen(2), (1, How::GaveUp));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: [u8; NOTE_BYTES]) {
            if let Some(note) = Note::decode(bytes) {
                prop_assert_eq!(Note::decode(note.encode()), Some(note));
            }
        }

        #[test]
        fn blame_always_ends(next in proptest::collection::vec(proptest::option::of(0u32..6), 6), me in 0u32..6, on in 0u32..6) {
            let blamed = culprit(me, on, 6, |rank| next[rank as usize]);
            prop_assert!(blamed < 6);
        }
    }
}
