//! One training process: tensors, gradients, data, and the other ranks.
pub mod checkpoint;
pub mod communicator;
pub mod models;
pub mod optimizer;
pub mod parameters;
pub mod trainer;
