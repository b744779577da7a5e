//! Image references: which host, which repository, which tag or digest.
//!
//! Parsed here rather than by a crate: the published parsers complete `host/name` to
//! `docker.io/host/name` without a choice (containerd's own names are always qualified), and know no
//! IPv6 hosts.

use std::fmt;
use std::str::FromStr;

use ztoc::Digest;

/// Longest reference looked at, in bytes; a repository is at most 255, a tag 128.
const MAX_LENGTH: usize = 1024;
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;
const DOCKER_HUB: &str = "docker.io";

/// A parsed image reference: host, repository, and a tag, a digest or both.
///
/// `FromStr` completes familiar names as docker and nerdctl do (`alpine` is
/// `docker.io/library/alpine:latest`); [`Reference::qualified`] reads names that containerd has stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Reads a name as containerd keeps it: what stands before the first slash is the host, even
    /// without a dot or a port. A name without a slash is completed as by `FromStr`.
    pub fn qualified(text: &str) -> Result<Self, ParseReferenceError> {
        parse(text, |name| name.split_once('/'))
    }

    /// The registry as written, with its port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry's API is: Docker Hub serves it under another name.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB {
            "registry-1.docker.io"
        } else {
            &self.host
        }
    }

    /// The repository without its host: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if it has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository at `digest`, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository at `tag`, without a digest. The tag is not checked.
    pub(crate) fn with_tag(&self, tag: &str) -> Self {
        Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        }
    }

    /// What follows `/manifests/` to get it: the digest if there is one, else the tag.
    pub(crate) fn manifest_path(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => String::from("latest"),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, |name| {
            name.split_once('/')
                .filter(|(first, _)| looks_like_host(first))
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

type SplitHost = fn(&str) -> Option<(&str, &str)>;

fn parse(text: &str, split_host: SplitHost) -> Result<Reference, ParseReferenceError> {
    parts(text, split_host).map_err(|reason| ParseReferenceError {
        text: text.chars().take(MAX_LENGTH).collect(),
        reason,
    })
}

fn parts(text: &str, split_host: SplitHost) -> Result<Reference, &'static str> {
    if text.len() > MAX_LENGTH {
        return Err("it is too long");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (
            name,
            Some(
                digest
                    .parse()
                    .map_err(|_| "its digest is no sha256 digest")?,
            ),
        ),
        None => (text, None),
    };
    let (name, tag) = split_tag(name)?;
    let tag = tag.or_else(|| digest.is_none().then(|| String::from("latest")));
    let (host, repository) = split_host(name).unwrap_or((DOCKER_HUB, name));
    if !is_host(host) {
        return Err("its host is malformed");
    }
    if !is_repository(repository) {
        return Err("its repository must be lower-case letters, digits and separators");
    }
    let reference = completed(host, repository, tag, digest);
    // Completed, a name is longer than it was written, and must still be one.
    if reference.repository.len() > MAX_REPOSITORY || reference.to_string().len() > MAX_LENGTH {
        return Err("completed with its host, `library/` and tag, it is too long");
    }
    Ok(reference)
}

fn completed(
    host: &str,
    repository: &str,
    tag: Option<String>,
    digest: Option<Digest>,
) -> Reference {
    let hub = matches!(
        host,
        DOCKER_HUB | "index.docker.io" | "registry-1.docker.io"
    );
    let official = hub && !repository.contains('/');
    Reference {
        host: String::from(if hub { DOCKER_HUB } else { host }),
        repository: if official {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        },
        tag,
        digest,
    }
}

fn split_tag(name: &str) -> Result<(&str, Option<String>), &'static str> {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = name[last..].find(':') else {
        return Ok((name, None));
    };
    let (name, tag) = (&name[..last + colon], &name[last + colon + 1..]);
    if is_tag(tag) {
        Ok((name, Some(tag.to_owned())))
    } else {
        Err("its tag is malformed")
    }
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.contains(|c: char| c.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return is_ipv6(address),
        Some((address, port)) if is_ipv6(address) => ("ipv6", port.strip_prefix(':')),
        Some(_) => return false,
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => return host.split('.').all(is_domain_label),
        },
    };
    name.split('.').all(is_domain_label) && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

fn is_ipv6(address: &str) -> bool {
    address.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_domain_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_tag(tag: &str) -> bool {
    (1..=MAX_TAG).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_repository(repository: &str) -> bool {
    repository.len() <= MAX_REPOSITORY && repository.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes.split(|b| alphanumeric(*b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    #[test]
    fn familiar_names_are_completed() {
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("ghcr.io/o/a__b.c--d:v1", "ghcr.io/o/a__b.c--d:v1"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full);
        }
        let pinned = format!("quay.io/a/b:tag@{DIGEST}")
            .parse::<Reference>()
            .unwrap();
        assert_eq!(pinned.to_string(), format!("quay.io/a/b:tag@{DIGEST}"));
        assert_eq!(pinned.manifest_path(), DIGEST);
        let by_digest = format!("alpine@{DIGEST}").parse::<Reference>().unwrap();
        assert_eq!(by_digest.tag(), None);
    }

    #[test]
    fn a_name_that_is_too_long_once_completed_is_refused() {
        let longest = "u".repeat(MAX_REPOSITORY - "library/".len());
        let reference = longest.parse::<Reference>().unwrap();
        assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        assert!(format!("{longest}u").parse::<Reference>().is_err());

        let host = vec!["h"; 500].join(".");
        let written = format!("{host}/app");
        assert!(written.parse::<Reference>().is_ok());
        let room = MAX_LENGTH - written.len();
        let longer = format!("{host}/{}app", "a".repeat(room));
        assert!(longer.parse::<Reference>().is_err());
    }

    #[test]
    fn a_qualified_name_keeps_a_host_without_a_dot() {
        let reference = Reference::qualified("registry/team/app:1").unwrap();
        assert_eq!(reference.host(), "registry");
        assert_eq!(reference.repository(), "team/app");
    }

    #[test]
    fn docker_hub_has_its_api_elsewhere() {
        let reference: Reference = "alpine".parse().unwrap();
        assert_eq!(reference.host(), "docker.io");
        assert_eq!(reference.api_host(), "registry-1.docker.io");
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            "/",
            "a/",
            "Alpine",
            "a//b",
            "../etc",
            "a:",
            "a:b:c",
            "a@sha256:00",
            "host.io/../x",
            "a b",
            "host.io:port/x",
            "host.io/a_-b",
            "user:pw@host.io/a",
            "a?x=1",
            "[::1/a",
            "-h.io/a",
            "a:.tag",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_written_and_read_back_the_same(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
