//! `coordinator config`: checks, shows and plans an experiment file before anything starts.
//!
//! Reads the file, the environment and the working directory for [`common::config`], which judges them; starts nothing and
//! opens neither data nor store. [`load`] is also how other commands read an experiment.

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use common::config::{self, Base, ConfigError, ENV_PREFIX, Layers, Resolved};
use common::exit::Exit;
use common::families::{self, FAMILIES};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// An experiment file is a page of text; what is longer is something else.
const LARGEST: u64 = 1 << 20;

/// `coordinator config …`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check an experiment file and name every mistake in it
    Check {
        /// The experiment.
        #[command(flatten)]
        experiment: ExperimentArgs,
    },
    /// Print the resolved experiment: every value and where it came from
    Show {
        /// The experiment.
        #[command(flatten)]
        experiment: ExperimentArgs,
        /// Print JSON instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// Print the schedule, phase by phase: minibatches, learning rates, steps, and where workers idle
    Plan {
        /// The experiment.
        #[command(flatten)]
        experiment: ExperimentArgs,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of experiment files, for editors
    Schema,
    /// Print every key with its default and what it means
    Default {
        /// Print what this family puts in their place instead: its keys and its values
        #[arg(value_parser = PossibleValuesParser::new(FAMILIES.map(|family| family.name)))]
        family: Option<String>,
    },
}

/// An experiment and what the command line changes about it.
#[derive(Clone, Debug, Args)]
pub struct ExperimentArgs {
    /// Experiment file (TOML)
    pub file: PathBuf,
    /// Override a value, as in --set train.total_kimg=10; may be repeated, the last one wins
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Workers at launch, which choose the preset's table [default: cluster.workers if it is a number, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub workers: Option<u32>,
}

/// An experiment that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// Its configuration and where each value came from.
    pub resolved: Resolved,
    /// Workers at launch for which it was resolved.
    pub workers: u32,
}

/// Why a command about an experiment failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no experiment file.
    #[error("{}: {what}", path.display())]
    NoExperiment {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A variable that is meant as a key cannot be read.
    #[error("environment {0}: the value is not UTF-8")]
    Environment(String),
    /// The working directory is gone.
    #[error("the working directory cannot be found: {0}")]
    WorkingDirectory(io::Error),
    /// What the layers say is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The exit code of a command that failed so.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Output(_) => Exit::Internal,
            _ => Exit::Config,
        }
    }
}

/// Carries out `command` and writes its answer to `out`.
///
/// # Errors
/// What is wrong with the experiment, or that `out` cannot be written; a reader that went away is no error.
pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> Result<(), Failure> {
    let answer = answer(command)?;
    match out.write_all(answer.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn answer(command: &ConfigCommand) -> Result<String, Failure> {
    Ok(match command {
        ConfigCommand::Check { experiment: args } => {
            let Experiment { resolved, workers } = load(args)?;
            let config = &resolved.config;
            let (pixels, length) = (config.model.resolution(), config.train.length());
            let file = args.file.display();
            let plural = if workers == 1 { "" } else { "s" };
            format!("{file}: ok: {}, {pixels} pixels, {length}, for {workers} worker{plural} at launch\n", config.name)
        }
        ConfigCommand::Show { experiment, json: false } => load(experiment)?.resolved.to_toml(),
        ConfigCommand::Show { experiment, json: true } => {
            let Experiment { resolved, workers } = load(experiment)?;
            let Resolved { config, origins } = resolved;
            pretty(&serde_json::json!({ "workers_at_launch": workers, "config": config, "origins": origins }))
        }
        ConfigCommand::Plan { experiment, json } => {
            let Experiment { resolved, workers } = load(experiment)?;
            let plan = config::plan(&resolved.config, workers);
            if *json { pretty(&serde_json::json!(plan)) } else { plan.to_string() }
        }
        ConfigCommand::Schema => pretty(&config::json_schema()),
        ConfigCommand::Default { family } => {
            family.as_deref().and_then(|name| families::family(name)?.defaults).unwrap_or(config::DEFAULTS).to_owned()
        }
    })
}

fn pretty(json: &serde_json::Value) -> String {
    format!("{json:#}\n")
}

/// Reads an experiment with the process's environment and working directory.
///
/// # Errors
/// Every mistake in file, environment and `--set` at once, or that the file cannot be read.
pub fn load(args: &ExperimentArgs) -> Result<Experiment, Failure> {
    load_from(args, &environment()?, &working_dir()?)
}

/// Where relative paths of the command line begin.
///
/// # Errors
/// It is gone.
pub fn working_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(Failure::WorkingDirectory)
}

/// The environment variables that are keys of an experiment.
///
/// # Errors
/// One of them is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>, Failure> {
    let ours = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = ours.filter(|(name, _)| name.starts_with(ENV_PREFIX));
    let text = ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(Failure::Environment(name)),
    });
    let mut all = text.collect::<Result<Vec<_>, _>>()?;
    // the same environment gives the same messages in the same order
    all.sort();
    Ok(all)
}

fn load_from(args: &ExperimentArgs, env: &[(String, String)], working_dir: &Path) -> Result<Experiment, Failure> {
    let path = working_dir.join(&args.file);
    let text = read(&path)?;
    let base =
        Base::File { path: &args.file.to_string_lossy(), text: &text, folder: path.parent().unwrap_or(working_dir) };
    let layers = Layers { base, env, set: &args.set, working_dir };
    let resolved = config::resolve(&layers, args.workers.unwrap_or(1))?;
    // the file's own number of workers chooses the preset's table unless the command line does
    match (args.workers, resolved.config.cluster.workers) {
        (None, workers @ 2..) => Ok(Experiment { resolved: config::resolve(&layers, workers)?, workers }),
        (workers, _) => Ok(Experiment { resolved, workers: workers.unwrap_or(1) }),
    }
}

