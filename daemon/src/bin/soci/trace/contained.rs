//! A command in an image's root file system: namespaces of its own, the network of this machine.
//!
//! Done by `unshare` and `mount` of util-linux, which every system has: a record of reads needs the image's
//! files under the command, not what else a container runtime gives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::Deserialize;
use tokio::process::{Child, Command};

/// Runs in a mount namespace of its own: what is mounted here ends with the command.
const ENTER: &str = r#"
unshare=$1 mount=$2 root=$3 directory=$4 user=$5 group=$6
shift 6
"$mount" -t proc proc "$root/proc"
"$mount" --rbind /dev "$root/dev"
"$mount" --rbind -o ro /sys "$root/sys"
for file in resolv.conf hosts; do
    if [ -f "/etc/$file" ] && [ -f "$root/etc/$file" ] && [ ! -h "$root/etc/$file" ]; then
        "$mount" --bind "/etc/$file" "$root/etc/$file"
    fi
done
exec "$unshare" --root="$root" --wd="$directory" --setgid="$group" --setuid="$user" -- "$@"
"#;
/// Larger lists of users are not read, in bytes.
const MOST_USERS: u64 = 1 << 20;

/// What the image's configuration says of its processes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ProcessConfig {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ImageConfig {
    config: Option<ProcessConfig>,
}

impl ProcessConfig {
    /// Reads an image's configuration.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let config: ImageConfig =
            serde_json::from_slice(json).context("the image's configuration is malformed")?;
        Ok(config.config.unwrap_or_default())
    }

    fn environment(&self) -> BTreeMap<&str, &str> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut environment = BTreeMap::from([("PATH", path), ("HOME", "/root")]);
        let given = self.env.iter().flatten();
        environment.extend(given.filter_map(|it| it.split_once('=')));
        environment
    }
}

/// Starts `command` in `root`, whose names nobody else changes. It is killed when the child is dropped.
pub(super) fn start(root: &Path, config: &ProcessConfig, command: &[OsString]) -> Result<Child> {
    for name in ["proc", "dev", "sys", "etc"] {
        let path = root.join(name);
        if std::fs::symlink_metadata(&path).is_err() {
            std::fs::create_dir(&path).with_context(|| format!("cannot make /{name}"))?;
        }
        // A mount would follow a link out of the root.
        ensure!(
            std::fs::symlink_metadata(&path)?.is_dir(),
            "/{name} of the image is no directory: nothing can be run in it"
        );
    }
    let (user, group) = user_of(root, config.user.as_deref().unwrap_or_default())?;
    let directory = config.working_dir.as_deref().filter(|it| !it.is_empty());
    let unshare = tool("unshare")?;
    Command::new(&unshare)
        .args([
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
        ])
        .args(["--", "/bin/sh", "-euc", ENTER, "sh"])
        .args([&unshare, &tool("mount")?])
        .arg(root)
        .arg(directory.unwrap_or("/"))
        .args([user.to_string(), group.to_string()])
        .args(command)
        .env_clear()
        .envs(config.environment())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start unshare")
}

/// Where the program is: the command's own `PATH` is that of the image.
fn tool(name: &str) -> Result<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {name}: install the package util-linux"))
}

/// The numbers of `USER[:GROUP]`, each a name or a number.
fn user_of(root: &Path, text: &str) -> Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let listed = if user.is_empty() {
        Some((0, Some(0)))
    } else {
        user.parse().ok().map(|number| (number, None))
    };
    let (user, own_group) = match listed {
        Some(found) => found,
        None => {
            let fields = listed_in(root, "etc/passwd", user)?;
            (fields.0, fields.1)
        }
    };
    let group = match group.filter(|it| !it.is_empty()) {
        None => own_group.unwrap_or(0),
        Some(group) => match group.parse() {
            Ok(number) => number,
            Err(_) => listed_in(root, "etc/group", group)?.0,
        },
    };
    Ok((user, group))
}

/// The third and, if there is one, fourth field of the line that begins with `name`.
fn listed_in(root: &Path, file: &str, name: &str) -> Result<(u32, Option<u32>)> {
    let place = || format!("{name}: cannot be found in /{file} of the image");
    let within = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let opened = openat2(&within, file, how).with_context(place)?;
    let mut text = String::new();
    File::from(opened)
        .take(MOST_USERS)
        .read_to_string(&mut text)
        .with_context(place)?;
    let numbers = |line: &str| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        let mut number = fields.skip(1).map(|it| it.parse().ok());
        found.then(|| {
            number
                .next()
                .flatten()
                .map(|id| (id, number.next().flatten()))
        })?
    };
    text.lines().find_map(numbers).with_context(place)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn users_are_names_of_the_image_or_numbers() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:12:34::/:/bin/sh\nbad:x:y:z\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.path().join("etc/group"), "staff:x:50:\n").unwrap();
        for (text, ids) in [
            ("", (0, 0)),
            ("7", (7, 0)),
            ("7:8", (7, 8)),
            ("app", (12, 34)),
            ("app:staff", (12, 50)),
            ("7:staff", (7, 50)),
        ] {
            assert_eq!(user_of(root.path(), text).unwrap(), ids, "{text}");
        }
        for text in ["bad", "nobody", "app:nobody"] {
            user_of(root.path(), text).unwrap_err();
        }
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_to_the_users_of_this_machine() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        user_of(root.path(), "root").unwrap_err();
        std::fs::remove_dir_all(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("etc")).unwrap();
        user_of(root.path(), "root").unwrap_err();
        let error = start(root.path(), &ProcessConfig::default(), &["true".into()]).unwrap_err();
        assert!(error.to_string().contains("/etc of the image"), "{error}");
    }
}
