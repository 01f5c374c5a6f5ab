//! Sweeping: what goes, what stays, and that a doubt deletes nothing.

use crate::support::{Memory, checkpoint, file_store, manifest, stored_part};
use common::checkpoint::{Manifest, ManifestKey, Policy};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};
use storage::faulty::{Call, Fault, Faults, Rule};
use storage::{Run, Swept};

fn policy(keep_last: u32, grace: Duration) -> Policy {
    Policy { keep_last, keep_every_images: 0, keep_best: 0, grace }
}

/// Everything that the tests stored counts as old: no time has to pass.
async fn sweep(run: &Run, keep_last: u32, pinned: &[ManifestKey]) -> Swept {
    let pinned = BTreeSet::from_iter(pinned.iter().copied());
    run.sweep(&policy(keep_last, Duration::ZERO), &pinned, SystemTime::now()).await.unwrap()
}

async fn is_whole(run: &Run, manifest: &Manifest) -> bool {
    run.load(manifest.key()).await.is_ok_and(|found| found == *manifest)
        && run.newest_good(true).await.unwrap().skipped.is_empty()
}

/// One more blob, which sets the store's clock: only what is older than the newest blob has an age.
async fn tick(run: &Run) {
    stored_part(run, "clock", -1.0, None).await;
}

/// The same for files, whose clock is coarse.
fn backdate(folder: &Path) {
    for entry in std::fs::read_dir(folder.join("with space/runs/run/blobs")).unwrap() {
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    }
}

#[tokio::test]
async fn superseded_checkpoints_go_with_their_own_blobs() {
    let folder = tempfile::tempdir().unwrap();
    for store in [Memory::fresh().store(), file_store(folder.path())] {
        let run = store.run("run").unwrap();
        let mut all = vec![];
        for images in 1..=4 {
            all.push(checkpoint(&run, images * 1000, 1).await);
        }
        if store.url().starts_with("file") {
            backdate(folder.path());
        }
        tick(&run).await;
        sweep(&run, 2, &[all[0].key()]).await;
        assert_eq!(run.manifests().await.unwrap(), [all[3].key(), all[2].key(), all[0].key()]);
        for kept in [&all[0], &all[2], &all[3]] {
            assert!(is_whole(&run, kept).await);
        }
        assert!(run.get_blob(&all[1].parts[1].blob).await.is_err(), "an unnamed blob stayed");
        assert!(run.get_blob(&all[1].parts[0].blob).await.is_ok(), "a shared blob went");
        let again = sweep(&run, 2, &[all[0].key()]).await;
        assert_eq!((again.bytes, again.held_back), (0, None));
    }
}

#[tokio::test]
async fn young_blobs_stay() {
    let run = Memory::fresh().store().run("run").unwrap();
    checkpoint(&run, 1000, 1).await;
    let orphan = stored_part(&run, "of a checkpoint in work", 5.0, None).await;
    tick(&run).await;
    let hour = policy(1, Duration::from_secs(3600));
    let far_ahead = SystemTime::now() + Duration::from_secs(1_000_000);
    let swept = run.sweep(&hour, &BTreeSet::new(), far_ahead).await.unwrap();
    assert_eq!(swept.blobs, 0, "a clock that is ahead deleted a young blob");
    assert!(run.get_blob(&orphan.blob).await.is_ok());
}

#[tokio::test]
async fn an_unreadable_manifest_that_stays_holds_blobs_back() {
    let folder = tempfile::tempdir().unwrap();
    let run = file_store(folder.path()).run("run").unwrap();
    let good = checkpoint(&run, 1000, 1).await;
    let bad = checkpoint(&run, 2000, 1).await;
    stored_part(&run, "orphan", 5.0, None).await;
    backdate(folder.path());
    tick(&run).await;
    std::fs::write(folder.path().join("with space/runs/run").join(bad.key().to_string()), "{").unwrap();
    let swept = sweep(&run, 1, &[]).await;
    assert_eq!(swept.blobs, 0);
    assert!(swept.held_back.unwrap().contains(&bad.key().to_string()));
    assert!(run.load(good.key()).await.is_ok(), "the only good checkpoint was deleted");
}

