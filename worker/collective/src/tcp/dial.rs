//! One connection to a lower rank, from the dialling side, tried again until it is proven.
//!
//! A member's listener is bound before anybody learns its address, so a refused connection means that its process has ended. A
//! handshake that is cut short means less: the member may still be busy with an older generation, so it is tried again.

use super::{
    handshake::{self, HELLO_BYTES, Lane, REPLY_BYTES},
    mesh::Membership,
    socket::{self, Ended, Inbox},
};
use crate::CollectiveError;
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_millis(500);
/// Time for the connection alone; doubles with every attempt. Well below the second after which the kernel would try again: a
/// listener whose queue was full a moment ago has room by then.
const CONNECT_FIRST: Duration = Duration::from_millis(400);

/// What became of an attempt to go on.
pub(super) enum Step {
    /// It waits: for its socket, or for the next attempt.
    Wait,
    /// The connection is proven, both ways.
    Done(TcpStream),
    /// Nothing listens there.
    Gone,
}

enum State {
    Pausing { until: Instant },
    Connecting { stream: TcpStream, until: Instant },
    Greeting { stream: TcpStream, hello: [u8; HELLO_BYTES], reply: Inbox<REPLY_BYTES> },
    Proving { stream: TcpStream, welcome: Inbox<1> },
    Over,
}

pub(super) struct Dial {
    pub(super) rank: u32,
    pub(super) lane: Lane,
    /// Its last handshake was cut short by the other side.
    pub(super) refused: bool,
    attempts: u32,
    state: State,
}

impl Dial {
    pub(super) fn new(rank: u32, lane: Lane, now: Instant) -> Self {
        Self { rank, lane, refused: false, attempts: 0, state: State::Pausing { until: now } }
    }

    /// Goes as far as it can without waiting.
    pub(super) fn advance(&mut self, me: &Membership, to: SocketAddr, now: Instant) -> Result<Step, CollectiveError> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Over) {
                State::Pausing { until } if until <= now => match begin(to) {
                    Ok(stream) => {
                        let patience = CONNECT_FIRST * 2u32.saturating_pow(self.attempts.min(6));
                        self.attempts += 1;
                        State::Connecting { stream, until: now + patience }
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Step::Gone),
                    Err(error) => {
                        return Err(CollectiveError::io(format!("connect to rank {} at {to}", self.rank))(error));
                    }
                },
                State::Connecting { stream, until } => match stream.take_error() {
                    Ok(None) if stream.peer_addr().is_ok() => match self.greet(me, &stream)? {
                        Some(hello) => State::Greeting { stream, hello, reply: Inbox::new() },
                        None => self.pause(now),
                    },
                    Ok(None) if now < until => {
                        self.state = State::Connecting { stream, until };
                        return Ok(Step::Wait);
                    }
                    Ok(Some(error)) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Step::Gone),
                    _ => self.pause(now),
                },
                State::Greeting { stream, hello, mut reply } => match reply.fill(&stream) {
                    Ok(false) => {
                        self.state = State::Greeting { stream, hello, reply };
                        return Ok(Step::Wait);
                    }
                    Ok(true) => match handshake::prove(me, &hello, reply.bytes()) {
                        Some(proof) if socket::say(&stream, &proof).is_ok() => {
                            State::Proving { stream, welcome: Inbox::new() }
                        }
                        _ => self.refuse(now),
                    },
                    Err(Ended) => self.refuse(now),
                },
                State::Proving { stream, mut welcome } => match welcome.fill(&stream) {
                    Ok(false) => {
                        self.state = State::Proving { stream, welcome };
                        return Ok(Step::Wait);
                    }
                    Ok(true) if *welcome.bytes() == [handshake::WELCOME] => return Ok(Step::Done(stream)),
                    _ => self.refuse(now),
                },
                waiting @ (State::Pausing { .. } | State::Over) => {
                    self.state = waiting;
                    return Ok(Step::Wait);
                }
            };
        }
    }

    /// When it can go on by itself.
    pub(super) fn wakes(&self) -> Option<Instant> {
        match &self.state {
            State::Pausing { until } | State::Connecting { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// What lets it go on before that.
    pub(super) fn watched(&self) -> Option<PollFd<'_>> {
        match &self.state {
            State::Connecting { stream, .. } => Some(PollFd::new(stream, PollFlags::OUT)),
            State::Greeting { stream, .. } | State::Proving { stream, .. } => Some(PollFd::new(stream, PollFlags::IN)),
            State::Pausing { .. } | State::Over => None,
        }
    }

    fn greet(&self, me: &Membership, stream: &TcpStream) -> Result<Option<[u8; HELLO_BYTES]>, CollectiveError> {
        let hello = handshake::hello(me, self.rank, self.lane, &socket::nonce()?);
        let said = socket::prepare(stream).is_ok() && socket::say(stream, &hello).is_ok();
        Ok(said.then_some(hello))
    }

    fn refuse(&mut self, now: Instant) -> State {
        self.refused = true;
        self.pause(now)
    }

    fn pause(&self, now: Instant) -> State {
        let pause = RETRY_FIRST * 2u32.saturating_pow(self.attempts.saturating_sub(1).min(6));
        State::Pausing { until: now + pause.min(RETRY_LAST) }
    }
}

/// Begins to connect.
fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => return Err(error),
        _ => {}
    }
    Ok(TcpStream::from(socket))
}
