//! `state_hash`: one number by which two checkpoints of any run, world and division into parts are compared.

use super::{Digest, Manifest, TensorRef};

/// Separates this hash from every other; its number changes when the definition below does.
const DOMAIN: &[u8] = b"ganfleet state 1";

impl Manifest {
    /// Digest of the training state.
    ///
    /// BLAKE3 over this sequence, in which numbers are little-endian `u64` and text is its length followed by its bytes:
    /// 1. the domain text `ganfleet state 1`;
    /// 2. the number of tensors of all parts, then for each in ascending byte order of its name: name, dtype (as
    ///    safetensors writes it), number of dimensions, each extent, the 32 bytes of the digest of its elements;
    /// 3. `images`, `cycle_images`, `repeat`, `phase`, `skipped_updates`;
    /// 4. `last_knee`: 0, or 1 followed by its two numbers;
    /// 5. the number of entries of `optimizer_steps`, then name and steps of each in ascending order of name.
    ///
    /// Left out, because they do not decide how training goes on: generation, world, writer, times, tick boundary, best
    /// metrics, configuration, environment, and how the tensors are divided into parts.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        let mut tensors: Vec<&TensorRef> = self.parts.iter().flat_map(|part| &part.tensors).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hasher = blake3::Hasher::new();
        text(&mut hasher, DOMAIN);
        number(&mut hasher, tensors.len() as u64);
        for tensor in tensors {
            text(&mut hasher, tensor.name.as_bytes());
            text(&mut hasher, tensor.dtype.name().as_bytes());
            number(&mut hasher, tensor.shape.len() as u64);
            tensor.shape.iter().for_each(|&extent| number(&mut hasher, extent));
            hasher.update(tensor.hash.as_ref());
        }
        let cursor = &self.cursor;
        for counter in [
            cursor.images,
            cursor.cycle_images,
            cursor.repeat.into(),
            cursor.phase.into(),
            cursor.skipped_updates,
            cursor.last_knee.is_some().into(),
        ] {
            number(&mut hasher, counter);
        }
        if let Some((floor, ceil)) = cursor.last_knee {
            number(&mut hasher, floor.into());
            number(&mut hasher, ceil.into());
        }
        number(&mut hasher, cursor.optimizer_steps.len() as u64);
        for (name, &steps) in &cursor.optimizer_steps {
            text(&mut hasher, name.as_bytes());
            number(&mut hasher, steps);
        }
        hasher.finalize().into()
    }
}

fn number(hasher: &mut blake3::Hasher, value: u64) {
    hasher.update(&value.to_le_bytes());
}

fn text(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;
    use crate::ids::Generation;

    /// Pins the definition: if this fails, runs of different versions no longer compare, and the domain must change.
    #[test]
    fn the_definition_has_not_changed() {
        assert_eq!(
            manifest().state_hash().to_string(),
            "8aa668565a63f99207c2fa8e9064c76c1a7dbe1f95e27d46feebaaeb6788c17f"
        );
    }

    #[test]
    fn what_does_not_decide_training_does_not_count() {
        let mut other = manifest();
        other.generation = Generation(9);
        other.world = 4;
        other.writer = "worker-3".into();
        other.nonce = "other".into();
        other.created += 1;
        other.cursor.seconds += 5.0;
        other.cursor.tick_start_images += 1;
        other.cursor.best.clear();
        other.config.train.threads = 8;
        other.environment.clear();
        other.parts.reverse();
        let tensor = other.parts[0].tensors.pop().unwrap();
        other.parts[1].tensors.push(tensor);
        assert_eq!(other.state_hash(), manifest().state_hash());
    }

    #[test]
    fn everything_that_decides_training_counts() {
        type Change = fn(&mut Manifest);
        let changes: [Change; 11] = [
            |m| m.parts[0].tensors[0].name.push('x'),
            |m| m.parts[0].tensors[0].dtype = super::super::Dtype::I32,
            |m| m.parts[0].tensors[0].shape = vec![3, 2],
            |m| m.parts[0].tensors[0].hash = Digest::of(b"other"),
            |m| m.cursor.images += 1,
            |m| m.cursor.cycle_images += 1,
            |m| m.cursor.repeat += 1,
            |m| m.cursor.phase += 1,
            |m| m.cursor.last_knee = None,
            |m| m.cursor.skipped_updates += 1,
            |m| *m.cursor.optimizer_steps.get_mut("g").unwrap() += 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = manifest();
            change(&mut other);
            assert_ne!(other.state_hash(), manifest().state_hash(), "change {i}");
        }
    }
}
