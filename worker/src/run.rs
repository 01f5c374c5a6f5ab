//! A run from its position to its end: step after step, and between cycles whatever is due.
//!
//! What is due (tick, grid, metric, checkpoint, end) is a pure function of images seen and of metrics that all know, so every rank does
//! it at the same step without a message. What people want (stop, checkpoint) rides as flags in the gradients and is agreed by all.

use crate::checkpoint::{Checkpoints, Committed};
use crate::environment::peak_memory_mib;
use crate::evaluate::Evaluator;
use crate::failure::Failure;
use crate::images::Images;
use crate::input::Input;
use crate::outputs::Outputs;
use crate::pictures;
use crate::sync::{self, Carried};
use crate::trainer::Trainer;
use agent::{Activity, Agent, Commands, Progress, Stored};
use collective::ECHO_BYTES_MAX;
use common::checkpoint::TrainerCursor;
use common::growth::Level;
use common::ids::{Generation, ImagesSeen};
use common::judge::{self, Judgement};
use common::ledger::{Class, Spent, Tally};
use common::metrics::{Event, Quality, STOP, Tick, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use worker_core::{Agreed, Ending, Flags, Wishes};

/// Updates skipped in a row, all networks together, after which the run has diverged.
const SKIPPED_MAX: u64 = 16;
/// Steps between two looks at their number: the host waits for the device then.
const LOOK: u64 = 16;
/// Steps between two looks at the way to the other ranks, and the share of a network's gradients that goes there and back for it.
const WAY: u64 = 64;
const WAY_SHARE: usize = 16;

/// Between two words that the run is to end, while it does not.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// What training needs besides the trainer.
pub struct Parts<'a> {
    /// The session with the coordinator.
    pub agent: &'a Agent,
    /// Images, ahead of time.
    pub input: &'a mut Input,
    /// Checkpoints.
    pub checkpoints: &'a mut Checkpoints,
    /// Grids.
    pub outputs: Outputs,
    /// The images of the run.
    pub images: Arc<Images>,
    /// Metrics.
    pub evaluator: &'a mut Evaluator,
}

/// Trains until the schedule is complete or everybody agreed to stop, and stores the last state. Also says where it stands,
/// however it ended: that is what the next generation goes on from.
///
/// The ending is an error when a rank is lost, or data or store fail beyond what a run can bear.
pub fn train(
    trainer: &mut Trainer,
    parts: &mut Parts<'_>,
    from: Option<Carried>,
) -> (Result<Ending, Failure>, Carried) {
    let mut training = Training::new(trainer, parts, from);
    let ending = training.run();
    training.settle(&ending);
    let (cursor, done, tally) = (training.cursor(), training.cycle_began, std::mem::take(&mut training.tally));
    (ending, Carried { cursor, done, parent: training.parts.checkpoints.parent().cloned(), tally })
}

struct Training<'t, 'a> {
    trainer: &'t mut Trainer,
    parts: &'t mut Parts<'a>,
    tick: TickState,
    /// Seconds of training before this generation.
    seconds_before: f64,
    best: BTreeMap<String, f64>,
    judgement: Judgement,
    /// That nothing judges, although something was to, was said.
    unjudged: bool,
    /// Why the run is to end, and when that was said last.
    concluded: Option<(String, Instant)>,
    /// Spent in this step on what is no part of it.
    aside: Duration,
    /// What is not yet told to the others.
    wishes: Wishes,
    /// A rank has to be given the state anew.
    repair: bool,
    began: Instant,
    /// Images at the last look at what is due.
    cycle_began: u64,
    tally: Tally,
    /// Where the time went up to the last step that counts.
    last: Clock,
    work: Work,
}

/// This rank's own part of a step, in seconds, averaged over the last ones; and the way to the others.
#[derive(Clone, Copy, Default)]
struct Work {
    busy: f64,
    data: f64,
    /// The shorter of the last two.
    way: f64,
    last_way: f64,
    /// Taken in this generation.
    steps: u32,
}

