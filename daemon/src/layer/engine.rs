//! What all layers share: the runtime their fetches run on, decode threads, budgets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cold::ColdReads;
use super::counters::Throttle;
use super::decode::DecodePool;
use super::fill::Filler;
use super::ledger::Ledger;
use super::link::Link;
use super::pace::FillOptions;
use super::schedule::Budget;
use super::unwritten::Unwritten;

/// How spans are fetched and decoded.
#[derive(Debug, Clone)]
pub struct LayerOptions {
    /// How often a span whose bytes are wrong is fetched again (`blob.max_span_verification_retries`).
    pub verification_retries: u32,
    /// Largest ranged request in compressed bytes; a single larger span is still one request.
    pub max_request: u64,
    /// Compressed bytes on their way or not yet decoded, over all layers, for demand; as many again
    /// for less urgent work.
    pub in_flight: u64,
    /// Decode threads; 0 means one for each CPU.
    pub decode_threads: usize,
    /// Whether a sequential reader has the next spans fetched ahead of it.
    pub readahead: bool,
    /// Shortest time after which a request that somebody waits for is made a second time; the slower one
    /// is dropped.
    pub straggler: Duration,
    /// How what nobody asks for is fetched; `None`: not at all.
    pub fill: Option<FillOptions>,
    /// Most plain bytes of all layers on disk; `None`: as many as there is room for.
    pub cache_limit: Option<u64>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            verification_retries: 2,
            max_request: 16 << 20,
            in_flight: 64 << 20,
            decode_threads: 0,
            readahead: true,
            straggler: Duration::from_secs(2),
            fill: Some(FillOptions::default()),
            cache_limit: None,
        }
    }
}

/// How often the same trouble is logged.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Shared by the layers of one store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: LayerOptions,
    pub(crate) decoders: DecodePool,
    pub(crate) cold: ColdReads,
    pub(crate) budget: Budget,
    pub(crate) unwritten: Mutex<Unwritten>,
    pub(crate) write_failures: Throttle,
    pub(crate) link: Arc<Link>,
    pub(crate) ledger: Ledger,
    pub(crate) filler: Option<Arc<Filler>>,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Engine {
    /// Starts the decode threads and the fill; fetches will run on `runtime`. Blocks on file I/O: what is
    /// under `root` is counted.
    pub(crate) fn start(
        root: &Path,
        options: LayerOptions,
        runtime: Handle,
    ) -> std::io::Result<Self> {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from);
        let threads = match options.decode_threads {
            0 => cpus(),
            threads => threads,
        };
        let filler = options.fill.clone().map(|fill| Arc::new(Filler::new(fill)));
        let link = Arc::<Link>::default();
        let engine = Self {
            decoders: DecodePool::start(threads, Arc::clone(&link))?,
            cold: ColdReads::new(),
            budget: Budget::new(options.in_flight),
            unwritten: Mutex::default(),
            write_failures: Throttle::default(),
            link,
            ledger: Ledger::open(root, options.cache_limit),
            filler,
            options,
            runtime,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        if let Some(filler) = &engine.filler {
            engine.spawn(Arc::clone(filler).run(Arc::clone(&engine.link)));
        }
        Ok(engine)
    }

    /// Takes over what of `options` can change while it runs: the fill, unless it was off at the start, and the
    /// cache's limit. `false` if the fill has to wait for the next start. Blocks on file I/O.
    pub(crate) fn reconfigure(&self, options: &LayerOptions) -> bool {
        self.ledger.set_limit(options.cache_limit);
        self.ledger.evict();
        match &self.filler {
            Some(filler) => filler.set(options.fill.clone()),
            None => return options.fill.is_none(),
        }
        true
    }

    /// Runs a fetch, which is dropped when the engine is stopped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let work = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        };
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Gives up all fetches and waits until they are gone. Reads of what is not local fail from now on.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Engine {
    /// The fill holds no engine and ends with it.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
