//! `worker export`: the networks of a checkpoint in files that other programs load. The state of optimizers stays behind.
//!
//! Names, shapes and factors are `common::families::elsewhere`; how files are made is `weights`.

use crate::failure::Failure;
use crate::models::GanModel;
use crate::trained::{self, tensors};
use crate::weights::pth::Value;
use crate::weights::{self, Element, Entry, there};
use common::checkpoint::Manifest;
use common::config::resolved::{Model, S3};
use common::families::elsewhere::{self, Format, Network, differences, networks};
use common::growth::Level;
use common::ids::ImagesSeen;
use common::schedule::Stage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// Networks that are to be written, and what is to be known of them.
pub struct Export<'a> {
    /// What they are.
    pub of: &'a Model,
    /// They themselves.
    pub model: &'a dyn GanModel,
    /// How far they have grown.
    pub level: Level,
    /// Name of the run.
    pub run: &'a str,
    /// Images that they have seen.
    pub images: ImagesSeen,
}

/// Writes the networks of the run or checkpoint at `url` into the folder `out`, in the form that `format` names.
///
/// # Errors
/// There is no such form for them, the checkpoint cannot be used, or a file is there already or cannot be written.
pub fn export(url: &str, format: &str, out: &Path, s3: &S3) -> Result<(), Failure> {
    let format: Format = format.parse().map_err(|error: elsewhere::UnknownFormat| Failure::Usage(error.to_string()))?;
    let found = trained::find(url, s3)?;
    let Manifest { config, cursor, run, .. } = &found.manifest;
    suits(format, &config.model)?;
    let level = Stage::at(config, ImagesSeen(cursor.cycle_images)).level;
    let model = found.model();
    let all = tensors(model.as_ref());
    let networks = networks(&config.model, level.resolution);
    let names = networks.iter().flat_map(|network| &network.tensors).map(|tensor| &tensor.ours);
    let wanted = names.filter_map(|name| Some((name.clone(), all.get(name)?.shallow_clone())));
    found.fill(wanted.collect())?;
    let images = ImagesSeen(cursor.images);
    let export = Export { of: &config.model, model: model.as_ref(), level, run, images };
    let files = export.write(format, out)?;
    let count = networks.len();
    eprintln!("{count} networks of {run} at {images}, {} px, as {format}:", level.resolution);
    files.iter().for_each(|file| eprintln!("  {}", file.display()));
    differences(&config.model, &level).iter().for_each(|note| eprintln!("note: {note}"));
    Ok(())
}

fn suits(format: Format, model: &Model) -> Result<(), Failure> {
    let known = Format::of(model);
    match known.contains(&format) {
        true => Ok(()),
        false => {
            let (family, known) = (model.family(), Format::list(known));
            let own = match model {
                Model::CycleGan(a) if format == Format::PytorchCycleGan => a.own().join(", "),
                _ => String::new(),
            };
            let with = if own.is_empty() { own } else { format!(", with {own} as they are here,") };
            Err(Failure::Usage(format!(
                "--format {format}: networks of family \"{family}\"{with} are written as {known}"
            )))
        }
    }
}

