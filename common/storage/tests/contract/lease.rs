//! The lease of a run's coordinator: numbers are taken once, whatever the store answers.

use crate::support::{Memory, file_store};
use futures::future::join_all;
use storage::faulty::{Call, Fault, Faults, Rule};
use storage::{Content, Lease, LeaseError, Pulse, Run, StorageError, fresh_nonce};

fn lease(epoch: u64, host: &str) -> Lease {
    let (host, address) = (host.to_owned(), "10.0.0.1:4000".to_owned());
    Lease { epoch, nonce: fresh_nonce().unwrap(), host, pid: 7, address, started: 1_700_000_000, pulse_ms: 4000 }
}

/// Part of the suite for every store.
pub async fn run(run: &Run) {
    assert_eq!(run.lease().await.unwrap(), None);
    let first = lease(1, "a");
    run.claim(&first).await.unwrap();
    run.claim(&first).await.unwrap();
    assert_eq!(run.lease().await.unwrap(), Some(first.clone()));
    let lost = run.claim(&lease(1, "b")).await;
    assert!(matches!(&lost, Err(LeaseError::Taken(held)) if **held == first), "{lost:?}");

    assert_eq!(run.pulse(1).await.unwrap(), None);
    for count in 1..3 {
        let state = serde_json::json!([{ "wanted": count }]);
        let pulse = Pulse { epoch: 1, nonce: first.nonce.clone(), count, over: false, state };
        run.give_pulse(&pulse).await.unwrap();
        assert_eq!(run.pulse(1).await.unwrap(), Some(pulse));
    }
    // numbers are numbers, not names
    for epoch in [9, 10, 1_000_000] {
        run.claim(&lease(epoch, "b")).await.unwrap();
        assert_eq!(run.lease().await.unwrap().map(|held| held.epoch), Some(epoch));
    }
    let refused = run.put_file("control/000002.json", bytes::Bytes::new(), Content::Json).await;
    assert!(matches!(refused, Err(StorageError::BadUrl { .. })), "a file of the run is no lease");
}

/// Sixteen coordinators, one number. For stores that honour create-only writes.
pub async fn race(run: &Run) {
    let rivals: Vec<_> = (0..16)
        .map(|i| {
            let run = run.clone();
            tokio::spawn(async move {
                let lease = lease(1, &format!("host-{i}"));
                (run.claim(&lease).await, lease)
            })
        })
        .collect();
    let outcomes: Vec<_> = join_all(rivals).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).map(|(_, lease)| lease).collect();
    assert_eq!(winners.len(), 1);
    for (outcome, _) in &outcomes {
        let fair = match outcome {
            Ok(()) => true,
            Err(LeaseError::Taken(held)) => **held == *winners[0],
            Err(_) => false,
        };
        assert!(fair, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_sixteen_coordinators_holds_a_run() {
    race(&Memory::fresh().store().run("race").unwrap()).await;
    let folder = tempfile::tempdir().unwrap();
    race(&file_store(folder.path()).run("race").unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_survives_lost_and_false_answers() {
    for rules in [
        vec![Rule::new(Call::Put, "control/", Fault::LoseAnswer)],
        vec![Rule::new(Call::Put, "control/", Fault::ClaimExists)],
        vec![Rule::new(Call::Put, "control/", Fault::Fail).first(2)],
        vec![Rule::new(Call::Put, "control/", Fault::Hang).first(2)],
    ] {
        let memory = Memory::fresh();
        let faults = Faults::new(rules);
        let run = memory.store().with_faults(&faults).run("run").unwrap();
        let ours = lease(1, "a");
        run.claim(&ours).await.unwrap();
        assert_eq!(memory.store().run("run").unwrap().lease().await.unwrap(), Some(ours));
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_is_not_taken_for_freedom() {
    let memory = Memory::fresh();
    memory.store().run("run").unwrap().claim(&lease(1, "a")).await.unwrap();
    let faulty = |fault| memory.store().with_faults(&Faults::new([Rule::new(Call::Get, "control/", fault)]));
    for fault in [Fault::Fail, Fault::Hang, Fault::Truncate(10)] {
        let run = faulty(fault).run("run").unwrap();
        assert!(run.lease().await.is_err(), "{fault:?}");
    }
}
