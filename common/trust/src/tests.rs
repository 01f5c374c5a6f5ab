use super::*;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use tempfile::{TempDir, tempdir};

fn write(path: &Path, text: &str, mode: u32) {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Credentials of a worker, good for a day from now, and the moment at which they were made.
fn made() -> (TempDir, SystemTime) {
    let folder = tempdir().unwrap();
    let now = SystemTime::now();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec![Party::Worker.subject().to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (now.into(), (now + Duration::from_secs(24 * 3600)).into());
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &issuer).unwrap();
    write(&folder.path().join(CA), &authority.pem(), 0o644);
    write(&folder.path().join(IDENTITY), &(own.pem() + &key.serialize_pem()), 0o600);
    write(&folder.path().join(TOKEN), "secret\n", 0o600);
    (folder, now)
}

fn refusal(folder: &Path, party: Party, now: SystemTime) -> TrustError {
    Credentials::read(folder, party, now).expect_err("these are not to be used")
}

#[test]
fn what_is_sound_is_read_from_the_folder_or_the_one_around_it() {
    let (folder, now) = made();
    let found = Credentials::read(folder.path(), Party::Worker, now).unwrap();
    assert_eq!((found.token(), found.folder()), ("secret", folder.path()));
    assert!(!format!("{found:?}").contains("secret"));
    found.server().unwrap();

    let around = tempdir().unwrap();
    let inner = around.path().join("worker");
    std::fs::create_dir(&inner).unwrap();
    for name in [CA, IDENTITY, TOKEN] {
        std::fs::copy(folder.path().join(name), inner.join(name)).unwrap();
    }
    assert_eq!(Credentials::read(around.path(), Party::Worker, now).unwrap().folder(), inner);
}

#[test]
fn what_cannot_be_used_is_said_before_it_is_tried() {
    let (folder, now) = made();
    let file = |name: &str| folder.path().join(name);
    assert_eq!(
        refusal(folder.path(), Party::Coordinator, now),
        TrustError::Party { file: file(IDENTITY), wanted: Party::Coordinator }
    );
    let later = now + Duration::from_secs(25 * 3600);
    assert!(matches!(refusal(folder.path(), Party::Worker, later), TrustError::Expired { .. }));
    let earlier = now - Duration::from_secs(3600);
    assert!(matches!(refusal(folder.path(), Party::Worker, earlier), TrustError::NotYet { .. }));

    std::fs::set_permissions(file(IDENTITY), std::fs::Permissions::from_mode(0o640)).unwrap();
    let said = refusal(folder.path(), Party::Worker, now);
    assert_eq!(said, TrustError::Exposed { file: file(IDENTITY), mode: 0o640 });
    std::fs::set_permissions(file(IDENTITY), std::fs::Permissions::from_mode(0o600)).unwrap();

    let identity = std::fs::read_to_string(file(IDENTITY)).unwrap();
    let certificate_alone = identity.split("-----BEGIN PRIVATE").next().unwrap();
    for (name, text, expected) in [
        (IDENTITY, certificate_alone, "its key"),
        (IDENTITY, "nonsense", "no certificate is in it"),
        (CA, "", "no certificate is in it"),
        (TOKEN, " \n", "it is empty"),
    ] {
        let before = std::fs::read_to_string(file(name)).unwrap();
        write(&file(name), text, 0o600);
        let said = refusal(folder.path(), Party::Worker, now);
        assert!(matches!(&said, TrustError::Malformed { why, .. } if why.contains(expected)), "{said}");
        write(&file(name), &before, 0o600);
    }
    write(&file(CA), &"x".repeat(70_000), 0o600);
    assert!(refusal(folder.path(), Party::Worker, now).to_string().contains("longer than"));
    std::fs::remove_file(file(CA)).unwrap();
    assert_eq!(refusal(folder.path(), Party::Worker, now), TrustError::Missing { file: file(CA) });
}

#[test]
fn another_key_than_the_certificates_serves_nobody() {
    let (folder, now) = made();
    let (other, _) = made();
    let of = |folder: &TempDir| std::fs::read_to_string(folder.path().join(IDENTITY)).unwrap();
    let (mine, theirs) = (of(&folder), of(&other));
    let key = theirs.find("-----BEGIN PRIVATE").map(|at| &theirs[at..]).unwrap();
    let mixed = mine.split("-----BEGIN PRIVATE").next().unwrap().to_owned() + key;
    write(&folder.path().join(IDENTITY), &mixed, 0o600);
    let error = Credentials::read(folder.path(), Party::Worker, now).unwrap().server().unwrap_err();
    assert!(matches!(error, TrustError::Malformed { .. }), "{error}");
}

#[test]
fn broken_handshakes_are_explained() {
    for (why, advice) in [
        ("transport error: received corrupt message of type InvalidContentType", "no TLS is spoken"),
        ("http2 error: connection error detected: frame with invalid size", "TLS is spoken there"),
        ("received fatal alert: CertificateRequired", "--credentials"),
        ("invalid peer certificate: UnknownIssuer", "one authority"),
        ("received fatal alert: UnknownCA", "one authority"),
        ("invalid peer certificate: certificate not valid for name \"x\"", "no certificate of a coordinator"),
        (
            "invalid peer certificate: certificate does not allow extended key usage for server",
            "no certificate of a coordinator",
        ),
        ("invalid peer certificate: certificate expired: verification time 1 (UNIX)", "expired"),
    ] {
        assert!(explain(why).is_some_and(|said| said.contains(advice)), "{why}");
    }
    assert_eq!(explain("connection refused"), None);
}
