//! See `daemon::hostile::layout`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::layout(bytes));
