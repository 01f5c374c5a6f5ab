use super::*;
use crate::communicator::Communicator;
use collective::{Aborter, Listener, Membership, Mesh, Part, Solo, Traffic, TreeSum};
use half::bf16;
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, no_grad};

/// What a test sees of, and says to, a device that sums.
#[derive(Default)]
struct Script {
    launched: Vec<f64>,
    aborted: bool,
    /// How much is left at each look; then nothing.
    left: Vec<usize>,
    broken: Option<String>,
}

/// Device sums on host memory that double everything, as two equal ranks would.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn with(left: &[usize]) -> Self {
        let fake = Self::default();
        fake.0.lock().unwrap().left = left.to_vec();
        fake
    }
}

impl DeviceSums for Fake {
    fn launch(&mut self, buffer: DeviceBuffer) {
        self.0.lock().unwrap().launched.push(buffer.tensor().double_value(&[0]));
        no_grad(|| {
            let _twice = buffer.tensor().shallow_clone().g_mul_scalar_(2.0);
        });
    }

    fn poll(&mut self) -> Result<usize, String> {
        let mut script = self.0.lock().unwrap();
        match &script.broken {
            Some(what) => Err(what.clone()),
            None if script.left.is_empty() => Ok(0),
            None => Ok(script.left.remove(0)),
        }
    }

    fn abort(&mut self) {
        self.0.lock().unwrap().aborted = true;
    }
}

/// A mesh of which only the state matters.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    cause: Option<CollectiveError>,
    /// What a barrier ends with.
    barrier: Option<CollectiveError>,
    aborted: bool,
    calls: usize,
}

impl Wire {
    fn call(&self) -> Result<(), CollectiveError> {
        let mut line = self.0.lock().unwrap();
        line.calls += 1;
        line.cause.clone().map_or(Ok(()), Err)
    }
}

impl Collective for Wire {
    fn rank(&self) -> u32 {
        0
    }
    fn world(&self) -> u32 {
        2
    }
    fn generation(&self) -> u64 {
        1
    }
    fn set_deadline(&mut self, _deadline: Duration) {}
    fn all_reduce_sum_f32(&mut self, _numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.call()
    }
    fn all_reduce_sum_bf16(&mut self, _numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        self.call()
    }
    fn all_reduce_sum_f64(&mut self, _numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.call()
    }
    fn all_gather_bytes(&mut self, _mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.call().map(|()| Vec::new())
    }
    fn broadcast(&mut self, _part: Part<'_, '_>, _root: u32, _to: &[u32]) -> Result<(), CollectiveError> {
        self.call()
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.call()?;
        self.0.lock().unwrap().barrier.clone().map_or(Ok(()), Err)
    }
    fn echo(&mut self, _bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        self.call().map(|()| Vec::new())
    }
    fn tree_sum_f32(&mut self, _mine: &TreeSum, _out: &mut [f32]) -> Result<(), CollectiveError> {
        self.call()
    }
    fn check(&mut self) -> Result<(), CollectiveError> {
        self.0.lock().unwrap().cause.clone().map_or(Ok(()), Err)
    }
    fn aborter(&self) -> Aborter {
        let line = Arc::clone(&self.0);
        Aborter::new(move || {
            let mut line = line.lock().unwrap();
            line.aborted = true;
            line.cause.get_or_insert(CollectiveError::Aborted);
        })
    }
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// Time that passes a millisecond per pause, with things that happen on the way.
struct Virtual {
    now: Duration,
    events: Vec<(Duration, Box<dyn FnOnce() + Send>)>,
}

impl Time for Virtual {
    fn now(&self) -> Duration {
        self.now
    }

