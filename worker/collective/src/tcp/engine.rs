//! Drives one call's [`Flow`] over the connections: sends and receives at the same time from one thread, and turns whatever
//! goes wrong into one error.
//!
//! Sockets are non-blocking and watched by one edge-triggered epoll, registered once: a call costs reads, writes, and a wait
//! where neither goes on, and allocates nothing. While a call waits it hears every control connection, so that the loss of
//! any rank, neighbour or not, ends it.

use super::{
    control::{NOTE_BYTES, Note, culprit, understand},
    flow::Flow,
    header::{Call, HEADER_BYTES},
    links::{Fate, Links, Peer},
    socket,
};
use crate::{CollectiveError, How};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};
use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// At most this many bytes go in one write, so that what comes is taken in between.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// A connection that ended may have its reason on the way on the control connection: time to wait for it.
const GRACE: Duration = Duration::from_millis(30);

/// What one call has done with one peer, headers included.
#[derive(Default)]
struct Progress {
    sent: usize,
    to_send: usize,
    received: usize,
    to_receive: usize,
    header: [u8; HEADER_BYTES],
}

impl Progress {
    fn open(&self) -> bool {
        self.sent < self.to_send || self.received < self.to_receive
    }
}

/// What the control connection of one peer has said.
#[derive(Default)]
struct Heard {
    part: [u8; NOTE_BYTES],
    have: usize,
    /// It dropped its communicator. What it sent before is still good.
    left: bool,
    /// The call it was in, and whom it waited for.
    waiting: Option<(u64, u32)>,
}

pub(super) struct Engine {
    pub(super) rank: u32,
    links: Arc<Links>,
    fate: Arc<Fate>,
    epoll: OwnedFd,
    progress: Vec<Progress>,
    heard: Vec<Heard>,
    calls: u64,
    deadline: Duration,
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// Events taken in at once.
const EVENTS: usize = 32;

/// What the end of the communicator is called among the watched; connections are called twice their rank, plus 1 for control.
const WAKE: u64 = u64::MAX;

impl Engine {
    pub(super) fn new(
        rank: u32,
        links: Links,
        fate: Arc<Fate>,
        deadline: Duration,
        silence: Duration,
    ) -> Result<Self, CollectiveError> {
        let world = links.0.len();
        let watch = || -> rustix::io::Result<OwnedFd> {
            let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let add =
                |fd: &dyn AsFd, id: u64, flags| epoll::add(&set, fd.as_fd(), epoll::EventData::new_u64(id), flags);
            add(fate.wake(), WAKE, epoll::EventFlags::IN)?;
            let edges = epoll::EventFlags::ET | epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            for (id, peer) in (0u64..).zip(&links.0) {
                if let Some(peer) = peer {
                    add(&peer.data, 2 * id, edges | epoll::EventFlags::OUT)?;
                    add(&peer.control, 2 * id + 1, edges)?;
                }
            }
            Ok(set)
        };
        let epoll = watch().map_err(CollectiveError::io("watch the connections of the group"))?;
        for peer in links.0.iter().flatten() {
            socket::watch_host(&peer.control, silence).map_err(CollectiveError::io("watch the host of a peer"))?;
        }
        let links = Arc::new(links);
        fate.adopt(&links)?;
        Ok(Self {
            rank,
            links,
            fate,
            epoll,
            progress: (0..world).map(|_| Progress::default()).collect(),
            heard: (0..world).map(|_| Heard::default()).collect(),
            calls: 0,
            deadline,
            bytes: 0,
            time: Duration::ZERO,
        })
    }

    /// Takes effect with the next call.
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub(super) fn world(&self) -> usize {
        self.links.0.len()
    }

    pub(super) fn fate(&self) -> &Arc<Fate> {
        &self.fate
    }

    /// One collective call; its error ends the communicator.
    pub(super) fn run(&mut self, call: Call, flow: &mut dyn Flow) -> Result<(), CollectiveError> {
        let begun = Instant::now();
        self.calls += 1;
        let outcome = self.fate.alive().and_then(|()| self.drive(call, flow));
        self.time += begun.elapsed();
        outcome.map_err(|cause| self.fate.end(cause))
    }

    /// Takes in what the control connections have brought; a loss among it ends the communicator, a farewell does not.
    pub(super) fn check(&mut self) -> Result<(), CollectiveError> {
        self.listen(Duration::ZERO).map_err(|cause| self.fate.end(cause))?;
        self.nobody_left()
    }

