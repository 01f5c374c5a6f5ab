//! Where a coordinator is reached, and what it shows to those who come: the arguments that `launch`, `resume`, `attach` and `doctor` share.
//!
//! Judged before anything is opened. Refuses to stand open to a network in the clear, unless that is said to be trusted.

use crate::failure::Failure;
use clap::Args;
use common::exit::Exit;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;
use trust::{Credentials, Party};

/// Where workers and operators come.
#[derive(Clone, Debug, Args)]
pub struct Entrance {
    /// Address for workers and operators
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address that workers from elsewhere are told, where it is another: every address is listened on, or something between rewrites them
    /// [default port: the one that is listened on]
    #[arg(long, value_name = "HOST[:PORT]", value_parser = reachable)]
    pub advertise: Option<String>,
    /// Folder that `coordinator credentials make` has made: connections are then encrypted, and both sides prove who they are
    #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
    pub credentials: Option<PathBuf>,
    /// Allow --listen beyond this machine although nothing is encrypted
    #[arg(long)]
    pub insecure: bool,
}

impl Entrance {
    /// Where workers from elsewhere reach a coordinator that listens at `address`.
    #[must_use]
    pub fn public(&self, address: SocketAddr) -> String {
        match &self.advertise {
            None => address.to_string(),
            Some(told) if told.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => told.clone(),
            Some(host) => format!("{host}:{}", address.port()),
        }
    }

    /// Nothing can listen there.
    #[must_use]
    pub fn deaf(&self, error: &std::io::Error) -> Failure {
        Failure::new(Exit::Network, format!("cannot listen on {}: {error}", self.listen))
    }

    /// What this coordinator proves itself with; beyond this machine it must, unless the network is said to be trusted. Where it `starts`
    /// workers, theirs must be sound, too.
    ///
    /// # Errors
    /// There are none where they are needed, or they cannot be used.
    pub fn proof(&self, starts: bool) -> Result<Option<Credentials>, Failure> {
        if self.insecure && self.credentials.is_some() {
            let message = "--insecure stands beside credentials: leave one of them out, or unset GANFLEET_CREDENTIALS";
            return Err(Failure::new(Exit::Usage, message));
        }
        let Some(folder) = &self.credentials else {
            return match self.listen.ip().is_loopback() || self.insecure {
                true => Ok(None),
                false => {
                    let message = format!(
                        "listening on {} lets others on the network try. Make credentials, `coordinator credentials make FOLDER`, and give \
                         --credentials FOLDER; or add --insecure if everybody on that network is trusted",
                        self.listen
                    );
                    Err(Failure::new(Exit::Usage, message))
                }
            };
        };
        let refused = |error| Failure::new(Exit::Config, error);
        let folder = std::path::absolute(folder).map_err(|error| refused(error.to_string()))?;
        let now = SystemTime::now();
        let read = |party| Credentials::read(&folder, party, now).map_err(|error| refused(error.to_string()));
        let ours = read(Party::Coordinator)?;
        if starts {
            read(Party::Worker)?;
        }
        Ok(Some(ours))
    }
}

/// An address that others can be told, with a port or without.
fn reachable(text: &str) -> Result<String, String> {
    let wrong = || "expected HOST or HOST:PORT ([IP]:PORT for IPv6)".to_owned();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return if ip.is_unspecified() { Err(wrong()) } else { Ok(host_of(ip)) };
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| wrong())?),
        None => (text, 1),
    };
    match (host, port) {
        ("" | "0.0.0.0" | "[::]", _) | (_, 0) => Err(wrong()),
        _ => Ok(text.to_owned()),
    }
}

/// An IP as a host of HOST:PORT.
fn host_of(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}
