//! What a certificate says of itself, and what a failed handshake means for people.

use crate::{Party, TrustError};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub from: SystemTime,
    /// Until then.
    pub until: SystemTime,
}

/// When the certificate is good.
///
/// # Errors
/// It is none, in words.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    let parsed = parsed(certificate)?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let validity = parsed.validity();
    Ok(Validity { from: time(validity.not_before.timestamp()), until: time(validity.not_after.timestamp()) })
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = X509Certificate::from_der(certificate.as_ref());
    parsed.map(|(_, parsed)| parsed).map_err(|error| format!("it holds no certificate: {error}"))
}

/// Whether the certificate is `party`'s and good at `now`.
pub(crate) fn is_for(
    file: &Path,
    certificate: &CertificateDer<'_>,
    party: Party,
    now: SystemTime,
) -> Result<(), TrustError> {
    let file = file.to_owned();
    let parsed = match parsed(certificate) {
        Ok(parsed) => parsed,
        Err(why) => return Err(TrustError::Malformed { file, why }),
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    let mut names = names.iter().flat_map(|names| &names.value.general_names);
    if !names.any(|name| matches!(name, GeneralName::DNSName(name) if *name == party.subject())) {
        return Err(TrustError::Party { file, wanted: party });
    }
    let (now, validity) = (seconds(now), parsed.validity());
    if now > validity.not_after.timestamp() {
        return Err(TrustError::Expired { file, on: validity.not_after.to_string() });
    }
    if now < validity.not_before.timestamp() {
        return Err(TrustError::NotYet { file, from: validity.not_before.to_string() });
    }
    Ok(())
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// What to do about a connection that broke in the handshake, as the TLS library words it; `None` where that was not the reason.
#[must_use]
pub fn explain(why: &str) -> Option<&'static str> {
    // what the other side says comes as an alert, what this one finds as an error of its own
    const KNOWN: [(&[&str], &str); 8] = [
        (
            &["InvalidContentType", "corrupt message"],
            "no TLS is spoken there: the coordinator was started without --credentials",
        ),
        // an alert, read as a frame of HTTP/2
        (&["frame with invalid size"], "TLS is spoken there: give --credentials FOLDER"),
        (&["CertificateRequired"], "the coordinator asks for a certificate: give --credentials FOLDER"),
        (
            &["CertificateExpired", "certificate expired", "Expired"],
            "a certificate has expired: coordinator credentials renew",
        ),
        (&["NotValidYet", "not valid yet"], "a certificate is not good yet: compare the clocks of both machines"),
        (
            &["UnknownCA", "UnknownIssuer", "DecryptError", "BadSignature"],
            "the certificates on both sides were not made by one authority: give the credentials that belong to this run",
        ),
        (
            &["NotValidForName", "not valid for name", "InvalidPurpose", "does not allow extended key usage"],
            "what answers there has no certificate of a coordinator",
        ),
        (&["BadCertificate", "UnsupportedCertificate"], "the certificate is not accepted there"),
    ];
    KNOWN.iter().find(|(signs, _)| signs.iter().any(|sign| why.contains(sign))).map(|(_, advice)| *advice)
}

/// What a call over the network failed with, and what caused that.
#[must_use]
pub fn words(status: &tonic::Status) -> String {
    let message = status.message().to_owned();
    match std::error::Error::source(status).map(causes) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message,
    }
}

/// An error with what caused it: the outermost alone often says only "transport error".
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}
