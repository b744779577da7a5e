//! See `checks/builder.rs`.

#![no_main]

#[path = "../checks/builder.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, bool, &[u8])| check::check(input));
