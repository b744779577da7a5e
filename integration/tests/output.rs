//! What `soci` prints, to the letter: the files in `output/` are what a person would see.
//!
//! Digests, times, the machine's architecture and our own version are replaced by words of the same width. After a change that
//! was meant, `SPANSHOT_BLESS=1 cargo nextest run -p integration --test output` writes the files anew: look at the difference.
#![allow(clippy::unwrap_used)]

#[path = "output/daemon.rs"]
mod daemon;

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use integration::busybox::{file_layer, noise};
use integration::command::finish;
use integration::image::architecture;
use integration::push::push;
use integration::{Containerd, DockerRegistry, Layout, Scratch, Soci};
use regex::{Captures, Regex};

const IMAGE: &str = "registry.example/app:1";
const SIZES: [&str; 4] = ["--span-size", "65536", "--min-layer-size", "3000"];

/// Commands and what they printed.
struct Session {
    soci: Soci,
    text: String,
}

impl Session {
    fn new(soci: Soci) -> Self {
        let text = String::new();
        Self { soci, text }
    }

    /// Runs `soci` and writes down what it says. Its standard output if it succeeds.
    fn run(&mut self, arguments: &[&str]) -> String {
        let mut command = self.soci.command().unwrap();
        // Help tells what the environment says.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CONTAINERD_") || name.starts_with("SOCI_") {
                command.env_remove(&*name);
            }
        }
        let output = finish(command.args(arguments)).unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        self.text += &format!("$ soci {}\n{out}", arguments.join(" "));
        for line in errors.lines() {
            self.text += &format!("[stderr] {line}\n");
        }
        match output.status.code() {
            Some(0) => {}
            code => self.text += &format!("[exit {}]\n", code.unwrap()),
        }
        self.text.push('\n');
        out
    }

    /// Compares all of it with the file `name`.
    fn compare(&self, name: &str) {
        let said = fixed(&self.text);
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/output")
            .join(name);
        if std::env::var_os("SPANSHOT_BLESS").is_some() {
            fs::write(&path, &said).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if let Some(line) = difference(&expected, &said) {
            panic!(
                "{} differs in line {line}; soci said:\n{said}",
                path.display()
            );
        }
    }
}

/// The first line that differs, from 1.
fn difference(expected: &str, said: &str) -> Option<usize> {
    if expected == said {
        return None;
    }
    let pairs = expected.lines().zip(said.lines());
    let same = pairs.take_while(|(expected, said)| expected == said);
    Some(same.count() + 1)
}

/// Without what differs from run to run and from machine to machine.
fn fixed(text: &str) -> String {
    let mut digests = Vec::new();
    let digest = Regex::new("sha256:[0-9a-f]{64}").unwrap();
    let text = digest.replace_all(text, |found: &Captures<'_>| {
        let digest = found[0].to_owned();
        let number = digests.iter().position(|it| *it == digest);
        let number = number.unwrap_or_else(|| {
            digests.push(digest);
            digests.len() - 1
        });
        format!("sha256:{}", format!("{number:02}").repeat(32))
    });
    let mut text = text.into_owned();
    for (pattern, word) in [
        (r"(?m)\d+s ago +$", "<age>"),
        (r#"("created_at": )\d+"#, "$1<time>"),
        (
            r#"("CreatedAt": |"created_at": )"\d{4}-[^"]+""#,
            "$1\"<time>\"",
        ),
        (r"namespace spanshot-\w+", "namespace <namespace>"),
        (r"(?m)^Created: \d{4}-.*", "Created: <time>"),
    ] {
        let pattern = Regex::new(pattern).unwrap();
        text = pattern.replace_all(&text, word).into_owned();
    }
    text.replace(&format!("linux/{}", architecture()), "linux/<cpu>")
        .replace(env!("CARGO_PKG_VERSION"), "<version>")
}

