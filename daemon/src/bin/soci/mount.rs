//! `soci mount`: an image, lazily, anywhere; without containerd and without the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use daemon::control::overlay::Overlay;
use fuse::{MountOptions, Session, View};
use nix::mount::{MntFlags, MsFlags, umount2};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::lazy::{ImageArguments, LazyImage, Opened, State, view_layers};
use crate::options::Globals;
use crate::progress::Progress;

/// How soon it is noticed that somebody else unmounted.
const INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    image: ImageArguments,
    /// Where: an empty directory
    directory: PathBuf,
    /// Writable; what is written lies in the state directory
    #[arg(long)]
    rw: bool,
    /// Directory for what is fetched and written, kept for the next time [default: temporary]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

pub(crate) async fn run(globals: &Globals, arguments: &Arguments) -> Result<()> {
    let progress = Progress::new(globals.json);
    ensure_root()?;
    let directory = empty_directory(&arguments.directory)?;
    let state = State::open(arguments.state.as_deref())?;
    let image = LazyImage::find(
        &arguments.image.image,
        &arguments.image.options,
        state.path(),
        true,
        progress.clone(),
    )
    .await?;
    let opened = image.open_all().await?;
    let mounted = Mounted::of(&opened, &directory, state.path(), arguments.rw).await?;
    let mut terminated = signal(SignalKind::terminate())?;
    progress.result(
        &format!(
            "{} is mounted at {}; Ctrl-C unmounts it",
            image.name,
            directory.display()
        ),
        &json!({"event": "mounted", "image": image.name, "directory": directory}),
    );
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
        () = mounted.gone() => {}
    }
    tokio::task::spawn_blocking(move || drop(mounted)).await?;
    let (requests, fetched) = image.fetched();
    progress.result(
        &format!("unmounted; {fetched} bytes were fetched in {requests} requests"),
        &json!({"event": "unmounted", "fetched": fetched, "requests": requests}),
    );
    image.stop().await;
    Ok(())
}

pub(crate) fn ensure_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mounting takes root; run it with sudo"
    );
    Ok(())
}

fn empty_directory(path: &Path) -> Result<PathBuf> {
    let look = || -> std::io::Result<(PathBuf, bool)> {
        let path = path.canonicalize()?;
        let empty = std::fs::read_dir(&path)?.next().is_none();
        Ok((path, empty))
    };
    let (path, empty) = look().with_context(|| format!("cannot mount at {}", path.display()))?;
    ensure!(
        empty,
        "{} is not empty; mount on an empty directory",
        path.display()
    );
    Ok(path)
}

/// A mounted image; unmounted when dropped, which blocks.
pub(crate) struct Mounted {
    pub(crate) session: Session,
    /// The writable overlay on top.
    overlay: Option<PathBuf>,
}

impl Mounted {
    /// Mounts the image of these layers at `directory`. What is written lies in `state`, if it is `writable`.
    pub(crate) async fn of(
        opened: &Opened,
        directory: &Path,
        state: &Path,
        writable: bool,
    ) -> Result<Self> {
        let view = View::new(view_layers(opened), false);
        let (directory, state) = (directory.to_owned(), state.to_owned());
        let mount = move || Self::new(view, &directory, &state, writable);
        tokio::task::spawn_blocking(mount).await?
    }

    fn new(view: View, directory: &Path, state: &Path, writable: bool) -> Result<Self> {
        let options = MountOptions::new(state);
        if !writable {
            let session = fuse::mount(view, directory, &options).with_context(|| {
                format!(
                    "cannot mount at {}; soci doctor tells more",
                    directory.display()
                )
            })?;
            return Ok(Self {
                session,
                overlay: None,
            });
        }
        let state = state.canonicalize()?;
        let [lower, upper, work] = ["view", "upper", "work"].map(|name| state.join(name));
        for path in [&lower, &upper, &work] {
            std::fs::create_dir_all(path)?;
        }
        let mut mounted = Self {
            session: fuse::mount(view, &lower, &options).context("cannot mount the image")?,
            overlay: None,
        };
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let flags = MsFlags::empty();
        nix::mount::mount(
            Some("overlay"),
            directory,
            Some("overlay"),
            flags,
            Some(&*data),
        )
        .with_context(|| {
            format!(
                "cannot mount an overlay at {}; can {} hold one?",
                directory.display(),
                state.display()
            )
        })?;
        mounted.overlay = Some(directory.to_owned());
        Ok(mounted)
    }

    /// Until somebody else unmounts it.
    async fn gone(&self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let overlay_gone = self.overlay.as_ref().is_some_and(|path| {
                Overlay::all()
                    .iter()
                    .all(|overlay| overlay.mountpoint != *path)
            });
            if overlay_gone || !self.session.is_alive() {
                return;
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(path) = &self.overlay {
            // Gone already if somebody else unmounted it.
            let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}
