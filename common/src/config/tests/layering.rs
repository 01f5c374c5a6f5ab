//! Which layer wins, what each value's origin is, and where relative paths start.

use super::*;
use crate::config::resolved::{Backend, Ema, Grid, Model};
use crate::families::FAMILIES;
use crate::families::progan::{GpNorm, Upscale};
use crate::growth::{Growth, Level};
use crate::ids::ImagesSeen;
use crate::schedule::Stage;

#[test]
fn each_layer_overrides_the_ones_before() {
    let file = format!("{SMALL}[train]\ntotal_kimg = 20\n");
    let env = ("GANFLEET__TRAIN__TOTAL_KIMG", "30");
    let total = |text: &str, env: &[_], set: &[_]| {
        let resolved = layered(text, env, set).unwrap();
        (resolved.config.train.total_kimg, resolved.origin("train.total_kimg").unwrap().to_string())
    };
    assert_eq!(total(SMALL, &[], &[]), (15_000.0, "default".into()));
    let preset = format!("{SMALL}[train]\nschedule = \"progan-v2\"\n");
    assert_eq!(total(&preset, &[], &[]), (12_000.0, "preset progan-v2, 1 worker".into()));
    assert_eq!(total(&file, &[], &[]), (20.0, "run.toml:5".into()));
    assert_eq!(total(&file, &[], &["train.schedule=progan-v2"]), (20.0, "run.toml:5".into()));
    assert_eq!(total(&file, &[env], &[]), (30.0, "environment GANFLEET__TRAIN__TOTAL_KIMG".into()));
    assert_eq!(total(&file, &[env], &["train.total_kimg=40"]), (40.0, "--set".into()));
    assert_eq!(total(&file, &[env], &["train.total_kimg=40", "train.total_kimg=50"]), (50.0, "--set".into()));
}

#[test]
fn the_defaults_file_has_every_key_and_these_values() {
    let texts = std::iter::once(DEFAULTS).chain(FAMILIES.iter().filter_map(|family| family.defaults));
    let files: Vec<_> = texts.map(|text| toml_edit::Document::parse(text).unwrap()).collect();
    for key in keys() {
        let within = |file: &toml_edit::Document<&str>| {
            key.split('.').try_fold(file.as_item().clone(), |item, part| item.get(part).cloned())
        };
        let item = files.iter().find_map(within);
        let name = key.rsplit('.').next().unwrap();
        let entry = name == "default" || name.parse::<u32>().is_ok();
        let commented = DEFAULTS.lines().any(|line| line.starts_with(&format!("# {name} = ")));
        assert!(item.is_some() || entry || commented, "{key} is in no file of defaults");
    }

    let run = config(SMALL);
    let Model::ProGan(model) = &run.model else { panic!() };
    assert_eq!((model.resolution, model.latent_size, model.fmap_base, model.fmap_max), (1024, 512, 8192, 512));
    assert_eq!((model.upscale, model.gp_norm, model.minibatch_stddev_group), (Upscale::Fused, GpNorm::Active, 4));
    assert_eq!((model.gp_weight, model.gp_target, model.drift), (10.0, 1.0, 0.001));
    assert_eq!(run.train.ema, Ema::HalfLifeKimg(10.0));
    assert_eq!(
        (run.train.growth.stable_kimg, run.train.growth.fade_kimg, run.train.minibatch_base),
        (600.0, 600.0, 16)
    );
    assert_eq!((run.cluster.patience_s, run.cluster.orphan_patience_s), (2.0, 600.0));
    assert_eq!((run.cluster.workers, run.cluster.backend, run.train.threads), (0, Backend::Auto, 0));
    assert_eq!((run.samples.grid, run.metrics.swd, run.metrics.images), (Grid::Hd, true, 16_384));
    assert_eq!((run.data.cache, run.data.background), (None, [255; 3]));
    // gan.md 1.11
    let ticks = [4, 8, 16, 32, 64, 128, 256, 512, 1024].map(|pixels| run.train.tick_images_at(pixels) / 1000);
    assert_eq!(ticks, [160, 140, 120, 100, 80, 60, 40, 20, 10]);
}

