//! One optimizer step after another: gradients of a phase, their reduction, the update, the average.
//!
//! The engine names no network and decides nothing about files, commands or ends; that is `run`. A step is a function of
//! the parameters, the run's seed and the position, and of nothing else; which rank computes which part does not matter.
//! Nothing here waits for the device except to read what ranks agree on.

mod gradients;

pub use worker_core::{Agreed, Flags};

use gradients::Gradients;

use crate::chaos::{Ordeal, Struck};
use crate::communicator::Communicator;
use crate::models::{Batch, Draw, GanModel, Phase, Whole};
use crate::optimizer::Optimizer;
use collective::{CollectiveError, TreeSum, deal};
use common::chaos::{Deed, Point};
use common::config::resolved::{Determinism, Precision, ReducePrecision, RunConfig};
use common::ids::{Generation, ImagesSeen};
use common::ledger::Mark;
use common::schedule::{Position, Stage, StateVersion};
use common::seed;
use native::{HostF32, NativeError};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};
use worker_core::FLAGS;

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Another rank is gone, or the generation was ended.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// libtorch refused; a defect.
    #[error(transparent)]
    Native(#[from] NativeError),
}

/// The step that comes next, for whoever fetches its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Upcoming {
    /// Images seen when it begins.
    pub images: u64,
    /// What holds during its cycle.
    pub stage: Stage,
    /// This rank's samples, positions in the global minibatch.
    pub samples: Range<u32>,
    /// Whether it is shown real images.
    pub reads_images: bool,
}

/// Networks, optimizers and position of one rank.
pub struct Trainer {
    config: RunConfig,
    model: Box<dyn GanModel>,
    communicator: Communicator,
    device: Device,
    /// One for each of the model's modules, in the same order.
    optimizers: Vec<Optimizer>,
    /// One for each phase, laid anew when the set of active parameters changes.
    gradients: Vec<Option<Gradients>>,
    average_of: Vec<Tensor>,
    averages: Vec<Tensor>,
    tree: TreeSum,
    position: Position,
    steps: u64,
    stage: Stage,
    /// The generation that brought the state where it is; `None` while it is nobody's.
    line: Option<Generation>,
    knee: Option<(u32, u32)>,
    /// Updates skipped, one float on the device.
    skipped: Tensor,
    /// The same, in a row.
    streak: Tensor,
    /// Which draw of random numbers this is, and its seed.
    draw: (u64, u64),
    /// What it suffers on purpose.
    ordeal: Ordeal,
    /// The gradient in work is to be no number.
    poisoned: bool,
    statistics: Statistics,
    /// What the step in work told: it counts once the step is taken.
    told: Vec<(String, Tensor, f64)>,
    /// Where in it the samples in work begin.
    piece_told: usize,
}

/// Sums over a tick of what the phases tell, on the device.
#[derive(Default)]
struct Statistics(BTreeMap<String, (Tensor, f64)>);

impl Statistics {
    /// `share` is this rank's part of a mean; it counts as one observation of the whole.
    fn add(&mut self, name: &str, share: &Tensor, observations: f64) {
        match self.0.get_mut(name) {
            Some((sum, count)) => {
                no_grad(|| *sum += share);
                *count += observations;
            }
            None => {
                self.0.insert(name.to_owned(), (share.detach().copy(), observations));
            }
        }
    }
}

impl Trainer {
    /// A trainer at the run's beginning.
    #[must_use]
    pub fn new(config: RunConfig, model: Box<dyn GanModel>, communicator: Communicator, device: Device) -> Self {
        let optimizers = (model.modules().iter())
            .map(|module| Optimizer::new(config.train.optimizer.clone(), module, model.parameters(module), device))
            .collect();
        let clones = |list: &[Tensor]| list.iter().map(|t| t.detach()).collect::<Vec<_>>();
        let averaged = model.average().map(|(of, average)| (model.parameters(of).tensors(), average.tensors()));
        let (average_of, averages) = averaged.map(|(of, average)| (clones(of), clones(average))).unwrap_or_default();
        let gradients = model.phases().iter().map(|_| None).collect();
        let seed = config.seed;
        Self {
            stage: Stage::at(&config, ImagesSeen(0)),
            config,
            model,
            communicator,
            device,
            optimizers,
            gradients,
            average_of,
            averages,
            tree: TreeSum::default(),
            position: Position::default(),
            steps: 0,
            line: None,
            knee: None,
            skipped: Tensor::zeros([1], (Kind::Float, device)),
            streak: Tensor::zeros([1], (Kind::Float, device)),
            draw: (0, seed),
            ordeal: Ordeal::default(),
            poisoned: false,
            statistics: Statistics::default(),
            told: Vec::new(),
            piece_told: 0,
        }
    }

