//! `libnccl.so.2` as it is found: nine functions of its interface, and errors that say what to do.
//!
//! Declared here and not taken from a binding: see ADR 0010. Refuses to know what is summed or when.

use super::NcclError;
use crate::cuda::reason;
use libloading::os::unix::{Library as Object, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;

/// Its name wherever it comes from: the wheels, NVIDIA's packages and distributions all number the interface 2.
const NAME: &str = "libnccl.so.2";
/// The first version that takes [`Config`].
const OLDEST: u32 = 21_700;
/// Of glibc: take a library only if this process has it already.
const RTLD_NOLOAD: c_int = 4;
/// Of glibc: never unload it. NCCL has threads of its own, which run in its code until the process ends.
const RTLD_NODELETE: c_int = 0x1000;

/// Bytes of [`UniqueId`].
pub const ID_BYTES: usize = 128;

/// What the members of one group know of each other: made by one, told to all.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId(pub [u8; ID_BYTES]);

/// `ncclResult_t`.
pub(super) type Answer = c_int;
pub(super) const SUCCESS: Answer = 0;
pub(super) const IN_PROGRESS: Answer = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// `ncclDataType_t`: `ncclFloat32`, `ncclBfloat16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Datatype {
    F32 = 7,
    Bf16 = 9,
}

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;

/// `ncclConfig_t` as it was in 2.17: newer versions take it, by its size and version, and fill the rest in.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
}

impl Config {
    /// Nothing asked for but that calls return at once.
    fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
        }
    }
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> Answer;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> Answer;
type Init = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Answer;
type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Answer;
type GetAsyncError = unsafe extern "C" fn(Handle, *mut Answer) -> Answer;
type End = unsafe extern "C" fn(Handle) -> Answer;
type ErrorString = unsafe extern "C" fn(Answer) -> *const c_char;
type LastError = unsafe extern "C" fn(Handle) -> *const c_char;

/// The library, loaded for the life of the process.
#[derive(Clone, Debug)]
pub struct Library {
    version: u32,
    found: PathBuf,
    calls: Calls,
}

#[derive(Clone, Copy, Debug)]
struct Calls {
    get_unique_id: GetUniqueId,
    init: Init,
    all_reduce: AllReduce,
    get_async_error: GetAsyncError,
    abort: End,
    destroy: End,
    error_string: ErrorString,
    last_error: LastError,
}

impl Library {
    /// The one that libtorch's CUDA half has brought along; else the first in `folders`; else where the system looks.
    ///
    /// # Errors
    /// [`NcclError::NotFound`], and [`NcclError::Unusable`] for one that would not load, is too old or lacks a function.
    pub fn load(folders: &[PathBuf]) -> Result<Self, NcclError> {
        if let Ok(object) = open(NAME.as_ref(), RTLD_NOLOAD) {
            return Self::of(&object, NAME.into());
        }
        if let Some(path) = folders.iter().map(|folder| folder.join(NAME)).find(|path| path.exists()) {
            let object = open(path.as_os_str(), 0)
                .map_err(|error| NcclError::Unusable { path: path.clone(), why: reason(&error) })?;
            return Self::of(&object, path);
        }
        match open(NAME.as_ref(), 0) {
            Ok(object) => Self::of(&object, NAME.into()),
            Err(_) => Err(NcclError::NotFound { folders: folders.to_vec() }),
        }
    }

    fn of(object: &Object, found: PathBuf) -> Result<Self, NcclError> {
        let unusable = |why: String| NcclError::Unusable { path: found.clone(), why };
        let missing = |error: libloading::Error| unusable(reason(&error));
        // SAFETY: each symbol is taken with the type that nccl.h gives it in all versions from OLDEST on, and the
        // object is never unloaded.
        let (get_version, calls) = unsafe {
            let get_version = *object.get::<GetVersion>("ncclGetVersion").map_err(missing)?;
            let calls = Calls {
                get_unique_id: *object.get("ncclGetUniqueId").map_err(missing)?,
                init: *object.get("ncclCommInitRankConfig").map_err(missing)?,
                all_reduce: *object.get("ncclAllReduce").map_err(missing)?,
                get_async_error: *object.get("ncclCommGetAsyncError").map_err(missing)?,
                abort: *object.get("ncclCommAbort").map_err(missing)?,
                destroy: *object.get("ncclCommDestroy").map_err(missing)?,
                error_string: *object.get("ncclGetErrorString").map_err(missing)?,
                last_error: *object.get("ncclGetLastError").map_err(missing)?,
            };
            (get_version, calls)
        };
        let mut version = 0;
        // SAFETY: writes one int.
        let answer = unsafe { get_version(&mut version) };
        let version = version.unsigned_abs();
        if answer != SUCCESS || version < OLDEST {
            let (major, minor) = (OLDEST / 10_000, OLDEST / 100 % 100);
            return Err(unusable(format!("it is version {version}; {major}.{minor} or newer is needed")));
        }
        Ok(Self { version, found, calls })
    }

