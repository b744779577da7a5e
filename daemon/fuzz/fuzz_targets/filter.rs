//! See `daemon::hostile::filter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::filter(bytes));
