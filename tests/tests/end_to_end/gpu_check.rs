//! `scripts/gpu-check` where there is no GPU: it says so, and its rehearsal on the CPU shows that it would measure what it says.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tests::{binaries, repository};

fn gpu_check(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(repository().join("scripts/gpu-check"));
    let output = command.args(arguments).output().expect("python3 starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn without_a_gpu_it_says_so() {
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: needs a machine without a GPU");
        return;
    }
    assert_eq!(gpu_check(&[]), (Some(0), "skipped: no GPU\n".to_owned()));
    let (code, said) = gpu_check(&["--rehearse", "--document"]);
    assert!(code == Some(2) && said.contains("--document"), "{said}");
}

#[test]
fn its_rehearsal_measures_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let programs = ["bench", "gpu-check"].map(|name| binaries::example("worker", name));
    let (bin, out) = (programs[0].parent().unwrap(), folder.path().join("out"));
    let arguments = ["--rehearse", "--bin", bin.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (code, said) = gpu_check(&arguments);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("gpu-check.json")).unwrap()).unwrap();
    for family in ["progan", "cyclegan", "pix2pix", "sngan"] {
        let apart = &report["checks"]["measured"]["gradients_apart"];
        let [double, single] = ["Double", "Float"].map(|kind| apart[format!("{family} {kind}")].as_f64().unwrap());
        assert!(double == 0.0 && single > 0.0 && single < 2e-3, "{family}: {apart}");
    }
    let widest = &report["checks"]["measured"]["widest_step"];
    assert!(widest["resolution"] == 32 && widest["lacking"].is_null(), "{widest}");
    let cases: Vec<String> = (report["iterations"].as_array().unwrap().iter())
        .map(|case| {
            let ours = &case["runs"]["ours"][0];
            assert!(ours["img_per_s"].as_f64() > Some(0.0), "{case}");
            format!("{} {} {}", case["family"].as_str().unwrap(), case["res"], case["precision"].as_str().unwrap())
        })
        .collect();
    assert_eq!(cases, ["progan 8 fp32", "cyclegan 32 fp32", "cyclegan 32 bf16"]);
    let table = std::fs::read_to_string(out.join("gpu-check.md")).unwrap();
    assert!(table.starts_with("CPU: a rehearsal, which shows nothing about GPUs"), "{table}");
    assert!(table.contains("| progan | 8 | fp32 |") && table.contains("A checkpoint of"), "{table}");
}

#[test]
fn a_check_that_fails_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("gpu-check");
    std::fs::write(&program, "#!/bin/sh\necho 'gpu-check: a gradient is off' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let out = folder.path().join("out");
    let arguments = ["--rehearse", "--bin", folder.path().to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (code, said) = gpu_check(&arguments);
    assert!(code == Some(1) && said.contains("a gradient is off"), "{code:?}: {said}");
    assert!(!out.join("gpu-check.json").exists(), "nothing is told that was not measured");
}
