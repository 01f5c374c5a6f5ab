//! One binary for laptop and cluster: libtorch's CUDA half is opened at run time, when a GPU and the library are there.
//!
//! It must happen before the first call into libtorch, which looks its CUDA hooks up once and remembers the answer.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static LOADED: OnceLock<Library> = OnceLock::new();

/// What came of looking for a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cuda {
    /// The library is loaded; devices can be used.
    Loaded(PathBuf),
    /// No NVIDIA driver on this machine.
    NoDriver,
    /// A driver, but no libtorch_cuda.so beside libtorch: `scripts/setup --cuda` fetches it.
    NoLibrary,
    /// The library is there and would not load.
    Failed(String),
}

/// Opens `libtorch_cuda.so`, looked for in `$LIBTORCH_CUDA` and in `folders`. Call it first in `main`.
#[must_use]
pub fn load(folders: &[PathBuf]) -> Cuda {
    if !Path::new("/dev/nvidiactl").exists() {
        return Cuda::NoDriver;
    }
    let named = std::env::var_os("LIBTORCH_CUDA").map(PathBuf::from);
    let found = named.iter().chain(folders).map(|f| f.join("libtorch_cuda.so")).find_map(|p| p.canonicalize().ok());
    let Some(path) = found else { return Cuda::NoLibrary };
    // SAFETY: loading runs the library's static initialisers, which register kernels with the libtorch of the same
    // version that is already linked in; that is what they are made for. It is never unloaded.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // kept for the life of the process: its kernels are registered
            let _first = LOADED.set(library);
            Cuda::Loaded(path)
        }
        Err(error) => Cuda::Failed(reason(&error)),
    }
}

/// What the loader said: libloading itself says only which of its functions failed.
pub(crate) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
