//! Every step that was ever taken, as a tree: what the run's one history is, and what was left aside.
//!
//! A state is a node: the step that made it and, by its parents, all steps and samples before. Two states are the same exactly if they
//! are the same node.

use common::ids::Generation;
use common::schedule::Position;

/// A state: the index of its node.
pub type State = usize;

/// The state of a run that has not begun.
pub const BEGINNING: State = 0;

/// One step taken.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The state it was taken from.
    pub parent: State,
    /// Steps from the beginning.
    pub depth: u64,
    /// The generation that took it.
    pub generation: Generation,
    /// Where the run stands after it.
    pub position: Position,
    /// Hash of all samples shown so far, in order.
    pub samples: u64,
}

/// All steps, and the run's own.
#[derive(Clone, Debug)]
pub struct History {
    nodes: Vec<Node>,
    /// The state that the run has reached.
    pub head: State,
    /// The latest generation that has begun.
    pub generation: Generation,
}

impl Default for History {
    fn default() -> Self {
        let beginning =
            Node { parent: BEGINNING, depth: 0, generation: Generation(0), position: Position::default(), samples: 0 };
        Self { nodes: vec![beginning], head: BEGINNING, generation: Generation(0) }
    }
}

impl History {
    /// The step that made a state.
    #[must_use]
    pub fn node(&self, state: State) -> &Node {
        &self.nodes[state]
    }

    /// Takes note of a step, by which the samples `shown` were shown.
    pub fn step(&mut self, parent: State, generation: Generation, position: Position, shown: &[u64]) -> State {
        let before = self.nodes[parent];
        let mut samples = before.samples;
        for sample in shown {
            samples = (samples ^ sample).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        }
        self.nodes.push(Node { parent, depth: before.depth + 1, generation, position, samples });
        self.nodes.len() - 1
    }

    /// Whether `earlier` is `later`, or was on the way to it.
    #[must_use]
    pub fn is_before(&self, earlier: State, later: State) -> bool {
        let depth = self.nodes[earlier].depth;
        let mut at = later;
        while self.nodes[at].depth > depth {
            at = self.nodes[at].parent;
        }
        at == earlier
    }

    /// Whether both are of one history.
    #[must_use]
    pub fn on_one_line(&self, a: State, b: State) -> bool {
        self.is_before(a, b) || self.is_before(b, a)
    }
}
