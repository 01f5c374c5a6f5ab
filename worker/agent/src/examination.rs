//! A host's side of `coordinator doctor --hosts`: it arrives as its workers would, says what time it is, and is told whom to meet.
//!
//! Carries questions and answers; what a meeting is, and what is measured there, is the caller's, whose thread waits here. Judges nothing.

use crate::error::AgentError;
use crate::join::{JoinInfo, Reach};
use common::ids::Rank;
use rpc::examination_client::ExaminationClient;
use rpc::from_host::Body;
use rpc::{FromHost, ToHost, to_host};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// Between two attempts to reach a coordinator that does not listen yet.
const PAUSE: Duration = Duration::from_millis(500);
/// For one of them.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A coordinator that asks nothing for so long has forgotten this host: it may wait for others, and for meetings of others.
const SILENCE: Duration = Duration::from_secs(2 * 3600);
/// A coordinator's machine that answers nothing for so long is gone.
const GONE: Duration = Duration::from_secs(10);
/// Answers that may wait for the socket.
const WINDOW: usize = 16;

/// Peers to meet, and what to measure among them.
pub struct Meeting {
    /// Each later than the one before.
    pub number: u64,
    /// This host's place.
    pub rank: Rank,
    /// Addresses, in rank order.
    pub peers: Vec<String>,
    /// What only they know.
    pub secret: [u8; 32],
    /// Size of a sum.
    pub bytes: u64,
    /// Sums, one after the other.
    pub sums: u32,
    /// For all of it.
    pub time: Duration,
}

/// What was measured at a meeting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// A small message to the slowest of the others and back.
    pub way: Duration,
    /// The quickest of the sums.
    pub sum: Duration,
}

/// A host that is looked at.
pub struct Examination {
    address: String,
    runtime: Runtime,
    answers: mpsc::Sender<FromHost>,
    questions: Streaming<ToHost>,
}

impl Examination {
    /// Arrives at the coordinator at `reach`, which is waited for as long as `patience`. `findings` are what `worker doctor` says of this host.
    ///
    /// # Errors
    /// As [`crate::Agent::connect`].
    pub fn arrive(reach: &Reach, info: &JoinInfo, findings: &str, patience: Duration) -> Result<Self, AgentError> {
        reach.endpoint()?;
        // one thread of it keeps the connection alive while the caller's measures
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(AgentError::Thread)?;
        let began = Instant::now();
        let (answers, questions) = runtime.block_on(async {
            loop {
                match arrive(reach, info, findings).await {
                    Err(AgentError::Unreachable { address, why, .. }) => {
                        let waited = began.elapsed();
                        if waited + PAUSE > patience {
                            return Err(AgentError::Unreachable { address, waited, why });
                        }
                        sleep(PAUSE).await;
                    }
                    arrived => return arrived,
                }
            }
        })?;
        Ok(Self { address: reach.address.clone(), runtime, answers, questions })
    }

    /// Answers questions until there is somebody to meet; `None` when the coordinator knows enough.
    ///
    /// # Errors
    /// [`AgentError::Refused`], [`AgentError::Assignment`] for a meeting that makes no sense, [`AgentError::Gone`].
    pub fn meeting(&mut self) -> Result<Option<Meeting>, AgentError> {
        loop {
            let question = self.runtime.block_on(async { timeout(SILENCE, self.questions.message()).await });
            let question = match question {
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(question))) => question,
                Ok(Err(status)) => return Err(self.gone(trust::words(&status))),
                Err(_) => return Err(self.gone(format!("it has asked nothing for {} s", SILENCE.as_secs()))),
            };
            match question.body {
                Some(to_host::Body::Refused(refused)) => return Err(AgentError::Refused { message: refused.message }),
                Some(to_host::Body::Time(_)) => self.answer(Body::Time(rpc::Time { unix_seconds: unix_seconds() }))?,
                Some(to_host::Body::Meeting(meeting)) => return Meeting::try_from(meeting).map(Some),
                None => {}
            }
        }
    }

    /// Says what came of a meeting.
    ///
    /// # Errors
    /// [`AgentError::Gone`]: nobody is there to hear it.
    pub fn tell(&self, meeting: u64, measured: Result<Times, String>) -> Result<(), AgentError> {
        let mut told = rpc::Measured { meeting, ..rpc::Measured::default() };
        match measured {
            Ok(times) => (told.way_seconds, told.sum_seconds) = (times.way.as_secs_f64(), times.sum.as_secs_f64()),
            Err(trouble) => told.trouble = trouble,
        }
        self.answer(Body::Measured(told))
    }

    fn answer(&self, body: Body) -> Result<(), AgentError> {
        let answer = FromHost { body: Some(body) };
        self.answers.blocking_send(answer).map_err(|_| self.gone("the stream is closed".to_owned()))
    }

    fn gone(&self, why: String) -> AgentError {
        AgentError::Gone { address: self.address.clone(), why }
    }
}

