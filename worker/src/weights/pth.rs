//! What `torch.save` writes, written without torch: a ZIP archive (the layout of PyTorch 1.6 and later) of a pickle that names
//! tensors, and of their bytes beside it. Only what `torch.load(weights_only=True)` takes is ever written: dictionaries, texts,
//! numbers, tensors.
//!
//! `.format_version` and `.storage_alignment`, which newer releases add, are left out on purpose: with them a reader may compute where
//! bytes lie from what miniz, torch's own archiver, would have done.

use super::{Element, Entry};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Bytes of tensors begin at multiples of this, as torch has them.
const ALIGNMENT: u16 = 64;

/// Opcodes of a pickle, protocol 2.
mod op {
    pub const PROTO: u8 = 0x80;
    pub const STOP: u8 = b'.';
    pub const MARK: u8 = b'(';
    pub const GLOBAL: u8 = b'c';
    pub const REDUCE: u8 = b'R';
    pub const PERSISTENT: u8 = b'Q';
    pub const TUPLE: u8 = b't';
    pub const EMPTY_LIST: u8 = b']';
    pub const APPENDS: u8 = b'e';
    pub const EMPTY_DICT: u8 = b'}';
    pub const SET_ITEMS: u8 = b'u';
    pub const NONE: u8 = b'N';
    pub const TRUE: u8 = 0x88;
    pub const FALSE: u8 = 0x89;
    pub const TEXT: u8 = b'X';
    pub const INT_1: u8 = b'K';
    pub const INT_2: u8 = b'M';
    pub const INT_4: u8 = b'J';
    pub const LONG: u8 = 0x8a;
    pub const FLOAT: u8 = b'G';
}

/// What a file holds.
pub enum Value<'a> {
    /// What `state_dict()` of a network gives: tensors by name, in order.
    State(Vec<Entry<'a>>),
    /// A dictionary.
    Dictionary(Vec<(&'static str, Value<'a>)>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A number with a point.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// None.
    None,
}

/// Writes `root` into `file`: first the pickle, then the tensors, one at a time.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(file: File, root: &Value<'_>) -> io::Result<()> {
    let mut pickle = Pickle { bytes: vec![op::PROTO, 2], tensors: Vec::new() };
    pickle.value(root);
    pickle.bytes.push(op::STOP);
    let mut archive = ZipWriter::new(BufWriter::new(file));
    let mut entry = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let stored =
            SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(ALIGNMENT);
        let large = bytes.len() as u64 >= u64::from(u32::MAX);
        archive.start_file(format!("archive/{name}"), stored.large_file(large))?;
        archive.write_all(bytes)
    };
    entry("data.pkl", &pickle.bytes)?;
    entry("byteorder", b"little")?;
    for (key, tensor) in pickle.tensors.iter().enumerate() {
        entry(&format!("data/{key}"), &tensor.bytes())?;
    }
    entry("version", b"3\n")?;
    archive.finish()?.flush()
}

/// A pickle in the making, and the tensors that it names, in the order of their keys.
struct Pickle<'v, 'a> {
    bytes: Vec<u8>,
    tensors: Vec<&'v Entry<'a>>,
}

impl<'v, 'a> Pickle<'v, 'a> {
    fn value(&mut self, value: &'v Value<'a>) {
        match value {
            Value::State(entries) => {
                self.ordered_dictionary();
                self.push(op::MARK);
                for entry in entries {
                    self.text(&entry.name);
                    self.tensor(entry);
                }
                self.push(op::SET_ITEMS);
            }
            Value::Dictionary(items) => {
                self.extend(&[op::EMPTY_DICT, op::MARK]);
                for (name, value) in items {
                    self.text(name);
                    self.value(value);
                }
                self.push(op::SET_ITEMS);
            }
            Value::List(items) => {
                self.extend(&[op::EMPTY_LIST, op::MARK]);
                items.iter().for_each(|item| self.value(item));
                self.push(op::APPENDS);
            }
            Value::Text(text) => self.text(text),
            Value::Int(number) => self.int(*number),
            Value::Float(number) => {
                self.push(op::FLOAT);
                self.extend(&number.to_be_bytes());
            }
            Value::Bool(true) => self.push(op::TRUE),
            Value::Bool(false) => self.push(op::FALSE),
            Value::None => self.push(op::NONE),
        }
    }

    /// `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`, whose storage is the persistent
    /// `("storage", type, key, "cpu", numel)`.
    fn tensor(&mut self, entry: &'v Entry<'a>) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.extend(&[op::MARK, op::MARK]);
        self.text("storage");
        self.global(
            "torch",
            match entry.element {
                Element::Float => "FloatStorage",
                Element::Int => "LongStorage",
            },
        );
        self.text(&self.tensors.len().to_string());
        self.text("cpu");
        self.int(entry.numel() as i64);
        self.extend(&[op::TUPLE, op::PERSISTENT]);
        self.int(0);
        self.extents(&entry.shape);
        // the last dimension's numbers lie side by side
        let strides: Vec<usize> = (1..=entry.shape.len()).map(|i| entry.shape[i..].iter().product()).collect();
        self.extents(&strides);
        self.push(op::FALSE);
        self.ordered_dictionary();
        self.extend(&[op::TUPLE, op::REDUCE]);
        self.tensors.push(entry);
    }

    /// `collections.OrderedDict()`
    fn ordered_dictionary(&mut self) {
        self.global("collections", "OrderedDict");
        self.extend(&[op::MARK, op::TUPLE, op::REDUCE]);
    }

    fn extents(&mut self, extents: &[usize]) {
        self.push(op::MARK);
        extents.iter().for_each(|&extent| self.int(extent as i64));
        self.push(op::TUPLE);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.push(op::GLOBAL);
        self.extend(format!("{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.push(op::TEXT);
        self.extend(&(text.len() as u32).to_le_bytes());
        self.extend(text.as_bytes());
    }

    fn int(&mut self, number: i64) {
        match (u8::try_from(number), u16::try_from(number), i32::try_from(number)) {
            (Ok(small), ..) => self.extend(&[op::INT_1, small]),
            (_, Ok(short), _) => {
                self.push(op::INT_2);
                self.extend(&short.to_le_bytes());
            }
            (.., Ok(long)) => {
                self.push(op::INT_4);
                self.extend(&long.to_le_bytes());
            }
            _ => {
                self.extend(&[op::LONG, 8]);
                self.extend(&number.to_le_bytes());
            }
        }
    }

    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}