/// The text of a file of bounded size.
fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |source| Failure::Read { path: path.to_owned(), source };
    let no_experiment = |what| Failure::NoExperiment { path: path.to_owned(), what };
    // a pipe or a device may never end
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(no_experiment("is not a file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(no_experiment("is longer than 1 MiB: not an experiment file"));
    }
    String::from_utf8(bytes).map_err(|_| no_experiment("is not UTF-8 text: not an experiment file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const SMALL: &str = "name = \"small\"\n[data]\nsource = \"faces.zip\"\n[model]\nresolution = 16\n";

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: ConfigCommand,
    }

    /// What `config ARGS` answers in a folder that holds `run.toml`; the file's path is put in place of `FILE`.
    fn answers(text: &[u8], args: &[&str]) -> Result<String, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, text).unwrap();
        let args = args.iter().map(|arg| if *arg == "FILE" { file.to_str().unwrap() } else { arg });
        let cli = Cli::try_parse_from(std::iter::once("config").chain(args)).unwrap();
        let mut out = Vec::new();
        run(&cli.command, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn check_says_what_the_file_is_or_all_that_is_wrong() {
        let answer = answers(SMALL.as_bytes(), &["check", "FILE"]).unwrap();
        assert!(answer.ends_with("run.toml: ok: small, 16 pixels, 15000 kimg, for 1 worker at launch\n"), "{answer}");
        let failure = answers(b"nam = 1\nseeed = 2", &["check", "FILE"]).unwrap_err();
        assert_eq!(failure.exit(), Exit::Config);
        let text = failure.to_string();
        assert!(text.contains("run.toml:1: nam: unknown key") && text.contains("did you mean `seed`?"), "{text}");
    }

    #[test]
    fn show_in_both_forms_and_the_defaults_are_what_a_machine_can_read() {
        let args = ["show", "FILE", "--set", "seed=7"];
        let toml = answers(SMALL.as_bytes(), &args).unwrap();
        assert!(toml.lines().any(|line| line.starts_with("seed = 7 ") && line.ends_with("# --set")), "{toml}");
        let json = answers(SMALL.as_bytes(), &[&args[..], &["--json"]].concat()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["config"]["seed"], 7);
        assert_eq!(json["origins"]["seed"]["from"], "set");
        let run: config::resolved::RunConfig = serde_json::from_value(json["config"].clone()).unwrap();
        assert_eq!(run.model.resolution(), 16);
        assert_eq!(answers(b"", &["default"]).unwrap(), config::DEFAULTS);
        assert_eq!(answers(b"", &["default", "progan"]).unwrap(), config::DEFAULTS);
        assert!(answers(b"", &["default", "sngan"]).unwrap().contains("\nwidth = 256\n"));
        let schema: serde_json::Value = serde_json::from_str(&answers(b"", &["schema"]).unwrap()).unwrap();
        assert!(schema["properties"]["train"]["properties"]["total_kimg"].is_object());
    }

    #[test]
    fn the_preset_is_for_the_workers_of_the_command_line_else_of_the_file_else_one() {
        let plan = |text: &str, more: &[&str]| {
            let text = format!("{SMALL}[train]\nschedule = \"progan-v2\"\n{text}");
            let json = answers(text.as_bytes(), &[&["plan", "FILE", "--json"], more].concat()).unwrap();
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            (json["workers"].as_u64().unwrap(), json["phases"][0]["minibatch"].as_u64().unwrap())
        };
        assert_eq!(plan("", &[]), (1, 128));
        assert_eq!(plan("[cluster]\nworkers = 2", &[]), (2, 256));
        assert_eq!(plan("[cluster]\nworkers = 2", &["--workers", "8"]), (8, 512));
        assert_eq!(plan("[cluster]\nworkers = 2", &["--set", "cluster.workers=4"]), (4, 512));
    }

    #[test]
    fn plan_prints_a_table() {
        let table = answers(SMALL.as_bytes(), &["plan", "FILE", "--workers", "5"]).unwrap();
        assert!(table.starts_with("small on 5 workers\n") && table.contains("up to 1 of 5 workers idle"), "{table}");
    }

    #[test]
    fn what_is_no_experiment_file_is_named() {
        for (text, expected) in [(&b"\xff\xfe"[..], "not UTF-8"), (&vec![b'#'; 1 << 21], "longer than 1 MiB")] {
            let failure = answers(text, &["check", "FILE"]).unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
            assert_eq!(failure.exit(), Exit::Config);
        }
        for (file, expected) in [(".", "is not a file"), ("no/such.toml", "cannot be read")] {
            let failure = answers(b"", &["check", file]).unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }

    #[test]
    fn relative_files_start_at_the_working_directory_and_variables_are_a_layer() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("experiments")).unwrap();
        std::fs::write(folder.path().join("experiments/run.toml"), SMALL).unwrap();
        let args = ExperimentArgs { file: "experiments/run.toml".into(), set: vec![], workers: None };
        let env = [("GANFLEET__DATA__CACHE".to_owned(), "cache".to_owned())];
        let run = load_from(&args, &env, folder.path()).unwrap().resolved;
        assert_eq!(Path::new(&run.config.data.source), folder.path().join("experiments/faces.zip"));
        assert_eq!(run.config.data.cache.as_deref().map(Path::new), Some(&*folder.path().join("cache")));
        assert_eq!(run.origin("name").unwrap().to_string(), "experiments/run.toml:1");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(run(&ConfigCommand::Schema, &mut Gone).is_ok());
    }
}
