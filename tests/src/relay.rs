//! A door between a client and a server on this machine, which a test can shut and open: while it is shut, connections are
//! refused and those there were are broken.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A relay on loopback. It starts open.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    target: SocketAddr,
    door: Option<Door>,
}

/// What is there while it is open.
#[derive(Debug)]
struct Door {
    shut: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: JoinHandle<()>,
}

impl Relay {
    /// A relay to `target`.
    ///
    /// # Panics
    /// When the system has no port.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a port has a number");
        Self { address, target, door: Some(Door::open(listener, target)) }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses connections from now on and breaks those there are.
    ///
    /// # Panics
    /// When its thread has panicked.
    pub fn shut(&mut self) {
        if let Some(door) = self.door.take() {
            door.shut.store(true, Ordering::SeqCst);
            // wakes the acceptor, which then ends and with it the listener
            let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
            door.acceptor.join().expect("the relay's thread");
            for connection in door.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // it may be closed already
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
    }

    /// Lets connections through again, at the same address.
    ///
    /// # Panics
    /// When somebody else has taken the port meanwhile.
    pub fn open(&mut self) {
        if self.door.is_none() {
            let listener = TcpListener::bind(self.address).expect("the port is still free");
            self.door = Some(Door::open(listener, self.target));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Door {
    fn open(listener: TcpListener, target: SocketAddr) -> Self {
        let shut = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (closing, open) = (Arc::clone(&shut), Arc::clone(&connections));
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if closing.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(target) else { continue };
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                open.extend([&client, &server].into_iter().filter_map(|stream| stream.try_clone().ok()));
                let Ok((back_from, back_to)) = client.try_clone().and_then(|c| Ok((server.try_clone()?, c))) else {
                    continue;
                };
                std::thread::spawn(move || carry(client, server));
                std::thread::spawn(move || carry(back_from, back_to));
            }
        });
        Self { shut, connections, acceptor }
    }
}

/// Copies until one side ends, and tells the other.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // it may be closed already
    let _ = to.shutdown(Shutdown::Write);
}
