//! The door off loopback: who shows credentials of this run is let in, nobody else, and they may be renewed meanwhile.

use coordinator::admission::Token;
use coordinator::credentials::{CredentialsCommand, run};
use coordinator::door::Door;
use coordinator::operate::ask;
use coordinator::server::{self, Beats, Input};
use rpc::operate_request::Command;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use trust::{Credentials, Party};

const LONG: Duration = Duration::from_secs(20);

fn make(folder: &Path) -> Credentials {
    run(&CredentialsCommand::Make { folder: folder.to_owned(), days: 1 }).unwrap();
    read(folder)
}

fn read(folder: &Path) -> Credentials {
    Credentials::read(folder, Party::Coordinator, SystemTime::now()).unwrap()
}

/// A coordinator that answers every question with nothing.
async fn serve(credentials: Option<&Credentials>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (inputs, mut asked) = mpsc::channel(16);
    let door = credentials.map(|credentials| Door::open(credentials).unwrap());
    tokio::spawn(server::serve((listener, door), Token::from_text("secret"), "1.0.0", inputs, Beats::default()));
    tokio::spawn(async move {
        while let Some(input) = asked.recv().await {
            if let Input::Asked { reply, .. } = input {
                reply.send(String::new()).unwrap();
            }
        }
    });
    address
}

/// Whether the coordinator answered; else what it came to.
async fn answers(address: SocketAddr, credentials: Option<&Credentials>) -> Result<(), String> {
    let question = Command::Status(rpc::StatusQuestion {});
    let address = address.to_string();
    let answer = timeout(LONG, ask(&address, "secret", credentials, question)).await.expect("an answer in time");
    match answer.expect_err("it says nothing") {
        said if said.contains("its answer cannot be read") => Ok(()),
        said => Err(said),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_shows_credentials_of_the_run_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let ours = make(&folder.path().join("ours"));
    let others = make(&folder.path().join("others"));
    let (locked, open) = (serve(Some(&ours)).await, serve(None).await);
    answers(locked, Some(&ours)).await.unwrap();
    answers(open, None).await.unwrap();
    let said = answers(locked, Some(&others)).await.unwrap_err();
    assert!(trust::explain(&said).is_some_and(|advice| advice.contains("one authority")), "{said}");
    let said = answers(open, Some(&ours)).await.unwrap_err();
    assert!(trust::explain(&said).is_some_and(|advice| advice.contains("no TLS")), "{said}");
    answers(locked, None).await.unwrap_err();
    // and the door still stands open for the right ones
    answers(locked, Some(&ours)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_takes_the_place_of_the_old_one_without_a_moment_in_which_nobody_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let old = make(folder.path());
    let address = serve(Some(&old)).await;
    answers(address, Some(&old)).await.unwrap();
    let renew = |authority, forget| {
        let folder = folder.path().to_owned();
        run(&CredentialsCommand::Renew { folder, days: 1, authority, forget }).unwrap();
    };
    renew(true, false);
    let again =
        CredentialsCommand::Renew { folder: folder.path().to_owned(), days: 1, authority: false, forget: false };
    assert!(run(&again).unwrap_err().message.contains("--forget"), "who has not the new ones yet would be left out");
    let worker = Credentials::read(folder.path(), Party::Worker, SystemTime::now()).unwrap();
    answers(address, Some(&old)).await.unwrap();
    answers(address, Some(&worker)).await.unwrap();
    renew(false, true);
    answers(address, Some(&old)).await.unwrap_err();
    // who was given the new ones in time has lost nothing
    answers(address, Some(&worker)).await.unwrap();
    answers(address, Some(&read(folder.path()))).await.unwrap();
}
