//! What stands before the bytes of every call on every connection: which call they belong to.
//!
//! Ranks that have come to make different calls find out here, before a number of one call is added to another's.

use std::fmt;

/// Bytes of a header on the wire.
pub(super) const HEADER_BYTES: usize = 32;

/// Kinds of calls. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Form = 1,
    Barrier,
    SumF32,
    SumF64,
    GatherLengths,
    GatherBytes,
    Broadcast,
    TreePlan,
    TreeParts,
    TreeSums,
    Echo,
    SumBf16,
}

/// What all ranks have to agree on about a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) kind: Kind,
    /// Source of a broadcast; 0 for other calls.
    pub(super) root: u32,
    /// Bytes that the call is about, where all ranks bring the same number; 0 for other calls.
    pub(super) size: usize,
}

impl Call {
    pub(super) fn new(kind: Kind, size: usize) -> Self {
        Self { kind, root: 0, size }
    }

    /// The header of the `number`th call of a communicator, before `payload` bytes.
    pub(super) fn header(self, number: u64, payload: usize) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.root.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.size as u64).to_le_bytes());
        bytes[24..].copy_from_slice(&(payload as u64).to_le_bytes());
        bytes
    }

    /// For a person: how two headers differ.
    pub(super) fn mismatch(came: &[u8; HEADER_BYTES], expected: &[u8; HEADER_BYTES]) -> String {
        format!(
            "it is in {}, this rank in {}; do all ranks run the same program and settings?",
            Shown(came),
            Shown(expected)
        )
    }
}

struct Shown<'a>(&'a [u8; HEADER_BYTES]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |at: usize, len: usize| self.0[at..at + len].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        let name = match self.0[0] {
            1 => "the forming",
            2 => "a barrier",
            3 => "a sum of f32",
            4 => "a sum of f64",
            5 | 6 => "a gather",
            7 => "a broadcast",
            8..=10 => "a tree sum",
            11 => "an echo",
            12 => "a sum of bf16",
            _ => "an unknown call",
        };
        let (root, call, size, payload) = (number(4, 4), number(8, 8), number(16, 8), number(24, 8));
        write!(f, "call {call}, {name} of {size} bytes with root {root} and {payload} bytes for the other side")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_reads_as_a_sentence() {
        let came = Call::new(Kind::Barrier, 0).header(7, 0);
        let expected = Call { kind: Kind::Broadcast, root: 2, size: 4096 }.header(7, 4096);
        assert_eq!(
            Call::mismatch(&came, &expected),
            "it is in call 7, a barrier of 0 bytes with root 0 and 0 bytes for the other side, this rank in call 7, \
             a broadcast of 4096 bytes with root 2 and 4096 bytes for the other side; \
             do all ranks run the same program and settings?"
        );
        assert!(Call::mismatch(&[255; HEADER_BYTES], &expected).contains("an unknown call"));
    }
}
