//! What goes in wrong comes out as a clear error: the documented exit code, a message that names the thing, no panic, no
//! process left, nothing begun. Damaged checkpoints are in [`crate::damage`].

use crate::finished::finished;
use nix::sys::signal::Signal;
use std::process::Command;
use std::time::Duration;
use tests::experiment::Experiment;
use tests::images;
use tests::machine::{Answer, Machine};
use tests::{PATIENCE, processes, until};

/// Refused: the exit code, and texts that the message must have.
pub fn assert_refused(machine: &Machine, what: &str, answer: &Answer, code: i32, says: &[&str]) {
    let text = answer.text();
    assert_eq!(answer.code, code, "{what}: {text}");
    for says in says {
        assert!(text.contains(says), "{what}: no {says:?} in: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("stack backtrace"), "{what}: {text}");
    assert!(answer.stderr.lines().count() < 40, "{what}: nobody reads that much: {text}");
    machine.assert_nothing_runs(Duration::from_secs(2));
    let first = text.lines().find(|line| line.contains("error") || line.contains("DAMAGED")).or(text.lines().next());
    println!("{what}: exit code {code}: {}", first.unwrap_or_default());
}

/// Runs a program to its end where a process may open so many files.
pub fn with_few_files(machine: &Machine, files: u32, program: &Command) -> Answer {
    within(machine, &format!("-n {files}"), program)
}

/// Runs a program to its end within a limit of the shell's.
fn within(machine: &Machine, limit: &str, program: &Command) -> Answer {
    let mut limited = Command::new("/bin/sh");
    limited
        .args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"])
        .arg(program.get_program())
        .args(program.get_args());
    limited.current_dir(machine.path("")).env_clear();
    limited.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().expect("a shell starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Answer { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_system_that_gives_too_little() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    let many = machine.command(&["launch", "toy.toml", "--plain", "--workers", "200"]);
    let answer = with_few_files(&machine, 1000, &many);
    assert_refused(&machine, "few files, many workers", &answer, 3, &["1000 files", "200 workers", "ulimit -n"]);
    let two = machine.command(&["launch", "toy.toml", "--plain", "--workers", "2"]);
    let answer = with_few_files(&machine, 100, &two);
    assert_refused(&machine, "few files, two workers", &answer, 3, &["100 files", "ulimit -n"]);
}

/// A run whose workers try its widest step: so many images, of which so many at once.
fn rehearsing(minibatch: i64, at_once: i64) -> Experiment {
    let family = Experiment::sngan().with("train.determinism", "fast").with("model.width", 64);
    let widths = family.with("train.minibatch", minibatch).with("train.max_per_worker", at_once);
    widths.with("cluster.rehearse", "always").with("train.total_kimg", 0.0625)
}

/// The widest step is tried before a worker asks for a place, and a machine that has seen it fit does not try it again.
#[test]
fn memory_that_is_too_small_for_the_widest_step() {
    let machine = Machine::new();
    let launch = machine.command(&["launch", "toy.toml", "--plain", "--workers", "1"]);
    machine.experiment(&rehearsing(65_536, 65_536));
    let answer = within(&machine, "-v 2000000", &launch);
    let says = ["16x16 with 65536 images at once", "does not fit", "can't allocate memory", "train.max_per_worker.16"];
    assert_refused(&machine, "little memory, many images", &answer, 3, &says);
    assert_eq!(machine.newest_images(), None);
    let remembered = || std::fs::read_dir(machine.path("home/.cache/ganfleet/rehearsed")).map_or(0, Iterator::count);
    assert_eq!(remembered(), 0);

    machine.experiment(&rehearsing(16, 16));
    for again in [false, true] {
        let answer = within(&machine, "-v 2000000", &launch);
        assert_eq!(answer.code, 0, "{}", answer.text());
        assert_eq!(remembered(), 1);
        let log = std::fs::read_to_string(machine.run().join("log.txt")).unwrap();
        assert_eq!(log.contains("the widest step, 16x16 with 16 images at once, fits"), !again, "{log}");
        std::fs::remove_dir_all(machine.path("runs")).unwrap();
    }
}

/// Of many passes, so that it takes a while.
#[test]
fn a_widest_step_ends_with_its_worker() {
    let machine = Machine::new();
    machine.experiment(&rehearsing(65_536, 16));
    let run = machine.launch(&["--workers", "1"]);
    let trying = || machine.processes().into_iter().find(|process| process.command.contains("worker rehearse"));
    let step = until(PATIENCE, "a widest step", trying);
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", step.pid)).unwrap();
    assert!(!environment.contains("GANFLEET_TOKEN=") && !environment.contains("GANFLEET_WORKER_ID="), "{environment}");
    processes::signal(machine.workers()[0], Signal::SIGKILL);
    let gone = || (!machine.processes().contains(&step)).then_some(());
    until(Duration::from_secs(5), "the end of the step", gone);
    run.interrupt();
    run.interrupt();
    drop(run);
    machine.assert_nothing_runs(PATIENCE);
}

/// Launches the tiny run with an experiment file of this text.
fn launch(machine: &Machine, text: impl AsRef<[u8]>, arguments: &[&str]) -> Answer {
    machine.write("toy.toml", text);
    machine.ask(&[&["launch", "toy.toml", "--plain"], arguments].concat())
}

#[test]
fn experiment_files() {
    let machine = Machine::new();
    let tiny = Experiment::tiny().text();
    let with = |key: &str, value: &str| {
        let value: toml_edit::Value = value.parse().unwrap();
        Experiment::tiny().with(key, value).text()
    };
    let two_averages = Experiment::tiny().with("train.ema_decay", 0.9).with("train.ema_half_life_kimg", 1.0);
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("no TOML", "name = \"toy\nseed = 1\n".into(), &["toy.toml:1"]),
        ("nothing", String::new(), &["name", "data.source", "missing"]),
        ("an unknown key", format!("sead = 1\n{tiny}"), &["toy.toml:1: sead", "unknown key", "seed"]),
        ("an unknown section", format!("{tiny}\n[trian]\nx = 1\n"), &["trian", "unknown", "train"]),
        ("a key twice", format!("seed = 1\n{tiny}"), &["toy.toml:4", "duplicate key"]),
        ("text for a number", with("seed", "\"x\""), &["seed", "found \"x\""]),
        ("a number for text", with("data.source", "3"), &["data.source", "3"]),
        ("no power of two", with("model.resolution", "24"), &["model.resolution", "24"]),
        ("too large", with("model.resolution", "2048"), &["model.resolution", "2048"]),
        ("another family", with("model.family", "\"stylegan9\""), &["model.family", "stylegan9", "progan"]),
        ("a key of another family", with("model.cycle_weight", "1"), &["model.cycle_weight", "unknown key"]),
        ("a negative length", with("train.total_kimg", "-1"), &["train.total_kimg", "-1"]),
        ("no number", with("train.total_kimg", "nan"), &["train.total_kimg"]),
        ("groups that do not fit", with("train.minibatch.default", "6"), &["train.minibatch", "6", "groups of 4"]),
        ("a start above the end", with("train.growth.start_resolution", "32"), &["start_resolution", "above"]),
        ("no feature map", with("model.fmap_base", "4"), &["model.fmap_base", "4"]),
        ("two averages", two_averages.text(), &["train.ema_decay", "ema_half_life_kimg"]),
        ("a name that is a path", with("name", "\"../evil\""), &["name", "../evil"]),
        ("a colour that is none", with("data.background", "\"greenish\""), &["data.background", "greenish"]),
        ("a share above 1", with("data.max_bad_share", "1.5"), &["data.max_bad_share", "1.5"]),
        ("no length of time", with("cluster.patience", "\"soon\""), &["cluster.patience", "soon"]),
        ("orphans less patient than peers", with("cluster.orphan_patience", "\"1s\""), &["orphan_patience", "shorter"]),
        ("bits in half precision", with("train.precision", "\"bf16\""), &["train.determinism", "bitwise"]),
        ("two alone", with("cluster.backend", "\"solo\""), &["cluster.backend", "solo"]),
        ("no workers", with("cluster.workers", "0"), &["cluster.workers", "0"]),
    ];
    for (what, text, says) in cases {
        assert_refused(&machine, what, &launch(&machine, &text, &[]), 3, says);
    }
    assert_refused(&machine, "no text", &launch(&machine, b"\xff\xfe\0", &[]), 3, &["toy.toml", "UTF-8"]);
    assert_refused(&machine, "a flood", &launch(&machine, vec![b'#'; 2 << 20], &[]), 3, &["toy.toml", "1 MiB"]);
    let gone = machine.ask(&["launch", "no-such.toml", "--plain"]);
    assert_refused(&machine, "no file", &gone, 3, &["no-such.toml"]);
    let folder = machine.ask(&["launch", "images", "--plain"]);
    assert_refused(&machine, "a folder", &folder, 3, &["images", "not a file"]);
    for (set, says) in
        [("train.total_kimg", "="), ("train.totl_kimg=1", "train.total_kimg"), ("seed=soon", "seed"), ("=1", "--set")]
    {
        assert_refused(&machine, set, &launch(&machine, &tiny, &["--set", set]), 3, &["--set", says]);
    }
    let machine = machine.with_env("GANFLEET__TRAIN__TOTAL_KIMG", "soon");
    assert_refused(
        &machine,
        "the environment",
        &launch(&machine, &tiny, &[]),
        3,
        &["GANFLEET__TRAIN__TOTAL_KIMG", "soon"],
    );
    assert!(!machine.path("runs").exists(), "nothing has begun");
}

#[test]
fn command_lines() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    for (arguments, code, says) in [
        (&["launhc", "toy.toml"][..], 2, "launch"),
        (&["launch"], 2, "EXPERIMENT"),
        (&["launch", "toy.toml", "--workers", "0"], 2, "--workers"),
        (&["launch", "toy.toml", "--workers", "many"], 2, "many"),
        (&["launch", "toy.toml", "--plain", "--json"], 2, "--json"),
        (&["launch", "toy.toml", "--listen", "everywhere"], 2, "everywhere"),
        (&["launch", "toy.toml", "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (&["launch", "toy.toml", "--listen", "0.0.0.0:0"], 2, "coordinator credentials make"),
        (&["launch", "toy.toml", "--credentials", "nowhere"], 3, "coordinator credentials make"),
        (&["credentials", "make", "images"], 2, "is there already"),
        (&["credentials", "show", "images"], 2, "holds no credentials"),
        (&["launch", "toy.toml", "--listen", "192.0.2.1:1", "--insecure", "--plain"], 8, "192.0.2.1:1"),
        (&["launch", "toy.toml", "--local", "3", "--plain"], 2, "--local 3 is more than the 2 workers"),
        (
            &["launch", "toy.toml", "--local", "1", "--listen", "0.0.0.0:0", "--insecure", "--plain"],
            2,
            "no workers here (--local 0)",
        ),
        (
            &["launch", "toy.toml", "--local", "0", "--listen", "0.0.0.0:0", "--insecure", "--plain"],
            2,
            "--advertise HOST",
        ),
        (&["status", "toy"], 8, "toy"),
        (&["stop", "no-such-run"], 8, "no-such-run"),
        (&["status", "../toy"], 2, "../toy"),
    ] {
        assert_refused(&machine, &arguments.join(" "), &machine.ask(arguments), code, &[says]);
    }
    let machine = Machine::new().with_env("GANFLEET_TOKEN", "short");
    machine.experiment(&Experiment::tiny());
    let answer = machine.ask(&["launch", "toy.toml", "--plain"]);
    assert_refused(&machine, "a token that can be guessed", &answer, 3, &["GANFLEET_TOKEN holds 5 characters"]);
    assert!(!answer.text().contains("short"), "a secret is not repeated: {}", answer.text());
    assert!(!machine.path("runs").exists(), "nothing has begun");
}

#[test]
fn training_images() {
    let machine = Machine::new();
    machine.write("text.zip", "this is no archive\n");
    machine.write("empty.zip", "");
    let archive = images::archive(24, 16);
    machine.write("cut.zip", &archive[..archive.len() / 2]);
    machine.write("nothing.zip", images::archive(0, 16));
    std::fs::create_dir(machine.path("empty")).unwrap();
    std::fs::create_dir(machine.path("words")).unwrap();
    machine.write("words/poem.png", "a poem");
    images::folder(&machine.path("spoilt"), 21, 16);
    for number in 0..3 {
        let png = images::png(number, 16);
        machine.write(&format!("spoilt/cut-{number}.png"), &png[..png.len() / 2]);
    }
    for (source, says) in [
        ("no-such-folder", &["no-such-folder"][..]),
        ("text.zip", &["text.zip"]),
        ("empty.zip", &["empty.zip"]),
        ("cut.zip", &["cut.zip"]),
        ("nothing.zip", &["nothing.zip", "no usable"]),
        ("empty", &["empty", "no usable"]),
        ("words", &["words", "poem.png"]),
        ("spoilt", &["spoilt", "3 of 24", "max_bad_share", "cut-"]),
    ] {
        let text = Experiment::tiny().with("data.source", source).text();
        assert_refused(&machine, source, &launch(&machine, text, &[]), 4, says);
    }
    assert!(machine.manifests().is_empty(), "nothing has begun");
    // as many as are allowed are left out by name
    let tolerant = Experiment::tiny().with("data.source", "spoilt").with("data.max_bad_share", 0.2);
    machine.experiment(&tolerant.with("train.total_kimg", 0.016));
    let end = machine.launch(&[]).succeed();
    let prepared = end.events("prepared").next().unwrap();
    assert_eq!((&prepared["images"], &prepared["skipped"]), (&21.into(), &3.into()), "{}", end.story());
    let named =
        |number: u32| end.events("log").any(|log| log["line"].to_string().contains(&format!("cut-{number}.png")));
    assert!((0..3).all(named), "{}", end.story());
    // other images than those of the run
    machine.write("spoilt/new.png", images::png(99, 16));
    let answer =
        machine.ask(&["resume", &machine.run().display().to_string(), "--set", "train.total_kimg=1", "--plain"]);
    assert_refused(&machine, "other images", &answer, 4, &["spoilt", "fingerprint"]);
}

#[test]
fn stores_and_runs() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    machine.write("file", "");
    let below_a_file = machine.path("file/runs").display().to_string();
    for (url, code, says) in [
        ("ftp://host/runs", 3, "checkpoint.url: expected one of"),
        ("https://host/runs", 3, "checkpoint.url: expected one of"),
        ("s3://", 3, "checkpoint.url"),
        ("s3://id:HUSH@bucket/runs", 3, "checkpoint.url"),
        ("s3://bucket:9000/runs", 5, "checkpoint.s3.endpoint"),
        ("s3://bucket/runs", 5, "AWS_ACCESS_KEY_ID"),
        ("gs://bucket/runs", 5, "credentials"),
        ("az://container/runs", 5, "AZURE"),
        ("memory://runs", 5, "memory of one process"),
        (below_a_file.as_str(), 5, "file/runs"),
    ] {
        let answer = machine.ask(&["launch", "toy.toml", "--plain", "--set", &format!("checkpoint.url={url}")]);
        assert_refused(&machine, url, &answer, code, &[says]);
        assert!(!answer.text().contains("HUSH"), "{}", answer.text());
    }
    let run = finished().url();
    for (arguments, code, says) in [
        (&["resume", "nowhere/toy", "--plain"][..], 5, "nowhere"),
        (&["resume", "ftp://host/toy"], 5, "ftp"),
        (&["resume", ""], 5, "empty"),
        (&["resume", "/"], 5, "names no run"),
        (&["resume", "runs/NO NAME"], 5, "NO%20NAME"),
        (&["checkpoints", "ls", "nowhere/toy"], 5, "nowhere"),
        (&["checkpoints", "show", &format!("{run}/manifests/000000000001-000009.json")], 5, "000000000001-000009"),
        (&["checkpoints", "show", &format!("{run}/manifests/newest.json")], 5, "newest.json"),
        (&["sample", "nowhere/toy", "--out", "a.png"], 5, "nowhere"),
        (&["sample", &run, "--seeds", "9-1", "--out", "a.png"], 2, "9-1"),
        (&["sample", &run, "--seeds", "all", "--out", "a.png"], 2, "all"),
        (&["sample", &run, "--seeds", "0-99999999999999999999", "--out", "a.png"], 2, "0-999"),
        (&["sample", &run, "--seeds", "0-5000", "--out", "a.png"], 2, "4096"),
        (&["sample", &run, "--seeds", "0-3", "--out", "no-such-folder/a.png"], 2, "no-such-folder/a.png"),
        (&["launch", "toy.toml", "--plain", "--resume", "ftp://host/toy"], 5, "ftp"),
    ] {
        assert_refused(&machine, &arguments.join(" "), &machine.ask(arguments), code, &[says]);
    }
    assert!(!machine.path("a.png").exists() && machine.manifests().is_empty());
}
