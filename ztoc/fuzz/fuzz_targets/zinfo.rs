//! See `checks/zinfo.rs`.

#![no_main]

#[path = "../checks/zinfo.rs"]
mod check;
#[allow(dead_code)]
#[path = "../../tests/hostile/craft.rs"]
mod craft;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u16, u32, u32, Vec<(i64, i64, u8)>, Vec<u8>)| check::check(input));
