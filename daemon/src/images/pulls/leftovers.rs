//! Layers that an earlier daemon finished and that nobody had asked for yet.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::unpack::{Expected, Unpacked};

/// They are deleted a while after the start, or left to the next daemon if this one ends before.
#[derive(Debug)]
pub(super) struct Leftovers {
    found: Mutex<Vec<Unpacked>>,
}

impl Leftovers {
    /// What is in `dir`, which is made if it is missing; `tasks` see to its end. What was not finished is removed.
    pub(super) fn start(
        dir: &Path,
        keep: Duration,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(dir)?;
        let (mut found, mut halves) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            match Unpacked::find(&path) {
                Some(unpacked) => found.push(unpacked),
                None => halves.push(path),
            }
        }
        if !halves.is_empty() {
            tasks.spawn_blocking(move || remove(halves));
        }
        let kept = found.len();
        let leftovers = Arc::new(Self {
            found: Mutex::new(found),
        });
        if kept > 0 {
            tracing::info!(kept, "layers that an earlier daemon has unpacked are kept");
            let (owned, blocking) = (Arc::clone(&leftovers), tasks.clone());
            tasks.spawn(async move {
                let over = tokio::time::timeout(keep, stop.cancelled()).await.is_err();
                let unused = std::mem::take(&mut *owned.found.lock());
                if over {
                    blocking.spawn_blocking(move || drop(unused));
                } else {
                    unused.into_iter().for_each(Unpacked::leave);
                }
            });
        }
        Ok(leftovers)
    }

    /// The layer expected, for this place in an image.
    pub(super) fn take(&self, expected: Expected, lowest: bool) -> Option<Unpacked> {
        let mut found = self.found.lock();
        let fits = |left: &Unpacked| left.is(expected) && left.is_lowest() == lowest;
        let at = found.iter().position(fits)?;
        Some(found.swap_remove(at))
    }
}

fn remove(halves: Vec<PathBuf>) {
    for path in halves {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "a half unpacked layer stays");
        }
    }
}
