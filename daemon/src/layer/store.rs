//! `<root>/layers`: one directory for each layer digest, and the layers that are open.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use ztoc::compact::CompactError;
use ztoc::error::DecodeError;
use ztoc::{Digest, SpanId};

use super::Layer;
use super::counters::LayerCounters;
use super::engine::{Engine, LayerOptions};
use super::proof;
use super::record::Origin;
use super::source::BlobSource;
use super::stored::{check, described, read_ztoc, write_synced};
use crate::registry::flight::Flights;
use crate::snapshot::directory;
use crate::snapshot::record::Usage;

/// Directories not yet, or no longer, a layer's; swept at start.
const UNFINISHED: &str = ".new-";
/// Largest zTOC read, in bytes. 33 KiB a span: enough for a layer of 64 GiB at the usual span size.
pub const MAX_ZTOC_SIZE: u64 = 512 << 20;
/// Largest span accepted, compressed or not, in bytes: it is decoded in memory.
pub(super) const MAX_SPAN: u64 = 256 << 20;
/// How long a layer may be prepared and not yet named by a snapshot.
const GRACE: Duration = Duration::from_secs(5);

/// The layers on this node.
#[derive(Debug, Clone)]
pub struct LayerStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    engine: Arc<Engine>,
    open: Mutex<HashMap<Digest, Weak<Layer>>>,
    /// Prepared, and not yet seen in use: not to be collected.
    fresh: Mutex<HashMap<Digest, Instant>>,
    opening: Flights<Digest, Result<Arc<Layer>, LayerError>>,
}

/// A layer to be stored.
#[derive(Debug, Clone)]
pub struct NewLayer {
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Size of the compressed layer, if its descriptor is known.
    pub size: Option<u64>,
    /// Digest of the zTOC.
    pub ztoc: Digest,
    /// The zTOC, verified against its digest. Of a compact one all of it or only its head.
    pub bytes: Bytes,
    /// The image it is prepared for.
    pub image: String,
}

/// Why a layer cannot be stored or opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer is not on this node.
    #[error("layer {0} is not stored here")]
    Missing(Digest),
    /// Its files could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The stored zTOC is not the one that was stored.
    #[error("the zTOC of layer {layer} on disk is damaged")]
    Damaged {
        /// The layer.
        layer: Digest,
    },
    /// The layer is not what the image says, though its spans are what this zTOC says.
    #[error(
        "layer {layer} is quarantined: its zTOC {ztoc} describes other bytes than the image names"
    )]
    Quarantined {
        /// The layer.
        layer: Digest,
        /// The zTOC.
        ztoc: Digest,
    },
    /// The bytes are no zTOC.
    #[error("zTOC {ztoc} of layer {layer}: {source}")]
    Ztoc {
        /// The layer.
        layer: Digest,
        /// The zTOC.
        ztoc: Digest,
        /// What is wrong.
        source: Box<DecodeError>,
    },
    /// The bytes are no compact zTOC.
    #[error("compact zTOC {ztoc} of layer {layer}: {source}")]
    Compact {
        /// The layer.
        layer: Digest,
        /// The compact zTOC.
        ztoc: Digest,
        /// What is wrong.
        source: Box<CompactError>,
    },
    /// The compact zTOC says that it is of another layer.
    #[error("compact zTOC {ztoc} is for layer {actual}, not for {layer}")]
    OtherLayer {
        /// The layer.
        layer: Digest,
        /// The compact zTOC.
        ztoc: Digest,
        /// The layer it is for.
        actual: Digest,
    },
    /// The zTOC is of another layer.
    #[error("the zTOC describes a layer of {actual} bytes, but layer {layer} has {expected}")]
    Size {
        /// The layer.
        layer: Digest,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes by the zTOC.
        actual: u64,
    },
    /// A span is too large to be decoded in memory.
    #[error(
        "span {span} of layer {layer} has {bytes} bytes, more than the {MAX_SPAN} accepted; \
             build the index with a smaller span size"
    )]
    Span {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// Its size, the larger of compressed and not.
        bytes: u64,
    },
}

