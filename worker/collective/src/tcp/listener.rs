//! The address where the other members reach this worker, and which generations may still form there.
//!
//! Refuses to listen on more than the one address it is given: no wildcard.

use crate::CollectiveError;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// Connections that may wait to be accepted while no generation is being formed.
const BACKLOG: i32 = 1024;

/// A bound address, for all generations of a worker's life.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// Lowest generation that may form.
    fence: u64,
}

impl Listener {
    /// Listens on this address, and on nothing else. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for a wildcard address, [`CollectiveError::Io`] where the address cannot be bound.
    pub fn bind(address: SocketAddr) -> Result<Self, CollectiveError> {
        if address.ip().is_unspecified() {
            let what = format!("listening on {address}: name the one address where the other workers reach this one");
            return Err(CollectiveError::Misuse(what));
        }
        let open = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let socket = TcpListener::from(socket);
            let address = socket.local_addr()?;
            Ok(Self { socket, address, fence: 0 })
        };
        open().map_err(CollectiveError::io::<io::Error>(format!("listen on {address}")))
    }

    /// Where peers reach it, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Turns to `generation`: older ones cannot form here any more.
    pub(super) fn turn_to(&mut self, generation: u64) -> Result<(), CollectiveError> {
        if generation < self.fence {
            return Err(CollectiveError::Stale { generation, newest: self.fence - 1 });
        }
        self.fence = generation;
        Ok(())
    }

    /// `generation` has formed: it cannot form again.
    pub(super) fn formed(&mut self, generation: u64) {
        self.fence = generation.saturating_add(1);
    }

    /// The next connection that waits; `None` where none does. One that broke while it waited is passed over.
    pub(super) fn accept(&self) -> io::Result<Option<TcpStream>> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    pub(super) fn socket(&self) -> &TcpListener {
        &self.socket
    }
}
