//! Weights that travel: what the original repositories' networks compute with our weights, and ours with theirs.
//!
//! Those networks are `tests/python/original_networks.py`, run by a Python with PyTorch; where there is none, this is skipped. Files are in
//! single precision, and both sides compute in double: what they are apart is not rounding.

use common::config::resolved::{Model, RunConfig};
use common::config::{Base, Layers, resolve};
use common::families::elsewhere::{AVERAGE, Format, networks};
use common::families::patchgan::PatchGan;
use common::growth::Level;
use common::ids::ImagesSeen;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor, no_grad};
use worker::export::Export;
use worker::import;
use worker::models::patchgan::Judge;
use worker::models::{self, Batch, Draw, GanModel, Role};
use worker::trained::tensors;
use worker::weights::{Element, Entry, read, write_safetensors};

/// Exit code of `scripts/peer-python` for "not laid".
const NEEDS: i32 = 69;
/// Samples of one standard deviation in D: the zoo knows no other number.
const GROUP: u32 = 4;
/// How far two programs may be apart, relative to the largest number.
const CLOSE: f64 = 1e-5;

/// A Python with PyTorch, if there is one.
fn python() -> Option<PathBuf> {
    let script = repository().join("scripts/peer-python");
    let answer = Command::new(script).output().expect("scripts/peer-python can be started");
    if answer.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim()));
    }
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(answer.status.code(), Some(NEEDS), "{said}");
    let needs = said.trim().trim_start_matches("peer-python: needs ");
    assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs {needs}");
    println!("skipped: needs {needs}");
    None
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository's root")
}

/// One architecture, its networks and a folder for them.
struct Case {
    name: &'static str,
    config: RunConfig,
    model: Box<dyn GanModel>,
    folder: PathBuf,
}

impl Case {
    /// Networks of which no number is as it was drawn.
    fn new(name: &'static str, keys: &str, within: &Path) -> Self {
        let folder = within.join(name);
        std::fs::create_dir(&folder).unwrap();
        let config = config(keys, 1);
        let model = models::build(&config, Kind::Double, Device::Cpu);
        let all = tensors(model.as_ref());
        for (tensor, number) in all.values().zip(1..) {
            let noise = normals(number, &tensor.size()) * 0.1;
            no_grad(|| {
                let mut tensor = tensor.shallow_clone();
                // files hold single precision
                let moved = (&tensor + noise).to_kind(Kind::Float);
                tensor.copy_(&moved);
            });
        }
        // a bias that their networks have not would make ours something else
        for name in networks(&config.model, config.model.resolution()).iter().flat_map(|network| &network.alone) {
            let _zero = all[name].shallow_clone().zero_();
        }
        Self { name, config, model, folder }
    }

    fn level(&self) -> Level {
        full(&self.config.model)
    }

    /// Writes the networks into `folder`.
    fn export(&self, format: Format, folder: &Path) {
        let (level, images) = (self.level(), ImagesSeen(0));
        let export = Export { of: &self.config.model, model: self.model.as_ref(), level, run: "ours", images };
        export.write(format, folder).unwrap();
    }

    /// Exports the networks in both forms, and says what the other side is to do with them.
    fn prepare(&self) {
        let zoo = matches!(self.config.model, Model::ProGan(_));
        let original = if zoo { Format::GanZoo } else { Format::PytorchCycleGan };
        for format in [original, Format::Safetensors] {
            self.export(format, &self.folder.join(format.to_string()));
        }
        let scale = self.level().resolution.ilog2() - 2;
        let mut about = serde_json::Map::new();
        let mut inputs = Vec::new();
        for network in networks(&self.config.model, self.level().resolution) {
            let name = network.name;
            let theirs = match zoo {
                true => json!({ "path": format!("{original}/ours_s{scale}_i0.pt"), "key": name }),
                false => json!({ "path": format!("{original}/latest_net_{name}.pth") }),
            };
            let mut spec = spec(&self.config.model, name);
            spec["files"] = json!([theirs, { "path": format!("safetensors/{name}.safetensors") }]);
            about.insert(name.to_owned(), spec);
            inputs.push((name, input(&self.config.model, name)));
        }
        std::fs::write(self.folder.join("case.json"), Value::Object(about).to_string()).unwrap();
        let entry = |(name, tensor): &(&str, Tensor)| {
            let tensor = tensor.shallow_clone();
            Entry::new(name, &tensor.size(), Element::Float, move || tensor.shallow_clone())
        };
        let entries: Vec<Entry<'_>> = inputs.iter().map(entry).collect();
        write_safetensors(&self.folder.join("inputs.safetensors"), &entries).unwrap();
    }

