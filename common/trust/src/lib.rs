//! Who is who between machines: the credentials of a coordinator or a worker, read and judged before they are used.
//!
//! A folder of credentials holds `ca.pem` (the authorities that are trusted), `identity.pem` (a certificate and its key, for its owner's
//! eyes) and `token`. Certificates bear the name of a *party*, not of a machine: hosts come and go, and stand behind other addresses. Only a
//! certificate of the coordinator's party may serve, so a worker cannot pass for the coordinator. Refuses to make certificates, to open sockets and to
//! know a clock.

mod error;
mod judge;

pub use error::TrustError;
pub use judge::{Validity, causes, explain, words};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// File with the certificates of the authorities that are trusted.
pub const CA: &str = "ca.pem";
/// File with a party's certificate and its key.
pub const IDENTITY: &str = "identity.pem";
/// File with the join token.
pub const TOKEN: &str = "token";
/// Largest of these files.
const BYTES_MAX: u64 = 64 << 10;
/// What is spoken inside: HTTP/2.
const ALPN: &[u8] = b"h2";

/// Who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// Serves; also asks other coordinators, as an operator does.
    Coordinator,
    /// Joins.
    Worker,
}

impl Party {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Coordinator, Self::Worker];

    /// Its name, and that of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
        }
    }

    /// The name in its certificates.
    #[must_use]
    pub fn subject(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator.ganfleet.internal",
            Self::Worker => "worker.ganfleet.internal",
        }
    }
}

/// The credentials of one party, sound when they were read.
#[derive(Clone)]
pub struct Credentials {
    folder: PathBuf,
    ca: Vec<u8>,
    identity: Vec<u8>,
    token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.folder.display())
    }
}

impl Credentials {
    /// Reads those of `party` from `folder`, or from the folder of that party within it.
    ///
    /// # Errors
    /// A file is missing or others may read it, it is not what it should be, belongs to another party, or is out of date at `now`.
    pub fn read(folder: &Path, party: Party, now: SystemTime) -> Result<Self, TrustError> {
        let inner = folder.join(party.name());
        let folder = if inner.join(IDENTITY).exists() { inner } else { folder.to_owned() };
        let [ca, identity, token] = [CA, IDENTITY, TOKEN].map(|name| folder.join(name));
        let found = Self {
            ca: bytes(&ca)?,
            identity: secret(&identity)?,
            token: String::from_utf8_lossy(&secret(&token)?).trim().to_owned(),
            folder,
        };
        if found.token.is_empty() {
            return Err(TrustError::Malformed { file: token, why: "it is empty".to_owned() });
        }
        let roots = authorities(&ca, &found.ca)?;
        let (chain, _) = own(&identity, &found.identity)?;
        judge::is_for(&identity, &chain[0], party, now)?;
        let verifier = verifier(&ca, roots)?;
        let at = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        // as the other side will: both parties' certificates are good for clients
        let vouched = verifier.verify_client_cert(&chain[0], &chain[1..], at);
        let nobody = |error| TrustError::Malformed {
            file: identity.clone(),
            why: format!("no authority in {} vouches for it: {error}", ca.display()),
        };
        vouched.map_err(nobody)?;
        Ok(found)
    }

    /// Where they were found.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The join token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// How a coordinator serves: only who shows a certificate of a trusted authority is let in.
    ///
    /// # Errors
    /// Certificate and key do not belong together, or the authorities are none.
    pub fn server(&self) -> Result<ServerConfig, TrustError> {
        let malformed = |why: String| TrustError::Malformed { file: self.folder.join(IDENTITY), why };
        let ca = self.folder.join(CA);
        let verifier = verifier(&ca, authorities(&ca, &self.ca)?)?;
        let (chain, key) = own(&self.folder.join(IDENTITY), &self.identity)?;
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.map_err(|error| malformed(error.to_string()))?;
        let config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key);
        let mut config = config.map_err(|error| malformed(error.to_string()))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // a session that is resumed is not asked for its certificate again
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// How a coordinator is asked: it must show a certificate of its party.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.identity, &self.identity))
            .domain_name(Party::Coordinator.subject())
    }
}

/// When the first certificate in a file is good.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn validity_of(file: &Path) -> Result<Validity, TrustError> {
    let malformed = |why| TrustError::Malformed { file: file.to_owned(), why };
    let pem = bytes(file)?;
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|error| malformed(error.to_string()))?;
    judge::validity(&certificate).map_err(malformed)
}

/// A small file, whole.
fn bytes(path: &Path) -> Result<Vec<u8>, TrustError> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => TrustError::Missing { file: path.to_owned() },
        _ => TrustError::Malformed { file: path.to_owned(), why: error.to_string() },
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(TrustError::Malformed {
            file: path.to_owned(),
            why: format!("it is longer than {BYTES_MAX} bytes"),
        });
    }
    Ok(bytes)
}

/// The same of a file that nobody but its owner may read.
fn secret(path: &Path) -> Result<Vec<u8>, TrustError> {
    let bytes = bytes(path)?;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        return Err(TrustError::Exposed { file: path.to_owned(), mode: mode & 0o777 });
    }
    Ok(bytes)
}

fn authorities(file: &Path, pem: &[u8]) -> Result<RootCertStore, TrustError> {
    let malformed = |why: String| TrustError::Malformed { file: file.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
        roots.add(certificate).map_err(|error| malformed(error.to_string()))?;
    }
    if roots.is_empty() { Err(malformed("no certificate is in it".to_owned())) } else { Ok(roots) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What lets those in for whom an authority of `roots` vouches.
fn verifier(ca: &Path, roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.map_err(|error| TrustError::Malformed { file: ca.to_owned(), why: error.to_string() })
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(file: &Path, pem: &[u8]) -> Result<Own, TrustError> {
    let malformed = |why: String| TrustError::Malformed { file: file.to_owned(), why };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| malformed(error.to_string()))?;
    if chain.is_empty() {
        return Err(malformed("no certificate is in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| malformed(format!("its key: {error}")))?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests;
