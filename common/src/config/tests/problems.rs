//! What is refused, and with which words.

use super::*;

/// The one problem of `text`, as it is printed.
fn only(text: &str) -> String {
    let error = layered(text, &[], &[]).expect_err(text);
    assert_eq!(error.problems.len(), 1, "{error}");
    error.problems[0].to_string()
}

#[test]
fn a_wrong_key_or_value_is_named_with_file_line_key_expectation_and_nearest_name() {
    for (lines, expected) in [
        (
            "[train]\ntotal_kimgs = 3",
            "run.toml:5: train.total_kimgs: unknown key\n    did you mean `train.total_kimg`?",
        ),
        ("[trian]\ntotal_kimg = 3", "run.toml:4: trian: unknown key\n    did you mean `train`?"),
        (
            "[samples]\ntotal_kimg = 3",
            "run.toml:5: samples.total_kimg: unknown key\n    did you mean `train.total_kimg`?",
        ),
        ("[samples]\nzebra = 3", "run.toml:5: samples.zebra: unknown key\n    valid here: every_kimg, grid"),
        (
            "[train]\nprecision = \"fp23\"",
            "run.toml:5: train.precision: expected one of \"fp32\", \"tf32\", \"bf16\", found \"fp23\"\n    did you mean \"fp32\"?",
        ),
        (
            "[train]\ntotal_kimg = \"3\"",
            "run.toml:5: train.total_kimg: expected a number from 0.001 to 1000000000, found \"3\"",
        ),
        (
            "[train]\ntotal_kimg = 0",
            "run.toml:5: train.total_kimg: expected a number from 0.001 to 1000000000, found 0",
        ),
        (
            "[train]\ntotal_kimg = inf",
            "run.toml:5: train.total_kimg: expected a number from 0.001 to 1000000000, found inf",
        ),
        (
            "[train]\ntotal_kimg = nan",
            "run.toml:5: train.total_kimg: expected a number from 0.001 to 1000000000, found NaN",
        ),
        ("[train]\nd_repeats = 1.5", "run.toml:5: train.d_repeats: expected a whole number from 1 to 100, found 1.5"),
        ("[train.minibatch]\n100 = 8", "run.toml:5: train.minibatch.100: unknown key"),
        (
            "[train.minibatch]\n64 = 0",
            "run.toml:5: train.minibatch.64: expected a whole number from 1 to 65536, found 0",
        ),
        (
            "[train]\nminibatch = \"big\"",
            "run.toml:5: train.minibatch.default: expected a whole number from 1 to 65536, found \"big\"",
        ),
        (
            "[model]\nresolution = 100",
            "run.toml:5: model.resolution: expected one of 4, 8, 16, 32, 64, 128, 256, 512, 1024, found 100",
        ),
        (
            "[model]\nfamily = \"pragan\"\nresolution = 64",
            "run.toml:5: model.family: expected one of \"progan\", \"sngan\", \"cyclegan\", \"pix2pix\", found \"pragan\"\n    did you mean \"progan\"?",
        ),
        (
            "[model]\nlatent_size = 99999999999999",
            "run.toml:5: model.latent_size: expected a whole number from 1 to 8192, found 99999999999999",
        ),
        ("[cluster]\npatience = \"2 weeks\"", "run.toml:5: cluster.patience: expected a length of time"),
        ("[cluster]\npatience = \"2d\"", "run.toml:5: cluster.patience: expected 0.1s to 1h, found \"2d\""),
        ("[cluster]\npatience = 2", "run.toml:5: cluster.patience: expected a text in quotes, found 2"),
        (
            "[cluster]\nworkers = \"all\"",
            "run.toml:5: cluster.workers: expected \"auto\" or a whole number from 1 to 4096, found \"all\"",
        ),
        ("[checkpoint]\nurl = \"s4://x\"", "run.toml:5: checkpoint.url: expected one of s3://"),
        ("[checkpoint]\ns3.endpoint = \"http://x\"", "run.toml:5: checkpoint.s3.endpoint: without TLS"),
        ("[checkpoint]\ns3.region = \"a b\"", "run.toml:5: checkpoint.s3.region: expected the name of a region"),
        (
            "[metrics]\nkinds = [\"fid\"]",
            "run.toml:5: metrics.kinds: expected a list, each item one of \"swd\", \"kid\", \"frechet\", \"cycle\", \"twins\", \"diversity\", found a list with \"fid\"",
        ),
        ("[[samples]]\ngrid = \"4k\"", "run.toml:4: samples: expected a table of keys, found a single value"),
        ("[model.resolution]\nx = 1", "run.toml:4: model.resolution: expected one of 4"),
    ] {
        let text = format!("{SMALL}{lines}\n");
        let found = only(&text);
        assert!(found.starts_with(expected), "for {lines:?}\nexpected {expected}\nfound    {found}");
    }
}

