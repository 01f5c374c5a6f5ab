//! Binaries of this package find libtorch without an environment variable: where the build found it, or, in a package
//! (`scripts/package` sets GANFLEET_PACKAGE), in `lib` beside their own folder, wherever that is unpacked.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_GANFLEET_NATIVE_LIB");
    println!("cargo:rerun-if-env-changed=GANFLEET_PACKAGE");
    if std::env::var_os("GANFLEET_PACKAGE").is_some() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    } else if let Ok(lib) = std::env::var("DEP_GANFLEET_NATIVE_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-env=DEP_GANFLEET_NATIVE_LIB={lib}");
    }
}
