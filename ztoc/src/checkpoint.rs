//! Checkpoints: the decoder state at a span boundary, and the zinfo blob that holds them.
//!
//! A gzip layer's blob is a 12-byte header and 32,785 bytes per checkpoint, little endian. The
//! first generation (v1) leaves the first checkpoint out; only the blob's length tells the
//! two apart. A plain tar's blob is a small FlatBuffer with its span size.

mod window;

use std::sync::Arc;

pub use self::window::ZtocBytes;

use self::window::Windows;
use crate::compact::GroupedWindows;
use crate::error::{WindowError, ZinfoError};
use crate::unit::{CompressedOffset, UncompressedOffset};
use crate::wire::Reader;

/// Bytes of output that deflate may refer back to.
pub const WINDOW_LEN: usize = 32 * 1024;

const HEADER_LEN: usize = 12;
/// Where in a record the window is.
const WINDOW_AT: usize = 17;
const RECORD_LEN: usize = WINDOW_AT + WINDOW_LEN;

/// Where a span begins. Its window is kept apart: see [`crate::SpanTable::write_window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first byte of the blob that belongs to the span as a whole.
    pub compressed: CompressedOffset,
    /// The first uncompressed byte of the span.
    pub uncompressed: UncompressedOffset,
    /// 0..=7: how many of the most significant bits of the byte before `compressed` belong
    /// to the span too.
    pub bits: u8,
}

impl Checkpoint {
    /// The first byte of the blob that the span needs.
    pub fn first_byte(&self) -> CompressedOffset {
        CompressedOffset(self.compressed.0 - u64::from(self.bits != 0))
    }

    /// The first bit of the span, counted from the first bit of the blob.
    pub fn first_bit(&self) -> u128 {
        u128::from(self.compressed.0) * 8 - u128::from(self.bits)
    }

    /// The checkpoint at `bit` of the blob.
    pub(crate) fn at_bit(bit: u64, uncompressed: u64) -> Self {
        let bits = bit.wrapping_neg().to_le_bytes()[0] & 7;
        Self {
            compressed: CompressedOffset(bit.div_ceil(8)),
            uncompressed: UncompressedOffset(uncompressed),
            bits,
        }
    }
}

/// What the original calls zinfo: how to find and start each span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Zinfo {
    Gzip(GzipZinfo),
    Tar(TarZinfo),
}

/// Generation of a gzip zinfo blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZinfoVersion {
    /// Without a record for the first checkpoint, which is implied.
    V1,
    /// One record for each checkpoint.
    V2,
}

/// Checkpoints of a gzip layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GzipZinfo {
    pub(crate) version: ZinfoVersion,
    /// As given to the builder; may be anything in blobs of others.
    pub(crate) span_size: i64,
    pub(crate) checkpoints: Vec<Checkpoint>,
    windows: Windows,
}

impl GzipZinfo {
    pub(crate) fn new(span_size: i64) -> Self {
        Self {
            version: ZinfoVersion::V2,
            span_size,
            checkpoints: Vec::new(),
            windows: Windows::held(0),
        }
    }

    /// Those of a compact zTOC.
    pub(crate) fn grouped(
        span_size: i64,
        checkpoints: Vec<Checkpoint>,
        windows: GroupedWindows,
    ) -> Self {
        Self {
            version: ZinfoVersion::V2,
            span_size,
            checkpoints,
            windows: Windows::grouped(windows),
        }
    }

    /// The groups that the windows are in, if they are those of a compact zTOC.
    pub(crate) fn groups(&self) -> Option<&GroupedWindows> {
        self.windows.groups()
    }

    pub(crate) fn push(&mut self, checkpoint: Checkpoint, window: &[u8]) {
        self.checkpoints.push(checkpoint);
        self.windows.push(window);
    }

    /// The length of the blob, if it is v2.
    pub(crate) fn blob_len(&self) -> usize {
        HEADER_LEN + RECORD_LEN * self.checkpoints.len()
    }