    /// Compares what they compute with our weights, and what ours compute with theirs.
    fn judge(&self) {
        let inputs = read(&self.folder.join("inputs.safetensors")).unwrap();
        let theirs = imported(&self.config, &self.folder.join("theirs"));
        for (file, model) in [("outputs.safetensors", self.model.as_ref()), ("theirs.safetensors", theirs.as_ref())] {
            let outputs = read(&self.folder.join(file)).unwrap();
            assert_eq!(outputs.len(), inputs.len(), "{}: {file}", self.name);
            for (network, expected) in outputs {
                let what = format!("{}: {network} of {file}", self.name);
                let found = output(&self.config.model, model, &network, &inputs[&network].to_kind(Kind::Double));
                // of D's scores, ours tells the mean of each group
                let expected = match network.as_str() {
                    "netD" => expected.view([-1, i64::from(GROUP)]).mean_dim(&[1i64][..], false, None::<Kind>),
                    _ => expected,
                };
                assert_eq!(found.size(), expected.size(), "{what}");
                let size = expected.abs().max().double_value(&[]).max(1.0);
                let apart = (found - expected).abs().max().double_value(&[]) / size;
                assert!(apart < CLOSE, "{what} is {apart:e} away");
            }
        }
    }
}

fn full(model: &Model) -> Level {
    Level { lod: 0.0, resolution: model.resolution() }
}

/// Networks of another seed with what lies in `folder` put in.
fn imported(like: &RunConfig, folder: &Path) -> Box<dyn GanModel> {
    let config = RunConfig { seed: 2, ..like.clone() };
    let model = models::build(&config, Kind::Double, Device::Cpu);
    let taken = import::put(&config.model, folder, None, model.as_ref()).unwrap();
    assert!(taken.drawn.is_empty(), "{taken:?}");
    model
}

fn config(keys: &str, seed: u64) -> RunConfig {
    let text = format!("name = \"t\"\nseed = {seed}\n[data]\nsource = \"images\"\n[model]\n{keys}");
    let folder = Path::new("/nowhere");
    let base = Base::File { path: "t.toml", text: &text, folder };
    let resolved = resolve(&Layers { base, env: &[], set: &[], working_dir: folder }, 1);
    resolved.unwrap_or_else(|error| panic!("{error}")).config
}

/// What the other side has to build.
fn spec(model: &Model, network: &str) -> Value {
    let judge = |patches: PatchGan, norm: &str| {
        let (inputs, width) = (patches.inputs, patches.width);
        match patches.layers {
            0 => json!({ "kind": "pixels", "inputs": inputs, "width": width, "norm": norm }),
            layers => json!({ "kind": "patches", "inputs": inputs, "width": width, "layers": layers, "norm": norm }),
        }
    };
    match (model, network) {
        (Model::CycleGan(a), "G_A" | "G_B") => json!({ "kind": "resnet", "width": a.g_width, "blocks": a.g_blocks }),
        (Model::CycleGan(a), _) => judge(a.judges("a")[0].1, "instance"),
        (Model::Pix2Pix(a), "G") => json!({ "kind": "unet", "width": a.g_width, "downs": a.g_downs }),
        (Model::Pix2Pix(a), _) => judge(a.patches(), "batch"),
        (Model::ProGan(a), network) => {
            let depths: Vec<i64> = a.resolutions().map(|resolution| a.channels(resolution)).collect();
            match network {
                "netD" => json!({ "kind": "dnet", "depths": depths }),
                _ => {
                    json!({ "kind": "gnet", "latent": a.latent_size, "depths": depths, "by_position": a.position_bias })
                }
            }
        }
        (other, _) => panic!("nobody else has a {}", other.family()),
    }
}

/// The same numbers each time, in single precision.
fn normals(number: u64, shape: &[i64]) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product::<i64>() as usize];
    Stream::new(number, Purpose::Sample, 0, 0).normals(&mut values);
    Tensor::from_slice(&values).view(shape)
}

/// What a network is tried with. Images of ProGAN's D were bytes once, for ours is shown nothing else.
fn input(model: &Model, network: &str) -> Tensor {
    let side = i64::from(model.resolution());
    let input = match (model, network) {
        (Model::ProGan(_), "netD") => {
            let bytes = (normals(1, &[2 * i64::from(GROUP), 3, side, side]).tanh() * 127.5 + 127.5).round();
            bytes / 127.5 - 1.0
        }
        (Model::ProGan(a), _) => normals(2, &[5, i64::from(a.latent_size)]),
        // one image: batch norm at a batch of one
        (Model::Pix2Pix(_), "D") => normals(3, &[1, 6, side, side]).tanh(),
        _ => normals(4, &[1, 3, side, side]).tanh(),
    };
    input.to_kind(Kind::Double)
}

/// What ours computes.
fn output(of: &Model, model: &dyn GanModel, network: &str, input: &Tensor) -> Tensor {
    let judge = |patches: PatchGan, prefix: &str, loss| {
        no_grad(|| Judge::new(&patches, model.parameters("d"), prefix, loss).score(input))
    };
    let level = full(of);
    match (of, network) {
        (Model::CycleGan(_), "G_A") | (Model::Pix2Pix(_), "G") => translated(model, 0, input),
        (Model::CycleGan(_), "G_B") => translated(model, 1, input),
        (Model::CycleGan(a), "D_A") => judge(a.judges("b")[0].1, "d.b", a.gan_loss),
        (Model::CycleGan(a), "D_B") => judge(a.judges("a")[0].1, "d.a", a.gan_loss),
        (Model::Pix2Pix(a), "D") => judge(a.patches(), "d.", a.gan_loss),
        (Model::ProGan(_), "avgG") => sampled(model, input, &level),
        (Model::ProGan(_), "netG") => with_trained_weights(model, || sampled(model, input, &level)),
        (Model::ProGan(_), "netD") => scores(model, input, level),
        _ => panic!("{} has no network {network}", of.family()),
    }
}

