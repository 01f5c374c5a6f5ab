//! How the members of a generation find each other: every rank dials the lower ranks and accepts the higher ones, until every
//! pair has its two authenticated connections; then all meet once in a barrier.
//!
//! One thread drives everything without blocking. Whoever else connects (a port scanner, a member of another generation, somebody
//! who sends a byte an hour) costs a place in a bounded queue for at most [`HANDSHAKE`], and holds up nobody.

use super::{
    Listener, Tcp,
    control::{NOTE_BYTES, Note, understand},
    dial::{Dial, Step},
    engine::Engine,
    flow::Exchange,
    handshake::{self, HELLO_BYTES, Lane, Nonce, PROOF_BYTES},
    header::{Call, Kind},
    links::{Fate, Links, Peer},
    socket::{self, Inbox},
};
use crate::{Aborter, CollectiveError, How};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    fmt,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// Most members of a generation: every pair holds two connections.
pub const WORLD_MAX: usize = 256;

/// Deadline of a call until [`crate::Collective::set_deadline`] sets another.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);

/// What the patience with a host that answers nothing is, until [`Mesh::patient`] says another.
const SILENCE_DEFAULT: Duration = Duration::from_secs(30);

/// Longest deadline of a forming; a later one is taken for this.
const FORMING_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that has not proven itself within this time is closed.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Unproven connections held at once, beside two per member; the oldest goes first.
const STRANGERS_MAX: usize = 64;

/// Connections accepted before the members' own dials get a turn.
const ACCEPTS_PER_ROUND: usize = 64;

/// What a worker has to know to become a member: the same on all ranks, but for the rank.
#[derive(Clone)]
pub struct Membership {
    /// Number of the formation.
    pub generation: u64,
    /// This worker's place in `peers`.
    pub rank: u32,
    /// Every member's [`Listener::address`], in rank order.
    pub peers: Vec<SocketAddr>,
    /// What only members of this generation know.
    pub secret: [u8; 32],
}

impl fmt::Debug for Membership {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, rank, peers, .. } = self;
        write!(f, "Membership {{ generation: {generation}, rank: {rank}, peers: {peers:?} }}")
    }
}

/// A generation that is about to form.
#[derive(Debug)]
pub struct Mesh {
    membership: Membership,
    silence: Duration,
    fate: Arc<Fate>,
}

impl Mesh {
    /// Prepares to form.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for a rank outside the world, or a world of none or more than [`WORLD_MAX`].
    pub fn new(membership: Membership) -> Result<Self, CollectiveError> {
        let world = membership.peers.len();
        if membership.rank as usize >= world || world > WORLD_MAX {
            let what = format!("rank {} in a world of {world}, at most {WORLD_MAX}", membership.rank);
            return Err(CollectiveError::Misuse(what));
        }
        let fate = Fate::new(membership.rank)?;
        Ok(Self { membership, silence: SILENCE_DEFAULT, fate })
    }

    /// Once formed, a member whose host answers nothing for `silence` is lost ([`How::Silent`]), whatever its coordinator hears of
    /// it: in seconds, at least two. A process that is only stopped has a host that answers.
    #[must_use]
    pub fn patient(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// [`Mesh::new`] and [`Mesh::form`] in one.
    ///
    /// # Errors
    /// As those.
    pub fn connect(
        listener: &mut Listener,
        membership: Membership,
        deadline: Duration,
    ) -> Result<Tcp, CollectiveError> {
        Self::new(membership)?.form(listener, deadline)
    }

    /// Ends the forming, and whatever comes of it.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.fate.aborter()
    }

    /// Meets the other members. Returns within `deadline`; when it returns a communicator, all ranks have met.
    ///
    /// # Errors
    /// [`CollectiveError::Stale`] for a generation that is over here, [`CollectiveError::PeerLost`] as soon as a member's process is
    /// found gone, [`CollectiveError::Protocol`] for a member that refuses the handshake to the end,
    /// [`CollectiveError::TimedOut`], [`CollectiveError::Aborted`], [`CollectiveError::Io`].
    pub fn form(self, listener: &mut Listener, deadline: Duration) -> Result<Tcp, CollectiveError> {
        listener.turn_to(self.membership.generation)?;
        let deadline = deadline.min(FORMING_MAX);
        let until = Instant::now() + deadline;
        let mut forming = Forming::new(&self.membership, &self.fate)?;
        if let Err(cause) = forming.run(listener, deadline, until) {
            let cause = self.fate.end(cause);
            forming.leave(&cause);
            return Err(cause);
        }
        let links = forming.links();
        let rank = self.membership.rank;
        let left = until.saturating_duration_since(Instant::now());
        let mut engine = Engine::new(rank, links, self.fate, left, self.silence)?;
        let nothing = |_| 0..0;
        let mut meeting =
            Exchange { rank: rank as usize, rows: &[], columns: &nothing, into: &mut [], spans: &nothing };
        engine.run(Call::new(Kind::Form, 0), &mut meeting)?;
        listener.formed(self.membership.generation);
        engine.set_deadline(DEADLINE_DEFAULT);
        Ok(Tcp::new(engine, self.membership.generation))
    }
}