    /// Goes on among other ranks, in a later generation. The former ones are left.
    pub fn turn_to(&mut self, communicator: Communicator) {
        self.communicator = communicator;
        self.ordeal.begin(self.communicator.rank(), self.steps);
    }

    /// The same, which will suffer what is ordered.
    #[must_use]
    pub fn with_ordeal(mut self, ordeal: Ordeal) -> Self {
        self.ordeal = ordeal;
        self
    }

    /// From now on random numbers are those of draw `number`.
    pub fn set_draw(&mut self, number: u64) {
        self.draw = (number, seed::redrawn(self.config.seed, number));
    }

    /// Which draw of random numbers this is.
    #[must_use]
    pub fn draw(&self) -> u64 {
        self.draw.0
    }

    /// Which state this is, if it is one.
    #[must_use]
    pub fn version(&self) -> Option<StateVersion> {
        Some(StateVersion::new(self.line?, self.position))
    }

    /// From now on this is the state to which generation `line` brought the run; with `None` it is none, and not to be used
    /// until it is filled.
    pub fn set_line(&mut self, line: Option<Generation>) {
        self.line = line;
    }

    /// Goes on from another position, reached in so many `steps`; the tensors were filled in by the caller.
    pub fn restore(&mut self, position: Position, steps: u64, knee: Option<(u32, u32)>, skipped: u64) {
        (self.position, self.steps) = (position, steps);
        self.stage = Stage::at(&self.config, ImagesSeen(position.cycle_images));
        self.knee = knee;
        no_grad(|| {
            let _same = self.skipped.fill_(skipped as f64);
            let _none = self.streak.fill_(0.0);
        });
    }

    /// Takes the next step, over this rank's samples: `real` are their images of each domain, `[n, 3, r, r]`, bytes, where the
    /// step reads any. `flags` are this rank's; the answer is all ranks' together.
    ///
    /// # Errors
    /// When another rank is lost. The step is then not taken on this rank: parameters and position are what they were.
    pub fn step(&mut self, real: &[Tensor], flags: Flags) -> Result<Agreed, StepError> {
        self.reset_at_knee();
        self.told.clear();
        self.suffer_at(Point::Forward);
        let deed = self.ordeal.due(Point::Reduce, self.steps);
        self.poisoned = deed.is_some_and(|(deed, _)| deed == Deed::Nan);
        let (index, phase) = self.phase_at(self.position);
        let active = self.model.active(phase.module, &self.stage.level);
        for module in self.model.modules() {
            let wanted = if *module == phase.module { &active[..] } else { &[] };
            self.model.parameters(module).require_gradients(wanted);
        }
        let handed = (self.stage.minibatch as usize, self.model.handed(&phase));
        // alone, nothing travels
        let reduce =
            if self.communicator.world() > 1 { self.config.train.reduce_precision } else { ReducePrecision::Fp32 };
        // others are gone before new ones are laid: a parameter has one hook, and who goes takes it along
        let laid = self.gradients[index].take().filter(|laid| laid.fits(&active, handed, reduce));
        let mut gradients = match laid {
            Some(laid) => laid,
            None => Gradients::new(self.model.parameters(phase.module), active, handed, reduce, self.device)?,
        };
        let agreed = match self.config.train.determinism {
            Determinism::Fast => self.reduce_fast(&mut gradients, &phase, real, flags, deed)?,
            Determinism::Bitwise => self.reduce_bitwise(&mut gradients, &phase, real, flags, deed)?,
        };
        self.suffer_at(Point::Update);
        self.update(&gradients, &phase)?;
        self.gradients[index] = Some(gradients);
        self.advance(&phase);
        Ok(agreed)
    }

