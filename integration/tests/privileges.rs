//! The daemon does with the rights that its unit gives it, and shows nobody what is not theirs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use integration::binaries::{binary, project};
use integration::command::{command, until};
use integration::containerd::Containerd;
use integration::ctr::Run;
use integration::distribution::DockerRegistry;
use integration::host::{Host, Indexing, ON_DEMAND};
use integration::scratch::Scratch;
use integration::snapshotter::Snapshotter;

/// The capabilities in the unit file, in the words of setpriv(1).
fn granted() -> String {
    let unit = project().join("daemon/systemd/soci-snapshotter.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nNoNewPrivileges=yes\n"));
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.unwrap().split(' ');
    let added = names.map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    format!("-all{}", added.collect::<String>())
}

fn restricted(daemon: &Command) -> Command {
    let mut setpriv = command("setpriv");
    setpriv.arg("--no-new-privs");
    setpriv.arg(format!("--bounding-set={}", granted()));
    setpriv.arg("--inh-caps=-all");
    setpriv.arg(daemon.get_program()).args(daemon.get_args());
    setpriv
}

fn capabilities(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

#[test]
fn the_capabilities_of_the_unit_are_enough_for_lazy_and_for_unpacked_layers() {
    let scratch = Scratch::new().unwrap();
    // Containers in user namespaces have to get through.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let snapshotter =
        Snapshotter::start_wrapped(&restricted, &scratch, &containerd, ON_DEMAND).unwrap();
    let all = capabilities(std::process::id());
    let has = capabilities(snapshotter.pid());
    assert!(has.count_ones() < 12 && has & !all == 0, "{has:x}");
    let host = Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    };
    // The second image has a zTOC for its large layer only: the others are unpacked by the daemon.
    for (name, min_layer_size) in [("lazy", 0), ("mixed", 2 << 20)] {
        let large = integration::busybox::noise(3 << 20);
        let files: [(&str, &[u8]); 2] = [("large", &large), ("small", b"small\n")];
        let how = Indexing {
            min_layer_size,
            ..Indexing::default()
        };
        let published = host.publish_files_indexed(name, &files, how).unwrap();
        host.soci().unwrap().rpull(&published.reference).unwrap();
        let script = "cat /small; echo written >/new; cat /new; rm /large";
        let run = host
            .ctr()
            .run(Run::shell(&published.reference, name, script));
        assert_eq!(run.unwrap(), "small\nwritten\n");
        // With mapped ids, as containers in user namespaces have.
        let mut mapped = host.ctr().command();
        mapped.args(["run", "--rm", "--snapshotter", "soci", "--remap-labels"]);
        mapped.args(["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]);
        mapped.args([&published.reference, "mapped", "/bin/sh", "-c"]);
        let run = integration::command::run(mapped.arg("stat -c %u:%g /small"));
        assert_eq!(run.unwrap(), "0:0\n");
        host.ctr().remove_image(&published.reference).unwrap();
    }
    until(
        "all is unmounted",
        std::time::Duration::from_secs(30),
        || Ok(host.snapshotter.fuse_mounts()?.is_empty().then_some(())),
    )
    .unwrap();
    host.finish().unwrap();
}

#[test]
fn nobody_but_root_reaches_into_the_root_directory_or_the_sockets() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = host.publish_files("one", &[("file", b"x")]).unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let key = "kept";
    let chain = published.image.chain_id();
    host.ctr().prepare("soci", key, &chain).unwrap();
    let root = host.snapshotter.root();
    let mode = |path: &std::path::Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&root), 0o700);
    let socket = host.containerd.snapshotter_socket();
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    assert_eq!(mode(&socket), 0o660);
    let holder = root.join("holder.sock");
    assert!(fs::metadata(&holder).unwrap().file_type().is_socket());
    assert_eq!(mode(&holder), 0o600);
    // Inside, a second fence for what has to be open to containers once it is mounted.
    assert_eq!(mode(&root.join("snapshotter/snapshots")), 0o700);
    let mut other = command("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "ls"]);
    assert!(integration::command::fail(other.arg(&root)).is_ok());
    host.ctr().remove_snapshot("soci", key).unwrap();
    host.finish().unwrap();
    drop(binary("soci").unwrap());
}