/// An accepted connection that has not proven itself.
struct Stranger {
    stream: TcpStream,
    expires: Instant,
    nonce: Nonce,
    hello: Inbox<HELLO_BYTES>,
    /// Who it says it is, once the hello is complete.
    claim: Option<(u32, Lane)>,
    proof: Inbox<PROOF_BYTES>,
}

impl Stranger {
    fn new(stream: TcpStream, nonce: Nonce, expires: Instant) -> Self {
        Self { stream, expires, nonce, hello: Inbox::new(), claim: None, proof: Inbox::new() }
    }

    /// Goes as far as its bytes allow: the rank and lane it has proven, `None` if more has to come, `Err` to be closed.
    fn advance(&mut self, me: &Membership) -> Result<Option<(u32, Lane)>, socket::Ended> {
        loop {
            let Some(claim) = self.claim else {
                let complete = self.hello.fill(&self.stream)?;
                if !handshake::plausible(self.hello.so_far()) {
                    return Err(socket::Ended);
                }
                if !complete {
                    return Ok(None);
                }
                let (rank, lane, reply) =
                    handshake::answer(me, self.hello.bytes(), &self.nonce).ok_or(socket::Ended)?;
                socket::say(&self.stream, &reply)?;
                self.claim = Some((rank, lane));
                continue;
            };
            if !self.proof.fill(&self.stream)? {
                return Ok(None);
            }
            if !handshake::proven(me, self.hello.bytes(), &self.nonce, self.proof.bytes()) {
                return Err(socket::Ended);
            }
            socket::say(&self.stream, &[handshake::WELCOME])?;
            return Ok(Some(claim));
        }
    }
}

/// A generation while it forms.
struct Forming<'a> {
    me: &'a Membership,
    fate: &'a Fate,
    /// Proven connections, by rank and lane.
    lanes: Vec<[Option<TcpStream>; 2]>,
    dials: Vec<Dial>,
    strangers: Vec<Stranger>,
}

impl<'a> Forming<'a> {
    fn new(me: &'a Membership, fate: &'a Fate) -> Result<Self, CollectiveError> {
        let now = Instant::now();
        let dials =
            (0..me.rank).flat_map(|rank| [Lane::Data, Lane::Control].map(|lane| Dial::new(rank, lane, now))).collect();
        let lanes = me.peers.iter().map(|_| [None, None]).collect();
        Ok(Self { me, fate, lanes, dials, strangers: Vec::new() })
    }

    fn run(&mut self, listener: &Listener, deadline: Duration, until: Instant) -> Result<(), CollectiveError> {
        loop {
            self.fate.alive()?;
            let now = Instant::now();
            self.dial(now)?;
            self.accept(listener, now)?;
            let Some(missing) = self.missing() else { return Ok(()) };
            if now >= until {
                let refused = self.dials.iter().any(|dial| dial.rank == missing && dial.refused);
                let generation = self.me.generation;
                let what = format!(
                    "it refuses the handshake of generation {generation}: it is in another one, or has another secret"
                );
                return Err(if refused {
                    CollectiveError::Protocol { rank: missing, what }
                } else {
                    CollectiveError::TimedOut { after: deadline, waiting_for: missing }
                });
            }
            self.wait(listener, until - now)?;
        }
    }

    /// The first rank that is not fully connected.
    fn missing(&self) -> Option<u32> {
        let me = self.me.rank;
        (0..)
            .zip(&self.lanes)
            .find(|(rank, lanes)| *rank != me && lanes.iter().any(Option::is_none))
            .map(|(rank, _)| rank)
    }

