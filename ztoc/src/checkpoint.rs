//! Checkpoints: the decoder state at a span boundary, and the zinfo blob that holds them.
