//! Going on in the place of another coordinator, from what it wrote down.
//!
//! The generation at work is believed to be at work until its members say otherwise: they come back and say where they
//! stand, and nothing is ordered meanwhile. Who does not come is judged as anybody is: not while the generation gets on.

use crate::cluster::{Cluster, Departing, Ending, Formation, Stop, Strikes};
use crate::event::{ExitStatus, WorkerId};
use crate::journal::{Entry, Memory, Placed};
use crate::state::{Link, Member, Phase, Policy, Process, Slot};
use common::ids::Rank;
use std::time::Duration;

impl Cluster {
    /// A run that another coordinator has driven until now, as far as its `entries` say. Processes that they name on this
    /// machine are watched as if they had been started here: whoever performs what this cluster orders must know them, and
    /// tell of those that are gone already.
    #[must_use]
    pub fn recovered(policy: Policy, entries: &[Entry]) -> Self {
        let memory = Memory::of(entries);
        let mut cluster = Self::new(policy, memory.generation, memory.newest.clone());
        cluster.generation = memory.at_work();
        if let Some(wanted) = memory.wanted {
            cluster.scale(wanted, &mut Vec::new());
        }
        cluster.went_back = memory.went_back;
        cluster.adopt(&memory);
        if let Some(Entry::Formed { resume, rollback, forked, setbacks, .. }) = &memory.formed {
            cluster.forked = *forked;
            let peers = memory.members().iter().map(|member| member.peer.clone()).collect();
            let (resume, rollback) = (resume.clone(), *rollback);
            cluster.formation = Formation { peers, resume, rollback, ..Formation::default() };
            let (at, count, rolled_back) = (setbacks.at, setbacks.count, setbacks.rolled_back);
            cluster.strikes = Strikes { at, count, rolled_back, ..Strikes::default() };
            cluster.phase = Phase::Running;
        }
        match (memory.stopping, cluster.phase) {
            (Some(verdict), Phase::Running) => {
                cluster.stop = Some(Stop { since: Duration::ZERO, verdict, inherited: true })
            }
            (Some(_), _) => cluster.drain(Ending::Withdraw, Duration::ZERO, &mut Vec::new()),
            (None, _) => {}
        }
        cluster
    }

    /// Members of the last generation, and processes of this machine that are in none.
    fn adopt(&mut self, memory: &Memory) {
        let now = Duration::ZERO;
        let present = memory.present();
        for (worker, slot, _) in &memory.processes {
            if present.get(slot).is_some_and(|(holder, _)| *holder != worker) {
                self.departing.insert(worker.clone(), Departing { since: now, killed: false });
            }
        }
        for (&slot, &(worker, pid)) in &present {
            if self.slots.len() <= slot as usize {
                self.slots.resize(slot as usize + 1, Slot::default());
            }
            if let Some(place) = self.slots.get_mut(slot as usize) {
                place.taken = true;
            }
            self.members.insert(worker.clone(), Member::new(Process::Alive { pid }, Some(slot), now));
        }
        for (rank, placed) in (0..).zip(memory.members()) {
            let Placed { worker, peer, pid, host, device, origin, .. } = placed;
            // one that was started here, and is not there any more
            let gone = Process::Gone { at: now, status: ExitStatus::Unknown, last_error: None };
            let process = if pid.is_some() { gone } else { Process::Elsewhere };
            let member = self.members.entry(worker.clone()).or_insert_with(|| Member::new(process, None, now));
            member.rank = Some(Rank(rank));
            (member.peer, member.host, member.device) = (peer.clone(), host.clone(), device.clone());
            (member.origin, member.placed_at) = (*origin, Some(now));
            member.may_finish = memory.stopping.is_some();
        }
    }

    /// Whether members of the generation at work may still be on their way to this coordinator.
    pub(crate) fn expects_members(&self) -> bool {
        self.at_work().any(|(_, member)| member.link == Link::Awaited)
    }

    /// The generation that was just formed of `workers`, as a successor has to know it.
    pub(crate) fn formed(&self, workers: &[WorkerId]) -> Entry {
        let placed = |worker: &WorkerId| {
            let member = self.members.get(worker)?;
            let pid = match member.process {
                Process::Alive { pid } => Some(pid),
                Process::Elsewhere | Process::Gone { .. } => None,
            };
            let (peer, host, device) = (member.peer.clone(), member.host.clone(), member.device.clone());
            let (worker, slot, origin) = (worker.clone(), member.slot, member.origin);
            Some(Placed { worker, peer, slot, pid, host, device, origin })
        };
        let Strikes { at, count, rolled_back, .. } = self.strikes;
        Entry::Formed {
            generation: self.generation,
            members: workers.iter().filter_map(placed).collect(),
            resume: self.formation.resume.clone(),
            rollback: self.formation.rollback,
            forked: self.forked,
            setbacks: crate::journal::Setbacks { at, count, rolled_back },
        }
    }
}