    /// Gradients of this rank's share in as few passes as memory allows, reduced while the last one runs.
    fn reduce_fast(
        &mut self,
        gradients: &mut Gradients,
        phase: &Phase,
        real: &[Tensor],
        flags: Flags,
        deed: Struck,
    ) -> Result<Agreed, StepError> {
        gradients.begin(self.model.parameters(phase.module), flags.to_wire())?;
        let mine = self.my_groups();
        let parts = self.model.parts(phase);
        let pieces: Vec<_> = self
            .stage
            .micro_batches(&mine)
            .flat_map(|piece| (0..parts).map(move |part| (piece.clone(), part)))
            .collect();
        for (i, (piece, part)) in pieces.iter().enumerate() {
            let objective = self.loss(gradients, phase, real, &mine, (piece, *part))?;
            if i + 1 == pieces.len() {
                gradients.arm(self.communicator.launcher());
            }
            objective.backward();
        }
        if pieces.is_empty() {
            gradients.arm(self.communicator.launcher());
        }
        gradients.launch_rest();
        self.ordeal.strike(deed, &self.communicator, self.weights());
        self.communicator.wait()?;
        gradients.settle();
        Ok(Agreed::from_wire(gradients.flags()))
    }

    /// Gradients group by group, summed on one fixed tree: the same bits for every division into ranks.
    fn reduce_bitwise(
        &mut self,
        gradients: &mut Gradients,
        phase: &Phase,
        real: &[Tensor],
        flags: Flags,
        deed: Struck,
    ) -> Result<Agreed, StepError> {
        let mine = self.my_groups();
        let as_usize = mine.start as usize..mine.end as usize;
        let mut tree = std::mem::take(&mut self.tree);
        tree.restart(self.stage.groups() as usize, as_usize, gradients.flat().numel())?;
        for group in mine.clone() {
            gradients.begin(self.model.parameters(phase.module), [0.0; FLAGS])?;
            for part in 0..self.model.parts(phase) {
                self.loss(gradients, phase, real, &mine, (&(group..group + 1), part))?.backward();
            }
            tree.push(HostF32::new(gradients.flat())?.as_slice())?;
        }
        self.ordeal.strike(deed, &self.communicator, self.weights());
        self.tree = self.communicator.tree_sum(tree, HostF32::new(gradients.flat())?)?;
        let mut wire = flags.to_wire();
        let sums = self.communicator.sum_f64(wire.map(f64::from).to_vec())?;
        wire.iter_mut().zip(sums).for_each(|(flag, sum)| *flag = sum as f32);
        Ok(Agreed::from_wire(wire))
    }

    /// A part of the objective of `phase` over the groups of `piece`; its statistics are noted, and what it hands over lies in
    /// `gradients`.
    fn loss(
        &mut self,
        gradients: &Gradients,
        phase: &Phase,
        real: &[Tensor],
        mine: &Range<u32>,
        (piece, part): (&Range<u32>, u32),
    ) -> Result<Tensor, StepError> {
        let samples = self.stage.samples(piece);
        let offset = i64::from(samples.start - self.stage.samples(mine).start);
        let domains = if phase.reads_images { real } else { &[] };
        let piece_of = |domain: &Tensor| domain.narrow(0, offset, samples.len() as i64).to_device(self.device);
        let real = domains.iter().map(piece_of).collect();
        let batch = Batch { real, samples, total: self.stage.minibatch, part };
        let loss = {
            let _halved = self.autocast()?;
            self.model.loss(phase, &self.stage, &batch, &self.drawn())
        };
        if let Some(handed) = &loss.handed {
            gradients.hand_over(&batch.samples, handed);
        }
        if part == 0 {
            self.piece_told = self.told.len();
        }
        let observations = piece.len() as f64 / f64::from(self.stage.groups());
        for (name, share) in &loss.statistics {
            match self.told[self.piece_told..].iter_mut().find(|(told, ..)| told == name) {
                Some((_, sum, _)) => *sum = &*sum + share,
                None => self.told.push(((*name).to_owned(), share.shallow_clone(), observations)),
            }
        }
        Ok(if self.poisoned { loss.objective * f64::NAN } else { loss.objective })
    }

