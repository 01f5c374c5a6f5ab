//! What can go wrong with a store, told to the person who must act. Messages never hold a secret.

use common::checkpoint::{ManifestError, ManifestKey};

/// Longest text of somebody else's that a message repeats, in characters.
const MAX_DETAIL: usize = 400;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// There is nothing of that name.
    #[error("{what} does not exist. Check the URL; for a bucket or container: it must be created first")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The store knows us and refuses, or does not know us.
    #[error(
        "access to {what} is denied: {detail}. Check the credentials in the environment and what they are allowed to do"
    )]
    Denied {
        /// What was asked for.
        what: String,
        /// The store's words.
        detail: String,
    },
    /// Nothing in the environment says who we are. Found before the network is used.
    #[error("no credentials for {url}: {advice}")]
    NoCredentials {
        /// The store.
        url: String,
        /// What to set.
        advice: &'static str,
    },
    /// No answer, or only answers that say "later", until the time was up.
    #[error(
        "{what}: no success in {tries} tries over {seconds:.0} s; last: {detail}. Check the network and the endpoint"
    )]
    Unreachable {
        /// What was asked for.
        what: String,
        /// How often.
        tries: u32,
        /// For how long.
        seconds: f64,
        /// The last failure.
        detail: String,
    },
    /// An answer that would be the same tomorrow.
    #[error("the store refused {what}: {detail}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The store's words.
        detail: String,
    },
    /// A file of this machine, to be written into the store, cannot be read.
    #[error("{file} of this machine cannot be read: {detail}")]
    Unreadable {
        /// Its path.
        file: String,
        /// The system's words.
        detail: String,
    },
    /// A file of this machine, to hold what the store gave, cannot be written.
    #[error("{file} of this machine cannot be written: {detail}")]
    Unwritable {
        /// Its path.
        file: String,
        /// The system's words.
        detail: String,
    },
    /// What is stored is not what was written.
    #[error("{what} is damaged: expected {expected}, found {found}")]
    Corrupt {
        /// The object.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Larger than what this program takes into memory.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// The object.
        what: String,
        /// Its size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// Not the URL of a store, a run or a checkpoint.
    #[error("'{url}' cannot be used: {why}")]
    BadUrl {
        /// As typed, without secrets.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A setting of the store is wrong.
    #[error("{setting}: {why}")]
    BadSetting {
        /// Which.
        setting: String,
        /// What is wrong.
        why: String,
    },
    /// A manifest that cannot be used.
    #[error("{key}: {source}")]
    Manifest {
        /// Which.
        key: ManifestKey,
        /// Why.
        #[source]
        source: ManifestError,
    },
}

impl StorageError {
    /// Whether the object itself is at fault, so that another one may do; not the network, nor the credentials.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Corrupt { .. } | Self::TooLarge { .. } => true,
            // A manifest of another format is sound: passing it over in silence would train from an older state.
            Self::Manifest { source, .. } => !matches!(source, ManifestError::Format { .. }),
            _ => false,
        }
    }
}

/// An error's chain of causes on one line, shortened, and without the parts of URLs that may hold a secret.
pub(crate) fn detail(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    redact(&text)
}

/// Cuts user names, passwords and queries out of every URL in `text`, puts it on one line and shortens it.
pub(crate) fn redact(text: &str) -> String {
    let clean: Vec<String> = text.split_whitespace().map(redact_word).collect();
    let line = clean.join(" ");
    match line.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn redact_word(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let rest = rest.find(['?', '#']).map_or(rest, |end| &rest[..end]);
    let authority = rest.find('/').unwrap_or(rest.len());
    let rest = rest[..authority].rfind('@').map_or(rest, |at| &rest[at + 1..]);
    format!("{scheme}://{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_urls_are_cut_out() {
        let text = "GET https://acct.blob.example/c/x?sv=1&sig=SECRET failed\n at s3://key:SECRET@bucket/a@b end";
        assert_eq!(redact(text), "GET https://acct.blob.example/c/x failed at s3://bucket/a@b end");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = redact(&"ä".repeat(1000));
        assert_eq!(cut.chars().count(), MAX_DETAIL + 3);
    }
}
