//! One machine with everything on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::busybox;
use crate::command::{command, run, until};
use crate::containerd::Containerd;
use crate::ctr::Ctr;
use crate::distribution::DockerRegistry;
use crate::image::{Image, Layer, Layout, sha256};
use crate::push::push;
use crate::scratch::Scratch;
use crate::snapshotter::{Snapshotter, Soci};
use crate::walk::{Tree, walk};

/// Configuration under which only what is read is fetched, so that bytes can be counted.
pub const ON_DEMAND: &str = "[background_fetch]\ndisable = true\n";

/// On demand only, and quick to give up: what is waited for here is an error.
pub const IMPATIENT: &str = "[background_fetch]
disable = true
[http]
MaxRetries = 2
MinWaitMsec = 10
MaxWaitMsec = 50
ResponseHeaderTimeoutMsec = 1000
[blob]
max_retries = 2
min_wait_msec = 10
max_wait_msec = 50
fetching_timeout_sec = 5
";

/// Options of `soci create` and `convert` for small layers: spans of 64 KiB, none left out. Without compact zTOCs, whose
/// tests are in `compact.rs`.
pub const SMALL_SPANS: [&str; 6] = [
    "--span-size",
    "65536",
    "--min-layer-size",
    "0",
    "--compact",
    "no",
];

/// A registry, a containerd and our snapshotter behind it. The fields are dropped in this order.
#[derive(Debug)]
pub struct Host {
    /// containerd.
    pub containerd: Containerd,
    /// The daemon.
    pub snapshotter: Snapshotter,
    /// The registry.
    pub registry: DockerRegistry,
    /// Where they live.
    pub scratch: Scratch,
}

/// Longest time that containerd takes to reach a snapshotter that was away for a moment.
const RECONNECTED: Duration = Duration::from_secs(20);

/// How an image is indexed.
#[derive(Debug, Clone, Copy)]
pub struct Indexing {
    /// Bytes of a span.
    pub span_size: u64,
    /// Smaller layers get no zTOC.
    pub min_layer_size: u64,
    /// What `--compact` says.
    pub compact: &'static str,
    /// Bytes of a span of a compact zTOC.
    pub compact_span_size: u64,
}

/// An image that has been pushed.
#[derive(Debug)]
pub struct Published {
    /// Its reference.
    pub reference: String,
    /// What it is made of.
    pub image: Image,
    /// The layout as pushed, with SOCI index if there is one.
    pub layout: Layout,
}

impl Default for Indexing {
    /// Every layer, by zTOCs only, in spans small enough that small layers have several.
    fn default() -> Self {
        Self {
            span_size: 256 * 1024,
            min_layer_size: 0,
            compact: "no",
            compact_span_size: 64 * 1024,
        }
    }
}

impl Host {
    /// Starts everything; `config` goes to the daemon.
    pub fn start(config: &str) -> Result<Self> {
        Self::start_in(Scratch::new()?, config)
    }

