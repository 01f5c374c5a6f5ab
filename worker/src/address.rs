//! Where the others reach this worker: the address that it listens on, and the one that they are told.

use crate::failure::Failure;
use collective::Listener;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// For a coordinator's address to answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Listens where it is said, else on the address that leads to the `coordinator`, and says where others reach that.
///
/// # Errors
/// [`Failure::Usage`] for an address that nobody can reach, [`Failure::Unreachable`] where no way leads to the coordinator,
/// [`Failure::Collective`] where nothing can listen.
pub fn listener(
    coordinator: &str,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
) -> Result<(Listener, SocketAddr), Failure> {
    let towards = || address_towards(coordinator).map(|ip| SocketAddr::new(ip, 0));
    let place = listen.map_or_else(towards, Ok)?;
    if place.ip().is_unspecified() {
        let message =
            format!("--listen {place} is every address of this machine: name the one where the others reach it");
        return Err(Failure::Usage(message));
    }
    if let Some(told) = advertise.filter(|told| told.ip().is_unspecified() || told.port() == 0) {
        return Err(Failure::Usage(format!("--advertise {told} is no address that others can reach")));
    }
    let listener = Listener::bind(place)?;
    let told = advertise.unwrap_or(listener.address());
    Ok((listener, told))
}

/// Addresses as a roster has them.
///
/// # Errors
/// [`Failure::Usage`] for one that is none.
pub fn all(peers: &[String]) -> Result<Vec<SocketAddr>, Failure> {
    let parse = |peer: &String| peer.parse().map_err(|e| Failure::Usage(format!("peer address {peer}: {e}")));
    peers.iter().map(parse).collect()
}

/// The address of this machine by which the coordinator at `address` is reached: where peers reach it too.
fn address_towards(address: &str) -> Result<IpAddr, Failure> {
    let authority = address.rsplit_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/');
    let unreachable = |error| Failure::Unreachable { address: authority.to_owned(), error };
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for candidate in authority.to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&candidate, PATIENCE).and_then(|stream| stream.local_addr()) {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}
