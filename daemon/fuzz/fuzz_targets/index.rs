//! See `daemon::hostile::index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::index(bytes));
