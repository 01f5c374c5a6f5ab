//! The connections of one generation, and the one reason why they end.
//!
//! Every pair of ranks has two connections: one for data, and one for [`Note`]s, which is never congested, so that a farewell
//! reaches also a peer that does not read. The first reason to end wins; whoever brings it, the thread within a call or one that
//! aborts, says farewell and shuts everything down at once.

use super::control::Note;
use crate::{Aborter, CollectiveError};
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

/// The two connections to one peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) data: TcpStream,
    pub(super) control: TcpStream,
}

/// The connections to all peers, by rank; none to oneself.
#[derive(Debug)]
pub(super) struct Links(pub(super) Vec<Option<Peer>>);

impl Links {
    /// Tells every peer. Who cannot be told finds out by the end of the connection.
    pub(super) fn tell(&self, note: Note) {
        for peer in self.0.iter().flatten() {
            let _ = (&peer.control).write(&note.encode());
        }
    }

    /// Says farewell and closes everything.
    fn end(&self, farewell: Note) {
        self.tell(farewell);
        for peer in self.0.iter().flatten() {
            let _ = peer.data.shutdown(Shutdown::Both);
            let _ = peer.control.shutdown(Shutdown::Both);
        }
    }
}

/// Whether and why a communicator is over; shared with its aborters.
#[derive(Debug)]
pub(super) struct Fate {
    me: u32,
    cause: OnceLock<CollectiveError>,
    /// Readable once it is over: wakes the thread that waits within a call.
    wake: OwnedFd,
    /// Only watched: an aborter that is kept does not keep the connections.
    links: Mutex<Weak<Links>>,
}

impl Fate {
    pub(super) fn new(me: u32) -> Result<Arc<Self>, CollectiveError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(CollectiveError::io("make the event that an abort raises"))?;
        Ok(Arc::new(Self { me, cause: OnceLock::new(), wake, links: Mutex::default() }))
    }

    /// From now on the end ends these connections; at once, if it came before.
    pub(super) fn adopt(&self, links: &Arc<Links>) -> Result<(), CollectiveError> {
        *self.links.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(links);
        self.alive().inspect_err(|cause| links.end(Note::farewell(self.me, cause)))
    }

    pub(super) fn alive(&self) -> Result<(), CollectiveError> {
        self.cause.get().map_or(Ok(()), |cause| Err(cause.clone()))
    }

    /// What becomes readable at the end.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Ends the communicator, if nothing has before, and returns why it ended.
    pub(super) fn end(&self, cause: CollectiveError) -> CollectiveError {
        let note = Note::farewell(self.me, &cause);
        if self.cause.set(cause.clone()).is_ok() {
            let links = self.links.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
            if let Some(links) = links {
                links.end(note);
            }
            // Fails only where the event is raised already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
        self.cause.get().cloned().unwrap_or(cause)
    }

    pub(super) fn aborter(self: &Arc<Self>) -> Aborter {
        let fate = Arc::clone(self);
        Aborter::new(move || {
            fate.end(CollectiveError::Aborted);
        })
    }
}
