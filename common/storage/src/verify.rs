//! Re-reading and re-hashing a checkpoint: every blob against its digest, every tensor against the manifest.

use crate::error::StorageError;
use crate::run::{Run, blocking};
use common::checkpoint::{BlobRef, Digest, Dtype, Manifest, Part, TensorRef};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// A part of a checkpoint that is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The part.
    pub part: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part '{}': {}", self.part, self.why)
    }
}

/// Verifies checkpoints of one run, reading each blob once however many of them share it. Holds one blob at a time.
#[derive(Debug)]
pub struct Verifier {
    run: Run,
    seen: HashMap<BlobRef, Contents>,
}

/// What is in a blob, or why it cannot be told.
type Contents = Result<BTreeMap<String, TensorRef>, String>;

impl Verifier {
    /// For the checkpoints of `run`.
    #[must_use]
    pub fn new(run: Run) -> Self {
        Self { run, seen: HashMap::new() }
    }

    /// Reads and hashes everything that `manifest` names. Each part that is not right is named; none = sound.
    ///
    /// # Errors
    /// The store's trouble, which says nothing about the checkpoint.
    pub async fn check(&mut self, manifest: &Manifest) -> Result<Vec<Damage>, StorageError> {
        let mut damage = Vec::new();
        for part in &manifest.parts {
            if !self.seen.contains_key(&part.blob) {
                let contents = self.read(&part.blob).await?;
                self.seen.insert(part.blob, contents);
            }
            let fault = match &self.seen[&part.blob] {
                Ok(found) => compare(part, found),
                Err(why) => Some(why.clone()),
            };
            damage.extend(fault.map(|why| Damage { part: part.name.clone(), why }));
        }
        Ok(damage)
    }

    async fn read(&self, blob: &BlobRef) -> Result<Contents, StorageError> {
        match self.run.get_blob(blob).await {
            Ok(bytes) => blocking(move || contents(&bytes)).await,
            Err(error) if error.is_damage() => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

fn contents(bytes: &[u8]) -> Contents {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("it is not a safetensors file ({error})"))?;
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let dtype = dtype(view.dtype()).ok_or_else(|| format!("tensor '{name}' has type {:?}", view.dtype()))?;
        let shape = view.shape().iter().map(|&extent| extent as u64).collect();
        Ok((name.clone(), TensorRef { name, dtype, shape, hash: Digest::of(view.data()) }))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as S;
    Some(match dtype {
        S::F64 => Dtype::F64,
        S::F32 => Dtype::F32,
        S::F16 => Dtype::F16,
        S::BF16 => Dtype::Bf16,
        S::I64 => Dtype::I64,
        S::I32 => Dtype::I32,
        S::I16 => Dtype::I16,
        S::I8 => Dtype::I8,
        S::U8 => Dtype::U8,
        S::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// The first way in which a sound blob is not what `part` claims.
fn compare(part: &Part, found: &BTreeMap<String, TensorRef>) -> Option<String> {
    for tensor in &part.tensors {
        let name = &tensor.name;
        let Some(there) = found.get(name) else { return Some(format!("tensor '{name}' is not in it")) };
        if (there.dtype, &there.shape) != (tensor.dtype, &tensor.shape) {
            let (a, b) = (tensor.dtype.name(), there.dtype.name());
            return Some(format!("tensor '{name}' should be {a} {:?}, but is {b} {:?}", tensor.shape, there.shape));
        }
        if there.hash != tensor.hash {
            return Some(format!("tensor '{name}' should have digest {}, but has {}", tensor.hash, there.hash));
        }
    }
    (found.len() != part.tensors.len())
        .then(|| format!("it holds {} tensors, the manifest names {}", found.len(), part.tensors.len()))
}
