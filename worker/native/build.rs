//! Compiles the C++ shim against libtorch's headers, and tells every binary that links it where libtorch lies.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let root = env::var("LIBTORCH").map(PathBuf::from).ok().and_then(|p| p.canonicalize().ok()).unwrap_or_else(|| {
        eprintln!("libtorch is not set up: run scripts/setup once (it lays .libtorch, which .cargo/config.toml names)");
        std::process::exit(1)
    });
    let include = root.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(3) // its loops are hot in tests too
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("shim/shim.cpp")
        .compile("ganfleet_shim");
    // read by the build scripts of the packages that make binaries: DEP_GANFLEET_NATIVE_LIB
    println!("cargo:lib={}", root.join("lib").display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", root.join("lib").display());
}
