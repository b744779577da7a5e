//! nydus: how its snapshotter is told to run, and its images.

mod image;
mod table;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

pub(crate) use self::image::{Data, convert};

/// Tells `snapshotter`, whose files lie in `dir`, how to run `daemon`.
pub(crate) fn configure(snapshotter: &mut Command, dir: &Path, daemon: &Path) -> Result<()> {
    let (configuration, limited) = (dir.join("nydusd.json"), dir.join("nydusd"));
    fs::write(&configuration, daemon_configuration().to_string())?;
    // It raises its limit of open files beyond what a machine may allow, and ends if it cannot.
    let script = format!(
        "#!/bin/sh\nexec {} \"$@\" --rlimit-nofile 0\n",
        daemon.display()
    );
    fs::write(&limited, script)?;
    fs::set_permissions(&limited, Permissions::from_mode(0o755))?;
    snapshotter.arg("--nydusd-config").arg(configuration);
    snapshotter
        .arg("--nydusd")
        .arg(limited)
        .arg("--log-to-stdout");
    Ok(())
}

/// nydus's configuration of the daemon, as its snapshotter's repository has it for FUSE, told to speak plain HTTP.
fn daemon_configuration() -> Value {
    json!({
        "device": {
            "backend": {
                "type": "registry",
                "config": {"scheme": "http", "timeout": 5, "connect_timeout": 5, "retry_limit": 2},
            },
            "cache": {"type": "blobcache"},
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "amplify_io": 1_048_576,
        "fs_prefetch": {"enable": true, "threads_count": 8, "merging_size": 1_048_576, "prefetch_all": true},
    })
}

/// The snapshotter's defaults, but that its daemons end with it.
pub(crate) const SNAPSHOTTER_CONFIGURATION: &str = "version = 1\ncleanup_on_close = true\n";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_daemon_speaks_plain_http_and_fetches_everything_in_the_background() {
        let configuration = daemon_configuration();
        let backend = &configuration["device"]["backend"];
        assert_eq!(backend["config"]["scheme"], "http");
        assert_eq!(configuration["fs_prefetch"]["prefetch_all"], true);
        let snapshotter: toml::Table = SNAPSHOTTER_CONFIGURATION.parse().unwrap();
        assert_eq!(snapshotter["version"], toml::Value::Integer(1));
    }
}
