//! What follows when a generation ends for a worker: it waits for another place, or leaves.

use common::exit::Exit;

/// How a generation ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All images of the schedule were shown.
    Complete,
    /// Somebody asked for it.
    Stopped,
    /// The coordinator was away for too long.
    Orphaned,
    /// The ranks leave their generation together, for another one. Nothing is stored: the state stays in memory.
    Regroup,
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It keeps its state and waits for another place.
    Wait,
    /// It leaves with this exit code.
    Leave(Exit),
}

/// What follows for a worker whose generation ended, or failed with an exit code; `dismissed`: the coordinator closed the
/// session. A rank that only lost its peers has lost nothing, and training that diverged may go back to a checkpoint.
#[must_use]
pub fn after(ended: Result<Ending, Exit>, dismissed: bool) -> After {
    match ended {
        Ok(Ending::Regroup) => After::Wait,
        Ok(Ending::Complete | Ending::Stopped) => After::Leave(Exit::Ok),
        Ok(Ending::Orphaned) => After::Leave(Exit::Orphaned),
        Err(Exit::WorkerLost | Exit::Diverged) if !dismissed => After::Wait,
        Err(exit) => After::Leave(exit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_others_a_regroup_and_a_way_back_are_survived() {
        assert_eq!(after(Err(Exit::Diverged), false), After::Wait);
        assert_eq!(after(Ok(Ending::Regroup), false), After::Wait);
        assert_eq!(after(Err(Exit::WorkerLost), false), After::Wait);
        assert_eq!(after(Err(Exit::WorkerLost), true), After::Leave(Exit::WorkerLost));
        assert_eq!(after(Err(Exit::Storage), false), After::Leave(Exit::Storage));
        assert_eq!(after(Ok(Ending::Stopped), false), After::Leave(Exit::Ok));
        assert_eq!(after(Ok(Ending::Orphaned), true), After::Leave(Exit::Orphaned));
    }
}
