//! Which checkpoints are kept, and which blobs nobody needs: decided from lists, done by somebody else.
//!
//! Two promises hold for every input: the newest checkpoint that can be restored is kept, and a blob that a kept manifest
//! names, or that is younger than the grace period, is never swept.

use super::{Digest, Manifest, ManifestKey};
use crate::judge::Judgement;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// How many checkpoints are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Newest restorable checkpoints that are kept; 0 counts as 1.
    pub keep_last: u32,
    /// Keep the first checkpoint at or after each multiple of this many images too; 0 = none.
    pub keep_every_images: u64,
    /// Keep those at which the judging metric was best too: so many.
    pub keep_best: u32,
    /// Age below which a blob is left alone, named or not: it may belong to a checkpoint that is being written.
    pub grace: Duration,
}

/// A checkpoint that is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub key: ManifestKey,
    /// Whether it can be restored. One that cannot never takes the place of one that can.
    pub restorable: bool,
    /// What the judging metric had said by then.
    pub judgement: Judgement,
}

/// What happens to one checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its name.
    pub key: ManifestKey,
    /// What happens.
    pub verdict: Verdict,
}

/// Keep or delete, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep(KeepReason),
    /// It goes.
    Delete(DeleteReason),
}

/// Why a checkpoint stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// In use: a run resumes from it, or a checkpoint in work shares its blobs.
    Pinned,
    /// Among the newest.
    Newest,
    /// The first at or after a multiple of `keep_every_images`.
    Milestone,
    /// Among those at which the judging metric was best.
    Best,
    /// Cannot be restored, but is newer than the oldest of the newest: kept to be looked at.
    Damaged,
}

/// Why a checkpoint goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteReason {
    /// Enough newer ones are kept.
    Superseded,
    /// Cannot be restored, and enough newer ones can.
    Damaged,
}

/// A blob in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its name.
    pub hash: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// Time since it was last written; never estimated too large.
    pub age: Duration,
}

/// Decides for each of `candidates`, in their order. `pinned` checkpoints are kept whatever the policy says.
#[must_use]
pub fn retain(candidates: &[Candidate], policy: &Policy, pinned: &BTreeSet<ManifestKey>) -> Vec<Decision> {
    let mut good: Vec<ManifestKey> = candidates.iter().filter(|c| c.restorable).map(|c| c.key).collect();
    good.sort_unstable_by(|a, b| b.cmp(a));
    good.dedup();
    let wanted = policy.keep_last.max(1) as usize;
    let newest: HashSet<ManifestKey> = good.iter().take(wanted).copied().collect();
    let enough = good.len() >= wanted;
    let oldest_of_newest = good[..good.len().min(wanted)].last().copied();

    let mut milestones: BTreeMap<u64, ManifestKey> = BTreeMap::new();
    for &key in &good {
        let multiple = key.images.0.checked_div(policy.keep_every_images).unwrap_or(0);
        if multiple > 0 {
            // Newest first: at equal images the newer generation stands.
            let first = milestones.entry(multiple).or_insert(key);
            if key.images < first.images {
                *first = key;
            }
        }
    }
    let milestones: HashSet<ManifestKey> = milestones.into_values().collect();
    let best = best(candidates, policy.keep_best as usize);

    let verdict = |candidate: &Candidate| {
        let key = candidate.key;
        if pinned.contains(&key) {
            Verdict::Keep(KeepReason::Pinned)
        } else if !candidate.restorable {
            let overtaken = enough && oldest_of_newest.is_some_and(|oldest| key < oldest);
            if overtaken { Verdict::Delete(DeleteReason::Damaged) } else { Verdict::Keep(KeepReason::Damaged) }
        } else if newest.contains(&key) {
            Verdict::Keep(KeepReason::Newest)
        } else if milestones.contains(&key) {
            Verdict::Keep(KeepReason::Milestone)
        } else if best.contains(&key) {
            Verdict::Keep(KeepReason::Best)
        } else {
            Verdict::Delete(DeleteReason::Superseded)
        }
    };
    candidates.iter().map(|candidate| Decision { key: candidate.key, verdict: verdict(candidate) }).collect()
}

