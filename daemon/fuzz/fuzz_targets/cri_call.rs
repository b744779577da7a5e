//! See `daemon::hostile::cri_call`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::cri_call(bytes));
