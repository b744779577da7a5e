//! See `daemon::hostile::docker_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::docker_config(bytes));
