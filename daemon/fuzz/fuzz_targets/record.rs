//! See `daemon::hostile::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::record(bytes));
