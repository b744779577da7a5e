//! What is in a blob of nydus's. A blob ends with a table of its parts; each part, and the table itself, is followed by a tar
//! header:
//!
//! `data | header | chunks | header | metadata | header | table | header`

use anyhow::{Context, Result, bail, ensure};
use integration::image::sha256;

/// The table at a blob's end.
#[derive(Debug)]
pub(super) struct Table<'b> {
    entries: Vec<&'b [u8]>,
    digest: String,
}

impl<'b> Table<'b> {
    const HEADER: usize = 512;
    const ENTRY: usize = 128;

    /// The one of `blob`.
    pub(super) fn of(blob: &'b [u8]) -> Result<Self> {
        let end = blob.len().checked_sub(Self::HEADER).context("too short")?;
        let header = tar::Header::from_byte_slice(&blob[end..]);
        let name = header.path_bytes();
        ensure!(&*name == b"rafs.blob.toc", "no table at its end");
        let start = usize::try_from(header.entry_size()?)?;
        let start = end.checked_sub(start).context("a table of that size?")?;
        Ok(Self {
            entries: blob[start..end].chunks_exact(Self::ENTRY).collect(),
            digest: sha256(&blob[start..]),
        })
    }

    /// Of the table and of the header after it.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The part of `blob` that is called `name`, uncompressed.
    pub(super) fn part(&self, blob: &[u8], name: &str) -> Result<Vec<u8>> {
        let is_named = |entry: &&&[u8]| {
            let found = entry[8..24].split(|byte| *byte == 0).next();
            found == Some(name.as_bytes())
        };
        let entry = self.entries.iter().find(is_named);
        let entry = entry.with_context(|| format!("it has no {name}"))?;
        let number = |at: usize| -> Result<usize> {
            Ok(usize::try_from(u64::from_le_bytes(
                entry[at..at + 8].try_into()?,
            ))?)
        };
        let (offset, size) = (number(56)?, number(64)?);
        let end = offset.checked_add(size).context("beyond all bounds")?;
        let stored = blob.get(offset..end).context("beyond the blob's end")?;
        match u32::from_le_bytes(entry[..4].try_into()?) & 0xf {
            1 => Ok(stored.to_vec()),
            2 => Ok(zstd::decode_all(stored)?),
            other => bail!("{name} is compressed in an unknown way: {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A blob with a part of this name, as nydus writes them.
    fn blob_with(name: &str, stored: &[u8], compressor: u32) -> Vec<u8> {
        let header = |name: &str, size: usize| {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_size(size as u64);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let data = b"file data";
        let mut entry = vec![0; Table::ENTRY];
        entry[..4].copy_from_slice(&compressor.to_le_bytes());
        entry[8..8 + name.len()].copy_from_slice(name.as_bytes());
        let offset = data.len() + Table::HEADER;
        entry[56..64].copy_from_slice(&(offset as u64).to_le_bytes());
        entry[64..72].copy_from_slice(&(stored.len() as u64).to_le_bytes());
        let mut blob = data.to_vec();
        blob.extend(header("image.blob", data.len()));
        blob.extend(stored);
        blob.extend(header(name, stored.len()));
        blob.extend(&entry);
        blob.extend(header("rafs.blob.toc", entry.len()));
        blob
    }

    #[test]
    fn metadata_are_found_by_the_table_at_a_blobs_end() {
        let compressed = zstd::encode_all(&b"metadata"[..], 3).unwrap();
        for (stored, compressor) in [(&b"metadata"[..], 1), (&compressed, 2)] {
            let blob = blob_with("image.boot", stored, compressor);
            let table = Table::of(&blob).unwrap();
            assert_eq!(table.part(&blob, "image.boot").unwrap(), b"metadata");
            assert!(table.part(&blob, "image").is_err());
            let end = blob.len() - Table::ENTRY - Table::HEADER;
            assert_eq!(table.digest, sha256(&blob[end..]));
        }
    }

    #[test]
    fn what_is_no_blob_of_nydus_is_refused() {
        let blob = blob_with("image.boot", b"metadata", 1);
        assert!(Table::of(&blob[..blob.len() - 1]).is_err());
        assert!(Table::of(b"short").is_err());
        for (at, byte) in [(0, 4), (63, 0x7f), (71, 0x7f)] {
            let mut wrong = blob.clone();
            let entry = wrong.len() - Table::HEADER - Table::ENTRY;
            wrong[entry + at] = byte;
            let table = Table::of(&wrong).unwrap();
            assert!(table.part(&wrong, "image.boot").is_err(), "{at}");
        }
    }
}