impl Work {
    fn count(&mut self, before: &Clock, after: &Clock) {
        // a tick's end sets the clocks back
        let spent = |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64();
        let all = after.at.saturating_duration_since(before.at).as_secs_f64();
        let (reduce, data) = (spent(after.reduce, before.reduce), spent(after.data, before.data));
        let aside = spent(after.checkpoint, before.checkpoint) + spent(after.other, before.other);
        self.steps = self.steps.saturating_add(1);
        let weight = if self.busy == 0.0 { 1.0 } else { 0.1 };
        self.busy += weight * ((all - reduce - aside).max(0.0) - self.busy);
        self.data += weight * (data - self.data);
    }
}

/// Where the time of a tick went so far.
#[derive(Clone, Copy)]
struct Clock {
    at: Instant,
    reduce: Duration,
    data: Duration,
    checkpoint: Duration,
    other: Duration,
}

/// The tick in work.
struct TickState {
    start_images: u64,
    /// Images when this process began to measure it: after a resume, later than its start.
    measured_from: u64,
    began: Instant,
    checkpoint_stall: Duration,
    other: Duration,
}

impl TickState {
    fn new(start_images: u64, measured_from: u64) -> Self {
        Self {
            start_images,
            measured_from,
            began: Instant::now(),
            checkpoint_stall: Duration::ZERO,
            other: Duration::ZERO,
        }
    }
}

/// Whether a multiple of `every` lies in `(before, now]`; with `every` 0, whether anything does.
fn passed(before: u64, now: u64, every: u64) -> bool {
    now > before && (every == 0 || now / every > before / every)
}

fn images_of(kimg: f64) -> u64 {
    (kimg * 1000.0).round() as u64
}

impl<'t, 'a> Training<'t, 'a> {
    fn new(trainer: &'t mut Trainer, parts: &'t mut Parts<'a>, from: Option<Carried>) -> Self {
        let (from, done, mut tally) =
            from.map(|carried| (carried.cursor, carried.done, carried.tally)).unwrap_or_default();
        let communicator = trainer.communicator();
        // what the last generation waited for is counted there
        communicator.take_waited();
        let (generation, world) = (Generation(communicator.generation()), communicator.world());
        tally.begin(generation, world, trainer.mark());
        parts.input.take_waited();
        let (at, none) = (Instant::now(), Duration::ZERO);
        Self {
            tally,
            work: Work::default(),
            last: Clock { at, reduce: none, data: none, checkpoint: none, other: none },
            tick: TickState::new(from.tick_start_images, from.images),
            seconds_before: from.seconds,
            best: from.best,
            judgement: from.judgement,
            unjudged: false,
            concluded: None,
            aside: Duration::ZERO,
            wishes: Wishes::default(),
            repair: false,
            began: Instant::now(),
            cycle_began: done,
            trainer,
            parts,
        }
    }

    fn run(&mut self) -> Result<Ending, Failure> {
        // whoever spoke for the run before may not have told all of it
        self.record();
        if self.images() == 0 {
            pictures::reals(self.trainer, &self.parts.images, &mut self.parts.outputs);
            self.pictures()?;
            self.evaluate_untrained()?;
        }
        // the last generation may have broken before it did what was due
        if self.trainer.position().begins_cycle() && self.images() > self.cycle_began {
            self.evaluate_if_due()?;
            self.between_cycles()?;
        }
        let ending = loop {
            if self.trainer.position().begins_cycle() && self.images() >= self.trainer.config().train.total_images() {
                break Ending::Complete;
            }
            // of the last round only the end is stored: by its images the state before G's step would pass for it
            let last = |training: &Self| training.images() >= training.trainer.config().train.total_images();
            match self.step()? {
                Some(ending) if ending == Ending::Regroup || !last(self) => break ending,
                _ => {}
            }
        };
        if ending == Ending::Regroup {
            return Ok(ending);
        }
        if ending == Ending::Complete {
            self.pictures()?;
            let level = self.trainer.stage().level;
            self.evaluate(level)?;
        }
        self.report(Activity::Checkpoint, 0.0);
        let (cursor, began) = (self.cursor(), Instant::now());
        let last = self.parts.checkpoints.finish(self.trainer, cursor)?;
        self.tick.checkpoint_stall += began.elapsed();
        self.announce(last);
        self.parts.outputs.finish();
        // nobody leaves before everybody has what it waits for
        self.trainer.communicator().barrier()?;
        Ok(ending)
    }

