//! Experiment files: one TOML file is one run.
//!
//! Two stages. [`raw`] is the file as typed, with every key optional; [`resolved`] is a run's configuration once every
//! question is settled, which travels to workers and into checkpoints. [`resolve()`] leads from one to the other, through
//! layers: built-in default < the family's own < preset < file < environment < `--set`. Every value keeps its [`Origin`],
//! and every mistake is reported with file, line and key before anything starts.
//!
//! Pure: text of the file, environment and working directory are arguments. Nothing here opens a file.

mod convert;
mod diff;
mod duration;
mod error;
mod layers;
mod names;
mod paths;
mod plan;
mod preset;
pub mod raw;
mod render;
mod resolve;
pub mod resolved;
mod schema;
mod tree;

#[cfg(test)]
mod tests;

pub use diff::{Change, Effect, diff};
pub use error::{ConfigError, Origin, Problem};
pub use layers::{Base, DEFAULTS, ENV_PREFIX, Layers};
pub use plan::{Phase, Plan, plan};
pub use resolve::{Resolved, resolve};
pub use schema::{json_schema, keys};
