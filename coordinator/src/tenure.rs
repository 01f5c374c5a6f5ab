//! Holding a run against coordinators on other machines: the lease in the run's store, and the pulse that keeps it.
//!
//! A number is taken once, and whoever sees a higher one than its own has been replaced: it ends at once and leaves the
//! workers, who obey the highest. Whether a holder lives is found out without comparing clocks: it is asked where it
//! listens, and if nobody answers, its pulse is watched for as long as several would have come. A store that is away delays
//! signs of life and looks; it stops no run, but a holder that may have been replaced while it stood still waits for it.

use crate::admission::Token;
use crate::display::Display;
use crate::failure::Failure;
use crate::machine;
use crate::operate::ask;
use crate::render::News;
use common::exit::Exit;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use storage::{Lease, LeaseError, Pulse, Run, StorageError, fresh_nonce};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use trust::Credentials;

/// Shortest and longest time between two pulses; in between it is twice the patience.
const PULSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// Pulses that must fail to come before a holder counts as dead.
const MISSED: u32 = 4;
/// Longest time that a decision waits for the store, where nobody can have taken the run over meanwhile.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks where somebody can.
const AGAIN: Duration = Duration::from_millis(250);
/// For a look before a run begins.
const STORE: Duration = Duration::from_secs(60);

/// What a successor on another machine goes on from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bequest {
    /// Workers that were wanted at the start.
    pub workers: u32,
    /// What was written down, as it looks from elsewhere.
    pub entries: Vec<coordinator_core::Entry>,
}

/// The lease of this coordinator, or none where the store cannot keep one.
#[derive(Debug)]
pub struct Tenure {
    /// Who took the run over, once somebody did.
    replaced: watch::Receiver<Option<Lease>>,
    looks: mpsc::Sender<oneshot::Sender<bool>>,
    bequest: watch::Sender<Bequest>,
    keeper: Option<JoinHandle<()>>,
    /// Whoever was silent for so long may have been replaced: it is watched from its last sign of life, which may have been a period
    /// before its pause.
    silence: Duration,
}

impl Tenure {
    /// Keeps `lease`, which is taken, for `run`.
    #[must_use]
    pub fn keep(run: Run, lease: Lease) -> Self {
        let (replacing, replaced) = watch::channel(None);
        let (looks, asked) = mpsc::channel(1);
        let (bequest, news) = watch::channel(Bequest::default());
        let silence = watched(&lease) / MISSED * (MISSED - 1);
        let keeper = Keeper { run, lease, count: 0, replacing, news };
        Self { replaced, looks, bequest, keeper: Some(tokio::spawn(keeper.keep(asked))), silence }
    }

    /// No lease: only the lock on this machine keeps others away.
    #[must_use]
    pub fn none() -> Self {
        let (looks, bequest) = (mpsc::channel(1).0, watch::channel(Bequest::default()).0);
        Self { replaced: watch::channel(None).1, looks, bequest, keeper: None, silence: Duration::MAX }
    }