    fn pause(&mut self, _looks: u32) {
        self.now += Duration::from_millis(1);
        let due = self.events.iter().position(|(at, _)| *at <= self.now);
        if let Some(due) = due {
            (self.events.remove(due).1)();
        }
    }
}

const DEADLINE: Duration = Duration::from_millis(500);

fn ranks(wire: &Wire, fake: &Fake, events: Vec<(u64, Box<dyn FnOnce() + Send>)>) -> Ranks {
    let events = events.into_iter().map(|(at, event)| (Duration::from_millis(at), event)).collect();
    let time = Box::new(Virtual { now: Duration::ZERO, events });
    Ranks::in_time(Box::new(wire.clone()), Some(Box::new(fake.clone())), DEADLINE, time)
}

fn buffer(value: f64) -> DeviceBuffer {
    DeviceBuffer::new(&Tensor::full([2], value, (Kind::Float, Device::Cpu))).unwrap()
}

/// Busy for so many looks without progress.
fn hung(looks: usize) -> Vec<usize> {
    vec![1; looks]
}

#[test]
fn a_wait_ends_when_everything_is_done() {
    let (wire, fake) = (Wire::default(), Fake::with(&[2, 2, 2, 1, 1, 0]));
    let mut ranks = ranks(&wire, &fake, vec![]);
    ranks.launch(buffer(1.0)).unwrap();
    assert!(ranks.busy());
    ranks.finish().unwrap();
    assert!(!ranks.busy() && ranks.time.now() == Duration::from_millis(4));
}

#[test]
fn progress_keeps_a_wait_alive_beyond_its_deadline() {
    let slow: Vec<usize> = (0..5).rev().flat_map(|left| vec![left + 1; 400]).collect();
    let (wire, fake) = (Wire::default(), Fake::with(&slow));
    let mut ranks = ranks(&wire, &fake, vec![]);
    ranks.finish().unwrap();
    assert!(ranks.time.now() > 3 * DEADLINE);
}

#[test]
fn a_hung_sum_is_given_up_at_the_deadline_and_the_missing_rank_named() {
    let (wire, fake) = (Wire::default(), Fake::with(&hung(10_000)));
    wire.0.lock().unwrap().barrier = Some(CollectiveError::TimedOut { after: Duration::ZERO, waiting_for: 1 });
    let mut ranks = ranks(&wire, &fake, vec![]);
    let cause = ranks.finish().unwrap_err();
    assert!(matches!(cause, CollectiveError::TimedOut { after: DEADLINE, waiting_for: 1 }), "{cause}");
    assert_eq!(ranks.time.now(), DEADLINE);
    assert!(fake.0.lock().unwrap().aborted && wire.0.lock().unwrap().aborted);
}

#[test]
fn a_sum_that_hangs_although_every_rank_is_there_is_the_devices_fault() {
    let (wire, fake) = (Wire::default(), Fake::with(&hung(10_000)));
    let cause = ranks(&wire, &fake, vec![]).finish().unwrap_err();
    assert!(matches!(&cause, CollectiveError::Device(what) if what.contains("every rank answers")), "{cause}");
}

#[test]
fn an_abort_in_the_midst_of_a_wait_ends_it_at_once() {
    let (wire, fake) = (Wire::default(), Fake::with(&hung(10_000)));
    let aborter = wire.aborter();
    let mut ranks = ranks(&wire, &fake, vec![(30, Box::new(move || aborter.abort()))]);
    let cause = ranks.finish().unwrap_err();
    assert!(matches!(cause, CollectiveError::Aborted), "{cause}");
    assert!(ranks.time.now() <= Duration::from_millis(31));
    assert!(fake.0.lock().unwrap().aborted, "the abort reaches the device");
    let calls = wire.0.lock().unwrap().calls;
    assert!(matches!(ranks.together(|c| c.barrier()), Err(CollectiveError::Aborted)));
    assert!(matches!(ranks.launch(buffer(1.0)), Err(CollectiveError::Aborted)));
    assert_eq!(
        (wire.0.lock().unwrap().calls, fake.0.lock().unwrap().launched.len()),
        (calls, 0),
        "nothing after the end"
    );
}

#[test]
fn a_failed_device_breaks_the_mesh() {
    let (wire, fake) = (Wire::default(), Fake::with(&hung(10_000)));
    let broken = fake.clone();
    let breaks = move || broken.0.lock().unwrap().broken = Some("remote error".to_owned());
    let mut ranks = ranks(&wire, &fake, vec![(20, Box::new(breaks))]);
    let cause = ranks.finish().unwrap_err();
    assert!(matches!(&cause, CollectiveError::Device(what) if what == "remote error"), "{cause}");
    assert!(wire.0.lock().unwrap().aborted && fake.0.lock().unwrap().aborted);
}

#[test]
fn where_the_mesh_knows_who_is_lost_a_failed_device_says_so_too() {
    let (wire, fake) = (Wire::default(), Fake::default());
    fake.0.lock().unwrap().broken = Some("remote error".to_owned());
    let late = wire.clone();
    let news = move || late.0.lock().unwrap().cause = Some(CollectiveError::PeerLost { rank: 1, how: How::Closed });
    let cause = ranks(&wire, &fake, vec![(40, Box::new(news))]).finish().unwrap_err();
    assert!(matches!(cause, CollectiveError::PeerLost { rank: 1, how: How::Closed }), "{cause}");
}

#[test]
fn a_rank_that_leaves_is_missed_only_by_what_it_had_no_part_in() {
    let left = Some(CollectiveError::PeerLost { rank: 1, how: How::Left });
    let (wire, fake) = (Wire::default(), Fake::with(&hung(40)));
    wire.0.lock().unwrap().cause = left.clone();
    ranks(&wire, &fake, vec![]).finish().unwrap();

    let (wire, fake) = (Wire::default(), Fake::with(&hung(100_000)));
    wire.0.lock().unwrap().cause = left;
    let mut missed = ranks(&wire, &fake, vec![]);
    missed.set_deadline(10 * LEAVING);
    let cause = missed.finish().unwrap_err();
    assert!(matches!(cause, CollectiveError::PeerLost { rank: 1, how: How::Left }), "{cause}");
    assert_eq!(missed.time.now(), LEAVING);
}

#[test]
fn a_failed_mesh_aborts_the_device() {
    let (wire, fake) = (Wire::default(), Fake::default());
    let mut ranks = ranks(&wire, &fake, vec![]);
    ranks.finish().unwrap();
    wire.0.lock().unwrap().cause = Some(CollectiveError::PeerLost { rank: 1, how: How::Closed });
    ranks.together(|c| c.barrier()).unwrap_err();
    assert!(fake.0.lock().unwrap().aborted);
}

#[test]
fn a_communicator_does_device_and_host_sums_in_order() {
    let (wire, fake) = (Wire::default(), Fake::with(&[3, 3, 2, 2, 1, 1]));
    let device: Box<dyn DeviceSums> = Box::new(fake.clone());
    let ranks = Ranks::new(Box::new(wire.clone()), Some(device), Duration::from_secs(20));
    let mut communicator = Communicator::of(ranks);
    let tensors: Vec<Tensor> = (1..=3).map(|v| Tensor::full([2], v, (Kind::Float, Device::Cpu))).collect();
    let buffers = tensors.iter().map(|t| DeviceBuffer::new(t).unwrap());
    buffers.for_each(|buffer| communicator.launcher().sum_on_device(buffer));
    communicator.launcher().sum(&Tensor::ones([4], (Kind::Float, Device::Cpu)));
    communicator.wait().unwrap();
    assert_eq!(fake.0.lock().unwrap().launched, [1.0, 2.0, 3.0]);
    assert_eq!(wire.0.lock().unwrap().calls, 1);
    assert_eq!(tensors.iter().map(|t| t.double_value(&[1])).collect::<Vec<_>>(), [2.0, 4.0, 6.0]);
}

#[test]
fn a_device_buffer_without_device_sums_is_an_error() {
    let mut communicator = Communicator::new(Box::new(Solo::new(1)));
    communicator.launcher().sum_on_device(buffer(1.0));
    let cause = communicator.wait().unwrap_err();
    assert!(cause.to_string().contains("host memory only"), "{cause}");
    let mut communicator = Communicator::new(Box::new(Solo::new(1)));
    communicator.launcher().sum(&Tensor::ones([2, 2], (Kind::Double, Device::Cpu)));
    assert!(matches!(communicator.wait(), Err(CollectiveError::Misuse(_))));
}

#[test]
fn sums_of_one_rank_are_there() {
    let mut communicator =
        Communicator::of(Ranks::new(Box::new(Solo::new(1)), Some(Box::new(Alone)), Duration::from_secs(20)));
    communicator.launcher().sum_on_device(buffer(1.0));
    communicator.wait().unwrap();
    communicator.barrier().unwrap();
}

/// Two communicators over real connections, whose device sums hang.
fn hanging() -> Vec<(Communicator, Fake)> {
    let mut listeners: Vec<_> = (0..2).map(|_| Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
    let peers: Vec<_> = listeners.iter().map(Listener::address).collect();
    let form = |rank: usize, listener: &mut Listener| {
        let membership = Membership { generation: 1, rank: rank as u32, peers: peers.clone(), secret: [7; 32] };
        let mesh = Mesh::connect(listener, membership, Duration::from_secs(20)).unwrap();
        let fake = Fake::with(&vec![1; 10_000_000]);
        let ranks = Ranks::new(Box::new(mesh), Some(Box::new(fake.clone())), Duration::from_secs(60));
        (Communicator::of(ranks), fake)
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            listeners.iter_mut().enumerate().map(|(rank, l)| scope.spawn(move || form(rank, l))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn an_abort_or_a_failed_device_ends_the_waits_of_every_rank() {
    for breaks in [false, true] {
        collective::contract::in_time(|| {
            let mut all = hanging();
            let (aborter, broken) = (all[0].0.aborter(), all[0].1.clone());
            let waits = all.iter_mut().map(|(communicator, _)| {
                communicator.launcher().sum_on_device(buffer(1.0));
                communicator
            });
            let begun = Instant::now();
            let causes: Vec<_> = std::thread::scope(|scope| {
                let waits: Vec<_> = waits
                    .map(|communicator| scope.spawn(|| (communicator.wait().unwrap_err(), begun.elapsed())))
                    .collect();
                if breaks {
                    broken.0.lock().unwrap().broken = Some("a GPU fell off the bus".to_owned());
                } else {
                    aborter.abort();
                }
                waits.into_iter().map(|wait| wait.join().unwrap()).collect()
            });
            match &causes[0].0 {
                CollectiveError::Aborted => assert!(!breaks),
                CollectiveError::Device(what) => assert!(breaks && what.contains("bus")),
                other => panic!("{other}"),
            }
            let other = &causes[1].0;
            assert!(matches!(other, CollectiveError::PeerLost { rank: 0, how: How::Aborted }), "{other}");
            assert!(all.iter().all(|(_, fake)| fake.0.lock().unwrap().aborted));
            // the failed device gives the mesh its grace first
            let grace = if breaks { GRACE } else { Duration::ZERO };
            causes.iter().map(|(_, took)| took.saturating_sub(grace)).max().unwrap()
        });
    }
}