/// The `count` restorable checkpoints at which the judging metric was best: of each evaluation the first one after it. What was
/// judged on another basis than at the newest checkpoint counts no more.
fn best(candidates: &[Candidate], count: usize) -> HashSet<ManifestKey> {
    let good = || candidates.iter().filter(|candidate| candidate.restorable);
    let basis = good().max_by_key(|candidate| candidate.key).map_or("", |newest| newest.judgement.basis.as_str());
    let mut first: BTreeMap<u64, (ManifestKey, f64)> = BTreeMap::new();
    let judged = good().filter(|candidate| !basis.is_empty() && candidate.judgement.basis == basis);
    for Candidate { key, judgement, .. } in judged {
        let known = first.entry(judgement.at).or_insert((*key, judgement.value));
        if *key < known.0 {
            *known = (*key, judgement.value);
        }
    }
    let mut ranked: Vec<(ManifestKey, f64)> = first.into_values().collect();
    // of equals the newer one
    ranked.sort_by(|(a, one), (b, other)| one.total_cmp(other).then(b.cmp(a)));
    ranked.into_iter().take(count).map(|(key, _)| key).collect()
}

/// The blobs that no manifest in `kept` names and that are older than `grace`.
///
/// `kept` must be every manifest that stays in the run: a manifest that could not be read may name anything, so then the
/// caller sweeps nothing.
#[must_use]
pub fn sweepable<'a>(
    blobs: &[BlobEntry],
    kept: impl IntoIterator<Item = &'a Manifest>,
    grace: Duration,
) -> Vec<BlobEntry> {
    let named: HashSet<Digest> = kept.into_iter().flat_map(|m| m.parts.iter().map(|part| part.blob.hash)).collect();
    blobs.iter().filter(|blob| blob.age > grace && !named.contains(&blob.hash)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;
    use crate::ids::{Generation, ImagesSeen};
    use proptest::prelude::*;

    fn key(images: u64, generation: u64) -> ManifestKey {
        ManifestKey::new(ImagesSeen(images), Generation(generation))
    }

    fn good(images: u64) -> Candidate {
        Candidate { key: key(images, 1), restorable: true, judgement: Judgement::default() }
    }

    fn bad(images: u64) -> Candidate {
        Candidate { restorable: false, ..good(images) }
    }

    fn policy(keep_last: u32, keep_every_images: u64) -> Policy {
        Policy { keep_last, keep_every_images, keep_best: 0, grace: Duration::from_secs(60) }
    }

    fn kept(candidates: &[Candidate], policy: &Policy) -> Vec<u64> {
        let decisions = retain(candidates, policy, &BTreeSet::new());
        decisions.iter().filter(|d| matches!(d.verdict, Verdict::Keep(_))).map(|d| d.key.images.0).collect()
    }

    #[test]
    fn the_newest_and_the_milestones_stay() {
        let all: Vec<Candidate> = (1..=10).map(|i| good(i * 1000 + 8)).collect();
        assert_eq!(kept(&all, &policy(2, 0)), [9008, 10008]);
        assert_eq!(kept(&all, &policy(2, 4000)), [4008, 8008, 9008, 10008]);
        assert_eq!(kept(&all, &policy(0, 0)), [10008]);
    }

    #[test]
    fn a_milestone_stays_while_later_ones_come() {
        let mut all = vec![];
        for i in 1..=30 {
            all.push(good(i * 500));
            let stay = kept(&all, &policy(1, 4000));
            all.retain(|c| stay.contains(&c.key.images.0));
        }
        assert_eq!(all.iter().map(|c| c.key.images.0).collect::<Vec<_>>(), [4000, 8000, 12000, 15000]);
    }

    #[test]
    fn damaged_ones_never_push_good_ones_out() {
        assert_eq!(kept(&[good(1), good(2), bad(3), bad(4)], &policy(2, 0)), [1, 2, 3, 4]);
        assert_eq!(kept(&[bad(0), good(1), bad(2), good(3), bad(4)], &policy(2, 0)), [1, 2, 3, 4]);
        assert_eq!(kept(&[bad(1), bad(2)], &policy(1, 0)), [1, 2]);
    }

    #[test]
    fn pinned_ones_stay() {
        let decisions = retain(&[good(1), good(2)], &policy(1, 0), &BTreeSet::from([key(1, 1)]));
        assert_eq!(decisions[0].verdict, Verdict::Keep(KeepReason::Pinned));
    }

    #[test]
    fn an_abandoned_future_is_superseded() {
        let old = good(90_000);
        let new = Candidate { key: key(50_000, 2), ..good(50_000) };
        let decisions = retain(&[old, new], &policy(1, 0), &BTreeSet::new());
        assert_eq!(decisions[0].verdict, Verdict::Delete(DeleteReason::Superseded));
        assert_eq!(decisions[1].verdict, Verdict::Keep(KeepReason::Newest));
    }

    /// `(images, images at the evaluation, its value)`.
    fn judged(list: &[(u64, u64, f64)]) -> Vec<Candidate> {
        let judgement = |at, value| Judgement { basis: "kid".to_owned(), at, value, ..Judgement::default() };
        list.iter().map(|&(images, at, value)| Candidate { judgement: judgement(at, value), ..good(images) }).collect()
    }

    #[test]
    fn the_best_stay_and_of_each_evaluation_the_first() {
        let all = judged(&[
            (100, 100, 0.5),
            (110, 100, 0.5),
            (200, 200, 0.1),
            (250, 200, 0.1),
            (300, 300, 0.3),
            (400, 400, 0.9),
        ]);
        let best = |keep_best| kept(&all, &Policy { keep_best, ..policy(1, 0) });
        assert_eq!(best(0), [400]);
        assert_eq!(best(1), [200, 400]);
        assert_eq!(best(3), [100, 200, 300, 400]);
        let damaged: Vec<_> =
            all.iter().map(|c| Candidate { restorable: c.key.images.0 != 200, ..c.clone() }).collect();
        assert!(kept(&damaged, &Policy { keep_best: 1, ..policy(1, 0) }).contains(&250));
    }

    #[test]
    fn what_was_judged_on_another_basis_counts_no_more() {
        let mut all = judged(&[(100, 100, 0.1), (200, 200, 40.0), (300, 300, 50.0)]);
        for candidate in &mut all[1..] {
            candidate.judgement.basis = "swd".to_owned();
        }
        assert_eq!(kept(&all, &Policy { keep_best: 1, ..policy(1, 0) }), [200, 300]);
    }

    #[test]
    fn only_old_nameless_blobs_are_swept() {
        let manifest = manifest();
        let blob = |hash, seconds| BlobEntry { hash, bytes: 1, age: Duration::from_secs(seconds) };
        let blobs = [
            blob(manifest.parts[0].blob.hash, 1000),
            blob(Digest::of(b"old orphan"), 1000),
            blob(Digest::of(b"young orphan"), 60),
        ];
        assert_eq!(sweepable(&blobs, [&manifest], Duration::from_secs(60)), [blobs[1]]);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u64..50, 0u64..4, any::<bool>());
        proptest::collection::vec(one, 0..30).prop_map(|list| {
            let list: BTreeMap<_, _> =
                list.into_iter().map(|(i, g, restorable)| (key(i * 100, g), restorable)).collect();
            list.into_iter().map(|(key, restorable)| Candidate { key, restorable, ..good(0) }).collect()
        })
    }

    proptest! {
        #[test]
        fn the_newest_restorable_is_always_kept(
            all in candidates().prop_shuffle(), keep_last in 0u32..5, every in 0u64..2000, pins in candidates(),
        ) {
            let pinned: BTreeSet<_> = pins.iter().map(|c| c.key).collect();
            let decisions = retain(&all, &policy(keep_last, every), &pinned);
            prop_assert_eq!(decisions.len(), all.len());
            let stays = |key| decisions.iter().any(|d| d.key == key && matches!(d.verdict, Verdict::Keep(_)));
            let mut restorable: Vec<_> = all.iter().filter(|c| c.restorable).map(|c| c.key).collect();
            restorable.sort_by(|a, b| b.cmp(a));
            for key in restorable.iter().take(keep_last.max(1) as usize) {
                prop_assert!(stays(*key));
            }
            for candidate in all.iter().filter(|c| pinned.contains(&c.key)) {
                prop_assert!(stays(candidate.key));
            }
        }

        #[test]
        fn a_named_or_young_blob_is_never_swept(
            ages in proptest::collection::vec(0u64..200, 0..20), named in proptest::collection::vec(0u8..30, 0..10),
        ) {
            let hash = |i: u8| Digest::of(&[i]);
            let mut manifest = manifest();
            let part = manifest.parts[0].clone();
            manifest.parts = named.iter().map(|&i| {
                let mut part = part.clone();
                part.blob.hash = hash(i);
                part
            }).collect();
            let blobs: Vec<_> = ages.iter().enumerate()
                .map(|(i, &age)| BlobEntry { hash: hash(i as u8), bytes: 1, age: Duration::from_secs(age) }).collect();
            let swept = sweepable(&blobs, [&manifest], Duration::from_secs(60));
            for (i, blob) in blobs.iter().enumerate() {
                let protected = named.contains(&(i as u8)) || ages[i] <= 60;
                prop_assert_eq!(swept.contains(blob), !protected);
            }
        }
    }
}
