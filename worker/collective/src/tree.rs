//! One fixed order of addition, so that a sum over groups has the same bits whoever computes which part of it.
//!
//! Floating-point addition is not associative: a sum in ring order depends on the number of ranks. Here the order is a binary
//! tree over the group index and nothing else: the node over `[lo, hi)` is split at the largest power of two below its
//! length, and its value is left + right. A rank adds up the nodes that lie wholly within its own run of groups
//! ([`TreeSum`]); what remains to be added is the same small tree top for everybody ([`finish`]).
//!
//! Refuses to know ranks or sockets: this is arithmetic on ranges and rows of numbers.

use crate::CollectiveError;
use std::ops::Range;

/// The two halves of a node; `None` for a leaf.
fn halves(node: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let length = node.len();
    if length < 2 {
        return None;
    }
    let middle = node.start + length.next_power_of_two() / 2;
    Some((node.start..middle, middle..node.end))
}

/// The nodes of the tree over `0..groups` that lie within `mine` while their parents do not, from left to right: what a rank
/// that holds the groups `mine` can add up alone. At most 2 log2(groups) of them.
#[must_use]
pub fn partials(groups: usize, mine: &Range<usize>) -> Vec<Range<usize>> {
    fn walk(node: Range<usize>, mine: &Range<usize>, found: &mut Vec<Range<usize>>) {
        if node.start >= mine.end || node.end <= mine.start {
            return;
        }
        if mine.start <= node.start && node.end <= mine.end {
            found.push(node);
        } else if let Some((left, right)) = halves(&node) {
            walk(left, mine, found);
            walk(right, mine, found);
        }
    }
    let mut found = Vec::new();
    walk(0..groups, mine, &mut found);
    found
}

/// The node that `left` and `right` are the two halves of, in the tree over `0..groups`; `None` if they are no siblings.
fn parent(groups: usize, left: &Range<usize>, right: &Range<usize>) -> Option<Range<usize>> {
    let mut node = 0..groups;
    while let Some((a, b)) = halves(&node) {
        if a == *left && b == *right {
            return Some(node);
        }
        node = if left.end <= a.end { a } else { b };
    }
    None
}

/// Element by element, `into += other`: the one place where numbers are added.
pub(crate) fn add<T: Copy + std::ops::AddAssign>(into: &mut [T], other: &[T]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a += *b;
    }
}

/// Adds the rows of `nodes` up the tree over `0..groups`; the sum ends in row 0. `rows` holds one row of `width` numbers per
/// node, in the order of `nodes`, which must be the partials of adjoining runs that together cover `0..groups`.
pub(crate) fn finish(groups: usize, nodes: &[Range<usize>], rows: &mut [f32], width: usize) {
    fn walk(node: Range<usize>, nodes: &[Range<usize>], rows: &mut [f32], width: usize) {
        let [first, .., _] = nodes else { return };
        debug_assert_eq!(first.start, node.start);
        let Some((left, right)) = halves(&node) else { return };
        let cut = nodes.partition_point(|n| n.start < left.end);
        let (left_rows, right_rows) = rows.split_at_mut(cut * width);
        walk(left, &nodes[..cut], left_rows, width);
        walk(right, &nodes[cut..], right_rows, width);
        add(&mut left_rows[..width], &right_rows[..width]);
    }
    if width > 0 {
        walk(0..groups, nodes, rows, width);
    }
}

/// A rank's part of the sum over all groups: takes its groups' gradients one by one, in order, and keeps only the nodes that
/// cannot yet be added. Holds at most 2 log2(groups) + 1 buffers, which [`TreeSum::restart`] uses again.
#[derive(Debug, Default)]
pub struct TreeSum {
    groups: usize,
    mine: Range<usize>,
    len: usize,
    next: usize,
    live: Vec<(Range<usize>, Vec<f32>)>,
    spare: Vec<Vec<f32>>,
}

impl TreeSum {
    /// For the groups `mine` of `0..groups`, each with `len` numbers.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] where `mine` is not within `0..groups`.
    pub fn new(groups: usize, mine: Range<usize>, len: usize) -> Result<Self, CollectiveError> {
        let mut sum = Self::default();
        sum.restart(groups, mine, len)?;
        Ok(sum)
    }