    /// Convolutions in bfloat16 until it is dropped, where the run wants them so.
    fn autocast(&self) -> Result<Option<native::Autocast>, StepError> {
        let wanted = self.config.train.precision == Precision::Bf16;
        Ok(wanted.then(|| native::Autocast::begin(self.device)).transpose()?)
    }

    /// The random numbers of the step in work.
    fn drawn(&self) -> Draw {
        Draw { seed: self.draw.1, step: self.position.images, kind: Kind::Float, device: self.device }
    }

    /// Those that make the images that people see.
    fn weights(&self) -> &[Tensor] {
        match self.model.average() {
            Some((_, average)) => average.tensors(),
            None => self.model.parameters(self.model.maker()).tensors(),
        }
    }

    fn suffer_at(&mut self, point: Point) {
        let due = self.ordeal.due(point, self.steps);
        self.ordeal.strike(due, &self.communicator, self.weights());
    }

    fn update(&mut self, gradients: &Gradients, phase: &Phase) -> Result<(), StepError> {
        for (name, share, observations) in std::mem::take(&mut self.told) {
            self.statistics.add(&name, &share, observations);
        }
        let squared = gradients.squared_norm();
        let found_inf = squared.isfinite().logical_not().to_kind(Kind::Float).view([1]);
        no_grad(|| {
            self.skipped += &found_inf;
            self.streak += 1.0;
            self.streak *= &found_inf;
        });
        let world = f64::from(self.communicator.world());
        self.statistics.add(&format!("gradient_norm/{}", phase.name), &(squared.sqrt() / world), 1.0 / world);
        let module = self.model.modules().iter().position(|m| *m == phase.module).unwrap_or_default();
        let parameters = self.model.parameters(phase.module);
        let whole = Whole { stage: &self.stage, draw: &self.drawn(), handed: gradients.handed() };
        self.model.before_update(phase, &whole);
        self.optimizers[module].step(parameters, gradients.active(), gradients.views(), &found_inf, &self.stage)?;
        if phase.averages {
            native::foreach_lerp(&self.averages, &self.average_of, 1.0 - self.stage.ema_decay)?;
        }
        Ok(())
    }

    fn advance(&mut self, phase: &Phase) {
        let shown = if phase.counts_images { self.stage.minibatch } else { 0 };
        self.position = self.position.advance(shown, self.steps_in_round(), self.config.train.minibatch_repeats);
        if self.position.begins_cycle() {
            self.stage = Stage::at(&self.config, ImagesSeen(self.position.images));
        }
        self.line = Some(Generation(self.communicator.generation()));
        self.steps += 1;
        // here, not when the next step begins: one position has one state
        self.reset_at_knee();
    }

    /// Forgets moments at the first step and whenever floor or ceil of lod changes.
    fn reset_at_knee(&mut self) {
        if !self.position.begins_cycle() {
            return;
        }
        let knee = Some(self.stage.level.knee());
        if knee != self.knee && self.config.train.optimizer.reset_for_new_lod {
            self.optimizers.iter_mut().for_each(Optimizer::reset);
        }
        self.knee = knee;
    }

    fn steps_in_round(&self) -> u32 {
        self.model.phases().iter().map(|p| p.repeats).sum()
    }

    fn phase_at(&self, position: Position) -> (usize, Phase) {
        let mut step = position.step;
        for (i, phase) in self.model.phases().iter().enumerate() {
            if step < phase.repeats {
                return (i, phase.clone());
            }
            step -= phase.repeats;
        }
        // a position beyond the round cannot come from `advance`; a checkpoint's is checked when it is read
        (0, self.model.phases()[0].clone())
    }

