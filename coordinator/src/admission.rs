//! Who may speak to the coordinator: token, protocol, build, and the shape of what a worker says of itself.
//!
//! Pure. A wrong token is answered with nothing but that it is wrong.

use std::fmt::Write;
use std::io::Read;

/// The secret of a run that its workers and operators know.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token that nobody can guess: 32 random bytes in hexadecimal.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub fn fresh() -> std::io::Result<Self> {
        Ok(Self(hex(&random_bytes()?)))
    }

    /// A token that was read from a file or the environment.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The secret itself, to hand on. Never into a log or an argument list.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on where the difference is.
    #[must_use]
    pub fn matches(&self, offered: &str) -> bool {
        // equality of BLAKE3 digests is constant-time
        blake3::hash(self.0.as_bytes()) == blake3::hash(offered.as_bytes())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// 32 bytes from the operating system's generator.
///
/// # Errors
/// It has none.
pub fn random_bytes() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a join is refused before the cluster hears of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The secret is another.
    #[error("the token is wrong: give the one of this run in GANFLEET_TOKEN, or the credentials that belong to it")]
    Token,
    /// The worker speaks another protocol.
    #[error("protocol {theirs} is not spoken here, {ours} is: use the worker that came with this coordinator")]
    Protocol {
        /// The worker's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The worker is of another version.
    #[error("this worker is version {theirs}, the coordinator is {ours}: use the worker that came with it")]
    Build {
        /// The worker's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// A field cannot be what it says.
    #[error("the join is malformed: {field}")]
    Malformed {
        /// Which field.
        field: &'static str,
    },
}

/// Longest name, host, device or address.
const TEXT_MAX: usize = 128;

/// Judges a join.
///
/// # Errors
/// The first thing that is wrong with it; nothing is said about the rest to who does not know the token.
pub fn admit(join: &rpc::Join, token: &Token, build: &str) -> Result<(), JoinError> {
    if !token.matches(&join.token) {
        return Err(JoinError::Token);
    }
    if join.protocol != rpc::PROTOCOL {
        return Err(JoinError::Protocol { theirs: join.protocol, ours: rpc::PROTOCOL });
    }
    if join.build != build {
        return Err(JoinError::Build { theirs: join.build.chars().take(TEXT_MAX).collect(), ours: build.to_owned() });
    }
    let plain = |text: &str, more: &str| {
        let character = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c);
        (1..=TEXT_MAX).contains(&text.len()) && text.chars().all(character)
    };
    let fields = [
        ("worker_id", plain(&join.worker_id, "")),
        ("host", plain(&join.host, "")),
        ("device", plain(&join.device, ":")),
        ("peer_address", plain(&join.peer_address, ":[]") && join.peer_address.contains(':')),
    ];
    match fields.into_iter().find(|(_, good)| !good) {
        Some((field, _)) => Err(JoinError::Malformed { field }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join() -> rpc::Join {
        rpc::Join {
            protocol: rpc::PROTOCOL,
            token: "secret".into(),
            build: "1.0.0".into(),
            worker_id: "w0".into(),
            pid: 1,
            host: "node-1".into(),
            peer_address: "[::1]:4000".into(),
            device: "cuda:0".into(),
        }
    }

    #[test]
    fn only_the_right_worker_with_the_right_token_is_admitted() {
        let token = Token::from_text("secret\n");
        let judge = |join: rpc::Join| admit(&join, &token, "1.0.0");
        assert_eq!(judge(join()), Ok(()));
        assert_eq!(judge(rpc::Join { token: "Secret".into(), protocol: 9, ..join() }), Err(JoinError::Token));
        assert_eq!(
            judge(rpc::Join { protocol: 9, ..join() }),
            Err(JoinError::Protocol { theirs: 9, ours: rpc::PROTOCOL })
        );
        assert!(matches!(judge(rpc::Join { build: "1.0.1".into(), ..join() }), Err(JoinError::Build { .. })));
        for (bad, field) in [
            (rpc::Join { worker_id: String::new(), ..join() }, "worker_id"),
            (rpc::Join { worker_id: "a\n".into(), ..join() }, "worker_id"),
            (rpc::Join { host: "x".repeat(200), ..join() }, "host"),
            (rpc::Join { peer_address: "nowhere".into(), ..join() }, "peer_address"),
            (rpc::Join { device: "\u{1b}[2J".into(), ..join() }, "device"),
        ] {
            assert_eq!(judge(bad), Err(JoinError::Malformed { field }));
        }
    }

    #[test]
    fn tokens_are_long_differ_and_do_not_show() {
        let (a, b) = (Token::fresh().unwrap(), Token::fresh().unwrap());
        assert_eq!(a.expose().len(), 64);
        assert_ne!(a.expose(), b.expose());
        assert!(!format!("{a:?}").contains(a.expose()));
    }
}