    /// One step and what follows from it; an ending where all agreed on one.
    fn step(&mut self) -> Result<Option<Ending>, Failure> {
        let began = Instant::now();
        self.aside = Duration::ZERO;
        let commands = self.parts.agent.commands();
        if commands.dismissed {
            self.trainer.communicator().aborter().abort();
            return Err(Failure::Dismissed);
        }
        self.watch_end();
        let flags = self.flags(commands);
        let ahead = 2 * self.trainer.model().phases().iter().map(|p| p.repeats as usize).sum::<usize>();
        let upcoming = self.trainer.upcoming(ahead);
        let real = self.parts.input.next(&upcoming)?;
        let agreed = self.trainer.step(&real, flags)?;
        let steps = self.trainer.mark().steps;
        if steps.is_multiple_of(LOOK) && self.trainer.skipped_in_a_row() >= SKIPPED_MAX {
            return Err(Failure::Diverged(ImagesSeen(self.images())));
        }
        if self.trainer.position().begins_cycle() {
            self.evaluate_if_due()?;
        }
        self.keep_checkpoints(agreed)?;
        // two cannot tell which of them is far away
        if steps.is_multiple_of(WAY) && self.trainer.communicator().world() > 2 {
            let bytes = (self.trainer.gradient_bytes() / WAY_SHARE).min(ECHO_BYTES_MAX);
            let way = self.trainer.communicator().way(bytes)?.as_secs_f64();
            // one that was only held up for a moment is not far away
            let before = std::mem::replace(&mut self.work.last_way, way);
            self.work.way = if before > 0.0 { way.min(before) } else { 0.0 };
        }
        if self.trainer.position().begins_cycle() {
            self.between_cycles()?;
        }
        let clock = self.clock();
        self.work.count(&self.last, &clock);
        self.last = clock;
        // what a step takes is what a hung one is held against
        self.report(Activity::Train, began.elapsed().saturating_sub(self.aside).as_secs_f64());
        Ok(agreed.ending(self.trainer.communicator().world()).or(self.repair.then_some(Ending::Regroup)))
    }

    fn flags(&mut self, commands: Commands) -> Flags {
        let checkpoints = &mut self.parts.checkpoints;
        self.wishes.flags(commands, checkpoints.in_flight(), checkpoints.stored())
    }

    /// Says so when the time of training is used up, and says again what was not heeded: a coordinator may die over it.
    fn watch_end(&mut self) {
        let budget = self.trainer.config().train.stop.budget_s;
        match &self.concluded {
            None if budget.is_some_and(|budget| self.seconds() >= budget) => {
                self.conclude(format!("{:.0} s of training, which is train.stop.budget", self.seconds()));
            }
            Some((evidence, said)) if said.elapsed() > SAY_AGAIN => self.conclude(evidence.clone()),
            _ => {}
        }
    }

    /// Seconds of training since the run began.
    fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    /// Says why the run is to end. The coordinator then has all ranks stop, as for a person.
    fn conclude(&mut self, evidence: String) {
        self.concluded = Some((evidence.clone(), Instant::now()));
        let (images, what) = (self.images(), STOP.to_owned());
        self.say(&Event::Verdict(Verdict { images, what, evidence, advice: String::new() }));
    }

