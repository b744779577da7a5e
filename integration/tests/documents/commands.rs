//! Commands in the documents, in blocks and within sentences. Those of our programs are given to them; each other one is
//! run by some test, or marked with `†`, which the page explains.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use integration::binaries::{binary, project};
use integration::command::{command, fail, finish};
use integration::{Scratch, Soci};

use crate::{blocks, documents};

/// Says that no test runs a command.
const MARK: char = '†';
/// What a page with a mark says of it.
const EXPLANATION: &str = "† No test runs this.";
/// Recorded as it was run (`scripts/record`).
const RECORDED: &str = "docs/session.md";

/// Programs whose commands documents show.
const PROGRAMS: [&str; 18] = [
    "cargo",
    "containerd",
    "crictl",
    "ctr",
    "curl",
    "docker",
    "dpkg",
    "install",
    "journalctl",
    "kubectl",
    "modprobe",
    "nerdctl",
    "skopeo",
    "soci",
    "soci-snapshotter-grpc",
    "sysctl",
    "systemctl",
    "timeout",
];

/// How a command begins, where it is run, and by which words there.
const RUN: [(&str, &str, &str); 21] = [
    ("scripts/test", ".ci/run", "exec scripts/test"),
    (
        "scripts/package",
        "integration/tests/package.rs",
        "scripts/package",
    ),
    ("scripts/demo --keep", "integration/tests/demo.rs", "--keep"),
    (
        "scripts/demo",
        "integration/tests/demo.rs",
        "CARGO_BIN_EXE_demo",
    ),
    (
        "dpkg -i",
        "integration/tests/package/life.sh",
        "\ndpkg -i /spanshot.deb\n",
    ),
    (
        "dpkg -r spanshot",
        "integration/tests/package/life.sh",
        "\ndpkg -r spanshot\n",
    ),
    (
        "dpkg -P spanshot",
        "integration/tests/package/life.sh",
        "\ndpkg -P spanshot\n",
    ),
    (
        "systemctl reload",
        "integration/tests/package/life.sh",
        "\nsystemctl reload soci-snapshotter\n",
    ),
    (
        "systemctl restart",
        "integration/tests/package/life.sh",
        "\nsystemctl restart soci-snapshotter\n",
    ),
    (
        "journalctl -u soci-snapshotter -o cat",
        "integration/tests/package/life.sh",
        "\njournalctl -u soci-snapshotter -o cat ",
    ),
    // Taken from the page.
    (
        "systemctl daemon-reload",
        "integration/tests/package/life.sh",
        "/by-hand.sh",
    ),
    (
        "systemctl enable --now soci-snapshotter.socket soci-snapshotter.service",
        "integration/tests/package/life.sh",
        "/by-hand.sh",
    ),
    (
        "install ",
        "integration/tests/package/life.sh",
        "/by-hand.sh",
    ),
    (
        "ctr run --rm --snapshotter soci",
        "integration/src/ctr.rs",
        "\"run\"",
    ),
    (
        "ctr run --remap-labels --uidmap",
        "integration/tests/user_namespaces.rs",
        "\"--remap-labels\"",
    ),
    (
        "soci-snapshotter-grpc holder",
        "integration/src/snapshotter.rs",
        "\"holder\"",
    ),
    (
        "soci-snapshotter-grpc unmount",
        "integration/tests/package/life.sh",
        "\nsoci-snapshotter-grpc unmount\n",
    ),
    (
        "scripts/bench startup",
        "benches/tests/startup.rs",
        "CARGO_BIN_EXE_startup",
    ),
    (
        "soci inspect --watch",
        "integration/tests/terminal.rs",
        "\"--watch\"",
    ),
    (
        "ctr images rm",
        "integration/src/ctr.rs",
        "\"images\", \"remove\"",
    ),
    ("ctr images pull", "integration/src/ctr.rs", "\"pull\""),
];

/// A command, and where it is shown.
#[derive(Debug)]
struct Shown {
    document: PathBuf,
    text: String,
    marked: bool,
}

impl Shown {
    fn words(&self) -> Vec<&str> {
        self.text.split_whitespace().collect()
    }

    fn program(&self) -> &str {
        self.words().first().copied().unwrap_or_default()
    }

    /// It is one of ours, which does what it is told and ends.
    fn is_ours(&self) -> bool {
        let words = self.words();
        match self.program() {
            // Others serve for ever, or are for systemd.
            "soci-snapshotter-grpc" => words.get(1) == Some(&"config"),
            "soci" => !words.contains(&"--watch"),
            _ => false,
        }
    }
}

/// Within sentences a name alone is only that.
fn is_command(text: &str) -> bool {
    let program = text.split(' ').next().unwrap_or_default();
    program.starts_with("scripts/") || PROGRAMS.contains(&program)
}

