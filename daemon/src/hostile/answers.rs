//! What registries, credential providers and files of images say.

use bytes::Bytes;
use ztoc::index::{ImageIndex, Manifest, Prefetch};

use super::first_line;
use crate::registry::probes;

/// A list of referrers, after a line with its `Link` header.
pub fn referrers(bytes: &[u8]) {
    let (link, list) = first_line(bytes);
    probes::referrers(
        &String::from_utf8_lossy(link),
        &Bytes::copy_from_slice(list),
    );
}

/// A token server's answer.
pub fn token(bytes: &[u8]) {
    probes::token(bytes);
}

/// A manifest, configuration or image index, after a line with its content type; or an error document.
pub fn manifest(bytes: &[u8]) {
    let (content_type, document) = first_line(bytes);
    let document = Bytes::copy_from_slice(document);
    probes::manifest(&String::from_utf8_lossy(content_type), &document);
    crate::images::probe(&document);
    crate::discovery::probe(&document);
    if let Ok(index) = ImageIndex::parse(&document) {
        assert!(ImageIndex::parse(&index.encode()).is_ok());
    }
    if let Ok(manifest) = Manifest::parse(&document) {
        assert!(Manifest::parse(&manifest.encode()).is_ok());
    }
}

/// A prefetch artifact.
pub fn prefetch(bytes: &[u8]) {
    if let Ok(prefetch) = Prefetch::parse(bytes) {
        assert!(
            prefetch
                .ranges()
                .iter()
                .all(|range| range.spans.start < range.spans.end)
        );
        assert_eq!(
            Prefetch::parse(&prefetch.encode()).ok().as_ref(),
            Some(&prefetch)
        );
        crate::images::probe_prefetch(&prefetch);
    }
}

/// A line with an image, the kubelet's configuration to an empty line, then a provider's answer.
pub fn kubelet(bytes: &[u8]) {
    let (image, rest) = first_line(bytes);
    let end = rest.windows(2).position(|pair| pair == b"\n\n");
    let (config, answer) = rest.split_at(end.unwrap_or(rest.len()));
    probes::kubelet(&String::from_utf8_lossy(image), config, answer);
}

/// A line with a host and a repository, then a secret, a page of secrets, a line of a watch, or a kubeconfig.
pub fn pull_secrets(bytes: &[u8]) {
    let (image, rest) = first_line(bytes);
    let image = String::from_utf8_lossy(image);
    let (host, repository) = image.split_once('/').unwrap_or((&image, "app"));
    probes::secrets(host, repository, rest);
}

/// A tar of an OCI image layout.
pub fn layout(bytes: &[u8]) {
    crate::layout::probe(bytes);
}
