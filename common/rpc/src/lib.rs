//! The gRPC wire between coordinator, workers and operators: what `proto/control.proto` generates, and the roster within it.
#![allow(missing_docs, clippy::all, clippy::pedantic)] // generated; the documentation is in the .proto

use prost::bytes::Bytes;
use prost::{DecodeError, Message};

tonic::include_proto!("ganfleet.v1");

/// Version of the protocol that this build speaks, sent in `Join.protocol`.
pub const PROTOCOL: u32 = 3;

impl Roster {
    /// As [`Assign::roster`] carries it: a copy costs nothing.
    pub fn seal(self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// What [`Assign::roster`] carries.
    pub fn open(sealed: Bytes) -> Result<Self, DecodeError> {
        Self::decode(sealed)
    }
}
