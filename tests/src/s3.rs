//! A real S3-compatible server for a test, by `scripts/s3-server`: it ends with the test.

use crate::repository;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// The script's exit code for "something that it needs is missing", and the shell's for "no python3".
const NEEDS: [i32; 2] = [69, 127];
/// Lines that it prints once it serves.
const SETTINGS: usize = 5;

/// A server at work.
#[derive(Debug)]
pub struct Server {
    script: Child,
    settings: BTreeMap<String, String>,
}

impl Server {
    /// Starts one. `None`, with a line that says why, where this machine cannot have one.
    ///
    /// # Panics
    /// When it fails for another reason, or when `GANFLEET_NO_SKIP=1` forbids to go without.
    #[must_use]
    pub fn start() -> Option<Self> {
        let mut script = Command::new(repository().join("scripts/s3-server"))
            .arg("run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("scripts/s3-server can be started");
        let lines = BufReader::new(script.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let settings: BTreeMap<String, String> =
            lines.take(SETTINGS).filter_map(|line| line.split_once('=').map(|(k, v)| (k.into(), v.into()))).collect();
        if settings.len() == SETTINGS {
            return Some(Self { script, settings });
        }
        let status = script.wait().expect("its end");
        let mut said = String::new();
        script.stderr.take().expect("its errors").read_to_string(&mut said).expect("its errors are text");
        assert!(status.code().is_some_and(|code| NEEDS.contains(&code)), "{status}: {said}");
        let needs = said.trim().strip_prefix("s3-server: needs ").unwrap_or("python3");
        assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
        println!("skipped: needs {needs}");
        None
    }

    /// One of the settings that it printed: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `BUCKET`.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).unwrap_or_else(|| panic!("the server printed no {name}"))
    }

    /// Where it listens.
    ///
    /// # Panics
    /// When it printed something else than an address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let endpoint = self.setting("AWS_ENDPOINT_URL");
        endpoint.trim_start_matches("http://").parse().unwrap_or_else(|error| panic!("{endpoint}: {error}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // it serves until its input closes
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