impl LayerStore {
    /// The store at `root`, made if missing and swept of unfinished work. Fetches run on `runtime`. Blocks
    /// on file I/O.
    pub fn start(root: &Path, options: LayerOptions, runtime: Handle) -> Result<Self, LayerError> {
        let failed = |source| io_error(root, source);
        fs::create_dir_all(root).map_err(failed)?;
        sweep(root).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                engine: Arc::new(Engine::start(root, options, runtime).map_err(failed)?),
                open: Mutex::default(),
                fresh: Mutex::default(),
                opening: Flights::new(),
            }),
        })
    }

    /// Gives up all fetches and waits until they are gone; what is local can still be read.
    pub async fn stop(&self) {
        self.shared.engine.stop().await;
    }

    /// The digest of the zTOC that is stored for `layer`. Blocks on file I/O, briefly.
    pub fn stored(&self, layer: &Digest) -> Option<Digest> {
        let dir = self.shared.dir(layer);
        let ztoc = Origin::read(&dir.join("origin"), layer).ok()?.ztoc();
        dir.join("ztoc").metadata().ok()?;
        if proof::is_quarantined(&dir) {
            return None;
        }
        self.shared.fresh.lock().insert(*layer, Instant::now());
        Some(ztoc)
    }

    /// Whether the stored zTOC describes a layer of `size` compressed bytes; what is not stored, and an
    /// unknown size, pass.
    pub async fn check_size(&self, layer: &Digest, size: Option<u64>) -> Result<(), LayerError> {
        let shared = Arc::clone(&self.shared);
        let (layer, Some(expected)) = (*layer, size) else {
            return Ok(());
        };
        blocking(
            move || match Origin::read(&shared.dir(&layer).join("origin"), &layer) {
                Ok(origin) if origin.size() != expected => Err(LayerError::Size {
                    layer,
                    expected,
                    actual: origin.size(),
                }),
                _ => Ok(()),
            },
        )
        .await
    }

    /// Checks a zTOC and stores it. Nothing changes if the layer is stored already, with whichever zTOC.
    pub async fn insert(&self, new: NewLayer) -> Result<(), LayerError> {
        let shared = Arc::clone(&self.shared);
        shared.fresh.lock().insert(new.layer, Instant::now());
        blocking(move || shared.insert(&new)).await
    }

    /// Forgets what is stored for a layer, so that it can be inserted anew. A layer that is open goes on.
    pub async fn remove(&self, layer: &Digest) -> Result<(), LayerError> {
        let shared = Arc::clone(&self.shared);
        let layer = *layer;
        blocking(move || shared.remove(&layer)).await
    }

    /// The layer, opened from disk if it is not open. `source` makes the source of `image` for a blob of
    /// the size given. No network is asked.
    pub async fn open(
        &self,
        layer: &Digest,
        image: String,
        source: impl FnOnce(u64) -> Arc<dyn BlobSource>,
    ) -> Result<Arc<Layer>, LayerError> {
        let open = self.opened(layer);
        let open = match open {
            Some(open) => open,
            None => self.open_from_disk(*layer).await?,
        };
        self.shared.fresh.lock().remove(layer);
        let source = source(open.spans().compressed_size());
        open.sources.add(image, source);
        Ok(open)
    }

    fn opened(&self, layer: &Digest) -> Option<Arc<Layer>> {
        self.shared.open.lock().get(layer)?.upgrade()
    }

    async fn open_from_disk(&self, layer: Digest) -> Result<Arc<Layer>, LayerError> {
        let work = || {
            let shared = Arc::clone(&self.shared);
            blocking(move || shared.open(layer))
        };
        self.shared.opening.join(layer, work).await
    }

    /// Deletes the layers that are not in `live`, except those that are open or were just prepared. Whether there are
    /// such.
    pub async fn retain(&self, live: &BTreeSet<Digest>) -> bool {
        let shared = Arc::clone(&self.shared);
        let live = live.clone();
        let busy = blocking(move || Ok(shared.retain(&live))).await;
        busy.unwrap_or_default()
    }

    /// Learns from `find` what the digest of all of a layer is, uncompressed, unless that is known: it is
    /// proven once everything is here. Not done where nothing is filled.
    pub fn expect(
        &self,
        layer: Digest,
        find: impl Future<Output = Option<Digest>> + Send + 'static,
    ) {
        if self.shared.engine.filler.is_none() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.shared.engine.spawn(async move {
            let dir = shared.dir(&layer);
            let known = dir.clone();
            let known = blocking(move || Ok(proof::is_expected(&known))).await;
            if matches!(known, Ok(true)) {
                return;
            }
            let Some(diff_id) = find.await else { return };
            let noted = blocking(move || {
                proof::expect(&dir, &diff_id).map_err(|source| io_error(&dir, source))
            });
            if let Err(error) = noted.await {
                tracing::debug!(%layer, "the layer's diff ID is not kept: {error}");
            }
            let open = shared.open.lock().get(&layer).and_then(Weak::upgrade);
            if let Some(open) = open {
                open.expect(diff_id);
            }
        });
    }

    /// Has the rest of these layers fetched in the background, in this order, as far as they are open.
    pub fn fill_up(&self, layers: &[Digest]) {
        for layer in layers.iter().filter_map(|layer| self.opened(layer)) {
            layer.fill_up();
        }
    }

    /// What a layer takes on disk: its spans that are here, its zTOC, its records. Nothing if it is not
    /// stored. Blocks on file I/O.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub fn usage(&self, layer: &Digest) -> io::Result<Usage> {
        match directory::usage(&self.shared.dir(layer)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Usage::default()),
            measured => measured,
        }
    }

    /// Plain bytes of all layers on disk.
    pub fn bytes_cached(&self) -> u64 {
        self.shared.engine.ledger.used()
    }

    /// Takes over what of `options` can change while it runs: how the rest of layers is fetched, and how much may be
    /// on disk. `false` if a fill that was off at the start has to wait for the next one. Blocks on file I/O.
    pub fn reconfigure(&self, options: &LayerOptions) -> bool {
        self.shared.engine.reconfigure(options)
    }

    /// Layers that wait to be filled or are being filled; layers that were turned away as too many waited.
    pub fn filling(&self) -> (usize, u64) {
        let filler = self.shared.engine.filler.as_ref();
        filler.map_or((0, 0), |filler| (filler.waiting(), filler.turned_away()))
    }

    /// The counters of all open layers.
    pub fn counters(&self) -> Vec<(Digest, LayerCounters)> {
        let layers = self.open_layers();
        let counted = layers
            .iter()
            .map(|layer| (layer.digest(), layer.counters()));
        counted.collect()
    }

    /// The layers that are open.
    pub fn open_layers(&self) -> Vec<Arc<Layer>> {
        let open = self.shared.open.lock();
        open.values().filter_map(Weak::upgrade).collect()
    }
}

