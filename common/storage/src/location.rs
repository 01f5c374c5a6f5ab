//! What a person types: the root of runs, a run, or one checkpoint; as a URL or as a plain path.

use crate::error::{StorageError, redact};
use common::checkpoint::{ManifestKey, is_run_name};
use std::path::PathBuf;
use url::Url;

/// A run, and perhaps one of its checkpoints, as its URL names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunUrl {
    /// URL of the folder that holds runs: what [`crate::Store::open`] takes.
    pub root: String,
    /// Name of the run.
    pub run: String,
    /// The checkpoint, where the URL names one.
    pub key: Option<ManifestKey>,
}

/// Takes apart the URL of a run (`s3://bucket/runs/faces`), of a checkpoint
/// (`s3://bucket/runs/faces/manifests/000000060000-000001.json`), or a local path to either.
///
/// # Errors
/// [`StorageError::BadUrl`] with what a usable one looks like.
pub fn resolve_run_url(text: &str) -> Result<RunUrl, StorageError> {
    let url = parse(text)?;
    let bad = |why: String| StorageError::BadUrl { url: url.to_string(), why };
    let mut path: Vec<&str> = url.path().split('/').filter(|part| !part.is_empty()).collect();
    let key = match path.as_slice() {
        [.., "manifests", file] if file.ends_with(".json") => {
            let key = format!("{}{file}", ManifestKey::FOLDER).parse().map_err(|e| bad(format!("{e}")))?;
            path.truncate(path.len() - 2);
            Some(key)
        }
        _ => None,
    };
    let Some(run) = path.pop() else {
        return Err(bad("it names no run. A run is a folder below the root, such as s3://bucket/runs/faces".into()));
    };
    if !is_run_name(run) {
        return Err(bad(format!("'{run}' is not the name of a run ([a-z0-9._-], at most 64, no leading dot)")));
    }
    let run = run.to_owned();
    let mut root = url.clone();
    root.set_path(&path.join("/"));
    Ok(RunUrl { root: root.to_string(), run, key })
}

/// Kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    S3,
    Gcs,
    Azure,
    Memory,
}

/// The root of runs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) kind: Kind,
    /// Bucket, container, or name of the memory; empty for files.
    pub(crate) bucket: String,
    /// Folder below it, without slashes at its ends; empty for files.
    pub(crate) prefix: String,
    /// Folder of a `file://` root.
    pub(crate) folder: Option<PathBuf>,
    /// For messages.
    pub(crate) display: String,
}

impl Root {
    pub(crate) fn parse(text: &str) -> Result<Self, StorageError> {
        let url = parse(text)?;
        let display = url.as_str().trim_end_matches('/').to_owned();
        let bad = |why: &str| StorageError::BadUrl { url: display.clone(), why: why.into() };
        let kind = match url.scheme() {
            "file" => Kind::File,
            "s3" => Kind::S3,
            "gs" => Kind::Gcs,
            "az" => Kind::Azure,
            _ => Kind::Memory,
        };
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if kind == Kind::File {
            if !bucket.is_empty() {
                return Err(bad("a file URL has three slashes: file:///folder"));
            }
            let folder = url.to_file_path().map_err(|()| bad("it is not a local path"))?;
            return Ok(Self { kind, bucket, prefix: String::new(), folder: Some(folder), display });
        }
        if bucket.is_empty() && kind != Kind::Memory {
            return Err(bad("it names no bucket. Write it like s3://bucket/folder"));
        }
        let prefix = url.path().trim_matches('/').to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/_.=-".contains(c);
        let relative = prefix.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if !prefix.chars().all(plain) || (relative && !prefix.is_empty()) {
            return Err(bad(
                "its folder may hold only letters, digits and /_.=-, because stores disagree about the rest",
            ));
        }
        Ok(Self { kind, bucket, prefix, folder: None, display })
    }
}

/// A URL of a scheme we know, without anything that could be a secret; plain paths become `file://`.
fn parse(text: &str) -> Result<Url, StorageError> {
    let bad = |why: String| StorageError::BadUrl { url: redact(text), why };
    if text.trim().is_empty() {
        return Err(bad("it is empty".into()));
    }
    if !text.contains("://") {
        let path = std::path::absolute(text).map_err(|e| bad(e.to_string()))?;
        return Url::from_file_path(path).map_err(|()| bad("it is neither a URL nor a local path".into()));
    }
    let url = Url::parse(text).map_err(|e| bad(format!("it is not a URL ({e})")))?;
    if !matches!(url.scheme(), "file" | "s3" | "gs" | "az" | "memory") {
        return Err(bad(format!("'{}' is not a kind of store. Use file, s3, gs, az or memory", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(
            bad("credentials, '?' and '#' do not belong into it; credentials come from the environment".into()),
        );
    }
    if url.port().is_some() {
        return Err(bad("a port belongs into the endpoint setting (checkpoint.s3.endpoint), not here".into()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run_url(root: &str, run: &str, key: Option<&str>) -> RunUrl {
        RunUrl { root: root.into(), run: run.into(), key: key.map(|k| k.parse().unwrap()) }
    }

    #[test]
    fn runs_and_checkpoints_are_found_in_their_urls() {
        let manifest = "manifests/000000060000-000001.json";
        for (text, expected) in [
            ("file:///x/runs/name", run_url("file:///x/runs", "name", None)),
            ("file:///x/runs/name/", run_url("file:///x/runs", "name", None)),
            ("s3://bucket/prefix/name", run_url("s3://bucket/prefix", "name", None)),
            ("s3://bucket/name", run_url("s3://bucket", "name", None)),
            ("memory://m/name", run_url("memory://m", "name", None)),
            ("/x/runs/name", run_url("file:///x/runs", "name", None)),
            ("/with space/name", run_url("file:///with%20space", "name", None)),
            (&format!("s3://b/r/name/{manifest}"), run_url("s3://b/r", "name", Some(manifest))),
            (&format!("/x/name/{manifest}"), run_url("file:///x", "name", Some(manifest))),
        ] {
            let found = resolve_run_url(text).unwrap();
            assert_eq!(
                (found.root.trim_end_matches('/'), found.run, found.key),
                (expected.root.as_str(), expected.run, expected.key),
                "{text}"
            );
            Root::parse(&found.root).unwrap();
        }
    }

    #[test]
    fn relative_paths_are_taken_from_here() {
        let here = std::env::current_dir().unwrap();
        let found = resolve_run_url("runs/name").unwrap();
        assert_eq!(Root::parse(&found.root).unwrap().folder, Some(here.join("runs")));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "empty"),
            ("http://host/x/name", "not a kind of store"),
            ("s3://bucket", "names no run"),
            ("s3://bucket/runs/NAME", "not the name of a run"),
            ("s3://bucket/runs/x/manifests/latest.json", "not the name of a checkpoint"),
            ("s3://bucket/name?sig=x", "credentials"),
            ("s3://host:9000/name", "port"),
            ("s3:///", "names no run"),
        ] {
            let error = resolve_run_url(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (text, why) in [
            ("s3://", "names no bucket"),
            ("file://host/x", "three slashes"),
            ("s3://bucket/a%20b", "may hold only"),
            ("s3://bucket/a//b", "may hold only"),
        ] {
            let error = Root::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_repeated() {
        let error = resolve_run_url("s3://key:SECRET@bucket/name?token=SECRET").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", scheme in "(file|s3|gs|az|memory)://|") {
            let text = format!("{scheme}{text}");
            let _ = Root::parse(&text);
            if let Ok(found) = resolve_run_url(&text) {
                prop_assert!(is_run_name(&found.run));
            }
        }
    }
}