/// The commands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let after = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = after.lines().take_while(|line| line.starts_with("  "));
    let names = lines
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn the_help_of_every_command() {
    let scratch = Scratch::new().unwrap();
    let mut session = Session::new(Soci::alone(&scratch).unwrap());
    let top = session.run(&["--help"]);
    for command in listed(&top) {
        let help = session.run(&[&command, "--help"]);
        for inner in listed(&help) {
            session.run(&[&command, &inner, "--help"]);
        }
    }
    // Its own defaults, not those the test gave it, are in the text.
    assert!(session.text.contains("/run/containerd/containerd.sock"));
    session.compare("help.txt");
}

#[test]
fn who_asks_for_nothing_gets_help_and_who_asks_wrongly_an_error() {
    let scratch = Scratch::new().unwrap();
    let mut session = Session::new(Soci::alone(&scratch).unwrap());
    for asked in [&[][..], &["index"], &["ztoc"], &["prefetch"]] {
        assert!(session.run(asked).contains("Usage: soci"), "{asked:?}");
    }
    session.text.clear();
    for wrong in [
        &["nonsense"][..],
        &["create"],
        &["create", "--nonsense", IMAGE],
        &["create", "--span-size", "-1", IMAGE],
        &["create", "--platform", "linux/", IMAGE],
        &["create", "--optimizations", "speed", IMAGE],
        &["convert", IMAGE],
        &["push", "--existing-index", "perhaps", IMAGE],
        &["index", "info", "sha256:12"],
        &[
            "index",
            "remove",
            "--ref",
            IMAGE,
            &format!("sha256:{}", "a".repeat(64)),
        ],
        &["inspect", "--files"],
        &["--timeout", "soon", "gc"],
        &["--content-store", "attic", "rebuild-db"],
    ] {
        session.run(wrong);
    }
    session.compare("errors.txt");
}

/// Where commands find containerd with one image, which is the same on every machine but for its
/// architecture, and a registry.
struct Site {
    session: Session,
    reference: String,
    containerd: Containerd,
    _registry: DockerRegistry,
    _scratch: Scratch,
}

impl Site {
    fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        let registry = DockerRegistry::start(&scratch).unwrap();
        let containerd = Containerd::start(&scratch).unwrap();
        let layout = Layout::create(&scratch.path().join("app")).unwrap();
        let poem: String = (0..2000).map(|line| format!("line {line}\n")).collect();
        let files: [(&str, &[u8]); 3] = [
            ("tiny", b"below the minimum"),
            ("etc/poem", poem.as_bytes()),
            ("large", &noise(200_000)),
        ];
        let layers = files.map(|(path, content)| {
            // Stored, not compressed: no compressor's version is in the sizes.
            let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
            gzip.write_all(&file_layer(path, content).unwrap()).unwrap();
            let file = scratch.path().join(path.replace('/', "-"));
            fs::write(&file, gzip.finish().unwrap()).unwrap();
            layout.add_layer_file(&file).unwrap()
        });
        layout.add_image(&layers, &["sh"], "latest").unwrap();
        let reference = registry.reference("app:latest");
        push(&layout, &reference).unwrap();
        containerd.ctr().pull("overlayfs", &reference).unwrap();
        let session = Session::new(Soci::with(&scratch, &containerd).unwrap());
        Self {
            session,
            reference,
            containerd,
            _registry: registry,
            _scratch: scratch,
        }
    }
}

