//! The door off loopback: TLS handshakes, so many at a time and each under a deadline, with credentials that may be renewed while it stands
//! open; and what is said of those who are not let in, however many they are.
//!
//! Who is let in is then asked for the token ([`crate::admission`]). Refuses to know what is said inside.

use crate::failure::Failure;
use common::exit::Exit;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Router, TcpIncoming};
use trust::{CA, Credentials, IDENTITY, Party};

/// Handshakes at one time: the others wait.
const HANDSHAKES_MAX: usize = 512;
/// Time for one.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time for one that is refused to read why, and most bytes that are read from it meanwhile.
const PARTING: Duration = Duration::from_secs(1);
const UNREAD_MAX: u64 = 64 << 10;
/// Connections that wait for the server.
const QUEUE: usize = 64;
/// After a connection could not be taken, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(50);
/// Least time between two lines about refusals.
const LINES: Duration = Duration::from_secs(10);

/// Serves on a listener, through its door if it has one, until the task is aborted or dropped with its runtime.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    door: Option<Door>,
    refusals: Arc<Refusals>,
) -> Result<(), tonic::transport::Error> {
    match door {
        // an order that waits for an acknowledgement is 40 ms late
        None => router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await,
        Some(door) => router.serve_with_incoming(door.incoming(listener, refusals)).await,
    }
}

/// Which files they are and when they were written: what is renewed is another file.
type Stamp = [Option<(u64, SystemTime)>; 2];

/// The credentials with which the door is kept.
pub struct Door {
    folder: PathBuf,
    kept: Mutex<Kept>,
}

struct Kept {
    config: Arc<ServerConfig>,
    /// That of the files in use; none yet: they may have been renewed since they were read.
    stamp: Stamp,
    /// That of files that were not sound.
    refused: Option<Stamp>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({})", self.folder.display())
    }
}

impl Door {
    /// One that is kept with `credentials`, and with what takes their place.
    ///
    /// # Errors
    /// They are not sound.
    pub fn open(credentials: &Credentials) -> Result<Self, Failure> {
        let config = credentials.server().map_err(|error| Failure::new(Exit::Config, error))?;
        let folder = credentials.folder().to_owned();
        let kept = Kept { config: Arc::new(config), stamp: Stamp::default(), refused: None };
        Ok(Self { folder, kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next handshake is done with: the files that lie there now, or, while they are not sound, the last ones that were.
    fn config(&self) -> Arc<ServerConfig> {
        let mut kept = self.kept();
        let stamp = stamp(&self.folder);
        if stamp != kept.stamp && kept.refused != Some(stamp) {
            let read = Credentials::read(&self.folder, Party::Coordinator, SystemTime::now());
            match read.and_then(|credentials| credentials.server()) {
                Ok(config) => {
                    tracing::info!("credentials were read from {}", self.folder.display());
                    (kept.config, kept.stamp) = (Arc::new(config), stamp);
                }
                // perhaps half of them is renewed yet: looked at again when they change
                Err(error) => {
                    kept.refused = Some(stamp);
                    tracing::warn!("renewed credentials are not used yet: {error}");
                }
            }
        }
        Arc::clone(&kept.config)
    }

    /// Those who come to `listener` and show a certificate that is trusted, until nobody takes them any more.
    #[must_use]
    pub fn incoming(
        self,
        listener: TcpListener,
        refusals: Arc<Refusals>,
    ) -> ReceiverStream<std::io::Result<TlsStream<TcpStream>>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(self.take(listener, sender, refusals));
        ReceiverStream::new(receiver)
    }

    async fn take(
        self,
        listener: TcpListener,
        sender: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
        refusals: Arc<Refusals>,
    ) {
        let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let taken = tokio::select! {
                () = sender.closed() => return,
                taken = async {
                    let slot = Arc::clone(&slots).acquire_owned().await.ok();
                    (slot, listener.accept().await)
                } => taken,
            };
            let (slot, stream, from) = match taken {
                (slot, Ok((stream, from))) => (slot, stream, from),
                (_, Err(error)) => {
                    tracing::warn!("a connection could not be taken: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let (acceptor, sender, refusals) =
                (TlsAcceptor::from(self.config()), sender.clone(), Arc::clone(&refusals));
            tokio::spawn(async move {
                // an order that waits for an acknowledgement is 40 ms late
                let _best_effort = stream.set_nodelay(true);
                match timeout(HANDSHAKE, acceptor.accept(stream).into_fallible()).await {
                    // nobody takes it: the run is over
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    // who only looked whether somebody listens
                    Ok(Err((error, _))) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
                    Ok(Err((error, stream))) => {
                        refusals.tell(Some(from), &reason(&error.to_string()));
                        part(stream).await;
                    }
                    Err(_) => refusals.tell(Some(from), "the handshake was not done in time"),
                }
                drop(slot);
            });
        }
    }
}

/// Lets somebody go who was refused: closed with words unread, a connection would be reset, and the reason lost on the way.
async fn part(mut stream: TcpStream) {
    // it may be gone already
    let _ = stream.shutdown().await;
    let _ = timeout(PARTING, tokio::io::copy(&mut stream.take(UNREAD_MAX), &mut tokio::io::sink())).await;
}

fn stamp(folder: &Path) -> Stamp {
    let of = |name: &str| {
        let meta = std::fs::metadata(folder.join(name))?;
        Ok::<_, std::io::Error>((meta.ino(), meta.modified()?))
    };
    [CA, IDENTITY].map(|name| of(name).ok())
}

/// What a broken handshake means here.
fn reason(error: &str) -> String {
    let advice = match error {
        e if e.contains("alert: CertificateExpired") => {
            "to it this coordinator's certificate has expired, or is not good yet: renew it, or compare the clocks"
        }
        e if ["UnknownCA", "DecryptError", "BadCertificate"]
            .iter()
            .any(|sign| e.contains(&format!("alert: {sign}"))) =>
        {
            "it does not trust this coordinator's authority"
        }
        e if e.contains("InvalidContentType") || e.contains("corrupt message") => {
            "it speaks no TLS: it needs --credentials"
        }
        e if e.contains("NoCertificatesPresented") => "it shows no certificate: it needs --credentials",
        e if e.contains("Expired") || e.contains("expired") => "its certificate has expired",
        e if e.contains("NotValidYet") || e.contains("not valid yet") => {
            "its certificate is not good yet: compare the clocks"
        }
        e if e.contains("UnknownIssuer") || e.contains("BadSignature") => "its certificate is of another authority",
        other => other,
    };
    advice.to_owned()
}

/// What is said of those who are refused: the first at once, and then at most a line now and then, with their number.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
    /// How often in all, and who was last, and why.
    count: u64,
    latest: String,
}

impl Refusals {
    /// Somebody at `from` was refused.
    pub fn tell(&self, from: Option<SocketAddr>, why: &str) {
        let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string());
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.count += 1;
        told.latest = format!("{from}: {why}");
        if told.last.is_some_and(|last| last.elapsed() < LINES) {
            told.since += 1;
            return;
        }
        let more = match std::mem::take(&mut told.since) {
            0 => String::new(),
            since => format!(" ({since} others were, since the last such line)"),
        };
        told.last = Some(Instant::now());
        drop(told);
        tracing::warn!("somebody at {from} was refused: {why}{more}");
    }

    /// How often somebody was refused, and the last time: from where, and why. `None` if nobody was.
    #[must_use]
    pub fn so_far(&self) -> Option<(u64, String)> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (told.count > 0).then(|| (told.count, told.latest.clone()))
    }
}
