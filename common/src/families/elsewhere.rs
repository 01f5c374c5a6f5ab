//! Weights in other people's files: what our tensors are called there, and what becomes of their numbers on the way.
//!
//! The forms are those of the CycleGAN authors' repository (gan.md 2.8, 3) and of the GAN zoo (gan.md 1.13), and safetensors under the
//! same names. Data only: who reads and writes the files is in the worker. Refuses to know optimizers: no form has room for them.

use super::patchgan::PatchGan;
use super::{ParameterSpec, cyclegan, pix2pix, progan, sngan};
use crate::config::resolved::Model;
use crate::growth::Level;
use std::f64::consts::SQRT_2;
use std::fmt;
use std::str::FromStr;

/// In a checkpoint, the moving average of a weight bears its name behind this.
pub const AVERAGE: &str = "average.";

/// Positions of a 4x4 image.
const POSITIONS: i64 = 16;
/// Samples of which the GAN zoo takes one standard deviation.
const ZOO_GROUP: u32 = 4;
/// The GAN zoo's networks have at most so many scales above 4x4: 1024.
const ZOO_SCALES: u32 = 8;
/// The element that wrappers put into names: DataParallel's in front, the zoo's equalized layers' within; its early files lack it.
const WRAPPER: &str = "module";
/// What batch norms count while they train. Ours know one sample and count nothing; instance norms of old files did.
const COUNTED: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// A form in which weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One safetensors file for each network, names as in the original repository where there is one.
    Safetensors,
    /// `latest_net_<network>.pth` of junyanz/pytorch-CycleGAN-and-pix2pix.
    PytorchCycleGan,
    /// One `.pt` of facebookresearch/pytorch_GAN_zoo.
    GanZoo,
}

/// Text that names no form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no form of weights; there are {all}", all = Format::list(&Format::ALL))]
pub struct UnknownFormat(String);

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Safetensors, Self::PytorchCycleGan, Self::GanZoo];

    /// Those in which the networks of `model` can be written.
    #[must_use]
    pub fn of(model: &Model) -> &'static [Self] {
        match model {
            Model::ProGan(_) => &[Self::GanZoo, Self::Safetensors],
            Model::Sngan(_) => &[Self::Safetensors],
            // the authors' code can build no such networks
            Model::CycleGan(a) if !a.own().is_empty() => &[Self::Safetensors],
            Model::CycleGan(_) | Model::Pix2Pix(_) => &[Self::PytorchCycleGan, Self::Safetensors],
        }
    }

    /// Names, for a message.
    #[must_use]
    pub fn list(formats: &[Self]) -> String {
        formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::PytorchCycleGan => "pytorch-cyclegan",
            Self::GanZoo => "gan-zoo",
        })
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.to_string() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

/// One network as others keep it.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name there: `G_A`, `netD`.
    pub name: &'static str,
    /// What we have too.
    pub tensors: Vec<Counterpart>,
    /// What others have and we have not, and what it is for networks like ours. Passed over when weights come in.
    pub constants: Vec<Constant>,
    /// What we have and others have not, by its name in a checkpoint: left out, and 0 when weights come in.
    pub alone: Vec<String>,
}

/// One tensor, here and there.
#[derive(Clone, Debug, PartialEq)]
pub struct Counterpart {
    /// Its name in a checkpoint: `g.4.dense.bias`, or `average.g.4.dense.bias`.
    pub ours: String,
    /// Its name within the other's network.
    pub theirs: String,
    /// Its shape there.
    pub shape: Vec<i64>,
    /// What makes theirs of ours. Undone, it makes ours of theirs.
    pub change: Change,
}

