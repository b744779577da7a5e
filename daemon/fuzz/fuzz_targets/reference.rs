//! See `daemon::hostile::reference`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::reference(bytes));
