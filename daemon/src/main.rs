//! `soci-snapshotter-grpc`.
fn main() {}
