//! See `checks/tar.rs`.

#![no_main]

#[path = "../checks/tar.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check::check(input));