    fn nobody_left(&self) -> Result<(), CollectiveError> {
        let left = (0..).zip(&self.heard).find_map(|(rank, heard)| heard.left.then_some(rank));
        left.map_or(Ok(()), |rank| Err(CollectiveError::PeerLost { rank, how: How::Left }))
    }

    fn drive(&mut self, call: Call, flow: &mut dyn Flow) -> Result<(), CollectiveError> {
        for (peer, progress) in self.progress.iter_mut().enumerate().filter(|(peer, _)| *peer != self.rank as usize) {
            let whole = |bytes: Option<usize>| bytes.map_or(0, |bytes| HEADER_BYTES + bytes);
            progress.to_send = whole(flow.outbound(peer));
            progress.to_receive = whole(flow.inbound(peer));
            (progress.sent, progress.received) = (0, 0);
        }
        self.listen(Duration::ZERO)?;
        self.nobody_left()?;
        let mut moved_at = Instant::now();
        let mut told = false;
        loop {
            let (mut moved, mut open) = (false, false);
            for peer in 0..self.world() {
                moved |= self.send(peer, call, flow)?;
                moved |= self.receive(peer, call, flow)?;
                open |= self.progress[peer].open();
            }
            if !open {
                return Ok(());
            }
            if moved {
                (moved_at, told) = (Instant::now(), false);
                continue;
            }
            let waited = moved_at.elapsed();
            if waited >= self.deadline {
                let waits = |rank: u32| match self.heard.get(rank as usize)?.waiting {
                    Some((call, on)) if call == self.calls => Some(on),
                    _ => None,
                };
                let waiting_for = culprit(self.rank, self.waiting_for(), self.world(), waits);
                return Err(CollectiveError::TimedOut { after: self.deadline, waiting_for });
            }
            let half = self.deadline / 2;
            if !told && waited >= half {
                self.links.tell(Note::Waiting { call: self.calls, on: self.waiting_for() });
                told = true;
            }
            self.listen(if told { self.deadline } else { half } - waited)?;
        }
    }

    /// Who has to move for this rank to go on: first whoever owes bytes, then whoever does not take any.
    fn waiting_for(&self) -> u32 {
        let first =
            |owing: &dyn Fn(&Progress) -> bool| (0..).zip(&self.progress).find(|(_, p)| owing(p)).map(|(rank, _)| rank);
        first(&|p| p.received < p.to_receive).or_else(|| first(&Progress::open)).unwrap_or(self.rank)
    }

    /// One write to `peer`, where something is ready for it.
    fn send(&mut self, peer: usize, call: Call, flow: &mut dyn Flow) -> Result<bool, CollectiveError> {
        let progress = &self.progress[peer];
        let (sent, left) = (progress.sent, progress.to_send - progress.sent);
        if left == 0 {
            return Ok(false);
        }
        let header = call.header(self.calls, progress.to_send - HEADER_BYTES);
        let head = header.get(sent..).unwrap_or(&[]);
        let ready = flow.ready(peer, sent.saturating_sub(HEADER_BYTES));
        let ready = &ready[..ready.len().min(left - head.len()).min(WRITE_BYTES_MAX)];
        if head.is_empty() && ready.is_empty() {
            return Ok(false);
        }
        let Some(Peer { data, .. }) = &self.links.0[peer] else { return Ok(false) };
        let mut socket = data;
        let written = if head.is_empty() {
            socket.write(ready)
        } else {
            socket.write_vectored(&[IoSlice::new(head), IoSlice::new(ready)])
        };
        match written {
            Ok(count) => {
                flow.sent(peer, count.saturating_sub(head.len()));
                self.progress[peer].sent += count;
                self.bytes += count as u64;
                Ok(count > 0)
            }
            Err(error) => self.pause_or_loss(peer, &error),
        }
    }