    /// Returns when another coordinator has taken the run over.
    pub async fn replaced(&mut self) -> Lease {
        loop {
            if let Some(lease) = self.replaced.borrow_and_update().clone() {
                return lease;
            }
            if self.replaced.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whoever gave no sign of life in the store for so long may have been replaced.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.silence
    }

    /// After a pause of this coordinator, or a time in which it heard nobody: looks into the store for who has taken the run over, if somebody did. A store that does
    /// not answer is waited for after a pause in which somebody may have, at most for `longest`.
    pub async fn look(&self, paused: Duration, longest: Duration) -> Option<Lease> {
        let doubtful = paused >= self.silence;
        let end = Instant::now() + if doubtful { longest.max(LOOK) } else { LOOK };
        let mut told = false;
        loop {
            let answers = self.keeper.is_none() || timeout_at(end, self.answer()).await.unwrap_or(false);
            let replaced = self.replaced.borrow().clone();
            if answers || replaced.is_some() {
                return replaced;
            }
            let last = !doubtful || Instant::now() + AGAIN >= end;
            if last || !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    "after {:.1} s in which this coordinator stood still or heard nobody, the store does not say whether another \
                     one has taken over; {}",
                    paused.as_secs_f64(),
                    if last { "it goes on" } else { "it orders nothing until it knows" }
                );
            }
            if last {
                return None;
            }
            sleep(AGAIN).await;
        }
    }

    /// Has the keeper look; whether the store answered.
    async fn answer(&self) -> bool {
        let (done, looked) = oneshot::channel();
        self.looks.send(done).await.is_ok() && looked.await.unwrap_or(false)
    }

    /// What a successor has to know from now on.
    pub fn bequeath(&self, bequest: Bequest) {
        self.bequest.send_if_modified(|last| {
            let changed = *last != bequest;
            *last = bequest;
            changed
        });
    }

    /// Gives the run back: nobody holds it.
    pub async fn end(mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        // its wishes end, and so does it
        drop(self);
        if keeper.await.is_err() {
            tracing::debug!("the keeper of the lease had ended before");
        }
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

struct Keeper {
    run: Run,
    lease: Lease,
    count: u64,
    replacing: watch::Sender<Option<Lease>>,
    news: watch::Receiver<Bequest>,
}

impl Keeper {
    async fn keep(mut self, mut asked: mpsc::Receiver<oneshot::Sender<bool>>) {
        let mut clock = interval(Duration::from_millis(self.lease.pulse_ms));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                look = asked.recv() => match look {
                    Some(done) => {
                        let answer = self.is_replaced().await;
                        if answer == Some(true) {
                            return;
                        }
                        // who asked may have stopped waiting
                        let _ = done.send(answer.is_some());
                    }
                    None => break,
                },
                _ = clock.tick() => {
                    if self.is_replaced().await == Some(true) {
                        return;
                    }
                    self.give_pulse(false).await;
                }
                Ok(()) = self.news.changed() => self.give_pulse(false).await,
            }
        }
        if self.is_replaced().await != Some(true) {
            self.give_pulse(true).await;
        }
    }

    /// Whether another coordinator has taken the run over, if the store answers.
    async fn is_replaced(&mut self) -> Option<bool> {
        match self.run.lease().await {
            Ok(Some(lease)) if lease.epoch > self.lease.epoch || lease.nonce != self.lease.nonce => {
                self.replacing.send_replace(Some(lease));
                Some(true)
            }
            Ok(_) => Some(false),
            Err(error) => {
                tracing::debug!("whether another coordinator has taken over cannot be seen: {error}");
                None
            }
        }
    }

    async fn give_pulse(&mut self, over: bool) {
        self.count += 1;
        let state = serde_json::to_value(&*self.news.borrow_and_update()).unwrap_or_default();
        let Lease { epoch, nonce, .. } = self.lease.clone();
        if let Err(error) = self.run.give_pulse(&Pulse { epoch, nonce, count: self.count, over, state }).await {
            tracing::warn!("the store takes no sign of life of this coordinator: {error}");
        }
    }
}

/// Time between two pulses of a coordinator with this patience.
#[must_use]
pub fn pulse(patience: Duration) -> Duration {
    patience.saturating_mul(2).clamp(PULSE[0], PULSE[1])
}

/// How long a holder that does not answer is watched for a sign of life.
fn watched(lease: &Lease) -> Duration {
    Duration::from_millis(lease.pulse_ms).clamp(PULSE[0], PULSE[1]) * MISSED
}

/// Takes the run after `last`, the highest number that is taken.
///
/// # Errors
/// Somebody was faster, or the store's trouble.
pub async fn take(run: &Run, last: u64, address: &str, pulse: Duration) -> Result<Lease, Failure> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let lease = Lease {
        epoch: last + 1,
        nonce: fresh_nonce()?,
        host: machine::host(),
        pid: std::process::id(),
        address: address.to_owned(),
        started,
        pulse_ms: u64::try_from(pulse.as_millis()).unwrap_or(u64::MAX),
    };
    match run.claim(&lease).await {
        Ok(()) => Ok(lease),
        Err(LeaseError::Taken(held)) => Err(at_work(run, &held, Exit::Network)),
        Err(LeaseError::Storage(error)) => Err(error.into()),
    }
}

