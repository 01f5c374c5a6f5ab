//! The manifest: everything that a checkpoint is, in one JSON document of at most 16 MiB.
//!
//! Reading one refuses, with a reason and without a panic, whatever is not a manifest of this format: too large, too many
//! parts, shapes that overflow, names that occur twice, parts too small for the tensors they claim to hold.

use super::{Digest, ManifestKey};
use crate::config::resolved::RunConfig;
use crate::ids::{Generation, ImagesSeen};
use crate::judge::Judgement;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Version of the format that this program writes and reads. Fields may be added within a version, never changed.
pub const FORMAT: u32 = 1;
/// Largest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Most parts of a checkpoint.
pub const MAX_PARTS: usize = 1 << 16;
/// Most tensors of a checkpoint.
pub const MAX_TENSORS: usize = 1 << 18;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;
/// Longest name, in bytes.
const MAX_NAME: usize = 256;
/// A safetensors file begins with the length of its header.
const SAFETENSORS_PREFIX: u64 = 8;

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the run.
    pub run: String,
    /// Generation that wrote it.
    pub generation: Generation,
    /// Who wrote it: the worker's id.
    pub writer: String,
    /// Drawn afresh for every commit: by it a writer recognises its own manifest after a doubtful answer.
    pub nonce: String,
    /// Checkpoint that this one continues, and whose blobs it may share.
    pub parent: Option<ManifestKey>,
    /// Seconds since 1970-01-01 UTC, by the writer's clock.
    pub created: u64,
    /// Version of the program that wrote it.
    pub program: String,
    /// Workers of the generation. Says nothing about the state, which is the same for every world.
    pub world: u32,
    /// The run's configuration.
    pub config: RunConfig,
    /// Where training stood.
    pub cursor: TrainerCursor,
    /// The training images.
    pub dataset: Dataset,
    /// What results in the last bit depend on: `threads`, `isa`, `libtorch`, `device`. Compared on resume.
    pub environment: BTreeMap<String, String>,
    /// The state.
    pub parts: Vec<Part>,
}

/// Where training stood: with the tensors, all that an exact resume needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerCursor {
    /// Real images shown to the discriminator since the run began.
    pub images: u64,
    /// `images` at the start of the cycle in work: the argument of the growth schedule.
    pub cycle_images: u64,
    /// Minibatches of this cycle that are done.
    pub repeat: u32,
    /// Index of the next phase within the minibatch.
    pub phase: u32,
    /// Optimizer steps since the run began, those of all networks together.
    pub steps: u64,
    /// `(floor, ceil)` of lod when the optimizers were last reset; `None` before the first step.
    pub last_knee: Option<(u32, u32)>,
    /// Updates skipped because a reduced gradient was not finite, since the run began.
    pub skipped_updates: u64,
    /// Steps of each optimizer since its last reset.
    pub optimizer_steps: BTreeMap<String, u64>,
    /// Which draw of random numbers this is: 0, or the generation that last drew anew because training had diverged.
    pub draw: u64,
    /// `images` at the start of the tick in work.
    pub tick_start_images: u64,
    /// Seconds of training since the run began, over all generations.
    pub seconds: f64,
    /// Best value of each quality metric so far. Values that are not finite are not written.
    #[serde(serialize_with = "finite_only")]
    pub best: BTreeMap<String, f64>,
    /// What the judging metric has said so far; its last value may be of a few steps before this checkpoint.
    pub judgement: Judgement,
}

/// The training images that a state was trained on. Those of weights that came from elsewhere are not known: empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Digest of the prepared images, as the data layer defines it.
    pub fingerprint: String,
    /// Their number.
    pub images: u64,
}

impl Dataset {
    /// Whether anything was trained on them: not so before the first step after weights came from elsewhere.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.fingerprint.is_empty()
    }
}

/// A group of tensors that is stored, reused and read as one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name, unique within the checkpoint: `g.16`, ...
    pub name: String,
    /// Where its bytes are.
    pub blob: BlobRef,
    /// What is in it.
    pub tensors: Vec<TensorRef>,
}

/// A blob: `blobs/<hash>.safetensors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Digest of the whole blob.
    pub hash: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One tensor of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRef {
    /// Name, unique within the checkpoint.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Digest of the elements in row-major order, little-endian.
    pub hash: Digest,
}

