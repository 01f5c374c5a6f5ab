//! Which image is shown when: one global permutation per pass over the data, a pure function of the run's seed and the
//! position in the stream of real images. The number of workers does not enter, so none is shown twice when it changes.

use common::seed::permutation;
use std::num::NonZeroU32;

/// The order of a data set under one seed. Keeps the two passes in use, so asking in any order near the front is cheap.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    count: NonZeroU32,
    /// Permutations by pass, a pass at place `pass % 2`.
    passes: [Option<(u64, Vec<u32>)>; 2],
}

impl Order {
    /// The order of `count` images under the run's `seed`.
    #[must_use]
    pub fn new(seed: u64, count: NonZeroU32) -> Self {
        Self { seed, count, passes: [None, None] }
    }

    /// The image at `position`: real images shown since the run began, plus the sample's index in the global minibatch.
    pub fn index_at(&mut self, position: u64) -> u32 {
        let count = u64::from(self.count.get());
        let (pass, within) = (position / count, (position % count) as usize);
        let place = &mut self.passes[(pass % 2) as usize];
        match place {
            Some((held, order)) if *held == pass => order[within],
            _ => {
                let order = permutation(self.seed, pass, self.count.get() as usize);
                let index = order[within];
                *place = Some((pass, order));
                index
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(seed: u64, count: u32) -> Order {
        Order::new(seed, NonZeroU32::new(count).unwrap())
    }

    /// Two passes over `count` images, dealt to `world` workers in minibatches; what all of them see, by position.
    fn dealt(count: u32, world: usize, minibatch: u64) -> Vec<u32> {
        let mut workers = vec![order(3, count); world];
        let mut seen = vec![0; 2 * count as usize];
        for start in (0..seen.len() as u64).step_by(minibatch as usize) {
            for (rank, worker) in workers.iter_mut().enumerate() {
                for sample in (0..minibatch).filter(|sample| *sample as usize % world == rank) {
                    if let Some(slot) = seen.get_mut((start + sample) as usize) {
                        *slot = worker.index_at(start + sample);
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn the_world_does_not_enter() {
        let alone = dealt(37, 1, 8);
        for (world, minibatch) in [(2, 8), (3, 8), (4, 8), (4, 16), (3, 5)] {
            assert_eq!(dealt(37, world, minibatch), alone);
        }
    }

    #[test]
    fn passes_differ_and_seeds_differ() {
        let pass = |seed: u64, pass: u64| (0..50).map(|i| order(seed, 50).index_at(50 * pass + i)).collect::<Vec<_>>();
        assert_ne!(pass(1, 0), pass(1, 1));
        assert_ne!(pass(1, 0), pass(1, 2));
        assert_ne!(pass(1, 0), pass(2, 0));
    }

    proptest! {
        #[test]
        fn each_image_is_used_exactly_once_per_pass(seed: u64, count in 1u32..300, pass in 0u64..1_000_000) {
            let mut order = order(seed, count);
            let mut seen: Vec<u32> = (0..u64::from(count)).map(|i| order.index_at(pass * u64::from(count) + i)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }

        #[test]
        fn memory_of_passes_changes_nothing(positions in proptest::collection::vec(0u64..200, 1..40)) {
            let mut remembering = order(9, 20);
            for position in positions {
                prop_assert_eq!(remembering.index_at(position), order(9, 20).index_at(position));
            }
        }
    }
}
