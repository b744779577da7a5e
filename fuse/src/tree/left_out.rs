//! Members that a tree cannot hold, told once per layer.

/// Why a member is not in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("no file can have its name")]
    Name,
    #[error("its parent is a file")]
    Parent,
    #[error("too many symbolic links lead to it")]
    Links,
    #[error("it is a hard link to nothing")]
    HardLink,
    #[error("its symbolic link target is empty or too long")]
    SymlinkTarget,
    #[error("it is larger than any file can be")]
    Size,
    #[error("the layer has too many directories")]
    TooMany,
}

/// How many members were left out, and the first of them.
#[derive(Debug, Default)]
pub(super) struct LeftOut<'t> {
    count: u64,
    first: Option<(Reason, &'t [u8])>,
}

impl<'t> LeftOut<'t> {
    pub(super) fn add(&mut self, reason: Reason, name: &'t [u8]) {
        self.count += 1;
        self.first.get_or_insert((reason, name));
    }

    /// Says in the log what is missing, if anything is.
    pub(super) fn report(&self) {
        if let Some((reason, name)) = self.first {
            let shown = &name[..name.len().min(200)];
            tracing::warn!(
                left_out = self.count,
                first = %shown.escape_ascii(),
                %reason,
                "members of this layer cannot be shown"
            );
        }
    }
}