    /// Starts everything, with the daemon's root on a file system of `mebibytes`; where that is mounted.
    pub fn start_on_small_disk(config: &str, mebibytes: u32) -> Result<(Self, PathBuf)> {
        let scratch = Scratch::new()?;
        let small = scratch.dir("soci/root")?;
        let options = format!("size={mebibytes}m,mode=700");
        run(command("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(&small))?;
        Ok((Self::start_in(scratch, config)?, small))
    }

    fn start_in(scratch: Scratch, config: &str) -> Result<Self> {
        let registry = DockerRegistry::start(&scratch)?;
        let containerd = Containerd::start(&scratch)?;
        let snapshotter = Snapshotter::start(&scratch, &containerd, config)?;
        reached(&containerd)?;
        Ok(Self {
            containerd,
            snapshotter,
            registry,
            scratch,
        })
    }

    /// A client of containerd.
    pub fn ctr(&self) -> Ctr {
        self.containerd.ctr()
    }

    /// The CLI.
    pub fn soci(&self) -> Result<Soci> {
        Soci::with(&self.scratch, &self.containerd)
    }

    /// A new layout named `name`.
    pub fn layout(&self, name: &str) -> Result<Layout> {
        Layout::create(&self.scratch.dir("layouts")?.join(name))
    }

    /// Makes an image of layer files and pushes it without an index.
    pub fn publish_plain(&self, name: &str, layers: &[PathBuf]) -> Result<Published> {
        let layout = self.layout(name)?;
        let layers: Result<Vec<Layer>> = layers
            .iter()
            .map(|layer| layout.add_layer_file(layer))
            .collect();
        self.publish_layers(name, &layout, &layers?, None)
    }

    /// Makes an image of layer files, indexes it (v2) and pushes it.
    pub fn publish(&self, name: &str, layers: &[PathBuf], how: Indexing) -> Result<Published> {
        let layout = self.layout(name)?;
        let layers: Result<Vec<Layer>> = layers
            .iter()
            .map(|layer| layout.add_layer_file(layer))
            .collect();
        self.publish_layers(name, &layout, &layers?, Some(how))
    }

    /// Makes an image of layers that `layout` holds and pushes it, indexed or not.
    pub fn publish_layers(
        &self,
        name: &str,
        layout: &Layout,
        layers: &[Layer],
        how: Option<Indexing>,
    ) -> Result<Published> {
        let image = layout.add_image(layers, &["sh"], "latest")?;
        let layout = match how {
            None => layout.clone(),
            Some(how) => self.index(layout, &format!("{name}-indexed"), how)?,
        };
        let reference = self.registry.reference(&format!("{name}:latest"));
        push(&layout, &reference)?;
        Ok(Published {
            reference,
            image,
            layout,
        })
    }

    /// Pushes an indexed image of busybox with one layer for each of `files` on top.
    pub fn publish_files(&self, name: &str, files: &[(&str, &[u8])]) -> Result<Published> {
        self.publish_files_indexed(name, files, Indexing::default())
    }

    /// The same, indexed as wanted.
    pub fn publish_files_indexed(
        &self,
        name: &str,
        files: &[(&str, &[u8])],
        how: Indexing,
    ) -> Result<Published> {
        let layout = self.layout(name)?;
        let layers = small_layers(&layout, files)?;
        self.publish_layers(name, &layout, &layers, Some(how))
    }

    /// Starts the snapshotter again with another configuration.
    pub fn configure(self, config: &str) -> Result<Self> {
        self.snapshotter.configure_anew(&self.containerd, config)?;
        self.restart_snapshotter(Signal::SIGTERM)
    }

    /// Stops the snapshotter with `signal`, starts it again and waits until containerd, which backs off
    /// from a socket that refused it, has reached it.
    pub fn restart_snapshotter(self, signal: Signal) -> Result<Self> {
        let Self {
            containerd,
            snapshotter,
            registry,
            scratch,
        } = self;
        let snapshotter = snapshotter.restart(signal)?;
        reached(&containerd)?;
        Ok(Self {
            containerd,
            snapshotter,
            registry,
            scratch,
        })
    }

    /// A copy of `layout`, named `name`, with an index (v2).
    pub fn index(&self, layout: &Layout, name: &str, how: Indexing) -> Result<Layout> {
        let out = self.scratch.dir("layouts")?.join(name);
        convert(&self.soci()?, layout.path(), &out, how)?;
        Ok(Layout::open(&out))
    }

    /// The tree of an image through `snapshotter`, as a container sees it that has written nothing.
    pub fn walk(&self, snapshotter: &str, published: &Published) -> Result<Tree> {
        let key = format!("walk-{snapshotter}-{}", &published.image.manifest[7..19]);
        let ctr = self.ctr();
        let mounts = ctr
            .prepare(snapshotter, &key, &published.image.chain_id())
            .with_context(|| format!("{} through {snapshotter}", published.reference))?;
        let tree = walk(mounts.mount(&self.scratch, &key)?.path());
        ctr.remove_snapshot(snapshotter, &key)?;
        tree
    }

    /// Ends everything in order and looks whether anything is left.
    pub fn finish(self) -> Result<()> {
        let Self {
            containerd,
            mut snapshotter,
            registry,
            scratch,
        } = self;
        drop(containerd);
        snapshotter.stop(Signal::SIGINT)?;
        drop(snapshotter);
        drop(registry);
        scratch.assert_clean()
    }
}

/// Waits until containerd has reached the snapshotter: it dials once, before a slow daemon listens, and again a second
/// later.
fn reached(containerd: &Containerd) -> Result<()> {
    let ctr = containerd.ctr();
    until("containerd reaches the snapshotter", RECONNECTED, || {
        Ok(ctr.reaches("soci").then_some(()))
    })
}

/// The hex sha256 of `bytes`, as `sha256sum` prints it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    sha256(bytes).replace("sha256:", "")
}

/// The layers of a small image: busybox, and one for each of `files`.
pub fn small_layers(layout: &Layout, files: &[(&str, &[u8])]) -> Result<Vec<Layer>> {
    let mut layers = vec![layout.add_gzip_layer(&busybox::layer()?)?];
    for (path, content) in files {
        layers.push(layout.add_gzip_layer(&busybox::file_layer(path, content)?)?);
    }
    Ok(layers)
}

/// `soci convert --standalone` from one layout directory to another.
pub fn convert(soci: &Soci, from: &Path, to: &Path, how: Indexing) -> Result<String> {
    let mut convert = soci.command()?;
    convert.args(["convert", "--standalone", "--format", "oci-dir"]);
    convert.args(["--span-size", &how.span_size.to_string()]);
    convert.args(["--min-layer-size", &how.min_layer_size.to_string()]);
    convert.args(["--compact", how.compact]);
    convert.args(["--compact-span-size", &how.compact_span_size.to_string()]);
    crate::command::run(convert.arg(from).arg(to))
}
