//! What a worker says of itself when it joins, and the place it gets.

use crate::error::AgentError;
use common::config::resolved::RunConfig;
use common::ids::{Generation, Rank};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tonic::transport::Endpoint;
use trust::{Credentials, Party};

/// Environment variable in which the coordinator gives a worker its name.
pub const WORKER_ID: &str = "GANFLEET_WORKER_ID";

/// Where a coordinator is, and what this worker proves itself with there.
#[derive(Clone)]
pub struct Reach {
    /// `HOST:PORT`, or the same behind `http://` or `https://`.
    pub address: String,
    /// The run's token; where it is empty, that of the credentials.
    pub token: String,
    /// Folder of credentials; with it the connection is encrypted, and both sides prove who they are.
    pub credentials: Option<PathBuf>,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach")
            .field("address", &self.address)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Reach {
    /// A coordinator to which nothing but the token is shown, unencrypted.
    #[must_use]
    pub fn plain(address: &str, token: &str) -> Self {
        Self { address: address.to_owned(), token: token.to_owned(), credentials: None }
    }

    /// How the next connection is made, with the credentials that lie there now, and the token to show.
    pub(crate) fn endpoint(&self) -> Result<(Endpoint, String), AgentError> {
        let authority = authority(&self.address)?;
        let wrong = |error: tonic::transport::Error| AgentError::Address {
            address: self.address.clone(),
            why: error.to_string(),
        };
        let Some(folder) = &self.credentials else {
            if self.address.starts_with("https://") {
                let file = PathBuf::from(trust::IDENTITY);
                return Err(trust::TrustError::Missing { file }.into());
            }
            return Ok((Endpoint::from_shared(format!("http://{authority}")).map_err(wrong)?, self.token.clone()));
        };
        let credentials = Credentials::read(folder, Party::Worker, SystemTime::now())?;
        let endpoint = Endpoint::from_shared(format!("https://{authority}")).map_err(wrong)?;
        let endpoint = endpoint.tls_config(credentials.client()).map_err(wrong)?;
        let token = if self.token.is_empty() { credentials.token() } else { &self.token };
        Ok((endpoint, token.to_owned()))
    }
}

/// What a worker says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinInfo {
    /// Unique per process.
    pub worker_id: String,
    /// Version of the worker; the coordinator refuses another than its own.
    pub build: String,
    /// Process id.
    pub pid: u32,
    /// Name of this machine.
    pub host: String,
    /// `ip:port` where the other ranks reach this worker's collective.
    pub peer_address: String,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
}

/// What this machine calls itself.
#[must_use]
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".into())
}

impl JoinInfo {
    /// Speaks for this process. The name is the one that the coordinator gave in `GANFLEET_WORKER_ID`, else host and
    /// process id; `build` is `env!("CARGO_PKG_VERSION")` of the worker.
    #[must_use]
    pub fn of_this_process(build: &str, peer_address: &str, device: &str) -> Self {
        let pid = std::process::id();
        let host = host();
        let given = std::env::var(WORKER_ID).ok().filter(|id| !id.is_empty());
        let worker_id = given.unwrap_or_else(|| format!("{host}-{pid}"));
        let (build, peer_address, device) = (build.to_owned(), peer_address.to_owned(), device.to_owned());
        Self { worker_id, build, pid, host, peer_address, device }
    }

    pub(crate) fn message(&self, token: &str) -> rpc::Join {
        rpc::Join {
            protocol: rpc::PROTOCOL,
            token: token.to_owned(),
            build: self.build.clone(),
            worker_id: self.worker_id.clone(),
            pid: self.pid,
            host: self.host.clone(),
            peer_address: self.peer_address.clone(),
            device: self.device.clone(),
        }
    }
}

/// A worker's place in a generation.
#[derive(Clone, PartialEq)]
pub struct Assignment {
    /// Which formation of the workers.
    pub generation: Generation,
    /// This worker's place.
    pub rank: Rank,
    /// Addresses of every rank's collective, in rank order; their number is the world size.
    pub peers: Vec<String>,
    /// Peers of this generation prove that they know it.
    pub secret: [u8; 32],
    /// Key of the manifest to start from if no rank holds the state; `None` = from the beginning.
    pub resume: Option<String>,
    /// Start from `resume` whoever holds what.
    pub rollback: bool,
    /// And draw other random numbers from here on than the run did before.
    pub redraw: bool,
}

