//! Who writes, and who reads, which part of a replicated state.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Shares `parts` (name, bytes) out to `world` ranks; the answer holds, for each rank, indices into `parts` in ascending order.
///
/// Largest first, to the rank with the least so far (ties: the lower rank; equal sizes: by name, then by position), so
/// every rank that knows the same parts deals them alike without a message. The loads of two ranks differ by at most the
/// largest part. A world of 0 is dealt as a world of 1: no part is ever left without an owner.
#[must_use]
pub fn deal<N: AsRef<str>>(parts: &[(N, u64)], world: usize) -> Vec<Vec<usize>> {
    let world = world.max(1);
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&i| (Reverse(parts[i].1), parts[i].0.as_ref(), i));
    let mut shares = vec![Vec::new(); world];
    let mut loads: BinaryHeap<Reverse<(u128, usize)>> = (0..world).map(|rank| Reverse((0, rank))).collect();
    for part in order {
        if let Some(mut least) = loads.peek_mut() {
            let Reverse((load, rank)) = &mut *least;
            shares[*rank].push(part);
            *load += u128::from(parts[part].1);
        }
    }
    for share in &mut shares {
        share.sort_unstable();
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn largest_first_to_the_least_loaded() {
        let parts = [("a", 1), ("b", 5), ("c", 4), ("d", 3)];
        assert_eq!(deal(&parts, 2), [vec![0, 1], vec![2, 3]]);
        assert_eq!(deal(&parts, 0), [vec![0, 1, 2, 3]]);
        assert_eq!(deal::<&str>(&[], 3), vec![Vec::<usize>::new(); 3]);
    }

    #[test]
    fn sizes_from_outside_do_not_overflow() {
        assert_eq!(deal(&[("a", u64::MAX), ("b", u64::MAX), ("c", 1)], 1), [[0, 1, 2]]);
    }

    fn parts() -> impl Strategy<Value = Vec<(String, u64)>> {
        proptest::collection::btree_map("[a-z]{1,6}", 0u64..1000, 0..40).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_part_has_one_owner(parts in parts(), world in 1usize..12) {
            let shares = deal(&parts, world);
            prop_assert_eq!(shares.len(), world);
            let mut all: Vec<usize> = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..parts.len()).collect::<Vec<_>>());
        }

        #[test]
        fn loads_differ_by_at_most_the_largest_part(parts in parts(), world in 1usize..12) {
            let loads: Vec<u64> = deal(&parts, world).iter().map(|s| s.iter().map(|&i| parts[i].1).sum()).collect();
            let largest = parts.iter().map(|p| p.1).max().unwrap_or(0);
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= largest);
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(parts in parts(), world in 1usize..12, turn in 0usize..40) {
            let names = |parts: &[(String, u64)]| -> Vec<BTreeSet<String>> {
                deal(parts, world).iter().map(|s| s.iter().map(|&i| parts[i].0.clone()).collect()).collect()
            };
            let mut turned = parts.clone();
            let len = turned.len().max(1);
            turned.rotate_left(turn % len);
            prop_assert_eq!(names(&parts), names(&turned));
        }
    }
}
