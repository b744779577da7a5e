//! SOCI indexes, OCI manifests and image indexes as canonical JSON.