/// Type of a tensor's elements, named as safetensors names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// Why bytes are not a manifest that this program can use, or a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest has {0} bytes; the limit is {MAX_MANIFEST_BYTES}")]
    TooLarge(usize),
    /// Not JSON, or JSON of something else.
    #[error("not a manifest: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Written by another version of the program.
    #[error(
        "the manifest has format {found}; this program reads format {FORMAT}. Use the version of the program that wrote it"
    )]
    Format {
        /// The manifest's format.
        found: u32,
    },
    /// Well-formed, but it contradicts itself or the limits.
    #[error("the manifest is not valid: {0}")]
    Invalid(String),
}

impl Manifest {
    /// Where in the run it is stored.
    #[must_use]
    pub fn key(&self) -> ManifestKey {
        ManifestKey::new(ImagesSeen(self.cursor.images), self.generation)
    }

    /// The blobs it names, each once, in the order of the parts.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobRef> {
        let mut seen = HashSet::new();
        self.parts.iter().map(|part| part.blob).filter(|blob| seen.insert(blob.hash)).collect()
    }

    /// Bytes of its blobs together; shared ones count once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blobs().iter().fold(0, |sum, blob| sum.saturating_add(blob.bytes))
    }

    /// The document that is stored.
    ///
    /// # Errors
    /// [`ManifestError`] when [`Manifest::from_json`] would not read it back.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let bytes = serde_json::to_vec(self)?;
        Self::from_json(&bytes)?;
        Ok(bytes)
    }

    /// Reads and checks a document from outside.
    ///
    /// # Errors
    /// [`ManifestError`], with what is wrong.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let Header { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.validate().map_err(ManifestError::Invalid)?;
        Ok(manifest)
    }

    fn validate(&self) -> Result<(), String> {
        if !is_run_name(&self.run) {
            return Err(format!("'{}' is not the name of a run", excerpt(&self.run)));
        }
        check_name("writer", &self.writer)?;
        check_name("nonce", &self.nonce)?;
        if self.world == 0 {
            return Err("a world has at least one worker".into());
        }
        if !self.cursor.seconds.is_finite() {
            return Err("cursor.seconds is not a finite number".into());
        }
        if self.parts.len() > MAX_PARTS {
            return Err(format!("{} parts; the limit is {MAX_PARTS}", self.parts.len()));
        }
        let tensors: usize = self.parts.iter().map(|part| part.tensors.len()).sum();
        if tensors > MAX_TENSORS {
            return Err(format!("{tensors} tensors; the limit is {MAX_TENSORS}"));
        }
        let mut parts = HashSet::new();
        let mut names = HashSet::new();
        let mut sizes = HashMap::new();
        for part in &self.parts {
            check_name("part", &part.name)?;
            if !parts.insert(&part.name) {
                return Err(format!("part '{}' occurs twice", excerpt(&part.name)));
            }
            if *sizes.entry(part.blob.hash).or_insert(part.blob.bytes) != part.blob.bytes {
                return Err(format!("blob {} has two sizes", part.blob.hash));
            }
            if let Some(tensor) = part.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
                return Err(format!("tensor '{}' occurs twice", excerpt(&tensor.name)));
            }
            part.validate()?;
        }
        Ok(())
    }
}

impl Part {
    fn validate(&self) -> Result<(), String> {
        let mut needed = SAFETENSORS_PREFIX;
        for tensor in &self.tensors {
            check_name("tensor", &tensor.name)?;
            let bytes = tensor.bytes().ok_or_else(|| format!("tensor '{}': its shape is too large", tensor.name))?;
            needed = needed.checked_add(bytes).ok_or_else(|| format!("part '{}' is too large", self.name))?;
        }
        if !self.tensors.is_empty() && needed > self.blob.bytes {
            return Err(format!("part '{}' has {} bytes, its tensors need {needed}", self.name, self.blob.bytes));
        }
        Ok(())
    }
}

impl TensorRef {
    /// Bytes of the elements; `None` when the shape overflows or has too many dimensions.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        if self.shape.len() > MAX_DIMENSIONS {
            return None;
        }
        // A zero must not hide an overflow behind it: whoever multiplies in another order would meet it.
        let volume = self.shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent.max(1)))?;
        let bytes = volume.checked_mul(self.dtype.bytes())?;
        Some(if self.shape.contains(&0) { 0 } else { bytes })
    }
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Its name in safetensors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }
}

/// Whether `name` may be the name of a run: `[a-z0-9._-]`, 1 to 64 of them, not starting with a dot.
#[must_use]
pub fn is_run_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!("'{}' cannot name a {what}", excerpt(name)));
    }
    Ok(())
}

fn excerpt(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

fn finite_only<S: Serializer>(map: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().filter(|(_, value)| value.is_finite()))
}

#[cfg(test)]
pub(super) mod tests;
