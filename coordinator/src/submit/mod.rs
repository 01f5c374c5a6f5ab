//! `coordinator submit`: a training as a job of a cluster's scheduler. What is wrong with it is said before anything is queued.
//!
//! Slurm's script is made of a template that an administrator may edit (`scripts/slurm`); Kubernetes' manifests are data. Nothing here
//! stays at work: the job is the scheduler's, the run its coordinator's.

pub mod kubernetes;
pub mod slurm;

use crate::config_cli::{self, Experiment};
use crate::failure::Failure;
use crate::origin::{self, Overrides};
use clap::{Args, Subcommand};
use common::exit::Exit;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Submits a training.
#[derive(Clone, Debug, Subcommand)]
pub enum SubmitCommand {
    /// Write a batch script for Slurm and submit it. The job is queued again before its time is up, and the run goes on
    Slurm(Box<slurm::SlurmArgs>),
    /// Make manifests for Kubernetes and have kubectl apply them
    K8s(Box<kubernetes::KubernetesArgs>),
}

/// What is said of a job whatever the scheduler.
#[derive(Clone, Debug, Args)]
pub struct Job {
    /// Experiment file (TOML)
    pub experiment: PathBuf,
    /// Machines of the job
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub nodes: u32,
    /// GPUs of each; each has a worker
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub gpus_per_node: Option<u32>,
    /// Workers of each, where it has no GPUs
    #[arg(long, value_name = "N", conflicts_with = "gpus_per_node", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers_per_node: Option<u32>,
    /// Override a value, as in --set train.total_kimg=10; may be repeated, the last one wins
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print what would be submitted, and do nothing else
    #[arg(long)]
    pub dry_run: bool,
}

impl Job {
    /// Workers of each machine.
    #[must_use]
    pub fn workers_per_node(&self) -> u32 {
        self.gpus_per_node.or(self.workers_per_node).unwrap_or(1)
    }

    /// The experiment as the job will read it.
    ///
    /// # Errors
    /// It is wrong, or its checkpoints would not outlive the job.
    pub fn experiment(&self) -> Result<Experiment, Failure> {
        let workers = self.nodes.saturating_mul(self.workers_per_node());
        let overrides = Overrides { set: self.set.clone(), workers: Some(workers) };
        let experiment = origin::load(self.experiment.clone(), &overrides)?;
        let config = &experiment.resolved.config;
        if config.checkpoint.url.starts_with("memory:") {
            let message = format!("checkpoint.url: {} is gone with the coordinator", config.checkpoint.url);
            return Err(Failure::new(Exit::Config, message));
        }
        Ok(experiment)
    }

    /// The experiment file, wherever the job begins.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn file(&self) -> Result<PathBuf, Failure> {
        Ok(config_cli::working_dir()?.join(&self.experiment))
    }
}

/// Submits what the command line says.
///
/// # Errors
/// It cannot be submitted, or the scheduler refuses.
pub async fn submit(command: &SubmitCommand) -> Result<Exit, Failure> {
    match command {
        SubmitCommand::Slurm(args) => slurm::submit(args).await,
        SubmitCommand::K8s(args) => kubernetes::submit(args).await,
    }
}

/// `template` with its blanks, `{{name}}`, filled in; a line that is nothing but an empty blank goes.
///
/// # Errors
/// It has a blank that nobody knows.
pub fn filled(template: &str, values: &BTreeMap<&str, String>) -> Result<String, Failure> {
    let mut text = String::with_capacity(template.len());
    for (number, line) in template.split_inclusive('\n').enumerate() {
        let (mut rest, mut made) = (line, String::new());
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = match after.split_once("}}") {
                Some((name, after)) => (name, Some(after)),
                None => (after.trim_end(), None),
            };
            let (Some(value), Some(after)) = (values.get(name), after) else {
                let known: Vec<&str> = values.keys().copied().collect();
                let message = format!(
                    "line {} of the template: {{{{{name}}}}} is no blank; there are: {}",
                    number + 1,
                    known.join(", ")
                );
                return Err(Failure::new(Exit::Usage, message));
            };
            made.push_str(before);
            made.push_str(value);
            rest = after;
        }
        made.push_str(rest);
        if !(made.trim().is_empty() && line.contains("{{")) {
            text.push_str(&made);
        }
    }
    Ok(text)
}

/// `text` as one word of a shell, whatever is in it.
#[must_use]
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A path as one word of a shell.
///
/// # Errors
/// It is not UTF-8.
pub fn path_word(path: &Path) -> Result<String, Failure> {
    let text = path
        .to_str()
        .ok_or_else(|| Failure::new(Exit::Usage, format!("{}: a path in a job must be UTF-8 text", path.display())))?;
    Ok(word(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_filled_in_and_unknown_ones_refused() {
        let values = BTreeMap::from([("name", "toy".to_owned()), ("none", String::new())]);
        assert_eq!(filled("a {{name}}{{name}}\n{{none}}\n\nb {{none}}c\n", &values).unwrap(), "a toytoy\n\nb c\n");
        for wrong in ["x\n{{nmae}}\n", "\n{{name\n", "{{"] {
            let message = filled(wrong, &values).unwrap_err().message;
            assert!(message.contains("is no blank; there are: name, none"), "{message}");
        }
        assert!(filled("x\n{{nmae}}", &values).unwrap_err().message.starts_with("line 2 of the template"));
    }

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(word("s3://bucket/a_b-1"), "s3://bucket/a_b-1");
        assert_eq!(word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(word(""), "''");
        for text in ["a b", "$(rm)", "`x`", "a;b", "a\nb", "*", "'", "~"] {
            let output = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", word(text))]).output();
            assert_eq!(output.unwrap().stdout, text.as_bytes());
        }
    }
}