    /// Begins, concludes and announces checkpoints, each at the same step on every rank.
    fn keep_checkpoints(&mut self, agreed: Agreed) -> Result<(), Failure> {
        if agreed.committed > 0 {
            self.parts.checkpoints.committed();
        }
        if agreed.is_stored(self.trainer.communicator().world()) {
            self.parts.checkpoints.conclude(self.trainer)?;
        }
        let done = self.parts.checkpoints.poll();
        if done.is_some() {
            self.wishes.has_committed();
        }
        self.announce(done);
        let every = images_of(self.trainer.config().checkpoint.every_kimg);
        let (round_begins, in_flight) = (self.trainer.position().step == 0, self.parts.checkpoints.in_flight());
        let position = self.trainer.position();
        // the end is stored when all is known of it
        let ends = position.begins_cycle() && position.images >= self.trainer.config().train.total_images();
        let due = !ends && (self.parts.checkpoints.due(self.images(), every) || (self.best_is_unsaved() && !in_flight));
        // a run that may be diverging goes back to what was stored before
        let wanted = round_begins && (due || agreed.checkpoint > 0);
        if wanted && self.trainer.skipped_in_a_row() == 0 && self.wishes.begins(agreed, round_begins, in_flight, due) {
            let began = Instant::now();
            let cursor = self.cursor();
            self.parts.checkpoints.begin(self.trainer, cursor);
            self.tick.checkpoint_stall += began.elapsed();
        }
        Ok(())
    }

    /// Whether the last evaluation is the best one, and no checkpoint was begun since. The same on every rank.
    fn best_is_unsaved(&self) -> bool {
        let Judgement { at, best_at, .. } = self.judgement;
        let wanted = self.trainer.config().checkpoint.keep_best > 0 && at > 0 && at == best_at;
        wanted && !self.parts.checkpoints.has_begun(at)
    }

    /// Before a checkpoint, so that it holds what was found.
    fn evaluate_if_due(&mut self) -> Result<(), Failure> {
        let (now, config) = (self.images(), self.trainer.config());
        let (every, stop) = (images_of(config.metrics.every_kimg), config.train.stop);
        if every == 0 || !passed(self.cycle_began, now, every) || now >= config.train.total_images() {
            return Ok(());
        }
        let level = self.trainer.stage().level;
        self.evaluate(level)?;
        let Judgement { best, best_at, since, .. } = self.judgement;
        if self.judgement.stands_still(stop.evaluations) && self.concluded.is_none() {
            let at = ImagesSeen(best_at);
            self.conclude(format!(
                "{since} evaluations in a row were no better than before; the best was {best:.4} at {at}"
            ));
        }
        Ok(())
    }

    /// Tick and grid, where due.
    fn between_cycles(&mut self) -> Result<(), Failure> {
        let (now, config) = (self.images(), self.trainer.config());
        let samples = images_of(config.samples.every_kimg);
        let ends = now >= config.train.total_images();
        let ticks = ends || now - self.tick.start_images >= self.trainer.stage().tick_images;
        let before = std::mem::replace(&mut self.cycle_began, now);
        if (if samples == 0 { ticks } else { passed(before, now, samples) }) && !ends {
            self.pictures()?;
        }
        if ticks { self.end_tick() } else { Ok(()) }
    }

    fn end_tick(&mut self) -> Result<(), Failure> {
        let stats = self.trainer.take_statistics()?;
        self.compare()?;
        let skipped = self.trainer.skipped_updates();
        let (images, stage) = (self.images(), *self.trainer.stage());
        let clock = self.clock();
        let seconds = (clock.at - self.tick.began).as_secs_f64();
        let shown = (images - self.tick.measured_from) as f64;
        let classes = self.spent(&clock);
        self.tally.close(self.trainer.mark(), &classes, true);
        self.trainer.communicator().take_waited();
        self.parts.input.take_waited();
        let spent = [
            ("data", Class::Data),
            ("compute", Class::Compute),
            ("reduce_wait", Class::Communication),
            ("checkpoint", Class::Checkpoint),
            ("other", Class::Evaluation),
        ];
        let tick = Tick {
            images,
            total_images: self.trainer.config().train.total_images(),
            lod: stage.level.lod,
            resolution: stage.level.resolution,
            alpha: stage.level.alpha(),
            minibatch: stage.minibatch,
            world: self.trainer.communicator().world(),
            generation: self.parts.checkpoints.generation().0,
            seconds: self.began.elapsed().as_secs_f64(),
            // a generation may begin where a tick ends
            sec_per_kimg: if shown > 0.0 { seconds / (shown / 1000.0) } else { 0.0 },
            img_per_sec: shown / seconds.max(f64::MIN_POSITIVE),
            memory_mib: peak_memory_mib(),
            skipped_updates: skipped,
            stats,
            spent: spent.into_iter().map(|(name, class)| (name.to_owned(), classes[&class])).collect(),
        };
        self.say(&Event::Tick(tick));
        self.record();
        self.tick = TickState::new(images, images);
        Ok(())
    }