#[test]
fn values_that_do_not_fit_together() {
    for (lines, expected) in [
        (
            "[model]\nresolution = 64\n[train]\ngrowth.start_resolution = 128",
            "run.toml:7: train.growth.start_resolution: 128 is above",
        ),
        (
            "[model]\nfmap_base = 256",
            "run.toml:5: model.fmap_base: 256 leaves no feature map at 1024 pixels\n    at least 512",
        ),
        (
            "[train.growth]\nfade_kimg = 1e-9",
            "run.toml:5: train.growth.fade_kimg: 0.000000001 kimg is less than one image",
        ),
        ("[train.minibatch]\n64 = 18", "run.toml:5: train.minibatch.64: 18 cannot be cut into groups of 4"),
        ("[train]\nminibatch = 18", "run.toml:5: train.minibatch.default: 18 cannot be cut into groups of 4"),
        ("[model]\nminibatch_stddev_group = 5", "default: train.minibatch.default: 16 cannot be cut into groups of 5"),
        (
            "[train]\nmax_per_worker = { 64 = 2 }",
            "run.toml:5: train.max_per_worker.64: 2 samples do not hold one group of 4",
        ),
        (
            "[train]\nmax_per_worker = 2",
            "run.toml:5: train.max_per_worker.default: 2 samples do not hold one group of 4",
        ),
        (
            "[train]\ndeterminism = \"bitwise\"\n[cluster]\nbackend = \"nccl\"",
            "run.toml:5: train.determinism: \"bitwise\" needs CPU",
        ),
        (
            "[train]\ndeterminism = \"bitwise\"\nprecision = \"bf16\"",
            "run.toml:5: train.determinism: \"bitwise\" is defined for single",
        ),
        (
            "[train]\ndeterminism = \"bitwise\"\nreduce_precision = \"bf16\"",
            "run.toml:5: train.determinism: \"bitwise\" sums in single",
        ),
        (
            "[model]\nfamily = \"sngan\"\n[train]\ngrowth.fade_kimg = 2",
            "run.toml:7: train.growth.fade_kimg: networks of family \"sngan\" do not grow",
        ),
        (
            "[model]\nfamily = \"sngan\"\n[train]\nschedule = \"progan-v2\"",
            "run.toml:7: train.schedule: networks of family \"sngan\" do not grow",
        ),
        (
            "[model]\nfamily = \"sngan\"\nfmap_max = 64",
            "run.toml:6: model.fmap_max: not a key of the family \"sngan\"\n    valid here: family, resolution, latent_size, width",
        ),
        (
            "[model]\nfamily = \"sngan\"\nresolution = 1024\nwidth = 16384",
            "run.toml:7: model.width: networks of 417.7 billion parameters\n    at most 4.0 billion in all",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\n[train]\nconstant_epochs = 3\ntotal_kimg = 3",
            "run.toml:8: train.total_kimg: cannot stand beside train.constant_epochs",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\n[train]\nconstant_epochs = 0\ndecay_epochs = 0",
            "run.toml:7: train.constant_epochs: a run of no passes over the data\n    at least 1",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\n[train]\nema_decay = 0.9",
            "run.toml:7: train.ema_decay: the generators have no moving average\n    with model.average = true they have",
        ),
        (
            "[model]\nfamily = \"pix2pix\"\n[train]\nema_decay = 0.9",
            "run.toml:7: train.ema_decay: networks of family \"pix2pix\" keep no moving average",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nresolution = 16",
            "default: model.d_layers: 3 layers leave nothing to judge at 16 pixels\n    fewer layers, or model.resolution = 32",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nresolution = 16\nd_layers = [1, 3]",
            "run.toml:7: model.d_layers: 3 layers leave nothing to judge at 16 pixels",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nd_layers = []",
            "run.toml:6: model.d_layers: 0 discriminators a domain\n    one number, or a list of 1 to 3",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nd_layers = [0, 1, 2, 3]",
            "run.toml:6: model.d_layers: 4 discriminators a domain",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nd_layers = [1, 7]",
            "run.toml:6: model.d_layers: expected a whole number from 0 to 6",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nresolution = 16\ng_downs = 4\nd_layers = 1",
            "run.toml:7: model.g_downs: 4 halvings leave one pixel of 16\n    fewer, or model.resolution = 32 or more",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\n[train]\nd_repeats = 2",
            "run.toml:7: train.d_repeats: networks of family \"cyclegan\" take one step of D",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\nresolution = 1024",
            "default: data.load_size: 286 is less than model.resolution, which is 1024\n    at least 1024; 1144 is usual",
        ),
        (
            "[model]\nfamily = \"cyclegan\"\npool_size = 10000\n[metrics]\nkinds = [\"swd\"]",
            "run.toml:8: metrics.kinds: \"swd\" is not for images of family \"cyclegan\"",
        ),
        (
            "[metrics]\nkinds = [\"swd\", \"twins\"]",
            "run.toml:5: metrics.kinds: \"twins\" is not for images of family \"progan\"\n    leave it out of the list",
        ),
        ("[metrics]\njudge = \"kid\"", "run.toml:5: metrics.judge: it is not computed"),
        ("[metrics]\njudge = \"diversity\"", "run.toml:5: metrics.judge: it is not computed, or says nothing"),
        (
            "[train.stop]\nevaluations = 3\n[metrics]\nevery_kimg = 0",
            "run.toml:5: train.stop.evaluations: nothing is evaluated during training",
        ),
        ("[train.stop]\nbudget = \"0s\"", "run.toml:5: train.stop.budget: expected 1s to 365d, found \"0s\""),
        (
            "[model]\nfamily = \"cyclegan\"\n[train]\nminibatch = 65536",
            "default: model.pool_size: with the minibatch, image pools of 103 GB",
        ),
        (
            "[model]\nfamily = \"pix2pix\"\nresolution = 128",
            "default: model.g_downs: 128 pixels cannot be halved 8 times\n    at most 7",
        ),
        (
            "[train]\nepoch_images = 9",
            "run.toml:5: train.epoch_images: the run's length is not in passes over the data",
        ),
        ("[cluster]\nbackend = \"solo\"\nworkers = 2", "run.toml:5: cluster.backend: \"solo\" is one worker"),
        (
            "[cluster]\npatience = \"20s\"\norphan_patience = \"10s\"",
            "run.toml:6: cluster.orphan_patience: shorter than cluster.patience, which is 20s",
        ),
        (
            "[train]\nema_decay = 0.9\nema_half_life_kimg = 3",
            "run.toml:5: train.ema_decay: cannot stand beside train.ema_half_life_kimg",
        ),
    ] {
        let found = only(&format!("{SMALL}{lines}\n"));
        assert!(found.starts_with(expected), "for {lines:?}\nexpected {expected}\nfound    {found}");
    }
    // what a run never reaches, it need not fit
    assert!(layered(&format!("{SMALL}[model]\nresolution = 32\n[train.minibatch]\n64 = 18\n"), &[], &[]).is_ok());
}

