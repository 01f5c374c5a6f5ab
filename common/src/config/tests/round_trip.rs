//! A configuration survives JSON and its own TOML unchanged; a change is named for what it does.

use super::*;
use crate::config::resolved::Model;

/// The small file and every file of `experiments/`, as they resolve for 1, 2, 4 and 8 workers.
fn runs() -> Vec<Resolved> {
    let mut texts: Vec<_> = experiments().into_iter().map(|(_, text)| text).collect();
    texts.push(SMALL.to_owned());
    texts.push(format!("{SMALL}[train]\nschedule = \"progan-v1\"\n[metrics]\nkinds = []\n"));
    let workers = [1, 2, 4, 8];
    let each = texts.iter().flat_map(|text| workers.map(|n| for_workers(text, &[], &[], n)));
    each.map(|resolved| resolved.unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn json(config: &RunConfig) -> RunConfig {
    serde_json::from_str(&serde_json::to_string(config).unwrap()).unwrap()
}

#[test]
fn every_experiment_resolves() {
    let experiments = experiments();
    let names: Vec<_> = experiments.iter().map(|(name, _)| name.as_str()).collect();
    for shipped in ["progan-1gpu.toml", "progan-faces.toml", "quickstart.toml", "sngan-faces.toml"] {
        assert!(names.contains(&shipped), "{shipped} is missing from {names:?}");
    }
    for (name, text) in &experiments {
        let run = for_workers(text, &[], &[], 8).unwrap_or_else(|error| panic!("{name}: {error}")).config;
        assert_eq!(format!("{}.toml", run.name), *name, "a run is called like its file");
        assert!(plan(&run, 8).reaches_full_resolution(), "{name}");
    }
}

#[test]
fn json_gives_back_the_same_configuration() {
    for resolved in runs() {
        assert_eq!(json(&resolved.config), resolved.config);
    }
}

#[test]
fn what_is_shown_resolves_to_what_was_shown() {
    for resolved in runs() {
        let shown = resolved.to_toml();
        let again = config(&shown);
        assert_eq!(again, resolved.config, "{shown}");
        assert_eq!(amended(&resolved.config, &[]).unwrap().config, resolved.config);
    }
}

#[test]
fn every_value_is_shown_with_its_origin() {
    let text = format!("{SMALL}[train]\nschedule = \"progan-v2\"\nminibatch = {{ 4 = 64 }}\n");
    let shown = for_workers(&text, &[], &["seed=3"], 4).unwrap().to_toml();
    for (start, end) in [
        ("name = \"small\"", "# run.toml:1"),
        ("seed = 3", "# --set"),
        ("source = \"/home/ada/experiments/faces.zip\"", "# run.toml:3"),
        ("resolution = 1024", "# default"),
        ("4 = 64", "# run.toml:6"),
        ("total_kimg = 12000", "# preset progan-v2, 4 workers"),
        ("ema_decay = 0.999", "# preset progan-v2, 4 workers"),
    ] {
        assert!(shown.lines().any(|line| line.starts_with(start) && line.ends_with(end)), "{start} {end}\n{shown}");
    }
    let bare: Vec<_> = shown.lines().filter(|line| line.contains(" = ") && !line.contains(" # ")).collect();
    assert!(bare.is_empty(), "no origin: {bare:?}");
}

#[test]
fn changes_are_named_for_what_they_do() {
    let run = config(SMALL);
    let effects = |set: &[&str]| {
        let changes = diff(&run, &amended(&run, set).unwrap().config);
        changes.into_iter().map(|change| (change.key, change.effect)).collect::<Vec<_>>()
    };
    assert_eq!(effects(&[]), []);
    for (set, key) in [
        ("train.total_kimg=9", "train.total_kimg"),
        ("train.threads=3", "train.threads"),
        ("train.max_per_worker.8=8", "train.max_per_worker.8"),
        ("train.tick_kimg.4=8", "train.tick_kimg.4"),
        ("checkpoint.url=memory://", "checkpoint.url"),
        ("checkpoint.s3.endpoint=https://a.example", "checkpoint.s3.endpoint"),
        ("metrics.every_kimg=9", "metrics.every_kimg"),
        ("samples.grid=4k", "samples.grid"),
        ("cluster.workers=3", "cluster.workers"),
        ("cluster.rehearse=never", "cluster.rehearse"),
        ("data.cache=x", "data.cache"),
    ] {
        assert_eq!(effects(&[set]), [(key.to_owned(), Effect::Safe)]);
    }
    for (set, key) in [
        ("train.minibatch.8=32", "train.minibatch.8"),
        ("train.optimizer.learning_rate=0.5", "train.optimizer.learning_rate.default"),
        ("train.growth.fade_kimg=9", "train.growth.fade_kimg"),
        ("train.ema_half_life_kimg=9", "train.ema_half_life_kimg"),
        ("train.precision=tf32", "train.precision"),
        ("train.reduce_precision=bf16", "train.reduce_precision"),
        ("train.d_repeats=2", "train.d_repeats"),
        ("data.source=other", "data.source"),
        ("data.mirror=false", "data.mirror"),
        ("data.background=black", "data.background"),
    ] {
        assert_eq!(effects(&[set]), [(key.to_owned(), Effect::ChangesDynamics)]);
    }
    for set in ["name=other", "seed=2", "model.latent_size=64", "model.drift=0"] {
        assert!(matches!(effects(&[set])[..], [(_, Effect::Refused(_))]), "{set}");
    }
    let threads = diff(&run, &amended(&run, &["train.threads=2", "train.determinism=bitwise"]).unwrap().config);
    assert!(threads.iter().all(|change| change.effect == Effect::ChangesDynamics), "{threads:?}");
}

#[test]
fn a_change_shows_both_values() {
    let run = config(SMALL);
    let changes = diff(&run, &amended(&run, &["train.total_kimg=9.5", "train.minibatch.8=32"]).unwrap().config);
    let shown: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["train.minibatch.8: unset -> 32 (changes the training)", "train.total_kimg: 15000 -> 9.5"]);
}

proptest::proptest! {
    /// Not every decimal is parsed back to its last bit by a JSON reader that is merely fast.
    #[test]
    fn numbers_survive_to_the_last_bit(
        kimg in 0.001f64..1e9, rate in 1e-12f64..10.0, decay in 0.0f64..0.9999, drift in 0.0f64..1000.0, patience in 0.1f64..3600.0,
    ) {
        let set = [
            format!("train.total_kimg={kimg:?}"), format!("train.optimizer.learning_rate={rate:?}"),
            format!("train.ema_decay={decay:?}"), format!("model.drift={drift:?}"),
            format!("cluster.patience={patience}s"), "cluster.orphan_patience=2h".into(),
        ];
        let set: Vec<_> = set.iter().map(String::as_str).collect();
        let resolved = layered(SMALL, &[], &set).unwrap();
        let Model::ProGan(model) = &resolved.config.model else { panic!() };
        proptest::prop_assert_eq!(model.drift, drift);
        proptest::prop_assert_eq!(resolved.config.train.total_kimg, kimg);
        proptest::prop_assert_eq!(resolved.config.cluster.patience_s, patience);
        proptest::prop_assert_eq!(&json(&resolved.config), &resolved.config);
        proptest::prop_assert_eq!(&config(&resolved.to_toml()), &resolved.config);
        proptest::prop_assert_eq!(&amended(&resolved.config, &[]).unwrap().config, &resolved.config);
    }
}
