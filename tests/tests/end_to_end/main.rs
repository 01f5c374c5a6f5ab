//! The product as its users meet it: real coordinators and workers on tiny runs, judged by exit codes, events and files.

mod bad_inputs;
mod bitwise;
mod chaos;
mod damage;
mod deaths;
mod doctor;
mod elsewhere;
mod families;
mod finished;
mod gpu_check;
mod health;
mod kubernetes;
mod nodes;
mod object_store;
mod records;
mod weights;