/// What makes one of their tensors of one of ours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Nothing.
    Same,
    /// Every number times this one.
    Times(f64),
    /// `[c]` becomes `[c * positions]`: each number so often in a row, times `by`. Can be undone where each row is of one number.
    Spread {
        /// Length of a row.
        positions: i64,
        /// Factor.
        by: f64,
    },
    /// `[out, in, kh, kw]`: every number times `by`, those of the last input channel times `last` besides.
    LastChannel {
        /// Factor of all.
        by: f64,
        /// Another one for the last.
        last: f64,
    },
}

impl Change {
    fn times(by: f64) -> Self {
        if by == 1.0 { Self::Same } else { Self::Times(by) }
    }

    /// The shape there of a tensor that has `shape` here.
    #[must_use]
    pub fn shape(self, shape: &[i64]) -> Vec<i64> {
        match self {
            Self::Spread { positions, .. } => shape.iter().map(|extent| extent * positions).collect(),
            _ => shape.to_vec(),
        }
    }
}

/// A tensor that is the same for all networks.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its name within the network.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Each of its numbers.
    pub value: Value,
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// 32 bits.
    Float(f32),
    /// 64 bits.
    Int(i64),
}

/// The networks of `model` as others keep them; of one that grows, what works up to `resolution`.
#[must_use]
pub fn networks(model: &Model, resolution: u32) -> Vec<Network> {
    match model {
        Model::ProGan(a) => zoo(a, resolution),
        Model::Sngan(a) => own(a),
        Model::CycleGan(a) => unpaired(a),
        Model::Pix2Pix(a) => paired(a),
    }
}

/// The resolution at which networks of `model` work whose tensors bear the names `theirs`; of one that does not grow, its own.
/// `None` where the names do not tell.
#[must_use]
pub fn resolution<'a>(model: &Model, theirs: impl IntoIterator<Item = &'a str>) -> Option<u32> {
    if !matches!(model, Model::ProGan(_)) {
        return Some(model.resolution());
    }
    let scale = |name: &str| {
        let rest = name.strip_prefix("toRGBLayers.").or_else(|| name.strip_prefix("fromRGBLayers."))?;
        rest.split('.').next()?.parse::<u32>().ok().filter(|scale| *scale <= ZOO_SCALES)
    };
    theirs.into_iter().filter_map(scale).max().map(|scale| 4 << scale)
}

/// A name in somebody's file without what wrappers put into it.
#[must_use]
pub fn plain(name: &str) -> String {
    name.split('.').filter(|element| *element != WRAPPER).collect::<Vec<_>>().join(".")
}

/// Whether a tensor of that name is what a norm counted.
#[must_use]
pub fn is_counted(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| COUNTED.contains(&last))
}

