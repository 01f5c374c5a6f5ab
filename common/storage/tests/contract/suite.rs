//! What every store must do. Run against memory, files, a store with passing faults, and a real S3 server.

use crate::support::{checkpoint, manifest, stored_part};
use bytes::Bytes;
use common::checkpoint::{BlobRef, Digest, ManifestKey};
use common::ids::{Generation, ImagesSeen};
use futures::future::join_all;
use storage::{CommitError, Content, Findings, Run, StorageError, Store};

pub async fn run(store: &Store) {
    blobs(&store.run("blobs").unwrap()).await;
    large_blob(&store.run("large").unwrap()).await;
    files(&store.run("files").unwrap()).await;
    local_files(&store.run("local").unwrap()).await;
    checkpoints(&store.run("checkpoints").unwrap()).await;
    incomplete(&store.run("incomplete").unwrap()).await;
    crate::lease::run(&store.run("lease").unwrap()).await;
    mirrored(store).await;
    let all = ["blobs", "checkpoints", "files", "incomplete", "large", "lease", "local", "pictures"];
    assert_eq!(store.runs().await.unwrap(), all);
}

/// Of a store that honours everything, whenever that was.
pub const HONOURED: Findings = Findings {
    create_only_honoured: true,
    read_back: true,
    ranged_get: true,
    listed: true,
    deleted: true,
    written_at: None,
};

/// Objects become files: those that are wanted, once, and others when they change.
async fn mirrored(store: &Store) {
    let (cache, run) = (tempfile::tempdir().unwrap(), store.run("pictures").unwrap());
    let large: Bytes = vec![7u8; (16 << 20) + 5].into();
    for (name, bytes) in [
        ("trainA/a.png", Bytes::from_static(b"one")),
        ("trainB/deep/b.JPG", large.clone()),
        ("notes.txt", Bytes::new()),
    ] {
        run.put_file(name, bytes, Content::Png).await.unwrap();
    }
    let heard = std::sync::Mutex::new(Vec::new());
    let progress = |done, total| heard.lock().unwrap().push((done, total));
    let mirror = || store.mirror("pictures", &["png", "jpg"], cache.path(), &progress);
    let folder = mirror().await.unwrap();
    let read = |name: &str| std::fs::read(folder.join(name));
    assert_eq!(read("trainA/a.png").unwrap(), b"one");
    assert!(read("trainB/deep/b.JPG").unwrap() == large && read("notes.txt").is_err());
    assert_eq!(heard.lock().unwrap().last(), Some(&(2, 2)));

    // the same is there already, for several at once
    heard.lock().unwrap().clear();
    let again = join_all([mirror(), mirror()]).await;
    assert!(again.iter().all(|again| *again.as_ref().unwrap() == folder) && heard.lock().unwrap().is_empty());
    run.put_file("trainA/a.png", Bytes::from_static(b"other"), Content::Png).await.unwrap();
    let other = mirror().await.unwrap();
    assert_eq!(std::fs::read(other.join("trainA/a.png")).unwrap(), b"other");
    assert_eq!(read("trainA/a.png").unwrap(), b"one");

    let one = store.mirror("pictures/trainA/a.png", &["png"], cache.path(), &|_, _| ()).await.unwrap();
    assert_eq!((one.file_name().unwrap().to_str(), std::fs::read(&one).unwrap()), (Some("a.png"), b"other".to_vec()));
    let none = store.mirror("pictures/trainC", &["png"], cache.path(), &|_, _| ()).await;
    assert!(matches!(none, Err(StorageError::NotFound { .. })), "{none:?}");
}

async fn blobs(run: &Run) {
    for bytes in [Bytes::new(), Bytes::from_static(b"some bytes")] {
        let stored = run.put_blob(bytes.clone(), None).await.unwrap();
        assert!(stored.sent);
        assert_eq!(stored.blob, BlobRef { hash: Digest::of(&bytes), bytes: bytes.len() as u64 });
        assert_eq!(run.get_blob(&stored.blob).await.unwrap(), bytes);
        assert!(run.put_blob(bytes.clone(), None).await.unwrap().sent, "an orphan is not trusted to stay");
    }
    let missing = BlobRef { hash: Digest::of(b"never stored"), bytes: 12 };
    assert!(matches!(run.get_blob(&missing).await, Err(StorageError::NotFound { .. })));
    let stored = run.put_blob(Bytes::from_static(b"some bytes"), None).await.unwrap().blob;
    for bytes in [0, stored.bytes - 1, stored.bytes + 1] {
        let wrong = run.get_blob(&BlobRef { bytes, ..stored }).await;
        assert!(matches!(wrong, Err(StorageError::Corrupt { .. })), "{wrong:?}");
    }
    let absurd = run.get_blob(&BlobRef { bytes: u64::MAX, ..stored }).await;
    assert!(matches!(absurd, Err(StorageError::TooLarge { .. })), "{absurd:?}");
}

/// Beyond one part, and not a multiple of it.
async fn large_blob(run: &Run) {
    let bytes: Bytes = (0..20_000_000u32).map(|i| (i ^ (i >> 8)) as u8).collect::<Vec<u8>>().into();
    let stored = run.put_blob(bytes.clone(), None).await.unwrap();
    assert!(run.get_blob(&stored.blob).await.unwrap() == bytes, "a large blob changed");
}

