//! Who refers to a manifest.
