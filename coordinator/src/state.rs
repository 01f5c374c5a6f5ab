//! The local folder of a run that is at work: where its coordinator listens, the token, and what it has written so far.
//!
//! One coordinator at a time holds the folder's lock; the operating system releases it however the holder dies, so a
//! folder that nobody locks is stale, whatever its files say. Everything in it is readable by its owner only.

use crate::admission::Token;
use crate::failure::Failure;
use crate::machine;
use children::outputs;
use common::exit::Exit;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use trust::Credentials;

const CONTROL: &str = "control.json";
const TOKEN: &str = "token";
const LOCK: &str = "lock";
/// Largest control or token file.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// Where the coordinator of a run listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// `ip:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since 1970-01-01 UTC.
    pub started: u64,
    /// The run's URL.
    pub url: String,
    /// The number of the coordinator.
    #[serde(default)]
    pub epoch: u64,
    /// Folder of the credentials that it takes; none where nothing is encrypted.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// Where workers from elsewhere reach it, if that is another address.
    #[serde(default)]
    pub advertise: Option<String>,
    /// What its machine calls itself: the folder may lie where several see it.
    #[serde(default)]
    pub host: String,
}

impl Control {
    /// Whether it is another machine's.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        !self.host.is_empty() && self.host != machine::host()
    }

    /// Where it is reached from this machine.
    #[must_use]
    pub fn reached(&self) -> &str {
        let told = self.advertise.as_deref().filter(|_| self.is_elsewhere());
        told.unwrap_or(&self.address)
    }
}

/// The folder of all runs: `$XDG_STATE_HOME/ganfleet`, else `~/.local/state/ganfleet`.
///
/// # Errors
/// There is neither variable.
pub fn home() -> Result<PathBuf, Failure> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")).and_then(absolute);
    let none = || Failure::new(Exit::Config, "neither XDG_STATE_HOME nor HOME names a folder for the state of runs");
    Ok(state.or_else(home).ok_or_else(none)?.join("ganfleet"))
}

/// The folder of a run, locked by this process.
#[derive(Debug)]
pub struct Held {
    folder: PathBuf,
    /// What lies there is somebody's still: workers may be at work.
    keep: bool,
    _lock: File,
}

