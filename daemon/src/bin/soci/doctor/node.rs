//! Checks of the snapshotter and of containerd's configuration.

use std::path::Path;

use daemon::containerd::Containerd;
use daemon::control::{API, socket_of};
use toml::{Table, Value};

use super::{Arguments, Findings};
use crate::control_client::Control;
use crate::options::Globals;

pub(super) async fn check(findings: &mut Findings, globals: &Globals, arguments: &Arguments) {
    snapshotter(findings, globals).await;
    let live = containerd(findings, globals, &arguments.snapshotter).await;
    configuration(findings, globals, arguments, live);
}

async fn snapshotter(findings: &mut Findings, globals: &Globals) {
    const CHECK: &str = "snapshotter";
    let address = globals.snapshotter_address.display();
    if let Err(error) = std::os::unix::net::UnixStream::connect(&globals.snapshotter_address) {
        return findings.failure(
            CHECK,
            format!("nobody answers at {address}: {error}"),
            "systemctl enable --now soci-snapshotter; or give --snapshotter-address",
        );
    }
    let mut control = Control::new(globals);
    match control.client.version(()).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let (theirs, ours) = (answer.version, daemon::VERSION);
            if answer.api != API || theirs != ours {
                findings.warning(
                    CHECK,
                    format!("{theirs} runs, and this is soci {ours}"),
                    "restart the snapshotter after an update: systemctl restart soci-snapshotter",
                );
            } else {
                findings.ok(CHECK, format!("{theirs} answers at {address}"));
            }
        }
        Err(_) => findings.warning(
            CHECK,
            format!(
                "answers at {address}, but not at {}: it is another snapshotter, or an older one",
                socket_of(&globals.snapshotter_address).display()
            ),
            "soci inspect and its kin need this project's soci-snapshotter-grpc",
        ),
    }
}

/// Whether containerd has the snapshotter; `None` if containerd cannot be asked.
async fn containerd(findings: &mut Findings, globals: &Globals, name: &str) -> Option<bool> {
    const CHECK: &str = "containerd";
    const PLUGIN: &str = "plugin in containerd";
    let address = globals.address.display();
    let client = match Containerd::new(&globals.address, &globals.namespace) {
        Ok(client) => client,
        Err(error) => {
            findings.failure(
                CHECK,
                error.to_string(),
                "give --address and --namespace as ctr takes them",
            );
            return None;
        }
    };
    if let Err(error) = client.images().await {
        findings.failure(
            CHECK,
            error.to_string(),
            format!("is containerd running? systemctl status containerd; it is asked at {address}"),
        );
        findings.skipped(PLUGIN, "containerd does not answer");
        return None;
    }
    findings.ok(CHECK, format!("answers at {address}"));
    // What does not exist is not found; a snapshotter that does not exist is something else.
    match client.snapshotter(name).committed("soci-doctor").await {
        Ok(_) => {
            findings.ok(PLUGIN, format!("snapshotter {name} is there and answers"));
            Some(true)
        }
        Err(error) => {
            findings.failure(
                PLUGIN,
                error.to_string(),
                format!(
                    "add to containerd's configuration, and restart containerd:\n[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{}\"",
                    globals.snapshotter_address.display()
                ),
            );
            Some(false)
        }
    }
}

fn configuration(
    findings: &mut Findings,
    globals: &Globals,
    arguments: &Arguments,
    live: Option<bool>,
) {
    const CHECK: &str = "containerd's config";
    let path = &arguments.containerd_config;
    let config = match read(path) {
        Ok(config) => config,
        Err(error) if live == Some(true) => {
            return findings.warning(
                CHECK,
                format!("{}: {error}", path.display()),
                "the plugin works all the same; give --containerd-config to have the rest checked",
            );
        }
        Err(error) => {
            return findings.failure(
                CHECK,
                format!("{}: {error}", path.display()),
                "containerd config default | tee /etc/containerd/config.toml; then add the plugin",
            );
        }
    };
    let name = &arguments.snapshotter;
    plugin(findings, globals, &config, name);
    cri(findings, &config, name);
    transfer(findings, &config, name);
}

fn read(path: &Path) -> anyhow::Result<Table> {
    Ok(std::fs::read_to_string(path)?.parse()?)
}

