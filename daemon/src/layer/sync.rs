//! What [`super::flight`] is built on; the model in `tests/span_states.rs` has it on something else.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

pub(crate) use parking_lot::Mutex;