    fn dial(&mut self, now: Instant) -> Result<(), CollectiveError> {
        for dial in &mut self.dials {
            let Some(address) = self.me.peers.get(dial.rank as usize) else { continue };
            match dial.advance(self.me, *address, now)? {
                Step::Wait => {}
                Step::Done(stream) => self.lanes[dial.rank as usize][dial.lane as usize] = Some(stream),
                Step::Gone => return Err(CollectiveError::PeerLost { rank: dial.rank, how: How::Refused }),
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: &Listener, now: Instant) -> Result<(), CollectiveError> {
        for _ in 0..ACCEPTS_PER_ROUND {
            let stream = match listener.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => break,
                // Most likely out of descriptors: strangers go first.
                Err(_) if !self.strangers.is_empty() => {
                    self.strangers.clear();
                    break;
                }
                Err(error) => return Err(CollectiveError::io("accept a member's connection")(error)),
            };
            if socket::prepare(&stream).is_err() {
                continue;
            }
            if self.strangers.len() >= STRANGERS_MAX + 2 * self.me.peers.len() {
                self.strangers.remove(0);
            }
            self.strangers.push(Stranger::new(stream, socket::nonce()?, now + HANDSHAKE));
            // At once, before others may push it out: a member's hello is on the way when it is accepted.
            self.advance(self.strangers.len() - 1, now);
        }
        let mut at = 0;
        while at < self.strangers.len() {
            if self.advance(at, now) {
                at += 1;
            }
        }
        Ok(())
    }

    /// Lets a stranger go on; whether it is still one.
    fn advance(&mut self, at: usize, now: Instant) -> bool {
        match self.strangers[at].advance(self.me) {
            Ok(None) if now < self.strangers[at].expires => return true,
            Ok(Some((rank, lane))) => {
                let stream = self.strangers.remove(at).stream;
                self.lanes[rank as usize][lane as usize] = Some(stream);
            }
            Ok(None) | Err(socket::Ended) => drop(self.strangers.remove(at)),
        }
        false
    }

    /// Waits until something can go on; a proven connection that ends is a lost member.
    fn wait(&self, listener: &Listener, at_most: Duration) -> Result<(), CollectiveError> {
        let now = Instant::now();
        let soonest = self.strangers.iter().map(|s| s.expires).chain(self.dials.iter().filter_map(Dial::wakes)).min();
        let timeout = soonest.map_or(at_most, |at| at.saturating_duration_since(now).min(at_most));
        // Rounded up, so that what is due at that time is due after the wait.
        let timeout = Timespec::try_from(timeout + Duration::from_millis(1)).ok();
        let lanes = || (0..).zip(&self.lanes).flat_map(|(rank, pair)| pair.iter().flatten().map(move |s| (rank, s)));
        let mut watched = lanes().map(|(_, stream)| PollFd::new(stream, PollFlags::RDHUP)).collect::<Vec<_>>();
        watched.push(PollFd::new(self.fate.wake(), PollFlags::IN));
        watched.push(PollFd::from_borrowed_fd(listener.socket().as_fd(), PollFlags::IN));
        watched.extend(self.strangers.iter().map(|s| PollFd::new(&s.stream, PollFlags::IN)));
        watched.extend(self.dials.iter().filter_map(Dial::watched));
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(CollectiveError::io("wait for the members of the group")(error)),
        }
        let ended = lanes().zip(&watched).find(|(_, fd)| !fd.revents().is_empty()).map(|((rank, _), _)| rank);
        ended.map_or(Ok(()), |rank| Err(self.loss(rank)))
    }

    /// Why the member `rank` left: what it said, or else that it said nothing.
    fn loss(&self, rank: u32) -> CollectiveError {
        let mut inbox = Inbox::<NOTE_BYTES>::new();
        let control = self.lanes[rank as usize][Lane::Control as usize].as_ref();
        while let Some(Ok(true)) = control.map(|control| inbox.fill(control)) {
            if let Some(Note::Farewell { origin, how }) = Note::decode(*inbox.bytes()) {
                return understand(self.me.rank, rank, origin, how);
            }
            inbox = Inbox::new();
        }
        CollectiveError::PeerLost { rank, how: How::Closed }
    }

    /// Tells whoever is connected why this rank will not be a member.
    fn leave(self, cause: &CollectiveError) {
        let note = Note::farewell(self.me.rank, cause).encode();
        for control in self.lanes.iter().filter_map(|lanes| lanes[Lane::Control as usize].as_ref()) {
            let _ = socket::say(control, &note);
        }
    }

    fn links(self) -> Links {
        let peer = |[data, control]: [Option<TcpStream>; 2]| Some(Peer { data: data?, control: control? });
        Links(self.lanes.into_iter().map(peer).collect())
    }
}
