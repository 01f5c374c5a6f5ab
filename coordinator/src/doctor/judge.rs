//! What a machine's facts mean for a run. Pure.

use super::Finding;
use crate::launch::BUILD;
use crate::machine::files_for;
use children::gpus::Described;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use storage::Findings;
use trust::Party;

const GB: f64 = 1e9;
/// A disk with less than this is full soon, and with less than that it is.
const LITTLE: u64 = 5_000_000_000;
const NONE: u64 = 200_000_000;
/// Memory of a worker besides its networks: libraries, images that are read ahead. Workers with small networks were seen to hold 0.26 to
/// 0.39 GB in all.
const WORKER_BYTES: u64 = 400_000_000;
/// NCCL's buffers between GPUs of one host.
const SHARED: u64 = 1_000_000_000;
/// Threads of a worker besides two for each core.
const THREADS: u64 = 32;
/// A store's clock may be this far from ours, and beyond that S3 refuses what is signed.
const SKEW: Duration = Duration::from_secs(5);
const SKEW_MAX: Duration = Duration::from_secs(300);
/// Certificates that end sooner are worth a word.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// What `worker doctor` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Worker {
    /// Its version.
    pub build: String,
    /// Its libtorch's.
    pub libtorch: String,
    /// The widest vectors that are used.
    pub isa: String,
    /// What came of looking for CUDA: `loaded`, `no driver`, `no library`, or why it failed.
    pub cuda: String,
    /// GPUs that this process may use.
    pub devices: u32,
    /// GPUs that libtorch sees.
    pub gpus: u32,
    /// NCCL's version and where it is.
    pub nccl: Option<String>,
    /// Why there is none.
    pub nccl_trouble: String,
    /// What the environment tells NCCL.
    pub nccl_environment: Vec<String>,
    /// Folder of what can be made or fetched again.
    pub cache: Option<PathBuf>,
}

/// How many processes may be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// By this user; `None` is without end.
    pub user: Option<u64>,
    /// In this container.
    pub group: Option<u64>,
    /// There are so many in it.
    pub taken: u64,
}

/// Where files are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that are free, if that is known.
    pub free: Option<u64>,
    /// Why nothing can be written.
    pub refusal: Option<String>,
}

pub fn worker(worker: &Result<Worker, String>, gpus: usize) -> Vec<Finding> {
    let worker = match worker {
        Ok(worker) => worker,
        Err(why) => {
            let remedy =
                "build it (cargo build --release), let it find libtorch (scripts/setup), or name it in GANFLEET_WORKER";
            return vec![Finding::bad("worker", why, remedy)];
        }
    };
    if worker.build != BUILD {
        let found = format!("it is version {}, this is {BUILD}", worker.build);
        return vec![Finding::bad("worker", found, "use the worker that came with this coordinator")];
    }
    let mut found =
        vec![Finding::good("worker", format!("{}, libtorch {}, {}", worker.build, worker.libtorch, worker.isa))];
    if gpus == 0 {
        found.push(Finding::good("GPUs", "none: workers train on the CPU"));
        return found;
    }
    found.push(match worker.cuda.as_str() {
        "loaded" if worker.gpus as usize >= gpus => Finding::good("GPUs", format!("{gpus}, and libtorch sees them")),
        "loaded" => {
            let text = format!("there are {gpus}, and libtorch sees {}", worker.gpus);
            Finding::bad("GPUs", text, "`nvidia-smi` says which one is unwell; CUDA_VISIBLE_DEVICES leaves it out")
        }
        "no library" => {
            let text = format!("there are {gpus}, and no libtorch_cuda.so");
            Finding::bad("GPUs", text, "scripts/setup --cuda; or CUDA_VISIBLE_DEVICES= to train on the CPU")
        }
        "no driver" => {
            let text = format!("there are {gpus}, and no driver is loaded");
            Finding::bad("GPUs", text, "install NVIDIA's driver; or CUDA_VISIBLE_DEVICES= to train on the CPU")
        }
        why => Finding::bad("GPUs", why, "the driver must be new enough for CUDA 13: `nvidia-smi` shows its version"),
    });
    if gpus > 1 {
        found.push(match &worker.nccl {
            Some(version) if worker.nccl_environment.is_empty() => Finding::good("NCCL", version),
            Some(version) => Finding::good("NCCL", format!("{version}; {}", worker.nccl_environment.join(", "))),
            None => Finding::note(
                "NCCL",
                format!("{}; GPUs would sum over TCP", worker.nccl_trouble),
                "scripts/setup --cuda fetches it; or put libnccl.so.2 where libraries are looked for",
            ),
        });
    }
    found
}

