//! Stores, states and manifests for the tests of this folder.

use bytes::Bytes;
use common::checkpoint::{Dataset, Digest, Dtype, FORMAT, Manifest, Part, TensorRef, TrainerCursor};
use common::config::resolved::{RunConfig, S3};
use common::config::{Base, Layers, resolve};
use common::ids::Generation;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use storage::{Run, Store, fresh_nonce};

/// A memory of its own for each test.
pub struct Memory(String);

impl Memory {
    pub fn fresh() -> Self {
        Self(format!("memory://test-{}/runs", fresh_nonce().unwrap()))
    }

    pub fn store(&self) -> Store {
        Store::open(&self.0, &S3::default()).unwrap()
    }
}

pub fn file_store(folder: &Path) -> Store {
    Store::open(&folder.join("with space/runs").to_string_lossy(), &S3::default()).unwrap()
}

pub fn config() -> RunConfig {
    static CONFIG: LazyLock<RunConfig> = LazyLock::new(|| {
        let base = Base::File {
            path: "test.toml",
            text: "name = \"faces\"\n[data]\nsource = \"/x\"\n",
            folder: Path::new("/"),
        };
        let layers = Layers { base, env: &[], set: &[], working_dir: Path::new("/") };
        resolve(&layers, 1).unwrap().config
    });
    CONFIG.clone()
}

/// A safetensors file of one tensor of `values`, and how a manifest describes it.
pub fn tensor_file(name: &str, values: &[f32]) -> (Bytes, Vec<TensorRef>) {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(safetensors::Dtype::F32, vec![values.len()], &data).unwrap();
    let file = safetensors::serialize([(name, view)], None).unwrap();
    let tensor =
        TensorRef { name: name.into(), dtype: Dtype::F32, shape: vec![values.len() as u64], hash: Digest::of(&data) };
    (file.into(), vec![tensor])
}

/// Stores a part whose one tensor is filled with `value`.
pub async fn stored_part(run: &Run, name: &str, value: f32, parent: Option<&Manifest>) -> Part {
    let (file, tensors) = tensor_file(&format!("{name}.weight"), &[value; 64]);
    let blob = run.put_blob(file, parent).await.unwrap().blob;
    Part { name: name.into(), blob, tensors }
}

pub fn manifest(run: &Run, images: u64, generation: u64, parts: Vec<Part>) -> Manifest {
    Manifest {
        format: FORMAT,
        run: run.name().into(),
        generation: Generation(generation),
        writer: "worker-0".into(),
        nonce: fresh_nonce().unwrap(),
        parent: None,
        created: 1_700_000_000,
        program: "test".into(),
        world: 1,
        config: config(),
        cursor: TrainerCursor { images, ..TrainerCursor::default() },
        dataset: Dataset { fingerprint: "f00d".into(), images: 1 },
        environment: BTreeMap::new(),
        parts,
    }
}

/// Stores and commits a checkpoint of two parts, one of which changes with `images`.
pub async fn checkpoint(run: &Run, images: u64, generation: u64) -> Manifest {
    let parts = vec![stored_part(run, "fixed", 1.0, None).await, stored_part(run, "moving", images as f32, None).await];
    let manifest = manifest(run, images, generation, parts);
    run.commit(&manifest).await.unwrap();
    manifest
}
