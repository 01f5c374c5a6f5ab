//! What one seed stands for: the policy, how slow everything is, and what goes wrong when.

use crate::chance::Chance;
use common::ids::ImagesSeen;
use coordinator_core::{Command, OnLoss, Policy};
use std::time::Duration;

/// Milliseconds since the schedule began.
pub type Millis = u64;

/// One thing that goes wrong. Numbers choose a worker among those that live; times are how long it lasts.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL.
    Kill(u64),
    /// SIGKILL to all but one of those that live.
    KillMost(u64),
    /// A defect: it ends with this exit code, after a farewell.
    GivesUp(u64, u32),
    /// SIGSTOP, and SIGCONT later.
    Pause(u64, Millis),
    /// Every worker is stopped at once.
    PauseAll(Millis),
    /// Its training thread stands still, the rest of it does not.
    Hang(u64, Millis),
    /// A call with the other ranks fails for it.
    Trouble(u64),
    /// Its stream breaks; whatever is on the way is lost.
    BreakStream(u64),
    /// What it says does not reach the coordinator.
    CutUp(u64, Millis),
    /// What the coordinator says does not reach it.
    CutDown(u64, Millis),
    /// Nobody reaches the coordinator, and it reaches nobody.
    CutCoordinator(Millis),
    /// What one worker says does not reach the other.
    CutPeers(u64, u64, Millis),
    /// SIGTERM: a notice that the machine will be taken away.
    Term(u64),
    /// A worker comes from elsewhere.
    Arrive,
    /// The coordinator is stopped for a time.
    PauseCoordinator(Millis),
    /// The coordinator's clock jumps ahead.
    JumpAhead(Millis),
    /// The coordinator's clock jumps back.
    JumpBack(Millis),
    /// The coordinator's process dies, and nobody takes over.
    CrashCoordinator,
    /// The coordinator is replaced.
    Succession(Succession),
    /// The store refuses everything.
    StoreFails(Millis),
    /// Workers do not see who holds the run.
    HideStore(Millis),
    /// The store does not answer.
    StoreHangs(Millis),
    /// The operator wants something.
    Operator(Command),
}

/// What befalls a coordinator, and how another one takes the run over from it.
#[derive(Clone, Copy, Debug)]
pub struct Succession {
    /// What befalls it.
    pub fate: Fate,
    /// When the other one comes, after what it waits for anyway.
    pub after: Millis,
    /// On another machine, where nothing but what is in the store is known.
    pub elsewhere: bool,
    /// Listening at another address.
    pub moves: bool,
    /// Starting no workers of its own, on another machine.
    pub attaches: bool,
    /// What was written down in this time before the end has not come into the store.
    pub lag: Millis,
    /// The one before, if it lives, comes back this long after.
    pub returns: Millis,
}

/// What befalls a coordinator that another one replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// SIGKILL, after so many more actions.
    Dies(u64),
    /// Its machine loses power.
    MachineDies,
    /// SIGSTOP, and SIGCONT when the other one is there.
    Pauses,
    /// Nobody reaches it, and it reaches nobody, until the other one is there.
    IsCut,
}

/// Everything that a seed decides in advance.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Of the coordinator.
    pub policy: Policy,
    /// How long workers wait for a vanished coordinator.
    pub orphan_patience: Millis,
    /// Longest delay of a message.
    pub delay: Millis,
    /// Compute time of a step, at most twice of it.
    pub step: Millis,
    /// Longest time from the start of a process to its join, and as long again to be prepared.
    pub start: Millis,
    /// Time to store a share or a manifest, at most twice of it.
    pub store: Millis,
    /// Images between two checkpoints; 0 for none but the last.
    pub checkpoint_images: u64,
    /// Images shown by a step that shows any.
    pub minibatch: u32,
    /// Steps of a round; the first shows images.
    pub phases: u32,
    /// Rounds of a cycle.
    pub rounds: u32,
    /// In percent, how often a worker cannot be started.
    pub start_fails: u64,
    /// What goes wrong, and when.
    pub faults: Vec<(Millis, Fault)>,
    /// The coordinator stands still for so long, and one rank has trouble, as soon as it has formed this generation.
    pub stumbles: Option<(u64, Millis)>,
    /// A step at so many images fails on every rank, whenever it is tried.
    pub poison: Option<u64>,
    /// From then on nothing goes wrong.
    pub healed: Millis,
    /// The operator stops the run this long after that, if it should.
    pub stop_after: Option<Millis>,
}

