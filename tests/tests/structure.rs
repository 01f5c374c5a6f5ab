//! The workspace's own rules, which no compiler checks: arrows between crates that go one way, `unsafe` in one place, crates
//! that know no clock and no disk, files that say what they are for.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tests::machine::Machine;
use tests::repository;
use tests::sources::{code, files, name, rust, tokens};

/// Each package of ours and the packages of ours that it may know. An arrow that is not here needs a decision first.
const MAY_KNOW: [(&str, &[&str]); 16] = [
    ("common", &[]),
    ("rpc", &["common"]),
    ("storage", &["common"]),
    ("trust", &[]),
    ("children", &["common"]),
    ("coordinator-core", &["common"]),
    ("coordinator", &["children", "common", "coordinator-core", "rpc", "storage", "trust"]),
    ("native", &[]),
    ("collective", &[]),
    ("worker-core", &["common"]),
    ("agent", &["common", "rpc", "trust", "worker-core"]),
    ("data", &["common"]),
    ("metrics", &["common"]),
    (
        "worker",
        &["agent", "children", "collective", "common", "data", "metrics", "native", "rpc", "storage", "worker-core"],
    ),
    ("simulator", &["common", "coordinator-core", "worker-core"]),
    ("tests", &["common"]),
];

/// The same for what only tests and examples of a package need.
const TESTS_MAY_KNOW: [(&str, &[&str]); 1] = [("coordinator", &["agent", "collective"])];

/// Who alone may know a package of somebody else's.
const RESERVED: [(&str, &[&str]); 5] = [
    ("tch", &["native", "worker"]),
    ("cudarc", &["native"]),
    ("libloading", &["native"]),
    ("object_store", &["storage"]),
    ("indicatif", &["coordinator"]),
];

/// Packages that are functions of their arguments, and what of the world they must not reach for.
const PURE: [&str; 3] = ["common", "coordinator-core", "worker-core"];
const WORLD: [&[&str]; 7] = [
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["std", "fs"],
    &["std", "net"],
    &["process", "Command"],
    &["std", "thread"],
    &["tokio"],
];

struct Package {
    folder: PathBuf,
    /// (name, kind) of each dependency.
    dependencies: Vec<(String, String)>,
}

impl Package {
    /// Its own sources: not those of the packages that lie in its folder.
    fn sources(&self) -> Vec<PathBuf> {
        let inner: Vec<&PathBuf> = packages()
            .values()
            .map(|p| &p.folder)
            .filter(|f| **f != self.folder && f.starts_with(&self.folder))
            .collect();
        rust(&self.folder).into_iter().filter(|path| !inner.iter().any(|folder| path.starts_with(folder))).collect()
    }
}

fn packages() -> &'static BTreeMap<String, Package> {
    static PACKAGES: LazyLock<BTreeMap<String, Package>> = LazyLock::new(|| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let package = |package: &Value| {
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
            let dependency = |d: &Value| (text(&d["name"]), d["kind"].as_str().unwrap_or("normal").to_owned());
            let dependencies = package["dependencies"].as_array().unwrap().iter().map(dependency).collect();
            (text(&package["name"]), Package { folder, dependencies })
        };
        metadata["packages"].as_array().unwrap().iter().map(package).collect()
    });
    &PACKAGES
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn arrows_between_packages_go_one_way() {
    let known: BTreeSet<&str> = MAY_KNOW.iter().map(|(package, _)| *package).collect();
    assert_eq!(
        packages().keys().map(String::as_str).collect::<BTreeSet<_>>(),
        known,
        "say what a new package may know"
    );
    for (package, allowed) in MAY_KNOW {
        let in_tests = TESTS_MAY_KNOW.iter().find(|(name, _)| *name == package).map_or(&[][..], |(_, more)| more);
        for (dependency, kind) in &packages()[package].dependencies {
            let ours = known.contains(dependency.as_str()) && dependency != package;
            let in_tests = kind == "dev" && in_tests.contains(&dependency.as_str());
            assert!(
                !ours || in_tests || allowed.contains(&dependency.as_str()),
                "{package} must not know {dependency}"
            );
        }
    }
}

#[test]
fn each_foreign_power_has_its_keepers() {
    for (package, Package { dependencies, .. }) in packages() {
        for (power, keepers) in RESERVED {
            let knows = dependencies.iter().any(|(dependency, _)| dependency == power);
            assert!(!knows || keepers.contains(&package.as_str()), "{package} must not know {power}, only {keepers:?}");
        }
    }
}

#[test]
fn unsafe_is_in_the_native_package_only() {
    let native = &packages()["native"].folder;
    let mut seen_there = false;
    for path in rust(repository()) {
        let code = code(&read(&path));
        let is_unsafe = tokens(&code).contains(&"unsafe");
        if path.starts_with(native) {
            seen_there |= is_unsafe;
        } else {
            assert!(!is_unsafe, "{} is unsafe, which is for worker/native alone", name(&path));
        }
    }
    assert!(seen_there, "this test no longer finds what it looks for");
}

