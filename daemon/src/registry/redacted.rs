//! URLs that may be written down.

use std::fmt;

use url::Url;

/// Writes a URL without user, password, query and fragment: pre-signed URLs carry their
/// signature in the query.
pub(crate) struct RedactedUrl<'a>(pub(crate) &'a Url);

impl fmt::Display for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0;
        write!(
            f,
            "{}://{}",
            url.scheme(),
            url.host_str().unwrap_or_default()
        )?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_scheme_host_port_and_path_are_written() {
        let url = Url::parse("https://user:pw@host:8443/a/b?X-Amz-Signature=secret#frag").unwrap();
        assert_eq!(RedactedUrl(&url).to_string(), "https://host:8443/a/b");
    }
}