impl Plan {
    /// What `seed` stands for.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let c = &mut chance;
        let workers = match c.below(10) {
            0 => 1,
            1..=4 => 2,
            5..=7 => 3,
            8 => 4,
            _ => c.between(5, 8) as u32,
        };
        let local = match c.below(10) {
            0..=4 => workers,
            5..=7 => 0,
            _ => c.below(u64::from(workers) + 1) as u32,
        };
        let patience = c.between(8, 30) * 100;
        let minibatch = 8;
        let rounds = c.between(60, 220);
        let policy = Policy {
            workers,
            min_workers: if c.happens(60) { 1 } else { c.between(1, u64::from(workers)) as u32 },
            max_workers: (workers + c.below(3) as u32).min(8),
            local,
            on_loss: if c.happens(75) { OnLoss::Shrink } else { OnLoss::Wait },
            failures: [1, 2, 3, 3, 4, 8][c.below(6) as usize],
            total: ImagesSeen(u64::from(minibatch) * rounds),
            startup: Duration::from_secs(c.between(8, 20)),
            patience: Duration::from_millis(patience),
            stop: Duration::from_secs(c.between(10, 20)),
        };
        let fault_time = c.between(4, 16) * 1000;
        let count = match c.below(10) {
            0 => 0,
            1..=4 => c.between(1, 3),
            5..=7 => c.between(3, 8),
            _ => c.between(8, 20),
        };
        let mut faults: Vec<(Millis, Fault)> =
            (0..count).map(|_| (c.between(200, fault_time), fault(c, patience))).collect();
        if c.happens(3) {
            faults.push((c.between(1000, fault_time), Fault::CrashCoordinator));
        }
        if local == 0 && workers > 1 && c.happens(30) {
            // some wait with an older state, then those at work go
            let at = c.between(2000, fault_time);
            faults.push((at, Fault::Operator(Command::Scale(1))));
            faults.push((at + c.between(300, 2000), Fault::Operator(Command::Checkpoint)));
            let goes = if c.happens(50) { Fault::Kill } else { Fault::Term };
            faults.push((at + c.between(2000, 5000), goes(c.below(8))));
        }
        let mut fault_time = faults.iter().map(|(at, _)| *at).fold(fault_time, u64::max);
        // what came later to this plan draws by itself: the seeds that it leaves alone keep their stories
        let mut late = Chance::new(seed ^ 0x5CC);
        let successions = successions(&mut late, &policy);
        for (at, succession, end) in &successions {
            faults.push((*at, Fault::Succession(*succession)));
            fault_time = fault_time.max(*end);
        }
        if let Some((_, Succession { fate: Fate::Pauses, returns, .. }, end)) = successions.last()
            && *returns > patience * 4
        {
            // all have gone over to the other one, and some look for a coordinator while they see only the one that is stopped
            let from = end - returns + patience * 3;
            faults.push((from, Fault::HideStore(end - from)));
            faults.extend((0..4).map(|who| (from + late.between(1, patience / 2), Fault::BreakStream(who))));
            faults.push((from + patience * 3 / 4, Fault::Kill(late.below(4))));
        }
        let mut apart = Chance::new(seed ^ 0xA9A);
        if workers > 1 && apart.happens(6) {
            // for longer than a peer's silence is borne
            let (at, time) = (apart.between(1500, fault_time.max(1600)), apart.between(11_000, 40_000));
            faults.push((at, Fault::CutPeers(apart.below(8), apart.below(8), time)));
            fault_time = fault_time.max(at + time);
        }
        let mut plan = Self {
            seed,
            policy,
            orphan_patience: c.between(4, 12) * if successions.is_empty() { 1000 } else { 4000 },
            delay: [1, 5, 20, 60][c.below(4) as usize],
            step: [10, 30, 60, 120][c.below(4) as usize],
            start: c.between(50, 800),
            store: [5, 50, 300][c.below(3) as usize],
            checkpoint_images: if c.happens(70) { c.between(2, 40) * 16 } else { 0 },
            minibatch,
            phases: 2,
            rounds: c.between(1, 2) as u32,
            start_fails: if c.happens(10) { 20 } else { 0 },
            stumbles: c.happens(25).then(|| (c.between(2, 4), c.between(patience / 2, patience * 2))),
            poison: c.happens(4).then(|| c.between(5, rounds - 5) * 8),
            healed: fault_time + 200,
            stop_after: c.happens(40).then(|| c.below(15_000)),
            faults,
        };
        if workers > 1 && successions.is_empty() && apart.happens(6) {
            plan.orphan_one(&mut apart, patience);
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// One worker alone does not hear the coordinator, nor is heard, for so long that it leaves.
    fn orphan_one(&mut self, c: &mut Chance, patience: Millis) {
        let (at, who) = (c.between(1500, 6000), c.below(8));
        let time = self.orphan_patience + patience * c.between(2, 8);
        self.faults.extend([(at, Fault::CutUp(who, time)), (at, Fault::CutDown(who, time))]);
        self.healed = self.healed.max(at + time + 200);
    }
}

fn fault(c: &mut Chance, patience: Millis) -> Fault {
    let who = c.below(8);
    // short and long against the patience
    let long = |c: &mut Chance| match c.below(3) {
        0 => c.between(50, patience / 2),
        1 => c.between(patience / 2, patience * 2),
        _ => c.between(patience * 2, patience * 5),
    };
    match c.below(100) {
        0..=17 => Fault::Kill(who),
        18..=19 => Fault::KillMost(who),
        20 => Fault::Trouble(who),
        21 => Fault::GivesUp(who, [1, 6, 8][c.below(3) as usize]),
        22..=31 => Fault::Pause(who, long(c)),
        32..=33 => Fault::PauseAll(long(c)),
        34..=38 => Fault::Hang(who, long(c) * 2),
        39..=50 => Fault::BreakStream(who),
        51..=55 => Fault::CutUp(who, long(c)),
        56..=60 => Fault::CutDown(who, long(c)),
        61..=63 => Fault::CutCoordinator(long(c)),
        64..=67 => Fault::CutPeers(who, c.below(8), long(c)),
        68..=71 => Fault::Term(who),
        72..=77 => Fault::Arrive,
        78..=82 => Fault::PauseCoordinator(long(c) * 2),
        83..=84 => Fault::JumpAhead(long(c) * 4),
        85 => Fault::JumpBack(long(c)),
        86..=88 => Fault::StoreFails(long(c)),
        89..=90 => Fault::StoreHangs(long(c)),
        91..=94 => Fault::Operator(Command::Scale(c.below(9) as u32)),
        95..=98 => Fault::Operator(Command::Checkpoint),
        _ if c.happens(60) => Fault::Operator(Command::Stop),
        _ => Fault::Operator(Command::Kill),
    }
}

/// When the coordinator is replaced, and when that is over at the latest.
fn successions(c: &mut Chance, policy: &Policy) -> Vec<(Millis, Succession, Millis)> {
    let count = if c.happens(35) { c.between(1, 3) } else { 0 };
    let patience = policy.patience.as_millis() as Millis;
    let mut at = 0;
    (0..count)
        .map(|_| {
            at += c.between(300, 9000);
            let (fate, elsewhere) = match c.below(10) {
                0..=4 => (Fate::Dies(c.below(8)), false),
                5..=6 => (Fate::Dies(c.below(8)), true),
                7 => (Fate::MachineDies, true),
                8 if policy.local == 0 => (Fate::IsCut, true),
                _ => (Fate::Pauses, true),
            };
            let after = [c.between(20, 300), c.between(300, patience * 2), c.between(patience, patience * 5)];
            let succession = Succession {
                fate,
                after: after[c.below(3) as usize],
                elsewhere,
                moves: c.happens(50),
                attaches: c.happens(70),
                lag: if c.happens(30) { c.below(100) } else { 0 },
                returns: c.between(100, patience * 8),
            };
            // four signs of life that do not come, each after twice the patience at most
            let from = at;
            at += succession.after + if elsewhere { patience * 8 + succession.returns } else { 0 };
            (from, succession, at + patience)
        })
        .collect()
}
