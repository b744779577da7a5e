//! See `daemon::hostile::kubelet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| daemon::hostile::kubelet(bytes));
