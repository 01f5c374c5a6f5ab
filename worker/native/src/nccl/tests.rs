use super::*;
use crate::DeviceMemory;
use std::path::Path;
use std::process::Command;
use tch::Device;

#[test]
fn a_library_that_is_nowhere_or_broken_says_what_to_do() {
    let folder = std::env::temp_dir().join(format!("ganfleet-nccl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let found = Library::load(&[folder.join("nowhere")]);
    match &found {
        Err(error @ NcclError::NotFound { .. }) => {
            let text = error.to_string();
            assert!(text.contains("scripts/setup --cuda") && text.contains("nowhere"), "{text}");
        }
        // this machine has one: nothing to see
        Ok(library) => println!("NCCL {} at {}", library.version(), library.found().display()),
        Err(other) => panic!("{other}"),
    }
    if found.is_err() {
        std::fs::write(folder.join("libnccl.so.2"), "not a library").unwrap();
        let error = Library::load(std::slice::from_ref(&folder)).unwrap_err();
        assert!(
            matches!(&error, NcclError::Unusable { why, .. } if why.contains("file too short") || why.contains("ELF")),
            "{error}"
        );
        assert!(error.to_string().contains("scripts/setup --cuda"), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn where_there_is_a_library_its_functions_are_what_they_are_called_as() {
    let Ok(library) = Library::load(&[]) else {
        println!("skipped: no libnccl.so.2");
        return;
    };
    let (one, other) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    assert_ne!(one, other);
    if !tch::Cuda::is_available() {
        let error = library.init(one, 1, 0).unwrap_err().to_string();
        assert!(error.contains("cannot join the group: ") && error.contains("NCCL_DEBUG"), "{error}");
    }
}

#[test]
fn without_a_gpu_its_streams_and_memory_are_errors() {
    if tch::Cuda::is_available() {
        return;
    }
    let error = Stream::new(0).unwrap_err();
    assert!(!error.message.is_empty(), "{error}");
    let error = DeviceMemory::of(Device::Cuda(0)).unwrap_err();
    assert!(!error.message.is_empty(), "{error}");
    assert_eq!(DeviceMemory::of(Device::Cpu).unwrap(), None);
}

/// The functions of NCCL that are called, as a C compiler understands its header; they refuse what they should not be given.
const FAKE: &str = r#"
#include <stddef.h>
#include <string.h>
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { size_t size; unsigned magic, version; int blocking, cga, min, max; const char* net; } config;
static int state;
int ncclGetVersion(int* v) { *v = VERSION; return 0; }
int ncclGetUniqueId(ncclUniqueId* id) { memset(id->internal, 7, 128); return 0; }
int ncclCommInitRankConfig(void** comm, int world, ncclUniqueId id, int rank, config* c) {
  if (world != 3 || rank != 2 || id.internal[0] != 7 || id.internal[127] != 7) return 4;
  if (c->size != sizeof(config) || c->magic != 0xcafebeef || c->version != 21700 || c->blocking != 0 || c->net) return 5;
  *comm = &state;
  state = 7;
  return 7;
}
int ncclCommGetAsyncError(void* comm, int* answer) { if (comm != &state) return 4; *answer = state; state = 0; return 0; }
int ncclAllReduce(const void* in, void* out, size_t n, int type, int op, void* comm, void* stream) {
  if (in != out || (type != 7 && type != 9) || op != 0 || comm != &state || stream != NULL) return 4;
  if (type == 9) ((short*)out)[0] = 9;
  else for (size_t i = 0; i < n; ++i) ((float*)out)[i] *= 3;
  state = n == 1 ? 6 : 7;
  return 7;
}
int ncclCommAbort(void* comm) { return comm != &state; }
#ifndef OLD
int ncclCommDestroy(void* comm) { return comm != &state; }
#endif
const char* ncclGetErrorString(int code) { return code == 6 ? "remote\nerror" : "bad argument"; }
const char* ncclGetLastError(void* comm) { return 0; }
"#;

/// Compiles [`FAKE`] into a library in `folder`.
fn fake(folder: &Path, options: &[&str]) {
    std::fs::create_dir_all(folder).unwrap();
    let source = folder.join("fake.c");
    std::fs::write(&source, FAKE).unwrap();
    let library = folder.join("libnccl.so.2");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(library).args(options).arg(source);
    assert!(compiler.status().unwrap().success());
}

#[test]
fn functions_are_called_as_c_declares_them() {
    let folder = std::env::temp_dir().join(format!("ganfleet-nccl-fake-{}", std::process::id()));
    let load = |name: &str, options: &[&str]| {
        fake(&folder.join(name), options);
        Library::load(&[folder.join(name)])
    };
    let library = load("whole", &["-DVERSION=22809"]).unwrap();
    if library.found().parent() == Some(&folder.join("whole")) {
        let id = library.unique_id().unwrap();
        let handle = library.init(id, 3, 2).unwrap();
        assert!(library.init(id, 2, 2).unwrap_err().to_string().contains("cannot join the group: bad argument; "));
        let mut numbers = [1f32, 2.0];
        let pointer = numbers.as_mut_ptr().cast();
        // SAFETY: the handle is live until `end`, and the fake works on host memory.
        unsafe {
            assert!(!library.state(handle).unwrap(), "in progress");
            assert!(library.state(handle).unwrap());
            let single = |count| (pointer, count, Datatype::F32);
            library.sum(handle, single(2), std::ptr::null_mut()).unwrap();
            assert_eq!(numbers, [3.0, 6.0]);
            let mut short = [0u16; 2];
            library.sum(handle, (short.as_mut_ptr().cast(), 2, Datatype::Bf16), std::ptr::null_mut()).unwrap();
            assert_eq!(short, [9, 0]);
            library.sum(handle, single(1), std::ptr::null_mut()).unwrap();
            let error = library.state(handle).unwrap_err().to_string();
            assert!(error.contains("cannot sum over the group: remote error; "), "{error}");
            library.end(handle, true);
        }
        let error = load("ancient", &["-DVERSION=21605"]).unwrap_err().to_string();
        assert!(error.contains("version 21605; 2.17 or newer"), "{error}");
        let error = load("partial", &["-DVERSION=22809", "-DOLD"]).unwrap_err().to_string();
        assert!(error.contains("ncclCommDestroy") && error.contains("scripts/setup --cuda"), "{error}");
    } else {
        println!("this process has NCCL already, at {}", library.found().display());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