async fn files(run: &Run) {
    for (name, content) in [
        ("samples/fakes000000.png", Content::Png),
        ("metrics.jsonl", Content::JsonLines),
        ("log.txt", Content::Text),
        ("config.toml", Content::Toml),
        ("events/status.json", Content::Json),
    ] {
        for bytes in ["first", "second, longer"] {
            run.put_file(name, bytes.into(), content).await.unwrap();
            assert_eq!(run.get_file(name, 100).await.unwrap(), bytes);
        }
        let limited = run.get_file(name, 5).await;
        assert!(matches!(limited, Err(StorageError::TooLarge { limit: 5, .. })), "{limited:?}");
    }
    assert!(matches!(run.get_file("missing.txt", 5).await, Err(StorageError::NotFound { .. })));
    for bad in ["", "/x", "a//b", "../x", "a/../../x", ".hidden", "ü", "a b", "manifests/x.json", "blobs/x"] {
        let refused = run.put_file(bad, Bytes::new(), Content::Text).await;
        assert!(matches!(refused, Err(StorageError::BadUrl { .. })), "{bad}");
    }
}

/// Files of this machine, that fit into one part and that do not.
async fn local_files(run: &Run) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    for length in [0, 10, 5 << 20, 12_345_678] {
        let bytes: Vec<u8> = (0..length as u32).map(|i| (i ^ (i >> 8)) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        run.put_file_from("metrics.jsonl", &path, Content::JsonLines).await.unwrap();
        assert!(run.get_file("metrics.jsonl", length).await.unwrap() == bytes, "a file of {length} bytes changed");
    }
    let missing = run.put_file_from("log.txt", &folder.path().join("none"), Content::Text).await.unwrap_err();
    assert!(missing.to_string().contains("/none"), "{missing}");
    let bad = run.put_file_from("../x", &path, Content::Text).await;
    assert!(matches!(bad, Err(StorageError::BadUrl { .. })));
}

async fn checkpoints(run: &Run) {
    assert_eq!(run.manifests().await.unwrap(), []);
    assert_eq!(run.next_generation().await.unwrap(), Generation(1));
    let none = run.newest_good(true).await.unwrap();
    assert!(none.manifest.is_none() && none.skipped.is_empty());

    let first = checkpoint(run, 1000, 1).await;
    let second = checkpoint(run, 2000, 1).await;
    let resumed = checkpoint(run, 1500, 2).await;
    let other = run.put_file("notes/readme.txt", Bytes::from_static(b"x"), Content::Text).await;
    other.unwrap();

    assert_eq!(run.manifests().await.unwrap(), [resumed.key(), second.key(), first.key()]);
    assert_eq!(run.next_generation().await.unwrap(), Generation(3));
    assert_eq!(run.load(second.key()).await.unwrap(), second);
    let absent = ManifestKey::new(ImagesSeen(9), Generation(9));
    assert!(matches!(run.load(absent).await, Err(StorageError::NotFound { .. })));
    for deep in [false, true] {
        let newest = run.newest_good(deep).await.unwrap();
        assert_eq!((newest.manifest.as_ref(), newest.skipped.len()), (Some(&resumed), 0));
    }

    // The parent has the part: it is not sent. Another checkpoint's parts do not count.
    let part = stored_part(run, "fixed", 1.0, Some(&resumed)).await;
    assert_eq!(part.blob, resumed.parts[0].blob);
    let again = run.get_blob(&part.blob).await.unwrap();
    assert!(!run.put_blob(again.clone(), Some(&resumed)).await.unwrap().sent);
    let moving = run.get_blob(&second.parts[1].blob).await.unwrap();
    assert!(run.put_blob(moving, Some(&resumed)).await.unwrap().sent);

    // The same name by another writer, twice: it learns who won, and nothing changes.
    let mut rival = manifest(run, 1500, 2, resumed.parts.clone());
    rival.writer = "worker-9".into();
    for _ in 0..2 {
        let lost = run.commit(&rival).await;
        assert!(matches!(&lost, Err(CommitError::Lost { winner, .. }) if winner == "worker-0"), "{lost:?}");
    }
    assert_eq!(run.load(resumed.key()).await.unwrap(), resumed);
    // The winner may ask again.
    run.commit(&resumed).await.unwrap();
}

async fn incomplete(run: &Run) {
    let good = stored_part(run, "good", 1.0, None).await;
    let mut absent = stored_part(run, "absent", 2.0, None).await;
    absent.blob.hash = Digest::of(b"never stored");
    let mut short = stored_part(run, "short", 3.0, None).await;
    short.blob.bytes += 1;
    let manifest = manifest(run, 1000, 1, vec![good, absent, short]);
    let Err(CommitError::Incomplete { damage, .. }) = run.commit(&manifest).await else { panic!("committed") };
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(damage[0].contains("'absent'") && damage[1].contains("'short'"), "{damage:?}");
    assert_eq!(run.manifests().await.unwrap(), []);
}

/// Sixteen writers, one name. For stores that honour create-only writes.
pub async fn race(run: &Run) {
    let part = stored_part(run, "part", 1.0, None).await;
    let rivals: Vec<_> = (0..16)
        .map(|i| {
            let mut manifest = manifest(run, 5000, 1, vec![part.clone()]);
            manifest.writer = format!("worker-{i}");
            let run = run.clone();
            tokio::spawn(async move { (run.commit(&manifest).await, manifest) })
        })
        .collect();
    let outcomes: Vec<_> = join_all(rivals).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).map(|(_, m)| m).collect();
    assert_eq!(winners.len(), 1);
    for (outcome, _) in &outcomes {
        let fair = match outcome {
            Ok(_) => true,
            Err(CommitError::Lost { winner, .. }) => *winner == winners[0].writer,
            Err(_) => false,
        };
        assert!(fair, "{outcome:?}");
    }
    assert_eq!(&run.load(winners[0].key()).await.unwrap(), winners[0]);
}
