//! The same suite against a real S3 server, which the test starts and which ends with it.

use crate::suite;
use crate::support::checkpoint;
use common::config::resolved::S3;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use storage::{Findings, Patience, StorageError, Store};

/// The script's exit code for "something that it needs is missing", and the shell's for "no python3".
const NEEDS: [i32; 2] = [69, 127];

/// A server that ends when this does: the script serves until its standard input closes.
struct Server {
    script: Child,
    settings: BTreeMap<String, String>,
}

impl Server {
    /// `None`, with a line that says why, where this machine cannot have one.
    fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/s3-server");
        let piped = || Stdio::piped();
        let mut script =
            Command::new(script).arg("run").stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        let lines = BufReader::new(script.stdout.take().unwrap()).lines().map(Result::unwrap);
        let settings: BTreeMap<String, String> =
            lines.take(5).filter_map(|line| line.split_once('=').map(|(k, v)| (k.into(), v.into()))).collect();
        if settings.len() == 5 {
            return Some(Self { script, settings });
        }
        let status = script.wait().unwrap();
        let mut said = String::new();
        script.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.code().is_some_and(|code| NEEDS.contains(&code)), "{status}: {said}");
        let needs = said.trim().strip_prefix("s3-server: needs ").unwrap_or("python3");
        assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
        println!("skipped: needs {needs}");
        None
    }

    fn open(&self, root: &str, change: &[(&str, &str)]) -> Store {
        let mut env = self.settings.clone();
        env.extend(change.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())));
        Store::open_with(root, &S3::default(), &env).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_contract() {
    let Some(server) = Server::start() else { return };
    let bucket = &server.settings["BUCKET"];
    let root = format!("s3://{bucket}/team/runs");
    let store = server.open(&root, &[]);

    suite::run(&store).await;
    suite::race(&store.run("race").unwrap()).await;
    crate::lease::race(&store.run("lease-race").unwrap()).await;
    let found = store.run("probe").unwrap().probe().await.unwrap();
    assert_eq!(Findings { written_at: None, ..found }, suite::HONOURED);
    assert!(found.written_at.is_some());

    // An endpoint from the configuration, under another prefix of the same bucket.
    let s3 = S3 { endpoint: server.settings.get("AWS_ENDPOINT_URL").cloned(), ..S3::default() };
    let mut env = server.settings.clone();
    env.insert("AWS_ENDPOINT_URL".into(), "http://127.0.0.1:9".into());
    let other = Store::open_with(&format!("s3://{bucket}"), &s3, &env).unwrap();
    checkpoint(&other.run("top").unwrap(), 1000, 1).await;
    assert!(other.runs().await.unwrap().contains(&"team".to_owned()));

    // Refusals come at once, and listings, whose errors hold the status only in their text, are no exception.
    let begun = Instant::now();
    let stranger = server.open(&root, &[("AWS_SECRET_ACCESS_KEY", "wrong")]).run("checkpoints").unwrap();
    assert!(matches!(stranger.manifests().await, Err(StorageError::Denied { .. })));
    assert!(matches!(stranger.probe().await, Err(StorageError::Denied { .. })));
    assert!(matches!(stranger.newest_good(false).await, Err(StorageError::Denied { .. })));
    let homeless = server.open("s3://no-such-bucket/runs", &[]).run("faces").unwrap();
    let error = homeless.probe().await.unwrap_err();
    assert!(matches!(error, StorageError::NotFound { .. }), "{error}");
    assert!(matches!(homeless.manifests().await, Err(StorageError::NotFound { .. })));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_closed_door_is_reported_within_the_budget() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "SECRET")];
    let env = keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let s3 = S3 { endpoint: Some(format!("http://127.0.0.1:{port}")), ..S3::default() };
    let patience = Patience { budget: Duration::from_secs(1), ..Patience::default() };
    let store = Store::open_with("s3://bucket/runs", &s3, &env).unwrap().with_patience(patience);
    let begun = Instant::now();
    let error = store.run("faces").unwrap().manifests().await.unwrap_err();
    assert!(matches!(error, StorageError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!error.to_string().contains("SECRET"));
}
