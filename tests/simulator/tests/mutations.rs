//! The simulator finds defects: each of `mutations.toml` is planted into a copy of the sources, and a named invariant must break.
//!
//! The list keeps the first seed that finds each defect and the invariant that breaks there; every run of the tests replays these. A
//! change of the cores or of the simulator may give a seed another story. Then they are searched for anew, and written into the list, by
//!
//!     SIMULATOR_KEEP_SEEDS=1 cargo test -p simulator --test mutations every_planted_defect

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use toml_edit::{Array, DocumentMut, Table, value};

/// Schedules within which a defect has to be found: most are in the first hundreds, and what takes three things at once is rare.
const SEEDS: u64 = 60_000;

/// Environment variable by which seeds are searched for and kept.
const KEEP: &str = "SIMULATOR_KEEP_SEEDS";

/// What is copied, and what of each.
const PACKAGES: [&str; 4] = ["common", "coordinator/core", "worker/core", "tests/simulator"];
const PARTS: [&str; 3] = ["src", "examples", "Cargo.toml"];

struct Mutation {
    name: String,
    file: String,
    from: String,
    to: String,
    /// Which invariant broke at which seed, when that was last searched for.
    kept: Option<Found>,
}

#[derive(Clone, Debug, PartialEq)]
struct Found {
    seed: u64,
    breaks: String,
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

fn list(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn document(name: &str) -> DocumentMut {
    read(&list(name)).parse().expect("TOML")
}

fn text(table: &Table, key: &str) -> String {
    table[key].as_str().expect("a text").to_owned()
}

fn seed(table: &Table) -> Option<u64> {
    table.get("seed")?.as_integer()?.try_into().ok()
}

fn mutations() -> Vec<Mutation> {
    let document = document("mutations.toml");
    let tables = document["mutation"].as_array_of_tables().expect("a list of mutations");
    let mutation = |table: &Table| {
        assert!(!text(table, "why").is_empty());
        let [name, file, from, to] = ["name", "file", "from", "to"].map(|key| text(table, key));
        let kept = seed(table).map(|seed| Found { seed, breaks: text(table, "breaks") });
        Mutation { name, file, from, to, kept }
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

/// What a search says: which invariant broke at which seed, if one did.
fn verdict(output: &Output) -> Option<Found> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("seed ") && line.contains(" breaks \""))?;
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(" breaks \"")?;
    Some(Found { seed: seed.parse().ok()?, breaks: rest.split_once('"')?.0.to_owned() })
}

/// Writes into the list what was found, in its order.
fn keep(found: &[Option<Found>]) {
    let mut document = document("mutations.toml");
    let tables = document["mutation"].as_array_of_tables_mut().expect("a list of mutations");
    for (table, found) in tables.iter_mut().zip(found) {
        let Some(Found { seed, breaks }) = found else { continue };
        table["seed"] = value(i64::try_from(*seed).expect("a small seed"));
        table["breaks"] = value(breaks);
    }
    write(&list("mutations.toml"), &document.to_string());
}

/// Plants each defect, and says what the schedules that `seeds` chooses for it find.
fn plant(mutations: &[Mutation], seeds: impl Fn(&Mutation) -> String) -> Vec<Option<Found>> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    workspace(&root);
    // what is stale is said before anything is built
    for Mutation { name, file, from, .. } in mutations {
        let count = read(&root.join(file)).matches(from.as_str()).count();
        assert_eq!(count, 1, "the list is stale: \"{name}\" looks for `{from}`, which is {count} times in {file}");
    }
    let mut searches: Vec<JoinHandle<Output>> = Vec::new();
    for (number, mutation) in mutations.iter().enumerate() {
        let Mutation { name, file, from, to, .. } = mutation;
        let path = root.join(file);
        let sound = read(&path);
        write(&path, &sound.replacen(from, to, 1));
        let built = build(&root);
        write(&path, &sound);
        let built = built.unwrap_or_else(|error| panic!("\"{name}\" does not build: {error}"));
        // searched while the next one is built
        let program = root.join(format!("mutant-{number}"));
        fs::copy(&built, &program).expect("a copy");
        let seeds = seeds(mutation);
        let search = move || Command::new(program).args(["--seeds", &seeds]).output().expect("the simulator runs");
        searches.push(thread::spawn(search));
    }
    searches.into_iter().map(|search| verdict(&search.join().expect("a search ends"))).collect()
}

#[test]
fn every_planted_defect_is_found() {
    let (began, mutations) = (Instant::now(), mutations());
    assert!(mutations.len() >= 15);
    let searches = std::env::var_os(KEEP).is_some();
    let found = plant(&mutations, |mutation| match &mutation.kept {
        Some(Found { seed, .. }) if !searches => seed.to_string(),
        _ => format!("0..{SEEDS}"),
    });
    if searches {
        keep(&found);
    }
    let (mut table, mut missed, mut stale) = (String::new(), Vec::new(), Vec::new());
    for (Mutation { name, kept, .. }, found) in mutations.iter().zip(&found) {
        let Some(Found { seed, breaks }) = found else {
            missed.push(name);
            continue;
        };
        let _written = writeln!(table, "{name:<48} {breaks:<56} seed {seed}");
        if !searches && kept != found {
            stale.push(name);
        }
    }
    println!("{table}in {:.0} s", began.elapsed().as_secs_f64());
    let again = format!("search anew with {KEEP}=1 (see the head of this file)");
    assert!(missed.is_empty(), "not found: {missed:?}; {again}\n{table}");
    assert!(stale.is_empty(), "found, and not as the list says: {stale:?}; {again}\n{table}");
}

#[test]
fn what_a_seed_once_found_is_not_found_again_in_sound_code() {
    let regressions = document("regressions.toml");
    let real = regressions.get("regression").and_then(|list| list.as_array_of_tables()).into_iter().flatten();
    let real = real.map(|table| (seed(table).expect("a seed"), text(table, "found")));
    let planted = mutations().into_iter().filter_map(|Mutation { name, kept, .. }| Some((kept?.seed, name)));
    for (seed, name) in real.chain(planted) {
        if let Some(broken) = simulator::run(seed, false).broken {
            panic!(
                "{name}: seed {seed} breaks \"{}\": {}\n{}",
                broken.invariant,
                broken.found,
                simulator::replay(seed)
            );
        }
    }
}
