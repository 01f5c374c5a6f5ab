//! The gRPC wire between coordinator, workers and operators: what `proto/control.proto` generates, and nothing else.
#![allow(missing_docs, clippy::all, clippy::pedantic)] // generated; the documentation is in the .proto

tonic::include_proto!("ganfleet.v1");

/// Version of the protocol that this build speaks, sent in `Join.protocol`.
pub const PROTOCOL: u32 = 2;
