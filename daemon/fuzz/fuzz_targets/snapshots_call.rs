//! See `daemon::hostile::snapshots_call`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::snapshots_call(bytes));