impl Export<'_> {
    /// Writes them into the folder `out`, which is made where it is missing; the files.
    ///
    /// # Errors
    /// There is no such form for them, or a file is there already or cannot be written. Nothing is begun that would overwrite.
    pub fn write(&self, format: Format, out: &Path) -> Result<Vec<PathBuf>, Failure> {
        suits(format, self.of)?;
        let all = tensors(self.model);
        let networks = networks(self.of, self.level.resolution);
        let files: Vec<PathBuf> = match format {
            Format::Safetensors => networks.iter().map(|one| out.join(format!("{}.safetensors", one.name))).collect(),
            Format::PytorchCycleGan => {
                networks.iter().map(|one| out.join(format!("latest_net_{}.pth", one.name))).collect()
            }
            Format::GanZoo => vec![out.join(self.zoo_file())],
        };
        weights::vacant(files.iter().map(PathBuf::as_path))?;
        let failed = |error| Failure::Io { doing: format!("create {}", out.display()), error };
        std::fs::create_dir_all(out).map_err(failed)?;
        match format {
            Format::Safetensors => {
                for (file, network) in files.iter().zip(&networks) {
                    weights::write_safetensors(file, &entries(network, &all))?;
                }
            }
            Format::PytorchCycleGan => {
                for (file, network) in files.iter().zip(&networks) {
                    weights::write_torch(file, &Value::State(entries(network, &all)))?;
                }
            }
            Format::GanZoo => {
                let config = [("config", Value::Dictionary(self.zoo_config()))];
                let states = networks.iter().map(|network| (network.name, Value::State(entries(network, &all))));
                let root = Value::Dictionary(config.into_iter().chain(states).collect());
                files.iter().try_for_each(|file| weights::write_torch(file, &root))?;
            }
        }
        Ok(files)
    }

    /// `<run>_s<scale>_i<iteration>.pt`: scale 0 is 4x4. The zoo counts iterations of a scale; here they are thousands of images, all
    /// scales together.
    fn zoo_file(&self) -> String {
        let scale = self.level.resolution.ilog2().saturating_sub(2);
        format!("{}_s{scale}_i{}.pt", self.run, self.images.0 / 1000)
    }

    /// What the zoo's program keeps of a model, under its names. There it is an object of a class of its own; a dictionary, which its
    /// `updateConfig` takes as well, can be opened without that class.
    fn zoo_config(&self) -> Vec<(&'static str, Value<'static>)> {
        let Model::ProGan(a) = self.of else { return Vec::new() };
        let depth = |resolution: u32| Value::Int(a.channels(resolution));
        let grown = a.resolutions().skip(1).filter(|resolution| *resolution <= self.level.resolution);
        let latent = i64::from(a.latent_size);
        vec![
            ("noiseVectorDim", Value::Int(latent)),
            ("latentVectorDim", Value::Int(latent)),
            ("categoryVectorDim", Value::Int(0)),
            ("attribKeysOrder", Value::None),
            ("dimOutput", Value::Int(3)),
            ("depthScale0", depth(4)),
            ("depthOtherScales", Value::List(grown.map(depth).collect())),
            ("alpha", Value::Float(1.0 - self.level.alpha())),
            ("leakyReluLeak", Value::Float(0.2)),
            ("initBiasToZero", Value::Bool(true)),
            ("perChannelNormalization", Value::Bool(true)),
            ("miniBatchStdDev", Value::Bool(true)),
            ("equalizedlR", Value::Bool(true)),
            ("lossCriterion", Value::Text("WGANGP".to_owned())),
            ("lambdaGP", Value::Float(a.gp_weight)),
            ("epsilonD", Value::Float(a.drift)),
            ("weightConditionG", Value::Float(0.0)),
            ("weightConditionD", Value::Float(0.0)),
        ]
    }
}

/// What a file of `network` holds.
fn entries<'a>(network: &'a Network, all: &'a BTreeMap<String, Tensor>) -> Vec<Entry<'a>> {
    let tensors = network.tensors.iter().filter_map(|tensor| {
        let ours = all.get(&tensor.ours)?;
        Some(Entry::new(&tensor.theirs, &tensor.shape, Element::Float, move || there(tensor.change, ours)))
    });
    let constants = network.constants.iter().map(|constant| match constant.value {
        elsewhere::Value::Float(value) => Entry::new(&constant.name, &constant.shape, Element::Float, move || {
            Tensor::full(&constant.shape, f64::from(value), (Element::Float.kind(), Device::Cpu))
        }),
        elsewhere::Value::Int(value) => Entry::new(&constant.name, &constant.shape, Element::Int, move || {
            Tensor::full(&constant.shape, value, (Element::Int.kind(), Device::Cpu))
        }),
    });
    tensors.chain(constants).collect()
}
