//! `scripts/record`: the terminal session in the documents, typed anew by a program and recorded from a real terminal.

mod screen;
mod svg;
#[path = "../demo/workload.rs"]
mod workload;

/// What the demo's image is told of.
mod report {
    pub(crate) fn progress(what: &str) {
        eprintln!("record: {what}");
    }
}

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use integration::binaries::binary;
use integration::command::command;
use integration::scratch::{self, Scratch};
use integration::terminal::Terminal;
use integration::{Containerd, DockerRegistry, Snapshotter};

use self::screen::{Line, Screen};

/// How long something that goes on is looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Types what an operator would type, with everything on loopback, and writes down what the terminal showed.
#[derive(Debug, Parser)]
struct Options {
    /// Directory for `session.md` and `session.svg`.
    #[arg(long, value_name = "DIR", default_value = "docs")]
    out: PathBuf,
    /// Where to put the private roots; 2 GB are needed, and not on an overlay.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
}

/// Something that is typed.
struct Typed<'a> {
    /// What is said before, in the document.
    about: &'a str,
    line: String,
    /// Ctrl-C is pressed after a look.
    goes_on: bool,
}

fn main() -> ExitCode {
    match scratch::clean_up_on_signals().and_then(|()| run(&Options::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("record: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::within(&options.work_dir)?;
    let registry = DockerRegistry::start(&scratch)?;
    let containerd = Containerd::start(&scratch)?;
    let config = "[background_fetch]\ndisable = true\n";
    let _snapshotter = Snapshotter::start(&scratch, &containerd, config)?;
    let image = workload::publish(&scratch, &registry)?;
    report::progress(&format!(
        "{} MB in {} layers; typing",
        image.bytes / 1_000_000,
        image.layers
    ));
    let mut shown = Vec::new();
    for typed in session(&image.reference) {
        report::progress(&typed.line);
        shown.push((show(&containerd, &typed)?, typed));
    }
    write(&options.out, &shown)
}

/// What is typed, in order.
fn session(image: &str) -> Vec<Typed<'_>> {
    let typed = |about, line: String| Typed {
        about,
        line,
        goes_on: false,
    };
    let run = "ctr run --snapshotter soci";
    let script = "'python3 /app/main.py; exec sleep 1000'";
    let mut session = vec![
        typed(
            "An image of Debian, python3 and numpy is in a registry, with its SOCI index. It is pulled without its layers:",
            format!("soci rpull --plain-http {image}"),
        ),
        typed(
            "It runs at once, and what it reads is fetched meanwhile. `soci events` tells of each read that waited; here are the first:",
            format!(
                "timeout 20 soci events | head -8 & {run} --detach {image} app /bin/sh -c {script}; wait"
            ),
        ),
        typed(
            "What is mounted, for whom, and how much of it is here:",
            String::from("soci inspect"),
        ),
        Typed {
            goes_on: true,
            ..typed(
                "One view, layer by layer, with a map of the spans that is drawn again each second:",
                String::from("soci inspect app --watch"),
            )
        },
        typed(
            "Which files were read, and how long somebody waited for them:",
            String::from("soci inspect app --files | head -10"),
        ),
        typed(
            "Where a path comes from:",
            String::from("soci inspect app --explain /usr/bin/python3"),
        ),
        typed(
            "All that is missing, so that the registry may go away; and whether what is here is sound:",
            String::from("soci drain app && soci verify app"),
        ),
    ];
    session.push(typed(
        "Is this machine set up, and can the image be had? (It is a test set-up: the advice is real.)",
        format!("soci doctor --plain-http {image}"),
    ));
    session
}

/// Types it, and what the terminal shows at the end.
fn show(containerd: &Containerd, typed: &Typed<'_>) -> Result<Vec<Line>> {
    let mut terminal = Terminal::run(&shell(containerd, &typed.line)?, "")?;
    if typed.goes_on {
        std::thread::sleep(LOOK);
        terminal.press("\x03")?;
    }
    let (seen, _) = terminal.wait()?;
    Ok(Screen::after(&without_build(&seen)?))
}

/// The kernel by its number alone: whoever built it is nobody's business.
fn without_build(seen: &str) -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    let number = release.split(['-', '+']).next().unwrap_or(release);
    Ok(seen.replace(release, number))
}

/// A shell for whom `soci` and `ctr` are those of the session.
fn shell(containerd: &Containerd, line: &str) -> Result<Command> {
    let soci = binary("soci")?;
    let directory = soci.parent().context("soci lies in no directory")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let settings = [
        format!("PATH={}:{path}", directory.display()),
        format!("CONTAINERD_ADDRESS={}", containerd.socket().display()),
        format!("CONTAINERD_NAMESPACE={}", containerd.ctr().namespace()),
        format!(
            "SOCI_SNAPSHOTTER_ADDRESS={}",
            containerd.snapshotter_socket().display()
        ),
    ];
    let mut env = command("env");
    env.args(settings).args(["/bin/sh", "-c", line]);
    Ok(env)
}

fn write(out: &Path, shown: &[(Vec<Line>, Typed<'_>)]) -> Result<()> {
    let mut text = String::from(
        "# A session\n\nRecorded from a terminal by `scripts/record`, which makes this page and [its picture](session.svg) anew.\n",
    );
    let mut picture = Vec::new();
    for (lines, typed) in shown {
        let _ = write!(text, "\n{}\n\n```\n$ {}\n", typed.about, typed.line);
        picture.push(Line::plain(&format!("$ {}", typed.line)));
        for line in lines {
            text.push_str(line.text().trim_end());
            text.push('\n');
        }
        text.push_str("```\n");
        picture.extend(lines.iter().cloned());
        picture.push(Line::default());
    }
    let save = |name: &str, text: &str| {
        let file = out.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    save("session.md", &text)?;
    save("session.svg", &svg::draw(&picture))
}
