//! Two workers that cannot reach each other while the coordinator hears both: a firewall between their hosts, a cable that
//! carries one direction only.
//!
//! Nobody is lost. Of each such pair one waits outside of the generations, with its state, for a pause that doubles as long
//! as the attempts fail; the others go on without it. Refuses to find out what is wrong with the network.

use crate::cluster::Cluster;
use crate::event::{Action, WorkerId};
use crate::reason::Reason;
use crate::state::Member;
use common::ids::Rank;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The first pause is so many patiences long.
const PAUSE_FIRST: u32 = 4;
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// A worker that could not reach another one, or was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Apart {
    until: Duration,
    /// Attempts that failed since it last took part in a step.
    failed: u32,
}

impl Member {
    /// Whether it waits until it is tried again with those that it could not reach.
    pub(crate) fn is_apart(&self, now: Duration) -> bool {
        self.apart.is_some_and(|apart| now < apart.until)
    }
}

impl Cluster {
    /// Once a generation is over: of each pair in it that could not reach each other, one is in none for a while. First who is
    /// in most such pairs, then the highest rank.
    pub(crate) fn part(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.formation.parted, true) {
            return;
        }
        let mut pairs = self.pairs();
        while let Some((worker, other)) = most_in(&pairs) {
            pairs.retain(|pair| !pair.iter().any(|(_, one)| *one == worker));
            let (worked, patience) = (self.formation.steps > 0, self.policy.patience);
            let Some(member) = self.members.get_mut(&worker) else { return };
            let failed = member.apart.filter(|_| !worked).map_or(0, |apart| apart.failed + 1);
            let pause = patience.saturating_mul(PAUSE_FIRST.saturating_mul(2u32.saturating_pow(failed))).min(PAUSE_MAX);
            member.apart = Some(Apart { until: now + pause, failed });
            let rank = member.rank;
            actions.push(Action::Report(Reason::Apart { worker, rank, other, pause }));
        }
    }

    /// The pairs of which one named the other, and both are still here.
    fn pairs(&self) -> BTreeSet<Pair> {
        let placed = |rank: Rank| self.members.iter().find(|(_, member)| member.rank == Some(rank));
        let told =
            self.members.iter().filter(|(_, member)| member.out && member.standing.generation == self.generation);
        let pair = |(worker, member): (&WorkerId, &Member)| {
            let (mine, theirs) = (member.rank?, member.standing.unreached?);
            let (other, _) = placed(theirs).filter(|_| mine != theirs)?;
            let mut pair = [(mine, worker.clone()), (theirs, other.clone())];
            pair.sort();
            Some(pair)
        };
        told.filter_map(pair).collect()
    }
}

type Pair = [(Rank, WorkerId); 2];

/// Who is in most of the pairs, the highest rank of several, and one of those with whom.
fn most_in(pairs: &BTreeSet<Pair>) -> Option<(WorkerId, WorkerId)> {
    let mut times: BTreeMap<&(Rank, WorkerId), usize> = BTreeMap::new();
    pairs.iter().flatten().for_each(|one| *times.entry(one).or_default() += 1);
    let (most, _) = times.into_iter().max_by_key(|(one, times)| (*times, one.0))?;
    let other = pairs.iter().filter(|pair| pair.contains(most)).flatten().find(|one| *one != most)?;
    Some((most.1.clone(), other.1.clone()))
}
