//! What [`super::share`] is built on; the model in `tests/view_sharing.rs` has it on something else.

pub(crate) use std::sync::{Arc, Weak};

pub(crate) use parking_lot::Mutex;