#[test]
fn a_table_changes_what_it_names_and_one_with_a_default_replaces_the_presets() {
    let with = |table: &str, set: &[&str]| {
        let text = format!("{SMALL}[train]\nschedule = \"progan-v2\"\n{table}");
        let train = layered(&text, &[], set).unwrap().config.train;
        [4, 8, 64, 1024].map(|pixels| train.minibatch_at(pixels))
    };
    assert_eq!(with("", &[]), [128, 128, 32, 4]);
    assert_eq!(with("minibatch = { 1024 = 8 }", &[]), [128, 128, 32, 8]);
    assert_eq!(with("[train.minibatch]\n4 = 64\ndefault = 16", &[]), [64, 16, 16, 16]);
    assert_eq!(with("minibatch = 16", &[]), [16, 16, 16, 16]);
    assert_eq!(with("minibatch = { 1024 = 8 }", &["train.minibatch.4=512"]), [512, 128, 32, 8]);
    assert_eq!(with("minibatch = { 1024 = 8 }", &["train.minibatch=16"]), [16, 16, 16, 16]);
    assert_eq!(with("minibatch = { 1024 = 8 }", &["train.minibatch.default=16"]), [16, 16, 16, 8]);
    assert_eq!(with("minibatch = 16", &["train.minibatch={8 = 32}"]), [16, 32, 16, 16]);
}

#[test]
fn limits_per_worker_cover_every_resolution_that_they_are_given_for() {
    let limits = |line: &str| config(&format!("{SMALL}[model]\nresolution = 16\n[train]\n{line}")).train.max_per_worker;
    assert_eq!(limits("").into_iter().collect::<Vec<_>>(), []);
    assert_eq!(limits("max_per_worker = 8").into_iter().collect::<Vec<_>>(), [(4, 8), (8, 8), (16, 8)]);
    assert_eq!(limits("max_per_worker = { 8 = 12 }").into_iter().collect::<Vec<_>>(), [(8, 12)]);
}

#[test]
fn one_way_of_averaging_replaces_the_other_of_the_layers_below() {
    let ema = |set: &[&str]| layered(&format!("{SMALL}[train]\nema_decay = 0.99"), &[], set).unwrap().config.train.ema;
    assert_eq!(ema(&[]), Ema::Decay(0.99));
    assert_eq!(ema(&["train.ema_half_life_kimg=5"]), Ema::HalfLifeKimg(5.0));
    assert_eq!(ema(&["train.ema_half_life_kimg=5", "train.ema_decay=0.5"]), Ema::Decay(0.5));
}

#[test]
fn texts_need_no_quotes_outside_a_file() {
    let set = ["name=7", "cluster.patience=3s", "data.background=black", "metrics.kinds=[]", "cluster.workers=auto"];
    let run = layered(SMALL, &[("GANFLEET__CHECKPOINT__URL", "\"s3://b/x\"")], &set).unwrap().config;
    assert_eq!((run.name.as_str(), run.cluster.patience_s, run.data.background), ("7", 3.0, [0; 3]));
    assert_eq!((run.metrics.swd, run.checkpoint.url.as_str()), (false, "s3://b/x"));
}

#[test]
fn only_variables_with_the_prefix_are_keys() {
    let env = [("PATH", "/bin"), ("GANFLEET_LOG", "debug"), ("GANFLEET__SEED", "9")];
    assert_eq!(layered(SMALL, &env, &[]).unwrap().config.seed, 9);
}

#[test]
fn relative_paths_start_at_the_file_or_where_the_command_was_given() {
    let text = "name = \"a\"\n[data]\nsource = \"../faces\"\ncache = \"c\"\n[checkpoint]\nurl = \"../runs\"\ns3.ca = \"ca.pem\"";
    let run = config(text);
    assert_eq!(run.data.source, "/home/ada/faces");
    assert_eq!(run.data.cache.as_deref(), Some("/home/ada/experiments/c"));
    assert_eq!(run.checkpoint.url, "file:///home/ada/runs");
    assert_eq!(run.checkpoint.s3.ca.as_deref(), Some("/home/ada/experiments/ca.pem"));
    let set = ["data.source=x.zip", "checkpoint.url=out"];
    let run = layered(text, &[("GANFLEET__DATA__CACHE", "./d")], &set).unwrap().config;
    assert_eq!(run.data.source, "/home/ada/desk/x.zip");
    assert_eq!(run.data.cache.as_deref(), Some("/home/ada/desk/d"));
    assert_eq!(run.checkpoint.url, "file:///home/ada/desk/out");
    assert_eq!(config(SMALL).checkpoint.url, "file:///home/ada/desk/runs");
}

#[test]
fn a_run_that_exists_keeps_everything_but_what_is_set() {
    let run = config(&format!("{SMALL}[train]\nschedule = \"progan-v2\"\n"));
    let more = amended(&run, &["train.total_kimg=20000"]).unwrap();
    assert_eq!(more.origin("train.total_kimg"), Some(&Origin::Set));
    assert_eq!(more.origin("train.minibatch.1024"), Some(&Origin::Checkpoint));
    let mut expected = run.clone();
    expected.train.total_kimg = 20_000.0;
    assert_eq!(more.config, expected);

    let error = amended(&run, &["train.schedule=progan-v1"]).unwrap_err();
    assert!(
        error.to_string().contains("--set: train.schedule: the preset was applied when the run was created"),
        "{error}"
    );
}

