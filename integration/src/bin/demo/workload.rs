//! The image of the demo: Debian, python3, numpy, an application.

use std::time::Instant;

use anyhow::Result;
use integration::debian::{self, Step};
use integration::host::{Indexing, convert};
use integration::push::push;
use integration::{DockerRegistry, Layout, Scratch, Soci};

use crate::report::progress;

/// What the container prints.
const APPLICATION: &str = r#"import numpy
n = 200
i = numpy.arange(1, n + 1)
hilbert = 1.0 / (i[:, None] + i[None, :] - 1)
largest = numpy.linalg.svd(hilbert, compute_uv=False)[0]
print(f"numpy {numpy.__version__}: the largest singular value of the {n} x {n} Hilbert matrix is {largest:.6f}", flush=True)
"#;

const CLEAN: &str = "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt";

/// The image in its registry.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Reference.
    pub(crate) reference: String,
    /// Bytes of its layers, compressed.
    pub(crate) bytes: u64,
    /// How many layers.
    pub(crate) layers: usize,
}

/// Makes the image (or takes it from the cache), indexes it and pushes it.
pub(crate) fn publish(scratch: &Scratch, registry: &DockerRegistry) -> Result<Workload> {
    progress("making the image (minutes when first, then from the cache)");
    let install = |packages: &str| {
        format!(
            "apt-get update -qq; apt-get install -y -qq --no-install-recommends {packages}; {CLEAN}"
        )
    };
    let scripts = [
        ("tools", install("ca-certificates curl git")),
        ("python", install("python3")),
        ("numpy", install("python3-numpy")),
        (
            "app",
            format!("mkdir /app; cat >/app/main.py <<'END'\n{APPLICATION}END\n"),
        ),
    ];
    let step = |(name, script)| Step {
        name,
        script,
        compressor: "gzip -6",
    };
    let steps: Vec<_> = scripts
        .iter()
        .map(|(name, script)| step((*name, script.as_str())))
        .collect();
    let files = debian::layers("demo", &steps)?;

    let layout = Layout::create(&scratch.dir("image")?)?;
    let layers: Result<Vec<_>> = files
        .iter()
        .map(|file| layout.add_layer_file(file))
        .collect();
    let command = ["/usr/bin/python3", "/app/main.py"];
    let image = layout.add_image(&layers?, &command, "latest")?;

    progress("indexing it: soci convert --standalone");
    let start = Instant::now();
    let indexed = Layout::open(&scratch.path().join("indexed"));
    let how = Indexing {
        span_size: 4 << 20,
        compact: "yes",
        compact_span_size: 1 << 20,
        ..Indexing::default()
    };
    convert(&Soci::alone(scratch)?, layout.path(), indexed.path(), how)?;
    progress(&format!(
        "indexed in {:.1} s; pushing it",
        start.elapsed().as_secs_f64()
    ));

    let reference = registry.reference("demo/numpy:latest");
    push(&indexed, &reference)?;
    Ok(Workload {
        reference,
        bytes: image.size(),
        layers: image.layers.len(),
    })
}
