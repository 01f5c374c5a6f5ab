//! The simulator finds defects: each of `mutations.toml` is planted into a copy of the sources, and a named invariant must break.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use toml_edit::{Array, DocumentMut, value};

/// Schedules within which a defect has to be found.
const SEEDS: u64 = 15_000;

/// What is copied, and what of each.
const PACKAGES: [&str; 4] = ["common", "coordinator/core", "worker/core", "tests/simulator"];
const PARTS: [&str; 3] = ["src", "examples", "Cargo.toml"];

struct Mutation {
    name: String,
    file: String,
    from: String,
    to: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn mutations() -> Vec<Mutation> {
    let list: DocumentMut = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("mutations.toml")).parse().expect("TOML");
    let tables = list["mutation"].as_array_of_tables().expect("a list of mutations");
    let text = |table: &toml_edit::Table, key: &str| table[key].as_str().expect("a text").to_owned();
    let mutation = |table: &toml_edit::Table| {
        assert!(!text(table, "why").is_empty());
        let [name, file, from, to] = ["name", "file", "from", "to"].map(|key| text(table, key));
        Mutation { name, file, from, to }
    };
    tables.iter().map(mutation).collect()
}

/// Copies what is at `from`. A file that is the same already keeps its time, so that nothing is built twice.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if from.exists() {
        let bytes = fs::read(from).expect("a file");
        if fs::read(to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            fs::write(to, bytes).expect("a file");
        }
    }
}

/// A workspace of the needed packages only.
fn workspace(root: &Path) {
    let source = repository();
    for package in PACKAGES {
        for part in PARTS {
            copy(&source.join(package).join(part), &root.join(package).join(part));
        }
    }
    copy(&source.join("Cargo.lock"), &root.join("Cargo.lock"));
    let mut manifest: DocumentMut = read(&source.join("Cargo.toml")).parse().expect("TOML");
    manifest["workspace"]["members"] = value(PACKAGES.iter().copied().collect::<Array>());
    // built often and run briefly; what the core asserts of itself is looked at from outside
    let profile = "[dev]\ndebug = false\n[dev.package.coordinator-core]\nopt-level = 1\ndebug-assertions = false\n\
                   [dev.package.worker-core]\nopt-level = 1\n[dev.package.simulator]\nopt-level = 1\n";
    manifest["profile"] = profile.parse::<DocumentMut>().expect("TOML").as_item().clone();
    write(&root.join("Cargo.toml"), &manifest.to_string());
}

/// Builds what lies at `root`; the program, or what the compiler says.
fn build(root: &Path) -> Result<PathBuf, String> {
    let target = root.join("target");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "-p", "simulator", "--example", "simulate"])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    if output.status.success() {
        Ok(target.join("debug/examples/simulate"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Which invariant broke at which seed, if one did.
fn verdict(output: &Output) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("seed ") && line.contains(" breaks \""))?;
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(" breaks \"")?;
    Some((rest.split_once('"')?.0.to_owned(), seed.to_owned()))
}

#[test]
fn every_planted_defect_is_found() {
    let began = Instant::now();
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    workspace(&root);
    let mutations = mutations();
    assert!(mutations.len() >= 15);
    // what is stale is said before anything is built
    for Mutation { name, file, from, .. } in &mutations {
        let count = read(&root.join(file)).matches(from.as_str()).count();
        assert_eq!(count, 1, "the list is stale: \"{name}\" looks for `{from}`, which is {count} times in {file}");
    }
    let mut searches: Vec<(String, JoinHandle<Output>)> = Vec::new();
    for (number, Mutation { name, file, from, to }) in mutations.into_iter().enumerate() {
        let path = root.join(&file);
        let sound = read(&path);
        write(&path, &sound.replacen(&from, &to, 1));
        let built = build(&root);
        write(&path, &sound);
        let built = built.unwrap_or_else(|error| panic!("\"{name}\" does not build: {error}"));
        // searched while the next one is built
        let program = root.join(format!("mutant-{number}"));
        fs::copy(&built, &program).expect("a copy");
        let seeds = format!("0..{SEEDS}");
        let search = move || Command::new(program).args(["--seeds", &seeds]).output().expect("the simulator runs");
        searches.push((name, thread::spawn(search)));
    }
    let (mut table, mut missed) = (String::new(), Vec::new());
    for (name, search) in searches {
        let found = verdict(&search.join().expect("a search ends"));
        let (invariant, seed) = found.unwrap_or_else(|| {
            missed.push(name.clone());
            ("NOT FOUND".to_owned(), "-".to_owned())
        });
        let _written = writeln!(table, "{name:<48} {invariant:<56} seed {seed}");
    }
    println!("{table}in {:.0} s", began.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "not found within {SEEDS} schedules: {missed:?}\n{table}");
}
