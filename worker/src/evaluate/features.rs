//! The network whose features are compared: EfficientNet-Lite0 from the cache, or a TorchScript file that the experiment names.
//!
//! A number is only as good as its network and is never compared across networks: its name stands beside it. Refuses to fetch
//! anything.

use super::lite0::Lite0;
use crate::{environment, weights};
use common::config::resolved::Metrics;
use std::path::{Path, PathBuf};
use tch::jit::IValue;
use tch::{CModule, Device, Kind, Tensor, no_grad};

/// Where the weights lie within the cache folder.
const FILE: &str = "features/efficientnet-lite0.pth";
/// BLAKE3 of the one that is known: what `scripts/fetch-features` lays there.
const HASH: &str = "ebc7ee3e987e187d1e6033b34cc7d03f20b4d34c394d5df426444dfab7bc1089";
/// Images taken through the network at once.
const AT_ONCE: i64 = 32;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// It was never fetched.
    #[error("metrics.kinds wants features, and {0} is not there. Fetch it with:  scripts/fetch-features")]
    Missing(PathBuf),
    /// It is not what it should be.
    #[error("the feature network {path} cannot be used: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Images become features.
#[derive(Debug)]
pub struct Features {
    name: String,
    width: usize,
    network: Network,
    device: Device,
}

#[derive(Debug)]
enum Network {
    Lite0(Lite0),
    /// With whether it is told to return features, as NVIDIA's Inception is.
    Script(CModule, bool),
}

impl Features {
    /// The network that `metrics` names, ready to be used; `None` where nothing wants one.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn of(metrics: &Metrics, device: Device) -> Result<Option<Self>, FeaturesError> {
        if !metrics.compares_features() {
            return Ok(None);
        }
        let (path, named) = match &metrics.features {
            Some(path) => (PathBuf::from(path), true),
            None => (environment::cache_folder().unwrap_or_default().join(FILE), false),
        };
        let unusable = |why: String| FeaturesError::Unusable { path: path.clone(), why };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                return Err(FeaturesError::Missing(path));
            }
            read => read.map_err(|error| unusable(error.to_string()))?,
        };
        let hash = blake3::hash(&bytes).to_hex();
        let (name, network) = if named {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (format!("{stem} {}", &hash[..8]), script(&bytes, device).map_err(unusable)?)
        } else if hash.as_str() != HASH {
            return Err(unusable(
                "it is not the file that scripts/fetch-features lays there; fetch it again".to_owned(),
            ));
        } else {
            ("efficientnet-lite0".to_owned(), lite0(&path, device).map_err(unusable)?)
        };
        let mut features = Self { name, width: 0, network, device };
        let two = features.take(&Tensor::zeros([2, 3, 64, 64], (Kind::Uint8, Device::Cpu))).map_err(unusable)?;
        match two.size()[..] {
            [2, width] if width > 1 => features.width = width as usize,
            ref other => return Err(unusable(format!("of two images it makes {other:?}, expected [2, features]"))),
        }
        Ok(Some(features))
    }

    /// Features of an image.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// What stands beside a number.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes `[n, 3, h, w]`; their features `[n, d]` in single precision, on the host.
    ///
    /// # Errors
    /// In words, where a network of the user's fails.
    pub fn take(&self, images: &Tensor) -> Result<Tensor, String> {
        no_grad(|| {
            let count = images.size()[0];
            let pieces =
                (0..count).step_by(AT_ONCE as usize).map(|from| images.narrow(0, from, AT_ONCE.min(count - from)));
            let taken = pieces.map(|piece| {
                let piece = piece.to_device(self.device).to_kind(Kind::Float);
                let features = match &self.network {
                    Network::Lite0(lite0) => lite0.features(&piece),
                    Network::Script(script, asked) => run(script, &piece, *asked)?,
                };
                Ok(features.to_kind(Kind::Float).to_device(Device::Cpu))
            });
            let taken = taken.collect::<Result<Vec<_>, String>>()?;
            Ok(Tensor::cat(&taken, 0))
        })
    }
}

fn lite0(path: &Path, device: Device) -> Result<Network, String> {
    let weights = weights::read(path).map_err(|error| error.to_string())?;
    let weights = weights.into_iter().map(|(name, tensor)| (name, tensor.to_device(device))).collect();
    Ok(Network::Lite0(Lite0::new(&weights)?))
}

