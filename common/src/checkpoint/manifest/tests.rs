//! Manifests that read back, and every kind that is refused.

use super::*;
use crate::config::resolved as r;
use crate::families::progan;
use proptest::prelude::*;

/// A small run's configuration.
pub(crate) fn config() -> RunConfig {
    RunConfig {
        name: "faces".into(),
        seed: 7,
        model: r::Model::ProGan(progan::Architecture {
            resolution: 32,
            latent_size: 64,
            fmap_base: 1024,
            fmap_max: 64,
            upscale: progan::Upscale::Fused,
            position_bias: false,
            minibatch_stddev_group: 4,
            gp_norm: progan::GpNorm::Active,
            gp_weight: 10.0,
            gp_target: 1.0,
            drift: 0.001,
        }),
        data: r::Data {
            source: "/data/faces.zip".into(),
            mirror: true,
            background: [255; 3],
            cache: None,
            max_bad_share: 0.01,
            load_size: None,
        },
        train: r::Train {
            total_kimg: 60.0,
            epochs: None,
            precision: r::Precision::Fp32,
            reduce_precision: r::ReducePrecision::Fp32,
            determinism: r::Determinism::Bitwise,
            save_memory: false,
            threads: 1,
            growth: crate::growth::Growth { start_resolution: 4, stable_kimg: 10.0, fade_kimg: 10.0 },
            minibatch: BTreeMap::from([(4, 16)]),
            minibatch_base: 8,
            max_per_worker: BTreeMap::new(),
            minibatch_repeats: 4,
            d_repeats: 1,
            optimizer: r::Adam {
                beta1: 0.0,
                beta2: 0.99,
                epsilon: 1e-8,
                learning_rate: 0.001,
                learning_rate_by_resolution: BTreeMap::new(),
                reset_for_new_lod: true,
                d_rate: 1.0,
            },
            ema: r::Ema::Decay(0.999),
            tick_kimg: BTreeMap::new(),
            stop: r::Stop::default(),
            tick_kimg_base: 1.0,
        },
        cluster: r::Cluster {
            backend: r::Backend::Auto,
            workers: 2,
            min_workers: 1,
            max_workers: 0,
            on_loss: r::OnLoss::Shrink,
            rehearse: r::Rehearse::Gpu,
            failures: 3,
            patience_s: 10.0,
            orphan_patience_s: 600.0,
        },
        checkpoint: r::Checkpoint {
            url: "file:///runs".into(),
            every_kimg: 10.0,
            keep_last: 3,
            keep_every_kimg: 0.0,
            keep_best: 0,
            s3: r::S3::default(),
        },
        metrics: r::Metrics { swd: true, images: 1024, ..r::Metrics::default() },
        samples: r::Samples { every_kimg: 0.0, grid: r::Grid::Hd },
    }
}

/// A manifest of two parts.
pub(crate) fn manifest() -> Manifest {
    let tensor = |name: &str, shape: &[u64]| TensorRef {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.into(),
        hash: Digest::of(name.as_bytes()),
    };
    let part = |name: &str, tensors: Vec<TensorRef>| Part {
        name: name.into(),
        blob: BlobRef { hash: Digest::of(name.as_bytes()), bytes: 4096 },
        tensors,
    };
    Manifest {
        format: FORMAT,
        run: "faces".into(),
        generation: Generation(1),
        writer: "worker-0".into(),
        nonce: "6f6e6365".into(),
        parent: Some(ManifestKey::new(ImagesSeen(50_000), Generation(1))),
        created: 1_700_000_000,
        program: "0.1.0".into(),
        world: 2,
        config: config(),
        cursor: TrainerCursor {
            images: 60_000,
            cycle_images: 59_968,
            repeat: 2,
            last_knee: Some((1, 2)),
            optimizer_steps: BTreeMap::from([("d".into(), 3750), ("g".into(), 3750)]),
            seconds: 0.1 + 0.2,
            best: BTreeMap::from([("swd".into(), 12.5)]),
            ..TrainerCursor::default()
        },
        dataset: Dataset { fingerprint: "f00d".into(), images: 100 },
        environment: BTreeMap::from([("threads".into(), "1".into())]),
        parts: vec![
            part("g.4", vec![tensor("g.4.weight", &[2, 3]), tensor("g.4.bias", &[3])]),
            part("d.4", vec![tensor("d.4.weight", &[]), tensor("d.4.step", &[0, 5])]),
        ],
    }
}

#[test]
fn reads_back_what_it_wrote() {
    let manifest = manifest();
    assert_eq!(Manifest::from_json(&manifest.to_json().unwrap()).unwrap(), manifest);
    assert_eq!(manifest.key().to_string(), "manifests/000000060000-000001.json");
}

#[test]
fn shared_blobs_count_once() {
    let mut manifest = manifest();
    assert_eq!(manifest.bytes(), 8192);
    manifest.parts[1].blob = manifest.parts[0].blob;
    assert_eq!((manifest.blobs().len(), manifest.bytes()), (1, 4096));
}

#[test]
fn an_older_cursor_without_newer_fields_is_read() {
    let mut json = serde_json::to_value(manifest()).unwrap();
    json["cursor"] = serde_json::json!({ "images": 5 });
    let read = Manifest::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(read.cursor, TrainerCursor { images: 5, ..TrainerCursor::default() });
}

