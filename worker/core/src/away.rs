//! Broken streams: how long until the next try, when a worker is on its own, and which coordinator it obeys.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A coordinator that was stopped waits for 2 s, or its patience, for those who gave up their streams meanwhile.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often progress is said at least, for a lively display; more often if the patience asks for it.
const PROGRESS: Duration = Duration::from_millis(500);
const BEAT_MIN: Duration = Duration::from_millis(10);

/// All workers of a large generation together give two thousand signs of life in a second.
const BEAT_EACH: Duration = Duration::from_micros(500);

/// Between two signs of life for a coordinator of this patience, from one of `world` workers: eight fit into the patience, and
/// always four.
#[must_use]
pub fn heartbeat(patience: Duration, world: usize) -> Duration {
    let each = BEAT_EACH.saturating_mul(u32::try_from(world).unwrap_or(u32::MAX));
    PROGRESS.min(patience / 8).max(BEAT_MIN).max(each.min(patience / 4))
}

/// From when a worker is an orphan until the other ranks have found the same of themselves, if they are orphans too: they may
/// have heard their last word up to a patience later, and look for a coordinator at their own pace.
#[must_use]
pub fn desertion(patience: Duration) -> Duration {
    patience * 2 + PAUSE_MAX
}

/// What follows from a broken stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Try again after this pause.
    After(Duration),
    /// Nobody has given a sign of life for this long, which is too long.
    TooLong(Duration),
}

/// How long the coordinator has been away. Times are those of one clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Away {
    since: Duration,
    pause: Duration,
}

impl Away {
    /// Nobody was there yet.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { since: now, pause: PAUSE_MIN }
    }

    /// A stream could not be opened, broke or fell silent at `now`. `alive`: the coordinator gave a sign of life on it;
    /// `patience` is its own. Who is away for `limit` is not waited for any longer.
    pub fn broken(&mut self, alive: bool, patience: Duration, limit: Duration, now: Duration) -> Retry {
        if alive {
            *self = Self::new(now);
        }
        let away = now.saturating_sub(self.since);
        if away >= limit {
            return Retry::TooLong(away);
        }
        // the last try comes when the patience ends, not after it
        let pause = self.pause.min(limit - away);
        self.pause = (self.pause * 2).min(PAUSE_MAX).min(patience / 4).min(limit / 4);
        Retry::After(pause)
    }

    /// Somebody was found elsewhere: the next try but one comes as soon as if this were the first.
    pub fn hurry(&mut self) {
        self.pause = PAUSE_MIN;
    }
}

/// The highest number of a coordinator that was seen: the coordinators of a run are counted, and no earlier one than the last is
/// obeyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    /// Whether no later coordinator than this one was seen.
    #[must_use]
    pub fn is_latest(self, number: u64) -> bool {
        number >= self.0
    }

    /// A coordinator says its number; whether it is to be obeyed.
    #[must_use]
    pub fn heed(&mut self, number: u64) -> bool {
        let latest = self.is_latest(number);
        self.0 = self.0.max(number);
        latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_earlier_coordinator_than_the_last_is_obeyed() {
        let mut epoch = Epoch::default();
        assert!(epoch.heed(2) && epoch.heed(2) && epoch.heed(3));
        assert!(!epoch.heed(2) && !epoch.is_latest(2) && epoch.is_latest(3), "and nothing is forgotten");
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_and_the_last_try_comes_when_the_patience_ends() {
        let (mut away, mut now, mut tries) = (Away::new(SECOND), SECOND, Vec::new());
        let spent = loop {
            match away.broken(false, 8 * SECOND, 10 * SECOND, now) {
                Retry::After(pause) => tries.push(pause),
                Retry::TooLong(away) => break away,
            }
            now += tries.last().copied().unwrap_or_default();
        };
        assert_eq!(spent, 10 * SECOND);
        assert_eq!(tries[..3], [50, 100, 200].map(Duration::from_millis));
        assert!(tries.iter().all(|pause| *pause <= PAUSE_MAX));
        // little patience, short pauses
        let mut away = Away::new(Duration::ZERO);
        away.broken(false, SECOND / 4, 10 * SECOND, Duration::ZERO);
        assert_eq!(away.broken(false, SECOND / 4, 10 * SECOND, SECOND), Retry::After(SECOND / 16));
    }

    #[test]
    fn a_sign_of_life_begins_anew() {
        let mut away = Away::new(Duration::ZERO);
        assert_eq!(away.broken(true, SECOND, SECOND, 100 * SECOND), Retry::After(PAUSE_MIN));
        assert_eq!(away.broken(false, SECOND, SECOND, 101 * SECOND), Retry::TooLong(SECOND));
        assert_eq!(away.broken(false, SECOND, Duration::MAX, 200 * SECOND), Retry::After(2 * PAUSE_MIN));
    }

    #[test]
    fn eight_signs_of_life_fit_into_the_patience() {
        assert_eq!(heartbeat(SECOND, 8), SECOND / 8);
        assert_eq!(heartbeat(60 * SECOND, 256), PROGRESS);
        assert_eq!(heartbeat(Duration::ZERO, 8), BEAT_MIN);
        // and fewer where they are very many
        assert_eq!(heartbeat(60 * SECOND, 2000), SECOND);
        assert_eq!(heartbeat(2 * SECOND, 100_000), SECOND / 2);
    }
}
