//! Damage is named and passed over; trouble of the store is neither; every wait ends.

use crate::suite;
use crate::support::{Memory, checkpoint, file_store, manifest, stored_part, tensor_file};
use bytes::Bytes;
use common::checkpoint::Part;
use std::time::Duration;
use storage::faulty::{Call, Fault, Faults, Rule};
use storage::{Findings, StorageError, Verifier};
use tokio::time::Instant;

#[tokio::test]
async fn a_damaged_newest_is_passed_over_and_named() {
    let memory = Memory::fresh();
    let run = memory.store().run("run").unwrap();
    let good = checkpoint(&run, 1000, 1).await;
    let bad = checkpoint(&run, 2000, 1).await;
    let moving = bad.parts[1].blob.hash.to_string();
    for (fault, deep, call) in [
        (Fault::FlipBit(300), true, Call::Get),
        (Fault::Truncate(100), true, Call::Get),
        (Fault::Vanish, true, Call::Get),
        (Fault::Vanish, false, Call::Head),
    ] {
        let faults = Faults::new([Rule::new(call, &moving, fault)]);
        let newest = memory.store().with_faults(&faults).run("run").unwrap().newest_good(deep).await.unwrap();
        assert_eq!(newest.manifest.as_ref(), Some(&good), "{fault:?}");
        assert_eq!(newest.skipped.len(), 1);
        assert_eq!(newest.skipped[0].key, bad.key());
        assert!(newest.skipped[0].why.contains("'moving'"), "{}", newest.skipped[0].why);
    }
}

#[tokio::test]
async fn damaged_manifests_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = file_store(folder.path());
    let run = store.run("run").unwrap();
    let good = checkpoint(&run, 1000, 1).await;
    let bad = checkpoint(&run, 2000, 1).await;
    let path = folder.path().join("with space/runs/run").join(bad.key().to_string());
    let sound = std::fs::read(&path).unwrap();
    let damaged: [(&str, Vec<u8>); 4] = [
        ("empty", vec![]),
        ("truncated", sound[..sound.len() / 2].to_vec()),
        ("another's", good.to_json().unwrap()),
        ("too large", vec![b' '; (16 << 20) + 1]),
    ];
    for (what, bytes) in damaged {
        std::fs::write(&path, bytes).unwrap();
        let newest = run.newest_good(false).await.unwrap();
        assert_eq!(newest.manifest.as_ref(), Some(&good), "{what}");
        assert_eq!(newest.skipped[0].key, bad.key(), "{what}");
    }
    // One of a newer program is sound: going back behind it must be somebody's decision.
    std::fs::write(&path, br#"{"format": 2}"#).unwrap();
    let error = run.newest_good(false).await.unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");
}

