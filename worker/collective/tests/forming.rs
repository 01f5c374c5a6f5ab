//! How generations form: who is let in, who is kept out, and what the members learn when one of them is not there.

mod group;

use collective::{Collective, CollectiveError, How, Listener, Membership, Mesh, contract};
use group::{FORMING, form, listeners, members};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

fn formed(outcomes: Vec<Result<collective::Tcp, CollectiveError>>) -> contract::Group {
    outcomes.into_iter().map(|member| Box::new(member.expect("forms")) as Box<dyn Collective>).collect()
}

fn works(group: &mut contract::Group) {
    let world = group.len() as f32;
    contract::together(group, |member| {
        let mut ones = [1.0];
        member.all_reduce_sum_f32(&mut ones).expect("sum");
        assert_eq!(ones, [world]);
    });
}

#[test]
fn a_listener_forms_one_generation_after_another_in_any_order_of_ranks() {
    let mut listeners = listeners(3);
    for generation in 1..=3 {
        let members = members(&listeners, generation);
        let mut group = formed(form(&mut listeners, members, FORMING));
        assert!(group.iter().all(|member| member.generation() == generation));
        works(&mut group);
        listeners.rotate_left(1);
    }
    let over = members(&listeners, 3);
    for outcome in form(&mut listeners, over, FORMING) {
        assert!(matches!(outcome, Err(CollectiveError::Stale { generation: 3, newest: 3 })), "{outcome:?}");
    }
}

#[test]
fn a_generation_forms_among_strangers_of_every_kind() {
    let mut listeners = listeners(3);
    let addresses = listeners.iter().map(Listener::address).collect::<Vec<_>>();
    let formed_yet = AtomicBool::new(false);
    // More than the queue of strangers holds: some say nothing, some a byte, some a plausible beginning.
    let beginnings: [&[u8]; 4] =
        [b"", b"G", b"gf-coll\x01\0\0\0", b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"];
    let loris = |address: &SocketAddr| {
        (0..200usize)
            .map(|i| {
                let mut stranger = TcpStream::connect(address).expect("the listener's queue takes it");
                stranger.write_all(beginnings[i % 4]).expect("a fresh connection takes a few bytes");
                stranger
            })
            .collect::<Vec<_>>()
    };
    let held = addresses.iter().flat_map(loris).collect::<Vec<_>>();
    let members = members(&listeners, 5);
    let group = thread::scope(|scope| {
        scope.spawn(|| {
            // And while it forms, one that cannot be told from a member but by its proof.
            while !formed_yet.load(Ordering::Relaxed) {
                let Ok(mut impostor) = TcpStream::connect(addresses[0]) else { continue };
                let mut hello = [0x55; 64];
                hello[..8].copy_from_slice(b"gf-coll\x01");
                hello[8..29].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
                let _ = impostor.set_read_timeout(Some(Duration::from_secs(3)));
                let mut reply = [0; 64];
                if impostor.write_all(&hello).is_ok() && impostor.read_exact(&mut reply).is_ok() {
                    let _ = impostor.write_all(&reply[32..]);
                    assert_eq!(impostor.read(&mut reply).unwrap_or(0), 0, "an impostor was welcomed");
                }
            }
        });
        let begun = Instant::now();
        let outcomes = form(&mut listeners, members, FORMING);
        formed_yet.store(true, Ordering::Relaxed);
        assert!(begun.elapsed() < FORMING / 2, "strangers held it up for {:?}", begun.elapsed());
        outcomes
    });
    works(&mut formed(group));
    drop(held);
}

#[test]
fn a_wrong_secret_or_generation_is_refused_by_everybody() {
    let wrongs: [fn(&mut Membership); 2] = [|m| m.secret[31] ^= 1, |m| m.generation += 1];
    for wrong in wrongs {
        for odd in 0..2 {
            let mut listeners = listeners(2);
            let mut members = members(&listeners, 4);
            wrong(&mut members[odd]);
            let outcomes = form(&mut listeners, members, Duration::from_millis(300));
            // The dialling rank is refused and says so; the accepting one has never seen a member.
            match &outcomes[1] {
                Err(CollectiveError::Protocol { rank: 0, what }) => {
                    assert!(what.contains("refuses the handshake"), "{what}")
                }
                Err(
                    CollectiveError::PeerLost { rank: 0, how: How::Refused }
                    | CollectiveError::TimedOut { waiting_for: 0, .. },
                ) => {}
                other => panic!("{other:?}"),
            }
            assert!(matches!(outcomes[0], Err(CollectiveError::TimedOut { waiting_for: 1, .. })), "{outcomes:?}");
        }
    }
}

#[test]
fn a_member_whose_process_is_gone_is_named_at_once() {
    let mut listeners = listeners(3);
    let members = members(&listeners, 1);
    let begun = Instant::now();
    drop(listeners.remove(0)); // nothing listens there any more
    let outcomes = form(&mut listeners, members[1..].to_vec(), FORMING);
    for outcome in outcomes {
        assert!(matches!(outcome, Err(CollectiveError::PeerLost { rank: 0, how: How::Refused })), "{outcome:?}");
    }
    assert!(begun.elapsed() < FORMING / 2);
}

#[test]
fn a_member_that_does_not_come_is_named_at_the_deadline() {
    let mut listeners = listeners(3);
    let members = members(&listeners, 1);
    let absent = listeners.remove(1); // listens, but never forms
    let deadline = Duration::from_millis(200);
    let present = vec![members[0].clone(), members[2].clone()];
    let begun = Instant::now();
    for outcome in form(&mut listeners, present, deadline) {
        match outcome {
            Err(CollectiveError::TimedOut { waiting_for: 1, .. }) => assert!(begun.elapsed() >= deadline),
            Err(CollectiveError::PeerLost { rank: 1, how: How::Silent }) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(absent);
}

#[test]
fn a_later_generation_forms_though_a_member_is_still_busy_with_an_older_one() {
    let mut listeners = listeners(3);
    let (old, new) = (members(&listeners, 1), members(&listeners, 2));
    let mesh = Mesh::new(old[0].clone()).unwrap();
    let aborter = mesh.aborter();
    let (busy, rest) = listeners.split_first_mut().unwrap();
    let address = busy.address();
    let mut group = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let outcome = mesh.form(busy, FORMING);
            assert!(matches!(outcome, Err(CollectiveError::Aborted)), "{outcome:?}");
            Mesh::connect(busy, new[0].clone(), FORMING)
        });
        // It is busy with generation 1 once it refuses this one: garbage is refused by whoever forms.
        let mut probe = TcpStream::connect(address).unwrap();
        probe.write_all(b"?").unwrap();
        assert_eq!(probe.read(&mut [0]).unwrap_or(0), 0);
        let others = scope.spawn(|| form(rest, new[1..].to_vec(), FORMING));
        aborter.abort();
        let mut outcomes = vec![first.join().unwrap()];
        outcomes.extend(others.join().unwrap());
        formed(outcomes)
    });
    works(&mut group);
}

