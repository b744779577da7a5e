//! Member names: cleaning, limits, and the names that mean a whiteout.

/// The longest name Linux file systems hold, in bytes.
const NAME_MAX: usize = 255;

/// The longest path and symlink target the kernel takes, in bytes without the closing zero.
pub(crate) const PATH_MAX: usize = 4095;

/// Begins a name that hides another (AUFS, taken over by the OCI layer format).
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Hides whatever the layers below have in its directory.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// What the last component of a member name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base<'a> {
    /// An ordinary name.
    Name(&'a [u8]),
    /// The directory is opaque.
    Opaque,
    /// This name is hidden in the layers below.
    Whiteout(&'a [u8]),
    /// A name that no file can have.
    Invalid,
}

impl<'a> Base<'a> {
    /// Reads the last component of a cleaned member name.
    pub(crate) fn parse(component: &'a [u8]) -> Self {
        if component == OPAQUE_MARKER {
            return Self::Opaque;
        }
        let (name, whiteout) = match component.strip_prefix(WHITEOUT_PREFIX) {
            Some(hidden) => (hidden, true),
            None => (component, false),
        };
        match (is_valid(name), whiteout) {
            (false, _) => Self::Invalid,
            (true, true) => Self::Whiteout(name),
            (true, false) => Self::Name(name),
        }
    }
}

/// The directory part of a member name, as it is, and the last component; `None` if that is not plain, or
/// alone: then the components must be looked at.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slashes = path.iter().rev().take_while(|byte| **byte == b'/').count();
    let path = &path[..path.len() - slashes];
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    let (parent, base) = (&path[..slash], &path[slash + 1..]);
    (!matches!(base, b"." | b"..")).then_some((parent, base))
}

/// Whether a file can have `name`.
pub(crate) fn is_valid(name: &[u8]) -> bool {
    // All of a short name is looked at in a few instructions, which is quicker than to stop at the first.
    let has_zero = |name: &[u8]| name.iter().fold(false, |zero, byte| zero | (*byte == 0));
    !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_MAX && !has_zero(name)
}

/// The components of `path` as seen from the root: empty ones and `.` removed, `..` taking the
/// component before it away and stopping at the root.
pub(crate) fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut components = Vec::new();
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    components
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(path: &str) -> String {
        let parts: Vec<_> = components(path.as_bytes())
            .iter()
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect();
        parts.join("/")
    }

    #[test]
    fn names_are_cleaned_as_seen_from_the_root() {
        assert_eq!(cleaned("./a//b/./c/"), "a/b/c");
        assert_eq!(cleaned("/a/../b"), "b");
        assert_eq!(cleaned("../../etc/passwd"), "etc/passwd");
        assert_eq!(cleaned("a/../.."), "");
        assert_eq!(cleaned("./"), "");
    }

    #[test]
    fn a_name_that_is_split_has_the_same_components() {
        for path in [
            "a/b",
            "./a//b/./c/",
            "/a/../b",
            "/a",
            "../x//",
            "./y",
            "a/b/c///",
        ] {
            let (parent, base) = split(path.as_bytes()).unwrap_or_default();
            let mut parts = components(parent);
            parts.push(base);
            assert_eq!(parts, components(path.as_bytes()), "{path}");
        }
        for path in ["", "/", "./", "a", "a/.", "a/..", "a/../"] {
            assert_eq!(split(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn only_the_last_component_can_be_a_whiteout() {
        assert_eq!(Base::parse(b".wh.a"), Base::Whiteout(b"a"));
        assert_eq!(Base::parse(b".wh..wh..opq"), Base::Opaque);
        assert_eq!(Base::parse(b".wh..wh.a"), Base::Whiteout(b".wh.a"));
        assert_eq!(Base::parse(b".wh"), Base::Name(b".wh"));
        assert_eq!(Base::parse(b"a.wh.b"), Base::Name(b"a.wh.b"));
    }

    #[test]
    fn whiteouts_of_the_directory_itself_are_invalid() {
        for name in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(Base::parse(name), Base::Invalid);
        }
    }

    #[test]
    fn names_that_no_file_can_have_are_invalid() {
        assert_eq!(Base::parse(&[b'a'; 256]), Base::Invalid);
        assert_eq!(Base::parse(b"a\0b"), Base::Invalid);
        assert_eq!(Base::parse(&[b'a'; 255]), Base::Name(&[b'a'; 255]));
        assert_eq!(Base::parse(b"\xff\xfe"), Base::Name(b"\xff\xfe"));
    }
}
