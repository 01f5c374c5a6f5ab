//! `worker doctor ADDRESS`: this host's part when `coordinator doctor --hosts` looks at what lies between hosts. It comes as its workers
//! would, by the same way and with the same credentials, and meets others as ranks do: what works here works in a run.
//!
//! Judges nothing, and changes nothing.

use crate::failure::Failure;
use crate::{address, doctor, limits};
use agent::{Examination, JoinInfo, Meeting, Reach, Times};
use collective::{Collective, CollectiveError, Membership, Mesh, Tcp};
use common::exit::Exit;
use native::cuda::Cuda;
use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For peers to find each other.
const FORM: Duration = Duration::from_secs(10);
/// Small messages that are sent to and fro, of which the quickest counts: others are late because somebody is busy.
const ECHOES: usize = 20;
/// Most bytes of a sum: nobody may take this host's memory.
const BYTES_MAX: u64 = 2 << 30;
/// Between two attempts to find a way to the coordinator.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes part until the coordinator, which is waited for as long as `patience`, knows enough.
///
/// # Errors
/// As [`crate::join::join`].
pub fn examined(
    reach: &Reach,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    patience: Duration,
    cuda: &Cuda,
) -> Result<Exit, Failure> {
    limits::prepare()?;
    let began = Instant::now();
    let (mut listener, peer) = loop {
        match address::listener(&reach.address, listen, advertise) {
            Err(Failure::Unreachable { .. }) if began.elapsed() + PAUSE < patience => sleep(PAUSE),
            found => break found?,
        }
    };
    let info = JoinInfo::of_this_process(env!("CARGO_PKG_VERSION"), &peer.to_string(), "host");
    let left = patience.saturating_sub(began.elapsed());
    let mut examination = Examination::arrive(reach, &info, &doctor::findings(cuda).to_string(), left)?;
    tracing::info!("here at {peer}; waiting for the other hosts");
    while let Some(meeting) = examination.meeting()? {
        let measured = meet(&mut listener, &meeting);
        match &measured {
            Ok(times) => tracing::debug!("meeting {}: {times:?}", meeting.number),
            Err(trouble) => tracing::warn!("meeting {} of {}: {trouble}", meeting.number, meeting.peers.join(", ")),
        }
        examination.tell(meeting.number, measured)?;
    }
    tracing::info!("done: the coordinator says what was found");
    Ok(Exit::Ok)
}

fn meet(listener: &mut collective::Listener, meeting: &Meeting) -> Result<Times, String> {
    if meeting.bytes > BYTES_MAX {
        return Err(format!("{} bytes are more than is measured with", meeting.bytes));
    }
    let peers = address::all(&meeting.peers).map_err(|failure| failure.to_string())?;
    let began = Instant::now();
    let left = || meeting.time.saturating_sub(began.elapsed());
    let membership = Membership { generation: meeting.number, rank: meeting.rank.0, peers, secret: meeting.secret };
    let measured = || {
        let mut group = Mesh::connect(listener, membership, FORM.min(left())).map_err(|error| match error {
            CollectiveError::TimedOut { .. } => format!("no connection within {} s", FORM.as_secs()),
            error => error.to_string(),
        })?;
        // a deadline of the collective is one without progress: who trickles would be waited for without end
        let (done, over) = channel::<()>();
        let (aborter, time) = (group.aborter(), left());
        std::thread::spawn(move || {
            if over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                aborter.abort();
            }
        });
        let measured = measure(&mut group, meeting, &left).map_err(|error| match error {
            CollectiveError::Aborted | CollectiveError::TimedOut { .. } if left().is_zero() => {
                format!("not done within {:.0} s", meeting.time.as_secs_f64())
            }
            error => error.to_string(),
        });
        drop(done);
        measured
    };
    match measured()? {
        (times, true) => Ok(times),
        (_, false) => Err("sums are wrong: what is sent does not arrive as it was".to_owned()),
    }
}

/// The times, and whether every sum was right.
fn measure(group: &mut Tcp, meeting: &Meeting, left: &dyn Fn() -> Duration) -> Result<(Times, bool), CollectiveError> {
    let world = group.world() as f32;
    group.set_deadline(left());
    let mut numbers = vec![1.0f32; (meeting.bytes / 4).max(1) as usize];
    // the first opens windows, and touches the memory
    group.all_reduce_sum_f32(&mut numbers)?;
    let mut times = Times { way: Duration::MAX, sum: Duration::MAX };
    for _ in 0..ECHOES {
        times.way = times.way.min(group.echo(1)?.into_iter().max().unwrap_or_default());
    }
    let mut sound = true;
    for _ in 0..meeting.sums {
        group.set_deadline(left());
        numbers.fill(1.0);
        group.barrier()?;
        let began = Instant::now();
        group.all_reduce_sum_f32(&mut numbers)?;
        times.sum = times.sum.min(began.elapsed());
        sound &= numbers.iter().all(|sum| *sum == world);
    }
    // nobody leaves before all are done
    group.barrier()?;
    Ok((times, sound))
}
