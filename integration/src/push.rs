//! Pushing a layout as it is. (skopeo recompresses plain layers, and so changes their digests.)

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde_json::Value;

use crate::image::{INDEX, Layout, sha256};
use crate::registry::ScriptedRegistry;

/// Pushes everything `layout` holds to `reference` (with a tag) over plain HTTP, its first root
/// under the tag.
pub fn push(layout: &Layout, reference: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(async {
            let push = Push::start(layout, reference.parse()?).await?;
            let roots = layout.roots()?;
            push.manifest(
                roots.first().context("the layout is empty")?,
                &push.reference,
            )
            .await
        })
        .with_context(|| format!("cannot push {} to {reference}", layout.path().display()))
}

/// Puts everything `layout` holds into `repository` of a registry in this process, its first root
/// under `latest`; the reference.
pub fn put(layout: &Layout, registry: &ScriptedRegistry, repository: &str) -> Result<String> {
    let roots = layout.roots()?;
    let root = text(roots.first().context("the layout is empty")?, "digest")?;
    for entry in fs::read_dir(layout.path().join("blobs/sha256"))? {
        let bytes = fs::read(entry?.path())?;
        let Some(media_type) = media_type(&bytes) else {
            registry.put_blob(repository, bytes);
            continue;
        };
        let tag = (sha256(&bytes) == root).then_some("latest");
        registry.put_manifest(repository, tag, &media_type, bytes);
    }
    Ok(format!("{}/{repository}:latest", registry.host()))
}

/// The media type of a manifest or index; nothing for any other blob.
fn media_type(bytes: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value["schemaVersion"].as_u64()?;
    Some(value["mediaType"].as_str().unwrap_or(INDEX).to_owned())
}

struct Push<'a> {
    client: Client,
    layout: &'a Layout,
    reference: Reference,
}

impl<'a> Push<'a> {
    async fn start(layout: &'a Layout, reference: Reference) -> Result<Self> {
        // The first one wins; who comes later finds what it wants.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        };
        let client = Client::new(config);
        client
            .auth(
                &reference,
                &RegistryAuth::Anonymous,
                RegistryOperation::Push,
            )
            .await?;
        Ok(Self {
            client,
            layout,
            reference,
        })
    }

    /// Pushes the manifest or index that `descriptor` names after all it refers to.
    async fn manifest(&self, descriptor: &Value, to: &Reference) -> Result<()> {
        let digest = text(descriptor, "digest")?;
        let manifest = self.layout.json(digest)?;
        let media_type = descriptor["mediaType"].as_str().unwrap_or(INDEX);
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            let child_digest = text(child, "digest")?.to_owned();
            Box::pin(self.manifest(child, &self.reference.clone_with_digest(child_digest))).await?;
        }
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let mut blobs = BTreeSet::new();
        for blob in layers.chain(manifest.get("config")) {
            blobs.insert(text(blob, "digest")?);
        }
        for blob in blobs {
            self.blob(blob).await?;
        }
        let body = fs::read(self.layout.blob(digest))?;
        self.client
            .push_manifest_raw(to, body, media_type.parse()?)
            .await?;
        Ok(())
    }

    async fn blob(&self, digest: &str) -> Result<()> {
        let bytes = fs::read(self.layout.blob(digest)).with_context(|| format!("blob {digest}"))?;
        self.client
            .push_blob(&self.reference, bytes, digest)
            .await?;
        Ok(())
    }
}

fn text<'v>(descriptor: &'v Value, key: &str) -> Result<&'v str> {
    descriptor[key]
        .as_str()
        .with_context(|| format!("no {key} in {descriptor}"))
}
