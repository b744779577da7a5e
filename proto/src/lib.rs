//! Wire types and stubs.