/// What a GPU is and where it is plugged in.
pub fn gpu(gpu: &Described) -> Finding {
    let mut text = format!("{}, {}", gpu.model, gpu.bus);
    if let Some(node) = gpu.numa {
        text += &format!(", near memory node {node}");
    }
    if let Some((used, most)) = gpu.lanes {
        let speed = gpu.speed.as_deref().unwrap_or("?");
        text += &format!(", PCIe x{used} of x{most} at {speed}");
        if used < most {
            let remedy = "whatever goes to it or comes from it takes longer: is the card seated well, and has the slot all lanes?";
            return Finding::note("GPU", text, remedy);
        }
    }
    Finding::good("GPU", text)
}

pub fn cores(workers: u32, gpus: usize, cores: u32) -> Finding {
    match gpus {
        0 if workers > cores => Finding::note(
            "cores",
            format!("{cores} for {workers} workers: they wait for one another"),
            format!("--workers {cores}"),
        ),
        _ => Finding::good("cores", format!("{cores} for {workers} worker{}", if workers == 1 { "" } else { "s" })),
    }
}

pub fn open_files(limit: Option<u64>, workers: u32) -> Finding {
    let needed = files_for(workers);
    match limit {
        Some(files) if files < needed => {
            let text = format!("a process may open {files}, and {workers} workers need {needed}");
            Finding::bad(
                "open files",
                text,
                "raise the hard limit: `ulimit -Hn`, or nofile in /etc/security/limits.conf",
            )
        }
        Some(files) => Finding::good("open files", format!("{files}")),
        None => Finding::good("open files", "without end"),
    }
}

pub fn processes(limits: &Processes, workers: u32, cores: u32) -> Finding {
    let needed = u64::from(workers) * (2 * u64::from(cores) + THREADS);
    let group = limits.group.map(|most| most.saturating_sub(limits.taken));
    match (limits.user, group) {
        (Some(user), _) if user < needed => {
            let text = format!("this user may have {user} threads, and {workers} workers may need {needed}");
            Finding::bad("threads", text, "raise `ulimit -u`, or nproc in /etc/security/limits.conf")
        }
        (_, Some(group)) if group < needed => {
            let text = format!("this container may have {group} more threads, and {workers} workers may need {needed}");
            Finding::bad("threads", text, "raise the container's limit of processes (pids.max)")
        }
        _ => Finding::good("threads", format!("{needed} may be needed, and can be had")),
    }
}

/// `need` is what one worker's networks need, in bytes, if that is known and is in this memory.
pub fn memory(available: u64, workers: u32, need: Option<u64>) -> Finding {
    let needed = (need.unwrap_or(0) + WORKER_BYTES) * u64::from(workers);
    let text = format!("{:.1} GB free", available as f64 / GB);
    if available < needed {
        let text = format!("{text}, and {workers} workers may need {:.1} GB", needed as f64 / GB);
        return Finding::bad(
            "memory",
            text,
            "fewer workers (--workers), or less at once: train.max_per_worker, a smaller minibatch or narrower networks",
        );
    }
    Finding::good("memory", text)
}

pub fn shared_memory(free: Option<u64>) -> Finding {
    match free {
        Some(free) if free < SHARED => Finding::bad(
            "/dev/shm",
            format!("{:.2} GB free, and NCCL shares its buffers there", free as f64 / GB),
            "give the container more: docker run --shm-size=8g; in Kubernetes an emptyDir with medium: Memory",
        ),
        Some(free) => Finding::good("/dev/shm", format!("{:.1} GB free", free as f64 / GB)),
        None => Finding::bad("/dev/shm", "is not there", "mount a tmpfs at /dev/shm"),
    }
}