    /// Bytes of all gradients of a network as they travel, on average.
    #[must_use]
    pub fn gradient_bytes(&self) -> usize {
        let modules = self.model.modules();
        let numbers = |module: &&str| self.model.parameters(module).tensors().iter().map(Tensor::numel).sum::<usize>();
        modules.iter().map(numbers).sum::<usize>() * self.config.train.reduce_precision.bytes() / modules.len().max(1)
    }

    /// Statistical groups of the minibatch that this rank holds.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.my_groups().len() as u32
    }

    fn my_groups(&self) -> Range<u32> {
        groups_of(&self.stage, self.communicator.rank(), self.communicator.world())
    }

    /// The next `count` steps, as far as they can be known: for whoever fetches images ahead.
    #[must_use]
    pub fn upcoming(&self, count: usize) -> Vec<Upcoming> {
        let (mut position, mut stage) = (self.position, self.stage);
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            let (_, phase) = self.phase_at(position);
            let groups = groups_of(&stage, self.communicator.rank(), self.communicator.world());
            let samples = stage.samples(&groups);
            list.push(Upcoming { images: position.images, stage, samples, reads_images: phase.reads_images });
            let shown = if phase.counts_images { stage.minibatch } else { 0 };
            position = position.advance(shown, self.steps_in_round(), self.config.train.minibatch_repeats);
            if position.begins_cycle() {
                stage = Stage::at(&self.config, ImagesSeen(position.images));
            }
        }
        list
    }

    /// Means over all ranks of what the phases told since the last call. Waits for the device; every rank must call it.
    ///
    /// # Errors
    /// When another rank is lost.
    pub fn take_statistics(&mut self) -> Result<BTreeMap<String, f64>, StepError> {
        // ranks without samples name nothing, so the names come from all
        let names = std::mem::take(&mut self.statistics).0;
        let mine: Vec<(String, f64, f64)> =
            names.into_iter().map(|(name, (sum, count))| (name, sum.double_value(&[]), count)).collect();
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for bytes in self.communicator.gather(serde_json::to_vec(&mine).unwrap_or_default())? {
            let theirs: Vec<(String, Option<f64>, f64)> = serde_json::from_slice(&bytes).unwrap_or_default();
            for (name, sum, count) in theirs {
                let entry = sums.entry(name).or_default();
                // JSON has no NaN: a statistic that is not finite arrives as null
                *entry = (entry.0 + sum.unwrap_or(f64::NAN), entry.1 + count);
            }
        }
        Ok(sums.into_iter().map(|(name, (sum, count))| (name, sum / count.max(f64::MIN_POSITIVE))).collect())
    }

    /// Updates skipped since the run began. Waits for the device.
    #[must_use]
    pub fn skipped_updates(&self) -> u64 {
        self.skipped.double_value(&[0]) as u64
    }

    /// Updates skipped one after the other, up to now. Waits for the device.
    #[must_use]
    pub fn skipped_in_a_row(&self) -> u64 {
        self.streak.double_value(&[0]) as u64
    }

    /// Where the run stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// How much of the run is done, for the ledger.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { steps: self.steps, images: self.position.images }
    }

    /// `(floor, ceil)` of lod at the last reset, for the checkpoint.
    #[must_use]
    pub fn knee(&self) -> Option<(u32, u32)> {
        self.knee
    }

    /// What holds during the present cycle.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The run's configuration.
    #[must_use]
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The networks.
    #[must_use]
    pub fn model(&self) -> &dyn GanModel {
        self.model.as_ref()
    }

    /// The optimizer of each module, in the order of the model's modules.
    #[must_use]
    pub fn optimizers(&self) -> &[Optimizer] {
        &self.optimizers
    }

    /// The same, to be filled from a checkpoint.
    pub fn optimizers_mut(&mut self) -> &mut [Optimizer] {
        &mut self.optimizers
    }

    /// The other ranks.
    pub fn communicator(&mut self) -> &mut Communicator {
        &mut self.communicator
    }

    /// Where tensors live.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }
}

fn groups_of(stage: &Stage, rank: u32, world: u32) -> Range<u32> {
    let dealt = deal(stage.groups() as usize, world as usize);
    let mine = &dealt[rank as usize];
    mine.start as u32..mine.end as u32
}

#[cfg(test)]
pub(crate) mod tests;
