//! This machine, as far as results depend on it: threads, instruction set, libtorch, device; and where libraries lie.

use common::config::resolved::RunConfig;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use tch::Device;

/// Version of libtorch that this binary is linked with.
pub const LIBTORCH: &str = "2.11.0";

/// Threads of this worker: as configured, else this machine's cores shared by the workers on it.
#[must_use]
pub fn threads(config: &RunConfig, peers: &[SocketAddr], rank: u32) -> u32 {
    if config.train.threads > 0 {
        return config.train.threads;
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let here = peers.get(rank as usize).map(SocketAddr::ip);
    let neighbours = peers.iter().filter(|p| Some(p.ip()) == here).count().max(1) as u32;
    (cores / neighbours).max(1)
}

/// Where what can be made or fetched again lies: `$GANFLEET_CACHE`, else `ganfleet` in the user's cache folder; `None` where neither is
/// known.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("GANFLEET_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("ganfleet")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/ganfleet")))
}

/// Where libraries that are loaded at run time may lie, libtorch's CUDA half and NCCL: beside the binary in a package, or in the
/// set-up's view.
#[must_use]
pub fn library_folders() -> Vec<PathBuf> {
    let packed = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("../lib")));
    let view = option_env!("DEP_GANFLEET_NATIVE_LIB").map(PathBuf::from);
    let with_cuda = |(lib, cuda): (PathBuf, &str)| [lib.join(cuda), lib];
    packed.map(|lib| (lib, "cuda")).into_iter().chain(view.map(|lib| (lib, "../cuda"))).flat_map(with_cuda).collect()
}

/// What a checkpoint records, and a resume compares.
#[must_use]
pub fn facts(threads: u32, device: Device) -> BTreeMap<String, String> {
    let facts = [
        ("threads", threads.to_string()),
        ("isa", isa().to_owned()),
        ("libtorch", LIBTORCH.to_owned()),
        ("device", format!("{device:?}").to_lowercase()),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The widest vectors that libtorch's kernels use here.
pub(crate) fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            "avx512"
        } else if std::arch::is_x86_feature_detected!("avx2") {
            "avx2"
        } else {
            "sse2"
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}

/// Peak resident memory of this process, MiB; 0 where the system does not say.
#[must_use]
pub fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