fn translated(model: &dyn GanModel, direction: usize, input: &Tensor) -> Tensor {
    match model.role() {
        Role::Translator(translator) => translator.translate(direction, input),
        Role::Sampler(_) => panic!("it makes images of seeds"),
    }
}

fn sampled(model: &dyn GanModel, input: &Tensor, level: &Level) -> Tensor {
    model.role().sampler().expect("it makes images of seeds").sample(input, level)
}

/// Only the average is ever sampled: for once it is what is trained.
fn with_trained_weights(model: &dyn GanModel, look: impl FnOnce() -> Tensor) -> Tensor {
    let all = tensors(model);
    let averages: Vec<(&str, &Tensor, Tensor)> =
        all.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(AVERAGE)?, tensor, tensor.copy()))).collect();
    no_grad(|| averages.iter().for_each(|(name, average, _)| average.shallow_clone().copy_(&all[*name])));
    let seen = look();
    no_grad(|| averages.iter().for_each(|(_, average, kept)| average.shallow_clone().copy_(kept)));
    seen
}

/// The mean score of each group of samples: what the loss of D tells of them.
fn scores(model: &dyn GanModel, input: &Tensor, level: Level) -> Tensor {
    let bytes = ((input + 1.0) * 127.5).round().to_kind(Kind::Uint8);
    let stage = Stage {
        level,
        minibatch: GROUP,
        group: GROUP,
        micro_batch: GROUP,
        learning_rate: 0.0,
        ema_decay: 0.0,
        tick_images: 1,
    };
    let draw = Draw { seed: 1, step: 0, kind: Kind::Double, device: Device::Cpu };
    let phase = model.phases().iter().find(|phase| phase.module == "d").expect("D is trained");
    let of_group = |first: i64| {
        let real = vec![bytes.narrow(0, first, i64::from(GROUP))];
        let batch = Batch { real, samples: 0..GROUP, total: GROUP, part: 0 };
        let told = model.loss(phase, &stage, &batch, &draw).statistics;
        let (_, score) = told.into_iter().find(|(name, _)| *name == "score/real").expect("it tells its scores");
        score.detach()
    };
    let groups: Vec<Tensor> = (0..input.size()[0]).step_by(GROUP as usize).map(of_group).collect();
    Tensor::stack(&groups, 0)
}

#[test]
fn networks_compute_the_same_here_and_there() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cyclegan = "family = \"cyclegan\"\nresolution = 32\ng_width = 4\nd_width = 4";
    let pix2pix = "family = \"pix2pix\"\nresolution = 64\ng_width = 2\nd_width = 4\ndropout = false";
    let progan = "latent_size = 8\nfmap_base = 64\nfmap_max = 8\nupscale = \"unfused\"";
    let cases = [
        ("resnet-6", format!("{cyclegan}\ng_blocks = 6\nd_layers = 3")),
        ("resnet-9-pixels", format!("{cyclegan}\ng_blocks = 9\nd_layers = 0")),
        ("unet", format!("{pix2pix}\ng_downs = 6\nd_layers = 3")),
        ("unet-pixels", format!("{pix2pix}\ng_downs = 5\nd_layers = 0")),
        ("progan-16", format!("{progan}\nresolution = 16")),
        ("progan-32", format!("{progan}\nresolution = 32")),
        ("progan-by-position", format!("{progan}\nresolution = 8\nposition_bias = true")),
    ]
    .map(|(name, keys)| Case::new(name, &keys, folder.path()));
    cases.iter().for_each(Case::prepare);
    let answer = Command::new(python)
        .arg(repository().join("tests/python/original_networks.py"))
        .args(cases.iter().map(|case| &case.folder))
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("Python can be started");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    cases.iter().for_each(Case::judge);
}

/// Theirs is never fused, and makes the same images of the weights of one that is.
#[test]
fn a_fused_generator_is_the_same_function_unfused() {
    let keys =
        |upscale| format!("resolution = 16\nlatent_size = 8\nfmap_base = 64\nfmap_max = 8\nupscale = \"{upscale}\"");
    let folder = tempfile::tempdir().unwrap();
    let fused = Case::new("fused", &keys("fused"), folder.path());
    fused.export(Format::GanZoo, &folder.path().join("out"));
    let unfused = config(&keys("unfused"), 1);
    let other = imported(&unfused, &folder.path().join("out"));
    let latents = input(&unfused.model, "avgG");
    let [one, other] = [&fused.model, &other].map(|model| sampled(model.as_ref(), &latents, &full(&unfused.model)));
    assert!((one - other).abs().max().double_value(&[]) < CLOSE);
}