/// What is known of whoever coordinated the run last, on any machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Holder {
    /// Nobody ever did, or the run was given back. The highest number that is taken.
    Nobody(u64),
    /// A coordinator of this machine, which is dead: its number.
    Ours(u64),
    /// One on another machine that gives no sign of life, and what it left.
    Dead(Box<Lease>, Bequest),
}

/// What a coordinator proves to another one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proof<'a> {
    /// The run's token, if it is known.
    pub token: Option<&'a Token>,
    /// Its credentials, if it has any.
    pub credentials: Option<&'a Credentials>,
}

/// Finds out who holds the run. `ours`: number and nonce of the lease that a dead coordinator of this machine had. Takes as
/// long as several pulses where a holder on another machine does not answer; that is said.
///
/// # Errors
/// A holder is at work (then with `exit`), or the store's trouble.
pub async fn holder(
    run: &Run,
    ours: Option<(u64, &str)>,
    proof: Proof<'_>,
    exit: Exit,
    display: &mut Display,
) -> Result<Holder, Failure> {
    let Some(lease) = soon(run, run.lease()).await? else { return Ok(Holder::Nobody(0)) };
    if ours == Some((lease.epoch, lease.nonce.as_str())) {
        return Ok(Holder::Ours(lease.epoch));
    }
    let pulse = soon(run, run.pulse(lease.epoch)).await?;
    if pulse.as_ref().is_some_and(|pulse| pulse.over && pulse.nonce == lease.nonce) {
        return Ok(Holder::Nobody(lease.epoch));
    }
    if answers(run, &lease, proof).await {
        return Err(at_work(run, &lease, exit));
    }
    let mut last = pulse;
    let watched = watched(&lease);
    display.show(&News::Note(format!(
        "coordinator {} of this run, on {}, does not answer: watching for a sign of life for {:.0} s",
        lease.epoch,
        lease.host,
        watched.as_secs_f64()
    )));
    let end = Instant::now() + watched;
    while Instant::now() < end {
        sleep(watched / (MISSED * 2)).await;
        let now = soon(run, run.pulse(lease.epoch)).await?;
        if now != last {
            if now.as_ref().is_some_and(|pulse| pulse.over) {
                return Ok(Holder::Nobody(lease.epoch));
            }
            return Err(at_work(run, &lease, exit));
        }
        last = now;
    }
    let left = last.and_then(|pulse| serde_json::from_value(pulse.state).ok()).unwrap_or_default();
    Ok(Holder::Dead(Box::new(lease), left))
}

/// Whether the holder of a lease answers where it says that it listens.
async fn answers(run: &Run, lease: &Lease, proof: Proof<'_>) -> bool {
    let loopback = lease.address.parse().is_ok_and(|address: std::net::SocketAddr| address.ip().is_loopback());
    let Some(token) = proof.token.filter(|_| !loopback || lease.host == machine::host()) else { return false };
    let question = rpc::operate_request::Command::Status(rpc::StatusQuestion {});
    // another run's coordinator may have got the address
    let asked = ask(&lease.address, token.expose(), proof.credentials, question);
    matches!(timeout(LOOK, asked).await, Ok(Ok(status)) if status.url == run.url())
}

fn at_work(run: &Run, lease: &Lease, exit: Exit) -> Failure {
    let message = format!(
        "coordinator {} of {} is at work on {} (process {}, {}). Look at it there with `coordinator status {}`, or end it \
         there with `coordinator stop {}`",
        lease.epoch,
        run.url(),
        lease.host,
        lease.pid,
        lease.address,
        run.name(),
        run.name()
    );
    Failure::new(exit, message)
}

async fn soon<T>(run: &Run, work: impl Future<Output = Result<T, StorageError>>) -> Result<T, Failure> {
    match timeout(STORE, work).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let message = format!("{} does not say within {} s who coordinates this run", run.url(), STORE.as_secs());
            Err(Failure::new(Exit::Storage, message))
        }
    }
}

