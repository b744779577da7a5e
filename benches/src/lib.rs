//! Benchmarks by path; each target under `benches/` is started by `scripts/bench NAME`.
