//! Patterns of images as the kubelet matches them.

/// `host[:port][/path]`, with `*` in the parts of the host's name: it stands for any characters of one
/// part. Port and number of parts must be the same; the path is a prefix.
pub(super) struct ImagePattern<'a> {
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
}

impl<'a> ImagePattern<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        Self { host, port, path }
    }

    /// Whether `image`, host and repository, is meant.
    pub(super) fn matches(&self, image: &str) -> bool {
        let image = ImagePattern::new(image);
        let (own, other) = (self.host.split('.'), image.host.split('.'));
        self.port == image.port
            && image.path.starts_with(self.path)
            && own.clone().count() == other.clone().count()
            && own.zip(other).all(|(own, other)| glob(own, other))
    }
}

/// Whether `text` is `pattern`, whose `*` stand for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_matched_as_the_kubelet_does() {
        let image = "123.dkr.ecr.eu-west-1.amazonaws.com/team/app";
        for (pattern, image, matches) in [
            ("*.dkr.ecr.*.amazonaws.com", image, true),
            ("*.dkr.ecr.*.amazonaws.com/team", image, true),
            ("*.dkr.ecr.*.amazonaws.com/other", image, false),
            ("*.amazonaws.com", image, false),
            ("123.dkr.ecr.eu-*-1.amazonaws.com", image, true),
            ("123.dkr.ecr.eu-*-2.amazonaws.com", image, false),
            ("*:5000", "host:5000/a", true),
            ("*", "host:5000/a", false),
            ("https://host:5000/a", "host:5000/a/b", true),
            ("docker.io", "docker.io/library/alpine", true),
            ("*a*b*", "xaybz/i", true),
            ("*a*b", "xayb.z/i", false),
            ("a*a", "a/i", false),
        ] {
            assert_eq!(
                ImagePattern::new(pattern).matches(image),
                matches,
                "{pattern}"
            );
        }
    }
}
