//! A folder, recursively, links followed. Every folder is read once, so links cannot make a loop; only regular files are
//! opened, so a pipe cannot make a run wait.

use super::{At, Found, Kind, MAX_FILE_BYTES, hidden, kind, read_bounded, refusal, too_large};
use crate::Why;
use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders within folders.
const MAX_DEPTH: usize = 64;

/// Collects what `root` holds.
pub(super) fn list(root: &Path, found: &mut Found) -> Result<(), String> {
    let canonical = root.canonicalize().map_err(|e| e.to_string())?;
    // Sizes and times alone may repeat in another folder (archives reset them): the place is part of the stamp.
    found.stamp.text(&canonical.to_string_lossy());
    let meta = fs::metadata(root).map_err(|e| e.to_string())?;
    let mut seen = HashSet::from([(meta.dev(), meta.ino())]);
    let mut waiting = vec![Folder { path: root.to_owned(), name: String::new(), depth: 0 }];
    while let Some(folder) = waiting.pop() {
        let mut inside = match entries(&folder.path) {
            Ok(entries) => entries,
            Err(e) if folder.depth == 0 => return Err(e.to_string()),
            Err(e) => {
                found.skip(&folder.name, refusal(&e));
                continue;
            }
        };
        // Sorted, so that which of two links to one folder counts does not depend on the file system.
        inside.sort();
        for path in inside {
            visit(&folder, path, &mut seen, &mut waiting, found)?;
        }
    }
    Ok(())
}

struct Folder {
    path: PathBuf,
    name: String,
    depth: usize,
}

fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn visit(
    folder: &Folder,
    path: PathBuf,
    seen: &mut HashSet<(u64, u64)>,
    waiting: &mut Vec<Folder>,
    found: &mut Found,
) -> Result<(), String> {
    let own = path.file_name().unwrap_or_default().to_string_lossy();
    let name = if folder.name.is_empty() { own.into_owned() } else { format!("{}/{own}", folder.name) };
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) => {
            if kind(&name) == Kind::Image {
                found.skip(&name, refusal(&e));
            }
            return Ok(());
        }
    };
    if meta.is_dir() {
        if hidden(&name) {
            return Ok(());
        }
        if !seen.insert((meta.dev(), meta.ino())) {
            found.skip(&name, Why::LinkedTwice);
        } else if folder.depth == MAX_DEPTH {
            found.skip(&name, Why::Unreadable(format!("more than {MAX_DEPTH} folders deep")));
        } else {
            waiting.push(Folder { path, name, depth: folder.depth + 1 });
        }
        return Ok(());
    }
    match kind(&name) {
        Kind::NoImage => {}
        Kind::OtherImage(format) => found.skip(&name, Why::Unsupported(format)),
        Kind::Image if !meta.is_file() => found.skip(&name, Why::Unreadable("not a regular file".into())),
        Kind::Image if meta.len() > MAX_FILE_BYTES => found.skip(&name, too_large()),
        Kind::Image => found.keep(name, At::File(path), stamp(&meta))?,
    }
    Ok(())
}

fn stamp(meta: &Metadata) -> [u64; 3] {
    [meta.len(), meta.mtime() as u64, meta.mtime_nsec() as u64]
}

/// The bytes of one file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Why> {
    read_bounded(fs::File::open(path).map_err(|e| refusal(&e))?)
}
