//! See `daemon::hostile::stored_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::stored_record(bytes));
