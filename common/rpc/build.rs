//! Compiles `proto/control.proto` with a Rust compiler for protobuf, so that no `protoc` is needed on the user's machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/control.proto");
    let files = protox::compile(["proto/control.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".ganfleet.v1.Assign.roster")
        .bytes(".ganfleet.v1.Meeting.roster")
        .compile_fds(files)?;
    Ok(())
}
