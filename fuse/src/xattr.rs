//! Extended attributes: those of the image, and the mark overlayfs knows an opaque directory by.

use std::borrow::Cow;

use crate::error::Error;
use crate::ids::mapped_value;
use crate::inode::Node;
use crate::merge::View;
use crate::tree::Body;

/// How overlayfs marks a directory that hides what lower layers have in it.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

impl View {
    /// The value of the attribute `name` of `node`.
    ///
    /// # Errors
    /// [`Error::NoAttributes`] if nothing in the view has any: the kernel then stops asking.
    pub(crate) fn xattr(&self, node: Node, name: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
        if !self.has_xattrs() {
            return Err(Error::NoAttributes);
        }
        let mut attributes = self.xattrs_of(node)?;
        let found = attributes.find(|(known, _)| *known == name);
        let value = found.ok_or(Error::NoAttribute)?.1;
        Ok(match self.ids() {
            Some(ids) => mapped_value(name, value, ids),
            None => Cow::Borrowed(value),
        })
    }

    /// The names of all attributes of `node`, each followed by a zero. Always answered, be there none:
    /// a kernel that is told not to ask fails listxattr(2), which works on the file system of an
    /// unpacked image, and neither overlayfs nor the kernel itself asks it often.
    pub(crate) fn xattr_names(&self, node: Node) -> Result<Vec<u8>, Error> {
        let mut names = Vec::new();
        for (name, _) in self.xattrs_of(node)? {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    fn xattrs_of(&self, node: Node) -> Result<impl Iterator<Item = (&[u8], &[u8])>, Error> {
        let (source, opaque) = match self.inode(node).body {
            Body::Directory(_) => {
                let directory = self.directory(node)?;
                (directory.metadata, directory.opaque)
            }
            _ => (Some(node), false),
        };
        let own = source.map(|node| self.layer(node).tree.xattrs(self.inode(node)));
        let own = own.unwrap_or_default().iter();
        let own = own.map(|(name, value)| (&**name, &**value));
        Ok(opaque.then_some(OPAQUE).into_iter().chain(own))
    }
}
