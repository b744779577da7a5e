//! The startup-latency harness, run as a user runs it, as small as it goes.
#![allow(clippy::unwrap_used)]

use std::fs;

use integration::Scratch;
use integration::command::{command, run};
use serde_json::Value;

#[test]
fn the_harness_measures_modes_writes_its_results_and_compares_them() {
    let scratch = Scratch::within("/var/tmp".as_ref()).unwrap();
    let out = scratch.dir("out").unwrap();
    let startup = || {
        let mut startup = command(env!("CARGO_BIN_EXE_startup"));
        startup.args(["--quick", "--out"]).arg(&out);
        startup
    };
    let mut measure = startup();
    measure
        .args(["--rounds", "1", "--workload", "python", "--link", "1g/20ms"])
        .arg("--registry")
        .arg(scratch.path().join("registry"));
    for mode in [
        "overlayfs",
        "lazy+prefetch",
        "on-demand",
        "nydus",
        "nydus-zran",
    ] {
        measure.args(["--mode", mode]);
    }
    let printed = run(&mut measure).unwrap();

    let text = fs::read(out.join("startup.json")).unwrap();
    let results: Value = serde_json::from_slice(&text).unwrap();
    let sample = |mode: &str| {
        let samples = results["samples"].as_array().unwrap();
        let mut of_mode = samples.iter().filter(|sample| sample["mode"] == mode);
        assert_eq!(of_mode.clone().count(), 1, "{mode}");
        of_mode.next().cloned().unwrap()
    };
    let bytes = |mode| sample(mode)["bytes"].as_u64().unwrap();
    let image = results["workloads"][0]["image_bytes"].as_u64().unwrap();
    assert!(bytes("overlayfs") > image, "{printed}");
    assert!(bytes("on-demand") < image / 2, "{printed}");
    // Two rounds of manifests at least, 20 ms each.
    for mode in ["overlayfs", "lazy+prefetch", "on-demand"] {
        let (pull, ready) = (&sample(mode)["pull_s"], &sample(mode)["ready_s"]);
        assert!(pull.as_f64().unwrap() >= 0.04, "{mode}: {pull}");
        assert!(ready.as_f64() > pull.as_f64(), "{mode}: {ready}");
    }
    let mounts = |mode| sample(mode)["fuse_mounts"].as_u64().unwrap();
    assert_eq!(mounts("overlayfs"), 0);
    assert!(mounts("lazy+prefetch") > 0 && mounts("on-demand") > 0);
    assert!(!printed.contains("not lazy"), "{printed}");
    for absent in ["nydus", "nydus-zran"] {
        let line = format!("- {absent} is missing: ");
        assert!(printed.contains(&line), "{printed}");
    }
    for mode in ["overlayfs", "full-pull", "lazy+prefetch", "on-demand"] {
        let row = format!("| python | 1 Gbit/s, 20 ms | {mode} | 1 | ");
        assert_eq!(
            printed.contains(&row),
            mode != "full-pull",
            "{mode}: {printed}"
        );
    }
    for plot in ["ready-1-gbit-s-20-ms", "bytes-python-1-gbit-s-20-ms"] {
        let svg = fs::read_to_string(out.join(plot).with_extension("svg")).unwrap();
        assert!(svg.contains("lazy+prefetch"), "{plot}");
    }

    let first = out.join("first.json");
    fs::rename(out.join("startup.json"), &first).unwrap();
    let mut show = startup();
    show.arg("--show").arg(&first).arg("--show").arg(&first);
    let shown = run(show.arg("--compare").arg(&first)).unwrap();
    assert!(
        shown.contains("| python | 1 Gbit/s, 20 ms | on-demand | 2 | "),
        "{shown}"
    );
    scratch.assert_clean().unwrap();
}

#[test]
fn a_start_that_fails_is_listed_and_the_others_are_measured() {
    let scratch = Scratch::within("/var/tmp".as_ref()).unwrap();
    let out = scratch.dir("out").unwrap();
    let workloads = scratch.path().join("workloads.toml");
    let one = |name: &str, line: &str| {
        format!(
            "[[workload]]\nname = '{name}'\nbase = 'busybox'\ncommand = ['/bin/echo', 'hello']\nready = {{ line = '{line}' }}\n"
        )
    };
    fs::write(
        &workloads,
        one("silent", "good day") + &one("polite", "hello"),
    )
    .unwrap();
    let mut startup = command(env!("CARGO_BIN_EXE_startup"));
    startup.args(["--rounds", "4", "--second-rounds", "1", "--link", "none"]);
    startup.args(["--mode", "overlayfs", "--mode", "lazy", "--workloads"]);
    startup.arg(&workloads).arg("--out").arg(&out);
    startup
        .arg("--registry")
        .arg(scratch.path().join("registry"));
    let ended = startup.output().unwrap();
    let (printed, said) = (
        String::from_utf8(ended.stdout).unwrap(),
        String::from_utf8(ended.stderr).unwrap(),
    );

    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.ends_with("6 samples could not be taken\n"), "{said}");
    let failed = "- failed: silent over no limit, 0 ms, lazy, round 1: it ended, exit status: 0, and never printed";
    assert!(printed.contains(failed), "{printed}");
    assert!(
        said.contains("it ended, exit status: 0, and never printed"),
        "{said}"
    );
    let text = fs::read(out.join("startup.json")).unwrap();
    let results: Value = serde_json::from_slice(&text).unwrap();
    // After three failures it is left.
    assert_eq!(results["failed"].as_array().unwrap().len(), 6);
    let samples = results["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 8, "{printed}");
    for sample in samples {
        assert_eq!(sample["workload"], "polite");
        let second = sample["second_s"].as_f64().is_some();
        assert_eq!(second, sample["round"] == 0, "{sample}");
    }
    let matrix = fs::read_to_string(out.join("matrix.md")).unwrap();
    assert!(matrix.ends_with(" (4, 4) |\n"), "{matrix}");
    scratch.assert_clean().unwrap();
}
