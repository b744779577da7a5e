//! Compiles the protobuf definitions under `protos/` without an installed `protoc`.

use std::error::Error;
use std::path::Path;

const FILES: &[&str] = &[
    "containerd/types/types.proto",
    "containerd/services/content.proto",
    "containerd/services/diff.proto",
    "containerd/services/images.proto",
    "containerd/services/leases.proto",
    "containerd/services/namespaces.proto",
    "containerd/services/snapshots.proto",
    "containerd/services/version.proto",
    "kubernetes/cri.proto",
    "spanshot/control.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("protos");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = protox::compile(FILES, [root])?;
    tonic_prost_build::configure()
        .include_file("all.rs")
        .compile_fds(files)?;
    Ok(())
}