#[test]
fn another_format_is_named_before_anything_else() {
    let error = Manifest::from_json(br#"{"format": 2, "everything": "else"}"#).unwrap_err();
    assert!(matches!(error, ManifestError::Format { found: 2 }), "{error}");
}

#[test]
fn a_metric_that_is_not_a_number_does_not_cost_the_checkpoint() {
    let mut manifest = manifest();
    manifest.cursor.best.insert("bad".into(), f64::NAN);
    let read = Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
    assert_eq!(read.cursor.best.keys().collect::<Vec<_>>(), ["swd"]);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let mut manifest = manifest();
    manifest.config.train.total_kimg = f64::NAN;
    assert!(matches!(manifest.to_json(), Err(ManifestError::Syntax(_))));
}

#[test]
fn oversize_is_refused_unread() {
    let bytes = vec![b' '; MAX_MANIFEST_BYTES + 1];
    assert!(matches!(Manifest::from_json(&bytes), Err(ManifestError::TooLarge(_))));
}

#[test]
fn contradictions_are_refused() {
    type Damage = fn(&mut Manifest);
    let cases: [(&str, Damage); 16] = [
        ("run", |m| m.run = "../other".into()),
        ("dot", |m| m.run = ".".into()),
        ("writer", |m| m.writer = String::new()),
        ("nonce", |m| m.nonce = "a\nb".into()),
        ("world", |m| m.world = 0),
        ("seconds", |m| m.cursor.seconds = f64::INFINITY),
        ("two parts of one name", |m| m.parts[1].name = m.parts[0].name.clone()),
        ("two tensors of one name", |m| m.parts[1].tensors[0].name = m.parts[0].tensors[0].name.clone()),
        ("two tensors of one name in a part", |m| m.parts[0].tensors[1].name = m.parts[0].tensors[0].name.clone()),
        ("one blob of two sizes", |m| m.parts[1].blob = BlobRef { bytes: 5000, ..m.parts[0].blob }),
        ("a part smaller than its tensors", |m| m.parts[0].blob.bytes = 8 + 36 - 1),
        ("overflow", |m| m.parts[0].tensors[0].shape = vec![1 << 32, 1 << 32]),
        ("overflow behind a zero", |m| m.parts[0].tensors[0].shape = vec![0, 1 << 32, 1 << 32]),
        ("overflow of bytes", |m| m.parts[0].tensors[0].shape = vec![1 << 62]),
        ("dimensions", |m| m.parts[0].tensors[0].shape = vec![1; 9]),
        ("a name without end", |m| m.parts[0].name = "x".repeat(300)),
    ];
    for (what, damage) in cases {
        let mut manifest = manifest();
        damage(&mut manifest);
        assert!(manifest.to_json().is_err(), "{what} was accepted");
    }
}

#[test]
fn counts_are_bounded() {
    let mut many_parts = manifest();
    many_parts.parts = (0..=MAX_PARTS)
        .map(|i| Part { name: i.to_string(), blob: BlobRef { hash: Digest::of(b""), bytes: 0 }, tensors: vec![] })
        .collect();
    assert!(many_parts.validate().unwrap_err().contains("parts; the limit is"));
    let mut many_tensors = manifest();
    let tensor = many_tensors.parts[0].tensors[0].clone();
    many_tensors.parts[0].tensors = vec![tensor; MAX_TENSORS + 1];
    assert!(many_tensors.validate().unwrap_err().contains("tensors; the limit is"));
}

#[test]
fn dtype_names_are_those_of_the_document() {
    use Dtype::*;
    for dtype in [F64, F32, F16, Bf16, I64, I32, I16, I8, U8, Bool] {
        assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
    }
}

proptest! {
    #[test]
    fn numbers_keep_their_last_bit(bits: u64) {
        let value = f64::from_bits(bits);
        prop_assume!(value.is_finite());
        let text = serde_json::to_string(&value).unwrap();
        prop_assert_eq!(serde_json::from_str::<f64>(&text).unwrap().to_bits(), bits);
    }

    /// Flipped, deleted and repeated bytes: an error or a valid manifest, never a panic.
    #[test]
    fn damaged_documents_do_not_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..8),
    ) {
        let mut bytes = manifest().to_json().unwrap();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => { bytes.remove(at); }
                _ => bytes.insert(at, byte),
            }
        }
        if let Ok(read) = Manifest::from_json(&bytes) {
            prop_assert!(read.validate().is_ok());
            let _ = (read.key(), read.bytes(), read.state_hash());
        }
    }

    #[test]
    fn truncated_documents_are_refused(at: prop::sample::Index) {
        let bytes = manifest().to_json().unwrap();
        prop_assert!(Manifest::from_json(&bytes[..at.index(bytes.len())]).is_err());
    }

    /// Any number in any numeric field: never a panic.
    #[test]
    fn absurd_numbers_do_not_panic(bytes: u64, shape in proptest::collection::vec(any::<u64>(), 0..12), images: u64) {
        let mut json = serde_json::to_value(manifest()).unwrap();
        json["parts"][0]["blob"]["bytes"] = bytes.into();
        json["parts"][0]["tensors"][0]["shape"] = shape.into();
        json["cursor"]["images"] = images.into();
        if let Ok(read) = Manifest::from_json(json.to_string().as_bytes()) {
            prop_assert_eq!(read.key().images.0, images);
        }
    }
}
