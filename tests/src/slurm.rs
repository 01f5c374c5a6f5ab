//! A real Slurm for a test: a controller and some nodes on this machine, with keys, ports and folders of their own, that end with the
//! test. Nothing of a Slurm that the machine may have is touched. Tells of what it lacks as skipped.

use crate::machine::{Answer, Machine};
use crate::processes::{self, Process};
use crate::{try_until, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What it consists of, and the Debian package of each.
const PROGRAMS: [(&str, &str); 5] = [
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("munged", "munge"),
    ("sbatch", "slurm-client"),
    ("scontrol", "slurm-client"),
];
/// For anything of Slurm's that takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster at work.
#[derive(Debug)]
pub struct Cluster<'a> {
    machine: &'a Machine,
    folder: PathBuf,
}

/// Where a machine's cluster has its configuration: give it to the machine as `SLURM_CONF`.
#[must_use]
pub fn configuration(folder: &Path) -> PathBuf {
    folder.join("slurm.conf")
}

/// What this machine lacks for it.
fn lacks() -> Option<String> {
    if std::fs::metadata("/proc/self").map_or(true, |own| own.uid() != 0) {
        return Some("root".to_owned());
    }
    let there =
        |program: &str| ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).is_file());
    PROGRAMS.iter().find(|(program, _)| !there(program)).map(|(_, package)| format!("package {package}"))
}

