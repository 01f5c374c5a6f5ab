//! From a root's URL to a client with credentials and time-outs.
//!
//! Whatever can be known to fail is refused here, before the network is used: no credentials, a plain-http endpoint that
//! was not allowed, a certificate file that cannot be read. Credentials come from the environment only.

use crate::error::{StorageError, detail};
use crate::location::{Kind, Root};
use crate::retry::client_retries;
use common::config::resolved::S3;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{Certificate, ClientOptions};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use url::{Host, Url};

/// Set to 1 to let a cloud's metadata service supply credentials; without it no request ever goes there unasked.
const INSTANCE_CREDENTIALS: &str = "GANFLEET_INSTANCE_CREDENTIALS";
/// Largest certificate file.
const MAX_CA_BYTES: u64 = 1 << 20;

/// The process's environment, as far as it is text.
pub(crate) type Environment = BTreeMap<String, String>;

pub(crate) fn environment() -> Environment {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// The client of `root`. `create` makes a missing local folder; without it that is an error.
pub(crate) fn client(
    root: &Root,
    s3: &S3,
    env: &Environment,
    create: bool,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    match root.kind {
        Kind::File => file(root, create),
        Kind::Memory => Ok(memory(&root.bucket)),
        Kind::S3 => amazon(root, s3, env),
        Kind::Gcs => google(root, env),
        Kind::Azure => azure(root, env),
    }
}

fn file(root: &Root, create: bool) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let folder = root.folder.as_deref().unwrap_or(Path::new("/"));
    let refused = |detail: String| StorageError::Refused { what: root.display.clone(), detail };
    if create {
        std::fs::create_dir_all(folder).map_err(|e| refused(format!("the folder cannot be made: {e}")))?;
    } else if !folder.is_dir() {
        return Err(StorageError::NotFound { what: format!("the folder {}", root.display) });
    }
    // A checkpoint that was acknowledged survives a loss of power.
    let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| refused(detail(&e)))?.with_fsync(true);
    Ok(Arc::new(store))
}

/// One memory per name and process, so that a coordinator and workers in one test see the same objects.
fn memory(name: &str) -> Arc<dyn ObjectStore> {
    static MEMORIES: LazyLock<Mutex<BTreeMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    let mut memories = MEMORIES.lock().unwrap_or_else(PoisonError::into_inner);
    memories.entry(name.to_owned()).or_default().clone()
}

/// No deadline on a whole request, because a part of any size may be slow, but one on silence.
fn options(allow_http: bool) -> ClientOptions {
    ensure_tls_provider();
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(30))
        .with_connect_timeout(Duration::from_secs(10))
}

/// The HTTP client takes its cryptography from the process's default; whoever was first is as good.
fn ensure_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn amazon(root: &Root, s3: &S3, env: &Environment) -> Result<Arc<dyn ObjectStore>, StorageError> {
    if !has_aws_credentials(env) {
        return Err(StorageError::NoCredentials {
            url: root.display.clone(),
            advice: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles and ~/.aws are not read), a web identity \
                     (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN), or GANFLEET_INSTANCE_CREDENTIALS=1 on a machine whose \
                     metadata service supplies them",
        });
    }
    let mut builder = AmazonS3Builder::new();
    for (name, value) in env.iter().filter(|(name, _)| passes_to_client(name)) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    let endpoint = Endpoint::choose(s3, env, &root.bucket)?;
    if let Some(url) = &endpoint.url {
        builder = builder.with_endpoint(url);
    }
    let mut options = options(endpoint.allow_http);
    if let Some(ca) = &s3.ca {
        for certificate in read_certificates(ca)? {
            options = options.with_root_certificate(certificate);
        }
    }
    let store = builder
        .with_bucket_name(&root.bucket)
        .with_virtual_hosted_style_request(!endpoint.path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_unsigned_payload(false)
        .with_disable_bulk_delete(true)
        .with_client_options(options)
        .with_retry(client_retries())
        .build()
        .map_err(|e| setting(&root.display, &e))?;
    Ok(Arc::new(store))
}

fn has_aws_credentials(env: &Environment) -> bool {
    let set = |name: &str| env.get(name).is_some_and(|value| !value.is_empty());
    (set("AWS_ACCESS_KEY_ID") && set("AWS_SECRET_ACCESS_KEY"))
        || (set("AWS_WEB_IDENTITY_TOKEN_FILE") && set("AWS_ROLE_ARN"))
        || set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || (set("AWS_CONTAINER_CREDENTIALS_FULL_URI") && set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
        || is_on(env, "AWS_SKIP_SIGNATURE")
        || is_on(env, INSTANCE_CREDENTIALS)
}

/// Identity, region and encryption are the environment's; how objects are written and where is ours.
fn passes_to_client(name: &str) -> bool {
    const OURS: [&str; 12] = [
        "AWS_ALLOW_HTTP",
        "AWS_BUCKET",
        "AWS_BUCKET_NAME",
        "AWS_CHECKSUM_ALGORITHM",
        "AWS_CONDITIONAL_PUT",
        "AWS_COPY_IF_NOT_EXISTS",
        "AWS_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_TIMEOUT",
        "AWS_UNSIGNED_PAYLOAD",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    ];
    name.starts_with("AWS_") && !OURS.contains(&name)
}

/// Where an S3 store answers.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    /// `None` = AWS.
    url: Option<String>,
    path_style: bool,
    allow_http: bool,
}

