//! The repository's own files, and Rust sources without their comments and texts.

use crate::repository;
use std::path::{Path, PathBuf};

/// Folders that hold no sources: what is built, and what belongs to other tools.
const ASIDE: [&str; 3] = ["target", "runs", "__pycache__"];
/// Folders whose names begin with a dot and which are ours all the same.
const OURS: [&str; 3] = [".cargo", ".ci", ".github"];

/// Every file of the repository below `folder`, in order.
///
/// # Panics
/// When a folder cannot be read.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    collect(folder, &mut all);
    all.sort();
    all
}

fn collect(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() {
            continue;
        }
        if !path.is_dir() {
            all.push(path);
        } else if !ASIDE.contains(&name.as_str()) && (!name.starts_with('.') || OURS.contains(&name.as_str())) {
            collect(&path, all);
        }
    }
}

/// Every Rust source below `folder`, in order.
#[must_use]
pub fn rust(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The path as a reader of the repository knows it.
#[must_use]
pub fn name(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// `source` without comments, and with every text and character literal emptied.
#[must_use]
pub fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_text(rest).filter(|_| !out.ends_with(is_word)) {
            length
        } else if next == '"' {
            text(rest)
        } else if next == '\'' {
            character(rest)
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
            continue;
        };
        // what stood on both sides stays apart
        out.push(' ');
        rest = &rest[skipped..];
    }
    out
}

/// Identifiers and keywords of `code`, and the signs between them, without white space.
#[must_use]
pub fn tokens(code: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        all.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    all
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the block comment at the start; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of the raw text `r#"..."#` at the start, if there is one.
fn raw_text(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let opening = rest.len() - after.len() + hashes + 1;
    let closing = format!("\"{}", "#".repeat(hashes));
    Some(rest[opening..].find(&closing).map_or(rest.len(), |at| opening + at + closing.len()))
}

/// Length of the text at the start.
fn text(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    rest.len()
}

/// Length of the character literal at the start, or of the quote alone where it begins a lifetime.
fn character(rest: &str) -> usize {
    let mut inner = rest.char_indices().skip(1);
    match (inner.next(), inner.next()) {
        (Some((_, '\\')), Some((escape, _))) => {
            rest[escape + 1..].find('\'').map_or(rest.len(), |at| escape + 1 + at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}