#[test]
fn pure_packages_reach_for_no_clock_disk_socket_or_thread() {
    for package in PURE {
        let sources = packages()[package].sources();
        assert!(sources.len() > 5, "{package} has its sources elsewhere");
        for path in sources {
            // their tests may read the files that they judge
            if path.components().any(|part| ["tests", "tests.rs", "examples"].iter().any(|t| part.as_os_str() == *t)) {
                continue;
            }
            let found = world(&code(&read(&path)));
            assert!(found.is_empty(), "{} reaches for {found:?}", name(&path));
        }
    }
}

/// What of [`WORLD`] the code names, as a path or inside the braces of a `use`.
fn world(code: &str) -> Vec<String> {
    let paths = named(&tokens(code));
    let hit = |wanted: &&&[&str]| paths.iter().any(|path| path.windows(wanted.len()).any(|part| part == **wanted));
    WORLD.iter().filter(hit).map(|path| path.join("::")).collect()
}

/// Every path `a::b::c` in the tokens; `a::{b, c::d}` counts as `a::b` and `a::c::d`.
fn named<'t>(tokens: &[&'t str]) -> Vec<Vec<&'t str>> {
    let mut paths = Vec::new();
    // path before each open brace
    let mut outer: Vec<Vec<&str>> = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    let mut joined = false;
    for token in tokens {
        match *token {
            ":" => {}
            "{" => outer.push(if joined { std::mem::take(&mut path) } else { Vec::new() }),
            "}" | "," | ";" => {
                paths.push(std::mem::take(&mut path));
                if *token == "}" {
                    outer.pop();
                }
            }
            word if joined && !path.is_empty() => path.push(word),
            word => {
                paths.push(std::mem::take(&mut path));
                path = outer.last().cloned().unwrap_or_default();
                path.push(word);
            }
        }
        joined = *token == ":";
    }
    paths.push(path);
    paths
}

#[test]
fn what_the_search_for_paths_finds() {
    let found = |text: &str| world(&code(text)).join(" ");
    assert_eq!(found("use std::{collections::BTreeMap, fs};"), "std::fs");
    assert_eq!(found("use std::{io::{self, Read}, net::TcpStream};"), "std::net");
    assert_eq!(found("fn f() { let now = std::time::Instant::now(); }"), "Instant::now");
    assert_eq!(found("fn f() -> tokio :: task::Id {}"), "tokio");
    assert_eq!(
        found("// std::fs\nlet a = \"std::fs\"; let b = 'x'; let c = r#\"tokio\"#; struct D<'tokio>(&'tokio u8);"),
        "tokio"
    );
    assert_eq!(found("let fs = a::fs; struct Std { fs: std::time::Duration }"), "");
}

#[test]
fn every_source_says_what_it_is_for() {
    for path in rust(repository()) {
        // the tests of a module, in a file of their own, are told by the module
        let exempt = path.file_name().is_some_and(|file| file == "tests.rs");
        let text = read(&path);
        assert!(exempt || text.starts_with("//! "), "{} does not open with `//!`", name(&path));
    }
}

#[test]
fn decisions_are_numbered_without_gaps() {
    let folder = repository().join("docs/adr");
    let numbers: Vec<u32> = files(&folder)
        .iter()
        .map(|path| {
            let file = path.file_name().unwrap().to_str().unwrap();
            let number = file.split_once('-').and_then(|(number, _)| number.parse().ok().filter(|_| number.len() == 4));
            number.unwrap_or_else(|| panic!("docs/adr/{file} does not begin with four digits and a dash"))
        })
        .filter(|number| *number > 0) // 0000 is the template
        .collect();
    let expected: Vec<u32> = (1..=u32::try_from(numbers.len()).unwrap()).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn every_experiment_that_is_shipped_resolves() {
    let machine = Machine::new();
    let experiments = files(&repository().join("experiments"));
    let experiments: Vec<_> = experiments.iter().filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(experiments.len() >= 3, "{experiments:?}");
    for experiment in experiments {
        let answer = machine.ask(&["config", "check", experiment.to_str().unwrap()]);
        assert!(answer.code == 0 && answer.stdout.contains("ok: "), "{answer:?}");
    }
}

#[test]
fn no_file_knows_a_machine() {
    let places = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/tmp/", "lab")];
    for path in files(repository()) {
        // what is no text is a picture or an archive
        let Ok(text) = String::from_utf8(std::fs::read(&path).unwrap()) else { continue };
        for (number, line) in text.lines().enumerate() {
            let found = places.iter().find(|place| line.contains(**place));
            assert!(found.is_none(), "{}:{} names {}", name(&path), number + 1, found.unwrap());
        }
    }
}
