//! See `checks/ztoc_decode.rs`.

#![no_main]

#[path = "../checks/ztoc_decode.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check::check(input));