/// Going on from an older checkpoint because the network is down would throw work away.
#[tokio::test(start_paused = true)]
async fn trouble_is_not_damage() {
    let memory = Memory::fresh();
    checkpoint(&memory.store().run("run").unwrap(), 1000, 1).await;
    for (call, path) in [(Call::List, ""), (Call::Get, "manifests/"), (Call::Head, "blobs/"), (Call::Get, "blobs/")] {
        for (fault, denied) in [(Fault::Fail, false), (Fault::Hang, false), (Fault::Deny, true)] {
            let faults = Faults::new([Rule::new(call, path, fault)]);
            let run = memory.store().with_faults(&faults).run("run").unwrap();
            let begun = Instant::now();
            let error = run.newest_good(call == Call::Get).await.unwrap_err();
            assert_eq!(matches!(error, StorageError::Denied { .. }), denied, "{call:?} {fault:?}: {error}");
            assert_eq!(matches!(error, StorageError::Unreachable { .. }), !denied, "{call:?} {fault:?}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(330), "{call:?} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn large_blobs_survive_what_passes_and_report_what_stays() {
    let bytes: Bytes = vec![7u8; 20_000_000].into();
    for (rule, survives) in [
        (Rule::new(Call::Part, "", Fault::Fail).nth(3), true),
        (Rule::new(Call::Part, "", Fault::Hang).nth(1), true),
        (Rule::new(Call::Complete, "", Fault::LoseAnswer).nth(1), true),
        (Rule::new(Call::Complete, "", Fault::Vanish).nth(1), true),
        (Rule::new(Call::Complete, "", Fault::Deny).nth(1), true),
        (Rule::new(Call::Complete, "", Fault::Vanish), false),
        (Rule::new(Call::Complete, "", Fault::Deny), false),
        (Rule::new(Call::Part, "", Fault::Hang), false),
        (Rule::new(Call::Complete, "", Fault::Fail), false),
    ] {
        let faults = Faults::new([rule.clone()]);
        let memory = Memory::fresh();
        let stored = memory.store().with_faults(&faults).run("run").unwrap().put_blob(bytes.clone(), None).await;
        assert_eq!(stored.is_ok(), survives, "{rule:?}: {stored:?}");
        if let Ok(stored) = stored {
            let sound = memory.store().run("run").unwrap();
            assert!(sound.get_blob(&stored.blob).await.unwrap() == bytes, "{rule:?}");
        }
    }
}

#[tokio::test]
async fn verify_names_each_damaged_part() {
    let memory = Memory::fresh();
    let run = memory.store().run("run").unwrap();
    let sound = stored_part(&run, "sound", 1.0, None).await;
    let mut altered = stored_part(&run, "altered", 2.0, None).await;
    altered.tensors[0].hash = common::checkpoint::Digest::of(b"other");
    let mut reshaped = stored_part(&run, "reshaped", 3.0, None).await;
    reshaped.tensors[0].shape = vec![8, 8];
    let mut renamed = stored_part(&run, "renamed", 4.0, None).await;
    renamed.tensors[0].name = "nobody.weight".into();
    let mut fewer = stored_part(&run, "fewer", 5.0, None).await;
    fewer.tensors.clear();
    let text = run.put_blob(Bytes::from_static(b"not a safetensors file"), None).await.unwrap().blob;
    let text = Part { name: "text".into(), blob: text, tensors: vec![] };
    let flipped = stored_part(&run, "flipped", 6.0, None).await;
    let flipped_hash = flipped.blob.hash.to_string();
    let manifest = manifest(&run, 1000, 1, vec![sound, altered, reshaped, renamed, fewer, text, flipped]);
    run.commit(&manifest).await.unwrap();

    let faults = Faults::new([Rule::new(Call::Get, &flipped_hash, Fault::FlipBit(9))]);
    let mut verifier = Verifier::new(memory.store().with_faults(&faults).run("run").unwrap());
    let damage = verifier.check(&manifest).await.unwrap();
    let names: Vec<&str> = damage.iter().map(|d| d.part.as_str()).collect();
    assert_eq!(names, ["altered", "reshaped", "renamed", "fewer", "text", "flipped"], "{damage:?}");
    // Each blob is read once, whoever names it; a damaged one was given three reads.
    assert_eq!(faults.count(Call::Get, &flipped_hash), 3);
    assert_eq!(verifier.check(&manifest).await.unwrap(), damage);
    assert_eq!(faults.count(Call::Get, "blobs/"), 6 + 3);
}

#[test]
fn test_files_are_what_they_say() {
    let (file, tensors) = tensor_file("x", &[1.0, 2.0]);
    assert!(file.len() as u64 >= 8 + tensors[0].bytes().unwrap());
}

/// A minute, in which the probe is done.
const LONG: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test]
async fn the_probe_finds_what_is_honoured_and_leaves_nothing() {
    let timeless = |found: Findings| {
        let written = found.written_at.expect("what is listed has a time");
        assert!(written.elapsed().is_ok_and(|since| since < LONG), "{written:?}");
        Findings { written_at: None, ..found }
    };
    let memory = Memory::fresh();
    let run = memory.store().run("run").unwrap();
    assert_eq!(timeless(run.probe().await.unwrap()), suite::HONOURED);
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(timeless(file_store(folder.path()).run("run").unwrap().probe().await.unwrap()), suite::HONOURED);

    let faults = Faults::new([Rule::new(Call::Put, "", Fault::IgnoreCreate)]);
    let found = memory.store().with_faults(&faults).run("run").unwrap().probe().await.unwrap();
    assert_eq!(timeless(found), Findings { create_only_honoured: false, ..suite::HONOURED });
    assert!(found.usable() && found.to_string().contains("create-only"), "{found}");
    assert!(memory.store().runs().await.unwrap().is_empty(), "a scratch object was left");
}
