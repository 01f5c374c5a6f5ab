//! Checkpoints from the worker's side.
pub mod snapshot;
