//! Small things about one socket: its options, and messages of fixed size before the calls begin.

use crate::CollectiveError;
use rustix::rand::{GetRandomFlags, getrandom};
use socket2::{SockRef, TcpKeepalive};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The connection is of no more use.
#[derive(Debug)]
pub(super) struct Ended;

/// Bytes that each side of a connection within one host may hold: what is sent is still in the cache when it is received.
/// Measured: a fifth to a quarter faster than the kernel's own choice, which grows to megabytes.
const SAME_HOST_BUFFER: usize = 128 << 10;

/// Between two questions to another host whether it is there: Linux counts in seconds, and takes no more than some hours.
const PROBE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Longest patience with a host that answers nothing: Linux counts it in milliseconds of 32 bits.
const SILENCE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Options of every connection once it stands. Between hosts the kernel sizes the buffers by what the path holds.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    if stream.local_addr()?.ip() == stream.peer_addr()?.ip() {
        let socket = SockRef::from(stream);
        socket.set_send_buffer_size(SAME_HOST_BUFFER)?;
        socket.set_recv_buffer_size(SAME_HOST_BUFFER)?;
    }
    Ok(())
}

/// Lets the kernel end a connection whose other host has answered nothing for `silence`: it asks every second, or ten times
/// in that time, but at least every minute, and for a week at most. A process that is merely stopped has a kernel that answers for it; so the connection must be one on which a
/// stopped process lets nothing pile up.
pub(super) fn watch_host(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let probe = (silence / 10).clamp(PROBE[0], PROBE[1]);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe))?;
    socket.set_tcp_user_timeout(Some(silence.min(SILENCE_MAX)))
}

/// Sends a small message on a connection that has sent next to nothing: it fits, or the connection is of no use.
pub(super) fn say(mut stream: &TcpStream, message: &[u8]) -> Result<(), Ended> {
    match stream.write(message) {
        Ok(count) if count == message.len() => Ok(()),
        _ => Err(Ended),
    }
}

/// 32 bytes that nobody can foretell.
pub(super) fn nonce() -> Result<[u8; 32], CollectiveError> {
    let mut bytes = [0; 32];
    let count = getrandom(&mut bytes, GetRandomFlags::empty()).map_err(CollectiveError::io("draw a nonce"))?;
    if count == bytes.len() {
        return Ok(bytes);
    }
    Err(CollectiveError::io("draw a nonce")(io::Error::from(ErrorKind::UnexpectedEof)))
}

/// Room for one message of `N` bytes; takes in not a byte more.
pub(super) struct Inbox<const N: usize> {
    bytes: [u8; N],
    have: usize,
}

impl<const N: usize> Inbox<N> {
    pub(super) fn new() -> Self {
        Self { bytes: [0; N], have: 0 }
    }

    /// Reads what has come; true once the message is complete.
    pub(super) fn fill(&mut self, mut stream: &TcpStream) -> Result<bool, Ended> {
        while self.have < N {
            match stream.read(&mut self.bytes[self.have..]) {
                Ok(0) => return Err(Ended),
                Ok(count) => self.have += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
        Ok(true)
    }

    pub(super) fn so_far(&self) -> &[u8] {
        &self.bytes[..self.have]
    }

    pub(super) fn bytes(&self) -> &[u8; N] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_host_is_watched_with_any_patience() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for silence in [Duration::ZERO, Duration::from_secs(10), Duration::from_secs(400_000), Duration::MAX] {
            watch_host(&stream, silence).unwrap();
        }
    }
}
