//! All ranks of one generation, as this one reaches them: over the mesh, and, where gradients lie on GPUs, through the GPUs.
//!
//! The two ways fail as one. An abort, a lost rank or a failed GPU ends both, here and, through the mesh, everywhere: while the
//! GPUs sum, the mesh is listened to, and it is the mesh that knows who is gone. Every wait for a GPU is the one in
//! [`Ranks::finish`]. Refuses to know NCCL: what sums on devices is a [`DeviceSums`].

use collective::{Collective, CollectiveError, How};
use native::DeviceBuffer;
use std::time::{Duration, Instant};

/// Sums of buffers in device memory over all ranks. No call waits.
pub trait DeviceSums: Send {
    /// Asks for the sum of `buffer`, in place. Sums are done in the order in which they are asked for.
    fn launch(&mut self, buffer: DeviceBuffer);

    /// Goes on, and says how much is still to be done; a change of that number is progress. A sum that is done can be used by
    /// whatever is queued on the device from now on.
    ///
    /// # Errors
    /// What has failed, for a person.
    fn poll(&mut self) -> Result<usize, String>;

    /// Ends whatever is under way, without waiting for that.
    fn abort(&mut self);
}

/// Sums over one rank: there before they are asked for.
pub struct Alone;

impl DeviceSums for Alone {
    fn launch(&mut self, _buffer: DeviceBuffer) {}

    fn poll(&mut self) -> Result<usize, String> {
        Ok(0)
    }

    fn abort(&mut self) {}
}

/// Time, so that tests need none.
pub trait Time: Send {
    /// Since some fixed point.
    fn now(&self) -> Duration;
    /// Lets a moment pass, at most a millisecond; a longer one after many looks in vain.
    fn pause(&mut self, looks: u32);
}

/// After a GPU has failed, time for the mesh to say that it was for a lost rank.
const GRACE: Duration = Duration::from_millis(100);

/// A rank may leave as soon as its own sums are done; one of ours is then done at least this often.
const LEAVING: Duration = Duration::from_millis(50);

/// Time to answer, for ranks of which one is missing in a sum.
const ROLL_CALL: Duration = Duration::from_secs(10);

/// A generation that is alive or has failed for one reason.
pub struct Ranks {
    collective: Box<dyn Collective>,
    device: Option<Box<dyn DeviceSums>>,
    deadline: Duration,
    time: Box<dyn Time>,
    /// What the device had still to do when it was last looked at, and since when it has been so.
    left: usize,
    since: Duration,
    /// When a rank was first seen to have left.
    leaving: Option<Duration>,
    failed: Option<CollectiveError>,
}

impl Ranks {
    /// `device` sums what lies in device memory; joining its group may still be under way. Where it makes no progress for
    /// `deadline`, the generation is given up; for calls over the mesh its own deadline holds.
    #[must_use]
    pub fn new(collective: Box<dyn Collective>, device: Option<Box<dyn DeviceSums>>, deadline: Duration) -> Self {
        Self::in_time(collective, device, deadline, Box::new(Clock(Instant::now())))
    }

    /// As [`Ranks::new`], by another clock.
    #[must_use]
    pub fn in_time(
        collective: Box<dyn Collective>,
        device: Option<Box<dyn DeviceSums>>,
        deadline: Duration,
        time: Box<dyn Time>,
    ) -> Self {
        let (left, since) = (usize::from(device.is_some()), time.now());
        Self { collective, device, deadline, time, left, since, leaving: None, failed: None }
    }

