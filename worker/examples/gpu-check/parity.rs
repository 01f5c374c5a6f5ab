//! Gradients of every family on a GPU beside those on the CPU, where they are tested: the same weights, images and random numbers.

use crate::Failure;
use common::config::resolved::RunConfig;
use common::config::{Base, Layers, resolve};
use common::ids::ImagesSeen;
use common::schedule::Stage;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use worker::models::{self, Batch, Draw};

/// Narrow networks with everything in them: a fade, an identity loss, dropout, spectral norms.
const FAMILIES: [(&str, &str); 5] = [
    (
        "progan",
        "[model]\nfamily = \"progan\"\nresolution = 16\nlatent_size = 16\nfmap_base = 128\nfmap_max = 16\n\
         [train.growth]\nstart_resolution = 8\nstable_kimg = 1\nfade_kimg = 1\n",
    ),
    ("cyclegan", "[model]\nfamily = \"cyclegan\"\nresolution = 32\ng_width = 8\nd_width = 8\ng_blocks = 2\n"),
    (
        "cyclegan for small images",
        "[model]\nfamily = \"cyclegan\"\nresolution = 32\ng_width = 8\nd_width = 8\ng_blocks = 2\ng_downs = 1\ng_norm = \"layer\"\n\
         upscale = \"nearest\"\nskips = true\nd_layers = [1, 3]\naugment = 0.5\n",
    ),
    ("pix2pix", "[model]\nfamily = \"pix2pix\"\nresolution = 64\ng_width = 8\nd_width = 8\ng_downs = 6\n"),
    ("sngan", "[model]\nfamily = \"sngan\"\nresolution = 16\n"),
];
/// Images seen: in the middle of the fade.
const IMAGES: u64 = 1500;
const SAMPLES: u32 = 4;

/// Gradients that differ by more than this part of the greatest of their tensor are wrong: other orders of addition cost less. Where a
/// whole tensor is small beside the others, it is measured by a thousandth of those.
const BOUNDS: [(Kind, f64); 2] = [(Kind::Double, 1e-9), (Kind::Float, 2e-3)];

/// The greatest difference of each family and precision, as a part of the greatest number of its tensor.
pub fn check(device: Device) -> Result<Vec<(String, f64)>, Failure> {
    native::allow_tf32(false)?;
    let mut found = Vec::new();
    for (family, text) in FAMILIES {
        let config = config(text).map_err(|error| format!("{family}: {error}"))?;
        for (kind, bound) in BOUNDS {
            let there = gradients(&config, kind, device)?;
            let here = gradients(&config, Kind::Double, Device::Cpu)?;
            let greatest = |numbers: &Tensor| numbers.abs().max().double_value(&[]);
            let of_all = here.iter().map(|(_, here)| greatest(here)).fold(0.0, f64::max);
            let mut worst = 0.0f64;
            for ((name, there), (_, here)) in there.iter().zip(&here) {
                // a bias before a norm has no gradient but for what additions leave over
                let apart = greatest(&(there - here)) / greatest(here).max(1e-3 * of_all);
                if apart.is_nan() || apart > bound {
                    return Err(format!("{family} in {kind:?}: the gradient of {name} is off by {apart:.1e}").into());
                }
                worst = worst.max(apart);
            }
            if there.len() != here.len() || there.is_empty() {
                return Err(format!("{family}: {} gradients, {} on the CPU", there.len(), here.len()).into());
            }
            found.push((format!("{family} {kind:?}"), worst));
        }
    }
    Ok(found)
}

pub fn config(text: &str) -> Result<RunConfig, Failure> {
    let text = format!(
        "name = \"parity\"\n{text}[data]\nsource = \"in memory\"\n[train]\ntotal_kimg = 4\n[train.minibatch]\ndefault = {SAMPLES}\n\
         [checkpoint]\nurl = \"memory://parity\"\n"
    );
    let folder = Path::new("/");
    let base = Base::File { path: "the check's own experiment", text: &text, folder };
    let layers = Layers { base, env: &[], set: &[], working_dir: folder };
    Ok(resolve(&layers, 1).map_err(|error| error.to_string())?.config)
}

/// Every gradient of one round, as doubles in host memory.
fn gradients(config: &RunConfig, kind: Kind, device: Device) -> Result<Vec<(String, Tensor)>, Failure> {
    let model = models::build(config, kind, device);
    let stage = Stage::at(config, ImagesSeen(IMAGES));
    let draw = Draw { seed: 7, step: IMAGES, kind, device };
    let side = i64::from(stage.level.resolution);
    let count = i64::from(SAMPLES) * 3 * side * side;
    // bytes that look like nothing in particular, the same everywhere
    let bytes = (Tensor::arange(2 * count, (Kind::Int64, Device::Cpu)) * 7919).remainder(251).to_kind(Kind::Uint8);
    let of = |domain: i64| bytes.narrow(0, domain * count, count).view([-1, 3, side, side]).to_device(device);
    let mut found = Vec::new();
    for phase in model.phases() {
        for module in model.modules() {
            model.parameters(module).require_gradients(&[]);
        }
        let parameters = model.parameters(phase.module);
        let active = model.active(phase.module, &stage.level);
        parameters.require_gradients(&active);
        let real = if phase.reads_images { vec![of(0), of(1)] } else { Vec::new() };
        for part in 0..model.parts(phase) {
            let real = real.iter().map(Tensor::shallow_clone).collect();
            let batch = Batch { real, samples: 0..SAMPLES, total: SAMPLES, part };
            model.loss(phase, &stage, &batch, &draw).objective.f_backward()?;
        }
        for i in active {
            let gradient = parameters.tensors()[i].grad();
            let name = format!("{}: {}", phase.name, parameters.specs()[i].name);
            let gradient = if gradient.defined() { gradient } else { parameters.tensors()[i].zeros_like() };
            found.push((name, gradient.to_kind(Kind::Double).to_device(Device::Cpu).copy()));
            parameters.tensors()[i].shallow_clone().zero_grad();
        }
    }
    Ok(found)
}
