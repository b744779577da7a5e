//! See `daemon::hostile::prefetch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::prefetch(bytes));
