//! The demonstration, as a user runs it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use integration::Scratch;
use integration::command::{command, run};
use serde_json::Value;

fn demo() -> Command {
    command(env!("CARGO_BIN_EXE_demo"))
}

#[test]
fn the_demo_shows_that_a_lazy_start_fetches_less_and_what_it_leaves_running_can_be_removed() {
    let scratch = Scratch::within("/var/tmp".as_ref()).unwrap();
    let (work, json) = (
        scratch.dir("work").unwrap(),
        scratch.path().join("numbers.json"),
    );
    let mut keep = demo();
    keep.args(["--keep", "--json"]).arg(&json);
    let printed = run(keep.arg("--work-dir").arg(&work)).unwrap();

    let numbers: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let (full, lazy) = (&numbers["full"], &numbers["lazy"]);
    assert!(full["output"].as_str().is_some_and(|it| !it.is_empty()));
    assert_eq!(full["output"], lazy["output"]);
    let bytes = |run: &Value| run["fetched_bytes"].as_u64().unwrap();
    assert!(bytes(full) >= numbers["image_bytes"].as_u64().unwrap());
    assert!(bytes(lazy) < bytes(full) / 2, "{printed}");
    assert!(numbers["fuse_mounts"].as_u64().unwrap() > 0, "{printed}");

    // The last word is what is left, and the line before says how it is used.
    let dir = printed.split_whitespace().last().unwrap();
    assert!(dir.starts_with(work.to_str().unwrap()), "{printed}");
    let again = printed
        .lines()
        .find(|line| line.contains(" run --rm --snapshotter soci"));
    let again = run(command("sh").arg("-c").arg(again.unwrap().trim())).unwrap();
    assert_eq!(Some(again.trim()), lazy["output"].as_str().map(str::trim));
    run(demo().arg("--clean").arg(dir)).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir), "{mounts}");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0);
}
