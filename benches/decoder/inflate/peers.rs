//! The inflaters, ours and others, behind one face.
#![allow(unsafe_code)]

use ztoc::inflate::{self, Cursor, Stop, Tables};

use crate::layer::{Span, WINDOW};

/// A decoder that is reused from span to span.
pub(crate) trait Inflater {
    /// Restores the state at a span's start and decodes to `out[WINDOW..]` as many bytes
    /// as fit.
    fn inflate(&mut self, span: &Span<'_>, out: &mut [u8]);
}

/// Ours.
pub(crate) struct Ours(Tables);

impl Ours {
    pub(crate) fn new() -> Self {
        Self(Tables::new())
    }
}

impl Inflater for Ours {
    fn inflate(&mut self, span: &Span<'_>, out: &mut [u8]) {
        out[..WINDOW].copy_from_slice(span.window);
        let mut cursor = Cursor::at_bit(span.bits.0.into());
        let end = out.len();
        let outcome = inflate::run(&mut self.0, span.input, &mut cursor, out, WINDOW, end);
        assert_eq!(outcome, Ok((Stop::OutputFull, end)));
    }
}

/// A library with zlib's interface.
macro_rules! zlib {
    ($name:ident, $library:ident) => {
        pub(crate) struct $name(Box<$library::z_stream>);

        impl $name {
            pub(crate) fn new() -> Self {
                let mut stream = Box::new(std::mem::MaybeUninit::<$library::z_stream>::zeroed());
                let size = i32::try_from(size_of::<$library::z_stream>()).expect("small");
                let place = stream.as_mut_ptr();
                let status =
                    // SAFETY: the library takes an all-zero stream; size and version are its own.
                    unsafe { $library::inflateInit2_(place, -15, $library::zlibVersion(), size) };
                assert_eq!(status, 0);
                // SAFETY: the library has put functions where there were none. It stays where it is.
                let stream = unsafe { stream.assume_init() };
                Self(stream)
            }
        }

        impl Inflater for $name {
            fn inflate(&mut self, span: &Span<'_>, out: &mut [u8]) {
                let out = &mut out[WINDOW..];
                let (skip, prime) = match span.bits.0 {
                    0 => (0, None),
                    bit => (
                        1,
                        Some((8 - i32::from(bit), i32::from(span.input[0] >> bit))),
                    ),
                };
                let stream = &mut *self.0;
                stream.next_in = span.input[skip..].as_ptr().cast_mut();
                stream.avail_in = u32::try_from(span.input.len() - skip).expect("a span");
                stream.next_out = out.as_mut_ptr();
                stream.avail_out = u32::try_from(out.len()).expect("a span");
                let window = u32::try_from(WINDOW).expect("32 KiB");
                // SAFETY: input, output and window outlive the calls.
                unsafe {
                    assert_eq!($library::inflateReset2(stream, -15), 0);
                    if let Some((bits, value)) = prime {
                        assert_eq!($library::inflatePrime(stream, bits, value), 0);
                    }
                    let dictionary = span.window.as_ptr();
                    assert_eq!(
                        $library::inflateSetDictionary(stream, dictionary, window),
                        0
                    );
                    $library::inflate(stream, 0);
                }
                assert_eq!(stream.avail_out, 0);
            }
        }
    };
}

zlib!(Zlib, libz_sys);
zlib!(ZlibNg, libz_ng_sys);
zlib!(ZlibRs, libz_rs_sys);

/// libdeflate decodes whole streams only, so it gets one per span: the window in a stored
/// block, empty blocks up to the span's bit, the span, an empty last block. It is made
/// beforehand and not measured.
pub(crate) struct Libdeflate(*mut libdeflate_sys::libdeflate_decompressor);

impl Libdeflate {
    pub(crate) fn new() -> Self {
        // SAFETY: no conditions.
        Self(unsafe { libdeflate_sys::libdeflate_alloc_decompressor() })
    }

    /// Decodes what [`whole_stream`] made.
    pub(crate) fn inflate(&mut self, stream: &[u8], out: &mut [u8]) {
        let mut written = 0;
        // SAFETY: the pointers and lengths are those of slices.
        let status = unsafe {
            let (input, output) = (stream.as_ptr().cast(), out.as_mut_ptr().cast());
            libdeflate_sys::libdeflate_deflate_decompress(
                self.0,
                input,
                stream.len(),
                output,
                out.len(),
                &raw mut written,
            )
        };
        assert_eq!((status, written), (0, out.len()));
    }
}

impl Drop for Libdeflate {
    fn drop(&mut self) {
        // SAFETY: it was allocated by the library and is used no more.
        unsafe { libdeflate_sys::libdeflate_free_decompressor(self.0) }
    }
}

/// A whole stream that decodes to a span's window and content.
pub(crate) fn whole_stream(span: &Span<'_>) -> Vec<u8> {
    let mut bits = Bits::default();
    let length = u16::try_from(WINDOW).expect("fits a stored block");
    bits.put(0, 8);
    bits.put(length.into(), 16);
    bits.put((!length).into(), 16);
    bits.bytes.extend_from_slice(span.window);
    bits.count += WINDOW as u64 * 8;
    if span.bits.0 % 2 == 1 {
        bits.put_empty_dynamic();
    }
    while bits.count % 8 != u64::from(span.bits.0) {
        bits.put(0b010, 10);
    }
    let (start, end) = (u64::from(span.bits.0), span.bits.1);
    for bit in start..start.next_multiple_of(8) {
        bits.put(u64::from(span.input[0] >> bit & 1), 1);
    }
    let first = start.div_ceil(8) as usize;
    bits.bytes
        .extend_from_slice(&span.input[first..(end / 8) as usize]);
    bits.count = bits.bytes.len() as u64 * 8;
    if end % 8 != 0 {
        bits.put(span.input[(end / 8) as usize].into(), (end % 8) as u32);
    }
    bits.put(0b011, 10);
    bits.bytes
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: u64,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        for bit in 0..count {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().expect("pushed") |=
                ((value >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
    }

    /// A block of 91 bits without content.
    fn put_empty_dynamic(&mut self) {
        // 257 lit/len codes, 2 distance codes, 18 code length codes.
        self.put(0b100 | 1 << 8 | 14 << 13, 17);
        // One bit each for the code length symbols 18 (as 1) and 1 (as 0).
        self.put(1 << 6 | 1 << 51, 54);
        // 256 zero lengths, then three of one bit; the end of the block.
        self.put(1 | (138 - 11) << 1 | 1 << 8 | (118 - 11) << 9, 16);
        self.put(0, 4);
    }
}
