//! Whether one rank keeps the others waiting, and why: by its own work, or by the way to it. It is named, once it has done so for
//! a while, and kept: to do without it is for a person to decide.

use crate::cluster::Cluster;
use crate::event::{Action, Standing, WorkerId};
use crate::reason::{Reason, Slowness};
use std::time::Duration;

/// A rank is a straggler after so many steps in which it took longer than others, ...
const STEPS: u32 = 10;
/// ... for so long, ...
const WHILE: Duration = Duration::from_secs(1);
/// ... with its own work half as long again as elsewhere, and by this much, ...
const WORK_MIN: Duration = Duration::from_millis(2);
/// ... or with a way to it that is three times as long, and by this much: ranks may share a machine, and answer when it is their turn.
const WAY_MIN: Duration = Duration::from_millis(5);

/// The one that is behind, and what it takes.
struct Behind {
    worker: WorkerId,
    slowness: Slowness,
    took: Duration,
    usual: Duration,
}

impl Cluster {
    /// Of the generation at work, as long as all of it trains.
    pub(crate) fn find_straggler(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let work: Vec<_> = (self.at_work())
            .filter(|(_, member)| member.has_entered(self.generation) && member.standing.activity == "train")
            .map(|(worker, member)| (worker, &member.standing))
            .collect();
        if work.len() != self.formation.peers.len() {
            return;
        }
        let behind = slow_at_work(&work).or_else(|| far_away(&work));
        let formation = &mut self.formation;
        // each is named once
        let behind = behind.filter(|behind| !formation.named.contains(&(behind.worker.clone(), behind.slowness)));
        let Some(Behind { worker, slowness, took, usual }) = behind else {
            formation.straggler = None;
            return;
        };
        match &formation.straggler {
            Some((last, why, since)) if (last, *why) == (&worker, slowness) => {
                if now.saturating_sub(*since) >= (formation.step_time * STEPS).max(WHILE) {
                    formation.named.push((worker.clone(), slowness));
                    let rank = self.members.get(&worker).and_then(|member| member.rank);
                    actions.push(Action::Report(Reason::Straggler { worker, rank, slowness, took, usual }));
                }
            }
            _ => formation.straggler = Some((worker, slowness, now)),
        }
    }
}

/// Who waits for nobody is the one for whom the others wait; but ranks hold unequal shares, so it is compared by share.
fn slow_at_work(work: &[(&WorkerId, &Standing)]) -> Option<Behind> {
    let mut work: Vec<_> = work.iter().filter(|(_, standing)| standing.share > 0).collect();
    work.sort_by_key(|(worker, standing)| (standing.busy, *worker));
    let (worker, standing) = work.pop()?;
    let took = standing.busy / standing.share;
    let usual = median(work.iter().map(|(_, standing)| standing.busy / standing.share))?;
    let slowness = match standing.data / standing.share > took.saturating_sub(usual) / 2 {
        true => Slowness::Images,
        false => Slowness::Computing,
    };
    let behind = usual > Duration::ZERO && took > usual * 3 / 2 && took > usual + WORK_MIN;
    behind.then(|| Behind { worker: (*worker).clone(), slowness, took, usual })
}

/// Two cannot tell which of them is far away. A long way matters where ranks wait much for each other.
fn far_away(work: &[(&WorkerId, &Standing)]) -> Option<Behind> {
    let mut work: Vec<_> = work.iter().collect();
    work.sort_by_key(|(worker, standing)| (standing.way, *worker));
    if work.len() < 3 || work.iter().any(|(_, standing)| standing.way == Duration::ZERO) {
        return None;
    }
    let (worker, standing) = work.pop()?;
    let usual = median(work.iter().map(|(_, standing)| standing.way))?;
    let waits = standing.step_time.saturating_sub(standing.busy) > standing.step_time / 4;
    let behind = waits && standing.way > usual * 3 && standing.way > usual + WAY_MIN;
    behind.then(|| Behind { worker: (*worker).clone(), slowness: Slowness::Network, took: standing.way, usual })
}

fn median(times: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut times: Vec<_> = times.collect();
    times.sort();
    times.get(times.len() / 2).copied()
}
