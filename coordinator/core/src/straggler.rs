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
        match (&mut formation.straggler, behind) {
            (Some((last, since, said)), Some(behind)) if *last == behind.worker => {
                let long = now.saturating_sub(*since) >= (formation.step_time * STEPS).max(WHILE);
                if long && !std::mem::replace(said, *said || long) {
                    let Behind { worker, slowness, took, usual } = behind;
                    let rank = self.members.get(&worker).and_then(|member| member.rank);
                    actions.push(Action::Report(Reason::Straggler { worker, rank, slowness, took, usual }));
                }
            }
            (straggler, Some(behind)) => *straggler = Some((behind.worker, now, false)),
            (Some((.., true)), None) => {}
            (straggler, None) => *straggler = None,
        }
    }
}

/// Who waits for nobody is the one for whom the others wait; but ranks hold unequal shares.
fn slow_at_work(work: &[(&WorkerId, &Standing)]) -> Option<Behind> {
    let with_share = work.iter().filter(|(_, standing)| standing.share > 0);
    let (worker, standing, usual) =
        furthest(with_share.map(|(worker, standing)| (standing.busy / standing.share, *worker, *standing)).collect())?;
    let took = standing.busy / standing.share;
    let slowness = match standing.data / standing.share > took.saturating_sub(usual) / 2 {
        true => Slowness::Images,
        false => Slowness::Computing,
    };
    let behind = usual > Duration::ZERO && took > usual * 3 / 2 && took > usual + WORK_MIN;
    behind.then(|| Behind { worker: worker.clone(), slowness, took, usual })
}

/// Two cannot tell which of them is far away. A long way matters where ranks wait much for each other.
fn far_away(work: &[(&WorkerId, &Standing)]) -> Option<Behind> {
    let known = work.iter().filter(|(_, standing)| standing.way > Duration::ZERO);
    let ways: Vec<_> = known.map(|(worker, standing)| (standing.way, *worker, *standing)).collect();
    if ways.len() < work.len().max(3) {
        return None;
    }
    let (worker, standing, usual) = furthest(ways)?;
    let waits = standing.step_time.saturating_sub(standing.busy) > standing.step_time / 4;
    let behind = waits && standing.way > usual * 3 && standing.way > usual + WAY_MIN;
    behind.then(|| Behind { worker: worker.clone(), slowness: Slowness::Network, took: standing.way, usual })
}

/// Who takes longest, and the median of the others.
fn furthest<'a>(
    mut times: Vec<(Duration, &'a WorkerId, &'a Standing)>,
) -> Option<(&'a WorkerId, &'a Standing, Duration)> {
    times.sort_by_key(|(time, worker, _)| (*time, *worker));
    let (_, worker, standing) = times.pop()?;
    let (usual, ..) = times.get(times.len() / 2)?;
    Some((worker, standing, *usual))
}