    /// The 32 KiB of output before a checkpoint, older bytes first.
    pub(crate) fn write_window(&self, index: usize, into: &mut [u8]) -> Result<(), WindowError> {
        self.windows.write(index, into)
    }

    /// Bytes of memory that checkpoints and windows take.
    pub(crate) fn memory(&self) -> usize {
        self.checkpoints.capacity() * size_of::<Checkpoint>() + self.windows.memory()
    }

    /// Reads a blob. If it is told in which zTOC, and where there, it begins, the windows stay
    /// where they are.
    pub(crate) fn decode(
        blob: &[u8],
        left: Option<(Arc<dyn ZtocBytes>, usize)>,
    ) -> Result<Self, ZinfoError> {
        let (Some(have), Some(span_size)) = (array(blob, 0), array(blob, 4)) else {
            return Err(ZinfoError::Header(blob.len()));
        };
        let have = i32::from_le_bytes(have);
        let records = blob.get(HEADER_LEN..).unwrap_or_default();
        let (version, implied) = version(records.len(), have).ok_or(ZinfoError::Length {
            len: blob.len(),
            have,
        })?;
        let mut zinfo = Self::new(i64::from_le_bytes(span_size));
        zinfo.version = version;
        zinfo.windows = match left {
            None => Windows::held(implied),
            Some((ztoc, at)) => {
                let first = (at + HEADER_LEN + WINDOW_AT) as u64;
                Windows::left(implied, ztoc, first, RECORD_LEN as u64)
            }
        };
        let count = records.len() / RECORD_LEN;
        zinfo.windows.reserve(count);
        zinfo.checkpoints.reserve_exact(implied + count);
        if implied == 1 {
            zinfo.checkpoints.push(Checkpoint::at_bit(80, 0));
        }
        for record in records.chunks_exact(RECORD_LEN) {
            let checkpoint = decode_record(zinfo.checkpoints.len(), record)?;
            zinfo.push(checkpoint, &record[WINDOW_AT..]);
        }
        Ok(zinfo)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let skipped = usize::from(self.version == ZinfoVersion::V1);
        let count = self.checkpoints.len();
        let mut blob = Vec::with_capacity(HEADER_LEN + RECORD_LEN * count);
        let have = i32::try_from(count).expect("spans are counted in an i32");
        blob.extend_from_slice(&have.to_le_bytes());
        blob.extend_from_slice(&self.span_size.to_le_bytes());
        for (index, checkpoint) in self.checkpoints.iter().enumerate().skip(skipped) {
            blob.extend_from_slice(&checkpoint.compressed.0.to_le_bytes());
            blob.extend_from_slice(&checkpoint.uncompressed.0.to_le_bytes());
            blob.push(checkpoint.bits);
            let window = blob.len();
            blob.resize(window + WINDOW_LEN, 0);
            self.write_window(index, &mut blob[window..])
                .expect("the windows of a zTOC that can be encoded are in memory");
        }
        blob
    }
}

/// The version whose records for `have` checkpoints are `len` bytes, and how many it implies.
fn version(len: usize, have: i32) -> Option<(ZinfoVersion, usize)> {
    let have = usize::try_from(have).ok().filter(|have| *have > 0)?;
    let records = len / RECORD_LEN;
    if !len.is_multiple_of(RECORD_LEN) {
        None
    } else if records == have {
        Some((ZinfoVersion::V2, 0))
    } else if records == have - 1 {
        Some((ZinfoVersion::V1, 1))
    } else {
        None
    }
}

