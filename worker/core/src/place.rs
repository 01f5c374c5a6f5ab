//! The generation that a worker is in, or waits to leave behind, and what the coordinator wants of it there.
//!
//! Every order names its generation, and only the present one is obeyed: [`Place::obey`] is where messages that come late, twice
//! or from an older generation end. What follows for the rest of the worker is returned as an [`Effect`].

use crate::standing::{Progress, Standing, Trouble};
use common::ids::Generation;

/// What the coordinator said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// There is a place for this worker in a generation.
    Assign(Generation),
    /// A generation is over.
    Abort(Generation),
    /// Propose to the other ranks to leave a generation together.
    Regroup(Generation),
    /// Propose a checkpoint to the other ranks.
    Checkpoint,
    /// Finish.
    Stop {
        /// The generation that is to finish, with a checkpoint; without one, leave as soon as this worker is in none.
        generation: Option<Generation>,
        /// Why.
        reason: String,
    },
}

/// What follows from a [`Word`] outside of the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it was taken note of, or does not concern this worker any more.
    Nothing,
    /// The place is taken: training is to enter the generation.
    Enter,
    /// Whatever blocks training in this generation is to be ended.
    Abort,
    /// Training is to leave when it next waits for a place.
    Leave {
        /// Why.
        reason: String,
    },
}

/// What the coordinator wants, or its absence demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// Finish the step that all ranks agree on, checkpoint, leave with exit code 0.
    pub stop: bool,
    /// Propose a checkpoint to the other ranks. Returned once per request.
    pub checkpoint_now: bool,
    /// Propose to the other ranks to leave this generation together, for another.
    pub regroup: bool,
    /// The coordinator has been away for `orphan_patience`: checkpoint and leave with exit code 7.
    pub orphaned: bool,
    /// It has been so for so long that others, were they without one, would be orphans too: propose to go on without this
    /// worker.
    pub deserted: bool,
    /// The coordinator closed the session: this worker is no part of the run any more. Leave without a checkpoint.
    pub dismissed: bool,
}

impl Commands {
    /// Whether there is nothing to do but to train.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Where a worker stands between and within generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    generation: Generation,
    ready: bool,
    has_state: bool,
    trouble: Trouble,
    leaving: bool,
    aborted: bool,
    commands: Commands,
    stop_reason: String,
}

