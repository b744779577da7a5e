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
    for mode in ["overlayfs", "lazy+prefetch", "on-demand", "nydus"] {
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
    assert!(printed.contains("- nydus is missing: "), "{printed}");
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