    /// Whether all ranks still hold one state. One that does not gives up its own, and all meet again to give it theirs.
    fn compare(&mut self) -> Result<(), Failure> {
        let environment = self.parts.checkpoints.environment();
        let odd = sync::odd_ones(self.trainer, environment)?;
        let Some(right) = (0..).find(|rank| !odd.contains(rank)).filter(|_| !odd.is_empty()) else { return Ok(()) };
        let (rank, at) = (self.trainer.communicator().rank(), ImagesSeen(self.images()));
        if rank == right {
            tracing::warn!("ranks {odd:?} hold another state than rank {right} at {at}: they are given it anew");
        }
        if odd.contains(&rank) {
            tracing::warn!("this worker's state is not that of the others at {at}: has its memory lost a bit?");
            self.trainer.set_line(None);
        }
        self.repair = true;
        Ok(())
    }

    fn clock(&mut self) -> Clock {
        Clock {
            at: Instant::now(),
            reduce: self.trainer.communicator().waited(),
            data: self.parts.input.waited(),
            checkpoint: self.tick.checkpoint_stall,
            other: self.tick.other,
        }
    }

    /// Seconds of the tick so far.
    fn spent(&self, clock: &Clock) -> Spent {
        let seconds = clock.at.saturating_duration_since(self.tick.began).as_secs_f64();
        let known = [
            (Class::Communication, clock.reduce),
            (Class::Data, clock.data),
            (Class::Checkpoint, clock.checkpoint),
            (Class::Evaluation, clock.other),
        ];
        let known = known.map(|(class, time)| (class, time.as_secs_f64()));
        let compute = (seconds - known.iter().map(|(_, seconds)| seconds).sum::<f64>()).max(0.0);
        known.into_iter().chain([(Class::Compute, compute)]).collect()
    }

    /// This generation is over: what it did, and, if it was lost, what that cost so far.
    fn settle(&mut self, ending: &Result<Ending, Failure>) {
        let now = self.clock();
        let clock = if ending.is_ok() { now } else { self.last };
        let spent = self.spent(&clock);
        self.tally.close(self.trainer.mark(), &spent, false);
        match ending {
            Ok(Ending::Regroup) => {}
            Ok(_) => self.record(),
            Err(_) => {
                let in_flight = now.at.saturating_duration_since(self.last.at);
                let waited = now.reduce.saturating_sub(self.last.reduce).min(in_flight);
                self.tally.lose(Class::Detection, waited.as_secs_f64());
                self.tally.lose(Class::Redone, (in_flight - waited).as_secs_f64());
            }
        }
    }

    /// Tells what of the ledger was not told yet. Rank 0 speaks for the run.
    fn record(&mut self) {
        if self.trainer.communicator().rank() != 0 {
            return;
        }
        let agent = self.parts.agent;
        self.tally.tell(|span| match serde_json::to_string(span) {
            Ok(json) => agent.ledger(json),
            Err(error) => {
                tracing::warn!("a line of the ledger could not be written: {error}");
                true
            }
        });
    }

    /// A run that is evaluated at its end only says where it started too: the untrained network at full resolution.
    fn evaluate_untrained(&mut self) -> Result<(), Failure> {
        if self.trainer.config().metrics.every_kimg > 0.0 {
            return Ok(());
        }
        let level = Level { lod: 0.0, resolution: self.trainer.config().model.resolution() };
        self.evaluate(level)?;
        // it is no result of training
        self.best.clear();
        self.judgement = Judgement::default();
        Ok(())
    }

