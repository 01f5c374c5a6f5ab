//! Which file holds which network: by its name, by what is in it, or because somebody says so.

use crate::failure::Failure;
use crate::weights::{SAFETENSORS, below, read};
use common::config::resolved::Model;
use common::families::elsewhere::{is_counted, names, plain};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Endings of files of weights.
const ENDINGS: [&str; 3] = ["pth", "pt", SAFETENSORS];

/// A network that was given.
#[derive(Debug)]
pub struct Given {
    /// Its name among those of its family.
    pub network: &'static str,
    /// Where it comes from.
    pub file: PathBuf,
    /// Its tensors, without what wrappers put into names, and without what norms counted.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Given {
    fn new(network: &'static str, file: &Path, tensors: BTreeMap<String, Tensor>) -> Self {
        let kept = tensors.into_iter().filter(|(name, _)| !is_counted(name));
        Self { network, file: file.to_owned(), tensors: kept.map(|(name, tensor)| (plain(&name), tensor)).collect() }
    }
}

/// The networks of `model` that the file or folder `from` gives; `network` says which one a file holds.
///
/// # Errors
/// A file cannot be read, or it cannot be known what it is.
pub fn given(model: &Model, from: &Path, network: Option<&str>) -> Result<Vec<Given>, Failure> {
    let known = names(model);
    match (from.is_dir(), network) {
        (false, _) => of_file(&known, from, network),
        (true, None) => of_folder(&known, from),
        (true, Some(_)) => Err(Failure::Usage(format!("--network is for a file, and {} is a folder", from.display()))),
    }
}

fn of_file(known: &[&'static str], file: &Path, network: Option<&str>) -> Result<Vec<Given>, Failure> {
    let all = known.join(", ");
    let said = match network {
        Some(name) => {
            let unknown = || Failure::Usage(format!("--network {name}: the run's networks are {all}"));
            Some(*known.iter().find(|known| **known == name).ok_or_else(unknown)?)
        }
        None => by_name(known, file),
    };
    let tensors = read(file)?;
    if let Some(network) = said {
        return Ok(vec![Given::new(network, file, tensors)]);
    }
    let several = inside(known, file, &tensors);
    match several.is_empty() {
        false => Ok(several),
        true => Err(Failure::Usage(format!(
            "which network is in {}? Neither its name nor its content says it: add --network, one of {all}",
            file.display()
        ))),
    }
}

/// The networks of a file that holds several, each in a dictionary of its name.
fn inside(known: &[&'static str], file: &Path, tensors: &BTreeMap<String, Tensor>) -> Vec<Given> {
    let networks = known.iter().map(|&network| Given::new(network, file, below(tensors, network)));
    networks.filter(|given| !given.tensors.is_empty()).collect()
}

/// `latest_net_G_A.pth`, `30_net_G_A.pth`, `G_A.safetensors`: G_A.
fn by_name(known: &[&'static str], file: &Path) -> Option<&'static str> {
    let stem = file.file_stem()?.to_str()?;
    known
        .iter()
        .find(|name| stem == **name || stem.strip_suffix(**name).is_some_and(|rest| rest.ends_with("_net_")))
        .copied()
}

fn of_folder(known: &[&'static str], folder: &Path) -> Result<Vec<Given>, Failure> {
    let unreadable = |error| Failure::Usage(format!("--from {}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if ENDINGS.contains(&ending.as_str()) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut named: BTreeMap<&'static str, &Path> = BTreeMap::new();
    for file in &files {
        let Some(network) = by_name(known, file).filter(|network| is_latest(file, network)) else { continue };
        if let Some(other) = named.insert(network, file) {
            return Err(Failure::Usage(format!(
                "{} and {} both hold {network}: give a folder with one of them",
                other.display(),
                file.display()
            )));
        }
    }
    if !named.is_empty() {
        return named.into_iter().map(|(network, file)| Ok(Given::new(network, file, read(file)?))).collect();
    }
    match &files[..] {
        [one] => of_file(known, one, None),
        several => Err(Failure::Usage(format!(
            "{} holds {} files of weights, and none is called after a network of the run ({}), such as latest_net_{}.pth: give the file",
            folder.display(),
            several.len(),
            known.join(", "),
            known.first().copied().unwrap_or("G")
        ))),
    }
}

/// A folder of the original repository holds those of earlier epochs too.
fn is_latest(file: &Path, network: &str) -> bool {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem == network || stem.strip_suffix(network) == Some("latest_net_")
}
