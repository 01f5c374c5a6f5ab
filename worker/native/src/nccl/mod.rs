//! Sums of buffers between GPUs, by NVIDIA's NCCL: compiled always, loaded when a worker on a GPU asks for it.
//!
//! Nothing here waits. A group is joined, sums are asked for, and [`Nccl::poll`] says how many are still to be done; who
//! waits, for how long, and what ends the wait is the caller's. Refuses to choose ranks or to carry its own identity about.

mod library;
mod queue;

pub use library::{ID_BYTES, Library, UniqueId};

use crate::device::{Mark, Stream};
use crate::{DeviceBuffer, NativeError};
use library::{Datatype, Handle};
use queue::{Port, Queue};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tch::Kind;

/// Once a group is dropped, its end is waited for at most for so long; it goes on behind the scenes.
const ENDING: Duration = Duration::from_secs(2);

/// Why GPUs cannot sum.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// The library is nowhere.
    #[error(
        "NCCL (libnccl.so.2) is not on this machine, neither in {} nor where the system looks: run scripts/setup --cuda, \
         or install NVIDIA's package libnccl2; to train on CPUs instead, set CUDA_VISIBLE_DEVICES= (empty)",
        list(.folders)
    )]
    NotFound {
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// The library is there and cannot be used.
    #[error("NCCL at {} cannot be used: {why}; scripts/setup --cuda brings one that can", .path.display())]
    Unusable {
        /// Which one.
        path: PathBuf,
        /// What the loader said, or what is wrong with it.
        why: String,
    },
    /// NCCL refused.
    #[error("NCCL cannot {doing}: {what}; with NCCL_DEBUG=INFO in the environment the workers' log says more")]
    Failed {
        /// What was asked for, to fit "cannot ...".
        doing: &'static str,
        /// NCCL's own words.
        what: String,
    },
    /// libtorch refused streams or events.
    #[error(transparent)]
    Device(#[from] NativeError),
}

fn list(folders: &[PathBuf]) -> String {
    let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if names.is_empty() { "any given folder".to_owned() } else { names.join(", ") }
}

/// A member of a group of GPUs.
pub struct Nccl(Queue<Group>);

impl Nccl {
    /// Begins to join, on GPU number `gpu` of this process; every member makes this call. That all have come is seen by
    /// [`Nccl::poll`].
    ///
    /// # Errors
    /// When NCCL or the GPU refuses at once.
    pub fn join(library: &Library, id: UniqueId, world: u32, rank: u32, gpu: usize) -> Result<Self, NcclError> {
        // first: it makes the GPU this thread's current one, which is where NCCL works
        let stream = Stream::new(gpu)?;
        let handle = library.init(id, world, rank)?;
        Ok(Self(Queue::new(Group { library: library.clone(), handle: Some(handle), stream, busy: true, ended: None })))
    }

    /// Asks for the sum of `buffer` over the group, in place. All members ask for sums of the same lengths in the same order.
    pub fn sum(&mut self, buffer: DeviceBuffer) {
        self.0.push(buffer);
    }

    /// Goes on as far as possible without waiting: how many sums are still to be done, joining counted as one. What is done is
    /// done on the device, for every queue.
    ///
    /// # Errors
    /// When NCCL or the GPU has failed; the group is then of no use but to be aborted.
    pub fn poll(&mut self) -> Result<usize, NcclError> {
        let left = self.0.poll();
        self.0.port.busy = !matches!(left, Ok(0));
        left
    }

    /// Ends the group, whatever is under way, and returns at once. Later calls fail.
    pub fn abort(&mut self) {
        self.0.port.end(false);
    }
}

/// The group itself, with the stream in which it sums.
struct Group {
    library: Library,
    handle: Option<Handle>,
    stream: Stream,
    /// Something is under way: it cannot be left in good order.
    busy: bool,
    /// Closed when NCCL has let go.
    ended: Option<Receiver<()>>,
}

// SAFETY: NCCL's handle belongs to no thread; calls come one at a time, which ownership sees to.
unsafe impl Send for Group {}

impl Group {
    fn live(&self) -> Result<Handle, NcclError> {
        self.handle.ok_or(NcclError::Failed { doing: "sum over the group", what: "it was aborted here".to_owned() })
    }

    /// On a thread of its own: how long NCCL takes to let go is not known, and may depend on a peer.
    fn end(&mut self, in_order: bool) {
        let Some(handle) = self.handle.take() else { return };
        let (done, ended) = channel::<()>();
        let last = Last(self.library.clone(), handle);
        std::thread::spawn(move || {
            last.end(in_order);
            drop(done);
        });
        self.ended = Some(ended);
    }
}

/// A handle on its way to its end.
struct Last(Library, Handle);

// SAFETY: as for Group.
unsafe impl Send for Last {}

impl Last {
    fn end(self, in_order: bool) {
        // SAFETY: the handle was taken out of its group: nobody else has it, and it is used no more.
        unsafe { self.0.end(self.1, in_order) };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end(!self.busy);
        if let Some(ended) = &self.ended {
            let _in_time = ended.recv_timeout(ENDING);
        }
    }
}

impl Port for Group {
    type Mark = Mark;

    fn settled(&mut self) -> Result<bool, NcclError> {
        let handle = self.live()?;
        // SAFETY: a handle of `init` that was not ended: `end` takes it away.
        unsafe { self.library.state(handle) }
    }

    fn start(&mut self, buffer: &DeviceBuffer) -> Result<(), NcclError> {
        let handle = self.live()?;
        self.stream.take(buffer)?;
        let tensor = buffer.tensor();
        let of = if tensor.kind() == Kind::BFloat16 { Datatype::Bf16 } else { Datatype::F32 };
        let numbers = (tensor.data_ptr(), tensor.numel(), of);
        // SAFETY: the handle as in `settled`. The buffer is contiguous memory of so many of these; the queue keeps it until it is
        // summed, and where the group fails, libtorch's allocator does not use it anew before the stream is through
        // (`Stream::take`).
        unsafe { self.library.sum(handle, numbers, self.stream.native()?) }
    }

    fn mark(&mut self) -> Result<Mark, NcclError> {
        Ok(self.stream.mark()?)
    }

    fn passed(&mut self, mark: &Mark) -> Result<bool, NcclError> {
        Ok(mark.passed()?)
    }
}

#[cfg(test)]
mod tests;
