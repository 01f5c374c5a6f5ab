//! `status`, `stop` and `checkpoint`: one question to the coordinator of a run on this machine.

use crate::failure::Failure;
use crate::state;
use crate::view::Status;
use common::exit::Exit;
use rpc::control_client::ControlClient;
use rpc::operate_request::Command;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;
use tonic::transport::Endpoint;
use trust::{Credentials, Party};

/// Time for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the coordinator of `run` and returns the status after it obeyed.
///
/// # Errors
/// There is no coordinator, or it does not answer.
pub async fn operate(run: &str, command: Command) -> Result<Status, Failure> {
    let (control, token) = state::find(&state::home()?, run)?;
    let on = if control.is_elsewhere() { format!(" on {}", control.host) } else { String::new() };
    let broken = |what: String| {
        let advice = trust::explain(&what).map_or_else(String::new, |advice| format!(". {advice}"));
        let message = format!(
            "the coordinator of `{run}` (process {}{on}) at {}: {what}{advice}",
            control.pid,
            control.reached()
        );
        Failure::new(Exit::Network, message)
    };
    let read = |folder: &std::path::PathBuf| Credentials::read(folder, Party::Coordinator, SystemTime::now());
    let credentials = control.credentials.as_ref().map(read).transpose();
    let credentials = credentials.map_err(|error| Failure::new(Exit::Config, error))?;
    match timeout(DEADLINE, ask(control.reached(), token.expose(), credentials.as_ref(), command)).await {
        Ok(answer) => answer.map_err(broken),
        Err(_) => Err(broken(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

/// Asks the coordinator at `address`, without a deadline.
///
/// # Errors
/// What went wrong, in words.
pub async fn ask(
    address: &str,
    token: &str,
    credentials: Option<&Credentials>,
    command: Command,
) -> Result<Status, String> {
    let scheme = if credentials.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| e.to_string())?;
    if let Some(credentials) = credentials {
        endpoint = endpoint.tls_config(credentials.client()).map_err(|e| e.to_string())?;
    }
    let mut client = ControlClient::new(endpoint.connect().await.map_err(|error| trust::causes(&error))?);
    let request = rpc::OperateRequest { token: token.to_owned(), command: Some(command) };
    let reply = client.operate(request).await.map_err(|status| trust::words(&status))?;
    serde_json::from_str(&reply.into_inner().status).map_err(|error| format!("its answer cannot be read: {error}"))
}
