//! What a coordinator has to remember so that another one can go on in its place, as plain data.
//!
//! The shell writes each [`Entry`] down before it performs the actions that follow it; a successor folds them into a
//! [`Memory`] and goes on from there ([`crate::Cluster::recovered`]). Nothing here is needed to train, and nothing here
//! is believed against what workers say of themselves: a journal may have lost its tail.

use crate::event::{Stored, WorkerId};
use crate::reason::Reason;
use crate::verdict::Outcome;
use common::ids::{Generation, ImagesSeen};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The run begins, or goes on where earlier coordinators had brought it.
    Begun {
        /// The last generation that earlier parts of the run may have used; 0 if none.
        generation: Generation,
        /// The last one that went back to a checkpoint; 0 if none.
        went_back: Generation,
        /// The checkpoint that it starts from.
        newest: Option<Stored>,
    },
    /// A generation was formed. Its places are given only after this is written down.
    Formed {
        /// Its number.
        generation: Generation,
        /// Its members in the order of their ranks.
        members: Vec<Placed>,
        /// The checkpoint to start from where no rank holds the state.
        resume: Option<Stored>,
        /// Start from `resume` whoever holds what.
        rollback: bool,
        /// The last generation, up to this one, that did not go on from what the one before had reached.
        #[serde(default)]
        forked: Generation,
        /// Failures until then.
        setbacks: Setbacks,
    },
    /// A local worker process was started.
    Started {
        /// For which place on this machine.
        slot: u32,
        /// Its name.
        worker: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A local worker process is gone.
    Ended {
        /// Which.
        worker: WorkerId,
    },
    /// A checkpoint is committed.
    Stored(Stored),
    /// The operator wants this many workers.
    Wanted(u32),
    /// The run is to end with its state stored.
    Stopping {
        /// What to say at the end if it was not the operator who asked.
        verdict: Option<Reason>,
    },
    /// The run is over.
    Over(Outcome),
}

/// A member of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Who.
    pub worker: WorkerId,
    /// Where the other ranks reach it.
    pub peer: String,
    /// The place on the coordinator's machine that it was started for.
    pub slot: Option<u32>,
    /// Its process id there.
    pub pid: Option<u32>,
    /// Machine it runs on.
    pub host: String,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Images at what it held when it was given its place.
    pub origin: ImagesSeen,
}

/// Failures in a row, as they count towards giving up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setbacks {
    /// The furthest that the run ever was.
    pub at: ImagesSeen,
    /// Failures without getting beyond it.
    pub count: u32,
    /// The run went back to a checkpoint for them.
    pub rolled_back: bool,
}

impl Entry {
    /// Whether it must be on the disk, and not only on its way there, before anything follows from it. What concerns
    /// processes of this machine is worth nothing once the machine has lost its memory.
    #[must_use]
    pub fn must_last(&self) -> bool {
        matches!(
            self,
            Self::Begun { .. } | Self::Formed { .. } | Self::Wanted(_) | Self::Stopping { .. } | Self::Over(_)
        )
    }

    /// The same for a successor on another machine, for whom no process is its own.
    #[must_use]
    pub fn from_elsewhere(mut self) -> Option<Self> {
        match &mut self {
            Self::Started { .. } | Self::Ended { .. } => return None,
            Self::Formed { members, .. } => members.iter_mut().for_each(|member| {
                (member.slot, member.pid) = (None, None);
            }),
            Self::Begun { .. } | Self::Stored(_) | Self::Wanted(_) | Self::Stopping { .. } | Self::Over(_) => {}
        }
        Some(self)
    }
}

/// What all entries of a journal come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The last generation that may have been used; 0 if none.
    pub generation: Generation,
    /// The last generation, as it was formed, since the run began or went on.
    pub formed: Option<Entry>,
    /// Local processes that are not known to be gone, in the order in which they were started: worker, place, process id.
    pub processes: Vec<(WorkerId, u32, u32)>,
    /// Newest checkpoint.
    pub newest: Option<Stored>,
    /// Workers that are wanted, if the operator said so.
    pub wanted: Option<u32>,
    /// The run is to end, and what to say then.
    pub stopping: Option<Option<Reason>>,
    /// How it ended, if it did.
    pub over: Option<Outcome>,
    /// The last generation that went back to a checkpoint.
    pub went_back: Generation,
}

