//! Files of weights: reading what others wrote, writing what others read. Knows names and tensors, and no network.
//!
//! Nothing is executed: safetensors holds numbers only, and of what `torch.save` wrote a restricted reader understands dictionaries and
//! tensors (ADR 0017). What is read has a bound, what is written goes to the disk tensor by tensor, and nothing that exists is
//! overwritten.

mod change;
pub mod pth;

pub use change::{back, there};

use pytorch_reader::{DType, PytorchReader};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Largest file that is read, and most bytes that its tensors may have together: a tensor can claim more than its file holds.
const BYTES_MAX: u64 = 16 << 30;

/// Ending of the files that are read as safetensors; all others are what `torch.save` wrote.
pub const SAFETENSORS: &str = "safetensors";

/// Why a file of weights cannot be used, or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// It is no file of weights, or damaged.
    #[error("{} holds no weights that can be read: {why}. Give a .safetensors file, or one that torch.save wrote", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// It, or what is in it, is too large.
    #[error("{} has {bytes} bytes of weights; at most {BYTES_MAX} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// It is there, and would have to be overwritten.
    #[error("{} exists already: choose another --out", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Its tensors are not those of the network that they are for.
    #[error("{} does not fit: {why}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
}

impl WeightsError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }

    fn unreadable(path: &Path, why: impl ToString) -> Self {
        Self::Unreadable { path: path.to_owned(), why: why.to_string() }
    }
}

/// Every tensor of a file, by its name; one within dictionaries within the file bears their names before it, with dots between. Numbers
/// with a point become 32-bit floats whatever they were, others stay what they are, and what libtorch has no type for is left out.
///
/// # Errors
/// The file cannot be read, is none of weights, is damaged, or is too large.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let bytes = std::fs::metadata(path).map_err(|error| WeightsError::io(path, error))?.len();
    bounded(path, bytes)?;
    let named_so = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(SAFETENSORS));
    if named_so { read_safetensors(path) } else { read_torch(path) }
}

/// The tensors of one dictionary of a file that holds several, without its name.
#[must_use]
pub fn below(all: &BTreeMap<String, Tensor>, dictionary: &str) -> BTreeMap<String, Tensor> {
    let within = |name: &str| Some(name.strip_prefix(dictionary)?.strip_prefix('.')?.to_owned());
    all.iter().filter_map(|(name, tensor)| Some((within(name)?, tensor.shallow_clone()))).collect()
}

fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let bytes = std::fs::read(path).map_err(|error| WeightsError::io(path, error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| WeightsError::unreadable(path, error))?;
    let known = file.tensors().into_iter().filter_map(|(name, view)| {
        let kind = match view.dtype() {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            Dtype::I16 => Kind::Int16,
            Dtype::I8 => Kind::Int8,
            Dtype::U8 => Kind::Uint8,
            Dtype::BOOL => Kind::Bool,
            _ => return None,
        };
        let made = tensor(path, &name, kind, view.shape(), view.data());
        Some(made.map(|tensor| (name, tensor)))
    });
    known.collect()
}

fn read_torch(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let reader = PytorchReader::new(path).map_err(|error| WeightsError::unreadable(path, error))?;
    let sizes = reader.tensors().values().map(|tensor| tensor.byte_len() as u64);
    bounded(path, sizes.fold(0, u64::saturating_add))?;
    let known = reader.into_tensors().into_iter().filter_map(|(name, stored)| {
        let kind = match stored.dtype() {
            DType::F64 => Kind::Double,
            DType::F32 => Kind::Float,
            DType::F16 => Kind::Half,
            DType::BF16 => Kind::BFloat16,
            DType::I64 => Kind::Int64,
            DType::I32 => Kind::Int,
            DType::I16 => Kind::Int16,
            DType::I8 => Kind::Int8,
            DType::U8 => Kind::Uint8,
            DType::Bool => Kind::Bool,
            DType::U64 | DType::U32 | DType::U16 => return None,
        };
        let bytes = stored.read().map_err(|error| WeightsError::unreadable(path, error));
        let made = bytes.and_then(|bytes| tensor(path, &name, kind, stored.shape(), &bytes));
        Some(made.map(|tensor| (name, tensor)))
    });
    known.collect()
}

