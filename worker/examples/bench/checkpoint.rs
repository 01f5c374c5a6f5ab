//! Times of one checkpoint: the copy for which training stands still, the way to the commit, and the way back.
//!
//! What comes back is compared with what was stored, hash by hash.

use crate::{Failure, Options, trainer};
use common::checkpoint::{Dataset, Manifest, TrainerCursor};
use common::config::resolved::S3;
use common::ids::Generation;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use storage::{Run, Store};
use tch::{Device, Kind, Tensor};
use worker::checkpoint::{Checkpoints, Identity, restore, snapshot};
use worker::communicator::Communicator;
use worker::environment::{facts, peak_memory_mib};
use worker::trainer::Trainer;

/// Stores the state of a run at `res` below `url`, restores it into another trainer, and prints one line.
pub fn measure(options: &Options, res: u32, url: &str) -> Result<(), Failure> {
    let config = options.config(res)?;
    let alone = || Communicator::new(Box::new(collective::Solo::new(1)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let runtime = Arc::new(runtime);
    let run = open(&runtime, url, res)?;

    let device = options.device();
    let mut first = trainer(&config, device, alone());
    fill_moments(&first);
    let cursor = TrainerCursor { last_knee: Some(first.stage().level.knee()), ..TrainerCursor::default() };
    let identity = Identity {
        generation: Generation(1),
        writer: "bench".to_owned(),
        dataset: Dataset { fingerprint: "in memory".to_owned(), images: 1 },
        environment: facts(options.threads as u32, device),
    };
    let mut checkpoints = Checkpoints::new(Arc::clone(&runtime), run.clone(), identity, None);
    let committed = checkpoints.finish(&mut first, cursor)?.ok_or("the checkpoint was not committed")?;
    drop(first);

    let key = committed.key.parse().map_err(|_| "the commit gave no key")?;
    let mut second = trainer(&config, device, alone());
    let began = Instant::now();
    let manifest = runtime.block_on(restore(&run, key, &mut second))?;
    let restored = began.elapsed();
    let began = Instant::now();
    compare(&second, &manifest)?;
    let encoded = began.elapsed();

    let store = url.split(':').next().unwrap_or_default();
    println!(
        "{}",
        json!({
            "res": res, "store": store, "threads": options.threads, "bytes": committed.bytes,
            "blobs": manifest.parts.len(),
            "stall_s": committed.stall.as_secs_f64(), "commit_s": committed.took.as_secs_f64(),
            "copy_encode_hash_s": encoded.as_secs_f64(), "restore_s": restored.as_secs_f64(),
            "peak_memory_mib": peak_memory_mib().round(),
        })
    );
    Ok(())
}

/// A run of its own below `url`, so that nothing is there yet.
fn open(runtime: &tokio::runtime::Runtime, url: &str, res: u32) -> Result<Run, Failure> {
    let endpoint = std::env::var("AWS_ENDPOINT_URL").ok();
    let allow_http = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
    let s3 = S3 { path_style: endpoint.is_some(), allow_http, endpoint, ..S3::default() };
    let _inside = runtime.enter();
    let store = Store::open(url, &s3)?;
    Ok(store.run(&format!("bench-{res}-{}", storage::fresh_nonce()?))?)
}

/// Moments as training leaves them: numbers that no store can squeeze. A step of the network itself would take minutes.
fn fill_moments(trainer: &Trainer) {
    let moments = trainer.optimizers().iter().flat_map(|o| [o.first(), o.second()]);
    tch::no_grad(|| {
        for tensor in moments.flat_map(|p| p.tensors()) {
            tensor.shallow_clone().copy_(&Tensor::rand(tensor.size(), (Kind::Float, Device::Cpu)));
        }
    });
}

/// Whether every tensor of `trainer` is the one that `manifest` names.
fn compare(trainer: &Trainer, manifest: &Manifest) -> Result<(), Failure> {
    for (live, stored) in snapshot::live(trainer).iter().zip(&manifest.parts) {
        let (_, part) = snapshot::copy(&[live])[0].encode()?;
        if part != *stored {
            return Err(format!("part {} came back changed", stored.name).into());
        }
    }
    Ok(())
}
