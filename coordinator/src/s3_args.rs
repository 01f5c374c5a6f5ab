//! How an S3 store is reached before a run's own configuration is known: flags, over `--set`, over the environment.

use crate::config_cli;
use crate::failure::Failure;
use clap::Args;
use common::config::resolved::S3;
use common::config::{self, Base, Layers};
use common::exit::Exit;

/// How an S3-compatible store is reached. Credentials come from the environment (AWS_ACCESS_KEY_ID, …).
#[derive(Clone, Debug, Default, Args)]
pub struct S3Args {
    /// Endpoint of an S3 store that is not AWS
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the S3 store
    #[arg(long, value_name = "NAME")]
    pub s3_region: Option<String>,
    /// Address endpoint/bucket instead of bucket.endpoint
    #[arg(long)]
    pub s3_path_style: bool,
    /// PEM file with a certificate authority to trust besides the usual ones
    #[arg(long, value_name = "FILE")]
    pub s3_ca: Option<String>,
    /// Allow an http:// endpoint beyond this machine
    #[arg(long)]
    pub s3_allow_http: bool,
}

impl S3Args {
    /// The flags over the environment's `GANFLEET__CHECKPOINT__S3__…`.
    ///
    /// # Errors
    /// A variable is wrong.
    pub fn resolve(&self) -> Result<S3, Failure> {
        let s3 = of_layers(&[])?;
        Ok(S3 {
            endpoint: self.s3_endpoint.clone().or(s3.endpoint),
            region: self.s3_region.clone().or(s3.region),
            path_style: self.s3_path_style || s3.path_style,
            ca: self.s3_ca.clone().or(s3.ca),
            allow_http: self.s3_allow_http || s3.allow_http,
        })
    }
}

/// The settings `checkpoint.s3.…` of `--set` over those of the environment.
///
/// # Errors
/// One of them is wrong.
pub fn of_layers(set: &[String]) -> Result<S3, Failure> {
    let wanted = |name: &str| name.to_lowercase().starts_with("ganfleet__checkpoint__s3__");
    let env: Vec<_> = config_cli::environment()?.into_iter().filter(|(name, _)| wanted(name)).collect();
    let set: Vec<_> = set.iter().filter(|text| text.trim_start().starts_with("checkpoint.s3.")).cloned().collect();
    let here = config_cli::working_dir()?;
    // the least that makes an experiment; only the store's settings of it are used
    let base = Base::File { path: "", text: "name = \"unknown\"\n[data]\nsource = \"unknown\"\n", folder: &here };
    let resolved = config::resolve(&Layers { base, env: &env, set: &set, working_dir: &here }, 1);
    Ok(resolved.map_err(|error| Failure::new(Exit::Config, error))?.config.checkpoint.s3)
}