    /// All metrics, unless this very state was evaluated already: a generation may break before a checkpoint holds that it was.
    fn evaluate(&mut self, level: Level) -> Result<(), Failure> {
        let config = self.trainer.config();
        let (kinds, judge, min_gain) = (config.metrics.kinds(), config.metrics.judge, config.train.stop.min_gain);
        let images = self.images();
        if kinds.is_empty() || (self.judgement.at == images && !self.judgement.basis.is_empty()) {
            return Ok(());
        }
        let began = Instant::now();
        self.report(Activity::Evaluate, 0.0);
        let found = self.parts.evaluator.evaluate(self.trainer, level)?;
        for quality in &found {
            let name = format!("{} {}", quality.metric, quality.of).trim_end().to_owned();
            let better = if quality.grows() { f64::max } else { f64::min };
            let best = self.best.entry(name).or_insert(f64::NAN);
            *best = better(*best, quality.mean());
        }
        match judge.map(|kind| judge::value(kind, &found)) {
            Some(Some((value, basis))) => _ = self.judgement.hear(&basis, images, value, min_gain),
            Some(None) if !std::mem::replace(&mut self.unjudged, true) && self.trainer.communicator().rank() == 0 => {
                tracing::warn!(
                    "metrics.judge gives no value (too few images, or no twins?): nothing is kept or ended by it"
                );
            }
            _ => {}
        }
        found.into_iter().for_each(|quality: Quality| self.say(&Event::Quality(quality)));
        self.set_aside(began.elapsed());
        Ok(())
    }

    /// Time that was spent on something else than training.
    fn set_aside(&mut self, time: Duration) {
        self.tick.other += time;
        self.aside += time;
    }

    /// What the networks make now, for people to see.
    fn pictures(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let Parts { images, outputs, .. } = &mut *self.parts;
        pictures::made(self.trainer, images, outputs)?;
        self.set_aside(began.elapsed());
        Ok(())
    }

    fn cursor(&self) -> TrainerCursor {
        let position = self.trainer.position();
        let modules = self.trainer.model().modules().iter();
        TrainerCursor {
            images: position.images,
            cycle_images: position.cycle_images,
            repeat: position.round,
            phase: position.step,
            steps: self.trainer.mark().steps,
            last_knee: self.trainer.knee(),
            skipped_updates: self.trainer.skipped_updates(),
            draw: self.trainer.draw(),
            optimizer_steps: modules
                .zip(self.trainer.optimizers())
                .map(|(m, o)| ((*m).to_owned(), o.steps()))
                .collect(),
            tick_start_images: self.tick.start_images,
            seconds: self.seconds(),
            best: self.best.clone(),
            judgement: self.judgement.clone(),
        }
    }

    fn announce(&self, committed: Option<Committed>) {
        let Some(done) = committed else { return };
        tracing::info!(
            "checkpoint {} committed in {:.2} s, {} bytes sent",
            done.key,
            done.took.as_secs_f64(),
            done.bytes
        );
        self.parts.agent.stored(Stored {
            generation: done.generation,
            images: done.images,
            manifest: done.key,
            bytes: done.bytes,
            stall_seconds: done.stall.as_secs_f64(),
            seconds: done.took.as_secs_f64(),
        });
    }

    /// Rank 0 speaks for the run.
    fn say(&mut self, event: &Event) {
        if self.trainer.communicator().rank() == 0 {
            match serde_json::to_string(event) {
                Ok(json) => self.parts.agent.tick(json),
                Err(error) => tracing::warn!("a metric event could not be written: {error}"),
            }
        }
    }

    fn report(&self, activity: Activity, step_seconds: f64) {
        let position = self.trainer.position();
        let images = ImagesSeen(position.images);
        let Work { busy: busy_seconds, data: data_seconds, way: way_seconds, steps, .. } = self.work;
        let (phase, share) = (position.step, self.trainer.share());
        self.parts.agent.progress(Progress {
            images,
            phase,
            steps,
            activity,
            step_seconds,
            busy_seconds,
            data_seconds,
            way_seconds,
            share,
            // said when a generation is left
            ..Progress::default()
        });
    }

    fn images(&self) -> u64 {
        self.trainer.position().images
    }
}
