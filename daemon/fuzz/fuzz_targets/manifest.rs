//! See `daemon::hostile::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::manifest(bytes));
