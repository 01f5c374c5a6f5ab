//! Hosts that trust each other by certificates: a run goes on over faults as it does without, whoever is not trusted is refused and
//! told why, and credentials are renewed while it goes on.

use crate::doors::{answer, crowd, pace};
use crate::scene::{BACK, SECRETS, STRUCK_AT, Scene, WORKERS, experiment, formed, generations, long, losses, short};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::binaries;

#[test]
fn a_host_that_is_cut_off_comes_back_to_an_encrypted_run() {
    let Some(scene) = Scene::trusted(&long(), 0) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    scene.hosts.unplug(1);
    formed(&mut run, 2, Instant::now());
    run.wait_for("tick");
    let healed = Instant::now();
    scene.hosts.plug(1);
    let back = formed(&mut run, WORKERS as u64, healed);
    println!("with TLS and token: {back:.2?} from the heal to a generation of all");
    assert!(back <= BACK, "{back:?}");
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!(losses(&end.seen).len(), 1, "{}", end.story());
}

/// A copy of the workers' credentials in a folder of its own.
fn copied(scene: &Scene, name: &str) -> std::path::PathBuf {
    let (from, to) = (scene.machine.path(SECRETS).join("worker"), scene.machine.path(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["ca.pem", "identity.pem", "token"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    to
}

/// A worker's certificate of the same authority that was good yesterday.
fn expired(scene: &Scene, folder: &Path) {
    let authority = std::fs::read_to_string(scene.machine.path(SECRETS).join("authority/identity.pem")).unwrap();
    let (certificate, key) = authority.split_at(authority.find("-----BEGIN PRIVATE").unwrap());
    let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key).unwrap()).unwrap();
    let mut params = CertificateParams::new(vec!["worker.ganfleet.internal".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let ago = |days: u64| std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    (params.not_before, params.not_after) = (ago(3).into(), ago(1).into());
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("identity.pem"), own.pem() + &key.serialize_pem()).unwrap();
}

/// Shows a certificate to the coordinator without looking at it first, as no worker of ours does.
const SHOW: &str = r"
import socket, ssl, sys
folder = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(folder + '/ca.pem')
context.load_cert_chain(folder + '/identity.pem')
context.set_alpn_protocols(['h2'])
try:
    with socket.create_connection(('10.77.0.1', 4000), 5) as plain:
        with context.wrap_socket(plain, server_hostname='coordinator.ganfleet.internal') as stream:
            stream.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0')
            print('let in' if stream.recv(1) else 'hung up')
except ssl.SSLError as error:
    print(error)
";

#[test]
fn who_is_not_trusted_is_refused_and_told_why() {
    let Some(scene) = Scene::trusted(&short(), 1) else { return };
    let stranger = WORKERS + 1;
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    let token = std::fs::read_to_string(scene.machine.path(SECRETS).join("worker/token")).unwrap();

    let another = scene.machine.ask(&["credentials", "make", "another"]);
    assert_eq!(another.code, 0, "{another:?}");
    let wrong_token = copied(&scene, "wrong-token");
    std::fs::write(wrong_token.join("token"), "x".repeat(64)).unwrap();
    let open = copied(&scene, "open");
    std::fs::set_permissions(open.join("identity.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let late = copied(&scene, "late");
    expired(&scene, &late);

    let address = Scene::coordinator();
    let join = |folder: &str| scene.machine.worker(&["join", &address, "--credentials", folder]);
    let mut plain = scene.machine.worker(&["join", &address]);
    plain.env("GANFLEET_TOKEN", &token);
    for (what, command, code, says) in [
        ("plain text", plain, 8, "--credentials"),
        ("a wrong token", join("wrong-token"), 8, "the token is wrong"),
        ("another authority", join("another"), 8, "one authority"),
        ("an expired certificate", join("late"), 8, "has expired"),
        ("no credentials", join("nowhere"), 3, "coordinator credentials make"),
        ("the coordinator's own", join("secrets/coordinator"), 3, "no certificate of a worker"),
        ("a secret that others can read", join("open"), 3, "chmod 600"),
    ] {
        let (found, said, took) = answer(&scene, stranger, &command);
        let line = said.lines().find(|line| line.contains(says)).unwrap_or_default();
        println!("{what}: exit code {found:?} after {took:.2?}: {line}");
        assert!(found == Some(code) && !line.is_empty(), "{what}: {found:?}: {said}");
        assert!(took < Duration::from_secs(6) && !said.contains("panicked"), "{what}: {took:?}: {said}");
    }

    for (what, folder, says) in [
        ("one that is trusted", "secrets/worker", "let in"),
        ("one that has expired", "late", "expired"),
        ("one of another authority", "another/worker", "certificate verify failed"),
    ] {
        let mut show = Command::new("python3");
        show.args(["-c", SHOW, &scene.machine.path(folder).display().to_string()]);
        let (_, said, _) = answer(&scene, stranger, show.env("PATH", "/usr/bin:/bin:/usr/local/bin"));
        println!("{what}, shown as it is: {}", said.trim());
        assert!(said.contains(says), "{what}: {said}");
    }

    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (0, 1), "{}", end.story());
    for secret in [token.trim(), "PRIVATE KEY"] {
        assert!(!end.story().contains(secret), "no secret is told");
    }
}

#[test]
fn credentials_are_renewed_while_the_run_goes_on() {
    let Some(scene) = Scene::trusted(&long(), 1) else { return };
    let stranger = WORKERS + 1;
    let (mut run, mut guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    copied(&scene, "first");
    for arguments in [&["--authority"][..], &["--forget"]] {
        let renewed = scene.machine.ask(&[&["credentials", "renew", SECRETS], arguments].concat());
        assert_eq!(renewed.code, 0, "{renewed:?}");
        let gone = guests.remove(0);
        let host = gone.host;
        gone.kill();
        let left = Instant::now();
        formed(&mut run, 2, left);
        guests.push(scene.join(host));
        let back = formed(&mut run, WORKERS as u64, left);
        println!("after `credentials renew {}` a worker of host {host} is back in {back:.2?}", arguments[0]);
    }
    let address = Scene::coordinator();
    let (code, said, _) =
        answer(&scene, stranger, &scene.machine.worker(&["join", &address, "--credentials", "first"]));
    assert!(code == Some(8) && said.contains("one authority"), "the first ones are worth nothing any more: {said}");
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!(losses(&end.seen).len(), 2, "{}", end.story());
}

/// Processor time of a process so far.
fn processor_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    // fields 14 and 15 of proc(5), in ticks of 10 ms
    fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Every one of them gets as far as the token: a connection of its own, TLS with a certificate that is trusted, a stream, a join.
#[test]
fn ten_thousand_joins_a_minute_with_a_wrong_token_do_not_slow_training() {
    let Some(scene) = Scene::trusted(&experiment(9.6), 1) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    let calm = pace(&mut run, 640);
    let mut command = Command::new(binaries::example("coordinator", "impostors"));
    command.args([&Scene::coordinator(), &*scene.machine.path("secrets/worker").display().to_string(), "10000"]);
    let mut impostors =
        scene.hosts.on(WORKERS + 1, &command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("they start");
    let mut said = BufReader::new(impostors.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    let door = scene.machine.processes().iter().find(|one| one.command.contains("/coordinator launch ")).unwrap().pid;
    // `ip netns exec` has become what it was to start
    let both = || [door, impostors.id() as i32].map(processor_seconds);
    let (began, before) = (Instant::now(), both());
    let crowded = pace(&mut run, 640);
    run.let_pass(Duration::from_secs(2));
    let of_a_core = |i: usize| (both()[i] - before[i]) / began.elapsed().as_secs_f64() * 100.0;
    let (door, crowd) = (of_a_core(0), of_a_core(1));
    drop(impostors.stdin.take());
    let report: serde_json::Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
    impostors.wait().unwrap();
    let a_minute = report["refused"].as_f64().unwrap() / report["seconds"].as_f64().unwrap() * 60.0;
    println!("the coordinator takes {door:.0} % of a core meanwhile, and those at its door {crowd:.0} %");
    println!(
        "{a_minute:.0} joins a minute refused: {:.1} ms a step before, {:.1} ms with them",
        calm * 1e3,
        crowded * 1e3
    );
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (0, 1), "{}", end.story());
    assert_eq!(report["otherwise"], 0, "all are told the same: {report}");
    // on two cores, of which three workers would have both, whoever makes them gets less than it wants
    assert!(a_minute > 3000.0, "{report}");
    assert!(crowded <= 3.0 * calm + 0.02, "{calm} {crowded}");
    assert!(end.stderr.lines().count() < 40, "a line now and then, not one for each: {}", end.stderr);
}

#[test]
fn strangers_at_an_encrypted_door_do_not_slow_training() {
    let Some(scene) = Scene::trusted(&short(), 1) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    let calm = pace(&mut run, 320);
    let mut strangers = crowd(&scene, WORKERS + 1);
    run.let_pass(Duration::from_millis(500));
    let crowded = pace(&mut run, 320);
    println!("12,000 strangers a minute: {:.1} ms a step before, {:.1} ms with them", calm * 1e3, crowded * 1e3);
    assert!(strangers.try_wait().unwrap().is_none(), "they are still there");
    strangers.kill().unwrap();
    strangers.wait().unwrap();
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (0, 1), "{}", end.story());
    assert!(crowded <= 3.0 * calm + 0.02, "{calm} {crowded}");
    assert!(end.stderr.lines().count() < 40, "a line now and then, not one for each: {}", end.stderr);
}
