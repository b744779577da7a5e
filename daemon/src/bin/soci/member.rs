//! Names of tar members.

/// The names of a path, `.` and `..` resolved.
pub(crate) fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => _ = names.pop(),
            name => names.push(name.to_vec()),
        }
    }
    names
}

/// Where the symbolic link at `path` points to.
pub(crate) fn link_target(path: &[Vec<u8>], link: &[u8]) -> Vec<Vec<u8>> {
    if link.starts_with(b"/") {
        return components(link);
    }
    let parent = path.split_last().map_or(&[][..], |(_, parent)| parent);
    components(&[&parent.join(&b'/')[..], link].join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_by_their_names() {
        for path in ["./a/b", "/a/b", "a/b/", "a/./b", "x/../a/b"] {
            assert_eq!(
                components(path.as_bytes()),
                [b"a".to_vec(), b"b".to_vec()],
                "{path}"
            );
        }
    }

    #[test]
    fn links_are_resolved_from_their_directory_and_never_leave_the_root() {
        let at = components(b"usr/bin/python");
        assert_eq!(link_target(&at, b"python3"), components(b"usr/bin/python3"));
        assert_eq!(link_target(&at, b"/bin/sh"), components(b"bin/sh"));
        assert_eq!(link_target(&at, b"../../../../etc/x"), components(b"etc/x"));
    }
}
