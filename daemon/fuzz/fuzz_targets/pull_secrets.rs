//! See `daemon::hostile::pull_secrets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::pull_secrets(bytes));