impl Endpoint {
    /// The setting wins over `AWS_ENDPOINT_URL_S3`, then `AWS_ENDPOINT_URL`, then `AWS_ENDPOINT`.
    fn choose(s3: &S3, env: &Environment, bucket: &str) -> Result<Self, StorageError> {
        let from_environment = || {
            let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
            names.iter().find_map(|&name| Some((name, env.get(name).filter(|v| !v.is_empty())?.as_str())))
        };
        let configured = s3.endpoint.as_deref().filter(|v| !v.is_empty()).map(|v| ("checkpoint.s3.endpoint", v));
        let Some((source, text)) = configured.or_else(from_environment) else {
            // A dot in the bucket's name breaks the certificate of bucket.s3.region.amazonaws.com.
            return Ok(Self { url: None, path_style: s3.path_style || bucket.contains('.'), allow_http: false });
        };
        let bad = |why: String| StorageError::BadSetting { setting: source.to_owned(), why };
        let mut url =
            Url::parse(text).map_err(|e| bad(format!("it is not a URL ({e}), such as https://s3.example.org")))?;
        let loopback = match url.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => return Err(bad("it names no host".into())),
        };
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(bad("credentials do not belong into it; they come from the environment".into()));
        }
        let allow_http = loopback || s3.allow_http || is_on(env, "AWS_ALLOW_HTTP");
        match url.scheme() {
            "https" => {}
            "http" if allow_http => {}
            "http" => {
                return Err(bad("it is plain http, which sends data unprotected. Use https, or set \
                     checkpoint.s3.allow_http = true where the network itself is trusted"
                    .into()));
            }
            other => return Err(bad(format!("'{other}' is not http or https"))),
        }
        let numeric = !matches!(url.host(), Some(Host::Domain(_)));
        let path_style = s3.path_style || numeric || loopback || bucket.contains('.');
        if !path_style {
            let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
            url.set_host(Some(&host)).map_err(|e| bad(format!("{host} is not a host ({e}); try path_style = true")))?;
        }
        Ok(Self { url: Some(url.as_str().trim_end_matches('/').to_owned()), path_style, allow_http })
    }
}

fn read_certificates(path: &str) -> Result<Vec<Certificate>, StorageError> {
    let bad = |why: String| StorageError::BadSetting { setting: format!("checkpoint.s3.ca ({path})"), why };
    let size = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if size > MAX_CA_BYTES {
        return Err(bad(format!("{size} bytes is too large for a certificate file")));
    }
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| bad(detail(&e)))?;
    if certificates.is_empty() {
        return Err(bad("it holds no certificate in PEM form".into()));
    }
    Ok(certificates)
}

fn google(root: &Root, env: &Environment) -> Result<Arc<dyn ObjectStore>, StorageError> {
    const NAMES: [&str; 8] = [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_BEARER_TOKEN",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "SERVICE_ACCOUNT",
        "SERVICE_ACCOUNT_KEY",
        "SERVICE_ACCOUNT_PATH",
    ];
    let well_known = || {
        let home = env.get("HOME")?;
        Path::new(home).join(".config/gcloud/application_default_credentials.json").is_file().then_some(())
    };
    if !any_set(env, &NAMES) && !is_on(env, INSTANCE_CREDENTIALS) && well_known().is_none() {
        return Err(StorageError::NoCredentials {
            url: root.display.clone(),
            advice: "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GANFLEET_INSTANCE_CREDENTIALS=1 on a machine whose \
                     metadata service supplies them",
        });
    }
    let store = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&root.bucket)
        .with_client_options(options(false))
        .with_retry(client_retries())
        .build()
        .map_err(|e| setting(&root.display, &e))?;
    Ok(Arc::new(store))
}

fn azure(root: &Root, env: &Environment) -> Result<Arc<dyn ObjectStore>, StorageError> {
    const NAMES: [&str; 10] = [
        "AZURE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_USE_AZURE_CLI",
    ];
    if !any_set(env, &NAMES) && !is_on(env, INSTANCE_CREDENTIALS) {
        return Err(StorageError::NoCredentials {
            url: root.display.clone(),
            advice: "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a SAS token, a client secret, \
                     AZURE_USE_AZURE_CLI=true), or GANFLEET_INSTANCE_CREDENTIALS=1 on a machine with a managed identity",
        });
    }
    let store = MicrosoftAzureBuilder::from_env()
        .with_container_name(&root.bucket)
        .with_client_options(options(false))
        .with_retry(client_retries())
        .build()
        .map_err(|e| setting(&root.display, &e))?;
    Ok(Arc::new(store))
}