impl<'a> Cluster<'a> {
    /// So many nodes of so many processors each. `folder` is short-lived and has a short path: a socket lies in it. The machine's
    /// processes must know its [`configuration`] as `SLURM_CONF`. `None`, with a line that says why, where it cannot be had.
    ///
    /// # Panics
    /// When it cannot be started for another reason, or when `GANFLEET_NO_SKIP=1` forbids to go without.
    #[must_use]
    pub fn start(machine: &'a Machine, folder: &Path, nodes: usize, processors: usize) -> Option<Self> {
        if let Some(needs) = lacks() {
            assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
            println!("skipped: needs {needs}");
            return None;
        }
        let cluster = Self { machine, folder: folder.to_owned() };
        for (name, mode) in [("state", 0o755), ("pid", 0o755), ("munge", 0o711)] {
            DirBuilder::new().mode(mode).create(folder.join(name)).expect("a folder of the cluster");
            std::fs::set_permissions(folder.join(name), Permissions::from_mode(mode)).expect("its permissions");
        }
        let mut key = [0; 128];
        File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key)).expect("random bytes");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(cluster.at("munge/key"));
        file.and_then(|mut file| file.write_all(&key)).expect("munge's key");
        cluster.well(&[
            "munged",
            "--force",
            &format!("--key-file={}", cluster.name("munge/key")),
            &format!("--socket={}", cluster.name("munge/socket")),
            &format!("--pid-file={}", cluster.name("pid/munged")),
            &format!("--log-file={}", cluster.name("munge/log")),
            &format!("--seed-file={}", cluster.name("munge/seed")),
        ]);
        std::fs::write(configuration(folder), cluster.settings(nodes, processors)).expect("slurm.conf");
        cluster.well(&["slurmctld", "-c"]);
        for node in 1..=nodes {
            std::fs::create_dir(cluster.at(&format!("spool-n{node}"))).expect("a node's folder");
            cluster.boot(&format!("n{node}"));
        }
        cluster.idle(nodes);
        Some(cluster)
    }

    /// Starts a node that has never run, or one that was [killed](Self::kill_node).
    ///
    /// # Panics
    /// When it does not start.
    pub fn boot(&self, node: &str) {
        self.well(&["slurmd", "-c", "-N", node]);
    }

    /// What the loss of a machine is: its daemon, its steps' daemons and all that ran in them end at once, without a word.
    pub fn kill_node(&self, node: &str) {
        let here = |variable: &[u8]| variable == format!("SLURMD_NODENAME={node}").as_bytes();
        let is_of = |process: &Process| {
            let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            let daemon = process.command.contains("slurmd -c") && process.command.contains(&format!("-N {node}"));
            daemon || environment.split(|byte| *byte == 0).any(here)
        };
        let all = self.machine.processes();
        let parent = |process: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(2)?.parse::<i32>().ok())
        };
        let ours: Vec<&Process> = all.iter().filter(|process| is_of(process)).collect();
        // a step's daemon writes its title over its environment, but what it has started has one
        let is_step = |pid: &i32| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with("slurmstepd")
        };
        let steps: BTreeSet<i32> = ours.iter().filter_map(|process| parent(process)).filter(is_step).collect();
        // daemons first: they would tell of the others' end
        let is_daemon = |process: &&Process| process.command.contains("slurmd -c");
        let daemons = ours.iter().copied().filter(is_daemon).map(|process| process.pid);
        let rest = ours.iter().filter(|process| !is_daemon(process)).map(|process| process.pid);
        for pid in daemons.chain(steps).chain(rest) {
            processes::signal(pid, Signal::SIGKILL);
        }
    }

    /// Waits until so many nodes are idle: nothing of an earlier job is left on them.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn idle(&self, nodes: usize) {
        until(PATIENCE, "idle nodes", || {
            let idle = self.ask(&["sinfo", "--noheader", "--states=idle", "--format=%D"]);
            (idle.code == 0 && idle.stdout.trim() == nodes.to_string()).then_some(())
        });
    }

    /// What there is to say of nodes that are all on this machine, without an accountant and without control groups.
    fn settings(&self, nodes: usize, processors: usize) -> String {
        // found free all at once; they are taken at once
        let free: Vec<TcpListener> =
            (0..=nodes).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = free.iter().map(|port| port.local_addr().expect("its address").port()).collect();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("this machine's name");
        let (host, folder) = (host.trim(), self.folder.display());
        let mut text = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\nCredType=cred/munge\n\
             StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool-%n\n\
             SlurmctldPidFile={folder}/pid/slurmctld\nSlurmdPidFile={folder}/pid/slurmd-%n\n\
             SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\nMpiDefault=none\nSwitchType=switch/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nSchedulerType=sched/backfill\n\
             SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0\n\
             ReturnToService=2\nKillWait=30\nMinJobAge=3600\nJobRequeue=1\nSlurmdTimeout=30\n\
             SlurmdParameters=config_overrides\n",
            ports[0],
        );
        for (node, port) in (1..=nodes).zip(&ports[1..]) {
            text += &format!(
                "NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={processors} Sockets=1 \
                 CoresPerSocket={processors} ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN\n"
            );
        }
        text + &format!("PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP\n")
    }

    /// A path in its folder.
    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn name(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Runs one of Slurm's programs to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub fn ask(&self, line: &[&str]) -> Answer {
        self.machine.run_tool(line)
    }

    /// The same, which must succeed; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn well(&self, line: &[&str]) -> String {
        let answer = self.ask(line);
        assert_eq!(answer.code, 0, "{line:?}: {answer:?}");
        answer.stdout.trim().to_owned()
    }

    /// What the daemons have written down, for the message of a failed test.
    #[must_use]
    pub fn story(&self) -> String {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log"));
        let tail = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("{}\n{}\n", path.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        logs.map(tail).collect()
    }

    /// The state of a job, as in `RUNNING`, and how often it was queued again.
    ///
    /// # Panics
    /// When there is no such job.
    #[must_use]
    pub fn state(&self, job: &str) -> (String, u32) {
        let shown = self.well(&["scontrol", "show", "job", job, "--oneliner"]);
        let field = |name: &str| {
            let value = shown.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {shown}")).to_owned()
        };
        (field("JobState"), field("Restarts").parse().expect("a number"))
    }

    /// Waits until a job is in one of these states.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait(&self, job: &str, states: &[&str], within: Duration) -> String {
        let there = try_until(within, || Some(self.state(job).0).filter(|state| states.contains(&state.as_str())));
        there.unwrap_or_else(|| panic!("job {job} is {:?} and not {states:?}", self.state(job)))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // what they started carries the machine's mark, and goes with the machine; so do they, but in good order if they can
        for entry in std::fs::read_dir(self.at("pid")).into_iter().flatten().flatten() {
            let pid = std::fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}
