//! Whole preparations, from files to pixels.

mod bad_inputs;
mod fluent;
mod prepare;
mod support;
