//! The other ranks, behind one thread: reductions run there while backward goes on here.
//!
//! Operations are done in the order in which they are asked for, the same on every rank. The first failure ends the
//! generation: everything asked for afterwards fails at once with the same cause.

use collective::{Aborter, Collective, CollectiveError, TreeSum};
use native::HostF32;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce(&mut dyn Collective) -> Result<(), CollectiveError> + Send>;

enum Order {
    Do(Job),
    Report(Sender<Result<(), CollectiveError>>),
}

/// Handle of the communication thread, which ends with the last handle and leaves the others in good order.
pub struct Communicator {
    launcher: Launcher,
    aborter: Aborter,
    rank: u32,
    world: u32,
    waited: Duration,
}

/// Hands buffers to the communication thread, from whichever thread completes them.
#[derive(Clone)]
pub struct Launcher(Sender<Order>);

impl Launcher {
    /// Sums `buffer` over all ranks, in place, some time before the next [`Communicator::wait`] returns.
    pub fn sum(&self, mut buffer: HostF32) {
        self.order(Order::Do(Box::new(move |c| c.all_reduce_sum_f32(buffer.as_mut_slice()))));
    }

    fn order(&self, order: Order) {
        // The thread ends only when every sender is gone; if it died, `wait` finds out and says so.
        let _gone = self.0.send(order);
    }
}

impl Communicator {
    /// Takes the collective of one generation to its own thread.
    #[must_use]
    pub fn new(collective: Box<dyn Collective>) -> Self {
        let (rank, world, aborter) = (collective.rank(), collective.world(), collective.aborter());
        let (sender, receiver) = channel();
        std::thread::spawn(move || serve(collective, &receiver));
        Self { launcher: Launcher(sender), aborter, rank, world, waited: Duration::ZERO }
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

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// The first failure since the generation began.
    pub fn wait(&mut self) -> Result<(), CollectiveError> {
        let began = Instant::now();
        let (sender, receiver) = channel();
        self.launcher.order(Order::Report(sender));
        // the thread answers after its last operation, each of which has a deadline of its own
        let result = receiver.recv().unwrap_or(Err(CollectiveError::Aborted));
        self.waited += began.elapsed();
        result
    }

    /// Time spent in [`Communicator::wait`] since the last call of this function.
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

fn serve(mut collective: Box<dyn Collective>, orders: &Receiver<Order>) {
    let mut failed: Option<CollectiveError> = None;
    for order in orders {
        match order {
            Order::Do(job) if failed.is_none() => failed = job(collective.as_mut()).err(),
            Order::Do(_) => {}
            Order::Report(to) => {
                let _asker_gone = to.send(failed.clone().map_or(Ok(()), Err));
            }
        }
    }
}