#[test]
fn names_of_runs() {
    let with = |name: &str| layered(&format!("name = \"{name}\"\n[data]\nsource = \"x\""), &[], &[]);
    for good in ["a", "0", "a.b_c-9", &"x".repeat(64)] {
        assert!(with(good).is_ok(), "{good}");
    }
    for bad in ["", ".a", "..", "A", "a b", "a/b", "é", &"x".repeat(65)] {
        assert_eq!(with(bad).unwrap_err().problems[0].key, "name", "{bad}");
    }
    assert_eq!(with("My Run!").unwrap_err().problems[0].hint.as_deref(), Some("for example \"my-run-\""));
}

#[test]
fn what_is_missing_is_asked_for() {
    let error = layered("", &[], &[]).unwrap_err();
    assert_eq!(error.problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(), ["name", "data.source"]);
    assert_eq!(error.problems[0].to_string(), "name: missing\n    add name = \"my-run\" at the top of the file");
}

#[test]
fn text_that_is_not_toml_is_one_problem_with_its_line() {
    let found = only(&format!("{SMALL}\n[train\n"));
    assert!(found.starts_with("run.toml:5: "), "{found}");
    assert!(only("name = \"a\"\nname = \"b\"").starts_with("run.toml:2: duplicate key"));
}

#[test]
fn all_problems_are_reported_in_the_order_of_their_lines() {
    let text = "[samples]\ngird = \"4k\"\n[train]\nprecision = \"fp8\"\n[train.minibatch]\n8 = 6\n";
    let error = layered(text, &[("GANFLEET__SEED", "-1")], &["train.nothing=1", "novalue"]).unwrap_err();
    let places: Vec<_> =
        error.problems.iter().map(|p| (p.origin.as_ref().map(ToString::to_string), p.key.as_str())).collect();
    let from = |text: &str| Some(text.to_owned());
    let expected = [
        (from("run.toml:2"), "samples.gird"),
        (from("run.toml:4"), "train.precision"),
        (from("run.toml:6"), "train.minibatch.8"),
        (None, "name"),
        (None, "data.source"),
        (from("--set"), "novalue"),
        (from("environment GANFLEET__SEED"), "seed"),
        (from("--set"), "train.nothing"),
    ];
    assert_eq!(places, expected, "{error}");
}

