//! Which failures are worth another try, for how long, and at what distance.
//!
//! `object_store` gives up about three seconds after an endpoint starts to refuse connections, and its error does not tell
//! a status as a type. So its own retries are kept short, and this module decides: by the kind of transport error where
//! there is one, else by the status in the error's text (a test pins that text).

use crate::error::{StorageError, detail};
use crate::source::LocalFile;
use object_store::client::HttpError;
use object_store::{Error, RetryConfig};
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a store is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one request with its repetitions, before it counts as failed. Transfers get time for their size on top.
    pub budget: Duration,
    /// For one attempt of a small request.
    pub attempt: Duration,
    /// Before the second attempt; doubles each time.
    pub first_pause: Duration,
    /// Longest distance between attempts.
    pub longest_pause: Duration,
}

/// Slowest transfer that is waited for, bytes per second.
const SLOWEST: u64 = 1 << 20;

impl Default for Patience {
    /// Five minutes: a restart of the store, or a minute without a network, costs no checkpoint.
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(300),
            attempt: Duration::from_secs(60),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(15),
        }
    }
}

impl Patience {
    /// Time that `bytes` may take on the wire.
    pub(crate) fn transfer(bytes: u64) -> Duration {
        Duration::from_secs(bytes / SLOWEST)
    }
}

/// The client's own retries: they cover a hiccup, the budget covers the rest.
pub(crate) fn client_retries() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(30), ..RetryConfig::default() }
}

/// What a failure means for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// There is no such object.
    Missing,
    /// A create-only write met an object, or something that looks like one.
    Exists,
    /// Not allowed.
    Denied,
    /// Trying again may help; whether a write happened is unknown.
    Again,
    /// Trying again does not help.
    Never,
}

pub(crate) fn classify(error: &Error) -> Class {
    match error {
        Error::NotFound { .. } => Class::Missing,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => Class::Exists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Class::Denied,
        Error::Generic { source, .. } => classify_generic(source.as_ref()),
        Error::JoinError { .. } => Class::Again,
        _ => Class::Never,
    }
}

fn classify_generic(error: &(dyn StdError + 'static)) -> Class {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.is::<HttpError>() {
            return Class::Again;
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                ErrorKind::NotFound => Class::Missing,
                ErrorKind::AlreadyExists => Class::Exists,
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Class::Denied,
                ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::NotADirectory
                | ErrorKind::Unsupported => Class::Never,
                _ => Class::Again,
            };
        }
        if let Some(status) = status_in(&inner.to_string()) {
            return match status {
                404 => Class::Missing,
                401 | 403 => Class::Denied,
                408 | 429 | 500.. => Class::Again,
                409 | 412 => Class::Exists,
                _ => Class::Never,
            };
        }
        cause = inner.source();
    }
    Class::Again
}

/// The HTTP status in `object_store`'s text, which is the only place that has it.
fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("Server returned non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// One request's tries: counts them, times them, spaces them out.
pub(crate) struct Tries<'a> {
    patience: &'a Patience,
    extra: Duration,
    begun: Instant,
    made: u32,
    last: String,
}

impl<'a> Tries<'a> {
    /// For a request that moves `bytes`.
    pub(crate) fn new(patience: &'a Patience, bytes: u64) -> Self {
        Self { patience, extra: Patience::transfer(bytes), begun: Instant::now(), made: 0, last: String::new() }
    }

    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// Runs one try under its own deadline.
    pub(crate) async fn attempt<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.made += 1;
        let limit = (self.patience.attempt + self.extra).min(self.left());
        let result = match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Generic {
                store: "store",
                source: format!("no answer within {:.0} s", limit.as_secs_f64()).into(),
            }),
        };
        if let Err(error) = &result {
            self.last = detail(error);
        }
        result
    }

    /// Waits before the next try; `false` when there is no time left for one.
    pub(crate) async fn pause(&self) -> bool {
        let doubled = self.patience.first_pause.saturating_mul(1 << self.made.saturating_sub(1).min(16));
        let pause = doubled.min(self.patience.longest_pause).mul_f64(jitter());
        if self.left() <= pause {
            return false;
        }
        tracing::debug!(tries = self.made, pause_s = pause.as_secs_f64(), cause = %self.last, "the store will be asked again");
        sleep(pause).await;
        true
    }

    /// The error of a request whose time is up.
    pub(crate) fn exhausted(&self, what: &str) -> StorageError {
        StorageError::Unreachable {
            what: what.to_owned(),
            tries: self.made,
            seconds: self.begun.elapsed().as_secs_f64(),
            detail: self.last.clone(),
        }
    }

    fn left(&self) -> Duration {
        (self.patience.budget + self.extra).saturating_sub(self.begun.elapsed())
    }
}

