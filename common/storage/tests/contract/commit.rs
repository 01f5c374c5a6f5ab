//! The commit when answers lie, get lost or never come, and on stores that ignore create-only writes.

use crate::suite;
use crate::support::{Memory, checkpoint, file_store, manifest, stored_part};
use futures::future::join_all;
use storage::faulty::{Call, Fault, Faults, Rule};
use storage::{CommitError, StorageError};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_sixteen_wins_in_memory() {
    suite::race(&Memory::fresh().store().run("race").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_sixteen_wins_on_files() {
    let folder = tempfile::tempdir().unwrap();
    suite::race(&file_store(folder.path()).run("race").unwrap()).await;
}

/// Every writer may believe that it won; what is visible is one writer's checkpoint, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_create_only_writes_no_checkpoint_is_mixed() {
    let faults = Faults::new([Rule::new(Call::Put, "", Fault::IgnoreCreate)]);
    let run = Memory::fresh().store().with_faults(&faults).run("race").unwrap();
    let writers: Vec<_> = (0..16)
        .map(|i| {
            let run = run.clone();
            tokio::spawn(async move {
                let parts = vec![
                    stored_part(&run, "a", i as f32, None).await,
                    stored_part(&run, "b", 100.0 + i as f32, None).await,
                ];
                let mut manifest = manifest(&run, 5000, 1, parts);
                manifest.writer = format!("worker-{i}");
                (run.commit(&manifest).await, manifest)
            })
        })
        .collect();
    let outcomes: Vec<_> = join_all(writers).await.into_iter().map(Result::unwrap).collect();
    assert!(outcomes.iter().all(|(o, _)| matches!(o, Ok(_) | Err(CommitError::Lost { .. }))), "{outcomes:?}");
    assert!(outcomes.iter().any(|(o, _)| o.is_ok()));
    let newest = run.newest_good(true).await.unwrap();
    assert!(newest.skipped.is_empty());
    let visible = newest.manifest.unwrap();
    assert!(outcomes.iter().any(|(_, manifest)| *manifest == visible), "a checkpoint that nobody wrote");
}

async fn commit_under(rules: impl IntoIterator<Item = Rule>) -> (Result<storage::Committed, CommitError>, Faults) {
    let memory = Memory::fresh();
    let sound = memory.store().run("run").unwrap();
    let parts = vec![stored_part(&sound, "part", 1.0, None).await];
    let manifest = manifest(&sound, 1000, 1, parts);
    let faults = Faults::new(rules);
    let outcome = memory.store().with_faults(&faults).run("run").unwrap().commit(&manifest).await;
    // Whatever the writer was told, what a reader finds is this checkpoint or none.
    let newest = sound.newest_good(true).await.unwrap();
    assert!(newest.skipped.is_empty());
    assert!(newest.manifest.is_none_or(|found| found == manifest));
    assert!(outcome.is_err() || sound.manifests().await.unwrap() == [manifest.key()]);
    (outcome, faults)
}

#[tokio::test(start_paused = true)]
async fn a_lost_acknowledgement_is_a_win() {
    for fault in [Fault::LoseAnswer, Fault::ClaimExists] {
        let (outcome, faults) = commit_under([Rule::new(Call::Put, "manifests/", fault)]).await;
        assert_eq!(outcome.unwrap().tries, 1, "{fault:?}");
        assert_eq!(faults.count(Call::Put, "manifests/"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_without_effect_is_repeated_with_the_same_bytes() {
    for fault in [Fault::Fail, Fault::Hang] {
        let (outcome, _) = commit_under([Rule::new(Call::Put, "manifests/", fault).first(2)]).await;
        assert_eq!(outcome.unwrap().tries, 3, "{fault:?}");
    }
}

/// A 409 of a conflict that is not there: nothing exists, although the store says so.
#[tokio::test(start_paused = true)]
async fn a_false_conflict_is_repeated() {
    let rules = [
        Rule::new(Call::Put, "manifests/", Fault::Fail).nth(1),
        Rule::new(Call::Get, "manifests/", Fault::Vanish).nth(1),
        Rule::new(Call::Put, "manifests/", Fault::ClaimExists).nth(2),
    ];
    assert_eq!(commit_under(rules).await.0.unwrap().tries, 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_unknown_in_the_end() {
    let (outcome, _) = commit_under([Rule::new(Call::Put, "manifests/", Fault::Fail)]).await;
    assert!(matches!(outcome, Err(CommitError::Unknown { .. })), "{outcome:?}");
    let rules =
        [Rule::new(Call::Put, "manifests/", Fault::LoseAnswer), Rule::new(Call::Get, "manifests/", Fault::Hang)];
    let (outcome, _) = commit_under(rules).await;
    assert!(matches!(outcome, Err(CommitError::Unknown { .. })), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final() {
    let (outcome, faults) = commit_under([Rule::new(Call::Put, "manifests/", Fault::Deny)]).await;
    assert!(matches!(outcome, Err(CommitError::Storage(StorageError::Denied { .. }))), "{outcome:?}");
    assert_eq!(faults.count(Call::Put, "manifests/"), 1);
}

#[tokio::test]
async fn a_run_takes_only_its_own_checkpoints() {
    let store = Memory::fresh().store();
    let manifest = checkpoint(&store.run("one").unwrap(), 1000, 1).await;
    let other = store.run("other").unwrap();
    assert!(matches!(other.commit(&manifest).await, Err(CommitError::Invalid(_))));
    for bad in ["", "a/b", "..", "UPPER", "ü"] {
        assert!(matches!(store.run(bad), Err(StorageError::BadUrl { .. })), "{bad}");
    }
}