/// A network of the user's: it is tried before anything is spent.
#[expect(clippy::disallowed_methods, reason = "the experiment names this file to have it run")]
fn script(mut bytes: &[u8], device: Device) -> Result<Network, String> {
    let mut script = CModule::load_data_on_device(&mut bytes, device).map_err(|error| first_line(&error))?;
    script.f_set_eval().map_err(|error| first_line(&error))?;
    let images = Tensor::zeros([2, 3, 64, 64], (Kind::Float, device));
    let asked = run(&script, &images, true).is_ok();
    Ok(Network::Script(script, asked))
}

fn run(script: &CModule, images: &Tensor, asked: bool) -> Result<Tensor, String> {
    let images = IValue::Tensor(images.shallow_clone());
    let inputs = if asked { vec![images, IValue::Bool(true)] } else { vec![images] };
    match no_grad(|| script.forward_is(&inputs)).map_err(|error| first_line(&error))? {
        IValue::Tensor(features) => Ok(features),
        other => Err(format!("it makes {other:?}, expected a tensor")),
    }
}

fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::TchError;

    fn metrics(features: Option<String>) -> Metrics {
        Metrics { kid: true, features, ..Metrics::default() }
    }

    /// One image whose bytes follow from their places.
    fn image() -> Tensor {
        let bytes: Vec<u8> = (0..3 * 64 * 64u64).map(|i| ((i * i / 7 + i * 13) % 256) as u8).collect();
        Tensor::from_slice(&bytes).view([1, 3, 64, 64])
    }

    /// Against the same network written with PyTorch's own layers, in float32.
    #[test]
    fn lite0_gives_the_features_of_its_authors_weights() {
        let features = match Features::of(&metrics(None), Device::Cpu) {
            Ok(features) => features.unwrap(),
            Err(FeaturesError::Missing(_)) if std::env::var_os("GANFLEET_NO_SKIP").is_none() => {
                return eprintln!("skipped: needs scripts/fetch-features");
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!((features.name(), features.width()), ("efficientnet-lite0", 1280));
        let taken = features.take(&image()).unwrap();
        let found: Vec<f32> = taken.view([-1]).try_into().unwrap();
        let expected = [0.50139, 0.0, 0.51957, 0.0, 0.0, 0.0, 0.0, 0.24104];
        let near = |a: f32, b: f32| (a - b).abs() < 2e-4 * b.abs().max(1.0);
        assert!(found.iter().zip(expected).all(|(a, b)| near(*a, b)), "{:?}", &found[..8]);
        let sum: f32 = found.iter().sum();
        let most = found.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert!(near(sum, 121.340_87) && most.0 == 434 && near(most.1, 5.219_88), "{sum} {most:?}");
        // an image does not depend on its neighbours
        let several = features.take(&Tensor::cat(&[image(), image().flip([3]), image()], 0)).unwrap();
        assert!((several.get(2) - taken.get(0)).abs().max().double_value(&[]) < 1e-4);
    }

    /// A network of the user's: the mean of each channel, traced.
    fn traced(folder: &Path, rows: bool) -> Result<PathBuf, TchError> {
        let mut closure = |inputs: &[Tensor]| {
            let mean = inputs[0].mean_dim(&[2i64, 3][..], false, None::<Kind>);
            vec![if rows { mean } else { mean.view([-1]) }]
        };
        let example = Tensor::zeros([2, 3, 64, 64], (Kind::Float, Device::Cpu));
        let script = CModule::create_by_tracing("means", "forward", &[example], &mut closure)?;
        let path = folder.join("means.pt");
        script.save(&path)?;
        Ok(path)
    }

    #[test]
    fn a_network_of_the_users_is_tried_before_anything_is_spent() {
        let folder = tempfile::tempdir().unwrap();
        let of = |path: &Path| Features::of(&metrics(Some(path.display().to_string())), Device::Cpu);
        let features = of(&traced(folder.path(), true).unwrap()).unwrap().unwrap();
        assert!(features.name().starts_with("means ") && features.width() == 3, "{}", features.name());
        let expected = image().to_kind(Kind::Float).mean_dim(&[2i64, 3][..], false, None::<Kind>);
        assert!((features.take(&image()).unwrap() - expected).abs().max().double_value(&[]) < 1e-3);

        let told = |path: &Path| of(path).unwrap_err().to_string();
        assert!(told(&traced(folder.path(), false).unwrap()).contains("expected [2, features]"));
        std::fs::write(folder.path().join("text.pt"), "no network").unwrap();
        assert!(told(&folder.path().join("text.pt")).contains("text.pt cannot be used"));
        assert!(told(&folder.path().join("none.pt")).contains("none.pt cannot be used"));
        assert!(Features::of(&Metrics::default(), Device::Cpu).unwrap().is_none());
    }
}
