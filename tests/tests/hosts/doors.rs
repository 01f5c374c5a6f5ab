//! Addresses that lead nowhere, and a door at which strangers crowd: errors are clear and quick, and training does not
//! notice.

use crate::scene::{STRUCK_AT, Scene, WORKERS, generations, losses, short};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::hosts::address;
use tests::launched::Launched;
use tests::{PATIENCE, until};

/// A second or so, on a machine that is busy with other things.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Runs a program on a host to its end: its exit code, all that it said, and how long it took.
pub fn answer(scene: &Scene, host: usize, command: &Command) -> (Option<i32>, String, Duration) {
    let began = Instant::now();
    let mut process = scene.hosts.on(host, command).spawn().expect("it starts");
    let ended = until(PATIENCE, "an answer", || process.try_wait().unwrap());
    let took = began.elapsed();
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (ended.code(), String::from_utf8_lossy(&said).into_owned(), took)
}

#[test]
fn an_address_that_leads_nowhere_is_a_clear_error_at_once() {
    let Some(scene) = Scene::set(&short()) else { return };
    let machine = &scene.machine;
    let launch = |listen: &str| machine.command(&["launch", "toy.toml", "--plain", "--listen", listen, "--insecure"]);
    let join = |address: &str| machine.worker(&["join", address]);
    let taken = format!("{}:4001", address(1));
    let mut listener = listen(&scene, 1, 4001);
    for (what, host, command, says) in [
        ("to listen at an address of another host", 0, launch("10.77.0.2:4000"), "10.77.0.2:4000"),
        ("to listen at an address of nobody", 0, launch("192.0.2.1:4000"), "192.0.2.1:4000"),
        ("to listen at a port that is taken", 1, launch(&taken), &*taken),
        ("to join where nobody listens", 2, join("10.77.0.1:4000"), "10.77.0.1:4000"),
        ("to join where no route leads", 2, join("192.0.2.1:4000"), "192.0.2.1:4000"),
    ] {
        assert_refused(&scene, what, host, &command, says);
    }
    listener.kill().unwrap();
    listener.wait().unwrap();
    assert!(machine.manifests().is_empty(), "nothing has begun");
}

/// Refused with the code for it, at once, by a line that names what is wrong.
fn assert_refused(scene: &Scene, what: &str, host: usize, command: &Command, says: &str) {
    let (code, said, took) = answer(scene, host, command);
    let line = said.lines().find(|line| line.contains(says)).unwrap_or_default();
    println!("{what}: exit code {code:?} after {took:.2?}: {line}");
    assert!(code == Some(8) && !line.is_empty() && took <= AT_ONCE, "{what}: {code:?} after {took:?}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

#[test]
fn a_name_that_nobody_has_is_a_clear_error_at_once() {
    let Some(scene) = Scene::set(&short()) else { return };
    for (what, address) in [("a name that nobody has", "no-such-host:4000"), ("no port", "10.77.0.1")] {
        assert_refused(&scene, what, 2, &scene.machine.worker(&["join", address]), address);
    }
}

#[test]
fn a_host_that_does_not_answer_is_a_clear_error_at_once() {
    let Some(scene) = Scene::set(&short()) else { return };
    scene.hosts.deafen(2, 0);
    let join = scene.machine.worker(&["join", &Scene::coordinator()]);
    assert_refused(&scene, "to join where nothing answers", 2, &join, &Scene::coordinator());
}

/// A process that listens, until it is killed.
fn listen(scene: &Scene, host: usize, port: u16) -> std::process::Child {
    let text = format!(
        "import socket, time\ns = socket.create_server(('{}', {port}))\nprint('ready', flush=True)\ntime.sleep(600)",
        address(host)
    );
    python(scene, host, &text)
}

/// Runs a Python program on a host; returns when it has said something.
fn python(scene: &Scene, host: usize, text: &str) -> std::process::Child {
    use std::io::BufRead;
    let mut command = Command::new("python3");
    command.args(["-c", text]).env("PATH", "/usr/bin:/bin:/usr/local/bin");
    let mut process = scene.hosts.on(host, &command).stderr(Stdio::inherit()).spawn().expect("python3 starts");
    let mut line = String::new();
    std::io::BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "it says that it is ready");
    process
}

/// 200 connections each second that say nothing, or garbage, or half of a greeting; the last 400 stay.
const CROWD: &str = r"
import socket, time
print('ready', flush=True)
kept, begun, number = [], time.monotonic(), 0
words = [b'', b'GET / HTTP/1.1\r\n', b'PRI * HTTP/2.0\r\n\r\nSM', b'\x16\x03\x01' * 50]
while True:
    number += 1
    stranger = socket.socket()
    stranger.setblocking(False)
    try:
        stranger.connect(('10.77.0.1', 4000))
    except OSError:
        pass
    kept.append(stranger)
    if len(kept) > 20:
        try:
            kept[-20].send(words[number % 4])
        except OSError:
            pass
    if len(kept) > 400:
        kept.pop(0).close()
    time.sleep(max(0, begun + number / 200 - time.monotonic()))
";

#[test]
fn strangers_that_crowd_at_the_coordinators_door_do_not_slow_training() {
    let Some(scene) = Scene::with_strangers(&short(), 2) else { return };
    let (talking, deaf) = (WORKERS + 1, WORKERS + 2);
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    let calm = pace(&mut run, 320);
    // of these connections the coordinator sees the first packet only: they stay half open
    scene.hosts.deafen(deaf, 0);
    let mut strangers = [talking, deaf].map(|host| crowd(&scene, host));
    run.let_pass(Duration::from_millis(500));
    let crowded = pace(&mut run, 320);
    println!("a crowd at the door: {:.1} ms a step before, {:.1} ms with it", calm * 1e3, crowded * 1e3);
    assert!(strangers.iter_mut().all(|one| one.try_wait().unwrap().is_none()), "the crowd is still there");
    for one in &mut strangers {
        one.kill().unwrap();
        one.wait().unwrap();
    }
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (0, 1), "{}", end.story());
    // what shares the cores with them may cost something; a stall would cost far more
    assert!(crowded <= 3.0 * calm + 0.02, "{calm} {crowded}");
}

/// Strangers on a host that crowd at the coordinator's door.
pub fn crowd(scene: &Scene, host: usize) -> std::process::Child {
    python(scene, host, CROWD)
}

/// Seconds for each step over the next images, by the middle one of the ticks.
pub fn pace(run: &mut Launched<'_>, images: u64) -> f64 {
    let first = run.wait_for("tick")["tick"]["images"].as_u64().unwrap();
    let mut times = Vec::new();
    loop {
        let event: Value = run.wait_for("tick");
        let tick = &event["tick"];
        // two steps for each cycle of 8 images, with 2 repeats
        times.push(tick["sec_per_kimg"].as_f64().unwrap() / 1000.0 * 4.0);
        if tick["images"].as_u64() >= Some(first + images) {
            times.sort_by(f64::total_cmp);
            return times[times.len() / 2];
        }
    }
}
