//! See `daemon::hostile::challenge`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::challenge(bytes));
