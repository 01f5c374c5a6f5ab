//! What the coordinator shows of a run: one value, from which the terminal, `status` and later pages are drawn.
//!
//! Pure: a function of the cluster and of what the run reported.

use common::metrics::{Quality, Tick, Verdict};
use coordinator_core::{Cluster, Link, Phase, Process, Stored};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A run at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the run.
    pub run: String,
    /// Its URL.
    pub url: String,
    /// `gathering`, `running`, `reconfiguring`, `draining`, `done`, `failed`.
    pub phase: String,
    /// The generation at work.
    pub generation: u64,
    /// Its workers.
    pub world: u32,
    /// Workers that are wanted.
    pub wanted: u32,
    /// Images seen.
    pub images: u64,
    /// Images at which the run is complete.
    pub total_images: u64,
    /// Key of the newest checkpoint.
    pub checkpoint: Option<String>,
    /// Images seen at the newest checkpoint.
    pub checkpoint_images: Option<u64>,
    /// The last tick.
    pub tick: Option<Tick>,
    /// The last quality metric of each name.
    pub quality: BTreeMap<String, Quality>,
    /// Workers in the order of their ranks.
    pub workers: Vec<Worker>,
    /// The number of its coordinator: the coordinators of a run are counted.
    #[serde(default)]
    pub epoch: u64,
    /// Whether this coordinator found the workers at work.
    #[serde(default)]
    pub taken_over: bool,
    /// What people should look after, although training goes on.
    #[serde(default)]
    pub alarm: Option<String>,
    /// What was found out about the training last.
    #[serde(default)]
    pub health: Vec<Verdict>,
    /// Why the run ended, once it did.
    pub verdict: Option<String>,
}

/// A worker at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its name.
    pub id: String,
    /// Its rank.
    pub rank: Option<u32>,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Machine it runs on.
    pub host: String,
    /// Its process id, if it is a child of the coordinator.
    pub pid: Option<u32>,
    /// `awaited`, `connected`, `disconnected`, `left`, `gone`.
    pub state: String,
    /// What it is doing.
    pub activity: String,
    /// Images seen, as it said last.
    pub images: u64,
}

/// What does not change during a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Name of the run.
    pub run: String,
    /// Its URL.
    pub url: String,
    /// Images at which the run is complete.
    pub total_images: u64,
    /// The number of this coordinator.
    pub epoch: u64,
    /// Whether it found the workers at work.
    pub taken_over: bool,
}

/// What the run reported last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// The last tick.
    pub tick: Option<Tick>,
    /// The last quality metric of each name.
    pub quality: BTreeMap<String, Quality>,
    /// What people should look after.
    pub alarm: Option<String>,
    /// What was found out about the training, the last few.
    pub health: Vec<Verdict>,
}

/// Verdicts that are remembered to be shown.
const VERDICTS: usize = 8;

impl Reported {
    /// Takes in a verdict.
    pub fn heard(&mut self, verdict: &Verdict) {
        self.health.push(verdict.clone());
        let old = self.health.len().saturating_sub(VERDICTS);
        self.health.drain(..old);
    }
}

/// The status of a run.
#[must_use]
pub fn status(facts: &Facts, cluster: &Cluster, reported: &Reported) -> Status {
    let mut workers: Vec<Worker> = cluster
        .members()
        .map(|(id, member)| Worker {
            id: id.to_string(),
            rank: member.rank.map(|rank| rank.0),
            device: member.device.clone(),
            host: member.host.clone(),
            pid: match member.process {
                Process::Alive { pid } => Some(pid),
                Process::Elsewhere | Process::Gone { .. } => None,
            },
            state: match (&member.process, &member.farewell, member.link) {
                (Process::Gone { .. }, ..) => "gone",
                (_, Some(_), _) => "left",
                (.., Link::Awaited) => "awaited",
                (.., Link::Up { .. }) => "connected",
                (.., Link::Down { .. }) => "disconnected",
            }
            .into(),
            activity: member.standing.activity.clone(),
            images: member.standing.images.0,
        })
        .collect();
    workers.sort_by(|one, other| {
        let place = |worker: &Worker| worker.rank.unwrap_or(u32::MAX);
        place(one).cmp(&place(other)).then_with(|| one.id.cmp(&other.id))
    });
    Status {
        run: facts.run.clone(),
        url: facts.url.clone(),
        phase: phase(cluster.phase()).into(),
        generation: cluster.generation().0,
        world: cluster.world(),
        wanted: cluster.wanted(),
        images: cluster.images().0,
        total_images: facts.total_images,
        checkpoint: cluster.newest().map(|Stored { manifest, .. }| manifest.clone()),
        checkpoint_images: cluster.newest().map(|stored| stored.images.0),
        tick: reported.tick.clone(),
        quality: reported.quality.clone(),
        health: reported.health.clone(),
        workers,
        epoch: facts.epoch,
        taken_over: facts.taken_over,
        alarm: reported.alarm.clone(),
        verdict: cluster.outcome().map(|outcome| outcome.reason.to_string()),
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Gathering => "gathering",
        Phase::Running => "running",
        Phase::Reconfiguring => "reconfiguring",
        Phase::Draining => "draining",
        Phase::Done => "done",
        Phase::Failed => "failed",
    }
}