#[tokio::test]
async fn a_checkpoint_without_its_blobs_pushes_nothing_out() {
    let folder = tempfile::tempdir().unwrap();
    let run = file_store(folder.path()).run("run").unwrap();
    let good = checkpoint(&run, 1000, 1).await;
    let bad = checkpoint(&run, 2000, 1).await;
    let blob = format!("with space/runs/run/blobs/{}.safetensors", bad.parts[1].blob.hash);
    std::fs::remove_file(folder.path().join(blob)).unwrap();
    sweep(&run, 1, &[]).await;
    assert_eq!(run.newest_good(true).await.unwrap().manifest, Some(good));
}

#[tokio::test(start_paused = true)]
async fn trouble_stops_a_sweep_before_it_deletes() {
    let memory = Memory::fresh();
    let run = memory.store().run("run").unwrap();
    for images in 1..=3 {
        checkpoint(&run, images * 1000, 1).await;
    }
    for (call, path) in [(Call::Get, "manifests/"), (Call::List, "blobs"), (Call::List, "manifests")] {
        let faults = Faults::new([Rule::new(call, path, Fault::Fail)]);
        let faulty = memory.store().with_faults(&faults).run("run").unwrap();
        let swept = faulty.sweep(&policy(1, Duration::ZERO), &BTreeSet::new(), SystemTime::now()).await;
        assert!(swept.is_err() && faults.count(Call::Delete, "") == 0, "{call:?} {path}");
    }
    assert_eq!(run.manifests().await.unwrap().len(), 3);
}

/// Interrupted at any deletion, what is visible stays whole.
#[tokio::test(start_paused = true)]
async fn an_interrupted_sweep_leaves_only_whole_checkpoints() {
    for nth in 1..=6 {
        let memory = Memory::fresh();
        let run = memory.store().run("run").unwrap();
        for images in 1..=4 {
            checkpoint(&run, images * 1000, 1).await;
        }
        tick(&run).await;
        let faults = Faults::new([Rule::new(Call::Delete, "", Fault::Deny).nth(nth)]);
        let faulty = memory.store().with_faults(&faults).run("run").unwrap();
        let swept = faulty.sweep(&policy(1, Duration::ZERO), &BTreeSet::new(), SystemTime::now()).await;
        assert!(swept.is_err(), "deletion {nth} was not met");
        for key in run.manifests().await.unwrap() {
            let manifest = run.load(key).await.unwrap();
            assert!(storage::Verifier::new(run.clone()).check(&manifest).await.unwrap().is_empty(), "{nth}: {key}");
        }
    }
}

#[tokio::test]
async fn files_of_dead_writers_go_when_they_are_old() {
    let folder = tempfile::tempdir().unwrap();
    let run = file_store(folder.path()).run("run").unwrap();
    let manifest = checkpoint(&run, 1000, 1).await;
    let blobs = folder.path().join("with space/runs/run/blobs");
    let unfinished = blobs.join("0000.safetensors#1");
    let foreign = blobs.join("notes#final");
    for file in [&unfinished, &foreign] {
        std::fs::write(file, "x").unwrap();
    }
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    run.sweep(&policy(1, hour), &BTreeSet::new(), now).await.unwrap();
    assert!(unfinished.exists(), "a young one may be in work");
    run.sweep(&policy(1, hour), &BTreeSet::new(), now + 2 * hour).await.unwrap();
    assert!(!unfinished.exists() && foreign.exists());
    assert!(is_whole(&run, &manifest).await);
}

#[tokio::test]
async fn a_parent_that_is_pinned_keeps_what_its_child_shares() {
    let run = Memory::fresh().store().run("run").unwrap();
    let parent = checkpoint(&run, 1000, 1).await;
    checkpoint(&run, 2000, 1).await;
    let shared = stored_part(&run, "moving", 1000.0, Some(&parent)).await;
    tick(&run).await;
    sweep(&run, 1, &[parent.key()]).await;
    let child = manifest(&run, 3000, 1, vec![shared]);
    run.commit(&child).await.unwrap();
    assert!(is_whole(&run, &child).await);
}