fn any_set(env: &Environment, names: &[&str]) -> bool {
    names.iter().any(|&name| env.get(name).is_some_and(|value| !value.is_empty()))
}

fn is_on(env: &Environment, name: &str) -> bool {
    env.get(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

fn setting(url: &str, error: &object_store::Error) -> StorageError {
    StorageError::BadSetting { setting: url.to_owned(), why: detail(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn try_open(url: &str, s3: &S3, pairs: &[(&str, &str)]) -> Result<Arc<dyn ObjectStore>, StorageError> {
        client(&Root::parse(url).unwrap(), s3, &env(pairs), false)
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "SECRET")];

    #[test]
    fn without_credentials_nothing_is_asked() {
        for url in ["s3://bucket/runs", "gs://bucket/runs", "az://container/runs"] {
            let error = try_open(url, &S3::default(), &[]).unwrap_err();
            assert!(matches!(error, StorageError::NoCredentials { .. }), "{url}: {error}");
        }
        let half = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "")];
        assert!(matches!(try_open("s3://b/r", &S3::default(), &half), Err(StorageError::NoCredentials { .. })));
    }

    #[test]
    fn any_source_of_credentials_will_do() {
        for pairs in [
            &KEYS[..],
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "arn")],
            &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")],
            &[("GANFLEET_INSTANCE_CREDENTIALS", "1")],
        ] {
            try_open("s3://bucket/runs", &S3::default(), pairs).unwrap();
        }
        try_open("gs://bucket/runs", &S3::default(), &[("GANFLEET_INSTANCE_CREDENTIALS", "true")]).unwrap();
    }

    #[test]
    fn the_client_does_not_show_its_secret() {
        let store = try_open("s3://bucket/runs", &S3::default(), &KEYS).unwrap();
        assert!(!format!("{store}").contains("SECRET"));
    }

    fn endpoint(s3: &S3, pairs: &[(&str, &str)]) -> Result<Endpoint, StorageError> {
        Endpoint::choose(s3, &env(pairs), "ckpt")
    }

    #[test]
    fn the_setting_wins_over_the_environment() {
        let s3 = S3 { endpoint: Some("https://a.example".into()), path_style: true, ..S3::default() };
        let found = endpoint(&s3, &[("AWS_ENDPOINT_URL", "https://b.example")]).unwrap();
        assert_eq!(found.url.as_deref(), Some("https://a.example"));
        let found = endpoint(&S3::default(), &[("AWS_ENDPOINT_URL", "https://b.example:9000/")]).unwrap();
        assert_eq!(found.url.as_deref(), Some("https://ckpt.b.example:9000"));
        assert_eq!(endpoint(&S3::default(), &[]).unwrap().url, None);
    }

    #[test]
    fn addresses_have_no_subdomains() {
        let s3 = S3 { endpoint: Some("http://127.0.0.1:8333".into()), ..S3::default() };
        let found = endpoint(&s3, &[]).unwrap();
        assert_eq!(found, Endpoint { url: Some("http://127.0.0.1:8333".into()), path_style: true, allow_http: true });
    }

    #[test]
    fn plain_http_is_for_loopback_or_by_permission() {
        let s3 = |allow_http| S3 { endpoint: Some("http://store.example".into()), allow_http, ..S3::default() };
        let error = endpoint(&s3(false), &[]).unwrap_err().to_string();
        assert!(error.contains("checkpoint.s3.endpoint") && error.contains("allow_http"), "{error}");
        assert!(endpoint(&s3(true), &[]).unwrap().allow_http);
    }

    #[test]
    fn bad_endpoints_and_certificates_are_named() {
        for bad in ["store.example", "ftp://store.example", "https://k:SECRET@store.example", "https://"] {
            let s3 = S3 { endpoint: Some(bad.into()), ..S3::default() };
            let error = endpoint(&s3, &[]).unwrap_err().to_string();
            assert!(error.starts_with("checkpoint.s3.endpoint: ") && !error.contains("SECRET"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("ca.pem");
        std::fs::write(&empty, "not a certificate").unwrap();
        for ca in [empty, folder.path().join("missing.pem")] {
            let s3 = S3 { ca: Some(ca.to_string_lossy().into_owned()), ..S3::default() };
            let error = try_open("s3://bucket/runs", &s3, &KEYS).unwrap_err();
            assert!(error.to_string().contains("checkpoint.s3.ca"), "{error}");
        }
    }

    #[test]
    fn a_missing_folder_is_made_only_for_a_writer() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::parse(&folder.path().join("a/b").to_string_lossy()).unwrap();
        let error = client(&root, &S3::default(), &env(&[]), false).unwrap_err();
        assert!(matches!(error, StorageError::NotFound { .. }), "{error}");
        client(&root, &S3::default(), &env(&[]), true).unwrap();
        assert!(folder.path().join("a/b").is_dir());
    }
}
