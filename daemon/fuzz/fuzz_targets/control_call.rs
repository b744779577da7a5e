//! See `daemon::hostile::control_call`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::control_call(bytes));
