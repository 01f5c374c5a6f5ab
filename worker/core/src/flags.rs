//! What ranks tell each other with every step, and what follows from the sum: the same on all of them.

use crate::ending::Ending;
use crate::place::Commands;

/// Numbers that ride in the gradients.
pub const FLAGS: usize = 7;

/// What one rank says with a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Was told to stop.
    pub stop: bool,
    /// Has been without a coordinator for too long, and wants to stop for that.
    pub orphaned: bool,
    /// Has been an orphan for so long that the others are none, or all would be.
    pub deserted: bool,
    /// Wants a checkpoint now.
    pub checkpoint: bool,
    /// Has stored its share of the checkpoint in flight.
    pub stored: bool,
    /// Has committed the checkpoint that was stored last (rank 0).
    pub committed: bool,
    /// Was told that the ranks should leave this generation together.
    pub regroup: bool,
}

impl Flags {
    /// As they are summed.
    #[must_use]
    pub fn to_wire(self) -> [f32; FLAGS] {
        let Self { stop, orphaned, deserted, checkpoint, stored, committed, regroup } = self;
        [stop, orphaned, deserted, checkpoint, stored, committed, regroup].map(|flag| f32::from(u8::from(flag)))
    }
}

/// The sum: each number counts the ranks that say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Were told to stop.
    pub stop: u32,
    /// Have been without a coordinator for too long.
    pub orphaned: u32,
    /// Of those, for much longer.
    pub deserted: u32,
    /// Want a checkpoint now.
    pub checkpoint: u32,
    /// Have stored their shares.
    pub stored: u32,
    /// Have committed what was stored last.
    pub committed: u32,
    /// Were told to leave this generation together.
    pub regroup: u32,
}

impl Agreed {
    /// The sum as it came back.
    #[must_use]
    pub fn from_wire(wire: [f32; FLAGS]) -> Self {
        let [stop, orphaned, deserted, checkpoint, stored, committed, regroup] = wire.map(|sum| sum as u32);
        Self { stop, orphaned, deserted, checkpoint, stored, committed, regroup }
    }

    /// The ending that all `world` ranks agreed on. One coordinator that still gives orders is enough to make it a stop. Ranks
    /// are orphans together; where some stay so alone, the others leave the generation with them, and go on in another.
    #[must_use]
    pub fn ending(self, world: u32) -> Option<Ending> {
        match self {
            Self { stop: 1.., .. } => Some(Ending::Stopped),
            Self { orphaned, .. } if orphaned == world => Some(Ending::Orphaned),
            Self { deserted: 1.., .. } | Self { regroup: 1.., .. } => Some(Ending::Regroup),
            _ => None,
        }
    }

    /// Whether every one of `world` ranks has stored its share.
    #[must_use]
    pub fn is_stored(self, world: u32) -> bool {
        self.stored == world
    }
}

/// What one rank has yet to tell the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    checkpoint: bool,
    committed: bool,
}

impl Wishes {
    /// What this rank says with its next step. `in_flight`: a checkpoint is being stored; `stored`: this rank's share of it is.
    pub fn flags(&mut self, commands: Commands, in_flight: bool, stored: bool) -> Flags {
        self.checkpoint |= commands.checkpoint_now;
        Flags {
            stop: commands.stop,
            orphaned: commands.orphaned,
            deserted: commands.deserted,
            checkpoint: self.checkpoint && !in_flight,
            stored,
            committed: std::mem::take(&mut self.committed),
            regroup: commands.regroup,
        }
    }

    /// This rank, the first, has committed a checkpoint.
    pub fn has_committed(&mut self) {
        self.committed = true;
    }

    /// Whether a checkpoint begins after a step, `due` being what the schedule says. A round has one state for each count of
    /// images that is stored while it goes on: the one after its last step. A state between D's step and G's has the same
    /// count, and would pass for it when the run ends.
    pub fn begins(&mut self, agreed: Agreed, round_begins: bool, in_flight: bool, due: bool) -> bool {
        let begins = round_begins && !in_flight && (agreed.checkpoint > 0 || due);
        self.checkpoint &= !begins;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_counted_over_the_wire() {
        let mine = Flags { stop: true, stored: true, ..Flags::default() };
        let theirs = Flags { stored: true, committed: true, ..Flags::default() };
        let mut sum = mine.to_wire();
        sum.iter_mut().zip(theirs.to_wire()).for_each(|(sum, flag)| *sum += flag);
        let agreed = Agreed::from_wire(sum);
        assert_eq!(agreed, Agreed { stop: 1, stored: 2, committed: 1, ..Agreed::default() });
        assert!(agreed.is_stored(2) && !agreed.is_stored(3));
    }

    #[test]
    fn a_stop_counts_more_than_an_orphan_and_that_more_than_a_regroup() {
        let all = Agreed { stop: 1, orphaned: 2, regroup: 1, ..Agreed::default() };
        assert_eq!(all.ending(2), Some(Ending::Stopped));
        assert_eq!(Agreed { stop: 0, ..all }.ending(2), Some(Ending::Orphaned));
        assert_eq!(Agreed { stop: 0, orphaned: 0, ..all }.ending(2), Some(Ending::Regroup));
        assert_eq!(Agreed { checkpoint: 1, ..Agreed::default() }.ending(2), None);
    }

    #[test]
    fn orphans_end_the_run_together_and_one_alone_leaves_the_others_behind() {
        let some = Agreed { orphaned: 2, ..Agreed::default() };
        assert_eq!(some.ending(3), None, "the third may only notice later");
        assert_eq!(Agreed { deserted: 1, ..some }.ending(3), Some(Ending::Regroup), "it does not");
        assert_eq!(Agreed { orphaned: 3, deserted: 1, ..some }.ending(3), Some(Ending::Orphaned));
    }

    #[test]
    fn a_wish_for_a_checkpoint_waits_for_the_one_in_flight_and_for_the_end_of_the_round() {
        let (mut wishes, asked) = (Wishes::default(), Commands { checkpoint_now: true, ..Commands::default() });
        assert!(!wishes.flags(asked, true, false).checkpoint);
        assert!(wishes.flags(Commands::default(), false, false).checkpoint);
        let agreed = Agreed { checkpoint: 1, ..Agreed::default() };
        assert!(!wishes.begins(agreed, false, false, false));
        assert!(wishes.flags(Commands::default(), false, false).checkpoint, "it is said until it is done");
        assert!(!wishes.begins(agreed, true, true, true));
        assert!(wishes.begins(agreed, true, false, false));
        assert!(!wishes.flags(Commands::default(), false, false).checkpoint);
    }

    #[test]
    fn a_commit_is_told_once() {
        let mut wishes = Wishes::default();
        wishes.has_committed();
        assert!(wishes.flags(Commands::default(), false, false).committed);
        assert!(!wishes.flags(Commands::default(), false, false).committed);
    }
}
