//! The other ranks, behind one thread: reductions run there while backward goes on here.
//!
//! Operations are done in the order in which they are asked for, the same on every rank. The first failure ends the
//! generation: everything asked for afterwards fails at once with the same cause. Buffers in device memory are summed on the
//! device; meanwhile the thread looks after them, and after the other ranks, also when nobody waits for it.

use crate::ranks::Ranks;
use collective::{Aborter, Collective, CollectiveError, TreeSum};
use native::{DeviceBuffer, HostBf16, HostF32, NativeError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// While the device sums and nothing else is asked for, it is looked at this often: a sum that follows another one starts
/// when that is seen to have started.
const LOOK: Duration = Duration::from_micros(50);

/// The thread ends, and leaves the generation, within this time when it is idle; one that hangs is not waited for longer.
const ENDING: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce(&mut dyn Collective) -> Result<(), CollectiveError> + Send>;

enum Order {
    Do(Job),
    Device(DeviceBuffer),
    End(Sender<()>),
    Report(Sender<Result<(), CollectiveError>>),
}

/// Handle of the communication thread, which ends with the last handle and leaves the others in good order.
pub struct Communicator {
    launcher: Launcher,
    aborter: Aborter,
    generation: u64,
    rank: u32,
    world: u32,
    waited: Duration,
    waiting: Arc<AtomicBool>,
}

/// Hands buffers to the communication thread, from whichever thread completes them.
#[derive(Clone)]
pub struct Launcher(Sender<Order>);

impl Launcher {
    /// Sums `buffer`, contiguous floats or bfloat16, over all ranks, in place, some time before the next [`Communicator::wait`] returns.
    /// On a device its values are those that this thread has queued there. A buffer that cannot be summed fails that `wait`.
    pub fn sum(&self, buffer: &Tensor) {
        if buffer.device() != Device::Cpu {
            return match DeviceBuffer::new(buffer) {
                Ok(buffer) => self.sum_on_device(buffer),
                Err(error) => self.fail(CollectiveError::Device(error.to_string())),
            };
        }
        let job: Result<Job, NativeError> = match buffer.kind() {
            Kind::BFloat16 => HostBf16::new(buffer).map(|mut buffer| {
                Box::new(move |c: &mut dyn Collective| c.all_reduce_sum_bf16(buffer.as_mut_slice())) as Job
            }),
            _ => HostF32::new(buffer).map(|mut buffer| {
                Box::new(move |c: &mut dyn Collective| c.all_reduce_sum_f32(buffer.as_mut_slice())) as Job
            }),
        };
        match job {
            Ok(job) => self.order(Order::Do(job)),
            Err(error) => self.fail(CollectiveError::Misuse(error.to_string())),
        }
    }

    /// As [`Launcher::sum`], on the device whatever memory it is.
    pub fn sum_on_device(&self, buffer: DeviceBuffer) {
        self.order(Order::Device(buffer));
    }

    fn fail(&self, cause: CollectiveError) {
        self.order(Order::Do(Box::new(move |_| Err(cause))));
    }

    fn order(&self, order: Order) {
        // The thread ends only when every sender is gone; if it died, `wait` finds out and says so.
        let _gone = self.0.send(order);
    }
}

impl Communicator {
    /// Takes the collective of one generation to its own thread. Nothing sums on devices.
    #[must_use]
    pub fn new(collective: Box<dyn Collective>) -> Self {
        Self::of(Ranks::new(collective, None, Duration::MAX))
    }

    /// Takes the ranks of one generation to their own thread.
    #[must_use]
    pub fn of(ranks: Ranks) -> Self {
        let (rank, world, aborter) = (ranks.mesh().rank(), ranks.mesh().world(), ranks.mesh().aborter());
        let generation = ranks.mesh().generation();
        let (sender, receiver) = channel();
        std::thread::spawn(move || serve(ranks, &receiver));
        Self {
            launcher: Launcher(sender),
            aborter,
            generation,
            rank,
            world,
            waited: Duration::ZERO,
            waiting: Arc::default(),
        }
    }

    /// `waiting` is true from now on while [`Communicator::wait`] waits for other ranks.
    #[must_use]
    pub fn telling(mut self, waiting: Arc<AtomicBool>) -> Self {
        self.waiting = waiting;
        self
    }

    /// Number of the formation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// This worker's position.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Number of workers.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.world
    }

    /// For the hooks.
    #[must_use]
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// Ends the generation from any thread; blocked calls on every rank return.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.aborter.clone()
    }

    /// Waits until everything that was asked for is done; on a device too, so that what this thread queues there from now on
    /// finds the sums.
    ///
    /// # Errors
    /// The first failure since the generation began.
    pub fn wait(&mut self) -> Result<(), CollectiveError> {
        let began = Instant::now();
        let (sender, receiver) = channel();
        self.launcher.order(Order::Report(sender));
        // the thread answers after its last operation, each of which has a deadline of its own
        self.waiting.store(true, Ordering::Relaxed);
        let result = receiver.recv().unwrap_or(Err(CollectiveError::Aborted));
        self.waiting.store(false, Ordering::Relaxed);
        self.waited += began.elapsed();
        result
    }

    /// Time spent in [`Communicator::wait`] since the last call of [`Communicator::take_waited`].
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The same, and it starts anew.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// When a rank is lost or the generation aborted.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.ask(|c| c.barrier())
    }

    /// How long so many bytes take to most other ranks and back: the lower median over them, zero where there is none.
    ///
    /// # Errors
    /// When a rank is lost or the generation aborted.
    pub fn way(&mut self, bytes: usize) -> Result<Duration, CollectiveError> {
        let mut times = self.ask(move |c| c.echo(bytes))?;
        times.sort_unstable();
        // the first one is this rank's own
        Ok(times.get(times.len() / 2).copied().unwrap_or_default())
    }

    /// Every rank's bytes, in rank order.
    ///
    /// # Errors
    /// When a rank is lost or the generation aborted.
    pub fn gather(&mut self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.ask(move |c| c.all_gather_bytes(&mine))
    }

    /// Sums the numbers over all ranks.
    ///
    /// # Errors
    /// When a rank is lost or the generation aborted.
    pub fn sum_f64(&mut self, mut values: Vec<f64>) -> Result<Vec<f64>, CollectiveError> {
        self.ask(move |c| c.all_reduce_sum_f64(&mut values).map(|()| values))
    }

    /// Sums gradients of statistical groups on the one fixed tree, into `out`: the same bits on every rank, for any world.
    ///
    /// # Errors
    /// When a rank is lost or the generation aborted.
    pub fn tree_sum(&mut self, sum: TreeSum, mut out: HostF32) -> Result<TreeSum, CollectiveError> {
        self.ask(move |c| c.tree_sum_f32(&sum, out.as_mut_slice()).map(|()| sum))
    }

    /// Runs `f` on the communication thread and waits for its answer.
    fn ask<T: Send + 'static>(
        &mut self,
        f: impl FnOnce(&mut dyn Collective) -> Result<T, CollectiveError> + Send + 'static,
    ) -> Result<T, CollectiveError> {
        let (sender, receiver) = channel();
        self.launcher.order(Order::Do(Box::new(move |c| {
            let _asker_gone = sender.send(f(c)?);
            Ok(())
        })));
        self.wait()?;
        receiver.try_recv().map_err(|_| CollectiveError::Aborted)
    }
}

impl Drop for Communicator {
    /// Leaves in good order, so that the end of the process cuts nothing short.
    fn drop(&mut self) {
        let (sender, receiver) = channel();
        self.launcher.order(Order::End(sender));
        let _in_time = receiver.recv_timeout(ENDING);
    }
}

fn serve(mut ranks: Ranks, orders: &Receiver<Order>) {
    loop {
        let order = if ranks.busy() {
            orders.recv_timeout(LOOK)
        } else {
            orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match order {
            // a failure is kept, and told by the next report
            Ok(Order::Do(job)) => drop(ranks.together(job)),
            Ok(Order::Device(buffer)) => drop(ranks.launch(buffer)),
            Err(RecvTimeoutError::Timeout) => drop(ranks.look()),
            Ok(Order::Report(to)) => {
                let _asker_gone = to.send(ranks.finish());
            }
            Ok(Order::End(to)) => {
                drop(ranks);
                let _asker_gone = to.send(());
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