fn decode_record(index: usize, record: &[u8]) -> Result<Checkpoint, ZinfoError> {
    let number = |field, at| {
        let value = i64::from_le_bytes(array(record, at).unwrap_or_default());
        u64::try_from(value).map_err(|_| ZinfoError::Checkpoint {
            index,
            field,
            value,
        })
    };
    let (compressed, uncompressed) = (number("in", 0)?, number("out", 8)?);
    let bits = record[16];
    if bits > 7 || (bits != 0 && compressed == 0) {
        return Err(ZinfoError::Checkpoint {
            index,
            field: "bits",
            value: i64::from(bits),
        });
    }
    Ok(Checkpoint {
        compressed: CompressedOffset(compressed),
        uncompressed: UncompressedOffset(uncompressed),
        bits,
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Spans of a plain tar: all of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TarZinfo {
    /// The original writes 2; kept as read.
    pub(crate) version: i32,
    pub(crate) span_size: u64,
    /// Size of the whole file.
    pub(crate) size: u64,
}

impl TarZinfo {
    pub(crate) fn decode(blob: &[u8]) -> Result<Self, ZinfoError> {
        let reader = Reader::new(blob);
        let root = reader.root()?;
        let number = |field, id| -> Result<u64, ZinfoError> {
            let value = root.i64(id)?;
            u64::try_from(value).map_err(|_| ZinfoError::Number { field, value })
        };
        let span_size = number("the span size", 1)?;
        if span_size == 0 {
            return Err(ZinfoError::Number {
                field: "the span size",
                value: 0,
            });
        }
        Ok(Self {
            version: root.i32(0)?,
            span_size,
            size: number("the size", 2)?,
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut builder = flatbuffers::FlatBufferBuilder::new();
        let table = builder.start_table();
        builder.push_slot(4, self.version, 0);
        builder.push_slot(6, self.span_size.cast_signed(), 0);
        builder.push_slot(8, self.size.cast_signed(), 0);
        let table = builder.end_table(table);
        builder.finish_minimal(table);
        builder.finished_data().to_vec()
    }

    /// The number of spans.
    pub(crate) fn count(&self) -> u64 {
        self.size.div_ceil(self.span_size)
    }

    /// Where a span begins; the end of the file for the span behind the last.
    pub(crate) fn start(&self, index: u64) -> u64 {
        index.saturating_mul(self.span_size).min(self.size)
    }
}

impl Zinfo {
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Gzip(zinfo) => zinfo.checkpoints.len() as u64,
            Self::Tar(zinfo) => zinfo.count(),
        }
    }

    /// An upper limit of what [`Self::encode`] makes.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Gzip(zinfo) => zinfo.blob_len(),
            Self::Tar(_) => 64,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Gzip(zinfo) => zinfo.encode(),
            Self::Tar(zinfo) => zinfo.encode(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn blob(have: i32, records: &[(i64, i64, u8)]) -> Vec<u8> {
        let mut blob = [&have.to_le_bytes()[..], &4096_i64.to_le_bytes()].concat();
        for (compressed, uncompressed, bits) in records {
            blob.extend_from_slice(&compressed.to_le_bytes());
            blob.extend_from_slice(&uncompressed.to_le_bytes());
            blob.push(*bits);
            blob.extend((0..WINDOW_LEN).map(|i| i.to_le_bytes()[0] ^ bits));
        }
        blob
    }

    #[test]
    fn a_v1_blob_implies_its_first_checkpoint_and_is_written_back_as_v1() {
        let blob = blob(2, &[(1000, 5000, 3)]);
        let zinfo = GzipZinfo::decode(&blob, None).unwrap();
        assert_eq!(zinfo.version, ZinfoVersion::V1);
        assert_eq!(zinfo.checkpoints[0], Checkpoint::at_bit(80, 0));
        let mut window = vec![1; WINDOW_LEN];
        zinfo.write_window(0, &mut window).unwrap();
        assert!(window.iter().all(|byte| *byte == 0));
        zinfo.write_window(1, &mut window).unwrap();
        assert_eq!(window[..4], [3, 2, 1, 0]);
        assert_eq!(zinfo.encode(), blob);
    }

    #[test]
    fn twelve_bytes_with_one_checkpoint_are_v1_and_with_none_are_refused() {
        let one = GzipZinfo::decode(&blob(1, &[]), None).unwrap();
        assert_eq!((one.version, one.checkpoints.len()), (ZinfoVersion::V1, 1));
        assert!(GzipZinfo::decode(&blob(0, &[]), None).is_err());
    }

    #[test]
    fn a_length_that_fits_only_in_32_bit_arithmetic_is_refused() {
        let mut blob = vec![0; 195_566];
        blob[..4].copy_from_slice(&131_010_i32.to_le_bytes());
        let refused = GzipZinfo::decode(&blob, None);
        assert_eq!(
            refused,
            Err(ZinfoError::Length {
                len: 195_566,
                have: 131_010
            })
        );
    }

    #[test]
    fn negative_offsets_and_impossible_bit_counts_are_refused() {
        for record in [(-1, 0, 0), (10, -1, 0), (10, 0, 8), (0, 0, 1)] {
            assert!(
                GzipZinfo::decode(&blob(1, &[record]), None).is_err(),
                "{record:?}"
            );
        }
    }

    #[test]
    fn a_bit_position_and_a_checkpoint_say_the_same() {
        for bit in 80..120 {
            let checkpoint = Checkpoint::at_bit(bit, 7);
            assert_eq!(checkpoint.first_bit(), u128::from(bit));
            assert_eq!(checkpoint.first_byte().0, bit / 8);
        }
    }

    #[test]
    fn a_plain_tar_needs_a_span_size() {
        let zinfo = TarZinfo {
            version: 2,
            span_size: 0,
            size: 5,
        };
        assert!(TarZinfo::decode(&zinfo.encode()).is_err());
    }

    #[derive(Debug)]
    struct Kept(Vec<u8>);

    impl ZtocBytes for Kept {
        fn read_exact_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            into.copy_from_slice(&self.0[at..at + into.len()]);
            Ok(())
        }
    }

    #[test]
    fn windows_left_in_place_are_those_of_both_generations() {
        for have in [2, 3] {
            let mut blob = blob(have, &[(9, 9, 1), (70, 70, 2)]);
            blob[HEADER_LEN + WINDOW_AT] = 5;
            blob[HEADER_LEN + RECORD_LEN + WINDOW_AT + 3] = 6;
            let kept = Arc::new(Kept([&[0; 33], &blob[..]].concat()));
            let held = GzipZinfo::decode(&blob, None).unwrap();
            let left = GzipZinfo::decode(&blob, Some((kept, 33))).unwrap();
            assert_eq!(left.checkpoints, held.checkpoints);
            for index in 0..held.checkpoints.len() {
                let mut windows = [[1; WINDOW_LEN], [2; WINDOW_LEN]];
                held.write_window(index, &mut windows[0]).unwrap();
                left.write_window(index, &mut windows[1]).unwrap();
                assert!(windows[0] == windows[1], "{have} {index}");
            }
        }
    }

    proptest! {
        #[test]
        fn plain_tar_blobs_survive_a_round_trip(version: i32, span_size in 1..i64::MAX as u64,
                                                size in 0..i64::MAX as u64) {
            let zinfo = TarZinfo { version, span_size, size };
            prop_assert_eq!(TarZinfo::decode(&zinfo.encode()).unwrap(), zinfo);
        }

        #[test]
        fn arbitrary_bytes_are_decoded_to_their_like_or_refused(
            have in -1..3_i32, bytes in prop::collection::vec(any::<u8>(), 0..64),
            records in 0..3_usize,
        ) {
            let mut blob = blob(have, &[(9, 9, 1), (70, 70, 2)][..records.min(2)]);
            blob[12..].iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
            if let Ok(zinfo) = GzipZinfo::decode(&blob, None) {
                prop_assert_eq!(zinfo.encode(), blob);
            }
            let _ = TarZinfo::decode(&bytes);
        }
    }
}
