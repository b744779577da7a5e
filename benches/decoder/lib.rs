//! Benchmarks of `ztoc`: see `inflate`, `build_ztoc`, `windows`.