impl Place {
    /// The generation that it is in, or the last one.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether the worker is in a generation.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.generation.0 > 0 && !self.ready
    }

    /// Whether the generation was aborted, perhaps before there was anything to abort.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// Why the coordinator wants a stop, once [`Commands::stop`] is set.
    #[must_use]
    pub fn stop_reason(&self) -> &str {
        &self.stop_reason
    }

    /// The worker is prepared and in no generation. `trouble` is what ended its last one.
    pub fn wait(&mut self, has_state: bool, trouble: Trouble) {
        (self.ready, self.has_state, self.trouble) = (true, has_state, trouble);
    }

    /// Obeys what was said, if it concerns the place that this worker has.
    pub fn obey(&mut self, word: Word) -> Effect {
        match word {
            Word::Assign(generation) if self.takes(generation) => {
                self.enter(generation);
                Effect::Enter
            }
            Word::Abort(generation) if self.is_in(generation) => {
                self.aborted = true;
                Effect::Abort
            }
            Word::Regroup(generation) if self.is_in(generation) => {
                self.commands.regroup = true;
                Effect::Nothing
            }
            Word::Checkpoint => {
                self.commands.checkpoint_now = true;
                Effect::Nothing
            }
            Word::Stop { generation: None, reason } => Effect::Leave { reason },
            Word::Stop { generation: Some(generation), reason } if self.is_in(generation) => {
                self.commands.stop = true;
                self.stop_reason = reason;
                Effect::Nothing
            }
            Word::Assign(_) | Word::Abort(_) | Word::Regroup(_) | Word::Stop { .. } => Effect::Nothing,
        }
    }

    /// It is told to go. Returns whether anybody would miss it: before it is prepared for a place, nobody does.
    pub fn give_notice(&mut self) -> bool {
        self.leaving = true;
        self.ready || self.is_taken()
    }

    /// No coordinator gives orders any more.
    pub fn orphan(&mut self) {
        self.commands.orphaned = true;
    }

    /// And the other ranks had time to find the same: those that did not can go on without this worker.
    pub fn desert(&mut self) {
        self.commands.deserted = true;
    }

    /// Nobody but this worker can end its generation: the other ranks had time to agree on an end, and training is still blocked among
    /// them; or they go on without it.
    pub fn give_up(&mut self) -> Effect {
        self.obey(Word::Abort(self.generation))
    }

    /// The coordinator closed the session.
    pub fn dismiss(&mut self) -> Effect {
        self.commands.dismissed = true;
        self.obey(Word::Abort(self.generation))
    }

    /// What is wanted now.
    #[must_use]
    pub fn commands(&self) -> Commands {
        self.commands
    }

    /// The same for whoever does it: a wish for a checkpoint is handed out once.
    pub fn take_commands(&mut self) -> Commands {
        let commands = self.commands;
        self.commands.checkpoint_now = false;
        commands
    }

    /// What a sign of life says, `progress` and `waiting` being training's own words.
    #[must_use]
    pub fn standing(&self, progress: Progress, waiting: bool) -> Standing {
        Standing {
            generation: self.generation,
            ready: self.ready,
            has_state: self.has_state,
            trouble: self.trouble.clone(),
            leaving: self.leaving,
            waiting,
            progress,
        }
    }

    /// A place is taken by who waits for one, and in a later generation than any before.
    fn takes(&self, generation: Generation) -> bool {
        self.ready && generation > self.generation
    }

    fn is_in(&self, generation: Generation) -> bool {
        self.generation == generation && !self.ready
    }

    /// What was said of earlier generations holds no more.
    fn enter(&mut self, generation: Generation) {
        (self.commands.regroup, self.commands.stop) = (false, false);
        (self.generation, self.ready, self.aborted) = (generation, false, false);
        self.trouble = Trouble::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(generation: u64) -> Word {
        Word::Stop { generation: Some(Generation(generation)), reason: "enough".into() }
    }

    fn trouble(why: &str) -> Trouble {
        Trouble { why: why.into(), ..Trouble::default() }
    }

    fn placed(generation: u64) -> Place {
        let mut place = Place::default();
        place.wait(false, Trouble::default());
        assert_eq!(place.obey(Word::Assign(Generation(generation))), Effect::Enter);
        place
    }

    #[test]
    fn a_place_is_taken_once_and_only_by_who_is_ready() {
        let mut place = Place::default();
        assert_eq!(place.obey(Word::Assign(Generation(1))), Effect::Nothing);
        place.wait(false, Trouble::default());
        assert_eq!(place.obey(Word::Assign(Generation(2))), Effect::Enter);
        for generation in [1, 2, 3] {
            assert_eq!(place.obey(Word::Assign(Generation(generation))), Effect::Nothing);
        }
        place.wait(true, trouble("a peer is lost"));
        for generation in [0, 1, 2] {
            assert_eq!(place.obey(Word::Assign(Generation(generation))), Effect::Nothing);
        }
        assert_eq!(place.standing(Progress::default(), false).trouble.why, "a peer is lost");
        assert_eq!(place.obey(Word::Assign(Generation(3))), Effect::Enter);
        assert_eq!(place.standing(Progress::default(), true).trouble.why, "");
    }

    #[test]
    fn orders_of_another_generation_are_passed_over() {
        let mut place = placed(3);
        for generation in [2, 4] {
            let words = [Word::Abort(Generation(generation)), Word::Regroup(Generation(generation)), stop(generation)];
            assert!(words.into_iter().all(|word| place.obey(word) == Effect::Nothing));
        }
        assert!(place.commands().is_empty() && !place.is_aborted());
        place.wait(true, Trouble::default());
        assert_eq!(place.obey(Word::Abort(Generation(3))), Effect::Nothing);
        assert_eq!(place.obey(stop(3)), Effect::Nothing);
        assert!(place.commands().is_empty());
    }

    #[test]
    fn a_checkpoint_is_asked_for_once_and_a_stop_stays_until_its_generation_is_over() {
        let mut place = placed(3);
        place.obey(Word::Checkpoint);
        place.obey(stop(3));
        place.obey(Word::Regroup(Generation(3)));
        let first = Commands { stop: true, checkpoint_now: true, regroup: true, ..Commands::default() };
        assert_eq!(place.take_commands(), first);
        assert_eq!(place.take_commands(), Commands { checkpoint_now: false, ..first });
        assert_eq!(place.stop_reason(), "enough");
        place.wait(true, trouble("a peer is lost"));
        place.obey(Word::Assign(Generation(4)));
        assert!(place.take_commands().is_empty());
    }

    #[test]
    fn an_abort_is_remembered_until_the_next_place() {
        let mut place = placed(3);
        assert_eq!(place.obey(Word::Abort(Generation(3))), Effect::Abort);
        assert!(place.is_aborted());
        place.wait(true, trouble("it is over"));
        place.obey(Word::Assign(Generation(4)));
        assert!(!place.is_aborted());
    }

    #[test]
    fn nobody_misses_who_is_not_prepared_yet() {
        assert!(!Place::default().give_notice());
        assert!(placed(1).give_notice());
        let mut place = Place::default();
        place.wait(false, Trouble::default());
        assert!(place.give_notice() && place.standing(Progress::default(), false).leaving);
    }

    #[test]
    fn a_deserted_worker_says_so_and_gives_up_what_blocks_it() {
        let mut place = placed(2);
        place.orphan();
        place.desert();
        let commands = place.commands();
        assert!(commands.orphaned && commands.deserted && !place.is_aborted());
        assert_eq!(place.give_up(), Effect::Abort);
        assert!(place.is_aborted());
        place.wait(true, trouble("aborted"));
        assert_eq!(place.give_up(), Effect::Nothing);
    }

    #[test]
    fn a_dismissed_worker_is_out_of_its_generation() {
        let mut place = placed(1);
        assert_eq!(place.dismiss(), Effect::Abort);
        assert!(place.commands().dismissed);
        place.wait(true, Trouble::default());
        assert_eq!(place.dismiss(), Effect::Nothing);
    }
}
