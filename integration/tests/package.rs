//! The Debian package, in a Debian root with a systemd of its own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::binaries::{self, project};
use integration::command::{command, run};
use integration::host::small_layers;
use integration::scratch::Scratch;
use integration::{Layout, debian};

/// What is done in there. Each line that fails ends it.
const LIFE_OF_A_PACKAGE: &str = include_str!("package/life.sh");
/// Booting takes seconds; a machine with other work gets more.
const PATIENCE: Duration = Duration::from_secs(180);

/// This machine's package, of the binaries under test.
fn package(out: &Path) -> PathBuf {
    let of_this = run(command("dpkg").arg("--print-architecture")).unwrap();
    let mut package = command(project().join("scripts/package"));
    package.args(["--arch", of_this.trim(), "--binaries"]);
    package.arg(binaries::directory().unwrap());
    built(&mut package, out, of_this.trim())
}

fn built(package: &mut Command, out: &Path, architecture: &str) -> PathBuf {
    run(package.arg("--out").arg(out)).unwrap();
    let built: Vec<_> = fs::read_dir(out).unwrap().collect();
    assert_eq!(built.len(), 1);
    let built = built.into_iter().next().unwrap().unwrap();
    let name = built.file_name().into_string().unwrap();
    assert!(
        name.starts_with("spanshot_") && name.ends_with(&format!("_{architecture}.deb")),
        "{name}"
    );
    built.path()
}

/// Modes, owners and names of all files of a package.
fn contents(deb: &Path) -> BTreeSet<String> {
    let listed = run(command("dpkg-deb").arg("--contents").arg(deb)).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", fields[0], fields[1], fields[5..].join(" "))
    };
    listed.lines().map(line).collect()
}

fn field(deb: &Path, name: &str) -> String {
    let value = run(command("dpkg-deb").arg("--field").arg(deb).arg(name));
    value.unwrap().trim().to_owned()
}

/// A program of an arm64 machine, run here.
fn arm64(program: &Path) -> Command {
    if cfg!(target_arch = "aarch64") {
        return command(program);
    }
    let mut emulated = command("qemu-aarch64-static");
    emulated.args(["-L", "/usr/aarch64-linux-gnu"]).arg(program);
    emulated
}

/// All files of the index that `soci convert` makes, by name: their names are their digests.
fn indexed(mut soci: Command, plain: &Path, out: &Path) -> BTreeSet<String> {
    soci.args([
        "convert",
        "--standalone",
        "--format",
        "oci-dir",
        "--min-layer-size",
        "0",
    ]);
    run(soci.args(["--span-size", "65536"]).arg(plain).arg(out)).unwrap();
    let blobs = fs::read_dir(out.join("blobs/sha256")).unwrap();
    let name =
        |blob: std::io::Result<fs::DirEntry>| blob.unwrap().file_name().into_string().unwrap();
    blobs.map(name).collect()
}

/// The part of `docs/install.md` that installs what cargo has built, as `/by-hand.sh`, and in `/by-hand` what it takes.
fn lay_by_hand(root: &Path) {
    let page = fs::read_to_string(project().join("docs/install.md")).unwrap();
    let (_, behind) = page.split_once("## Or by hand").unwrap();
    let block = behind.split("```").nth(1).unwrap();
    // What it builds is there.
    let (build, rest) = block.trim_start().split_once('\n').unwrap();
    assert!(build.starts_with("cargo build --release"), "{build}");
    fs::write(root.join("by-hand.sh"), rest).unwrap();
    let built = root.join("by-hand/target/release");
    fs::create_dir_all(&built).unwrap();
    for program in ["soci-snapshotter-grpc", "soci"] {
        let from = binaries::binary(program).unwrap();
        fs::copy(from, built.join(program)).unwrap();
    }
    let units = root.join("by-hand/daemon");
    fs::create_dir_all(&units).unwrap();
    run(command("cp")
        .arg("-a")
        .arg(project().join("daemon/systemd"))
        .arg(units))
    .unwrap();
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
    let same = fs::read(&deb).unwrap() == fs::read(&again).unwrap();
    let about = |deb: &Path| run(command("dpkg-deb").arg("--info").arg(deb)).unwrap();
    assert!(
        same,
        "the same commit gives another package: {}\nand {}",
        about(&deb),
        about(&again)
    );
    fs::copy(deb, root.join("spanshot.deb")).unwrap();
    lay_by_hand(&root);
    let printed = boot(&root, LIFE_OF_A_PACKAGE);
    assert!(printed.contains("\nall of it is done\n"), "{printed}");
}

/// Cross-built in the quick profile; `scripts/arm64` has done most of it.
#[test]
fn the_package_for_arm64_has_the_same_files_and_programs_that_run_and_make_the_same_indexes() {
    let scratch = Scratch::new().unwrap();
    let mut make = command(project().join("scripts/package"));
    make.args(["--arch", "arm64", "--profile", "dev"]);
    let deb = built(&mut make, &scratch.dir("out").unwrap(), "arm64");
    let ours = package(&scratch.dir("ours").unwrap());
    assert_eq!(contents(&deb), contents(&ours));
    assert_eq!(field(&deb, "Architecture"), "arm64");
    assert_eq!(field(&deb, "Version"), field(&ours, "Version"));
    let needs = field(&deb, "Depends");
    assert!(needs.starts_with("libc6 (>= 2."), "{needs}");

    let root = scratch.path().join("root");
    run(command("dpkg-deb").arg("--extract").arg(&deb).arg(&root)).unwrap();
    for name in ["soci", "soci-snapshotter-grpc"] {
        let program = root.join("usr/bin").join(name);
        // EM_AARCH64, in the head of an ELF file.
        assert_eq!(fs::read(&program).unwrap()[18..20], [183, 0]);
        let version = run(arm64(&program).arg("--version")).unwrap();
        assert!(
            version.starts_with(&format!("{name} version ")),
            "{version}"
        );
    }
    let config =
        run(arm64(&root.join("usr/bin/soci-snapshotter-grpc")).args(["config", "default"]));
    let shipped = root.join("etc/soci-snapshotter-grpc/config.toml");
    assert_eq!(config.unwrap(), fs::read_to_string(shipped).unwrap());

    let layout = Layout::create(&scratch.path().join("plain")).unwrap();
    let content = integration::busybox::noise(1 << 20);
    let layers = small_layers(&layout, &[("file", &content)]).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let out = |name: &str| scratch.path().join(name);
    let theirs = indexed(
        arm64(&root.join("usr/bin/soci")),
        layout.path(),
        &out("theirs"),
    );
    let native = command(binaries::binary("soci").unwrap());
    assert_eq!(theirs, indexed(native, layout.path(), &out("native")));
    assert!(theirs.len() > 4, "{theirs:?}");
}
