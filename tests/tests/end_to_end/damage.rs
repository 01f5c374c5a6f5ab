//! Checkpoints that are not what was written: each is named, none is trained from, and the run goes on from the newest that
//! is whole, to the same last bit.

use crate::bad_inputs::assert_refused;
use crate::finished::finished;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tests::machine::Machine;
use tests::moments::Moments;

/// The newest checkpoint of a copy of the finished run, and what of it nothing else uses.
struct Newest {
    machine: Machine,
    manifest: PathBuf,
    blob: PathBuf,
    part: String,
}

impl Newest {
    fn new() -> Self {
        let machine = finished().copy();
        let mut manifests = machine.manifests();
        let manifest = manifests.pop().unwrap();
        let older: Vec<Value> = manifests.iter().flat_map(|path| parts(&read(path))).collect();
        let hash = |part: &Value| part["blob"]["hash"].as_str().unwrap().to_owned();
        let own = |part: &Value| older.iter().all(|other| hash(other) != hash(part));
        let part =
            parts(&read(&manifest)).into_iter().find(|part| own(part) && part["name"].to_string().contains("g."));
        let part = part.expect("the last checkpoint has parts of its own");
        let blob = machine.run().join(format!("blobs/{}.safetensors", hash(&part)));
        Self { machine, manifest, blob, part: part["name"].as_str().unwrap().to_owned() }
    }

    fn key(&self) -> String {
        self.manifest.file_stem().unwrap().to_str().unwrap().to_owned()
    }

    fn url(&self) -> String {
        self.machine.run().display().to_string()
    }

    /// `verify` finds this one damaged, and the others sound; says what is wrong with it.
    fn assert_found(&self, what: &str, says: &[&str]) {
        let answer = self.machine.ask(&["checkpoints", "verify", &self.url(), "--json"]);
        assert_refused(&self.machine, what, &answer, 5, says);
        let all: Value = serde_json::from_str(&answer.stdout).unwrap();
        for checkpoint in all["checkpoints"].as_array().unwrap() {
            let this = checkpoint["key"].to_string().contains(&self.key());
            assert_eq!(checkpoint["sound"], !this, "{what}: {checkpoint}");
        }
    }

    /// Neither training nor images come from this one.
    fn assert_refused_by_name(&self, what: &str, says: &[&str]) {
        let manifest = self.manifest.display().to_string();
        let more = ["--plain", "--set", "train.total_kimg=0.72"];
        let resume = self.machine.ask(&[&["resume", manifest.as_str()], &more[..]].concat());
        assert_refused(&self.machine, what, &resume, 5, says);
        let sample = self.machine.ask(&["sample", &manifest, "--seeds", "0", "--out", "a.png"]);
        assert_refused(&self.machine, what, &sample, 5, says);
    }

