//! How two members prove to each other that they belong to one generation: a challenge and a response, both ways, keyed with the
//! generation's secret.
//!
//! The dialling side sends a [`Hello`] with a nonce; the accepting side answers with a nonce of its own and a keyed hash of both;
//! the dialling side sends its keyed hash. Every hash covers the generation, the world, both ranks, the lane and both nonces, and
//! says which side made it: nothing can be replayed, reflected, or moved to another connection. The secret never travels.
//!
//! Refuses sockets and randomness: bytes in, bytes out, nonces given. What it protects is who takes part; the bytes of later calls
//! are neither encrypted nor signed.

use super::mesh::Membership;

pub(super) const HELLO_BYTES: usize = 64;
pub(super) const REPLY_BYTES: usize = 64;
pub(super) const PROOF_BYTES: usize = 32;
/// Sent when a connection was taken in.
pub(super) const WELCOME: u8 = 0x06;

/// Who speaks: the name of the protocol, and its version.
const MAGIC: [u8; 8] = *b"gf-coll\x01";

pub(super) type Nonce = [u8; 32];

/// Which of a pair's two connections this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Data = 0,
    Control = 1,
}

/// Whether the first bytes of a connection can be the beginning of a hello.
pub(super) fn plausible(first: &[u8]) -> bool {
    first.iter().zip(&MAGIC).all(|(a, b)| a == b)
}

fn keyed(secret: &[u8; 32], side: &str, hello: &[u8; HELLO_BYTES], nonce: &Nonce) -> blake3::Hash {
    blake3::Hasher::new_keyed(secret).update(side.as_bytes()).update(hello).update(nonce).finalize()
}

/// The first message of the member that dials rank `to`.
pub(super) fn hello(from: &Membership, to: u32, lane: Lane, nonce: &Nonce) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&from.generation.to_le_bytes());
    bytes[16..20].copy_from_slice(&(from.peers.len() as u32).to_le_bytes());
    bytes[20..24].copy_from_slice(&from.rank.to_le_bytes());
    bytes[24..28].copy_from_slice(&to.to_le_bytes());
    bytes[28] = lane as u8;
    bytes[32..].copy_from_slice(nonce);
    bytes
}

/// What the accepting member makes of a hello: who dials (as yet unproven), and the answer. `None` if it is not for this
/// member, this generation, or from a rank that should dial it.
pub(super) fn answer(
    me: &Membership,
    came: &[u8; HELLO_BYTES],
    nonce: &Nonce,
) -> Option<(u32, Lane, [u8; REPLY_BYTES])> {
    let from = u32::from_le_bytes([came[20], came[21], came[22], came[23]]);
    let lane = match came[28] {
        0 => Lane::Data,
        1 => Lane::Control,
        _ => return None,
    };
    let mut expected = hello(&Membership { rank: from, ..me.clone() }, me.rank, lane, &[0; 32]);
    expected[32..].copy_from_slice(&came[32..]);
    if *came != expected || from <= me.rank || from as usize >= me.peers.len() {
        return None;
    }
    let mut reply = [0; REPLY_BYTES];
    reply[..32].copy_from_slice(nonce);
    reply[32..].copy_from_slice(keyed(&me.secret, "accept", came, nonce).as_bytes());
    Some((from, lane, reply))
}

/// What the dialling member makes of the answer to its hello: its own proof. `None` if the other side does not know the secret.
pub(super) fn prove(
    me: &Membership,
    hello: &[u8; HELLO_BYTES],
    reply: &[u8; REPLY_BYTES],
) -> Option<[u8; PROOF_BYTES]> {
    let (nonce, proof) = reply.split_first_chunk::<32>()?;
    // Comparing hashes takes constant time.
    (keyed(&me.secret, "accept", hello, nonce) == blake3::Hash::from_slice(proof).ok()?)
        .then(|| *keyed(&me.secret, "dial", hello, nonce).as_bytes())
}

