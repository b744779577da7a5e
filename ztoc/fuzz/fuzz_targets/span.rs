//! See `checks/span.rs`.

#![no_main]

#[path = "../checks/span.rs"]
mod check;
#[allow(dead_code)]
#[path = "../../tests/hostile/craft.rs"]
mod craft;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u8, u16, u16, &[u8])| check::check(input));