impl Shared {
    fn dir(&self, layer: &Digest) -> PathBuf {
        self.root.join(layer.hex())
    }

    fn insert(&self, new: &NewLayer) -> Result<(), LayerError> {
        let dir = self.dir(&new.layer);
        if let Ok(stored) = Origin::read(&dir.join("origin"), &new.layer) {
            if !proof::is_quarantined(&dir) {
                return Ok(());
            }
            refuse_again(new, stored.ztoc())?;
            self.remove(&new.layer)?;
        }
        let origin = described(new)?;
        self.write(&dir, new, &origin)
            .map_err(|source| io_error(&dir, source))
    }

    fn write(&self, dir: &Path, new: &NewLayer, origin: &Origin) -> io::Result<()> {
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.root)?;
        let text = origin.to_text()?;
        write_synced(
            &unfinished.path().join("ztoc"),
            &new.bytes,
            origin.blob_len(),
        )?;
        write_synced(&unfinished.path().join("origin"), text.as_bytes(), None)?;
        match fs::rename(unfinished.path(), dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                if Origin::read(&dir.join("origin"), &new.layer).is_ok() {
                    return Ok(());
                }
                // What is there is no layer: nobody can have it open.
                fs::remove_dir_all(dir)?;
                fs::rename(unfinished.path(), dir)?;
            }
            renamed => renamed?,
        }
        // It has its name; there is nothing left to remove under the old one.
        let _ = unfinished.keep();
        File::open(&self.root)?.sync_all()
    }

    fn remove(&self, layer: &Digest) -> Result<(), LayerError> {
        let dir = self.dir(layer);
        self.open.lock().remove(layer);
        discard(&self.root, &dir).map_err(|source| io_error(&dir, source))?;
        self.engine.ledger.deleted(layer);
        Ok(())
    }

    fn open(&self, layer: Digest) -> Result<Arc<Layer>, LayerError> {
        if let Some(open) = self.open.lock().get(&layer).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let dir = self.dir(&layer);
        let stored = read_ztoc(&dir, &layer)?;
        let ztoc = stored.record.ztoc();
        if proof::is_quarantined(&dir) {
            return Err(LayerError::Quarantined { layer, ztoc });
        }
        let (tree, spans, windows) = stored.decode(&layer)?;
        check(&layer, None, &spans)?;
        let tree = Arc::new(tree);
        let spans = (spans, windows);
        let opened = Layer::open(&dir, layer, &ztoc, spans, tree, Arc::clone(&self.engine))
            .map_err(|source| io_error(&dir, source))?;
        self.engine.ledger.opened(&opened);
        let mut open = self.open.lock();
        open.retain(|_, layer| layer.strong_count() > 0);
        open.insert(layer, Arc::downgrade(&opened));
        Ok(opened)
    }

    fn retain(&self, live: &BTreeSet<Digest>) -> bool {
        self.fresh
            .lock()
            .retain(|layer, since| !live.contains(layer) && since.elapsed() < GRACE);
        let Ok(entries) = fs::read_dir(&self.root) else {
            return false;
        };
        let mut busy = false;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let layer = name
                .to_str()
                .and_then(|hex| format!("sha256:{hex}").parse().ok());
            let Some(layer) = layer.filter(|layer: &Digest| !live.contains(layer)) else {
                continue;
            };
            if self.in_use(&layer) {
                busy = true;
                continue;
            }
            match discard(&self.root, &entry.path()) {
                Ok(()) => self.engine.ledger.deleted(&layer),
                Err(error) => {
                    let path = entry.path();
                    tracing::warn!(path = %path.display(), "cannot delete a layer's cache: {error}");
                }
            }
        }
        busy
    }

    fn in_use(&self, layer: &Digest) -> bool {
        let open = self
            .open
            .lock()
            .get(layer)
            .is_some_and(|layer| layer.strong_count() > 0);
        open || self.fresh.lock().contains_key(layer)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LayerError> + Send + 'static,
) -> Result<T, LayerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io_error(Path::new("layers"), io::Error::other(error))))
}

pub(super) fn io_error(path: &Path, source: io::Error) -> LayerError {
    LayerError::Io {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

/// A quarantined layer may be stored anew by another zTOC.
fn refuse_again(new: &NewLayer, stored: Digest) -> Result<(), LayerError> {
    if new.ztoc != stored {
        return Ok(());
    }
    Err(LayerError::Quarantined {
        layer: new.layer,
        ztoc: stored,
    })
}

/// Renames `dir` away at once, then deletes it.
fn discard(root: &Path, dir: &Path) -> io::Result<()> {
    let doomed = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(root)?;
    match fs::rename(dir, doomed.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => {
            renamed?;
            doomed.close()
        }
    }
}

fn sweep(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
