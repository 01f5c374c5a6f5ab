//! Hosts of their own for a test: network namespaces with one address each, on a switch in a namespace beside them, whose
//! links can be pulled, cut in one direction, and made bad.
//!
//! Nothing of it touches the machine's own network, so any number of tests can have their hosts at once, all with the same
//! addresses. What is started on a host dies with it: deleting a namespace ends no process, so that is done here. Leftovers
//! of a test that was killed go when the next one begins. Delay is made by a switch in user space, loss by nftables: the
//! kernel's own `netem` is not everywhere. Refuses to go without root, and tells of it as skipped.

use crate::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// How the names of ours begin; the process id of the test follows.
const PREFIX: &str = "ganfleet-";
/// Folders of programs for administrators, which are not on everybody's path.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// For processes that were killed.
const END: Duration = Duration::from_secs(10);

/// Some hosts on one switch.
#[derive(Debug)]
pub struct Hosts {
    /// Namespace of the switch; a host's has its number behind it.
    name: String,
    /// What each host does not let through, as nftables says it.
    rules: Vec<Mutex<BTreeSet<String>>>,
    slow_switch: OnceLock<Child>,
}

impl Hosts {
    /// So many hosts that reach each other. `None`, with a line that says why, where this machine cannot have them.
    ///
    /// # Panics
    /// When they cannot be made for another reason, or when `GANFLEET_NO_SKIP=1` forbids to go without.
    #[must_use]
    pub fn new(count: usize) -> Option<Self> {
        if let Some(needs) = lacks() {
            assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
            println!("skipped: needs {needs}");
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let rules = (0..count).map(|_| Mutex::default()).collect();
        let hosts = Self { name, rules, slow_switch: OnceLock::new() };
        let switch = &hosts.name;
        ip(&["netns", "add", switch]);
        ip(&["-n", switch, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", switch, "link", "set", "switch", "up"]);
        for host in 0..count {
            let (name, port) = (hosts.namespace(host), port(host));
            ip(&["netns", "add", &name]);
            ip(&["link", "add", "eth0", "netns", &name, "type", "veth", "peer", "name", &port, "netns", switch]);
            ip(&["-n", &name, "addr", "add", &format!("{}/24", address(host)), "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
            ip(&["-n", switch, "link", "set", &port, "master", "switch", "up"]);
        }
        Some(hosts)
    }

    /// `command`, to be run on a host. Its environment is what was set for it, and nothing else.
    #[must_use]
    pub fn on(&self, host: usize, command: &Command) -> Command {
        let mut there = tool("ip");
        there.args(["netns", "exec", &self.namespace(host)]).arg(command.get_program()).args(command.get_args());
        there.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            there.current_dir(folder);
        }
        there.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        there
    }

    /// Takes a host off the switch, without a word to anybody: what it sends and what it is sent is gone.
    pub fn unplug(&self, host: usize) {
        ip(&["-n", &self.name, "link", "set", &port(host), "nomaster"]);
    }

    /// Puts it back.
    pub fn plug(&self, host: usize) {
        ip(&["-n", &self.name, "link", "set", &port(host), "master", "switch"]);
    }

    /// From now on `host` hears nothing from `other`, which still hears it.
    pub fn deafen(&self, host: usize, other: usize) {
        self.add(host, format!("ip saddr {} drop", address(other)));
    }

    /// From now on these two hear nothing from each other.
    pub fn cut(&self, one: usize, other: usize) {
        self.deafen(one, other);
        self.deafen(other, one);
    }

    /// From now on nobody can call this host, which can call all others: a firewall as many have one.
    pub fn shield(&self, host: usize) {
        self.add(host, "tcp flags & (syn | ack) == syn drop".to_owned());
    }

    /// From now on each host loses so many of a hundred packets that come to it.
    pub fn lose(&self, percent: u32) {
        for host in 0..self.rules.len() {
            self.add(host, format!("iif != lo numgen random mod 100 < {percent} drop"));
        }
    }

    /// From now on a host sends no more than so many Mbit/s.
    pub fn slow(&self, host: usize, rate: u32) {
        let rate = format!("{rate}mbit");
        let mut shaped = tool("tc");
        shaped.args([
            "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "64kb", "latency", "50ms",
        ]);
        run(&mut self.on(host, &shaped));
    }

    /// From now on every packet takes so long from a host to the switch, and as long from the switch to a host: a time for each.
    ///
    /// # Panics
    /// When the switch that does it cannot be started.
    pub fn delay(&self, times: &[Duration]) {
        let ports: Vec<String> = (0..self.rules.len()).map(port).collect();
        for (host, port) in ports.iter().enumerate() {
            // a frame that nobody finished is of no use to a switch that is no part of the kernel
            run(self.on(host, tool("ethtool").args(["-K", "eth0", "tx", "off"])).stdout(Stdio::null()));
            ip(&["-n", &self.name, "link", "set", port, "nomaster"]);
        }
        let mut switch = tool("ip");
        switch.args(["netns", "exec", &self.name, "python3", "-c", include_str!("slow_switch.py")]);
        switch.args(ports.iter().zip(times).map(|(port, time)| format!("{port}={}", time.as_millis())));
        let mut switch = switch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let mut said = String::new();
        let read = BufReader::new(switch.stdout.take().expect("its output")).read_line(&mut said);
        let first = self.slow_switch.set(switch).is_ok();
        assert!(first && read.is_ok() && said == "ready\n", "the slow switch, which starts once, said {said:?}");
    }

    /// Lets everything through again, but for links that are pulled.
    pub fn heal(&self) {
        for host in 0..self.rules.len() {
            self.rules(host).clear();
            self.filter(host);
        }
    }

    /// What runs on a host.
    #[must_use]
    pub fn processes(&self, host: usize) -> Vec<i32> {
        processes(&self.namespace(host))
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn rules(&self, host: usize) -> MutexGuard<'_, BTreeSet<String>> {
        self.rules[host].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, host: usize, rule: String) {
        self.rules(host).insert(rule);
        self.filter(host);
    }

    /// Puts the host's rules into force, all at once.
    fn filter(&self, host: usize) {
        let mut table = "table inet hosts\ndelete table inet hosts\ntable inet hosts { chain input {\n".to_owned();
        table.push_str("type filter hook input priority 0; policy accept;\n");
        for rule in self.rules(host).iter() {
            // writing to a String cannot fail
            let _ = writeln!(table, "{rule}");
        }
        table.push_str("}\n}\n");
        let mut nft = self.on(host, tool("nft").args(["-f", "-"]));
        let mut nft = nft.stdin(Stdio::piped()).spawn().expect("nft starts");
        nft.stdin.take().expect("its input").write_all(table.as_bytes()).expect("nft reads its rules");
        let answer = nft.wait_with_output().expect("nft ends");
        assert!(answer.status.success(), "{table}: {}", String::from_utf8_lossy(&answer.stderr));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Some(mut switch) = self.slow_switch.take() {
            // it may have ended by itself
            let _ = switch.kill();
            let _ = switch.wait();
        }
        for host in 0..self.rules.len() {
            remove(&self.namespace(host));
        }
        remove(&self.name);
    }
}

/// The address of a host, as the others reach it.
#[must_use]
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).expect("a switch has not so many ports"))
}

/// The switch's end of a host's link.
fn port(host: usize) -> String {
    format!("port{host}")
}

/// What this machine lacks, if anything.
fn lacks() -> Option<String> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        return Some("root, for network namespaces".to_owned());
    }
    if let Some(program) = ["ip", "nft", "ethtool"].iter().find(|program| found(program).is_none()) {
        return Some(format!("{program}: apt-get install iproute2 nftables ethtool"));
    }
    let name = format!("{PREFIX}{}-probe-{:?}", std::process::id(), std::thread::current().id());
    let name = name.replace(['(', ')'], "");
    let answer = tool("ip").args(["netns", "add", &name]).output().expect("ip starts");
    remove(&name);
    (!answer.status.success()).then(|| format!("ip netns: {}", String::from_utf8_lossy(&answer.stderr).trim()))
}