/// `elsewhere` is what names another place.
pub fn folder(what: &'static str, path: &Path, disk: &Disk, elsewhere: &str) -> Finding {
    let path = path.display();
    match (&disk.refusal, disk.free) {
        (Some(why), _) => Finding::bad(
            what,
            format!("nothing can be written in {path}: {why}"),
            format!("make it writable and its disk less full, or name another place with {elsewhere}"),
        ),
        (None, Some(free)) if free < NONE => Finding::bad(
            what,
            format!("{path}: {:.2} GB free", free as f64 / GB),
            format!("make room, or name another place with {elsewhere}"),
        ),
        (None, Some(free)) if free < LITTLE => Finding::note(
            what,
            format!("{path}: {:.1} GB free", free as f64 / GB),
            format!("that may not be enough: make room, or name another place with {elsewhere}"),
        ),
        (None, Some(free)) => Finding::good(what, format!("{path}: {:.1} GB free", free as f64 / GB)),
        (None, None) => Finding::good(what, format!("{path}")),
    }
}

pub fn validity(party: Party, left: Duration) -> Finding {
    let text = format!("{}: good for {} days", party.name(), left.as_secs().div_ceil(24 * 3600));
    match left < SOON {
        true => Finding::note("credentials", text, crate::credentials::RENEW),
        false => Finding::good("credentials", text),
    }
}