impl Held {
    /// Takes the folder of `run` below `home`.
    ///
    /// # Errors
    /// Another coordinator holds it, or it cannot be made.
    pub fn take(home: &Path, run: &str) -> Result<Self, Failure> {
        let folder = home.join(run);
        let broken = |what: &Path, error: std::io::Error| {
            Failure::new(Exit::Config, format!("the state of the run cannot be kept: {}: {error}", what.display()))
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder).map_err(|error| broken(&folder, error))?;
        let path = folder.join(LOCK);
        let lock = private().open(&path).map_err(|error| broken(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, keep: true, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let who = read_control(&folder).map_or(String::new(), |control| format!(" (process {})", control.pid));
                let message = format!(
                    "another coordinator{who} is at work on a run called `{run}`. Look at it with `coordinator status \
                     {run}`, end it with `coordinator stop {run}`, or give this run another name"
                );
                Err(Failure::new(Exit::Config, message))
            }
            Err(TryLockError::Error(error)) => Err(broken(&path, error)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where workers of this machine find their coordinator.
    #[must_use]
    pub fn control_file(&self) -> PathBuf {
        self.folder.join(CONTROL)
    }

    /// What the last coordinator of this run said of itself, and its token.
    #[must_use]
    pub fn predecessor(&self) -> (Option<Control>, Option<Token>) {
        let token = read_small(&self.folder.join(TOKEN)).map(|text| Token::from_text(&text));
        (read_control(&self.folder), token)
    }

    /// Whether what lies in the folder stays there when this process lets go of it: workers that are at work need it.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Where the token lies, for its owner's eyes.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.folder.join(TOKEN)
    }

    /// Tells operators of this machine where the coordinator listens.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn announce(
        &self,
        address: &str,
        url: &str,
        epoch: u64,
        token: &Token,
        credentials: Option<&Credentials>,
        advertise: Option<String>,
    ) -> Result<(), Failure> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let control = Control {
            address: address.to_owned(),
            pid: std::process::id(),
            started,
            url: url.to_owned(),
            epoch,
            credentials: credentials.map(|credentials| credentials.folder().to_owned()),
            advertise,
            host: machine::host(),
        };
        let text = serde_json::to_string_pretty(&control)
            .map_err(|error| Failure::new(Exit::Internal, format!("the address cannot be written down: {error}")))?;
        for (name, text) in [(TOKEN, token.expose()), (CONTROL, &text)] {
            let path = self.folder.join(name);
            let written = write_private(&path, text.as_bytes());
            written.map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // stale files do no harm: the lock tells; the journal says that the run is over
        for name in [CONTROL, TOKEN] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
        outputs::clean(&self.folder);
    }
}

/// How to reach the coordinator of `run` on this machine, or on one that shares its folder of runs.
///
/// # Errors
/// There is none at work; a folder that a dead one left is recognised.
pub fn find(home: &Path, run: &str) -> Result<(Control, Token), Failure> {
    let folder = home.join(run);
    let none = |detail: &str| {
        let message = format!("no coordinator on this machine is at work on a run called `{run}`{detail}");
        Failure::new(Exit::Network, message)
    };
    if !common::checkpoint::is_run_name(run) {
        return Err(Failure::new(Exit::Usage, format!("`{run}` is not the name of a run: [a-z0-9._-], at most 64")));
    }
    let Ok(lock) = OpenOptions::new().read(true).write(true).open(folder.join(LOCK)) else { return Err(none("")) };
    let control = read_control(&folder);
    let secret = || read_small(&folder.join(TOKEN)).map(|text| Token::from_text(&text));
    // neither its lock nor its process need be seen from here
    if let Some(control) = control.clone().filter(Control::is_elsewhere)
        && let Some(token) = secret()
    {
        return Ok((control, token));
    }
    if lock.try_lock().is_ok() {
        let gone = |control: Control| format!("; its last one, process {}, has ended without a farewell", control.pid);
        return Err(none(&control.map(gone).unwrap_or_default()));
    }
    let token = secret();
    // what a dead one has left is not yet replaced by the one that takes over
    let control = control.filter(|control| Path::new("/proc").join(control.pid.to_string()).exists());
    control.zip(token).ok_or_else(|| none(" yet: one is starting or ending; try again"))
}

fn read_control(folder: &Path) -> Option<Control> {
    serde_json::from_str(&read_small(&folder.join(CONTROL))?).ok()
}

fn read_small(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(SMALL_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    // a leftover might have other permissions
    let _ = std::fs::remove_file(&part);
    private().truncate(true).open(&part)?.write_all(bytes)?;
    std::fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_run_is_found_while_its_coordinator_holds_it_and_not_after() {
        let home = tempfile::tempdir().unwrap();
        let find = |run: &str| find(home.path(), run);
        assert!(find("toy").unwrap_err().message.contains("no coordinator"));
        let mut held = Held::take(home.path(), "toy").unwrap();
        held.keep(false);
        assert!(find("toy").unwrap_err().message.contains("starting"));
        let token = Token::from_text("secret");
        held.announce("127.0.0.1:4000", "file:///runs/toy", 1, &token, None, None).unwrap();
        let (control, found) = find("toy").unwrap();
        assert_eq!((control.address.as_str(), control.pid), ("127.0.0.1:4000", std::process::id()));
        assert!(found.matches("secret"));
        let mode = |name| std::fs::metadata(held.folder().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!([CONTROL, TOKEN, LOCK].map(mode), [0o600; 3]);
        let second = Held::take(home.path(), "toy").unwrap_err();
        assert!(second.message.contains(&format!("process {}", std::process::id())), "{}", second.message);
        drop(held);
        assert!(find("toy").is_err());
        Held::take(home.path(), "toy").unwrap();
    }

    #[test]
    fn a_folder_that_a_dead_coordinator_left_is_stale() {
        let home = tempfile::tempdir().unwrap();
        let held = Held::take(home.path(), "toy").unwrap();
        held.announce("127.0.0.1:4000", "u", 1, &Token::from_text("t"), None, None).unwrap();
        drop(held);
        let failure = find(home.path(), "toy").unwrap_err();
        assert!(failure.message.contains("ended without a farewell"), "{}", failure.message);
    }

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        let home = tempfile::tempdir().unwrap();
        for run in ["../x", "", "a/b", ".."] {
            assert_eq!(find(home.path(), run).unwrap_err().exit, Exit::Usage, "{run}");
        }
    }
}