    /// As NCCL counts: 22809 is 2.28.9.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where it was found; a bare name where the system or libtorch found it.
    #[must_use]
    pub fn found(&self) -> &std::path::Path {
        &self.found
    }

    /// A new group's identity, which includes an address of this machine: the maker listens there until all have come.
    ///
    /// # Errors
    /// [`NcclError::Failed`], as where no network interface can be used.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: writes the 128 bytes of `id`.
        let answer = unsafe { (self.calls.get_unique_id)(&mut id) };
        self.judge("make the identity of a group", answer)?;
        Ok(id)
    }

    /// Begins to join; the handle is to be asked for its [`Library::state`].
    pub(super) fn init(&self, id: UniqueId, world: u32, rank: u32) -> Result<Handle, NcclError> {
        let (mut handle, mut config) = (std::ptr::null_mut(), Config::non_blocking());
        // SAFETY: `handle` and `config` outlive the call, which copies the configuration; the id is passed by value.
        let answer = unsafe { (self.calls.init)(&mut handle, world as c_int, id, rank as c_int, &mut config) };
        self.judge("join the group", answer).map(|_| handle)
    }

    /// Whether `handle` has taken everything that was asked of it; false while it still works on that.
    ///
    /// # Safety
    /// `handle` comes from [`Library::init`] and was not ended.
    pub(super) unsafe fn state(&self, handle: Handle) -> Result<bool, NcclError> {
        let mut state = SUCCESS;
        // SAFETY: the handle is live, as the caller says; writes one int.
        let answer = unsafe { (self.calls.get_async_error)(handle, &mut state) };
        self.judge("ask for the group's state", answer)?;
        self.judge("sum over the group", state)
    }

    /// Asks for the sum of `count` numbers of a kind at `data`, in place, on `stream`.
    ///
    /// # Safety
    /// As for [`Library::state`]; `data` is device memory of so many of them that stays until the stream has done the sum.
    pub(super) unsafe fn sum(
        &self,
        handle: Handle,
        (data, count, of): (*mut c_void, usize, Datatype),
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let answer = unsafe { (self.calls.all_reduce)(data, data, count, of as c_int, SUM, handle, stream) };
        self.judge("sum over the group", answer).map(drop)
    }

    /// Frees `handle`: in good order, or whatever is under way. May take long, and more where a peer is gone.
    ///
    /// # Safety
    /// As for [`Library::state`]; the handle is dead afterwards.
    pub(super) unsafe fn end(&self, handle: Handle, in_order: bool) {
        let end = if in_order { self.calls.destroy } else { self.calls.abort };
        // SAFETY: as the caller says. What it answers changes nothing: the group is over.
        let _over = unsafe { end(handle) };
    }

    /// `Ok(false)` for what is in progress.
    fn judge(&self, doing: &'static str, answer: Answer) -> Result<bool, NcclError> {
        match answer {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            _ => {
                // SAFETY: both return strings that live as long as the library, or null.
                let (what, more) =
                    unsafe { ((self.calls.error_string)(answer), (self.calls.last_error)(std::ptr::null_mut())) };
                let what = [what, more].map(text).into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ");
                Err(NcclError::Failed { doing, what })
            }
        }
    }
}

fn open(name: &OsStr, more: c_int) -> Result<Object, libloading::Error> {
    // SAFETY: runs NCCL's static initialisers, which touch nothing of ours. It is never unloaded.
    unsafe { Object::open(Some(name), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | more) }
}

/// A C string that may be null, on one line.
fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's strings end with a zero and are not changed while this thread reads them.
    let text = unsafe { CStr::from_ptr(string) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
