//! The daemon as a process: what service managers, operators and scrapers see of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");
/// How long the daemon may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

fn daemon(dir: &Path) -> Command {
    let mut daemon = Command::new(BINARY);
    with_arguments(&mut daemon, dir);
    daemon
}

fn with_arguments(command: &mut Command, dir: &Path) {
    command.arg("--root").arg(dir.join("root"));
    command.arg("--config").arg(dir.join("config.toml"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
}

/// A directory with a configuration.
fn ground(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.toml"), config).unwrap();
    dir
}

/// The socket on which a service manager is told things.
fn manager(dir: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(dir.join("notify.sock")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

fn stop(child: Child, signal: Signal) -> Output {
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, signal).unwrap();
    child.wait_with_output().unwrap()
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_daemon_is_ready_serves_metrics_and_says_that_it_stops() {
    let dir = ground("");
    let metrics = dir.path().join("metrics.sock");
    let config = format!(
        "metrics_address = {:?}\nmetrics_network = 'unix'\nnonsense = 1\n",
        metrics.to_str().unwrap()
    );
    fs::write(dir.path().join("config.toml"), config).unwrap();
    let socket = dir.path().join("run/soci.sock");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let notify = manager(dir.path());
        let mut daemon = daemon(dir.path());
        daemon.arg("--address").arg(&socket);
        daemon.env("NOTIFY_SOCKET", dir.path().join("notify.sock"));
        let child = daemon.spawn().unwrap();
        assert_eq!(told(&notify), "READY=1");
        UnixStream::connect(&socket).unwrap();
        let page = get(&metrics, "/metrics");
        assert!(page.starts_with("HTTP/1.0 200"), "{page}");
        assert!(page.contains("process_open_fds "), "{page}");
        assert!(get(&metrics, "/other").starts_with("HTTP/1.0 404"));
        let output = stop(child, signal);
        assert_eq!(told(&notify), "STOPPING=1");
        assert!(output.status.success());
        assert!(!socket.exists());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("starting soci-snapshotter-grpc"), "{log}");
        assert!(
            log.contains("soci-snapshotter-grpc successfully started"),
            "{log}"
        );
        assert!(log.contains("\"key\":\"nonsense\""), "{log}");
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        fs::remove_file(dir.path().join("notify.sock")).unwrap();
    }
}

#[test]
fn the_socket_that_systemd_passes_is_served_and_left_in_place() {
    let dir = ground("");
    let socket = dir.path().join("passed.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let notify = manager(dir.path());
    let mut shell = Command::new("/bin/sh");
    // systemd passes descriptors from 3 on, and says to whom.
    let script = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&{}",
        listener.as_raw_fd()
    );
    shell.arg("-c").arg(script).arg(BINARY);
    shell.args(["--address", "fd://"]);
    with_arguments(&mut shell, dir.path());
    shell.env("NOTIFY_SOCKET", dir.path().join("notify.sock"));
    let child = shell.spawn().unwrap();
    assert_eq!(told(&notify), "READY=1");
    drop(listener);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    // The head of a SETTINGS frame.
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4);
    drop(stream);
    assert!(stop(child, Signal::SIGTERM).status.success());
    assert!(socket.exists());
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_with_file_and_line() {
    let dir = ground("debug = true\nmount_timeout_sec = 'soon'\n");
    let output = daemon(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("config.toml:2: "), "{log}");

    let dump = daemon(dir.path())
        .args(["config", "dump"])
        .output()
        .unwrap();
    assert_eq!(dump.status.code(), Some(1));
    let text = String::from_utf8(dump.stderr).unwrap();
    assert!(text.starts_with("soci-snapshotter-grpc: "), "{text}");
}

#[test]
fn the_configuration_in_effect_can_be_printed() {
    let dir = ground("[snapshotter]\nmin_layer_size = 77\n");
    let dump = daemon(dir.path())
        .args(["config", "dump"])
        .output()
        .unwrap();
    assert!(dump.status.success());
    let text = String::from_utf8(dump.stdout).unwrap();
    assert!(text.contains("min_layer_size = 77"), "{text}");
    let default = daemon(dir.path())
        .args(["config", "default"])
        .output()
        .unwrap();
    assert_eq!(default.stdout, include_bytes!("../config.toml"));
}

#[test]
fn a_daemon_without_the_rights_of_root_says_what_it_needs_and_ends() {
    for (wrapper, said) in [
        (
            &[
                "setpriv",
                "--bounding-set=-sys_admin",
                "--inh-caps=-sys_admin",
            ][..],
            "CAP_SYS_ADMIN",
        ),
        (
            &["unshare", "--user", "--map-root-user"][..],
            "user namespace",
        ),
    ] {
        let dir = ground("");
        let mut daemon = Command::new(wrapper[0]);
        daemon.args(&wrapper[1..]).arg(BINARY);
        with_arguments(&mut daemon, dir.path());
        let output = daemon.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(said) && log.contains("rootless"), "{log}");
        // Nothing was begun.
        assert!(!dir.path().join("root").exists());
    }
}
