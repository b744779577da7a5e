//! `soci`.
fn main() {}