#[test]
fn an_index_from_its_making_to_its_removal() {
    let mut site = Site::start();
    let ctr = site.containerd.ctr();
    ctr.call(&["images", "tag", &site.reference, IMAGE])
        .unwrap();
    ctr.call(&["images", "remove", &site.reference]).unwrap();
    let session = &mut site.session;
    let create = |more: &[&'static str]| [&["create"], &SIZES[..], more, &[IMAGE]].concat();
    session.run(&["index", "list"]);
    // The larger layer first, alone: those that are made at once have no order.
    session.run(&create(&[
        "--min-layer-size",
        "100000",
        "--prefetch-file",
        "large",
    ]));
    session.run(&create(&["--prefetch-file", "large"]));
    session.run(&create(&["--min-layer-size", "1000000000"]));

    session.run(&["index", "list"]);
    session.run(&["index", "list", "--json", "--platform", "linux/s390x"]);
    session.run(&["index", "list", "--json", "--ref", IMAGE]);
    session.run(&["index", "ls", "--ref", "registry.example/other:1"]);
    let digests = session.run(&["index", "ls", "-q"]);
    let newest = digests.lines().next().unwrap();
    session.run(&["index", "info", newest]);

    session.run(&["ztoc", "list"]);
    session.run(&["ztoc", "ls", "--json", "--image-ref", IMAGE]);
    let ztocs = session.run(&["ztoc", "ls", "-q"]);
    // The oldest is that of the large file: it has several spans.
    let ztoc = ztocs.lines().last().unwrap();
    session.run(&["ztoc", "ls", "--ztoc-digest", ztoc]);
    session.run(&["ztoc", "info", ztoc]);
    session.run(&["ztoc", "verify", ztoc]);
    session.run(&["ztoc", "get-file", ztoc, "no/such/file"]);

    session.run(&["prefetch", "list"]);
    let lists = session.run(&["prefetch", "ls", "--json"]);
    let lists: serde_json::Value = serde_json::from_str(&lists).unwrap();
    let list = lists[0]["Digest"].as_str().unwrap().to_owned();
    session.run(&["prefetch", "info", &list]);
    session.run(&["prefetch", "info", "--json", &list]);

    session.run(&create(&[
        "--force",
        "--json",
        "--prefetch-file",
        "large,none",
    ]));
    session.run(
        &[
            &["convert"],
            &SIZES[..],
            &[IMAGE, "registry.example/app:soci"],
        ]
        .concat(),
    );
    session.run(&["index", "list"]);
    session.run(&["push", IMAGE, "--platform", "plan9/mips"]);
    // What the image's label names no more is gone, and the records learn of it.
    ctr.collect().unwrap();
    session.run(&["rebuild-db", "--json"]);
    session.run(&["index", "rm", "--ref", IMAGE]);
    session.run(&["index", "rm", newest]);
    session.run(&["index", "ls", "-q", "--ref", IMAGE]);
    session.compare("index.txt");
}

#[test]
fn a_push_and_what_it_says_when_an_index_is_there() {
    let mut site = Site::start();
    let reference = site.reference.clone();
    let session = &mut site.session;
    let create = [&["create"], &SIZES[..], &[&reference]].concat();
    session.run(&create);
    session.text.clear();
    // One after another, so that the order is the same every time.
    let push = |more: &[&'static str]| {
        let one = ["push", "--plain-http", "--max-concurrent-uploads", "1"];
        [&one[..], more].concat()
    };
    for more in [
        &[][..],
        &[],
        &["--existing-index", "skip"],
        &["--existing-index", "allow"],
        &["--quiet"],
        &["--json"],
    ] {
        let arguments = push(more);
        session.run(&[&arguments[..], &[&reference]].concat());
    }
    session.text = session.text.replace(&reference, "REFERENCE");
    session.compare("push.txt");
}

#[test]
fn what_a_daemon_shows() {
    let scratch = Scratch::new().unwrap();
    let _daemon = daemon::start(&scratch.path().join("soci.control.sock")).unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let mut session = Session::new(soci.asking(&scratch.path().join("soci.sock")));
    for asked in [
        &["inspect"][..],
        &["inspect", "--json"],
        &["inspect", "web"],
        &["inspect", "7", "--json"],
        &["inspect", "registry.example/app:1", "--files"],
        &["inspect", "web", "--files", "--json"],
        &["inspect", "web", "--explain", "/usr/bin/app"],
        &["inspect", "web", "--explain", "/usr/bin/app", "--json"],
        &["inspect", "web", "--explain", "/none"],
        &["inspect", "nobody"],
        &["events"],
        &["events", "--json"],
        &["fetch", "web", "/usr/bin/app"],
        &["fetch", "web", "/usr/bin/app", "/none", "--json"],
        &["verify"],
        &["verify", "web", "--json"],
    ] {
        session.run(asked);
    }
    session.compare("inspect.txt");
}