fn get<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let mut at = table;
    for name in parents {
        at = at.get(*name)?.as_table()?;
    }
    at.get(*last)
}

fn plugin(findings: &mut Findings, globals: &Globals, config: &Table, name: &str) {
    const CHECK: &str = "proxy_plugins";
    let text = |key| get(config, &["proxy_plugins", name, key]).and_then(Value::as_str);
    let wanted = globals.snapshotter_address.to_string_lossy();
    match (text("type"), text("address")) {
        (Some("snapshot"), Some(address)) if address.trim_start_matches("unix://") == wanted => {
            findings.ok(CHECK, format!("{name} at {address}"));
        }
        (Some("snapshot"), Some(address)) => findings.failure(
            CHECK,
            format!("{name} is said to be at {address}, and the snapshotter listens at {wanted}"),
            "make them the same: --address of soci-snapshotter-grpc, address in [proxy_plugins]",
        ),
        _ => findings.failure(
            CHECK,
            format!("[proxy_plugins.{name}] is missing, or is no snapshot plugin"),
            format!("[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{wanted}\""),
        ),
    }
    if get(config, &["proxy_plugins", name, "exports", "root"]).is_none() {
        findings.warning(
            "image disk usage",
            "containerd does not know where layers lie, so that kubelet counts no image disk usage",
            format!(
                "[proxy_plugins.{name}.exports]\n  root = \"{}\"",
                globals.root.display()
            ),
        );
    }
}

/// CRI of containerd 1.x and of 2.x.
fn cri(findings: &mut Findings, config: &Table, name: &str) {
    const CHECK: &str = "CRI";
    let one = get(
        config,
        &["plugins", "io.containerd.grpc.v1.cri", "containerd"],
    );
    let two = get(config, &["plugins", "io.containerd.cri.v1.images"]);
    let Some(section) = two.or(one).and_then(Value::as_table) else {
        return findings.skipped(
            CHECK,
            "not configured: Kubernetes does not use the snapshotter here",
        );
    };
    let snapshotter = section.get("snapshotter").and_then(Value::as_str);
    let annotations = section
        .get("disable_snapshot_annotations")
        .and_then(Value::as_bool);
    if snapshotter != Some(name) {
        findings.warning(
            CHECK,
            format!("Kubernetes uses snapshotter {:?}", snapshotter.unwrap_or("overlayfs")),
            format!("for lazy loading of pods: snapshotter = \"{name}\", disable_snapshot_annotations = false"),
        );
    } else if annotations != Some(false) {
        findings.failure(
            CHECK,
            "the snapshotter is not told which image a layer is of",
            "disable_snapshot_annotations = false",
        );
    } else {
        findings.ok(CHECK, format!("pods use {name}, with annotations"));
    }
}

/// Pulls by `ctr` and nerdctl on containerd 2.1 and newer.
fn transfer(findings: &mut Findings, config: &Table, name: &str) {
    const CHECK: &str = "transfer service";
    let transfer = get(
        config,
        &[
            "plugins",
            "io.containerd.transfer.v1.local",
            "unpack_config",
        ],
    );
    let Some(unpack) = transfer.and_then(Value::as_array) else {
        return findings.skipped(
            CHECK,
            "not configured; pull with soci rpull, nerdctl or Kubernetes",
        );
    };
    let ours = unpack
        .iter()
        .any(|entry| entry.get("snapshotter").and_then(Value::as_str) == Some(name));
    let key = [
        "proxy_plugins",
        name,
        "exports",
        "enable_remote_snapshot_annotations",
    ];
    let labels = get(config, &key).and_then(Value::as_str) == Some("true");
    match (ours, labels) {
        (true, true) => findings.ok(CHECK, format!("unpacks with {name}, with labels")),
        (true, false) => findings.failure(
            CHECK,
            "the snapshotter is not told which image a layer is of",
            format!("[proxy_plugins.{name}.exports]\n  enable_remote_snapshot_annotations = \"true\""),
        ),
        (false, _) => findings.warning(
            CHECK,
            format!("does not unpack with {name}: ctr images pull is not lazy"),
            format!("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"{name}\""),
        ),
    }
}
