//! Weights that travel: out of a run into other programs' files, and from such files into a run.

use serde_json::json;
use std::path::Path;
use tests::experiment::{Experiment, NAME};
use tests::machine::{Answer, Machine};
use tests::{images, python};

/// Name of the run that gets weights from files.
const TWIN: &str = "twin";

/// A machine on which a run of `experiment` is complete, and which has an experiment like it, `twin.toml`.
fn trained(experiment: &Experiment) -> Machine {
    let machine = Machine::new();
    images::domains(&machine.path("domains"), 24);
    images::pairs(&machine.path("pairs"), 40);
    machine.experiment(experiment);
    machine.launch(&["--workers", "1"]).succeed();
    // another seed: what is alike came from the files
    let twin = experiment.clone().with("name", TWIN).with("seed", 8);
    machine.write("twin.toml", twin.text());
    machine
}

fn url(machine: &Machine, name: &str) -> String {
    machine.path("runs").join(name).display().to_string()
}

fn export(machine: &Machine, run: &str, format: &str, out: &str) -> Answer {
    machine.ask(&["export", &url(machine, run), "--format", format, "--out", out])
}

fn exported(machine: &Machine, run: &str, format: &str, out: &str) -> String {
    let answer = export(machine, run, format, out);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.text()
}

fn imported(machine: &Machine, experiment: &str, more: &[&str]) -> String {
    let answer = machine.ask(&[&["import", experiment], more].concat());
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.text()
}

/// The first training image as `run` translates it.
fn translated(machine: &Machine, run: &str, direction: &str, out: &str) -> Vec<u8> {
    let image = machine.path("images/000.png").display().to_string();
    let url = url(machine, run);
    let answer = machine.ask(&["translate", &url, &image, "--direction", direction, "--out", out]);
    assert_eq!(answer.code, 0, "{answer:?}");
    std::fs::read(machine.path(out).join("000.png")).unwrap()
}

/// What `run` makes of 16 seeds.
fn sampled(machine: &Machine, run: &str) -> image::RgbImage {
    let out = machine.path(&format!("{run}.png"));
    let answer = machine.ask(&["sample", &url(machine, run), "--seeds", "0-15", "--out", &out.display().to_string()]);
    assert_eq!(answer.code, 0, "{answer:?}");
    image::open(out).unwrap().to_rgb8()
}

