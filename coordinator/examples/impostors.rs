//! Impostors at a coordinator's door: whole joins, by TLS and with a certificate that is trusted, but with a token that is not the run's.
//!
//! `impostors HOST:PORT FOLDER A_MINUTE` makes so many, each by a connection of its own, with the credentials in FOLDER, says "ready" after
//! the first, and when its standard input ends prints one JSON object: how many were refused for their token, and how many ended otherwise.

use rpc::control_client::ControlClient;
use rpc::from_worker::Body;
use rpc::{FromWorker, ToWorker, to_worker};
use serde_json::json;
use std::error::Error;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use trust::{Credentials, Party};

const GUESS: &str = "0123456789abcdef0123456789abcdef";
/// For one join.
const PATIENCE: Duration = Duration::from_secs(10);
/// At one time.
const AT_ONCE: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, folder, a_minute] = arguments.as_slice() else {
        eprintln!("usage: impostors HOST:PORT FOLDER A_MINUTE");
        std::process::exit(2);
    };
    let credentials = Credentials::read(&PathBuf::from(folder), Party::Worker, SystemTime::now())?;
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(credentials.client())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let every = Duration::from_secs(60) / a_minute.parse::<NonZero<u32>>()?.get();
    let (enough, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _read = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = enough.send(());
    });
    let report = runtime.block_on(crowd(endpoint, every, told));
    println!("{report}");
    Ok(())
}

async fn crowd(endpoint: Endpoint, every: Duration, mut enough: oneshot::Receiver<()>) -> serde_json::Value {
    let (mut refused, mut otherwise) = (0u64, 0u64);
    let mut count = |answer: Option<String>| match answer {
        Some(message) if message.contains("the token is wrong") => refused += 1,
        _ => otherwise += 1,
    };
    count(join(endpoint.clone(), 0).await);
    println!("ready");
    let (began, mut joins, mut next) = (Instant::now(), JoinSet::new(), interval(every));
    next.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 1.. {
        tokio::select! {
            _ = &mut enough => break,
            _ = next.tick() => {}
        }
        while joins.len() >= AT_ONCE {
            let Some(ended) = joins.join_next().await else { break };
            count(ended.ok().flatten());
        }
        joins.spawn(join(endpoint.clone(), number));
    }
    while let Some(ended) = joins.join_next().await {
        count(ended.ok().flatten());
    }
    json!({"refused": refused, "otherwise": otherwise, "seconds": began.elapsed().as_secs_f64()})
}

/// What the coordinator says to one join.
async fn join(endpoint: Endpoint, number: u64) -> Option<String> {
    let joining = async {
        let channel = endpoint.connect().await.ok()?;
        let (sender, receiver) = mpsc::channel(1);
        let join = rpc::Join {
            protocol: rpc::PROTOCOL,
            token: GUESS.to_owned(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            worker_id: format!("impostor-{number}"),
            pid: 1,
            host: "elsewhere".to_owned(),
            peer_address: "10.77.0.9:9".to_owned(),
            device: "cpu".to_owned(),
        };
        sender.send(FromWorker { body: Some(Body::Join(join)), sequence: 0 }).await.ok()?;
        let mut answers = ControlClient::new(channel).session(ReceiverStream::new(receiver)).await.ok()?.into_inner();
        match answers.message().await {
            Ok(Some(ToWorker { body: Some(to_worker::Body::Refused(refused)) })) => Some(refused.message),
            _ => None,
        }
    };
    timeout(PATIENCE, joining).await.ok().flatten()
}
