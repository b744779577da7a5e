//! See `daemon::hostile::labels`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::labels(bytes));
