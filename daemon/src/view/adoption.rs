//! A new daemon goes on with the views of the one before.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuse::{IdMapping, KernelOffer, Session};
use futures::StreamExt as _;

use super::key::Key;
use super::record::{RecordError, ViewRecord};
use super::{Shared, sweep};
use crate::error::chain;
use crate::snapshot::images::{LazyLayer, MountError};

/// Views whose layers are opened at the same time.
const OPENING: usize = 8;

/// A view that an earlier daemon left.
#[derive(Debug)]
struct Left {
    path: PathBuf,
    device: OwnedFd,
    offer: KernelOffer,
    layers: Vec<LazyLayer>,
    below: Vec<PathBuf>,
    ids: Option<IdMapping>,
    passthrough: Option<u64>,
}

/// Why a view cannot be adopted.
#[derive(Debug, thiserror::Error)]
enum NotAdopted {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("nothing is mounted there any more")]
    NotMounted,
    #[error("nobody kept its descriptor")]
    NotKept,
    #[error("a view below it could not be adopted")]
    Below,
    #[error(transparent)]
    Layers(#[from] MountError),
    #[error("the connection cannot be taken over")]
    Kernel(#[source] io::Error),
}

/// See [`super::Views::adopt`].
pub(super) async fn adopt<F>(
    shared: &Arc<Shared>,
    open: impl Fn(LazyLayer) -> F,
) -> io::Result<usize>
where
    F: Future<Output = Result<fuse::Layer, MountError>>,
{
    let this = Arc::clone(shared);
    let found = tokio::task::spawn_blocking(move || find(&this));
    let found = found.await.map_err(io::Error::other)??;
    let opened = futures::stream::iter(found)
        .map(|(path, left)| async {
            let opened = match left {
                Ok(left) => open_layers(left, &open).await,
                Err(why) => Err(why),
            };
            (path, opened)
        })
        // In order: a view is mounted later than those below it.
        .buffered(OPENING)
        .collect::<Vec<_>>()
        .await;
    let this = Arc::clone(shared);
    let serve = move || serve(&this, opened);
    let adopted = tokio::task::spawn_blocking(serve).await;
    let adopted = adopted.map_err(io::Error::other)?;
    let count = adopted.len();
    shared.mounted.adopt(adopted);
    Ok(count)
}

/// All that is left of views, by number.
fn find(shared: &Shared) -> io::Result<Vec<(PathBuf, Result<Left, NotAdopted>)>> {
    sweep::remove_unfinished(&shared.root)?;
    let keeper = &shared.after.keeper;
    let kept = keeper.kept().unwrap_or_else(|error| {
        tracing::error!("the descriptors of mounted views cannot be had: {error}");
        Vec::new()
    });
    let mut kept: HashMap<String, OwnedFd> = kept.into_iter().collect();
    let mut found = Vec::new();
    for number in sweep::numbers(&shared.root)? {
        let path = shared.root.join(number.to_string());
        let device = kept.remove(&sweep::kept_name(&path));
        let left = look(&path, device);
        found.push((path, left));
    }
    for (name, descriptor) in kept {
        // Its daemon died before anybody was told of the view, or after it was unmounted.
        drop(descriptor);
        if let Err(error) = keeper.forget(&name) {
            tracing::warn!(name, "a descriptor without a view is still kept: {error}");
        }
    }
    Ok(found)
}

fn look(path: &Path, device: Option<OwnedFd>) -> Result<Left, NotAdopted> {
    let mounted = fuse::device_number_at(path).map_err(RecordError::Io)?;
    let record = ViewRecord::read(&sweep::record_path(path));
    if mounted.is_none() {
        return Err(NotAdopted::NotMounted);
    }
    let record = record?;
    if mounted != Some(record.device_number) {
        return Err(NotAdopted::NotMounted);
    }
    Ok(Left {
        path: path.to_owned(),
        device: device.ok_or(NotAdopted::NotKept)?,
        offer: record.offer()?,
        layers: record.layers()?,
        ids: record.ids()?,
        passthrough: record.passthrough(),
        below: record.below,
    })
}

async fn open_layers<F>(
    left: Left,
    open: impl Fn(LazyLayer) -> F,
) -> Result<(Left, Vec<fuse::Layer>), NotAdopted>
where
    F: Future<Output = Result<fuse::Layer, MountError>>,
{
    let opened = left.layers.iter().cloned().map(open);
    let layers = futures::future::try_join_all(opened).await?;
    Ok((left, layers))
}

type Opened = (PathBuf, Result<(Left, Vec<fuse::Layer>), NotAdopted>);

/// Serves the views that can be served, and takes the others off.
fn serve(shared: &Shared, opened: Vec<Opened>) -> Vec<Arc<super::Mounted>> {
    let mut adopted = Vec::new();
    let mut lost: Vec<PathBuf> = Vec::new();
    for (path, opened) in opened {
        let served = opened.and_then(|(left, layers)| {
            if left.below.iter().any(|below| lost.contains(below)) {
                return Err(NotAdopted::Below);
            }
            let key = Key {
                layers: left.layers.iter().map(|layer| layer.digest).collect(),
                below: left.below.clone(),
                ids: left.ids.clone(),
            };
            let session = take_over(shared, &key, left, layers).map_err(NotAdopted::Kernel)?;
            Ok((key, session))
        });
        match served {
            Ok((key, session)) => adopted.push(shared.publish(key, path, session)),
            Err(why) => {
                give_up(shared, &path, &why);
                lost.push(path);
            }
        }
    }
    adopted
}

fn take_over(
    shared: &Shared,
    key: &Key,
    left: Left,
    layers: Vec<fuse::Layer>,
) -> io::Result<Session> {
    let Left {
        path,
        device,
        offer,
        passthrough,
        ..
    } = left;
    let view = key.view(layers, &shared.root)?;
    let options = shared.options_at(&path, passthrough);
    fuse::adopt(view, &path, device, offer, &options)
}

fn give_up(shared: &Shared, path: &Path, why: &NotAdopted) {
    let was_mounted = fuse::detach_all(path);
    sweep::remove(path);
    if let Err(error) = shared.after.keeper.forget(&sweep::kept_name(path)) {
        tracing::warn!(path = %path.display(), "an abandoned view's descriptor is still kept: {error}");
    }
    if was_mounted {
        tracing::error!(
            path = %path.display(),
            error = chain(why),
            "a mounted view cannot be adopted and is taken off; containers that use it must be started again"
        );
    } else {
        // After a reboot all of them are like this: they are mounted again when asked for.
        tracing::info!(path = %path.display(), "a view of an earlier daemon is not mounted any more");
    }
}