impl Memory {
    /// Folds the entries of a journal, in their order.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Self {
        let mut memory = Self::default();
        entries.iter().for_each(|entry| memory.add(entry));
        memory
    }

    /// Takes one more entry in.
    pub fn add(&mut self, entry: &Entry) {
        match entry {
            Entry::Begun { generation, went_back, newest } => {
                self.generation = self.generation.max(*generation);
                self.went_back = self.went_back.max(*went_back);
                // what was written before the run left that line is not its own any more
                if newest.as_ref().is_some_and(|newest| newest.generation() >= self.forked()) {
                    self.newest.clone_from(newest);
                }
            }
            Entry::Formed { generation, rollback, .. } => {
                self.generation = self.generation.max(*generation);
                if *rollback {
                    self.went_back = *generation;
                }
                self.formed = Some(entry.clone());
            }
            Entry::Started { slot, worker, pid } => self.processes.push((worker.clone(), *slot, *pid)),
            Entry::Ended { worker } => self.processes.retain(|(id, ..)| id != worker),
            Entry::Stored(stored) => self.newest = Some(stored.clone()),
            Entry::Wanted(workers) => self.wanted = Some(*workers),
            Entry::Stopping { verdict } => self.stopping = Some(verdict.clone()),
            Entry::Over(outcome) => self.over = Some(outcome.clone()),
        }
    }

    /// What a successor goes on from. It leaves a number out: the last entry may be lost, and workers may have seen the
    /// generation that it spoke of.
    #[must_use]
    pub fn taken_over(mut self) -> Self {
        self.generation.0 += u64::from(self.over.is_none());
        self
    }

    /// The shortest journal that comes to the same.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let started = |(worker, slot, pid): &(WorkerId, u32, u32)| {
            let (worker, slot, pid) = (worker.clone(), *slot, *pid);
            Entry::Started { slot, worker, pid }
        };
        let (generation, went_back, newest) = (self.generation, self.went_back, self.newest.clone());
        let mut entries = vec![Entry::Begun { generation, went_back, newest }];
        entries.extend(self.processes.iter().map(started));
        entries.extend(self.wanted.map(Entry::Wanted));
        entries.extend(self.formed.clone());
        entries.extend(self.stopping.clone().map(|verdict| Entry::Stopping { verdict }));
        entries.extend(self.over.clone().map(Entry::Over));
        entries
    }

    /// The last generation that was formed, since the run began or went on; 0 if none was.
    #[must_use]
    pub fn at_work(&self) -> Generation {
        match &self.formed {
            Some(Entry::Formed { generation, .. }) => *generation,
            _ => Generation(0),
        }
    }

    fn forked(&self) -> Generation {
        match &self.formed {
            Some(Entry::Formed { forked, .. }) => *forked,
            _ => Generation(0),
        }
    }

    /// Members of the last generation in the order of their ranks.
    #[must_use]
    pub fn members(&self) -> &[Placed] {
        match &self.formed {
            Some(Entry::Formed { members, .. }) => members,
            _ => &[],
        }
    }

    /// The process that was started last for each place, by place; the others have been replaced.
    #[must_use]
    pub fn present(&self) -> BTreeMap<u32, (&WorkerId, u32)> {
        self.processes.iter().map(|(worker, slot, pid)| (*slot, (worker, *pid))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ExitStatus;
    use crate::reason::Cause;
    use common::exit::Exit;
    use common::ids::Rank;
    use std::time::Duration;

    fn all() -> Vec<Entry> {
        let worker = |name: &str| WorkerId(name.into());
        let stored = |images| Stored { images: ImagesSeen(images), manifest: format!("m{images}") };
        let placed = |name: &str, slot| Placed {
            worker: worker(name),
            peer: "10.0.0.1:4000".into(),
            slot,
            pid: slot.map(|slot| slot + 100),
            host: "here".into(),
            device: "cpu".into(),
            origin: ImagesSeen(5),
        };
        let cause = Cause::Exited { status: ExitStatus::Signal(9), last_error: Some("oh".into()) };
        let lost = Reason::Lost { worker: worker("w1"), rank: Some(Rank(1)), cause };
        let missing = Reason::Missing { missing: vec!["w2".into()], waited: Duration::from_secs(3) };
        vec![
            Entry::Begun { generation: Generation(3), went_back: Generation(0), newest: Some(stored(10)) },
            Entry::Started { slot: 0, worker: worker("w0"), pid: 100 },
            Entry::Started { slot: 1, worker: worker("w1"), pid: 101 },
            Entry::Formed {
                generation: Generation(4),
                members: vec![placed("w0", Some(0)), placed("x", None)],
                resume: Some(stored(10)),
                rollback: true,
                forked: Generation(4),
                setbacks: Setbacks { at: ImagesSeen(7), count: 1, rolled_back: true },
            },
            Entry::Ended { worker: worker("w1") },
            Entry::Stored(stored(20)),
            Entry::Wanted(3),
            Entry::Stopping { verdict: Some(lost) },
            Entry::Over(Outcome {
                exit: Exit::WorkerLost,
                reason: missing,
                images: ImagesSeen(30),
                newest: Some(stored(20)),
            }),
        ]
    }

    #[test]
    fn every_entry_comes_back_from_its_line() {
        for entry in all() {
            let line = serde_json::to_string(&entry).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry, "{line}");
        }
    }

    #[test]
    fn the_short_form_comes_to_the_same() {
        let entries = all();
        for count in 0..=entries.len() {
            let memory = Memory::of(&entries[..count]);
            assert_eq!(Memory::of(&memory.entries()), memory, "after {count} entries");
        }
        let memory = Memory::of(&entries);
        assert_eq!((memory.generation, memory.went_back, memory.wanted), (Generation(4), Generation(4), Some(3)));
        assert_eq!(memory.processes, [(WorkerId("w0".into()), 0, 100)]);
    }

    #[test]
    fn elsewhere_no_process_is_ones_own() {
        let entries: Vec<Entry> = all().into_iter().filter_map(Entry::from_elsewhere).collect();
        let memory = Memory::of(&entries);
        assert!(memory.processes.is_empty());
        assert!(memory.members().iter().all(|member| member.slot.is_none() && member.pid.is_none()));
        assert_eq!(memory.members().len(), 2);
    }
}
