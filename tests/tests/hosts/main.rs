//! A run over several hosts whose network fails: every host a network namespace, the coordinator on one, a worker on each
//! of the others. What a fault cost is printed; the run ends in the bits of an undisturbed one.
//!
//! One test at a time, so that what is measured is not the neighbour's load.

mod bad_links;
mod cuts;
mod doors;
mod examined;
mod scene;
mod trust;
