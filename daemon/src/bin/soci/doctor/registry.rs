//! Checks of one image: can it be had, and can it be had lazily.

use std::sync::Arc;

use daemon::content::OciLayoutStore;
use daemon::discovery::{Discovery, ImageQuery, Modes};
use daemon::registry::{Reference, Registry};
use ztoc::index::{Descriptor, Manifest};

use super::Findings;
use crate::blobs::Blobs;
use crate::image::{PlatformManifest, SourceImage};
use crate::options::{PlatformArguments, RegistryArguments};
use crate::paint::{bytes, percent};

pub(super) async fn check(findings: &mut Findings, image: &str, arguments: &RegistryArguments) {
    const CHECK: &str = "image";
    let reference: Reference = match image.parse() {
        Ok(reference) => reference,
        Err(error) => {
            return findings.failure(
                CHECK,
                format!("{error}"),
                "give a reference such as registry.example.com/app:1.0",
            );
        }
    };
    let registry = match arguments
        .config()
        .and_then(|config| Ok(Registry::new(config)?))
    {
        Ok(registry) => registry,
        Err(error) => {
            return findings.failure(
                "registry",
                format!("{error:#}"),
                "check the registry options",
            );
        }
    };
    let found = match manifest(&registry, &reference).await {
        Ok(found) => found,
        Err(error) => {
            let text = format!("{error:#}");
            let advice = advice(&text);
            return findings.failure("registry", text, advice);
        }
    };
    findings.ok(
        "registry",
        format!("{} gives {reference}", reference.host()),
    );
    ranges(findings, &registry, &reference, &found.manifest).await;
    index(findings, &registry, &reference, &found).await;
}

fn advice(error: &str) -> &'static str {
    let lower = error.to_lowercase();
    if lower.contains("401")
        || lower.contains("403")
        || lower.contains("unauthorized")
        || lower.contains("denied")
    {
        "log in, so that the Docker configuration has credentials (docker login, nerdctl login), or give --user"
    } else if lower.contains("404") || lower.contains("not found") {
        "check the name and the tag"
    } else if lower.contains("certificate") {
        "trust the registry's certificate: --tlscacert, or hosts.toml with --hosts-dir"
    } else {
        "check that this machine reaches the registry; a plain HTTP registry needs --plain-http here and insecure in the snapshotter's configuration"
    }
}

async fn manifest(registry: &Registry, reference: &Reference) -> anyhow::Result<PlatformManifest> {
    let resolved = registry.resolve(reference).await?;
    let (media_type, digest) = (resolved.descriptor.media_type, resolved.descriptor.digest);
    let target = Descriptor::new(media_type, digest, resolved.bytes.len() as u64);
    let blobs = Blobs::Registry(registry.clone(), reference.clone());
    let source = SourceImage::load(&reference.to_string(), &target, blobs).await?;
    let all = PlatformArguments {
        platforms: Vec::new(),
        all_platforms: false,
    };
    let platform = source.choose(&all)?.remove(0);
    source.manifest(&platform).await
}

/// A registry that gives no ranges gives no spans.
async fn ranges(
    findings: &mut Findings,
    registry: &Registry,
    reference: &Reference,
    manifest: &Manifest,
) {
    const CHECK: &str = "ranged requests";
    let Some(layer) = manifest
        .layers
        .iter()
        .max_by_key(|layer| layer.size)
        .filter(|it| it.size > 1)
    else {
        return findings.skipped(CHECK, "the image has no layer");
    };
    let blob = registry.blob(reference, &layer.digest, layer.size);
    match blob.read(layer.size / 2..layer.size / 2 + 1).await {
        Ok(_) => findings.ok(CHECK, "one byte from the middle of the largest layer came"),
        Err(error) => findings.failure(
            CHECK,
            error.to_string(),
            "lazy loading needs a registry, and proxies, that answer Range requests",
        ),
    }
}

async fn index(
    findings: &mut Findings,
    registry: &Registry,
    reference: &Reference,
    found: &PlatformManifest,
) {
    const CHECK: &str = "SOCI index";
    let made = tempfile::tempdir().map_err(anyhow::Error::from);
    let store = made.and_then(|dir| Ok((Arc::new(OciLayoutStore::open_at(dir.path())?), dir)));
    let (store, _dir) = match store {
        Ok(store) => store,
        Err(error) => return findings.skipped(CHECK, format!("no room for it: {error:#}")),
    };
    let modes = Modes {
        v1: true,
        ..Modes::default()
    };
    let discovery = Discovery::new(registry.clone(), store, modes);
    let query = ImageQuery {
        image: reference.clone(),
        manifest: Some(found.descriptor.digest),
        index: None,
    };
    let index = match discovery.find(&query).await {
        Ok(index) => index,
        Err(error) => {
            return findings.failure(
                CHECK,
                error.to_string(),
                "make one: soci convert IMAGE NEW-IMAGE, and push NEW-IMAGE; or soci create and soci push",
            );
        }
    };
    let layers = &found.manifest.layers;
    let total: u64 = layers.iter().map(|layer| layer.size).sum();
    let lazy = layers.iter().filter(|layer| index.has(&layer.digest));
    let (count, lazy_bytes) =
        lazy.fold((0, 0), |(count, sum), layer| (count + 1, sum + layer.size));
    let text = format!(
        "{count} of {} layers are lazy, {} of {} ({})",
        layers.len(),
        bytes(lazy_bytes),
        bytes(total),
        percent(lazy_bytes, total)
    );
    if count == 0 {
        findings.failure(CHECK, text, "the index is of another image; make it again");
    } else {
        findings.ok(CHECK, text);
    }
    let v2 = found
        .manifest
        .annotations
        .contains_key(ztoc::index::annotation::INDEX_DIGEST);
    if !v2 {
        findings.warning(
            "index version",
            "v1: found only if the snapshotter's configuration says so",
            "[pull_modes.soci_v1]\n  enable = true",
        );
    }
}
