//! Manifests for Kubernetes, judged by the published schemas. There is no cluster here: what one makes of them is not shown.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use tests::machine::Machine;
use tests::repository;

/// The script's exit code for "something that it needs is missing".
const NEEDS: i32 = 69;

/// What the validator says of manifests: whether they are sound, and why not. `None`, with a line that says why, where it is not laid.
fn judged(manifests: &str) -> Option<(bool, String)> {
    let mut validator = Command::new(repository().join("scripts/kubernetes/validate"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the validator starts");
    // one that has nothing to judge with reads nothing
    let _ = validator.stdin.take().expect("its input").write_all(manifests.as_bytes());
    let output = validator.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(NEEDS) {
        assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "{said}");
        println!("skipped: {}", said.trim().trim_start_matches("validate: "));
        return None;
    }
    Some((output.status.success(), said))
}

fn manifests(machine: &Machine, experiment: &str, more: &[&str]) -> String {
    let file = repository().join("experiments").join(experiment);
    let data = format!("images:{}", repository().join("experiments/data").display());
    let line = ["submit", "k8s", file.to_str().expect("text"), "--nodes", "4", "--gpus-per-node", "8"];
    let line = [&line[..], &["--image", "registry.example/ganfleet:0.1.0", "--volume", &data, "-o", "yaml"], more];
    let answer = machine.ask(&line.concat());
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.stdout
}

#[test]
fn manifests_are_sound_and_mistakes_in_them_are_found() {
    let machine = Machine::new();
    for experiment in ["progan-faces.toml", "cyclegan-large.toml"] {
        for kind in ["job", "jobset"] {
            let text = manifests(
                &machine,
                experiment,
                &["--kind", kind, "--namespace", "gans", "--service-account", "trainer", "--env-secret", "store"],
            );
            let Some((sound, said)) = judged(&text) else { return };
            assert!(sound, "{experiment} as {kind}: {said}\n{text}");
        }
    }
    let job = manifests(&machine, "progan-faces.toml", &[]);
    let jobset = manifests(&machine, "progan-faces.toml", &["--kind", "jobset"]);
    for (text, right, wrong, said) in [
        (&job, "completions: 4", "completion: 4", "completion"),
        (&job, "parallelism: 4", "parallelism: four", "parallelism"),
        (&job, "completionMode: Indexed", "completionMode: Indexd", "completionMode"),
        (&job, "restartPolicy: Never", "restartPolicy: Always", "restartPolicy"),
        (&job, "nvidia.com/gpu: \"8\"", "nvidia.com/gpu: eight", "no quantity"),
        (&job, "secretName: progan-faces-worker", "secretName: progan-faces-wroker", "there is no Secret"),
        (&job, "subdomain: progan-faces", "subdomain: elsewhere", "there is no Service"),
        (&job, "action: FailJob", "action: FailIt", "podFailurePolicy"),
        (&job, "clusterIP: None", "clusterIp: None", "clusterIp"),
        (&job, "minAvailable: 3", "minAvailable: [3]", "minAvailable"),
        (&jobset, "enableDNSHostnames: true", "enableDnsHostnames: true", "unknown"),
        (&jobset, "replicas: 1", "replicas: one", "replicas"),
        (&jobset, "completions: 4", "completion: 4", "completion"),
    ] {
        assert!(text.contains(right), "{right} is not in\n{text}");
        let (sound, why) = judged(&text.replace(right, wrong)).expect("it judged before");
        assert!(!sound && why.contains(said), "{wrong}: {sound} {why}");
    }
    assert_eq!(judged("").map(|(sound, _)| sound), Some(false));
}

/// What a pod would not find is said before one is started.
#[test]
fn what_no_pod_would_find_is_refused() {
    let machine = Machine::new();
    machine.experiment(&tests::experiment::Experiment::tiny());
    let submit = |more: &[&str]| machine.ask(&[&["submit", "k8s", "toy.toml", "--image", "ganfleet"], more].concat());
    let volume = format!("all:{}", machine.path("").display());
    let only = |name: &str| format!("{name}:{}", machine.path(name).display());
    for (more, code, said) in [
        (&["-o", "yaml"][..], 3, "data.source: "),
        (&["--volume", &only("images"), "--volume", &only("cache"), "-o", "yaml"], 3, "checkpoint.url: "),
        (&["--volume", &only("images"), "--volume", &only("runs"), "-o", "yaml"], 3, "data.cache: "),
        (&["--volume", "images", "-o", "yaml"], 2, "CLAIM:/PATH"),
        (&["--volume", &volume, "--set", "name=a.b", "-o", "yaml"], 3, "no name for Kubernetes"),
        (&["--volume", &volume, "--set", "name=3d", "-o", "yaml"], 3, "a letter first"),
        (&["--volume", &volume, "--volume", &volume, "-o", "yaml"], 2, "two claims on one path"),
        (&["--volume", &volume, "--credentials", "missing", "-o", "yaml"], 3, "missing"),
    ] {
        let answer = submit(more);
        assert!(answer.code == code && answer.stderr.contains(said), "{more:?}: {answer:?}");
    }
    assert_eq!(submit(&["--volume", &volume, "--dry-run"]).code, 0);
    assert_eq!(submit(&["--volume", &volume, "-o", "json"]).json()["items"].as_array().map(Vec::len), Some(7));
}

/// What kubectl is handed: everything, at once. The one here writes it down.
#[test]
fn without_a_form_to_print_kubectl_applies_it() {
    let bin = tempfile::tempdir().expect("a folder");
    let machine = Machine::new().with_env("PATH", bin.path().to_str().expect("text"));
    machine.experiment(&tests::experiment::Experiment::tiny());
    let volume = format!("all:{}", machine.path("").display());
    let line = ["submit", "k8s", "toy.toml", "--image", "ganfleet", "--volume", &volume, "--namespace", "gans"];
    let answer = machine.ask(&line);
    assert!(answer.code == 3 && answer.stderr.contains("kubectl cannot be started"), "{answer:?}");
    let kubectl = |script: &str| {
        let path = bin.path().join("kubectl");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    kubectl("read -r all; printf '%s' \"$all\" > applied; printf '%s' \"$*\" > arguments");
    let answer = machine.ask(&line);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("kubectl logs --namespace gans --follow job/toy-coordinator"), "{answer:?}");
    let written = |name: &str| std::fs::read_to_string(machine.path(name)).expect("what kubectl wrote");
    assert_eq!(written("arguments"), "apply --filename - --namespace gans");
    let applied: serde_json::Value = serde_json::from_str(&written("applied")).expect("JSON");
    assert_eq!(applied["items"].as_array().map(Vec::len), Some(7));
    kubectl("echo forbidden >&2; exit 1");
    let answer = machine.ask(&line);
    assert!(answer.code == 3 && answer.stderr.contains("kubectl refuses: forbidden"), "{answer:?}");
}
