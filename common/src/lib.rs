//! The words every part of Ganfleet shares: ids, configuration, growth schedules, seeds, checkpoint manifests, metric events.
//!
//! Pure data and pure functions. This crate must never know a tensor library, a socket, a clock or a disk: what is here
//! can be called from the coordinator, from a worker and from a simulator, and gives the same answer everywhere.

pub mod chaos;
pub mod checkpoint;
pub mod config;
pub mod exit;
pub mod families;
pub mod growth;
pub mod health;
pub mod ids;
pub mod judge;
pub mod ledger;
pub mod memory;
pub mod metrics;
pub mod schedule;
pub mod seed;
