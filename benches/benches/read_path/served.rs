//! The tree as a layer that the daemon's parts serve, with a registry in memory.

use std::fs;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use daemon::layer::{BlobSource, FetchError, Lane, Layer, LayerOptions, LayerStore, NewLayer};
use fuse::{MountOptions, Operation, Passthrough, Session, View};
use memmap2::{Advice, MmapMut};
use ztoc::builder::{BuildOptions, build, build_both};
use ztoc::{CompressedOffset, Compression, Digest, SpanId, SpanSize, compact};

use crate::tree::{LARGE, LARGE_SIZE, Tree};

/// Has the host give memory to a virtual machine that returned what it did not use: that takes ten times as long as the
/// kernel's own work for a fresh page, and says nothing of what is measured.
fn warm_memory() -> Result<()> {
    let mut memory = MmapMut::map_anon(512 << 20)?;
    // A kernel that has no huge pages gives others.
    let _ = memory.advise(Advice::HugePage);
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    Ok(())
}

/// The tree as an image has it.
pub(crate) struct Packed {
    pub(crate) blob: Bytes,
    ztoc: Bytes,
    digest: Digest,
}

/// In which form the layer is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Ztoc,
    Compact,
}

impl Form {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ztoc => "zTOC",
            Self::Compact => "compact zTOC",
        }
    }
}

/// A view of it, mounted.
pub(crate) struct Served {
    session: Session,
    pub(crate) layer: Arc<Layer>,
    store: LayerStore,
    root: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

/// A registry at the end of a line: answers share its bandwidth one after another.
struct Registry {
    blob: Bytes,
    line: Line,
    free: Mutex<Instant>,
}

/// What lies between a node and its registry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    /// Bytes a second; zero: no limit.
    pub(crate) rate: u64,
    /// From a request to the first byte of its answer.
    pub(crate) delay: Duration,
}

impl Line {
    /// How long `bytes` take by themselves.
    pub(crate) fn time(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(self.rate));
        Duration::from_nanos(
            nanos
                .and_then(|nanos| u64::try_from(nanos).ok())
                .unwrap_or(0),
        )
    }
}

#[async_trait]
impl BlobSource for Registry {
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        let at = |offset: CompressedOffset| usize::try_from(offset.0).unwrap_or(usize::MAX);
        let bytes = self.blob.slice(at(range.start)..at(range.end));
        let end = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free =
                (*free).max(Instant::now() + self.line.delay) + self.line.time(bytes.len() as u64);
            *free
        };
        tokio::time::sleep_until(end.into()).await;
        Ok(bytes)
    }
}

impl Packed {
    pub(crate) fn of(tree: &Tree) -> Result<Self> {
        let mut tar = tar::Builder::new(gzip());
        tar.append_dir_all("", &tree.root)?;
        Self::index(tar.into_inner()?.finish()?, Form::Ztoc)
    }

    /// So many empty files, two hundred to a directory.
    pub(crate) fn of_names(files: u32, form: Form) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut tar = tar::Builder::new(gzip());
        for file in 0..files {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_mtime(random.u64(1_500_000_000..1_700_000_000));
            let name = format!("usr/lib/part-{:04}/module_{file:06}.py", file / 200);
            tar.append_data(&mut header, name, std::io::empty())?;
        }
        Self::index(tar.into_inner()?.finish()?, form)
    }

    fn index(blob: Vec<u8>, form: Form) -> Result<Self> {
        let options = BuildOptions {
            span_size: SpanSize::new(4 << 20).context("no span size")?,
            build_tool: String::from("bench"),
        };
        let (built, ztoc) = match form {
            Form::Ztoc => {
                let built = build(Compression::Gzip, &*blob, &options)?;
                let ztoc = built.ztoc.encode();
                (built, ztoc)
            }
            Form::Compact => {
                let built = build_both(Compression::Gzip, &*blob, &options, compact::SPAN_SIZE)?;
                let ztoc = built.encode_compact().context("no compact zTOC")??;
                (built, ztoc)
            }
        };
        Ok(Self {
            ztoc: ztoc.into(),
            digest: built.layer_digest,
            blob: blob.into(),
        })
    }

    /// How long it takes to inflate all of it, from its first byte to its last, with the common decoder.
    pub(crate) fn gunzip(&self) -> Result<Duration> {
        let start = Instant::now();
        let mut plain = flate2::read::GzDecoder::new(&*self.blob);
        let mut buffer = vec![0; 1 << 20];
        while plain.read(&mut buffer)? > 0 {}
        Ok(start.elapsed())
    }
}

fn gzip() -> flate2::write::GzEncoder<Vec<u8>> {
    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6))
}