/// What the store did between two moments of this machine's clock.
pub fn store(url: &str, findings: &Findings, began: SystemTime, ended: SystemTime) -> Vec<Finding> {
    let mut found =
        vec![match (findings.usable(), findings.create_only_honoured && findings.deleted && findings.ranged_get) {
            (true, true) => Finding::good("store", format!("{url} can be written, read, listed and deleted in")),
            (true, false) => Finding::note(
                "store",
                format!("{url} {findings}"),
                "checkpoints are kept all the same; see to it that one coordinator at a time works on a run",
            ),
            (false, _) => Finding::bad(
                "store",
                format!("{url} {findings}"),
                "checkpoints cannot be kept there: use another store, or ask its keeper for read and list permissions",
            ),
        }];
    if let Some(written) = findings.written_at {
        // what is stamped in whole seconds may seem to lie before it was written
        let behind = began.duration_since(written).unwrap_or_default();
        let ahead = written.duration_since(ended).unwrap_or_default();
        let apart = behind.max(ahead);
        let text = format!("{:.0} s from the store's", apart.as_secs_f64());
        let remedy = "set this machine's clock: let chrony or systemd-timesyncd keep it";
        found.push(match apart {
            apart if apart > SKEW_MAX => {
                Finding::bad("clock", format!("{text}: what is signed may be refused"), remedy)
            }
            apart if apart > SKEW => Finding::note("clock", text, remedy),
            _ => Finding::good("clock", "as the store's"),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health::{self, Bad, Good, Note};

    fn healths(found: &[Finding]) -> Vec<(&'static str, Health)> {
        for finding in found {
            assert_eq!(finding.health == Good, finding.remedy.is_none(), "what is not good has a remedy: {finding:?}");
        }
        found.iter().map(|finding| (finding.what, finding.health)).collect()
    }

    fn one(finding: Finding) -> Health {
        healths(&[finding])[0].1
    }

    #[test]
    fn a_worker_must_start_be_of_this_version_and_see_the_gpus() {
        let sound = Worker {
            build: BUILD.to_owned(),
            cuda: "no driver".to_owned(),
            nccl_trouble: "no libnccl.so".to_owned(),
            ..Worker::default()
        };
        let of = |worker: &Worker, gpus| healths(&super::worker(&Ok(worker.clone()), gpus));
        assert_eq!(of(&sound, 0), [("worker", Good), ("GPUs", Good)]);
        assert_eq!(of(&Worker { build: "0.0.1".to_owned(), ..sound.clone() }, 0), [("worker", Bad)]);
        assert_eq!(healths(&super::worker(&Err("libtorch_cpu.so: not found".to_owned()), 0)), [("worker", Bad)]);
        for (cuda, seen, expected) in [
            ("loaded", 2, Good),
            ("loaded", 1, Bad),
            ("no library", 0, Bad),
            ("no driver", 0, Bad),
            ("undefined symbol", 0, Bad),
        ] {
            let worker = Worker { cuda: cuda.to_owned(), gpus: seen, ..sound.clone() };
            assert_eq!(of(&worker, 2), [("worker", Good), ("GPUs", expected), ("NCCL", Note)], "{cuda}");
            assert_eq!(of(&worker, 1).len(), 2, "one GPU sums with nobody");
        }
        let whole = Worker { cuda: "loaded".to_owned(), gpus: 2, nccl: Some("2.28".to_owned()), ..sound };
        assert_eq!(of(&whole, 2)[2], ("NCCL", Good));
    }

    #[test]
    fn a_gpu_with_fewer_lanes_than_it_could_have_is_worth_a_word() {
        let with = |lanes| Described {
            model: "NVIDIA H100".to_owned(),
            bus: "0000:17:00.0".to_owned(),
            numa: Some(1),
            lanes,
            speed: Some("32.0 GT/s".to_owned()),
        };
        let whole = gpu(&with(Some((16, 16))));
        assert_eq!(whole.found, "NVIDIA H100, 0000:17:00.0, near memory node 1, PCIe x16 of x16 at 32.0 GT/s");
        assert_eq!((one(whole), one(gpu(&with(None))), one(gpu(&with(Some((8, 16)))))), (Good, Good, Note));
    }

    #[test]
    fn limits_are_held_against_what_workers_need() {
        assert_eq!((one(open_files(Some(256), 8)), one(open_files(Some(128), 8))), (Good, Bad));
        assert_eq!(one(open_files(None, 4096)), Good);
        let of = |user, group| one(processes(&Processes { user, group, taken: 10 }, 2, 4));
        assert_eq!((of(None, None), of(Some(80), None), of(Some(79), None)), (Good, Good, Bad));
        assert_eq!((of(None, Some(90)), of(None, Some(89))), (Good, Bad));
        assert_eq!((one(cores(4, 0, 2)), one(cores(2, 0, 2)), one(cores(8, 8, 2))), (Note, Good, Good));
    }

    #[test]
    fn memory_and_disks_are_held_against_what_a_run_needs() {
        assert_eq!(one(memory(2_000_000_000, 2, None)), Good);
        assert_eq!(one(memory(2_000_000_000, 2, Some(700_000_000))), Bad);
        assert_eq!(
            (one(shared_memory(Some(64 << 20))), one(shared_memory(None)), one(shared_memory(Some(8 << 30)))),
            (Bad, Bad, Good)
        );
        let of = |free, refusal: Option<&str>| {
            one(folder("cache", Path::new("/c"), &Disk { free, refusal: refusal.map(str::to_owned) }, "GANFLEET_CACHE"))
        };
        assert_eq!((of(Some(100 << 30), None), of(Some(1 << 30), None), of(Some(1 << 20), None)), (Good, Note, Bad));
        assert_eq!((of(Some(100 << 30), Some("read-only")), of(None, None)), (Bad, Good));
        let days = |days: u64| one(validity(Party::Worker, Duration::from_secs(days * 24 * 3600)));
        assert_eq!((days(300), days(13)), (Good, Note));
    }

    #[test]
    fn a_store_is_good_as_far_as_it_honours_and_its_clock_is_ours() {
        let now = SystemTime::now();
        let sound = Findings {
            create_only_honoured: true,
            read_back: true,
            ranged_get: true,
            listed: true,
            deleted: true,
            written_at: Some(now),
        };
        let of = |findings: Findings| healths(&store("s3://b", &findings, now, now + Duration::from_secs(1)));
        assert_eq!(of(sound), [("store", Good), ("clock", Good)]);
        assert_eq!(of(Findings { create_only_honoured: false, ..sound })[0], ("store", Note));
        assert_eq!(of(Findings { listed: false, ..sound })[0], ("store", Bad));
        assert_eq!(of(Findings { written_at: None, ..sound }), [("store", Good)]);
        for (seconds, expected) in [(4, Good), (20, Note), (900, Bad)] {
            let apart = Duration::from_secs(seconds);
            for written in [now - apart, now + Duration::from_secs(1) + apart] {
                assert_eq!(of(Findings { written_at: Some(written), ..sound })[1], ("clock", expected), "{seconds}");
            }
        }
    }
}