    /// One read from `peer`, where something is to come from it.
    fn receive(&mut self, peer: usize, call: Call, flow: &mut dyn Flow) -> Result<bool, CollectiveError> {
        let progress = &mut self.progress[peer];
        if progress.received == progress.to_receive {
            return Ok(false);
        }
        let Some(Peer { data, .. }) = &self.links.0[peer] else { return Ok(false) };
        let mut socket = data;
        let head = progress.header.get_mut(progress.received..).unwrap_or(&mut []);
        let head_bytes = head.len();
        let room = flow.room(peer, progress.received.saturating_sub(HEADER_BYTES));
        let read = if head.is_empty() {
            socket.read(room)
        } else {
            socket.read_vectored(&mut [IoSliceMut::new(head), IoSliceMut::new(room)])
        };
        match read {
            Ok(0) => Err(self.lost(peer, How::Closed)),
            Ok(count) => {
                progress.received += count;
                if head_bytes > 0 && progress.received >= HEADER_BYTES {
                    let expected = call.header(self.calls, progress.to_receive - HEADER_BYTES);
                    if progress.header != expected {
                        let what = Call::mismatch(&progress.header, &expected);
                        return Err(CollectiveError::Protocol { rank: peer as u32, what });
                    }
                }
                if count > head_bytes {
                    flow.received(peer, count - head_bytes);
                }
                Ok(true)
            }
            Err(error) => self.pause_or_loss(peer, &error),
        }
    }

    /// An error of a data connection: nothing to do now (`Ok(false)`), or the end.
    fn pause_or_loss(&mut self, peer: usize, error: &io::Error) -> Result<bool, CollectiveError> {
        match error.kind() {
            ErrorKind::WouldBlock => Ok(false),
            ErrorKind::Interrupted => Ok(true),
            kind => Err(self.lost(peer, how_ended(kind))),
        }
    }

    /// Why the connection to `peer` ended: what it or another rank says about it within the grace, or else what was seen.
    fn lost(&mut self, peer: usize, seen: How) -> CollectiveError {
        let until = Instant::now() + GRACE;
        while !self.heard[peer].left {
            let now = Instant::now();
            if now >= until {
                return CollectiveError::PeerLost { rank: peer as u32, how: seen };
            }
            if let Err(cause) = self.listen(until - now) {
                return cause;
            }
        }
        CollectiveError::PeerLost { rank: peer as u32, how: How::Left }
    }

    /// Waits until something happens on a connection, at most for `timeout`, and takes in all news.
    fn listen(&mut self, timeout: Duration) -> Result<(), CollectiveError> {
        self.fate.alive()?;
        let mut timeout = Timespec::try_from(timeout).ok(); // fails beyond 2^63 seconds: as good as for ever
        loop {
            let mut room = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
            let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
                Ok((events, _)) => &*events,
                Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(CollectiveError::io("wait for the connections of the group")(error)),
            };
            for event in events {
                match event.data.u64() {
                    WAKE => self.fate.alive()?,
                    id if id % 2 == 1 => self.hear((id / 2) as usize)?,
                    _ => {} // a data connection: the call in progress tries it next
                }
            }
            if events.len() < EVENTS {
                return Ok(());
            }
            timeout = Some(Timespec::default());
        }
    }

    /// Takes in what the control connection of `peer` brought.
    fn hear(&mut self, peer: usize) -> Result<(), CollectiveError> {
        let rank = peer as u32;
        let Some(Peer { control, .. }) = &self.links.0[peer] else { return Ok(()) };
        let mut socket = control;
        let heard = &mut self.heard[peer];
        while !heard.left {
            match socket.read(&mut heard.part[heard.have..]) {
                Ok(0) => return self.fate.alive().and(Err(CollectiveError::PeerLost { rank, how: How::Closed })),
                Ok(count) => heard.have += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let how = how_ended(error.kind());
                    return self.fate.alive().and(Err(CollectiveError::PeerLost { rank, how }));
                }
            }
            if heard.have < NOTE_BYTES {
                continue;
            }
            heard.have = 0;
            match Note::decode(heard.part) {
                Some(Note::Waiting { call, on }) => heard.waiting = Some((call, on)),
                Some(Note::Farewell { origin, how: How::Left }) if origin == rank => heard.left = true,
                Some(Note::Farewell { origin, how }) => return Err(understand(self.rank, rank, origin, how)),
                None => {
                    let what = format!("a control message of bytes {:?}", heard.part);
                    return Err(CollectiveError::Protocol { rank, what });
                }
            }
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.fate.alive().is_ok() {
            self.links.tell(Note::Farewell { origin: self.rank, how: How::Left });
        }
    }
}

/// What the error that ended a connection says about the peer.
fn how_ended(kind: ErrorKind) -> How {
    match kind {
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => How::Silent,
        _ => How::Closed,
    }
}