    /// Begins the next sum, with the buffers of the last.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] where `mine` is not within `0..groups`.
    pub fn restart(&mut self, groups: usize, mine: Range<usize>, len: usize) -> Result<(), CollectiveError> {
        if mine.start > mine.end || mine.end > groups {
            return Err(CollectiveError::Misuse(format!("groups {mine:?} of {groups}")));
        }
        self.spare.extend(self.live.drain(..).map(|(_, buffer)| buffer));
        if len != self.len {
            self.spare.clear();
        }
        self.next = mine.start;
        (self.groups, self.mine, self.len) = (groups, mine, len);
        Ok(())
    }

    /// Takes the gradient of the next group.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] for a gradient of another length, or one too many.
    pub fn push(&mut self, gradient: &[f32]) -> Result<(), CollectiveError> {
        if gradient.len() != self.len || self.next == self.mine.end {
            return Err(CollectiveError::Misuse(format!(
                "a gradient of {} numbers for group {} where the sum takes groups {:?} of {} numbers",
                gradient.len(),
                self.next,
                self.mine,
                self.len
            )));
        }
        let mut node = self.next..self.next + 1;
        self.next += 1;
        match self.live.last_mut() {
            Some((left, sum)) if parent(self.groups, left, &node).is_some() => {
                add(sum, gradient);
                left.end = node.end;
                node = left.clone();
            }
            _ => {
                let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0.0; self.len]);
                buffer.copy_from_slice(gradient);
                self.live.push((node.clone(), buffer));
            }
        }
        while let [.., (left, into), (right, other)] = self.live.as_mut_slice()
            && parent(self.groups, left, right).is_some()
        {
            debug_assert_eq!(*right, node);
            add(into, other);
            left.end = right.end;
            node = left.clone();
            self.spare.extend(self.live.pop().map(|(_, buffer)| buffer));
        }
        Ok(())
    }

    /// Number of groups of the whole sum, on all ranks.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The groups this rank adds.
    #[must_use]
    pub fn mine(&self) -> Range<usize> {
        self.mine.clone()
    }

    /// Numbers per group.
    #[must_use]
    pub fn width(&self) -> usize {
        self.len
    }

    /// Refuses while groups are missing.
    pub(crate) fn complete(&self) -> Result<(), CollectiveError> {
        if self.next == self.mine.end {
            return Ok(());
        }
        let missing = self.next..self.mine.end;
        Err(CollectiveError::Misuse(format!("the sum over groups {:?} lacks groups {missing:?}", self.mine)))
    }

    /// What is left to add once every group was pushed: the nodes of [`partials`] in that order, and their sums.
    ///
    /// # Errors
    /// [`CollectiveError::Misuse`] while groups are missing.
    pub fn rows(&self) -> Result<impl ExactSizeIterator<Item = (&Range<usize>, &[f32])>, CollectiveError> {
        self.complete()?;
        Ok(self.live.iter().map(|(node, sum)| (node, sum.as_slice())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deal;
    use proptest::prelude::*;

    /// The definition, word for word: what every deal must equal in every bit.
    fn sequential(node: Range<usize>, gradient: &dyn Fn(usize) -> Vec<f32>) -> Vec<f32> {
        if node.len() == 1 {
            return gradient(node.start);
        }
        let largest = (0..).map(|k| 1 << k).take_while(|&power| power < node.len()).last().unwrap();
        let middle = node.start + largest;
        let (left, right) = (sequential(node.start..middle, gradient), sequential(middle..node.end, gradient));
        left.iter().zip(&right).map(|(a, b)| a + b).collect()
    }

    fn noise(seed: u64, group: usize, width: usize) -> Vec<f32> {
        let number = |i: usize| {
            let mut x = seed ^ ((group as u64) << 32) ^ i as u64;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let unit = (x >> 40) as f32 / (1 << 24) as f32 - 0.5;
            unit * 10f32.powi((x & 7) as i32 - 4)
        };
        (0..width).map(number).collect()
    }

    fn bits(row: &[f32]) -> Vec<u32> {
        row.iter().map(|x| x.to_bits()).collect()
    }

    /// The whole sum, each run of groups added by its own `TreeSum`.
    fn over(runs: &[Range<usize>], groups: usize, width: usize, gradient: &dyn Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let (mut nodes, mut rows) = (Vec::new(), Vec::new());
        for run in runs {
            let mut sum = TreeSum::new(groups, run.clone(), width).unwrap();
            for group in run.clone() {
                sum.push(&gradient(group)).unwrap();
                assert!(sum.live.len() <= 2 * groups.next_power_of_two().ilog2() as usize + 1);
            }
            let found = sum.rows().unwrap().map(|(node, _)| node.clone()).collect::<Vec<_>>();
            assert_eq!(found, partials(groups, run));
            nodes.extend(found);
            sum.rows().unwrap().for_each(|(_, row)| rows.extend_from_slice(row));
        }
        finish(groups, &nodes, &mut rows, width);
        rows.truncate(width);
        rows
    }

    #[test]
    fn nodes_split_at_the_largest_power_of_two_below_their_length() {
        assert_eq!(halves(&(0..8)), Some((0..4, 4..8)));
        assert_eq!(halves(&(0..6)), Some((0..4, 4..6)));
        assert_eq!(halves(&(4..7)), Some((4..6, 6..7)));
        assert_eq!(halves(&(3..4)), None);
        assert_eq!(partials(8, &(1..7)), [1..2, 2..4, 4..6, 6..7]);
        assert_eq!(partials(6, &(0..6)), std::slice::from_ref(&(0..6)));
        assert!(partials(6, &(3..3)).is_empty());
    }

    #[test]
    fn misuse_is_named() {
        assert!(TreeSum::new(4, 2..5, 1).is_err());
        let mut sum = TreeSum::new(4, 0..2, 1).unwrap();
        assert!(sum.push(&[1.0, 2.0]).is_err());
        sum.push(&[1.0]).unwrap();
        assert!(sum.rows().is_err(), "a group is missing");
        sum.push(&[2.0]).unwrap();
        assert!(sum.push(&[3.0]).is_err(), "one too many");
        assert_eq!(sum.rows().unwrap().next().unwrap(), (&(0..2), &[3.0f32][..]));
    }

    #[test]
    fn the_order_matters_to_the_bits_and_a_restart_does_not() {
        let (groups, width) = (13, 64);
        let gradient = |group| noise(5, group, width);
        let mut in_a_row = gradient(0);
        (1..groups).for_each(|group| add(&mut in_a_row, &gradient(group)));
        let tree = sequential(0..groups, &gradient);
        assert_ne!(bits(&in_a_row), bits(&tree), "the property below would hold for any order");

        let mut sum = TreeSum::new(3, 0..3, width).unwrap();
        sum.push(&gradient(1)).unwrap();
        sum.restart(groups, 0..groups, width).unwrap();
        (0..groups).for_each(|group| sum.push(&gradient(group)).unwrap());
        assert_eq!(bits(sum.rows().unwrap().next().unwrap().1), bits(&tree));
    }

    proptest! {
        #[test]
        fn every_deal_equals_the_sequential_tree(groups in 1usize..70, world in 1usize..9, width in 0usize..9, seed: u64) {
            let gradient = |group| noise(seed, group, width);
            let expected = bits(&sequential(0..groups, &gradient));
            prop_assert_eq!(bits(&over(&deal(groups, world), groups, width, &gradient)), expected);
        }

        #[test]
        fn every_contiguous_cut_equals_the_sequential_tree(
            groups in 1usize..40,
            mut cuts in proptest::collection::vec(0usize..40, 0..6),
            seed: u64,
        ) {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(groups));
            cuts.extend([0, groups]);
            cuts.sort_unstable();
            let runs = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect::<Vec<_>>();
            let gradient = |group| noise(seed, group, 3);
            prop_assert_eq!(bits(&over(&runs, groups, 3, &gradient)), bits(&sequential(0..groups, &gradient)));
        }
    }
}
