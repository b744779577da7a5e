//! See `daemon::hostile::hosts_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::hosts_file(bytes));