    /// A resume of the run passes over this one, says so, and ends as if nothing had happened.
    fn assert_passed_over(&self, what: &str) {
        let end = self.machine.resume(&self.url(), &[]).succeed();
        let noted = end.events("note").any(|note| note["text"].to_string().contains(&self.key()));
        assert!(noted && end.reason() == "complete", "{what}: {}", end.story());
        let newest = self.machine.manifests().pop().unwrap();
        assert_ne!(newest, self.manifest, "{what}");
        assert_eq!(self.machine.state_hash(&newest.display().to_string()), finished().hash, "{what}: {}", end.story());
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn parts(manifest: &Value) -> Vec<Value> {
    manifest["parts"].as_array().unwrap().clone()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn flip(bytes: &mut [u8], bit: u64) {
    bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
}

#[test]
fn a_part_that_is_cut_or_gone() {
    let cut = Newest::new();
    change(&cut.blob, |bytes| bytes.truncate(bytes.len() / 2));
    cut.assert_found("cut", &[&cut.part]);
    cut.assert_refused_by_name("cut", &[&cut.blob.file_stem().unwrap().to_string_lossy()[..16]]);
    cut.assert_passed_over("cut");

    let gone = Newest::new();
    std::fs::remove_file(&gone.blob).unwrap();
    gone.assert_found("gone", &[&gone.part]);
    gone.assert_refused_by_name("gone", &["does not exist"]);
    gone.assert_passed_over("gone");
}

#[test]
fn a_part_with_one_bit_changed() {
    let mut moments = Moments::new("bit of a part", 0);
    let mut places = Vec::new();
    let newest = Newest::new();
    let whole = std::fs::read(&newest.blob).unwrap();
    for _ in 0..5 {
        let bit = moments.below(8 * whole.len() as u64);
        places.push(bit);
        std::fs::write(&newest.blob, &whole).unwrap();
        change(&newest.blob, |bytes| flip(bytes, bit));
        newest.assert_found(&format!("bit {bit}"), &[&newest.part]);
        newest.assert_refused_by_name(&format!("bit {bit}"), &["damaged"]);
    }
    newest.assert_passed_over(&format!("bit {}", places[4]));
}

#[test]
fn a_manifest_that_is_none() {
    let newest = Newest::new();
    let whole = std::fs::read(&newest.manifest).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let swapped = text.replacen("\"resolution\":16", "\"resolution\":24", 1);
    assert_ne!(swapped, text);
    for (what, bytes, says) in [
        ("empty", Vec::new(), "manifest"),
        ("cut", whole[..whole.len() / 3].to_vec(), "manifest"),
        ("something else", b"{\"format\":1}".to_vec(), "manifest"),
        ("no text", vec![0xff; 100], "manifest"),
        ("of another checkpoint", std::fs::read(&newest.machine.manifests()[0]).unwrap(), "expected"),
    ] {
        std::fs::write(&newest.manifest, bytes).unwrap();
        newest.assert_found(what, &[says]);
        newest.assert_refused_by_name(what, &[says]);
    }
    newest.assert_passed_over("of another checkpoint");
}

/// What is well-formed and cannot be: refused by whoever would compute from it.
#[test]
fn a_manifest_that_cannot_be() {
    let newest = Newest::new();
    let whole = read(&newest.manifest);
    for (what, pointer, value, says) in [
        ("another network", "/config/model/fmap_max", json!(4), "another network"),
        ("no network", "/config/model/resolution", json!(0), "resolution"),
        ("groups of none", "/config/model/minibatch_stddev_group", json!(0), "minibatch_stddev_group"),
        ("a vast network", "/config/model/latent_size", json!(u32::MAX), "latent_size"),
        ("another format", "/format", json!(99), "99"),
    ] {
        let mut manifest = whole.clone();
        *manifest.pointer_mut(pointer).expect(pointer) = value;
        std::fs::write(&newest.manifest, manifest.to_string()).unwrap();
        let url = newest.manifest.display().to_string();
        let sample = newest.machine.ask(&["sample", &url, "--seeds", "0", "--out", "a.png"]);
        assert_refused(&newest.machine, what, &sample, 5, &[says]);
        let more = ["--plain", "--set", "train.total_kimg=0.72"];
        let resume = newest.machine.ask(&[&["resume", url.as_str()], &more[..]].concat());
        assert!([3, 5].contains(&resume.code), "{what}: {resume:?}");
        assert_refused(&newest.machine, what, &resume, resume.code, &[says]);
    }
}

#[test]
fn a_run_without_one_whole_checkpoint() {
    let newest = Newest::new();
    for manifest in newest.machine.manifests() {
        change(&manifest, |bytes| bytes.truncate(100));
    }
    let url = newest.url();
    for arguments in [
        &["resume", &url, "--plain"][..],
        &["launch", "toy.toml", "--plain", "--resume", "auto"],
        &["checkpoints", "show", &url],
        &["sample", &url, "--out", "a.png"],
    ] {
        assert_refused(&newest.machine, &arguments.join(" "), &newest.machine.ask(arguments), 5, &["checkpoint"]);
    }
}

#[test]
fn changes_that_a_run_cannot_bear() {
    let machine = finished().copy();
    let url = machine.run().display().to_string();
    for set in ["model.fmap_max=4", "seed=8", "model.resolution=8", "model.latent_size=9"] {
        let answer = machine.ask(&["resume", &url, "--plain", "--set", "train.total_kimg=1", "--set", set]);
        assert_refused(&machine, set, &answer, 3, &[set.split_once('=').unwrap().0]);
    }
}