fn bounded(path: &Path, bytes: u64) -> Result<(), WeightsError> {
    match bytes {
        0..=BYTES_MAX => Ok(()),
        _ => Err(WeightsError::TooLarge { path: path.to_owned(), bytes }),
    }
}

fn tensor(path: &Path, name: &str, kind: Kind, shape: &[usize], bytes: &[u8]) -> Result<Tensor, WeightsError> {
    let count = shape.iter().try_fold(kind.elt_size_in_bytes(), |product, extent| product.checked_mul(*extent));
    if count != Some(bytes.len()) {
        let why = format!("tensor {name} is said to be {shape:?}, and has {} bytes", bytes.len());
        return Err(WeightsError::unreadable(path, why));
    }
    let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
    let made = Tensor::f_from_data_size(bytes, &extents, kind);
    let made = made.map_err(|error| WeightsError::unreadable(path, format!("tensor {name}: {error}")))?;
    let has_point = matches!(kind, Kind::Double | Kind::Half | Kind::BFloat16);
    Ok(if has_point { made.to_kind(Kind::Float) } else { made })
}

/// Type of the numbers of a tensor that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    Float,
    /// 64-bit integers.
    Int,
}

impl Element {
    /// The same for libtorch.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Float => Kind::Float,
            Self::Int => Kind::Int64,
        }
    }
}

/// A tensor that is to be written: made when its turn comes, so that there is one of them at a time.
pub struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    element: Element,
    make: Box<dyn Fn() -> Tensor + 'a>,
}

impl<'a> Entry<'a> {
    /// The tensor `name`, which `make` makes, of this shape.
    #[must_use]
    pub fn new(name: &str, shape: &[i64], element: Element, make: impl Fn() -> Tensor + 'a) -> Self {
        let shape = shape.iter().map(|&extent| extent as usize).collect();
        Self { name: name.to_owned(), shape, element, make: Box::new(make) }
    }

    fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its numbers, the last dimension's one after the other.
    fn bytes(&self) -> Vec<u8> {
        let tensor = (self.make)().to_kind(self.element.kind()).to_device(Device::Cpu).contiguous();
        debug_assert_eq!(tensor.numel(), self.numel(), "{}", self.name);
        let mut bytes = vec![0u8; self.numel() * self.element.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, self.numel());
        bytes
    }
}

impl View for &Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self.element {
            Element::Float => Dtype::F32,
            Element::Int => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.bytes())
    }

    fn data_len(&self) -> usize {
        self.numel() * self.element.kind().elt_size_in_bytes()
    }
}

/// Refuses where one of `files` is there.
///
/// # Errors
/// Names the first that is.
pub fn vacant<'p>(files: impl IntoIterator<Item = &'p Path>) -> Result<(), WeightsError> {
    match files.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(WeightsError::Exists { path: path.to_owned() }),
        None => Ok(()),
    }
}

/// Writes a safetensors file of these tensors.
///
/// # Errors
/// It is there already, or cannot be written; then nothing is left of it.
pub fn write_safetensors(path: &Path, entries: &[Entry<'_>]) -> Result<(), WeightsError> {
    // what the Python library asks for
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    put(path, |beside| {
        let views = entries.iter().map(|entry| (entry.name.as_str(), entry));
        serialize_to_file(views, Some(about), beside).map_err(io::Error::other)
    })
}

/// Writes a file as `torch.save` does.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_torch(path: &Path, root: &pth::Value<'_>) -> Result<(), WeightsError> {
    put(path, |beside| pth::write(File::create(beside)?, root))
}

/// Has a file written beside `path`, and called so once it is whole and on the disk.
fn put(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), WeightsError> {
    vacant([path])?;
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    let whole = || {
        // readable by whom the umask lets, whoever writes it
        let permissions = File::create_new(&beside)?.metadata()?.permissions();
        write(&beside)?;
        std::fs::set_permissions(&beside, permissions)?;
        File::open(&beside)?.sync_all()?;
        // refuses where somebody else has been quicker
        match std::fs::hard_link(&beside, path) {
            Ok(()) => std::fs::remove_file(&beside)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // not every file system has links
            Err(_) => std::fs::rename(&beside, path)?,
        }
        File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    };
    whole().map_err(|error| {
        // it may not have come so far
        let _none = std::fs::remove_file(&beside);
        WeightsError::io(path, error)
    })
}

#[cfg(test)]
mod tests;
