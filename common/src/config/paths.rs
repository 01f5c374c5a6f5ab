//! Paths and addresses as they stand in an experiment file, made absolute against a folder that the caller names.
//!
//! Text only: whether anything exists there is for those who open it.

use std::path::{Component, Path, PathBuf};
use url::Url;

/// Schemes that a store of checkpoints can have.
const STORES: [&str; 5] = ["s3", "gs", "az", "file", "memory"];

/// Those of them that are elsewhere.
const REMOTE: [&str; 3] = ["s3", "gs", "az"];

/// `text` as an absolute path with `.` and `..` resolved, starting at `folder`.
pub(super) fn absolute(text: &str, folder: &Path) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err("expected a path".to_owned());
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("expected a path on this machine, found an address ({})", super::error::printable(scheme)));
    }
    let mut path = PathBuf::new();
    for component in folder.join(text).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            other => path.push(other),
        }
    }
    match path.to_str() {
        Some(path) if Path::new(path).is_absolute() => Ok(path.to_owned()),
        Some(_) => Err("the folder it is relative to is not absolute".to_owned()),
        None => Err("the folder it is relative to has a name that is not UTF-8".to_owned()),
    }
}

/// `text` as a place of images: an object store's folder or archive, else a path.
pub(super) fn source(text: &str, folder: &Path) -> Result<String, String> {
    let remote = text.split_once("://").is_some_and(|(scheme, _)| REMOTE.contains(&scheme));
    if remote { store(text, folder) } else { absolute(text, folder) }
}

/// `text` as the address of a store, without a slash at its end. A plain path becomes a `file://` address.
pub(super) fn store(text: &str, folder: &Path) -> Result<String, String> {
    let path = match text.split_once("://") {
        None => Some(text.to_owned()),
        Some(("file", path)) if !path.starts_with('/') => Some(path.to_owned()),
        Some(_) => None,
    };
    if let Some(path) = path {
        let path = absolute(&path, folder)?;
        let url = Url::from_file_path(&path).map_err(|()| "expected a path or an address".to_owned())?;
        return Ok(trimmed(&url));
    }
    let url =
        Url::parse(text).map_err(|error| format!("expected a path or an address such as s3://bucket/runs: {error}"))?;
    if !STORES.contains(&url.scheme()) {
        let near = super::names::closest(url.scheme(), STORES);
        let near = near.map(|near| format!("; did you mean {near}://?")).unwrap_or_default();
        let known = STORES.map(|scheme| format!("{scheme}://")).join(", ");
        return Err(format!("expected one of {known}, or a path{near}"));
    }
    // never repeated in the message: it may be a password
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong in an address: give them in the environment".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("an address of a store has no ? and no #".to_owned());
    }
    if matches!(url.scheme(), "s3" | "gs" | "az") && url.host_str().is_none_or(str::is_empty) {
        return Err(format!("expected a bucket: {}://bucket/runs", url.scheme()));
    }
    Ok(trimmed(&url))
}

/// `text` as an endpoint of a store that speaks S3.
pub(super) fn endpoint(text: &str, allow_http: bool) -> Result<String, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("expected an address such as https://storage.example.org: {error}"))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => return Err("without TLS; set checkpoint.s3.allow_http = true if that is meant".to_owned()),
        _ => return Err("expected an address that begins with https://".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("expected host, port and path only; credentials come from the environment".to_owned());
    }
    Ok(trimmed(&url))
}

fn trimmed(url: &Url) -> String {
    let text = url.as_str();
    let shorter = text.trim_end_matches('/');
    // `file:///` and `memory:///` are roots, not addresses with a slash too many
    if shorter.ends_with(':') { text.to_owned() } else { shorter.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: &str = "/home/ada/experiments";

    #[test]
    fn paths_start_at_the_folder() {
        let path = |text| absolute(text, Path::new(HOME));
        assert_eq!(path("data/a.zip"), Ok(format!("{HOME}/data/a.zip")));
        assert_eq!(path("../runs/./x"), Ok("/home/ada/runs/x".into()));
        assert_eq!(path("../../../../.."), Ok("/".into()));
        assert_eq!(path("/data"), Ok("/data".into()));
        for bad in ["", "  ", "a\0b", "a\nb", "s3://bucket/x"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(absolute("x", Path::new("relative")).is_err());
    }

    #[test]
    fn addresses_of_stores() {
        let store = |text| store(text, Path::new(HOME));
        for (text, expected) in [
            ("../runs", "file:///home/ada/runs"),
            ("file://../runs/", "file:///home/ada/runs"),
            ("file:///data/runs/", "file:///data/runs"),
            ("my runs", "file:///home/ada/experiments/my%20runs"),
            ("s3://bucket/runs/", "s3://bucket/runs"),
            ("s3://bucket", "s3://bucket"),
            ("gs://b/x", "gs://b/x"),
            ("az://container", "az://container"),
            ("/", "file:///"),
        ] {
            assert_eq!(store(text).as_deref(), Ok(expected), "{text}");
        }
        assert!(store("memory://").is_ok() && store("memory:///x").is_ok());
        for (text, why) in [
            ("s4://bucket", "did you mean s3://"),
            ("ftp://host/x", "expected one of s3://"),
            ("s3://", "bucket"),
            ("s3:///key", "bucket"),
            ("s3://key:hunter2@bucket/x", "credentials"),
            ("s3://bucket/x?a=1", "no ?"),
            ("s3://[", "expected a path"),
            ("", "expected a path"),
        ] {
            let message = store(text).unwrap_err();
            assert!(message.contains(why) && !message.contains("hunter2"), "{text}: {message}");
        }
    }

    #[test]
    fn endpoints_need_tls_unless_allowed() {
        assert_eq!(endpoint("https://a.example:9000/", false), Ok("https://a.example:9000".into()));
        assert_eq!(endpoint("http://a.example", true), Ok("http://a.example".into()));
        for (text, allow) in [("http://a.example", false), ("s3://a", true), ("a", true), ("https://u:p@a", true)] {
            assert!(endpoint(text, allow).is_err(), "{text}");
        }
    }
}