#[test]
fn every_family_of_the_schema_is_in_the_list_of_families() {
    let schema = json_schema().to_string();
    for family in FAMILIES {
        assert!(schema.contains(&format!("\"const\":\"{}\"", family.name)), "{}", family.name);
        let run = config(&format!("{SMALL}[model]\nfamily = \"{}\"", family.name));
        assert_eq!((run.model.family(), run.model.grows()), (family.name, family.grows));
    }
    let families = schema.matches("\"family\":{").count();
    assert_eq!(families, FAMILIES.len(), "a variant of RawModel is missing from FAMILIES");
}

#[test]
fn a_run_may_be_as_long_as_its_data_say() {
    let cyclegan = |lines: &str| format!("{SMALL}[model]\nfamily = \"cyclegan\"\n{lines}");
    let run = for_workers(&cyclegan(""), &[], &[], 4).unwrap().config;
    // one sample for each worker at launch, and no length before the data are known
    assert_eq!((run.train.minibatch_at(256), run.train.total_images()), (4, 0));
    assert_eq!((run.data.load_size, run.train.length()), (Some(286), "200 passes over the data".to_owned()));
    let mut known = run.clone();
    assert!(known.train.know_epoch(1334) && !known.train.know_epoch(7), "data are known once");
    assert_eq!((known.train.total_images(), known.train.length()), (266_800, "266.8 kimg (200 passes)".to_owned()));
    let rate = |images| Stage::at(&known, ImagesSeen(images)).learning_rate;
    assert_eq!((rate(0), rate(199 * 1334)), (2e-4, 0.0));
    assert!((rate(149 * 1334) - 2e-4 * 50.0 / 101.0).abs() < 1e-12);
    // as it travels and is resumed, it stays
    assert_eq!(amended(&known, &[]).unwrap().config, known);
    let longer = amended(&known, &["train.decay_epochs=150"]).unwrap().config;
    assert_eq!(longer.train.total_images(), 250 * 1334);

    let fixed = config(&cyclegan("[train]\ntotal_kimg = 5"));
    assert_eq!((fixed.train.total_images(), fixed.train.epochs), (5000, None));
    let said = for_workers(&cyclegan("[train]\nminibatch = 3\nconstant_epochs = 7"), &[], &[], 4).unwrap().config;
    assert_eq!((said.train.minibatch_at(256), said.train.epochs.unwrap().total()), (3, 107));
    let averaged = config(&cyclegan("average = true"));
    assert_eq!((fixed.model.averages(), averaged.model.averages()), (false, true));
    assert_eq!(averaged.train.ema, Ema::HalfLifeKimg(1.0));
    assert_eq!(amended(&averaged, &[]).unwrap().config, averaged);
    let growing = config(&format!("{SMALL}[train]\nconstant_epochs = 7"));
    assert_eq!(growing.train.epochs.map(|epochs| epochs.total()), Some(7));
    // what each sample is shown next lies in the checkpoint
    let effects = diff(&known, &amended(&known, &["train.minibatch=5"]).unwrap().config);
    assert!(matches!(effects[..], [Change { effect: Effect::Refused(_), .. }]), "{effects:?}");
}

#[test]
fn a_family_brings_its_own_defaults() {
    let run = config(&format!("{SMALL}[model]\nfamily = \"sngan\"\nwidth = 64\n[train]\nminibatch = {{ 32 = 100 }}"));
    let Model::Sngan(model) = &run.model else { panic!() };
    assert_eq!((model.resolution, model.latent_size, model.width), (32, 100, 64));
    let train = &run.train;
    // gan.md 6; what it does not name is the default of all
    assert_eq!((train.optimizer.beta1, train.optimizer.beta2, train.learning_rate_at(32)), (0.5, 0.999, 2e-4));
    assert_eq!((train.minibatch_at(32), train.minibatch_at(64), train.d_repeats), (100, 64, 1));
    assert_eq!(train.growth, Growth::none(32));
    // every sample is a group of its own, at the full resolution, from the first image to the last
    for images in [0, 1_000_000] {
        let stage = Stage::at(&run, ImagesSeen(images));
        assert_eq!((stage.level, stage.groups()), (Level { lod: 0.0, resolution: 32 }, 100));
    }
    assert_eq!(plan(&run, 3).phases.len(), 1);
    // the run as it travels and is resumed: no key of it is refused
    assert_eq!(amended(&run, &[]).unwrap().config, run);
    assert!(amended(&run, &["train.growth.fade_kimg=1"]).is_err());
}
