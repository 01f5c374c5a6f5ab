//! How much memory a worker needs, estimated from the architecture before anything is spent: what is held between steps, and what the
//! widest step keeps for its way back.
//!
//! An estimate: each convolution keeps what came in, what it gave and what its norm or rectifier made of it; what libraries take for
//! themselves (kernels' work space, a GPU's context) comes on top. Never a bound.

use crate::config::resolved::{Model, Precision, ReducePrecision, RunConfig};
use crate::families::{cyclegan, patchgan::PatchGan, pix2pix, progan, sngan};

/// Bytes of a number in single precision.
const SINGLE: u64 = 4;

/// Bytes that a worker needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Need {
    /// Weights, gradients, moments, average, what networks remember: always there.
    pub state: u64,
    /// What the widest step keeps until it is taken.
    pub step: u64,
}

impl Need {
    /// All of it.
    #[must_use]
    pub fn total(self) -> u64 {
        self.state.saturating_add(self.step)
    }
}

/// So many bytes, for a person.
#[must_use]
pub fn amount(bytes: u64) -> String {
    match bytes {
        bytes if bytes < 1_000_000_000 => format!("{:.0} MB", (bytes as f64 / 1e6).ceil()),
        bytes => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// What a worker that takes `samples` through the networks at once at `resolution` needs.
#[must_use]
pub fn need(config: &RunConfig, resolution: u32, samples: u32) -> Need {
    let model = &config.model;
    let parameters = model.parameters();
    let travelling = if config.train.reduce_precision == ReducePrecision::Bf16 { parameters / 2 } else { 0 };
    // weights, two flat gradients that are both of all phases together, two moments
    let state =
        parameters * 4 + travelling + model.averaged() + model.remembered(config.train.minibatch_at(resolution));
    // most of what is kept is what convolutions take and give
    let bytes = if config.train.precision == Precision::Bf16 { SINGLE / 2 } else { SINGLE };
    let kept = kept(model, resolution, config.train.save_memory);
    Need { state: state * SINGLE, step: kept.saturating_mul(u64::from(samples)).saturating_mul(bytes) }
}

/// Numbers that one sample keeps in the widest phase at `resolution`.
fn kept(model: &Model, resolution: u32, sparing: bool) -> u64 {
    match model {
        Model::ProGan(a) => of_progan(a, resolution),
        Model::Sngan(a) => of_sngan(a),
        Model::CycleGan(a) => of_cyclegan(a, sparing),
        Model::Pix2Pix(a) => of_pix2pix(a),
    }
}

fn square(side: u64) -> u64 {
    side * side
}

/// D's phase: real, made and mixed images, the mixed ones with the second derivative; G's keeps both networks once.
fn of_progan(a: &progan::Architecture, resolution: u32) -> u64 {
    let blocks = || a.resolutions().filter(|r| *r <= resolution);
    let maps = |r: u32| a.channels(r) as u64 * square(u64::from(r));
    // each block two convolutions, of which the input and the rectified output are kept
    let once: u64 = blocks().map(|r| 4 * maps(r)).sum();
    // G's are normed as well
    (5 * once).max(once + once * 3 / 2)
}

fn of_sngan(a: &sngan::Architecture) -> u64 {
    let pixels = 3 * square(u64::from(a.resolution));
    3 * (pixels + 7 * u64::from(a.width)) * 2
}

/// G's phase: two generators there, back and for identity; sparing, one way at a time.
fn of_cyclegan(a: &cyclegan::Architecture, sparing: bool) -> u64 {
    let (w, side) = (u64::from(a.g_width), u64::from(a.resolution));
    // feature maps, so many halvings down
    let maps = |downs: u32| (w << downs) * square(side >> downs);
    let deep = maps(a.g_downs);
    let ends = 3 * square(side + 6) + w * square(side + 6) + 6 * square(side);
    let slopes = 4 * (0..a.g_downs).map(maps).sum::<u64>() + 2 * deep;
    let block = if sparing { deep } else { 6 * deep };
    let through = ends + slopes + u64::from(a.g_blocks) * block;
    let ways = if a.lambda_identity > 0.0 { 3 } else { 2 };
    // every domain has the same
    let judge: u64 = a.judges(cyclegan::DOMAINS[0]).iter().map(|(_, patches)| judged(patches, side)).sum();
    // one block is whole while it goes back
    if sparing { ways * through + judge + 6 * deep } else { 2 * (ways * through + judge) }
}

/// G's phase: the U-Net and D once.
fn of_pix2pix(a: &pix2pix::Architecture) -> u64 {
    let (w, side) = (u64::from(a.g_width), u64::from(a.resolution));
    let width = |i: u32| w * (1u64 << (i - 1).min(3));
    let down: u64 = (1..=a.g_downs).map(|i| 2 * width(i) * square(side >> i)).sum();
    // what comes up meets what came down, and both are rectified
    let up: u64 = (1..=a.g_downs).map(|i| 5 * width(i) * square(side >> i)).sum();
    down + up + 6 * square(side) + judged(&a.patches(), side)
}

fn judged(patches: &PatchGan, side: u64) -> u64 {
    let mut side = side;
    let layers = patches.layers();
    let of_layers: u64 = layers
        .iter()
        .map(|layer| {
            side = (side / layer.stride as u64).max(1);
            layer.outputs as u64 * square(side) * if layer.normed { 2 } else { 1 }
        })
        .sum();
    of_layers + patches.inputs as u64 * square(side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, Layers, resolve};
    use std::path::Path;

    fn config(text: &str) -> RunConfig {
        let text = format!("name = \"t\"\n[data]\nsource = \"/x\"\n{text}");
        let folder = Path::new("/");
        let base = Base::File { path: "t.toml", text: &text, folder };
        resolve(&Layers { base, env: &[], set: &[], working_dir: folder }, 1).unwrap_or_else(|e| panic!("{e}")).config
    }

    #[test]
    fn larger_images_need_more_and_sparing_needs_less() {
        let of = |resolution: u32, more: &str| {
            let load = resolution;
            let text = format!(
                "load_size = {load}\n[model]\nfamily = \"cyclegan\"\nresolution = {resolution}\n[train]\n{more}"
            );
            need(&config(&text), resolution, 1)
        };
        let (small, large) = (of(256, ""), of(512, ""));
        assert!(large.step > 39 * small.step / 10 && large.step < 41 * small.step / 10, "{small:?} {large:?}");
        let sparing = of(512, "save_memory = true");
        assert!(sparing.step < large.step / 3, "{sparing:?} {large:?}");
        let halved = of(512, "precision = \"bf16\"");
        assert_eq!(halved.step, large.step / 2);
        // pools of 50 images of each domain, and 28 million parameters four times
        assert!(small.state > 28_000_000 * 16 + 50 * 2 * 3 * 256 * 256 * 4, "{small:?}");
    }

    #[test]
    fn every_family_has_a_number() {
        for family in crate::families::FAMILIES {
            let load = if family.name == "cyclegan" || family.name == "pix2pix" { "load_size = 286\n" } else { "" };
            let text = format!("{load}[model]\nfamily = \"{}\"\nresolution = 256\n", family.name);
            let config = config(&text);
            let one = need(&config, 256, 1);
            assert!(
                one.state > 0 && one.step > 0 && need(&config, 256, 4).step == 4 * one.step,
                "{}: {one:?}",
                family.name
            );
        }
    }
}