/// Repeats an idempotent request until it succeeds, fails for good, or its time is up.
pub(crate) async fn persist<T, F>(
    patience: &Patience,
    what: &str,
    bytes: u64,
    mut request: impl FnMut() -> F,
) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut tries = Tries::new(patience, bytes);
    loop {
        match tries.attempt(request()).await {
            Ok(value) => return Ok(value),
            Err(error) => match classify(&error) {
                // A conflict of two plain writes of one name passes.
                Class::Again | Class::Exists => {
                    if !tries.pause().await {
                        return Err(tries.exhausted(what));
                    }
                }
                class => return Err(failure(class, what, &error)),
            },
        }
    }
}

/// A failure that is final.
pub(crate) fn failure(class: Class, what: &str, error: &Error) -> StorageError {
    let what = what.to_owned();
    if let Some(LocalFile { file, detail }) = LocalFile::behind(error) {
        return StorageError::Unreadable { file: file.clone(), detail: detail.clone() };
    }
    match class {
        Class::Missing => StorageError::NotFound { what },
        Class::Denied => StorageError::Denied { what, detail: detail(error) },
        Class::Exists | Class::Again | Class::Never => StorageError::Refused { what, detail: detail(error) },
    }
}

/// Between one half and one, so that many workers do not come back at the same moment.
fn jitter() -> f64 {
    // The standard library's hasher is seeded from the system's random numbers: enough to spread requests.
    let bits = RandomState::new().hash_one(0u8) >> 11;
    0.5 + bits as f64 / (1u64 << 53) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn statuses_are_told_apart() {
        let status = |code: &str| classify(&generic(format!("Server returned non-2xx status code: {code}: <Error/>")));
        assert_eq!(status("400 Bad Request"), Class::Never);
        assert_eq!(status("403 Forbidden"), Class::Denied);
        assert_eq!(status("404 Not Found"), Class::Missing);
        assert_eq!(status("429 Too Many Requests"), Class::Again);
        assert_eq!(status("503 Service Unavailable"), Class::Again);
        assert_eq!(classify(&generic("something else")), Class::Again);
    }

    #[test]
    fn a_full_disk_is_not_waited_for() {
        assert_eq!(classify(&generic(std::io::Error::from(ErrorKind::StorageFull))), Class::Never);
        assert_eq!(classify(&generic(std::io::Error::from(ErrorKind::PermissionDenied))), Class::Denied);
        assert_eq!(classify(&generic(std::io::Error::from(ErrorKind::Interrupted))), Class::Again);
    }

    #[test]
    fn jitter_stays_between_one_half_and_one() {
        assert!((0..1000).all(|_| (0.5..=1.0).contains(&jitter())));
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_within_the_budget() {
        let begun = Instant::now();
        let calls = AtomicU32::new(0);
        let result = persist(&Patience::default(), "a thing", 0, || {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(generic("refused")) }
        })
        .await;
        let StorageError::Unreachable { tries, detail, .. } = result.unwrap_err() else { panic!("another error") };
        assert_eq!(tries, calls.load(Ordering::Relaxed));
        assert!(detail.contains("refused"));
        let elapsed = begun.elapsed();
        assert!(elapsed > Duration::from_secs(280) && elapsed <= Duration::from_secs(300), "{elapsed:?}");
        assert!((20..60).contains(&tries), "{tries}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_answers_has_a_deadline() {
        let begun = Instant::now();
        let result = persist(&Patience::default(), "a thing", 0, std::future::pending::<Result<(), Error>>).await;
        assert!(matches!(result, Err(StorageError::Unreachable { .. })));
        assert!(begun.elapsed() <= Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_final_is_not_repeated() {
        let calls = AtomicU32::new(0);
        let result = persist(&Patience::default(), "a thing", 0, || {
            calls.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(Error::PermissionDenied { path: "x".into(), source: "no".into() }) }
        })
        .await;
        assert!(matches!(result, Err(StorageError::Denied { .. })));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
