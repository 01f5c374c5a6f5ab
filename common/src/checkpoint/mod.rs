//! Checkpoints as data: what one is made of, how its parts are shared out, which ones are kept.
//!
//! A checkpoint is a [`Manifest`] and the blobs that it names. The manifest is written last, by one create-only put, and
//! nothing else makes a checkpoint visible. Blobs are named by the BLAKE3 digest of their bytes, so an unchanged part keeps
//! its name from one checkpoint to the next. This module decides and describes; it never touches a store or a clock
//! (times and ages are arguments), and nothing in it panics on a manifest from outside.

mod deal;
mod digest;
mod key;
mod manifest;
mod retention;
mod state;

pub use deal::deal;
pub use digest::{BadDigest, Digest};
pub use key::{BadKey, ManifestKey};
pub use manifest::{
    BlobRef, Dataset, Dtype, FORMAT, MAX_MANIFEST_BYTES, MAX_PARTS, MAX_TENSORS, Manifest, ManifestError, Part,
    TensorRef, TrainerCursor, is_run_name,
};
pub use retention::{BlobEntry, Candidate, Decision, DeleteReason, KeepReason, Policy, Verdict, retain, sweepable};