impl Served {
    /// Serves the layer from the end of `line`, with nothing local and nothing filled.
    pub(crate) fn start(packed: &Packed, place: &Path, name: &str, line: Line) -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let root = place.join(format!("{name}-root"));
        let store = LayerStore::start(&root, LayerOptions::default(), runtime.handle().clone())?;
        let layer = runtime.block_on(async {
            let new = NewLayer {
                layer: packed.digest,
                size: Some(packed.blob.len() as u64),
                ztoc: Digest::of(&packed.ztoc),
                bytes: packed.ztoc.clone(),
                image: String::from("bench"),
            };
            store.insert(new).await?;
            let source = Arc::new(Registry {
                blob: packed.blob.clone(),
                line,
                free: Mutex::new(Instant::now()),
            });
            store
                .open(&packed.digest, String::from("bench"), |_| source)
                .await
        })?;
        let session = mount(&layer, &place.join(name), &root)?;
        Ok(Self {
            session,
            layer,
            store,
            root: root.join(packed.digest.hex()),
            _runtime: runtime,
        })
    }

    /// Has all spans on the disk.
    pub(crate) fn fetch_all(&self) -> Result<()> {
        let all = self.layer.spans().count();
        self.layer.request(SpanId(0)..SpanId(all), Lane::Readahead);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.layer.spans_present() < all as usize {
            anyhow::ensure!(Instant::now() < deadline, "the spans do not come");
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::File::open(self.data())?.sync_all()?;
        Ok(())
    }

    /// Another mount of the same layer, of which the kernel knows nothing yet.
    pub(crate) fn mount_again(&self, place: &Path, name: &str) -> Result<Session> {
        mount(&self.layer, &place.join(name), place)
    }

    /// How long it takes to open the stored layer again and to mount it, and bytes of memory that its names take.
    pub(crate) fn reopen(self, packed: &Packed, place: &Path) -> Result<(Duration, usize)> {
        let root = self
            .root
            .parent()
            .context("a root has no parent")?
            .to_owned();
        drop(self);
        let runtime = tokio::runtime::Runtime::new()?;
        let store = LayerStore::start(&root, LayerOptions::default(), runtime.handle().clone())?;
        warm_memory()?;
        let start = Instant::now();
        let source = Arc::new(Registry {
            blob: Bytes::new(),
            line: Line::default(),
            free: Mutex::new(start),
        });
        let image = String::from("bench");
        let layer = runtime.block_on(store.open(&packed.digest, image, |_| source))?;
        let session = mount(&layer, &place.join("names-again"), &root)?;
        let took = start.elapsed();
        drop(session);
        Ok((took, layer.tree().memory()))
    }

    /// Another mount, in which the kernel reads the large file by itself, and that file; `None` if it cannot.
    pub(crate) fn mount_passing_through(
        &self,
        packed: &Packed,
        place: &Path,
    ) -> Result<Option<(Session, PathBuf)>> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*packed.blob).read_to_end(&mut plain)?;
        let diff_id = Digest::of(&plain);
        drop(plain);
        self.store
            .expect(packed.digest, async move { Some(diff_id) });
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut options = MountOptions::new(place);
        options.passthrough = Some(Passthrough {
            min_size: LARGE_SIZE,
            opens: place.join("opens"),
        });
        let session = mount_with(&self.layer, &place.join("through"), &options)?;
        if session.passthrough().is_none() {
            return Ok(None);
        }
        while session.counters().opens_passed_through() == 0 {
            anyhow::ensure!(Instant::now() < deadline, "the file is never made");
            std::thread::sleep(Duration::from_millis(20));
            let mut file = fs::File::open(session.mountpoint().join(LARGE))?;
            file.read_exact(&mut [0])?;
        }
        let own = fs::read_dir(self.root.join("files"))?.next();
        let own = own.context("the file has no name")??;
        Ok(Some((session, own.path())))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.session.mountpoint()
    }

    /// The file that its bytes lie in.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// What the kernel has asked for.
    pub(crate) fn requests(&self) -> u64 {
        let counters = self.session.counters();
        let all = Operation::ALL.iter();
        all.map(|operation| counters.requests(*operation)).sum()
    }
}

fn mount(layer: &Arc<Layer>, at: &Path, statfs: &Path) -> Result<Session> {
    mount_with(layer, at, &MountOptions::new(statfs))
}

fn mount_with(layer: &Arc<Layer>, at: &Path, options: &MountOptions) -> Result<Session> {
    fs::create_dir_all(at)?;
    let content = fuse::Layer {
        tree: Arc::clone(layer.tree()),
        content: Arc::clone(layer) as _,
    };
    let view = View::new(vec![content], false);
    fuse::mount(view, at, options).context("cannot mount a view; are you root?")
}
