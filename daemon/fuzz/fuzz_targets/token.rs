//! See `daemon::hostile::token`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::token(bytes));
