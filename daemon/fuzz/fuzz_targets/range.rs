//! See `daemon::hostile::range`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::range(bytes));