/// What `model` at `level` computes otherwise than others do with the same weights, for people.
#[must_use]
pub fn differences(model: &Model, level: &Level) -> Vec<String> {
    match model {
        Model::ProGan(a) => zoo_differences(a, level),
        Model::Pix2Pix(a) if !alone(&a.patches()).is_empty() => vec![
            "their D of pixels has no bias in its last layer: ours is left out, so scores are another by a constant"
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

fn same(spec: &ParameterSpec, theirs: String) -> Counterpart {
    Counterpart { ours: spec.name.clone(), theirs, shape: spec.shape.clone(), change: Change::Same }
}

/// A network whose tensors others only call otherwise; `theirs` gives the other name.
fn renamed(name: &'static str, specs: &[ParameterSpec], theirs: impl Fn(&str) -> Option<String>) -> Network {
    let tensors = specs.iter().filter_map(|spec| Some(same(spec, theirs(&spec.name)?))).collect();
    Network { name, tensors, constants: Vec::new(), alone: Vec::new() }
}

/// The moving average of `of`, under another name.
fn averaged(name: &'static str, of: &Network) -> Network {
    let tensor = |tensor: &Counterpart| Counterpart { ours: format!("{AVERAGE}{}", tensor.ours), ..tensor.clone() };
    Network { name, tensors: of.tensors.iter().map(tensor).collect(), ..of.clone() }
}

/// What the batch norm `layer` with so many features has counted where nobody asks for it.
fn counted(layer: &str, features: i64) -> [Constant; 3] {
    let [mean, variance, batches] = COUNTED;
    let constant = |kind: &str, shape: Vec<i64>, value| Constant { name: format!("{layer}.{kind}"), shape, value };
    [
        constant(mean, vec![features], Value::Float(0.0)),
        constant(variance, vec![features], Value::Float(1.0)),
        constant(batches, vec![], Value::Int(0)),
    ]
}

/// CycleGAN's networks (gan.md 2.8). The authors' D_A stands against G_A: it judges images of B.
fn unpaired(a: &cyclegan::Architecture) -> Vec<Network> {
    let generators = a.generators();
    let network = |name, specs: &[ParameterSpec], prefix: &str, list: &str| {
        renamed(name, specs, |ours| Some(format!("{list}.{}", ours.strip_prefix(prefix)?)))
    };
    let mut all = vec![network("G_A", &generators, "g.a2b", "model"), network("G_B", &generators, "g.b2a", "model")];
    let names: [[_; cyclegan::MOST_JUDGES]; 2] = [["D_A", "D_A_2", "D_A_3"], ["D_B", "D_B_2", "D_B_3"]];
    for (domain, names) in ["b", "a"].into_iter().zip(names) {
        let judges = a.judges(domain).into_iter().zip(names);
        all.extend(judges.map(|((prefix, patches), name)| {
            network(name, &patches.parameters(&prefix), &prefix, judge_list(&patches))
        }));
    }
    if a.average {
        let averages = [averaged("average_G_A", &all[0]), averaged("average_G_B", &all[1])];
        all.extend(averages);
    }
    all
}

/// What the authors call the list of layers of their D of patches, and of that of pixels.
fn judge_list(patches: &PatchGan) -> &'static str {
    if patches.layers == 0 { "net" } else { "model" }
}

/// Parameters of a D of patches that the authors' has not: that of pixels has no bias at all where a batch norm makes the one before
/// it pointless. But for the first layer's.
fn alone(patches: &PatchGan) -> Vec<String> {
    let last = patches.layers().last().filter(|_| patches.layers == 0 && patches.affine).map(|layer| layer.place);
    last.map(|place| format!("d.{place}.bias")).into_iter().collect()
}

/// pix2pix' networks (gan.md 3), whose norms are batch norms there.
fn paired(a: &pix2pix::Architecture) -> Vec<Network> {
    let mut g = renamed("G", &a.generator(), |ours| nested(ours, a.g_downs));
    let norms = g.tensors.iter().filter(|tensor| tensor.ours.ends_with(".norm.weight"));
    g.constants = norms.flat_map(|tensor| counted(layer_of(&tensor.theirs), tensor.shape[0])).collect();
    let (patches, list) = (a.patches(), judge_list(&a.patches()));
    let alone = alone(&patches);
    let theirs = |ours: &str| {
        let rest = ours.strip_prefix("d.").filter(|_| !alone.iter().any(|name| name == ours))?;
        Some(format!("{list}.{rest}"))
    };
    let mut d = renamed("D", &a.discriminator(), theirs);
    let norms = patches.layers().into_iter().filter(|layer| layer.normed && patches.affine);
    d.constants = norms.flat_map(|layer| counted(&format!("{list}.{}", layer.place + 1), layer.outputs)).collect();
    d.alone = alone;
    vec![g, d]
}

/// `model.3` of `model.3.weight`.
fn layer_of(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or(parameter, |(layer, _)| layer)
}

/// The authors' name of a parameter of the U-Net with so many layers on the way down: each of their blocks holds a layer down, the
/// next block, and a layer up.
fn nested(ours: &str, downs: u32) -> Option<String> {
    let (down, rest) = match ours.strip_prefix("g.down") {
        Some(rest) => (true, rest),
        None => (false, ours.strip_prefix("g.up")?),
    };
    let (depth, parameter) = rest.split_once('.')?;
    let depth: u32 = depth.parse().ok()?;
    let (norm, kind) = parameter.strip_prefix("norm.").map_or((false, parameter), |kind| (true, kind));
    // the outermost block begins with its convolution, all others with a rectifier; the innermost holds no other
    let (inner, place) = match (depth, down, norm) {
        (1, _, true) => return None,
        (1, true, false) => ("", 0),
        (1, false, false) => ("", 3),
        (_, true, false) => ("1.model.", 1),
        (_, true, true) => ("1.model.", 2),
        (_, false, false) if depth == downs => ("1.model.", 3),
        (_, false, true) if depth == downs => ("1.model.", 4),
        (_, false, false) => ("1.model.", 5),
        (_, false, true) => ("1.model.", 6),
    };
    let between = "3.model.".repeat(depth.saturating_sub(2) as usize);
    Some(format!("model.model.{inner}{between}{place}.{kind}"))
}

/// The fully connected SNGAN, under our own names: it comes from no repository. D's directions belong to its spectral norms.
fn own(a: &sngan::Architecture) -> Vec<Network> {
    let under_own_name = |ours: &str| Some(ours.to_owned());
    let g = renamed("g", &a.generator(), under_own_name);
    let d = renamed("d", &[a.discriminator(), a.directions()].concat(), under_own_name);
    let average = averaged("average", &g);
    vec![g, d, average]
}

/// ProGAN's networks as the GAN zoo keeps them (gan.md 1.13): it multiplies the output of *every* layer, bias included, by
/// `sqrt(2 / fan_in)`, where ours multiplies weights by a gain of the layer's own over `sqrt(fan_in)`, and leaves biases alone.
fn zoo(a: &progan::Architecture, resolution: u32) -> Vec<Network> {
    let network = |name, specs: &[ParameterSpec]| {
        // weight and bias of one layer after the other
        let layers = specs.chunks_exact(2).filter_map(|pair| zoo_layer(&pair[0], &pair[1], resolution));
        Network { name, tensors: layers.flatten().collect(), constants: Vec::new(), alone: Vec::new() }
    };
    let g = network("netG", &a.generator());
    let d = network("netD", &a.discriminator());
    let average = averaged("avgG", &g);
    vec![g, d, average]
}

/// One of ProGAN's layers, where it works up to `resolution`.
fn zoo_layer(weight: &ParameterSpec, bias: &ParameterSpec, resolution: u32) -> Option<[Counterpart; 2]> {
    let mut parts = weight.name.split('.');
    let (module, block, layer) = (parts.next()?, parts.next()?.parse::<u32>().ok()?, parts.next()?);
    if block > resolution {
        return None;
    }
    let scale = block.ilog2() - 2;
    // the gains are those of worker/src/models/progan.rs (gan.md 1.2)
    let (theirs, gain) = match (module, layer) {
        ("g", "dense") => ("formatLayer".to_owned(), SQRT_2 / 4.0),
        ("g", "conv") => ("groupScale0.0".to_owned(), SQRT_2),
        ("g", "rgb") => (format!("toRGBLayers.{scale}"), 1.0),
        ("d", "rgb") => (format!("fromRGBLayers.{scale}"), SQRT_2),
        ("d", "conv") => ("groupScaleZero.0".to_owned(), SQRT_2),
        ("d", "dense0") => ("groupScaleZero.1".to_owned(), SQRT_2),
        ("d", "dense1") => ("decisionLayer".to_owned(), 1.0),
        (_, "conv0") => (format!("scaleLayers.{}.0", scale.checked_sub(1)?), SQRT_2),
        (_, "conv1") => (format!("scaleLayers.{}.1", scale.checked_sub(1)?), SQRT_2),
        _ => return None,
    };
    let fan_in: i64 = weight.shape[1..].iter().product();
    let (by, back) = (gain / SQRT_2, 1.0 / (2.0 / fan_in as f64).sqrt());
    let of_weight = match (module, layer) {
        // theirs sees a deviation that divides by one sample less
        ("d", "conv") => Change::LastChannel { by, last: (1.0 - 1.0 / f64::from(ZOO_GROUP)).sqrt() },
        _ => Change::times(by),
    };
    let of_bias = match (module, layer) {
        ("g", "dense") if bias.shape != weight.shape[..1] => Change::Spread { positions: POSITIONS, by: back },
        _ => Change::times(back),
    };
    Some([(weight, "weight", of_weight), (bias, "bias", of_bias)].map(|(spec, kind, change)| Counterpart {
        ours: spec.name.clone(),
        theirs: format!("{theirs}.{WRAPPER}.{kind}"),
        shape: change.shape(&spec.shape),
        change,
    }))
}

fn zoo_differences(a: &progan::Architecture, level: &Level) -> Vec<String> {
    let mut list = Vec::new();
    if level.fading() {
        let (new, old) = (level.resolution, level.resolution / 2);
        list.push(format!(
            "{new} px were being faded in: theirs shows the same images at alpha = {:.4}, as its config says; at 0 it leaves {old} px \
             out. (Its D does not fade from 4 to 8 px.)",
            1.0 - level.alpha()
        ));
    }
    if a.upscale == progan::Upscale::Fused {
        list.push(
            "model.upscale = \"fused\": our D takes the mean of 2x2 pixels before bias and rectifier, theirs after; images are the same, \
             scores are not"
                .to_owned(),
        );
    }
    if a.minibatch_stddev_group != ZOO_GROUP {
        list.push(format!(
            "model.minibatch_stddev_group = {}: theirs is always {ZOO_GROUP}, so scores of D differ",
            a.minibatch_stddev_group
        ));
    }
    list
}

/// Names of the networks of `model`, in order.
#[must_use]
pub fn names(model: &Model) -> Vec<&'static str> {
    networks(model, model.resolution()).iter().map(|network| network.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, Layers, resolve};
    use std::path::Path;

    fn model(keys: &str) -> Model {
        let text = format!("name = \"t\"\n[data]\nsource = \"images\"\n[model]\n{keys}");
        let folder = Path::new("/");
        let base = Base::File { path: "t.toml", text: &text, folder };
        let resolved = resolve(&Layers { base, env: &[], set: &[], working_dir: folder }, 1);
        resolved.unwrap_or_else(|error| panic!("{error}")).config.model
    }

    fn of(model: &Model, name: &str) -> Network {
        let networks = networks(model, model.resolution());
        networks.into_iter().find(|network| network.name == name).unwrap()
    }

    /// Layers in order, each with the shape of its weight.
    fn layers(network: &Network) -> Vec<(&str, &[i64])> {
        let weights = network.tensors.iter().filter(|tensor| tensor.theirs.ends_with(".weight"));
        weights.map(|tensor| (layer_of(&tensor.theirs), &tensor.shape[..])).collect()
    }

    /// Everything that a loader of theirs looks for, in alphabetical order.
    fn keys(network: &Network) -> Vec<String> {
        let tensors = network.tensors.iter().map(|tensor| tensor.theirs.clone());
        let mut keys: Vec<String> = tensors.chain(network.constants.iter().map(|one| one.name.clone())).collect();
        keys.sort();
        keys
    }

    /// Weight and bias of each of these layers, in alphabetical order.
    fn both(layers: &[&str]) -> Vec<String> {
        let mut keys: Vec<String> =
            layers.iter().flat_map(|layer| ["bias", "weight"].map(|kind| format!("{layer}.{kind}"))).collect();
        keys.sort();
        keys
    }

    /// gan.md 2.8 and 19, item 19.
    #[test]
    fn a_cyclegan_bears_the_authors_names() {
        for (blocks, after) in [(9, ["model.19", "model.22", "model.26"]), (6, ["model.16", "model.19", "model.23"])] {
            let model = model(&format!("family = \"cyclegan\"\ng_blocks = {blocks}"));
            let convs = (10..10 + blocks).flat_map(|i| [1, 5].map(|j| format!("model.{i}.conv_block.{j}")));
            let first = ["model.1", "model.4", "model.7"].map(str::to_owned);
            let expected: Vec<String> = first.into_iter().chain(convs).chain(after.map(str::to_owned)).collect();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            for name in ["G_A", "G_B"] {
                assert_eq!(keys(&of(&model, name)), both(&expected), "{name} of {blocks} blocks");
            }
            let g = of(&model, "G_A");
            let shapes = layers(&g);
            assert_eq!(shapes[0], ("model.1", &[64, 3, 7, 7][..]));
            assert_eq!(shapes[3], ("model.10.conv_block.1", &[256, 256, 3, 3][..]));
            // transposed: what comes in stands first
            assert_eq!(shapes[shapes.len() - 3], (after[0], &[256, 128, 3, 3][..]));
            assert_eq!(shapes[shapes.len() - 1], (after[2], &[3, 64, 7, 7][..]));
        }
    }

    #[test]
    fn the_authors_d_a_judges_what_g_a_makes() {
        let model = model("family = \"cyclegan\"");
        assert_eq!(keys(&of(&model, "D_A")), both(&["model.0", "model.2", "model.5", "model.8", "model.11"]));
        let d_a = of(&model, "D_A");
        let expected: [(&str, &[i64]); 5] = [
            ("model.0", &[64, 3, 4, 4]),
            ("model.2", &[128, 64, 4, 4]),
            ("model.5", &[256, 128, 4, 4]),
            ("model.8", &[512, 256, 4, 4]),
            ("model.11", &[1, 512, 4, 4]),
        ];
        assert_eq!(layers(&d_a), expected);
        let ours = |network: &str, layer: &str| {
            let network = of(&model, network);
            let mut found = network.tensors.iter().filter(|tensor| tensor.theirs == layer);
            found.next().unwrap().ours.clone()
        };
        assert_eq!(ours("G_A", "model.1.weight"), "g.a2b1.weight");
        assert_eq!(ours("G_B", "model.10.conv_block.5.bias"), "g.b2a10.conv_block.5.bias");
        assert_eq!(ours("D_A", "model.0.weight"), "d.b0.weight");
        assert_eq!(ours("D_B", "model.11.bias"), "d.a11.bias");
        let pixels = self::model("family = \"cyclegan\"\nd_layers = 0");
        assert_eq!(keys(&of(&pixels, "D_A")), both(&["net.0", "net.2", "net.5"]));
    }

    /// Everything of a batch norm.
    fn norm(layer: &str) -> [String; 5] {
        ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"].map(|kind| format!("{layer}.{kind}"))
    }

    /// gan.md 3: each inner block adds an element to the names of all that is in it.
    #[test]
    fn a_unet_is_nested_as_the_authors_is() {
        let g = of(&model("family = \"pix2pix\""), "G");
        let mut expected = ["0.weight", "3.weight", "3.bias"].map(|rest| format!("model.model.{rest}")).to_vec();
        for i in 2..=8 {
            let block = format!("model.model.1.model.{}", "3.model.".repeat(i - 2));
            let (up, norms) = if i == 8 { ("3", vec!["4"]) } else { ("5", vec!["2", "6"]) };
            expected.extend([format!("{block}1.weight"), format!("{block}{up}.weight")]);
            expected.extend(norms.into_iter().flat_map(|place| norm(&format!("{block}{place}"))));
        }
        expected.sort();
        assert_eq!(keys(&g), expected);
        let theirs = |ours: &str| {
            let tensor = g.tensors.iter().find(|tensor| tensor.ours == ours).unwrap();
            (tensor.theirs.as_str(), tensor.shape.clone())
        };
        assert_eq!(theirs("g.down1.weight"), ("model.model.0.weight", vec![64, 3, 4, 4]));
        assert_eq!(theirs("g.up1.bias"), ("model.model.3.bias", vec![3]));
        assert_eq!(theirs("g.down2.norm.bias"), ("model.model.1.model.2.bias", vec![128]));
        assert_eq!(theirs("g.up2.weight"), ("model.model.1.model.5.weight", vec![256, 64, 4, 4]));
        assert_eq!(theirs("g.up3.norm.weight"), ("model.model.1.model.3.model.6.weight", vec![128]));
        let innermost = "model.model.1.model.3.model.3.model.3.model.3.model.3.model.3.model.1.weight";
        assert_eq!(theirs("g.down8.weight"), (innermost, vec![512, 512, 4, 4]));
    }

    #[test]
    fn a_d_of_pairs_has_batch_norms_there() {
        let model = model("family = \"pix2pix\"");
        let d = of(&model, "D");
        let mut expected = both(&["model.0", "model.11"]);
        for (conv, place) in [(2, 3), (5, 6), (8, 9)] {
            expected.push(format!("model.{conv}.weight"));
            expected.extend(norm(&format!("model.{place}")));
        }
        expected.sort();
        assert_eq!((keys(&d), d.alone), (expected, vec![]));
        assert_eq!(
            d.constants[1],
            Constant { name: "model.3.running_var".to_owned(), shape: vec![128], value: Value::Float(1.0) }
        );
        let pixels = self::model("family = \"pix2pix\"\nd_layers = 0");
        let d = of(&pixels, "D");
        let mut expected = both(&["net.0"]);
        expected.extend(["net.2.weight", "net.5.weight"].map(str::to_owned));
        expected.extend(norm("net.3"));
        expected.sort();
        assert_eq!((keys(&d), d.alone), (expected, vec!["d.5.bias".to_owned()]));
        let level = Level { lod: 0.0, resolution: 256 };
        assert!(differences(&model, &level).is_empty() && differences(&pixels, &level).len() == 1);
    }

    /// gan.md 1.13.
    #[test]
    fn a_progan_bears_the_zoos_names_as_far_as_it_has_grown() {
        let model = model("resolution = 32\nfmap_base = 8192\nfmap_max = 512\nlatent_size = 512");
        let names = |resolution, name: &str| {
            let network = networks(&model, resolution).into_iter().find(|network| network.name == name).unwrap();
            keys(&network).iter().map(|key| plain(key)).collect::<Vec<_>>()
        };
        let g =
            ["formatLayer", "groupScale0.0", "scaleLayers.0.0", "scaleLayers.0.1", "toRGBLayers.0", "toRGBLayers.1"];
        let d = [
            "decisionLayer",
            "fromRGBLayers.0",
            "fromRGBLayers.1",
            "groupScaleZero.0",
            "groupScaleZero.1",
            "scaleLayers.0.0",
            "scaleLayers.0.1",
        ];
        assert_eq!((names(8, "netG"), names(8, "netD")), (both(&g), both(&d)));
        assert_eq!((names(8, "avgG"), names(4, "netG")), (both(&g), both(&[&g[..2], &g[4..5]].concat())));
        assert_eq!(resolution(&model, names(16, "netD").iter().map(String::as_str)), Some(16));
        assert_eq!(resolution(&model, ["decisionLayer.weight", "toRGBLayers.99.weight"]), None);

        let (g, d) = (of(&model, "netG"), of(&model, "netD"));
        let find = |network: &Network, theirs: &str| {
            let mut found = network.tensors.iter().filter(|tensor| tensor.theirs == theirs);
            found.next().map(|tensor| (tensor.ours.clone(), tensor.shape.clone(), tensor.change)).unwrap()
        };
        let (_, shape, change) = find(&g, "formatLayer.module.weight");
        assert_eq!((shape, change), (vec![8192, 512], Change::Times(0.25)));
        let (ours, shape, change) = find(&g, "formatLayer.module.bias");
        assert_eq!((ours.as_str(), shape), ("g.4.dense.bias", vec![8192]));
        assert_eq!(change, Change::Spread { positions: 16, by: 16.0 });
        let (ours, shape, change) = find(&g, "scaleLayers.2.0.module.weight");
        assert_eq!((ours.as_str(), shape, change), ("g.32.conv0.weight", vec![512, 512, 3, 3], Change::Same));
        let (ours, shape, change) = find(&d, "groupScaleZero.0.module.weight");
        assert_eq!((ours.as_str(), shape), ("d.4.conv.weight", vec![512, 513, 3, 3]));
        assert_eq!(change, Change::LastChannel { by: 1.0, last: 0.75f64.sqrt() });
        assert_eq!(find(&d, "groupScaleZero.1.module.weight").1, [512, 8192]);
        assert_eq!(of(&model, "avgG").tensors[0].ours, "average.g.4.dense.weight");
    }

    #[test]
    fn what_differs_is_said() {
        let level = |lod| Level { lod, resolution: 32 };
        let said = |keys: &str, lod| differences(&model(&format!("resolution = 32\n{keys}")), &level(lod));
        assert_eq!(said("upscale = \"unfused\"", 0.0), [] as [&str; 0]);
        assert!(said("upscale = \"fused\"", 0.0)[0].contains("fused"));
        assert!(said("upscale = \"unfused\"", 0.25)[0].contains("alpha = 0.2500"));
        assert!(said("upscale = \"unfused\"\nminibatch_stddev_group = 2", 0.0)[0].contains("always 4"));
    }

    #[test]
    fn every_parameter_of_every_family_has_one_counterpart() {
        for keys in [
            "resolution = 64",
            "family = \"sngan\"",
            "family = \"cyclegan\"",
            "family = \"cyclegan\"\ng_blocks = 6\nd_layers = 0",
            "family = \"cyclegan\"\nupscale = \"nearest\"\naverage = true\ng_downs = 1",
            "family = \"cyclegan\"\ng_norm = \"none\"\nd_layers = [1, 0, 3]",
            "family = \"pix2pix\"",
            "family = \"pix2pix\"\ng_downs = 5\nd_layers = 0",
        ] {
            let model = model(keys);
            let specs = match &model {
                Model::ProGan(a) => [a.generator(), a.discriminator()].concat(),
                Model::Sngan(a) => [a.generator(), a.discriminator(), a.directions()].concat(),
                Model::CycleGan(a) => [a.generators(), a.discriminators()].concat(),
                Model::Pix2Pix(a) => [a.generator(), a.discriminator()].concat(),
            };
            let mut expected: Vec<String> = specs.into_iter().map(|spec| spec.name).collect();
            let mut found = Vec::new();
            for network in networks(&model, model.resolution()) {
                let theirs = self::keys(&network);
                assert!(theirs.windows(2).all(|pair| pair[0] != pair[1]), "{keys}: {}", network.name);
                found.extend(network.tensors.into_iter().map(|tensor| tensor.ours).chain(network.alone));
            }
            found.retain(|name| !name.starts_with(AVERAGE));
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{keys}");
            assert!(names(&model).len() >= 2 && Format::of(&model).contains(&Format::Safetensors));
        }
    }

    #[test]
    fn forms_have_the_names_of_the_command_line() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "pickle".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("safetensors, pytorch-cyclegan, gan-zoo"), "{error}");
    }

    #[test]
    fn names_lose_what_wrappers_put_in() {
        assert_eq!(plain("module.model.1.weight"), "model.1.weight");
        assert_eq!(plain("formatLayer.module.weight"), "formatLayer.weight");
        assert!(is_counted("model.2.running_var") && !is_counted("model.2.weight"));
    }
}
