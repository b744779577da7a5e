//! The Debian package, in a Debian root with a systemd of its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::binaries::{self, project};
use integration::command::{command, run};
use integration::debian;
use integration::scratch::Scratch;

/// What is done in there. Each line that fails ends it.
const LIFE_OF_A_PACKAGE: &str = include_str!("package/life.sh");
/// Booting takes seconds; a machine with other work gets more.
const PATIENCE: Duration = Duration::from_secs(180);

fn package(out: &Path) -> PathBuf {
    run(command(project().join("scripts/package"))
        .args(["--arch", "amd64", "--binaries"])
        .arg(binaries::directory().unwrap())
        .arg("--out")
        .arg(out))
    .unwrap();
    let built: Vec<_> = fs::read_dir(out).unwrap().collect();
    assert_eq!(built.len(), 1);
    let built = built.into_iter().next().unwrap().unwrap();
    let name = built.file_name().into_string().unwrap();
    assert!(
        name.starts_with("spanshot_") && name.ends_with("_amd64.deb"),
        "{name}"
    );
    built.path()
}

/// Boots `root`, runs `script` in it as a service, and answers what it printed.
fn boot(root: &Path, script: &str) -> String {
    fs::write(root.join("test.sh"), script).unwrap();
    let unit = "[Unit]\nWants=basic.target\nAfter=basic.target\n\
                [Service]\nType=oneshot\nExecStart=/bin/bash -eux /test.sh\n\
                StandardOutput=append:/test.out\nStandardError=inherit\n\
                ExecStopPost=/bin/systemctl --no-block poweroff\n";
    fs::write(root.join("etc/systemd/system/test.service"), unit).unwrap();
    run(command("timeout")
        .arg(PATIENCE.as_secs().to_string())
        .args([
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--keep-unit",
            "--register=no",
        ])
        .args([
            "--bind=/dev/fuse",
            "--private-network",
            "--console=pipe",
            "--link-journal=no",
        ])
        .arg(format!("--machine=spanshot-{}", std::process::id()))
        .arg("--directory")
        .arg(root)
        .args(["--", "--unit=test.service"]))
    .unwrap();
    fs::read_to_string(root.join("test.out")).unwrap()
}

#[test]
fn the_package_installs_starts_survives_upgrades_and_leaves_nothing() {
    let scratch = Scratch::new().unwrap();
    let root = scratch.path().join("root");
    run(command("cp")
        .arg("-a")
        .arg(debian::with_systemd().unwrap())
        .arg(&root))
    .unwrap();
    let deb = package(&scratch.dir("out").unwrap());
    let again = package(&scratch.dir("again").unwrap());
    let same = fs::read(&deb).unwrap() == fs::read(again).unwrap();
    assert!(same, "the same commit gives another package");
    fs::copy(deb, root.join("spanshot.deb")).unwrap();
    let printed = boot(&root, LIFE_OF_A_PACKAGE);
    assert!(printed.contains("\nall of it is done\n"), "{printed}");
}
