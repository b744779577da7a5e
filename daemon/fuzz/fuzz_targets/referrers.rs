//! See `daemon::hostile::referrers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::referrers(bytes));
