//! What the original does to a layer, as it does it: zlib in pieces of 16 KiB into a circular
//! window with checksums, block by block; then all of it again for the tar; then sha256.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use libz_sys as z;
use sha2::{Digest as _, Sha256};
use ztoc::SpanSize;
use ztoc::tar::Scanner;

const WINDOW: usize = 32 << 10;
/// As the original reads.
const CHUNK: usize = 16 << 10;

/// A checksum over (compressed, uncompressed) positions.
pub(crate) fn checksum(points: impl Iterator<Item = (u64, u64)>) -> u32 {
    let mut state: u32 = 1;
    for (compressed, uncompressed) in points {
        for value in [compressed, uncompressed] {
            state = state
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add((value ^ value >> 32) as u32);
        }
    }
    state
}

/// All three passes; the checksum of the checkpoints.
pub(crate) fn three(layer: &Path) -> Result<u32> {
    let mut points = Vec::new();
    let mut windows = Vec::new();
    let mut last = None;
    inflate(layer, z::Z_BLOCK, |state| {
        let due = last.is_none_or(|last| state.total_out - last > SpanSize::DEFAULT.bytes());
        if state.boundary && due {
            last = Some(state.total_out);
            points.push((state.total_in, state.total_out));
            windows.extend_from_slice(state.window);
        }
        Ok(())
    })?;
    let mut scanner = Scanner::new();
    inflate(layer, z::Z_NO_FLUSH, |state| Ok(scanner.feed(state.new)?))?;
    ensure!(!scanner.finish()?.entries.is_empty(), "no tar");
    digests(layer, &points)?;
    Ok(checksum(points.into_iter()))
}

/// sha256 of each span.
fn digests(layer: &Path, points: &[(u64, u64)]) -> Result<()> {
    let mut file = File::open(layer)?;
    let size = file.metadata()?.len();
    let ends = points.iter().skip(1).map(|point| point.0).chain([size]);
    let mut start = 0;
    for end in ends {
        let mut bytes = vec![0; usize::try_from(end - start)?];
        file.read_exact(&mut bytes)?;
        std::hint::black_box(Sha256::digest(&bytes));
        start = end;
    }
    Ok(())
}

/// Where zlib stopped.
struct State<'a> {
    /// At the end of a block that is not the last, or of the header.
    boundary: bool,
    total_in: u64,
    total_out: u64,
    /// What came out since the last stop.
    new: &'a [u8],
    window: &'a [u8],
}

/// Inflates a gzip file and tells of each stop.
fn inflate(layer: &Path, flush: i32, mut stop: impl FnMut(&State<'_>) -> Result<()>) -> Result<()> {
    let mut file = File::open(layer)?;
    let (mut input, mut window) = (vec![0; CHUNK], vec![0; WINDOW]);
    let (mut total_in, mut total_out) = (0_u64, 0_u64);
    let mut stream = Box::new(std::mem::MaybeUninit::<z::z_stream>::zeroed());
    let size = i32::try_from(size_of::<z::z_stream>())?;
    let place = stream.as_mut_ptr();
    // SAFETY: zlib takes an all-zero stream; size and version are its own; 47: gzip with checksum.
    let status = unsafe { z::inflateInit2_(place, 47, z::zlibVersion(), size) };
    ensure!(status == z::Z_OK, "zlib does not start");
    // SAFETY: zlib has put functions where there were none. It stays where it is.
    let mut stream = unsafe { stream.assume_init() };
    let status = loop {
        if stream.avail_in == 0 {
            let count = file.read(&mut input)?;
            ensure!(count > 0, "the layer is cut off");
            stream.avail_in = u32::try_from(count)?;
            stream.next_in = input.as_mut_ptr();
        }
        if stream.avail_out == 0 {
            stream.avail_out = u32::try_from(WINDOW)?;
            stream.next_out = window.as_mut_ptr();
        }
        let (had_in, had_out) = (stream.avail_in, stream.avail_out);
        // SAFETY: input and window live and are as long as the stream says.
        let status = unsafe { z::inflate(&mut *stream, flush) };
        total_in += u64::from(had_in - stream.avail_in);
        total_out += u64::from(had_out - stream.avail_out);
        if status != z::Z_OK && status != z::Z_STREAM_END && status != z::Z_BUF_ERROR {
            bail!("zlib refuses the layer: {status}");
        }
        stop(&State {
            boundary: stream.data_type & 128 != 0 && stream.data_type & 64 == 0,
            total_in,
            total_out,
            new: &window[WINDOW - had_out as usize..WINDOW - stream.avail_out as usize],
            window: &window,
        })?;
        if status == z::Z_STREAM_END {
            break status;
        }
    };
    ensure!(status == z::Z_STREAM_END, "no end");
    // SAFETY: it was initialised.
    unsafe { z::inflateEnd(&mut *stream) };
    Ok(())
}
