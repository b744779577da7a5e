//! What is only for people: colours, bars and screens that are drawn again and again, on a terminal and nowhere else.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{finish, until};
use integration::ctr::Run;
use integration::host::{Host, ON_DEMAND, Published, SMALL_SPANS};
use integration::push::push;
use integration::terminal::Terminal;
use integration::{Containerd, DockerRegistry, Layout, Scratch, Soci};
use nix::sys::socket::{setsockopt, sockopt};
use regex::Regex;

const PATIENCE: Duration = Duration::from_secs(30);
const COLOUR: &str = "\x1b[";
/// Cursor to the corner, screen cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

fn soci(of: &Soci, arguments: &[&str]) -> Command {
    let mut command = of.command().unwrap();
    command.args(arguments);
    command
}

#[test]
fn colours_are_for_terminals_and_never_for_who_does_not_want_them() {
    let scratch = Scratch::new().unwrap();
    let alone = Soci::alone(&scratch).unwrap();
    // There is no containerd, so something is red.
    let doctor = soci(&alone, &["doctor"]);
    let shown = |setting: &str| Terminal::run(&doctor, setting).unwrap().wait().unwrap();
    let (coloured, code) = shown("");
    assert_eq!(code, Some(1), "{coloured}");
    assert!(coloured.contains("\x1b[31mFAILED \x1b[0m"), "{coloured}");
    let (plain, code) = shown("NO_COLOR=1");
    assert_eq!(code, Some(1), "{plain}");
    assert!(plain.contains("FAILED "), "{plain}");
    assert!(!plain.contains(COLOUR), "{plain}");
    // Its errors are on a terminal still, but what it found goes elsewhere.
    let copy = scratch.path().join("found");
    let redirected = format!("exec >{}; ", copy.display());
    shown(&redirected);
    let found = std::fs::read_to_string(&copy).unwrap();
    assert!(
        found.contains("FAILED ") && !found.contains(COLOUR),
        "{found}"
    );
    let piped = finish(&mut soci(&alone, &["doctor"])).unwrap();
    assert!(!String::from_utf8_lossy(&piped.stdout).contains(COLOUR));
    let help = finish(&mut soci(&alone, &["--help"])).unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(COLOUR));
    let machine = soci(&alone, &["doctor", "--json"]);
    let (json, _) = Terminal::run(&machine, "").unwrap().wait().unwrap();
    assert!(json.starts_with('[') && !json.contains(COLOUR), "{json}");
}

#[test]
fn a_bar_shows_how_far_a_conversion_is_and_is_gone_at_the_end() {
    let scratch = Scratch::new().unwrap();
    let alone = Soci::alone(&scratch).unwrap();
    let layout = Layout::create(&scratch.dir("source").unwrap()).unwrap();
    let content = noise(20 << 20);
    let layers = integration::host::small_layers(&layout, &[("large", &content)]).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let convert = |to: &str| {
        let to = scratch.path().join(to);
        let mut command = soci(
            &alone,
            &["convert", "--standalone", "--min-layer-size", "0"],
        );
        command.arg(layout.path()).arg(to);
        command
    };
    let (drawn, code) = Terminal::run(&convert("drawn"), "")
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(code, Some(0), "{drawn}");
    let short = &layers[1].digest["sha256:".len()..][..12];
    assert!(drawn.contains(short) && drawn.contains("MiB/s"), "{drawn}");
    // The line of the bar is cleared, and what stays is the result.
    let last = drawn.trim_end().lines().last().unwrap();
    assert!(!last.contains("MiB/s"), "{drawn}");

    let output = finish(&mut convert("plain")).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        !errors.contains(COLOUR) && !errors.contains('\r'),
        "{errors}"
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    for line in printed.lines() {
        let line = line.replace("plain", "drawn");
        assert!(drawn.contains(&line), "{line}\nis not in\n{drawn}");
    }
}

