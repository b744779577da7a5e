//! The configuration read again while the daemon runs.

use std::path::PathBuf;

use parking_lot::Mutex;

use super::Config;

/// Reads the file again and says what came of it.
#[derive(Debug)]
pub struct Reloader {
    path: Option<PathBuf>,
    current: Mutex<Config>,
}

impl Reloader {
    /// `config` is in effect, and was read from `path` or the default file.
    pub fn new(path: Option<PathBuf>, config: Config) -> Self {
        let current = Mutex::new(config);
        Self { path, current }
    }

    /// Reads the file and hands what is new in it to `apply`: what is in effect, with the tables that can change
    /// while the daemon runs (`background_fetch`, `layer_cache`) as the file has them. `apply` answers whether all
    /// of it holds from now on. A file that is malformed changes nothing. All of it is logged. Blocks on file I/O.
    pub fn reload(&self, apply: impl FnOnce(&Config) -> bool) {
        let (read, unknown) = match Config::load(self.path.as_deref()) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!("the configuration stays as it is: {error}");
                return;
            }
        };
        for key in unknown {
            let (key, line) = (key.key, key.line);
            tracing::warn!(key, line, "unknown configuration key is ignored");
        }
        let (next, changed, later) = {
            let mut current = self.current.lock();
            let next = current.with_live_tables_of(&read);
            let changed = *current != next;
            current.clone_from(&next);
            let later = next != read;
            (next, changed, later)
        };
        let whole = !changed || apply(&next);
        tracing::info!(changed, "the configuration has been read again");
        if later || !whole {
            tracing::warn!(
                "other changes in the configuration take effect when the daemon is started again, which leaves \
                 everything mounted: systemctl restart soci-snapshotter"
            );
        }
    }
}

impl Config {
    /// This one, with what can change while the daemon runs from `read`.
    fn with_live_tables_of(&self, read: &Self) -> Self {
        Self {
            background_fetch: read.background_fetch.clone(),
            layer_cache: read.layer_cache.clone(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn what_can_change_is_applied_once_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("");
        let (config, _) = Config::load(Some(&path)).unwrap();
        let reloader = Reloader::new(Some(path.clone()), config);
        let applied = || {
            let mut applied = None;
            reloader.reload(|config| {
                applied = Some((config.layer_cache.max_size.bytes, config.mount_timeout_sec));
                true
            });
            applied
        };
        assert_eq!(applied(), None);
        // The other change waits for the next start.
        write("mount_timeout_sec = 5\n[layer_cache]\nmax_size = \"1mb\"\n");
        assert_eq!(applied(), Some((1 << 20, 30)));
        assert_eq!(applied(), None);
        write("[layer_cache]\nmax_size = \"lots\"\n");
        assert_eq!(applied(), None);
        write("");
        assert_eq!(applied(), Some((0, 30)));
    }
}