type Stream = (mpsc::Sender<FromHost>, Streaming<ToHost>);

async fn arrive(reach: &Reach, info: &JoinInfo, findings: &str) -> Result<Stream, AgentError> {
    let address = || reach.address.clone();
    let (endpoint, token) = reach.endpoint()?;
    let endpoint =
        endpoint.http2_keep_alive_interval(GONE / 2).keep_alive_timeout(GONE / 2).keep_alive_while_idle(true);
    let (answers, outgoing) = mpsc::channel(WINDOW);
    let arrival = rpc::Arrival { join: Some(info.message(&token)), findings: findings.to_owned() };
    let opening = async {
        // there is room for the first
        let _ = answers.send(FromHost { body: Some(Body::Arrival(arrival)) }).await;
        let channel = endpoint.connect().await.map_err(|error| trust::causes(&error))?;
        let mut client = ExaminationClient::new(channel);
        match client.examine(ReceiverStream::new(outgoing)).await {
            Ok(questions) => Ok(Some(questions.into_inner())),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(trust::words(&status)),
        }
    };
    match timeout(ATTEMPT, opening).await {
        Ok(Ok(Some(questions))) => Ok((answers, questions)),
        Ok(Ok(None)) => {
            let message = "a run is coordinated there: give the address at which `coordinator doctor --hosts` waits";
            Err(AgentError::Refused { message: message.to_owned() })
        }
        Ok(Err(why)) => Err(match trust::explain(&why) {
            Some(advice) => AgentError::Untrusted { address: address(), why: format!("{advice} ({why})") },
            None => AgentError::Unreachable { address: address(), waited: Duration::ZERO, why },
        }),
        Err(_) => {
            let why = "no answer".to_owned();
            Err(AgentError::Unreachable { address: address(), waited: Duration::ZERO, why })
        }
    }
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now();
    match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        // a clock that was never set
        Err(error) => -error.duration().as_secs_f64(),
    }
}

impl TryFrom<rpc::Meeting> for Meeting {
    type Error = AgentError;

    fn try_from(told: rpc::Meeting) -> Result<Self, AgentError> {
        let wrong = |why: String| AgentError::Assignment { why };
        let roster = rpc::Roster::open(told.roster).map_err(|error| wrong(format!("the roster: {error}")))?;
        if told.rank as usize >= roster.peers.len() {
            return Err(wrong(format!("rank {} of {} hosts", told.rank, roster.peers.len())));
        }
        let secret = told.secret.as_slice().try_into();
        let time = Duration::try_from_secs_f64(told.seconds);
        Ok(Self {
            number: told.number,
            rank: Rank(told.rank),
            peers: roster.peers,
            secret: secret.map_err(|_| wrong(format!("a secret of {} bytes, not 32", told.secret.len())))?,
            bytes: told.bytes,
            sums: told.sums,
            time: time.map_err(|error| wrong(format!("{} seconds: {error}", told.seconds)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meetings_that_make_no_sense_are_errors() {
        let roster = rpc::Roster { peers: vec!["a".into(), "b".into()] }.seal();
        let told = rpc::Meeting { roster, secret: vec![7; 32], rank: 1, seconds: 2.5, ..rpc::Meeting::default() };
        let meeting = Meeting::try_from(told.clone()).unwrap();
        assert_eq!((meeting.rank, meeting.secret, meeting.time), (Rank(1), [7; 32], Duration::from_millis(2500)));
        for wrong in [
            rpc::Meeting { rank: 2, ..told.clone() },
            rpc::Meeting { secret: vec![7; 31], ..told.clone() },
            rpc::Meeting { roster: vec![0xff].into(), ..told.clone() },
            rpc::Meeting { seconds: -1.0, ..told.clone() },
            rpc::Meeting { seconds: f64::NAN, ..told },
        ] {
            assert!(matches!(Meeting::try_from(wrong.clone()), Err(AgentError::Assignment { .. })), "{wrong:?}");
        }
    }
}