/// The commands of a line of a shell, without what is said about them. A session shows what was typed behind a prompt.
fn commands(line: &str) -> impl Iterator<Item = &str> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.split(" #").next().unwrap_or_default();
    let parts = line.split(" && ").flat_map(|part| part.split(" | "));
    parts.map(str::trim).filter(|part| is_command(part))
}

/// All commands that `document` shows in blocks.
fn in_blocks<'a>(document: &'a Path, text: &str) -> impl Iterator<Item = Shown> + use<'a> {
    let shown = blocks(document, text)
        .into_iter()
        .filter(|block| block.language.is_empty());
    shown.flat_map(move |block| {
        let of_line = |line: &str| {
            let shown = |text: &str| Shown {
                document: document.to_owned(),
                text: text.to_owned(),
                marked: line.contains(MARK),
            };
            commands(line).map(shown).collect::<Vec<_>>()
        };
        block.text.lines().flat_map(of_line).collect::<Vec<_>>()
    })
}

/// All commands that `document` shows within sentences.
fn in_sentences(document: &Path, text: &str) -> Vec<Shown> {
    // What lies between fences and between single quotes; a fence is three of these.
    let prose = text.split("```").step_by(2);
    let of_prose = |prose: &str| {
        let parts: Vec<&str> = prose.split('`').collect();
        let spans = parts.chunks_exact(2).enumerate();
        let shown = spans.map(|(number, pair)| Shown {
            document: document.to_owned(),
            text: pair[1].to_owned(),
            marked: parts
                .get(number * 2 + 2)
                .is_some_and(|behind| behind.starts_with(MARK)),
        });
        shown.collect::<Vec<_>>()
    };
    let all = prose.flat_map(of_prose);
    all.filter(|shown| shown.text.contains(' ') && is_command(&shown.text))
        .collect()
}

fn all() -> Vec<Shown> {
    let of_document = |document: PathBuf| {
        let text = fs::read_to_string(&document).unwrap();
        let blocks = in_blocks(&document, &text);
        blocks
            .chain(in_sentences(&document, &text))
            .collect::<Vec<_>>()
    };
    documents().into_iter().flat_map(of_document).collect()
}

#[test]
fn each_command_in_the_documents_is_run_by_a_test_or_marked() {
    let recorded = project().join(RECORDED);
    let shown: Vec<_> = all()
        .into_iter()
        .filter(|it| it.document != recorded)
        .collect();
    assert!(shown.len() >= 60, "{shown:?}");
    let (mut unmarked, mut needlessly) = (Vec::new(), Vec::new());
    for command in &shown {
        let run = RUN.iter().find(|run| command.text.starts_with(run.0));
        match run.is_some() || command.is_ours() {
            true if command.marked => needlessly.push(command),
            false if !command.marked => unmarked.push(command),
            _ => {}
        }
    }
    assert!(unmarked.is_empty(), "{unmarked:#?}");
    assert!(needlessly.is_empty(), "{needlessly:#?}");
    for (begins, file, words) in RUN {
        assert!(
            shown.iter().any(|shown| shown.text.starts_with(begins)),
            "no document shows {begins}"
        );
        let text = fs::read_to_string(project().join(file)).unwrap();
        assert!(text.contains(words), "{file} does not run {begins}");
    }
}

#[test]
fn a_page_with_a_mark_explains_it() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let marks = text.matches(MARK).count();
        let explained = text.matches(EXPLANATION).count();
        assert_eq!(explained, usize::from(marks > 0), "{}", document.display());
        assert_ne!(marks, 1, "{}: explained and not used", document.display());
    }
}

#[test]
fn our_programs_know_the_commands_and_options_that_documents_show() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let shown = all().into_iter().filter(Shown::is_ours);
    let shown: BTreeMap<_, _> = shown.map(|it| (it.text, it.document)).collect();
    assert!(shown.len() >= 30, "{shown:?}");
    for (line, document) in shown {
        let words = shlex::split(&line).unwrap();
        let program = match &*words[0] {
            "soci" => soci.command().unwrap(),
            _ => command(binary("soci-snapshotter-grpc").unwrap()),
        };
        // What sentences speak of needs no arguments there.
        let help = (words.len() == 2).then_some("--help");
        // Nothing is there that it could work on, and no network: it fails, but not because it does not know what is wanted.
        let mut alone = command("unshare");
        alone.args(["--net", "timeout", "20"]);
        alone
            .arg(program.get_program())
            .args(program.get_args())
            .args(&words[1..])
            .args(help);
        let output = finish(alone.current_dir(scratch.path())).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let known = matches!(output.status.code(), Some(0 | 1)) && !error.contains("try '--help'");
        assert!(
            known,
            "{}: {line}: {}: {error}",
            document.display(),
            output.status
        );
    }
    let unknown = fail(
        soci.command()
            .unwrap()
            .args(["rpull", "--no-such-option", "app:1"]),
    )
    .unwrap();
    assert!(unknown.contains("try '--help'"), "{unknown}");
}
