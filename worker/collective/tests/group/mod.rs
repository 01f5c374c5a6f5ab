//! Groups of members in one process, a thread each while they form.

use collective::{CollectiveError, Listener, Membership, Mesh, Tcp};
use std::{net::Ipv4Addr, thread, time::Duration};

/// Long enough for any machine; never waited for where things work.
pub const FORMING: Duration = Duration::from_secs(20);

pub fn listeners(world: usize) -> Vec<Listener> {
    (0..world).map(|_| Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback has free ports")).collect()
}

/// The membership of every rank at these listeners.
pub fn members(listeners: &[Listener], generation: u64) -> Vec<Membership> {
    let peers = listeners.iter().map(Listener::address).collect::<Vec<_>>();
    (0..listeners.len() as u32)
        .map(|rank| Membership { generation, rank, peers: peers.clone(), secret: [42; 32] })
        .collect()
}

/// Lets all members form at the same time.
pub fn form(
    listeners: &mut [Listener],
    members: Vec<Membership>,
    within: Duration,
) -> Vec<Result<Tcp, CollectiveError>> {
    thread::scope(|scope| {
        let ranks = listeners
            .iter_mut()
            .zip(members)
            .map(|(listener, member)| scope.spawn(move || Mesh::connect(listener, member, within)))
            .collect::<Vec<_>>();
        ranks.into_iter().map(|rank| rank.join().expect("forming panicked")).collect()
    })
}
