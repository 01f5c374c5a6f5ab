//! `coordinator credentials`: makes, renews and shows what coordinator and workers prove themselves with off loopback.
//!
//! A folder holds `authority/` (its key makes more certificates; it need not leave this machine), `coordinator/` and `worker/`, of which the
//! latter is what a worker's machine is given. What they hold and how it is judged is `trust`'s. Files are replaced whole, so a coordinator
//! that is at work reads either the old ones or the new ones.

use crate::admission::Token;
use crate::display::line;
use crate::failure::Failure;
use crate::state::write_private;
use clap::Subcommand;
use common::exit::Exit;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use trust::{CA, IDENTITY, Party, TOKEN};

/// What helps against credentials that are or will soon be out of date.
pub(crate) const RENEW: &str = "coordinator credentials renew FOLDER, and give workers' machines their new folder";
/// Folder of the authority, and its files.
const AUTHORITY: &str = "authority";
/// Days for which certificates are good, where nothing else is said.
pub const DAYS: u32 = 365;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// An authority outlives what it signs.
const AUTHORITY_DAYS: u32 = 3650;
/// Clocks of machines differ: certificates are good from a little earlier on.
const SKEW: Duration = Duration::from_secs(3600);

/// Makes, renews or shows credentials.
#[derive(Clone, Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Make credentials in a folder: for the coordinator, for workers, and the authority behind them
    Make {
        /// Folder to make; it must not exist, or be empty
        folder: PathBuf,
        /// Days for which certificates are good
        #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Make new certificates in place of those in a folder. Coordinators and workers at work take them up by themselves
    Renew {
        /// Folder that `make` has made
        folder: PathBuf,
        /// Days for which the new certificates are good
        #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// A new authority too. The old one is trusted as well, and the coordinator's certificate stays: give workers their new folder, and
        /// then end the change with --forget
        #[arg(long, conflicts_with = "forget")]
        authority: bool,
        /// Trust none but the newest authority from now on
        #[arg(long)]
        forget: bool,
    },
    /// Show what is in a folder, and until when it is good
    Show {
        /// Folder that `make` has made, or a worker's
        folder: PathBuf,
    },
}

/// Does it.
///
/// # Errors
/// Files cannot be read or written, or are not what they should be.
pub fn run(command: &CredentialsCommand) -> Result<Exit, Failure> {
    match command {
        CredentialsCommand::Make { folder, days } => make(folder, *days),
        CredentialsCommand::Renew { folder, days, authority, forget } => renew(folder, *days, *authority, *forget),
        CredentialsCommand::Show { folder } => show(folder),
    }
}

fn make(folder: &Path, days: u32) -> Result<Exit, Failure> {
    made(folder, days)?;
    show(folder)?;
    let here = folder.display();
    line(&format!(
        "the coordinator: coordinator launch FILE --listen ADDRESS:PORT --credentials {here}\n\
         a worker's machine gets {here}/worker, and: worker join ADDRESS:PORT --credentials worker\n\
         {here}/{AUTHORITY} stays here: who has it can make more"
    ));
    Ok(Exit::Ok)
}

/// Credentials for all in a folder that is not there yet.
///
/// # Errors
/// It is there, or cannot be written.
pub fn made(folder: &Path, days: u32) -> Result<(), Failure> {
    let occupied = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied || folder.is_file() {
        let message = format!("{} is there already: renew what is in it, or give another folder", folder.display());
        return Err(Failure::new(Exit::Usage, message));
    }
    let token = Token::fresh().map_err(|error| Failure::new(Exit::Internal, format!("no random numbers: {error}")))?;
    for name in [AUTHORITY, Party::Coordinator.name(), Party::Worker.name()] {
        let path = folder.join(name);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| failed(&path, &error))?;
    }
    let (certificate, issuer) = authority()?;
    let identity = certificate.clone() + &issuer.key().serialize_pem();
    store(&folder.join(AUTHORITY).join(IDENTITY), &identity)?;
    for party in Party::ALL {
        let of = folder.join(party.name());
        store(&of.join(CA), &certificate)?;
        store(&of.join(TOKEN), token.expose())?;
        store(&of.join(IDENTITY), &signed(party, &issuer, days)?)?;
    }
    Ok(())
}