#[test]
fn overrides_are_checked_like_the_file() {
    let error =
        layered(SMALL, &[("GANFLEET__TRAIN__TOTL_KIMG", "3")], &["train.precision=fp64", "=3", "train=1"]).unwrap_err();
    let text = error.to_string();
    for expected in [
        "environment GANFLEET__TRAIN__TOTL_KIMG: train.totl_kimg: unknown key\n    did you mean `train.total_kimg`?",
        "--set: train.precision: expected one of",
        "--set: train: expected a table of keys",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert_eq!(error.problems.len(), 4, "{text}");
}

#[test]
fn a_secret_in_an_address_is_refused_and_not_repeated() {
    let text =
        format!("{SMALL}[checkpoint]\nurl = \"s3://key:hunter2@bucket/x\"\ns3.endpoint = \"https://u:hunter2@host\"\n");
    let error = layered(&text, &[], &[]).unwrap_err();
    assert_eq!(error.problems.len(), 2, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn a_checkpoint_that_was_altered_is_refused_like_a_file() {
    let mut run = config(SMALL);
    run.train.minibatch_base = 0;
    run.train.optimizer.learning_rate = f64::NAN;
    run.cluster.patience_s = -1.0;
    let error = amended(&run, &[]).unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|p| p.key.as_str()).collect();
    for key in ["train.minibatch.default", "train.optimizer.learning_rate.default", "cluster.patience"] {
        assert!(keys.contains(&key), "{key}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String, name: String, value: String, set: String) {
        let name = format!("{ENV_PREFIX}{name}");
        let _ = layered(&text, &[(&name, &value)], &[&set, &format!("{name}={value}")]);
    }

    #[test]
    fn no_value_of_a_known_key_makes_it_panic(at in 0usize..200, value in ".{0,24}", number: f64, whole: i64) {
        let keys = keys();
        let key = &keys[at % keys.len()];
        for value in [value, format!("{number:?}"), whole.to_string(), "[]".into(), "{}".into(), "true".into()] {
            if let Ok(resolved) = layered(SMALL, &[], &[&format!("{key}={value}")]) {
                let plan = plan(&resolved.config, 3);
                proptest::prop_assert!(plan.images >= resolved.config.train.total_images());
            }
        }
    }

    /// Bytes of valid files replaced, cut out and doubled.
    #[test]
    fn no_damaged_file_makes_it_panic(
        which in 0usize..4, cuts in proptest::collection::vec((0.0f64..1.0, 0.0f64..1.0, ".{0,4}"), 1..4),
    ) {
        let mut files = experiments();
        files.push(("default".into(), DEFAULTS.into()));
        let mut text: Vec<char> = files[which % files.len()].1.chars().collect();
        for (from, length, new) in cuts {
            let from = (from * text.len() as f64) as usize;
            let to = (from + (length * length * 40.0) as usize).min(text.len());
            text.splice(from..to, new.chars());
        }
        let text: String = text.into_iter().collect();
        match layered(&text, &[], &[]) {
            Ok(resolved) => proptest::prop_assert!(plan(&resolved.config, 2).d_steps > 0),
            Err(error) => proptest::prop_assert!(!error.problems.is_empty() && !error.to_string().is_empty()),
        }
    }
}
