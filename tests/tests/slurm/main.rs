//! Trainings as jobs of a real Slurm: submitted, run on two nodes, queued again before their time is up, cancelled, and with a node
//! that fails under them.
//!
//! One cluster for all: they follow each other, as a user's jobs do. The nodes are this machine, and what a node's failure means is
//! Slurm's.

use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::experiment::{Experiment, NAME};
use tests::machine::{Answer, Machine};
use tests::processes;
use tests::slurm::{Cluster, configuration};
use tests::{PATIENCE, repository, until};

/// For a job that was told to end: its state is stored first.
const END: Duration = Duration::from_secs(60);
/// Images at which a run is struck: well under way.
const STRUCK_AT: u64 = 160;

/// As long as what is done to it, and bitwise: whatever happens, the end is the same.
fn experiment(total_kimg: f64) -> Experiment {
    Experiment::tiny()
        .with("train.total_kimg", total_kimg)
        .with("checkpoint.every_kimg", 0.2)
        .with("cluster.patience", "2s")
        .with("cluster.orphan_patience", "60s")
}

struct Stage<'a> {
    machine: &'a Machine,
    cluster: Cluster<'a>,
}

impl Stage<'_> {
    fn submit(&self, more: &[&str]) -> Answer {
        let line = ["submit", "slurm", "toy.toml", "--nodes", "2", "--cpus-per-node", "1", "--time", "30"];
        self.machine.ask(&[&line, more].concat())
    }

    /// Submits, and says which job it is.
    fn submitted(&self) -> String {
        let answer = self.submit(&[]);
        assert_eq!(answer.code, 0, "{answer:?}");
        let job = answer.stdout.strip_prefix("job ").and_then(|rest| rest.split(':').next()).expect("the job's number");
        job.to_owned()
    }

    fn log(&self, job: &str) -> String {
        let folder = self.machine.path("home/.local/state/ganfleet").join(NAME).join("slurm");
        std::fs::read_to_string(folder.join(format!("job-{job}.log"))).unwrap_or_default()
    }

    /// Waits until the run has come to `images`, as `coordinator status` tells it by the run's name.
    fn wait_for_images(&self, job: &str, images: u64) -> u64 {
        let look = || {
            let answer = self.machine.ask(&["status", NAME, "--json"]);
            let status: serde_json::Value = serde_json::from_str(&answer.stdout).ok()?;
            status["images"].as_u64().filter(|now| *now >= images)
        };
        tests::try_until(PATIENCE, look).unwrap_or_else(|| {
            panic!("the run does not come to {images} images: {:?}\n{}", self.cluster.state(job), self.log(job))
        })
    }

    /// Waits until the job is over and well.
    fn complete(&self, job: &str) {
        let end = self.cluster.wait(job, &["COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"], PATIENCE);
        assert_eq!(end, "COMPLETED", "{}\n{}", self.log(job), self.cluster.story());
    }

    /// Waits until nothing of a run is left on the nodes: their daemons stay.
    fn nobody_works(&self) {
        until(END, "the end of coordinator and workers", || {
            let ours =
                |command: &str| ["coordinator", "worker"].iter().any(|name| command.contains(&format!("/{name} ")));
            let at_work = self.machine.processes().into_iter().filter(|process| ours(&process.command)).count();
            (at_work == 0).then_some(())
        });
    }
}

/// What `experiment` comes to with nothing in its way.
fn undisturbed(experiment: &Experiment) -> String {
    let machine = Machine::new();
    machine.experiment(experiment);
    let end = machine.launch(&[]).end();
    assert_eq!(end.code, 0, "{}", end.story());
    machine.state_hash(machine.run().to_str().expect("a path of text"))
}

