//! Whose state the ranks of a generation go on from: a function of what all of them said, so that all find the same.

use common::schedule::StateVersion;

/// One state for all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The state.
    pub latest: StateVersion,
    /// The rank that it comes from: the lowest that holds it.
    pub source: u32,
    /// The ranks that hold another one, or none, in order.
    pub behind: Vec<u32>,
}

/// What the ranks agree on, `versions` being what each holds, in the order of ranks; `None` if nobody holds any.
#[must_use]
pub fn agree(versions: &[Option<StateVersion>]) -> Option<Agreement> {
    let latest = versions.iter().flatten().max().copied()?;
    let holds = |version: &Option<StateVersion>| *version == Some(latest);
    let source = versions.iter().position(holds)? as u32;
    let behind = versions.iter().zip(0..).filter(|(version, _)| !holds(version)).map(|(_, rank)| rank).collect();
    Some(Agreement { latest, source, behind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::Generation;

    fn version(line: u64, step: u32) -> Option<StateVersion> {
        Some(StateVersion { line: Generation(line), cycle_images: 64, round: 0, step })
    }

    #[test]
    fn the_lowest_holder_of_the_latest_is_the_source() {
        let agreement = agree(&[version(2, 0), None, version(2, 1), version(2, 1), version(1, 7)]);
        let latest = version(2, 1).expect("it is one");
        assert_eq!(agreement, Some(Agreement { latest, source: 2, behind: vec![0, 1, 4] }));
    }

    #[test]
    fn the_line_counts_first() {
        assert_eq!(agree(&[version(1, 9), version(2, 0)]).map(|agreement| agreement.source), Some(1));
    }

    #[test]
    fn nobody_is_behind_where_all_hold_the_same_and_nothing_is_agreed_where_nobody_holds_any() {
        assert_eq!(agree(&[version(2, 0); 3]).map(|agreement| agreement.behind), Some(vec![]));
        assert_eq!((agree(&[None, None]), agree(&[])), (None, None));
    }
}
