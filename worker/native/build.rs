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
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(3) // its loops are hot in tests too
        // without these, GCC takes a comparison of floats for something that may trap, and leaves the loops scalar
        .flag_if_supported("-fno-trapping-math")
        .flag_if_supported("-fno-math-errno")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["shim/shim.cpp", "shim/layers.cpp", "shim/kernels.cpp", "shim/device.cpp"]);
    // The pool of threads is libtorch's own: its headers start them with OpenMP, from the library that comes with it.
    let openmp = root.join("lib/libgomp.so.1");
    if build.get_compiler().is_like_gnu() && openmp.exists() {
        build.flag("-fopenmp");
        println!("cargo:rustc-link-search=native={}", root.join("lib").display());
        println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    } else {
        build.flag_if_supported("-fopenmp-simd");
    }
    build.compile("ganfleet_shim");
    // read by the build scripts of the packages that make binaries: DEP_GANFLEET_NATIVE_LIB
    println!("cargo:lib={}", root.join("lib").display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", root.join("lib").display());
}
