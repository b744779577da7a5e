//! Extended attributes that have ids in their values.

use std::borrow::Cow;

use super::{IdMap, IdMapping, NO_ID};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

/// Of linux/posix_acl_xattr.h: the version, its length, and the length of an entry.
const ACL_VERSION: u32 = 2;
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
/// Entries of named users and groups.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Of linux/capability.h: a revision is in the upper part of the first word, and says how long the value is.
const FLAG_EFFECTIVE: u32 = 0x0000_0001;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const LENGTH_2: usize = 20;
const LENGTH_3: usize = 24;

/// The value of the attribute `name` of the image as a mount with mapped ids has it on this node. What is malformed stays as
/// it is: the kernel refuses it.
pub(crate) fn mapped_value<'v>(name: &[u8], value: &'v [u8], ids: &IdMapping) -> Cow<'v, [u8]> {
    let mapped = match name {
        ACCESS_ACL | DEFAULT_ACL => acl(value, ids),
        CAPABILITY => capability(value, &ids.users),
        _ => None,
    };
    mapped.map_or(Cow::Borrowed(value), Cow::Owned)
}

/// An access control list. A user or group that the container does not have becomes one that it does not have on this
/// node: the kernel refuses a list with an id that is none.
fn acl(value: &[u8], ids: &IdMapping) -> Option<Vec<u8>> {
    let sound = word(value, 0)? == ACL_VERSION && value.len() % ACL_ENTRY == ACL_HEADER;
    let mut mapped = sound.then(|| value.to_vec())?;
    for entry in mapped[ACL_HEADER..].chunks_exact_mut(ACL_ENTRY) {
        let map = match u16::from_le_bytes([entry[0], entry[1]]) {
            ACL_USER => &ids.users,
            ACL_GROUP => &ids.groups,
            _ => continue,
        };
        let id = match word(entry, 4)? {
            NO_ID => NO_ID,
            id => map.to_host(id).unwrap_or_else(|| map.stranger()),
        };
        entry[4..].copy_from_slice(&id.to_le_bytes());
    }
    Some(mapped)
}

/// A file's capabilities. They hold where its root user is root: with none written down, where user 0 is, which the mapping
/// makes another one. Nowhere, if the container does not have that user.
fn capability(value: &[u8], users: &IdMap) -> Option<Vec<u8>> {
    let magic = word(value, 0)?;
    let root = match (magic & !FLAG_EFFECTIVE, value.len()) {
        (REVISION_2, LENGTH_2) => 0,
        (REVISION_3, LENGTH_3) => word(value, LENGTH_2)?,
        _ => return None,
    };
    let root = users.to_host(root).unwrap_or(NO_ID);
    let magic = REVISION_3 | (magic & FLAG_EFFECTIVE);
    let mut mapped = value[..LENGTH_2].to_vec();
    mapped[..4].copy_from_slice(&magic.to_le_bytes());
    mapped.extend(root.to_le_bytes());
    Some(mapped)
}

/// The number at byte `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    word.try_into().ok().map(u32::from_le_bytes)
}
