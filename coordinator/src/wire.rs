//! Between the core's words and the wire's: what a worker said, as an event's content, and what it is told, as a message.
//!
//! Refuses to send or to decide anything. What came from outside is bounded here.

use crate::admission::Token;
use common::ids::{Generation, ImagesSeen, Rank};
use coordinator_core::{Assignment, Refusal, Standing};
use std::sync::Arc;
use std::time::Duration;

/// Longest text of a worker that is kept.
pub const TEXT_MAX: usize = 4096;

/// Where a worker stands.
#[must_use]
pub fn standing(progress: &rpc::Progress) -> Standing {
    Standing {
        generation: Generation(progress.generation),
        ready: progress.ready,
        has_state: progress.has_state,
        trouble: cut(&progress.trouble, TEXT_MAX),
        diverged: progress.diverged,
        unreached: progress.unreached.map(Rank),
        leaving: progress.leaving,
        images: ImagesSeen(progress.images),
        step: progress.phase,
        steps: progress.steps,
        activity: cut(&progress.activity, 64),
        waiting: progress.waiting,
        step_time: seconds(progress.step_seconds),
        busy: seconds(progress.busy_seconds),
        data: seconds(progress.data_seconds),
        way: seconds(progress.way_seconds),
        share: progress.share,
        line: Generation(progress.line),
    }
}

/// What all places of a generation have in common: made once, for there may be a thousand.
#[derive(Clone, Debug)]
pub struct Places {
    generation: Generation,
    peers: Arc<[String]>,
    common: rpc::Assign,
}

impl Places {
    /// Those of the generation of `assignment`.
    #[must_use]
    pub fn of(token: &Token, url: &str, assignment: &Assignment) -> Self {
        let peers = Arc::clone(&assignment.peers);
        let common = rpc::Assign {
            generation: assignment.generation.0,
            rank: 0,
            roster: rpc::Roster { peers: peers.to_vec() }.seal(),
            secret: secret(token, url, assignment).to_vec(),
            resume: assignment.resume.as_ref().map(|stored| stored.manifest.clone()).unwrap_or_default(),
            rollback: assignment.rollback,
            redraw: assignment.redraw,
        };
        Self { generation: assignment.generation, peers, common }
    }

    /// A place, if it is one of these.
    #[must_use]
    pub fn assign(&self, assignment: &Assignment) -> Option<rpc::Assign> {
        let mine = self.generation == assignment.generation && Arc::ptr_eq(&self.peers, &assignment.peers);
        mine.then(|| rpc::Assign { rank: assignment.rank.0, ..self.common.clone() })
    }
}

/// A no, and whether it holds for good.
#[must_use]
pub fn refused(refusal: &Refusal) -> rpc::Refused {
    rpc::Refused { message: refusal.to_string(), again: refusal.is_for_now() }
}

/// Peers of one generation prove to each other that they know this. A successor, who knows the token too, comes to the same.
fn secret(token: &Token, url: &str, assignment: &Assignment) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("ganfleet: the secret of a generation, 1");
    let generation = assignment.generation.0.to_string();
    for part in [token.expose(), url, &generation].into_iter().chain(assignment.peers.iter().map(String::as_str)) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// What a worker says of time may be nonsense, and is bounded.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default().min(Duration::from_secs(1_000_000))
}

/// The printable characters of a text, at most so many.
#[must_use]
pub fn cut(text: &str, characters_max: usize) -> String {
    children::lines::printable(text).chars().take(characters_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_same_for_all_who_know_the_token_and_new_in_each_generation() {
        let assignment = |generation, rank, peers: &[&str]| Assignment {
            generation: Generation(generation),
            rank: Rank(rank),
            peers: peers.iter().map(|peer| (*peer).to_owned()).collect(),
            resume: None,
            rollback: false,
            redraw: false,
        };
        let token = Token::from_text("token");
        let of = |token: &Token, url: &str, assignment: &Assignment| secret(token, url, assignment);
        let one = of(&token, "u", &assignment(1, 0, &["a", "b"]));
        assert_eq!(one, of(&token, "u", &assignment(1, 1, &["a", "b"])));
        for other in [
            of(&Token::from_text("other"), "u", &assignment(1, 0, &["a", "b"])),
            of(&token, "v", &assignment(1, 0, &["a", "b"])),
            of(&token, "u", &assignment(2, 0, &["a", "b"])),
            of(&token, "u", &assignment(1, 0, &["ab"])),
        ] {
            assert_ne!(one, other);
        }
    }
}