/// Whether the dialling member's proof holds.
pub(super) fn proven(me: &Membership, hello: &[u8; HELLO_BYTES], nonce: &Nonce, proof: &[u8; PROOF_BYTES]) -> bool {
    keyed(&me.secret, "dial", hello, nonce) == blake3::Hash::from_bytes(*proof)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(rank: u32) -> Membership {
        let peers = (1..4).map(|port| ([127, 0, 0, 1], port).into()).collect();
        Membership { generation: 9, rank, peers, secret: [7; 32] }
    }

    /// Whether `dialler` and `acceptor` come to trust each other.
    fn agree(dialler: &Membership, to: u32, acceptor: &Membership) -> (bool, bool) {
        let hello = hello(dialler, to, Lane::Control, &[1; 32]);
        let Some((_, _, reply)) = answer(acceptor, &hello, &[2; 32]) else { return (false, false) };
        let Some(proof) = prove(dialler, &hello, &reply) else { return (false, false) };
        (true, proven(acceptor, &hello, &[2; 32], &proof))
    }

    #[test]
    fn members_of_one_generation_trust_each_other_and_nobody_else() {
        assert_eq!(agree(&member(2), 0, &member(0)), (true, true));
        let refused = |dialler: Membership, to, acceptor: Membership| {
            assert_eq!(agree(&dialler, to, &acceptor), (false, false), "{dialler:?} to {acceptor:?}");
        };
        refused(Membership { secret: [8; 32], ..member(2) }, 0, member(0));
        refused(Membership { generation: 8, ..member(2) }, 0, member(0));
        refused(Membership { peers: vec![], ..member(2) }, 0, member(0));
        refused(member(2), 1, member(0));
        refused(member(0), 2, member(2));
        refused(member(1), 1, member(1));
        refused(Membership { rank: 3, ..member(2) }, 0, member(0));
    }

    #[test]
    fn an_old_reply_or_proof_is_worth_nothing() {
        let (dialler, acceptor) = (member(1), member(0));
        let old = hello(&dialler, 0, Lane::Data, &[1; 32]);
        let (_, _, reply) = answer(&acceptor, &old, &[2; 32]).unwrap();
        let proof = prove(&dialler, &old, &reply).unwrap();
        assert!(!proven(&acceptor, &old, &[3; 32], &proof), "replayed to a new nonce");
        let new = hello(&dialler, 0, Lane::Data, &[4; 32]);
        assert!(prove(&dialler, &new, &reply).is_none(), "an old answer to a new hello");
        let mut reflected = [0; PROOF_BYTES];
        reflected.copy_from_slice(&reply[32..]);
        assert!(!proven(&acceptor, &old, &[2; 32], &reflected), "the acceptor's own proof sent back");
    }

    proptest! {
        #[test]
        fn one_changed_bit_anywhere_is_refused(bit in 0usize..(HELLO_BYTES + REPLY_BYTES + PROOF_BYTES) * 8) {
            let (dialler, acceptor) = (member(1), member(0));
            let flip = |bytes: &mut [u8], from: usize| {
                if let Some(byte) = (bit / 8).checked_sub(from).and_then(|at| bytes.get_mut(at)) {
                    *byte ^= 1 << (bit % 8);
                }
            };
            let said = hello(&dialler, 0, Lane::Data, &[1; 32]);
            let mut heard = said;
            flip(&mut heard, 0);
            let trusted = answer(&acceptor, &heard, &[2; 32]).is_some_and(|(_, _, mut reply)| {
                flip(&mut reply, HELLO_BYTES);
                prove(&dialler, &said, &reply).is_some_and(|mut proof| {
                    flip(&mut proof, HELLO_BYTES + REPLY_BYTES);
                    proven(&acceptor, &heard, &[2; 32], &proof)
                })
            });
            prop_assert!(!trusted);
        }

        #[test]
        fn garbage_is_refused(came in proptest::array::uniform32(any::<u8>())) {
            let mut bytes = [0; HELLO_BYTES];
            bytes[..32].copy_from_slice(&came);
            prop_assert!(answer(&member(0), &bytes, &[0; 32]).is_none());
        }
    }
}
