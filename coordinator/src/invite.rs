//! How workers come to a coordinator: where it is reached, what both sides prove themselves with, and how those of this machine are started.
//!
//! Judged before anything is spent; nothing is opened here. The files themselves are `trust`'s.

use crate::admission::Token;
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::launch::Options;
use crate::state::{Held, write_private};
use children::supervisor::Recipe;
use common::exit::Exit;
use coordinator_core::WorkerId;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;
use trust::{Credentials, Party};

/// Environment variable with the run's join token, and the shortest that is taken from it.
const TOKEN: &str = "GANFLEET_TOKEN";
const TOKEN_LENGTH: usize = 32;
/// Environment variable with a worker's folder of credentials.
const CREDENTIALS: &str = "GANFLEET_CREDENTIALS";

/// Whether workers from elsewhere have a place, and an address to go to.
pub(crate) fn places(local: u32, workers: u32, options: &Options) -> Result<(), Failure> {
    let Entrance { listen, advertise, .. } = &options.entrance;
    if local > workers {
        let message = format!("--local {local} is more than the {workers} workers of the run: raise --workers too");
        return Err(Failure::new(Exit::Usage, message));
    }
    if 0 < local && local < workers && listen.ip().is_unspecified() {
        let message = format!(
            "--listen {listen} is every address of this machine, and its own workers would tell those from elsewhere none that leads \
             here: listen on one address, or start no workers here (--local 0)"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    if local < workers && listen.ip().is_unspecified() && advertise.is_none() {
        let message = format!(
            "--listen {listen} is every address of this machine, and workers from elsewhere must be told one: name it with \
             --advertise HOST"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(())
}

/// The token that the environment gives this run, for workers who must know it beforehand.
pub(crate) fn token() -> Result<Option<Token>, Failure> {
    let wrong = |what: String| Err(Failure::new(Exit::Config, format!("{TOKEN} {what}, or unset it")));
    match std::env::var(TOKEN).map(|text| Token::from_text(&text)) {
        Ok(token) if token.expose().len() >= TOKEN_LENGTH => Ok(Some(token)),
        Ok(short) => wrong(format!("holds {} characters: give {TOKEN_LENGTH} or more", short.expose().len())),
        Err(std::env::VarError::NotUnicode(_)) => wrong("is not UTF-8 text: give letters and digits".to_owned()),
        Err(std::env::VarError::NotPresent) => Ok(None),
    }
}

/// What a successor proves itself with: what workers at work expect, whether that was `given` anew or not.
pub(crate) fn inherited(given: Option<Credentials>, held: &Held) -> Result<Option<Credentials>, Failure> {
    let Some(control) = held.predecessor().0 else { return Ok(given) };
    let refused = |message: String| Err(Failure::new(Exit::Config, message));
    match (given, control.credentials) {
        (None, Some(folder)) => match Credentials::read(&folder, Party::Coordinator, SystemTime::now()) {
            Ok(credentials) => Ok(Some(credentials)),
            Err(error) => refused(format!("the workers at work expect a coordinator with credentials: {error}")),
        },
        (Some(_), None) => refused(
            "the workers at work have no credentials: leave --credentials out, or unset GANFLEET_CREDENTIALS"
                .to_owned(),
        ),
        (given, _) => Ok(given),
    }
}

/// How workers from elsewhere come.
pub(crate) fn invitation(address: &str, credentials: Option<&Credentials>, held: &Held) -> String {
    match credentials {
        Some(_) => format!("`worker join {address} --credentials FOLDER` with the workers' credentials"),
        None => {
            let file = held.token_file();
            format!("`worker join {address}` with the run's token in {TOKEN} (it is in {})", file.display())
        }
    }
}

/// Tells whoever started this coordinator, by a `file`, where workers from elsewhere reach it.
pub(crate) fn written(file: Option<&Path>, public: &str) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    write_private(file, public.as_bytes())
        .map_err(|error| Failure::new(Exit::Config, format!("--address-file {}: {error}", file.display())))
}

/// How workers of this run are started on this machine.
pub(crate) fn recipe(
    worker: &Path,
    address: SocketAddr,
    (token, credentials): (&Token, Option<&Credentials>),
    control: &Path,
    gpus: Vec<String>,
    nonce: &str,
) -> Recipe {
    // around the coordinator's own, or in the same folder, there are the workers'
    let around = |folder: &'_ Path| match folder.ends_with(Party::Coordinator.name()) {
        true => folder.parent().map(Path::to_owned),
        false => Some(folder.to_owned()),
    };
    let folder = credentials.and_then(|credentials| around(credentials.folder()));
    let folder = folder.map(|folder| (CREDENTIALS.to_owned(), folder.to_string_lossy().into_owned()));
    Recipe {
        worker: WorkerId(format!("{nonce}-")),
        gpus,
        program: worker.to_owned(),
        arguments: vec!["join".to_owned(), address.to_string()],
        environment: [
            (TOKEN.to_owned(), token.expose().to_owned()),
            // where they look for the next coordinator of this machine
            ("GANFLEET_CONTROL".to_owned(), control.to_string_lossy().into_owned()),
        ]
        .into_iter()
        .chain(folder)
        .collect(),
        // they outlive a coordinator
        leash: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_its_own_name_and_gpu_and_no_secret_in_its_arguments() {
        let token = Token::from_text("secret");
        let address = "127.0.0.1:4000".parse().unwrap();
        let control = Path::new("/state/control.json");
        let recipe = recipe(
            Path::new("/bin/worker"),
            address,
            (&token, None),
            control,
            ["4", "6"].map(str::to_owned).into(),
            "ab12",
        );
        let variable = |recipe: &Recipe, name: &str| {
            recipe.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap()
        };
        let recipes: Vec<_> =
            [(0, 1), (1, 2), (2, 3), (1, 4)].map(|(slot, number)| recipe.for_place(slot, number)).into();
        let all = |name: &str| recipes.iter().map(|recipe| variable(recipe, name)).collect::<Vec<_>>();
        assert_eq!(all("CUDA_VISIBLE_DEVICES"), ["4", "6", "4", "6"]);
        assert_eq!(all("GANFLEET_WORKER_ID"), ["w0-ab12-1", "w1-ab12-2", "w2-ab12-3", "w1-ab12-4"]);
        for recipe in recipes {
            assert_eq!(recipe.arguments, ["join", "127.0.0.1:4000"]);
            assert_eq!(variable(&recipe, "GANFLEET_WORKER_ID"), recipe.worker.to_string());
            assert_eq!(variable(&recipe, "GANFLEET_TOKEN"), "secret");
        }
    }
}