/// What a coordinator says that was replaced.
#[must_use]
pub fn replaced(lease: &Lease) -> Failure {
    let message = format!(
        "another coordinator, epoch {} on {}, has taken the run over; its workers obey that one, and are left alone",
        lease.epoch, lease.host
    );
    Failure::new(Exit::Network, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::Style;
    use common::config::resolved::S3;
    use coordinator_core::Entry;

    const PULSE: Duration = Duration::from_secs(1);

    fn run(name: &str) -> Run {
        storage::Store::open(&format!("memory://{name}"), &S3::default()).unwrap().run("toy").unwrap()
    }

    async fn ask(run: &Run, ours: Option<(u64, &str)>) -> Result<Holder, Failure> {
        holder(run, ours, Proof::default(), Exit::Config, &mut Display::new(Style::Json)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_has_one_holder_until_that_is_silent_or_gives_it_back() {
        let run = run("holder");
        assert_eq!(ask(&run, None).await.unwrap(), Holder::Nobody(0));
        let lease = take(&run, 0, "10.0.0.1:4000", PULSE).await.unwrap();
        let faster = take(&run, 0, "10.0.0.2:4000", PULSE).await.unwrap_err();
        assert_eq!(faster.exit, Exit::Network);
        let tenure = Tenure::keep(run.clone(), lease.clone());
        let bequest = Bequest { workers: 3, entries: vec![Entry::Wanted(2)] };
        tenure.bequeath(bequest.clone());
        let refused = ask(&run, None).await.unwrap_err();
        assert!(refused.message.contains("is at work on") && refused.exit == Exit::Config, "{}", refused.message);
        // its own machine knows that it is dead
        assert_eq!(ask(&run, Some((1, &lease.nonce))).await.unwrap(), Holder::Ours(1));
        // it dies
        drop(tenure);
        assert_eq!(ask(&run, None).await.unwrap(), Holder::Dead(Box::new(lease), bequest));
        let second = Tenure::keep(run.clone(), take(&run, 1, "10.0.0.2:4000", PULSE).await.unwrap());
        second.end().await;
        assert_eq!(ask(&run, None).await.unwrap(), Holder::Nobody(2));
    }

    /// A store in a folder that can be away.
    #[tokio::test]
    async fn who_may_have_been_replaced_waits_for_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("runs").display());
        let patience = storage::Patience { budget: AGAIN, attempt: AGAIN, first_pause: AGAIN, longest_pause: AGAIN };
        let store = storage::Store::open(&url, &S3::default()).unwrap().with_patience(patience);
        let run = store.run("toy").unwrap();
        let lease = take(&run, 0, "10.0.0.1:4000", PULSE).await.unwrap();
        let second = take(&run, 1, "10.0.0.2:4000", PULSE).await.unwrap();
        let (here, away) = (folder.path().join("runs"), folder.path().join("away"));
        std::fs::rename(&here, &away).unwrap();
        std::fs::write(&here, "no folder").unwrap();
        let first = Tenure::keep(run, lease);
        let long = Duration::from_secs(60);
        assert_eq!(first.look(PULSE, long).await, None, "nobody can have replaced it so soon");
        assert_eq!(first.look(long, PULSE).await, None, "it does not wait for ever");
        let back = async {
            sleep(AGAIN * 3).await;
            std::fs::remove_file(&here).unwrap();
            std::fs::rename(&away, &here).unwrap();
            Instant::now()
        };
        let (found, back) = tokio::join!(async { (first.look(long, long).await, Instant::now()) }, back);
        assert_eq!(found.0, Some(second));
        assert!(found.1 >= back);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_replaced_learns_it_by_itself_and_on_asking() {
        let run = run("replaced");
        let lease = take(&run, 0, "10.0.0.1:4000", PULSE).await.unwrap();
        let mut first = Tenure::keep(run.clone(), lease.clone());
        let look = first.look(PULSE, PULSE);
        assert_eq!(look.await, None);
        let second = take(&run, 1, "10.0.0.2:4000", PULSE).await.unwrap();
        let look = first.look(PULSE, PULSE);
        assert_eq!(look.await, Some(second.clone()));
        assert_eq!(first.replaced().await, second);
        let mut third = Tenure::keep(run, lease);
        assert_eq!(timeout(PULSE * 3, third.replaced()).await.unwrap(), second);
        assert!(timeout(PULSE * 100, Tenure::none().replaced()).await.is_err(), "without a lease nobody knows");
    }
}
