//! See `checks/compact.rs`.

#![no_main]

#[path = "../checks/compact.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check::check(input));
