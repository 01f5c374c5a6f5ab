//! Who works on what: whole statistical groups, dealt to ranks in contiguous runs.
//!
//! Refuses to cut a group or to look at anything but the two counts, so that every rank deals alike.

use std::ops::Range;

/// Deals `groups` to `world` ranks: rank `r` works on `deal(groups, world)[r]`.
///
/// The ranges are contiguous and in rank order, their sizes differ by at most one, and earlier ranks get more. With more
/// ranks than groups the last ranks get empty ranges. A world of 0 gives no ranges.
#[must_use]
pub fn deal(groups: usize, world: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    (0..world)
        .map(|rank| {
            let size = groups / world + usize::from(rank < groups % world);
            let range = start..start + size;
            start = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn earlier_ranks_get_more() {
        assert_eq!(deal(7, 3), [0..3, 3..5, 5..7]);
        assert_eq!(deal(2, 4), [0..1, 1..2, 2..2, 2..2]);
        assert_eq!(deal(0, 2), [0..0, 0..0]);
        assert!(deal(3, 0).is_empty());
    }

    proptest! {
        #[test]
        fn every_group_is_dealt_once_and_evenly(groups in 0usize..5000, world in 1usize..70) {
            let dealt = deal(groups, world);
            prop_assert_eq!(dealt.len(), world);
            prop_assert_eq!(dealt[0].start, 0);
            prop_assert_eq!(dealt[world - 1].end, groups);
            prop_assert!(dealt.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].len() >= pair[1].len()));
            prop_assert!(dealt[0].len() - dealt[world - 1].len() <= 1);
        }
    }
}
