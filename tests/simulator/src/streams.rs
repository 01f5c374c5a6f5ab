//! Streams between workers and the coordinator, as TCP gives them: in order, whole, until they break. What is on the way then is lost,
//! and either end may learn of it late. A partition keeps messages back; a stream that is given up meanwhile loses them.

use crate::coordinator::Coordinator;
use crate::plan::Millis;
use crate::world::{Item, Step, Timer, World, tell};
use common::ids::Generation;
use coordinator_core::{Assignment, SessionId, Standing, Stored};

/// What a worker says.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Join,
    Progress(Standing),
    Counted(u64, Counted),
    Fin,
}

/// What a worker says again until it is confirmed.
#[derive(Clone, Debug)]
pub(crate) enum Counted {
    Stored { generation: Generation, stored: Stored },
    Leave { exit: u32, images: u64 },
}

/// What the coordinator says.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Opened,
    /// With the number of the coordinator.
    Welcome(u64),
    Assign(Assignment),
    Stop(Option<Generation>),
    Abort(Generation),
    Regroup(Generation),
    Checkpoint,
    /// What has arrived, and the number of the coordinator.
    Beat(u64, u64),
    Refused,
    /// Refused for now.
    Evicted,
    Fin,
}

/// One stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub worker: usize,
    pub coordinator: usize,
    pub session: Option<SessionId>,
    /// Nothing gets through any more.
    pub cut: bool,
    up_last: Millis,
    down_last: Millis,
}

impl World {
    pub(crate) fn new_stream(&mut self, worker: usize, coordinator: usize) -> usize {
        let (session, cut, up_last, down_last) = (None, false, self.now, self.now);
        self.streams.push(Stream { worker, coordinator, session, cut, up_last, down_last });
        self.streams.len() - 1
    }

    fn delay(&mut self) -> Millis {
        self.net.below(self.plan.delay + 1)
    }

    pub(crate) fn send_up(&mut self, stream: usize, message: Up) {
        let delay = self.delay();
        let Stream { worker, coordinator, cut: gone, up_last, .. } = self.streams[stream];
        let Coordinator { alive, cut, .. } = self.coordinators[coordinator];
        if gone || !alive {
            return;
        }
        let at = (self.now + delay).max(up_last).max(self.workers[worker].cut_up).max(cut);
        self.streams[stream].up_last = at;
        self.push(at, Item::Up(stream, message));
    }

    pub(crate) fn send_down(&mut self, stream: usize, message: Down) {
        let delay = self.delay();
        let Stream { worker, coordinator, cut: gone, down_last, .. } = self.streams[stream];
        let cut = self.coordinators[coordinator].cut;
        if gone {
            return;
        }
        let at = (self.now + delay).max(down_last).max(self.workers[worker].cut_down).max(cut);
        self.streams[stream].down_last = at;
        self.push(at, Item::Down(stream, message));
    }

    /// The present stream of a worker breaks.
    pub(crate) fn break_stream(&mut self, w: usize) {
        let Some(stream) = self.workers[w].stream() else { return };
        tell!(self, "the stream of {} breaks", self.workers[w].id);
        self.streams[stream].cut = true;
        let (mine, theirs) = (self.net.below(150), self.net.below(150));
        match self.net.below(10) {
            // only one end learns of it: the other falls silent, or is replaced
            0 => self.push(self.now + mine, Item::Worker(w, Timer::Broken(stream))),
            1 => {
                self.push(self.now + theirs, Item::Ended(stream));
                let silent = self.now + self.patience(w);
                self.excuse(w, silent);
            }
            _ => {
                self.push(self.now + mine, Item::Worker(w, Timer::Broken(stream)));
                self.push(self.now + theirs, Item::Ended(stream));
            }
        }
    }

    pub(crate) fn arrives_up(&mut self, stream: usize, message: Up) -> Step {
        if self.streams[stream].cut {
            return Ok(());
        }
        match message {
            Up::Join => self.joined(stream),
            Up::Fin => {
                // the server's half ends once it has read the other
                self.send_down(stream, Down::Fin);
                self.stream_ended(stream)
            }
            message => self.said(stream, message),
        }
    }
}
