//! Raw DEFLATE from any bit.
