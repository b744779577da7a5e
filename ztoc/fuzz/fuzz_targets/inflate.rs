//! See `checks/inflate.rs`.

#![no_main]

#[path = "../checks/inflate.rs"]
mod check;
#[allow(dead_code)]
#[path = "../../tests/inflate/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u8, u16, u16, &[u8])| check::check(input));