#[test]
fn jobs_of_a_real_slurm() {
    // sockets have short names
    let folder = tempfile::Builder::new().prefix("slurm").tempdir_in("/tmp").expect("a folder");
    let conf = configuration(folder.path());
    let machine = Machine::new().with_env("SLURM_CONF", conf.to_str().expect("a path of text"));
    let long = experiment(4.0);
    machine.experiment(&long);
    let Some(cluster) = Cluster::start(&machine, folder.path(), 2, 2) else { return };
    let stage = Stage { machine: &machine, cluster };
    let run = machine.run();
    let url = run.to_str().expect("a path of text");
    let expected = undisturbed(&long);

    refusals(&stage);
    time_is_up(&stage, url, &expected);
    std::fs::remove_dir_all(&run).expect("a run that is over");
    // what is stored then is stored because of it
    machine.experiment(&long.clone().with("checkpoint.every_kimg", 100));
    cancelled(&stage, url, &expected);
    machine.experiment(&long);
    std::fs::remove_dir_all(&run).expect("a run that is over");
    a_node_fails(&stage, url, &expected);
    std::fs::remove_dir_all(&run).expect("a run that is over");
    // its daemon lives and may have brought it back already, which is then refused
    let _ = stage.cluster.ask(&["scontrol", "update", "nodename=n2", "state=resume"]);
    stage.cluster.idle(2);
    a_coordinator_crashes(&stage, url, &expected);
    std::fs::remove_dir_all(&run).expect("a run that is over");
    machine.experiment(&long.with("cluster.orphan_patience", "5s"));
    the_first_node_dies(&stage, url, &expected);
}