    /// From now on this much patience with device and mesh.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
        self.collective.set_deadline(deadline);
    }

    /// The mesh, to be asked who is who.
    #[must_use]
    pub fn mesh(&self) -> &dyn Collective {
        self.collective.as_ref()
    }

    /// Whether the device has something to do, so that [`Ranks::look`] is worth while.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.left > 0 && self.failed.is_none()
    }

    /// One call over the mesh, after everything that was launched.
    ///
    /// # Errors
    /// The first failure of the generation, which this may be.
    pub fn together<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Collective) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.finish()?;
        call(self.collective.as_mut()).map_err(|cause| self.fail(cause))
    }

    /// Asks for the sum of a buffer in device memory.
    ///
    /// # Errors
    /// As [`Ranks::together`]; [`CollectiveError::Misuse`] where nothing here sums on devices.
    pub fn launch(&mut self, buffer: DeviceBuffer) -> Result<(), CollectiveError> {
        self.alive()?;
        let Some(device) = &mut self.device else {
            let what = "gradients lie on a GPU, and the ranks of this generation sum in host memory only".to_owned();
            return Err(self.fail(CollectiveError::Misuse(what)));
        };
        device.launch(buffer);
        (self.left, self.since) = (self.left + 1, self.time.now());
        self.look()
    }

    /// Goes on with what was launched, and finds out whether all ranks are well. Does not wait, but where the generation ends.
    ///
    /// # Errors
    /// As [`Ranks::together`].
    pub fn look(&mut self) -> Result<(), CollectiveError> {
        self.alive()?;
        let Some(device) = self.device.as_mut().filter(|_| self.left > 0) else { return Ok(()) };
        let now = self.time.now();
        match device.poll() {
            Ok(left) if left != self.left => (self.left, self.since) = (left, now),
            Ok(_) => {}
            Err(what) => {
                let cause = self.reason(what);
                return Err(self.fail(cause));
            }
        }
        if self.left == 0 {
            return Ok(());
        }
        match self.collective.check() {
            Ok(()) => {}
            Err(CollectiveError::PeerLost { how: How::Left, .. })
                if now.saturating_sub(self.since.max(*self.leaving.get_or_insert(now))) < LEAVING => {}
            Err(cause) => {
                // of a rank that left, the others hear from a call that needs it
                let cause = self.collective.barrier().err().unwrap_or(cause);
                return Err(self.fail(cause));
            }
        }
        if now.saturating_sub(self.since) >= self.deadline {
            let cause = self.call_the_roll();
            return Err(self.fail(cause));
        }
        Ok(())
    }

    /// Waits until everything that was launched is done.
    ///
    /// # Errors
    /// As [`Ranks::together`].
    pub fn finish(&mut self) -> Result<(), CollectiveError> {
        let mut looks = 0;
        loop {
            self.look()?;
            if self.left == 0 {
                return Ok(());
            }
            self.time.pause(looks);
            looks = looks.saturating_add(1);
        }
    }

    fn alive(&self) -> Result<(), CollectiveError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Ends both ways, for good.
    fn fail(&mut self, cause: CollectiveError) -> CollectiveError {
        self.collective.aborter().abort(); // does nothing where the mesh has ended by itself
        if let Some(device) = &mut self.device {
            device.abort();
        }
        self.failed.get_or_insert(cause).clone()
    }

    /// Why the device has failed: for a rank that the mesh knows lost, or for what it says itself.
    fn reason(&mut self, what: String) -> CollectiveError {
        let until = self.time.now() + GRACE;
        while self.time.now() < until {
            if let Err(cause) = self.collective.check() {
                return cause;
            }
            self.time.pause(u32::MAX);
        }
        CollectiveError::Device(what)
    }

    /// Nothing has moved on the device for too long: whom it waits for, the device does not know. Whoever does not come to a
    /// barrier is missing in the sum too.
    fn call_the_roll(&mut self) -> CollectiveError {
        let after = self.deadline;
        self.collective.set_deadline(ROLL_CALL.min(after));
        match self.collective.barrier() {
            Err(CollectiveError::TimedOut { waiting_for, .. }) => CollectiveError::TimedOut { after, waiting_for },
            Err(cause) => cause,
            Ok(()) => {
                CollectiveError::Device(format!("no sum was done for {after:.1?}, while every rank answers over TCP"))
            }
        }
    }
}

/// Time as it passes.
struct Clock(Instant);

impl Time for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&mut self, looks: u32) {
        match looks {
            0..100 => std::thread::yield_now(),
            100..2000 => std::thread::sleep(Duration::from_micros(50)),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests;
