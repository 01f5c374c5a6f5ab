//! The same run in an S3-compatible store: launched, stopped, resumed, looked at, and going on while the store is away.

use crate::bad_inputs::assert_refused;
use crate::finished::finished;
use nix::sys::signal::Signal;
use tests::experiment::{Experiment, NAME};
use tests::machine::Machine;
use tests::relay::Relay;
use tests::s3::Server;

const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];

#[test]
fn a_run_in_s3_is_stopped_resumed_and_looked_at_and_outlives_an_outage() {
    let Some(server) = Server::start() else { return };
    let mut relay = Relay::to(server.address());
    let root = format!("s3://{}/team/runs", server.setting("BUCKET"));
    let url = format!("{root}/{NAME}");
    let endpoint = format!("http://{}", relay.address());
    let with_keys = |machine: Machine| KEYS.iter().fold(machine, |m, key| m.with_env(key, server.setting(key)));
    let machine = with_keys(Machine::new()).with_env("AWS_ENDPOINT_URL", &endpoint);
    machine.experiment(&Experiment::tiny().with("checkpoint.url", root.as_str()));

    // stopped in its first quarter
    let mut run = machine.launch(&[]);
    run.wait_for_images(128);
    run.signal(Signal::SIGTERM);
    let end = run.succeed();
    assert_eq!(end.reason(), "stopped", "{}", end.story());
    assert_eq!(end.ended()["resume_with"], format!("coordinator resume {url}"));

    // while the store is away training goes on, and the checkpoint of that time comes when it is back
    let mut run = machine.resume(&url, &[]);
    run.wait_for_images(192);
    relay.shut();
    run.wait_for_images(320);
    relay.open();
    // which one that is depends on how far the run was when the store went away
    run.wait_where("a checkpoint after the outage", |event| {
        event["event"] == "checkpoint" && event["images"].as_u64() >= Some(200)
    });
    let end = run.succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert_eq!(machine.state_hash(&url), finished().hash, "{}", end.story());

    // everything that works on a folder works on it
    let list = machine.ask(&["checkpoints", "ls", &url, "--json"]).json();
    assert_eq!(list["checkpoints"][0]["images"], 704, "{list}");
    assert!(machine.verify(&url) >= 3);
    let sample = machine.ask(&["sample", &url, "--seeds", "0-3", "--out", "a.png"]);
    assert_eq!(sample.code, 0, "{sample:?}");
    assert_eq!(image::image_dimensions(machine.path("a.png")).unwrap(), (32, 32));
    let text = |answer: &str| answer.contains(server.setting("AWS_SECRET_ACCESS_KEY"));
    assert!(!text(&end.story()) && !text(&sample.text()), "the secret is told");

    // the endpoint may be said in the experiment instead
    let other = with_keys(Machine::new());
    let s3 = ["--s3-endpoint", endpoint.as_str()];
    let answer = other.ask(&[&["checkpoints", "show", &url, "--json"], &s3[..]].concat());
    assert_eq!(answer.json()["state_hash"], finished().hash.as_str());
    let sample = other.ask(&[&["sample", &url, "--seeds", "0", "--out", "b.png"], &s3[..]].concat());
    assert_eq!(sample.code, 0, "{sample:?}");

    // what is wrong with it is said at once
    let nowhere = machine.ask(&["launch", "toy.toml", "--plain", "--set", "checkpoint.url=s3://no-such-bucket/runs"]);
    assert_refused(&machine, "no bucket", &nowhere, 5, &["no-such-bucket"]);
    let thief = Machine::new().with_env("AWS_ENDPOINT_URL", &endpoint);
    let thief = thief.with_env(KEYS[0], server.setting(KEYS[0])).with_env(KEYS[1], "guess");
    let denied = thief.ask(&["checkpoints", "ls", &url]);
    assert_refused(&thief, "a wrong key", &denied, 5, &["denied", "credentials"]);
}
