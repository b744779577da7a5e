//! See `daemon::hostile::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::config(bytes));