/// Removes what tests have left that were killed. A name that is ours is left of one that had our process id.
fn sweep() {
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if owner == std::process::id().to_string() || !Path::new("/proc").join(owner).exists() {
            remove(&name);
        }
    }
}

/// Kills what runs in a namespace and deletes it. That somebody else has done so is no trouble.
fn remove(name: &str) {
    let gone = || {
        let there = processes(name);
        for pid in &there {
            // it may have ended meanwhile
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        there.is_empty().then_some(())
    };
    if std::thread::panicking() {
        let _ = crate::try_until(END, gone);
    } else {
        until(END, "the end of what ran on a host", gone);
    }
    let _ = tool("ip").args(["netns", "del", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn processes(name: &str) -> Vec<i32> {
    let Ok(answer) = tool("ip").args(["netns", "pids", name]).output() else { return Vec::new() };
    String::from_utf8_lossy(&answer.stdout).lines().filter_map(|pid| pid.trim().parse().ok()).collect()
}

fn ip(arguments: &[&str]) {
    run(tool("ip").args(arguments));
}

fn run(command: &mut Command) {
    let answer = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(answer.status.success(), "{command:?}: {}", String::from_utf8_lossy(&answer.stderr));
}

fn found(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
}

fn tool(name: &str) -> Command {
    // by its path, for what is started on a host has a path of its own
    let mut command = Command::new(found(name).unwrap_or_else(|| name.into()));
    command.env("PATH", PATH);
    command
}
