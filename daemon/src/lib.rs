//! The daemon's outside: snapshots, layers and spans, registry, containerd, configuration,
//! metrics. Two binaries are made of it: `soci-snapshotter-grpc` and `soci`.

use std::sync::LazyLock;

pub mod app;
pub mod artifacts;
pub mod config;
pub mod containerd;
pub mod content;
pub mod control;
pub mod cri;
pub mod discovery;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod images;
pub mod layer;
pub mod layout;
pub mod logging;
pub mod metrics;
mod nesting;
pub mod registry;
pub mod snapshot;
pub mod traces;
pub mod unpack;
pub mod view;

/// Version of the daemon and the CLI.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from; builds that know it set SPANSHOT_REVISION.
pub const REVISION: &str = match option_env!("SPANSHOT_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// What `--version` prints behind the program's name: `version <semver> <revision>`.
pub fn version_line() -> &'static str {
    static LINE: LazyLock<String> = LazyLock::new(|| format!("version {VERSION} {REVISION}"));
    &LINE
}
