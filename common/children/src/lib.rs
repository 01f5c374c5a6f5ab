//! Processes that another one of ours has started: a coordinator's workers, a node's workers.
//!
//! | module | holds |
//! |---|---|
//! | [`supervisor`] | starting, watching, signalling, adopting them |
//! | [`outputs`] | what they write: files from which it is read, so that nothing is lost while nobody reads |
//! | [`lines`] | what a line is worth; no control character passes |
//! | [`gpus`] | the GPUs of this machine, of which each place has one |
//!
//! It decides nothing: when to start, end or replace one is its owner's.

pub mod gpus;
pub mod lines;
pub mod outputs;
pub mod supervisor;