/// Nothing is queued of what cannot run.
fn refusals(stage: &Stage<'_>) {
    let dry = stage.submit(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(dry.stdout.starts_with("#!/bin/bash\n") && dry.stdout.contains("#SBATCH --nodes=2\n"), "{}", dry.stdout);
    for (more, code, said) in [
        (&["--nodes", "3"][..], 2, "cannot be used multiple times"),
        (&["--partition", "nowhere"], 3, "sbatch refuses: "),
        (&["--set", "train.total_kimg=no"], 3, "train.total_kimg"),
        (&["--sbatch=nodes"], 2, "no option of sbatch"),
        (&["--template", "missing"], 2, "the template missing"),
    ] {
        let answer = stage.submit(more);
        assert!(answer.code == code && answer.stderr.contains(said), "{more:?}: {answer:?}");
    }
    let three = stage.machine.ask(&["submit", "slurm", "toy.toml", "--nodes", "3", "--cpus-per-node", "1"]);
    assert!(three.code == 3 && three.stderr.contains("sbatch refuses"), "{three:?}");
    assert_eq!(stage.cluster.well(&["squeue", "--noheader"]), "");
}

/// The signal before the end: stored, queued again, and on from there.
fn time_is_up(stage: &Stage<'_>, url: &str, expected: &str) {
    let job = stage.submitted();
    let again = stage.submit(&[]);
    assert!(again.code == 3 && again.stderr.contains(&format!("job {job} of the run `toy` is queued")), "{again:?}");
    stage.wait_for_images(&job, STRUCK_AT);
    stage.cluster.well(&["scancel", "--signal=USR1", "--batch", &job]);
    until(END, "the job in the queue again", || (stage.cluster.state(&job) == ("PENDING".to_owned(), 1)).then_some(()));
    stage.nobody_works();
    stage.cluster.idle(2);
    let stored = stage.machine.newest_images().expect("a checkpoint");
    let log = stage.log(&job);
    assert!(log.contains("the time is nearly up") && log.contains("queued again"), "{log}");
    println!("{}", stage.cluster.well(&["squeue", "--name", NAME]));
    // two minutes must pass before it runs again, unless somebody says otherwise; and two seconds, or Slurm's nodes take its new
    // credential for the one that ended with the job's first run
    stage.cluster.well(&["scontrol", "update", &format!("jobid={job}"), "StartTime=now+3"]);
    stage.complete(&job);
    let after = stage.log(&job);
    let after = &after[log.len()..];
    assert!(after.contains(&format!("2 workers, from manifests/{stored:012}-")), "{stored}: {after}");
    assert_eq!(stage.machine.state_hash(url), expected, "{after}");
    stage.nobody_works();
}

/// `scancel`: stored, and not queued again; who submits again goes on.
fn cancelled(stage: &Stage<'_>, url: &str, expected: &str) {
    let job = stage.submitted();
    let struck_at = stage.wait_for_images(&job, STRUCK_AT);
    stage.cluster.well(&["scancel", &job]);
    assert_eq!(stage.cluster.wait(&job, &["CANCELLED"], END), "CANCELLED");
    stage.nobody_works();
    assert!(stage.log(&job).contains("told to leave"), "{}", stage.log(&job));
    let stored = stage.machine.newest_images().expect("a checkpoint");
    assert!(stored >= struck_at, "{stored} images are stored, and {struck_at} were seen:\n{}", stage.log(&job));
    assert_eq!(stage.cluster.well(&["squeue", "--noheader"]), "");
    let job = stage.submitted();
    stage.complete(&job);
    assert_eq!(stage.machine.state_hash(url), expected, "{}", stage.log(&job));
    stage.nobody_works();
}

/// A node that goes down under a job takes its worker along, and the run goes on with the other.
fn a_node_fails(stage: &Stage<'_>, url: &str, expected: &str) {
    let job = stage.submitted();
    stage.wait_for_images(&job, STRUCK_AT);
    stage.cluster.well(&["scontrol", "update", "nodename=n2", "state=down", "reason=test"]);
    until(PATIENCE, "a generation of one worker", || stage.log(&job).contains("with 1 worker").then_some(()));
    stage.complete(&job);
    assert_eq!(stage.cluster.state(&job).1, 0, "it was not queued again");
    assert_eq!(stage.machine.state_hash(url), expected, "{}", stage.log(&job));
    assert!(Path::new(url).join("manifests").is_dir());
}

/// Another one takes its place on the same node, and the workers over.
fn a_coordinator_crashes(stage: &Stage<'_>, url: &str, expected: &str) {
    let job = stage.submitted();
    stage.wait_for_images(&job, STRUCK_AT);
    let is_coordinator = |process: &&processes::Process| process.command.contains("/coordinator launch ");
    let process = stage.machine.processes().iter().find(is_coordinator).expect("a coordinator").pid;
    processes::signal(process, Signal::SIGKILL);
    let taken_over = || stage.log(&job).contains("is taken over by coordinator").then_some(());
    until(PATIENCE, "another coordinator", taken_over);
    assert!(!stage.log(&job).contains("generation g2 begins"), "no worker was lost: {}", stage.log(&job));
    // it is found where the one before was: a node's next worker goes there
    processes::signal(stage.machine.workers()[0], Signal::SIGKILL);
    let another = || stage.log(&job).contains("generation g3 begins with 2 workers").then_some(());
    until(PATIENCE, "a generation with another worker", another);
    stage.complete(&job);
    let log = stage.log(&job);
    assert_eq!(stage.cluster.state(&job).1, 0, "it was not queued again");
    assert_eq!(stage.machine.state_hash(url), expected, "{log}");
    stage.nobody_works();
}

/// With the first node the script, the coordinator and a worker are gone. The other node's worker stores the state, and its agent has the
/// job queued again; when there are two nodes it goes on from there.
fn the_first_node_dies(stage: &Stage<'_>, url: &str, expected: &str) {
    let text = std::fs::read_to_string(repository().join("scripts/slurm/train.sbatch")).expect("the template");
    assert!(text.contains("--patience 60 "));
    stage.machine.write("impatient.sbatch", text.replace("--patience 60 ", "--patience 5 "));
    let answer = stage.submit(&["--template", "impatient.sbatch"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let job = answer.stdout.strip_prefix("job ").and_then(|rest| rest.split(':').next()).expect("the job's number");
    let struck_at = stage.wait_for_images(job, STRUCK_AT);
    stage.cluster.kill_node("n1");
    let began = Instant::now();
    let again = || (stage.cluster.state(job) == ("PENDING".to_owned(), 1)).then_some(());
    let queued = tests::try_until(Duration::from_secs(120), again);
    assert!(queued.is_some(), "{:?}\n{}\n{}", stage.cluster.state(job), stage.log(job), stage.cluster.story());
    println!("the first node died: the job was queued again after {:.0?}", began.elapsed());
    stage.nobody_works();
    let stored = stage.machine.newest_images().expect("a checkpoint");
    assert!(stored >= struck_at, "{stored} images are stored, and {struck_at} were seen:\n{}", stage.log(job));
    let log = stage.log(job);
    stage.cluster.boot("n1");
    stage.cluster.idle(2);
    stage.cluster.well(&["scontrol", "update", &format!("jobid={job}"), "StartTime=now+3"]);
    stage.complete(job);
    let after = stage.log(job);
    let after = after.strip_prefix(&log).unwrap_or(&after);
    // the coordinator is a successor: it looks for the workers of the one that died, and goes on without them
    let from = format!("rank 0 of 2: 24 images, 1 threads, from {:.1} kimg", stored as f64 / 1000.0);
    assert!(after.contains("is taken over by coordinator") && after.contains(&from), "{stored}: {after}");
    assert_eq!(stage.machine.state_hash(url), expected, "{after}");
    stage.nobody_works();
}