/// Every file of one folder is in the other, byte by byte.
fn same_files(machine: &Machine, one: &str, other: &str) {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(machine.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let read = |folder: &str, name: &Path| std::fs::read(machine.path(folder).join(name)).unwrap();
    assert_eq!(names(one), names(other));
    for name in names(one) {
        assert!(read(one, name.as_ref()) == read(other, name.as_ref()), "{name:?}");
    }
}

/// A run whose weights came from files is whole, says so, and trains on to its end.
fn trains_on(machine: &Machine) {
    let url = url(machine, TWIN);
    assert_eq!(machine.verify(&url), 1);
    let shown = machine.ask(&["checkpoints", "show", &url]);
    assert!(shown.code == 0 && shown.stdout.contains("the weights came from elsewhere"), "{shown:?}");
    let end = machine.resume(&url, &["--workers", "1"]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert!(!end.story().contains("differ"), "{}", end.story());
    let shown = machine.ask(&["checkpoints", "show", &url]);
    assert!(!shown.stdout.contains("elsewhere"), "{shown:?}");
}

/// 60 images.
fn cyclegan() -> Experiment {
    Experiment::cyclegan().with("train.constant_epochs", 2).with("train.decay_epochs", 1)
}

#[test]
fn a_cyclegan_goes_into_the_authors_files_and_back() {
    let machine = trained(&cyclegan());
    exported(&machine, NAME, "pytorch-cyclegan", "out");
    exported(&machine, NAME, "safetensors", "safe");
    let files = |network: &str| {
        json!([
            { "path": format!("out/latest_net_{network}.pth") },
            { "path": format!("safe/{network}.safetensors") },
        ])
    };
    let g = |network| json!({ "kind": "resnet", "width": 4, "blocks": 1, "files": files(network) });
    let d = |network| {
        let files = files(network);
        json!({ "kind": "patches", "inputs": 3, "width": 4, "layers": 1, "norm": "instance", "files": files })
    };
    let case = json!({ "G_A": g("G_A"), "G_B": g("G_B"), "D_A": d("D_A"), "D_B": d("D_B") });
    machine.write("case.json", case.to_string());
    python::loads(&machine.path("."));

    let said = imported(&machine, "twin.toml", &["--from", "out"]);
    assert!(said.contains("G_A from out/latest_net_G_A.pth") && said.contains("coordinator resume"), "{said}");
    exported(&machine, TWIN, "safetensors", "again");
    same_files(&machine, "safe", "again");
    for direction in ["a2b", "b2a"] {
        let here = translated(&machine, NAME, direction, &format!("{direction}-{NAME}"));
        assert!(here == translated(&machine, TWIN, direction, &format!("{direction}-{TWIN}")), "{direction}");
    }
    // a run that has checkpoints takes nothing in
    let again = machine.ask(&["import", "twin.toml", "--from", "out"]);
    assert!(again.code == 3 && again.text().contains("has checkpoints already"), "{again:?}");
    trains_on(&machine);

    // a pretrained one-way network serves in the other direction here
    std::fs::copy(machine.path("out/latest_net_G_A.pth"), machine.path("latest_net_G.pth")).unwrap();
    machine.write("one-way.toml", cyclegan().with("name", "one-way").text());
    let said = imported(&machine, "one-way.toml", &["--from", "latest_net_G.pth", "--network", "G_B"]);
    assert!(said.contains("nothing was given for G_A, D_A, D_B"), "{said}");
    let there = translated(&machine, NAME, "a2b", "there");
    assert!(there == translated(&machine, "one-way", "b2a", "one-way"));
}

#[test]
fn what_cannot_be_written_or_read_is_said() {
    let machine = trained(&cyclegan());
    exported(&machine, NAME, "pytorch-cyclegan", "out");
    let other = export(&machine, NAME, "gan-zoo", "zoo");
    assert!(other.code == 2 && other.text().contains("pytorch-cyclegan, safetensors"), "{other:?}");
    assert!(!machine.path("zoo").exists());
    let unknown = export(&machine, NAME, "pickle", "zoo");
    assert!(unknown.code == 2 && unknown.text().contains("gan-zoo"), "{unknown:?}");
    let again = export(&machine, NAME, "pytorch-cyclegan", "out");
    assert!(again.code == 2 && again.text().contains("exists already"), "{again:?}");

    let import = |experiment: &str, from: &str| machine.ask(&["import", experiment, "--from", from]);
    machine.write("latest_net_G_A.pth", b"these are my weights");
    let text = import("twin.toml", "latest_net_G_A.pth");
    assert!(text.code == 4 && text.text().contains("holds no weights"), "{text:?}");
    let whole = std::fs::read(machine.path("out/latest_net_D_A.pth")).unwrap();
    machine.write("latest_net_D_A.pth", &whole[..whole.len() / 2]);
    let cut = import("twin.toml", "latest_net_D_A.pth");
    assert!(cut.code == 4 && cut.text().contains("latest_net_D_A.pth"), "{cut:?}");
    let missing = import("twin.toml", "nowhere.pth");
    assert!(missing.code == 2 && missing.text().contains("nowhere.pth"), "{missing:?}");
    machine.write("wider.toml", cyclegan().with("name", "wider").with("model.g_width", 8).text());
    let wider = import("wider.toml", "out");
    assert!(wider.code == 4 && wider.text().contains("model.1.bias is [4], not [8]"), "{wider:?}");
    // nothing of it is a checkpoint
    for run in [TWIN, "wider"] {
        assert_ne!(machine.ask(&["checkpoints", "show", &url(&machine, run)]).code, 0, "{run}");
    }
}

#[test]
fn a_pix2pix_goes_into_the_authors_files_and_back() {
    let machine = trained(&Experiment::pix2pix().with("train.total_kimg", 0.048));
    exported(&machine, NAME, "pytorch-cyclegan", "out");
    let file = |network: &str| json!([{ "path": format!("out/latest_net_{network}.pth") }]);
    let case = json!({
        "G": { "kind": "unet", "width": 2, "downs": 5, "files": file("G") },
        "D": { "kind": "patches", "inputs": 6, "width": 2, "layers": 1, "norm": "batch", "files": file("D") },
    });
    machine.write("case.json", case.to_string());
    python::loads(&machine.path("."));
    imported(&machine, "twin.toml", &["--from", "out"]);
    exported(&machine, TWIN, "pytorch-cyclegan", "again");
    same_files(&machine, "out", "again");
    assert!(translated(&machine, NAME, "a2b", "here") == translated(&machine, TWIN, "a2b", "there"));
    trains_on(&machine);
}

#[test]
fn a_progan_goes_into_the_zoos_file_and_back_to_where_it_had_grown() {
    let machine = trained(&Experiment::tiny());
    let said = exported(&machine, NAME, "gan-zoo", "out");
    assert!(said.contains("toy_s2_i0.pt") && said.contains("note: model.upscale = \"fused\""), "{said}");
    exported(&machine, NAME, "safetensors", "safe");
    let files = |network: &str| json!([{ "path": "out/toy_s2_i0.pt", "key": network }, { "path": format!("safe/{network}.safetensors") }]);
    let g = |network| json!({ "kind": "gnet", "latent": 8, "depths": [8, 8, 8], "files": files(network) });
    let d = json!({ "kind": "dnet", "depths": [8, 8, 8], "files": files("netD") });
    machine.write("case.json", json!({ "netG": g("netG"), "avgG": g("avgG"), "netD": d }).to_string());
    python::loads(&machine.path("."));

    imported(&machine, "twin.toml", &["--from", "out"]);
    // 16 px stand alone from there on
    assert_eq!(machine.show(&url(&machine, TWIN))["manifest"]["cursor"]["images"], 600);
    let (here, there) = (sampled(&machine, NAME), sampled(&machine, TWIN));
    assert_eq!(here.dimensions(), there.dimensions());
    // factors there and back round once or twice
    let apart = here.as_raw().iter().zip(there.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart.is_some_and(|apart| apart <= 1), "{apart:?}");
    trains_on(&machine);
}

#[test]
fn an_sngan_goes_into_safetensors_and_back() {
    let machine = trained(&Experiment::sngan().with("train.total_kimg", 0.048));
    exported(&machine, NAME, "safetensors", "out");
    imported(&machine, "twin.toml", &["--from", "out"]);
    exported(&machine, TWIN, "safetensors", "again");
    same_files(&machine, "out", "again");
    assert_eq!(sampled(&machine, NAME), sampled(&machine, TWIN));
    trains_on(&machine);
}