#[test]
fn forming_can_be_aborted() {
    let mut listeners = listeners(2);
    let mesh = Mesh::new(members(&listeners, 1).remove(0)).unwrap();
    let aborter = mesh.aborter();
    contract::in_time(|| {
        let mesh = Mesh::new(members(&listeners, 1).remove(0)).unwrap();
        let aborter = mesh.aborter();
        thread::scope(|scope| {
            let forming = scope.spawn(|| mesh.form(&mut listeners[0], FORMING).map(|_| Instant::now()));
            let begun = Instant::now();
            aborter.abort();
            let outcome = forming.join().unwrap();
            assert!(matches!(outcome, Err(CollectiveError::Aborted)), "{outcome:?}");
            begun.elapsed()
        })
    });
    aborter.abort();
    assert!(matches!(mesh.form(&mut listeners[0], FORMING), Err(CollectiveError::Aborted)), "aborted before it began");
}

#[test]
fn impossible_memberships_and_wildcard_addresses_are_refused() {
    let member = members(&listeners(2), 1).remove(1);
    for wrong in [
        Membership { rank: 2, ..member.clone() },
        Membership { peers: Vec::new(), ..member.clone() },
        Membership { peers: vec![member.peers[0]; collective::WORLD_MAX + 1], ..member.clone() },
    ] {
        assert!(matches!(Mesh::new(wrong), Err(CollectiveError::Misuse(_))));
    }
    for wildcard in ["0.0.0.0:0", "[::]:0"] {
        assert!(matches!(Listener::bind(wildcard.parse().unwrap()), Err(CollectiveError::Misuse(_))));
    }
    let taken = listeners(1);
    let error = Listener::bind(taken[0].address()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {}", taken[0].address())), "{error}");
    assert!(!format!("{member:?}").contains("42, 42"), "the secret shows");
}

/// The local addresses, as /proc shows them, of the sockets on which this process listens.
fn listening() -> Vec<String> {
    let own = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let own = own.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()));
    let own = own.collect::<Vec<_>>();
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            let field = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
            let rows = table.lines().skip(1).map(|line| (field(line, 1), field(line, 3), field(line, 9)));
            rows.collect::<Vec<_>>()
        })
        .filter(|(_, state, inode)| state == "0A" && own.contains(inode))
        .map(|(address, ..)| address)
        .collect()
}

#[test]
fn only_the_named_addresses_listen() {
    let mut listeners = listeners(2);
    let other = Listener::bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).expect("all of 127/8 is loopback");
    let members = members(&listeners, 1);
    let mut group = formed(form(&mut listeners, members, FORMING));
    works(&mut group);
    let listening = listening();
    for address in listeners.iter().chain([&other]).map(Listener::address) {
        let SocketAddr::V4(v4) = address else { panic!("{address}") };
        let shown = format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port());
        assert!(listening.contains(&shown), "{shown} is not among {listening:?}");
    }
    // Other tests of this process listen too, on loopback alone.
    assert!(listening.iter().all(|a| a.starts_with("0100007F:") || a.starts_with("0200007F:")), "{listening:?}");
}
