//! Binaries of this package find libtorch where the build found it, without an environment variable.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_GANFLEET_NATIVE_LIB");
    if let Ok(lib) = std::env::var("DEP_GANFLEET_NATIVE_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-env=DEP_GANFLEET_NATIVE_LIB={lib}");
    }
}