fn renew(folder: &Path, days: u32, replace: bool, forget: bool) -> Result<Exit, Failure> {
    let path = folder.join(AUTHORITY).join(IDENTITY);
    let (newest, issuer) = read_authority(&path)?;
    let old = text(&folder.join(Party::Coordinator.name()).join(CA))?;
    if old.matches("-----BEGIN CERTIFICATE").count() > 1 && !forget {
        let message = "a change of authority is under way: give workers their new folder, and then end it with \
                       `coordinator credentials renew FOLDER --forget`";
        return Err(Failure::new(Exit::Usage, message));
    }
    let (newest, issuer, trusted) = match (replace, forget) {
        (true, _) => {
            let (made, issuer) = authority()?;
            // who trusts both can speak to who has either
            (made.clone(), issuer, made + &old)
        }
        (false, true) => (newest.clone(), issuer, newest),
        (false, false) => (newest, issuer, old),
    };
    let of = |party: Party, name: &str| folder.join(party.name()).join(name);
    // trusted before it is used: what is broken off here leaves nobody with a certificate that nobody trusts
    for party in Party::ALL {
        store(&of(party, CA), &trusted)?;
    }
    if replace {
        store(&path, &(newest + &issuer.key().serialize_pem()))?;
    }
    for party in Party::ALL {
        // workers must have been given the new authority before the coordinator shows its certificate
        if !(replace && party == Party::Coordinator) {
            store(&of(party, IDENTITY), &signed(party, &issuer, days)?)?;
        }
    }
    if replace {
        line("now give every worker's machine its new folder; then: coordinator credentials renew FOLDER --forget");
    }
    show(folder)
}

fn show(folder: &Path) -> Result<Exit, Failure> {
    let mut any = false;
    for (name, of) in [
        ("authority", folder.join(AUTHORITY)),
        ("coordinator", folder.join(Party::Coordinator.name())),
        ("worker", folder.join(Party::Worker.name())),
        ("", folder.to_owned()),
    ] {
        let file = of.join(IDENTITY);
        if file.exists() {
            any = true;
            line(format!("{name:<12} {}", described(&file)?).trim());
        }
    }
    match any {
        true => Ok(Exit::Ok),
        false => {
            let message = format!("{} holds no credentials: coordinator credentials make FOLDER", folder.display());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

/// Until when a certificate is good, in words.
fn described(file: &Path) -> Result<String, Failure> {
    let validity = trust::validity_of(file).map_err(|error| Failure::new(Exit::Config, error))?;
    let now = SystemTime::now();
    let days = |time: Duration| time.as_secs().div_ceil(DAY.as_secs());
    let left = match validity.until.duration_since(now) {
        Ok(left) => format!("good for {} days", days(left)),
        Err(past) => format!("EXPIRED {} days ago", days(past.duration())),
    };
    Ok(format!("{left}  {}", file.display()))
}

/// A new authority: its certificate, and what signs with it.
fn authority() -> Result<(String, Issuer<'static, KeyPair>), Failure> {
    let key = KeyPair::generate().map_err(defect)?;
    let mut params = params(Vec::new(), "authority", AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(defect)?.pem();
    Ok((certificate, Issuer::new(params, key)))
}

fn read_authority(path: &Path) -> Result<(String, Issuer<'static, KeyPair>), Failure> {
    let text = text(path)?;
    let wrong = |error: rcgen::Error| Failure::new(Exit::Config, format!("{}: {error}", path.display()));
    let at = text.find("-----BEGIN PRIVATE").unwrap_or(text.len());
    let (certificate, key) = text.split_at(at);
    let key = KeyPair::from_pem(key).map_err(wrong)?;
    let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(wrong)?;
    Ok((certificate.to_owned(), issuer))
}

/// A certificate of `party` and its key.
fn signed(party: Party, issuer: &Issuer<'static, KeyPair>, days: u32) -> Result<String, Failure> {
    let key = KeyPair::generate().map_err(defect)?;
    let mut params = params(vec![party.subject().to_owned()], party.name(), days)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match party {
        // it also asks others, as an operator's program
        Party::Coordinator => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Party::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).map_err(defect)?;
    Ok(certificate.pem() + &key.serialize_pem())
}

fn params(names: Vec<String>, name: &str, days: u32) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(names).map_err(defect)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ganfleet");
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + DAY * days).into());
    Ok(params)
}

fn store(path: &Path, text: &str) -> Result<(), Failure> {
    write_private(path, text.as_bytes()).map_err(|error| failed(path, &error))
}

fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Config, format!("{}: {error}", path.display()))
}

fn defect(error: rcgen::Error) -> Failure {
    Failure::new(Exit::Internal, format!("no certificate could be made: {error}"))
}