impl std::fmt::Debug for Assignment {
    /// Without the secret: this ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("generation", &self.generation)
            .field("rank", &self.rank)
            .field("peers", &self.peers)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

impl TryFrom<rpc::Assign> for Assignment {
    type Error = AgentError;

    fn try_from(assign: rpc::Assign) -> Result<Self, AgentError> {
        let wrong = |why: String| AgentError::Assignment { why };
        let roster = rpc::Roster::open(assign.roster).map_err(|error| wrong(format!("the roster: {error}")))?;
        if assign.rank as usize >= roster.peers.len() {
            return Err(wrong(format!("rank {} of {} workers", assign.rank, roster.peers.len())));
        }
        let secret = assign.secret.as_slice().try_into();
        Ok(Self {
            generation: Generation(assign.generation),
            rank: Rank(assign.rank),
            secret: secret.map_err(|_| wrong(format!("a secret of {} bytes, not 32", assign.secret.len())))?,
            peers: roster.peers,
            resume: Some(assign.resume).filter(|key| !key.is_empty()),
            rollback: assign.rollback,
            redraw: assign.redraw,
        })
    }
}

/// The run that the coordinator speaks of.
pub(crate) fn config(welcome: &rpc::Welcome) -> Result<RunConfig, AgentError> {
    let wrong = |error| AgentError::Assignment { why: format!("the configuration: {error}") };
    serde_json::from_str(&welcome.config).map_err(wrong)
}

/// Longest patience that is taken at its word; more would overflow a clock.
const PATIENCE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a silent coordinator is waited for before the stream is given up.
pub(crate) fn patience(config: &RunConfig) -> Duration {
    seconds(config.cluster.patience_s)
}

/// How long a vanished coordinator is waited for before the worker is an orphan.
pub(crate) fn orphan_patience(config: &RunConfig) -> Duration {
    seconds(config.cluster.orphan_patience_s)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX)
}

/// `HOST:PORT` of an address.
pub(crate) fn authority(address: &str) -> Result<&str, AgentError> {
    let wrong = |why: &str| AgentError::Address { address: address.to_owned(), why: why.to_owned() };
    let authority = match address.split_once("://") {
        None => address,
        Some(("http" | "https", rest)) => rest.trim_end_matches('/'),
        Some((scheme, _)) => return Err(wrong(&format!("`{scheme}://` is not spoken"))),
    };
    let port = authority.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    match port.map(str::parse::<u16>) {
        None => Err(wrong("host or port is missing")),
        Some(Err(_) | Ok(0)) => Err(wrong("the port is not a number from 1 to 65535")),
        Some(Ok(_)) => Ok(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:4000", "http://127.0.0.1:4000", "http://node-1:4000/", "[::1]:4000"] {
            assert!(Reach::plain(good, "t").endpoint().is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1", ":4000", "host:0", "host:66000", "host:x", "ftp://h:1", "a b:1"] {
            assert!(matches!(Reach::plain(bad, "t").endpoint(), Err(AgentError::Address { .. })), "{bad}");
        }
        // without credentials nothing is encrypted, whatever the address says
        let error = Reach::plain("https://node-1:4000", "t").endpoint().unwrap_err();
        assert!(matches!(error, AgentError::Credentials(_)), "{error}");
    }

    #[test]
    fn assignments_that_make_no_sense_are_errors() {
        let roster = rpc::Roster { peers: vec!["a".into()] }.seal();
        let assign = rpc::Assign { roster, secret: vec![0; 32], ..rpc::Assign::default() };
        let why = |assign: rpc::Assign| match Assignment::try_from(assign) {
            Err(AgentError::Assignment { why }) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(rpc::Assign { rank: 1, ..assign.clone() }).contains("rank 1 of 1"));
        assert!(why(rpc::Assign { roster: vec![0xff].into(), ..assign.clone() }).contains("the roster"));
        assert!(why(rpc::Assign { secret: vec![0; 31], ..assign.clone() }).contains("31 bytes"));
        assert!(config(&rpc::Welcome { config: "{}".into(), epoch: 1, workers: 1 }).is_err());
    }
}
