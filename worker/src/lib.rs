//! One training process: tensors, gradients, data, and the other ranks. A newcomer reads, in this order:
//! [`run`] (a run from start to end), [`trainer`] (one step), [`models::progan`] (a family), [`checkpoint`] (the state).
//!
//! Refuses to know which machine it is on, who else trains (the coordinator says so), and how objects are stored.

pub mod address;
pub mod alike;
mod chaos;
pub mod checkpoint;
pub mod communicator;
pub mod doctor;
pub mod environment;
pub mod evaluate;
pub mod examined;
pub mod export;
pub mod failure;
pub mod generate;
pub mod gpus;
pub mod images;
pub mod import;
pub mod input;
pub mod join;
mod limits;
pub mod models;
pub mod node;
pub mod optimizer;
pub mod outputs;
pub mod parameters;
pub mod pictures;
pub mod prepare;
pub mod ranks;
pub mod rehearse;
pub mod run;
pub mod sample;
pub mod sync;
pub mod trained;
pub mod trainer;
pub mod translate;
pub mod weights;