/// Passes connections on to `target`, what goes there at some 8 MB/s.
fn slow_way_to(target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Little waits on its way where the sender does not see it any more.
    setsockopt(&listener, sockopt::RcvBuf, &(64 << 10)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(target).unwrap();
            let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || pass(near, far, Duration::from_millis(8)));
            std::thread::spawn(move || pass(ends.1, ends.0, Duration::ZERO));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, pause: Duration) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        std::thread::sleep(pause);
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_bar_for_each_blob_shows_how_much_of_it_has_been_uploaded() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let soci_there = Soci::with(&scratch, &containerd).unwrap();
    let layout = Layout::create(&scratch.path().join("app")).unwrap();
    let content = noise(24 << 20);
    let layers = integration::host::small_layers(&layout, &[("large", &content)]).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let reference = registry.reference("app:latest");
    push(&layout, &reference).unwrap();
    containerd.ctr().pull("overlayfs", &reference).unwrap();
    let address = slow_way_to(registry.host().parse().unwrap());
    let slow = format!("{address}/app:latest");
    let tag = ["images", "tag", &reference, &slow];
    containerd.ctr().call(&tag).unwrap();
    let create = [&["create"], &SMALL_SPANS[..], &[&slow]].concat();
    soci_there.call(&create).unwrap();
    // A window of noise for each 64 KiB: the zTOC has half of the layer's size.
    let ztocs = soci_there.call(&["ztoc", "list", "--json"]).unwrap();
    let ztocs: serde_json::Value = serde_json::from_str(&ztocs).unwrap();
    let largest = ztocs.as_array().unwrap().iter();
    let largest = largest.max_by_key(|it| it["size"].as_u64()).unwrap();
    assert!(largest["size"].as_u64().unwrap() > 8 << 20, "{largest}");
    let short = &largest["digest"].as_str().unwrap()["sha256:".len()..][..12];

    let command = soci(&soci_there, &["push", "--plain-http", &slow]);
    let (drawn, code) = Terminal::run(&command, "").unwrap().wait().unwrap();
    assert_eq!(code, Some(0), "{drawn}");
    let bar = format!(r"push {short} +[=> ]*? +([0-9.]+ [KM]?i?B)/");
    let bars = Regex::new(&bar).unwrap();
    let mut positions: Vec<_> = bars
        .captures_iter(&drawn)
        .map(|bar| bar[1].to_owned())
        .collect();
    positions.dedup();
    assert!(
        positions.len() > 3,
        "it did not move: {positions:?}\n{drawn}"
    );
    let whole = largest["digest"].as_str().unwrap();
    let pushed = format!("successfully pushed artifact with digest: {whole}");
    assert!(drawn.contains(&pushed), "{drawn}");
}

/// A container that runs until it is dropped.
struct Running<'a> {
    host: &'a Host,
    child: Child,
}

impl<'a> Running<'a> {
    fn start(host: &'a Host, published: &Published) -> Self {
        let script = "head -c 1 /large >/dev/null; echo ready; exec sleep 1000";
        let run = Run::shell(&published.reference, "watched", script);
        let mut command = host.ctr().run_command(run);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        Self { host, child }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let kill = ["tasks", "kill", "--signal", "KILL", "watched"];
        let _ = self.host.ctr().call(&kill);
        let _ = self.child.wait();
    }
}

/// How many spans are here, by what one drawing says.
fn spans_here(frame: &str) -> Option<u64> {
    let line = frame.lines().find(|line| line.starts_with("local:"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let of = words.iter().position(|word| *word == "of")?;
    words[of - 1].parse().ok()
}

#[test]
fn what_is_watched_is_drawn_again_as_it_changes_until_ctrl_c() {
    let host = Host::start(ON_DEMAND).unwrap();
    let large = noise(3 << 20);
    let published = host.publish_files("app", &[("large", &large)]).unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let running = Running::start(&host, &published);
    let there = host.soci().unwrap();

    let watch = soci(
        &there,
        &["inspect", "watched", "--watch", "--interval", "50ms"],
    );
    let mut terminal = Terminal::run(&watch, "").unwrap();
    // Whole drawings only: each but the last is followed by the next.
    let frames = |terminal: &Terminal| -> Vec<String> {
        let seen = terminal.seen();
        let mut frames: Vec<_> = seen.split(CLEAR).skip(1).map(str::to_owned).collect();
        frames.pop();
        frames
    };
    let drawn = until("two drawings", PATIENCE, || {
        let frames = frames(&terminal);
        Ok((frames.len() >= 2).then_some(frames))
    })
    .unwrap();
    let before = spans_here(&drawn[0]).unwrap();
    assert!(
        drawn[0].contains(COLOUR),
        "the map has colours: {}",
        drawn[0]
    );
    there.call(&["drain", "watched"]).unwrap();
    let after = until("a drawing of all that came", PATIENCE, || {
        let frames = frames(&terminal);
        let last = frames.last().filter(|it| it.contains("local:       100 %"));
        Ok(last.and_then(|it| spans_here(it)))
    })
    .unwrap();
    assert!(after > before, "{before}, then {after}");
    terminal.press("\x03").unwrap();
    let (seen, code) = terminal.wait().unwrap();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("soci: interrupted"), "{seen}");

    // Elsewhere one follows the other, and nothing clears what is no screen.
    let watch = [
        "inspect",
        "watched",
        "--watch",
        "--interval",
        "50ms",
        "--json",
    ];
    let mut child = soci(&there, &watch).stdout(Stdio::piped()).spawn().unwrap();
    let mut values = serde_json::Deserializer::from_reader(child.stdout.take().unwrap())
        .into_iter::<serde_json::Value>();
    for _ in 0..2 {
        let value = values.next().unwrap().unwrap();
        assert_eq!(value["spans_local"].as_u64(), Some(after));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(running);
    host.finish().unwrap();
}
