//! The fast loop on unchecked memory, with x86's bit field instruction where there is
//! one. This is the inflater's only unsafe code; without the feature `fast` the same loop
//! runs on checked slices.
#![allow(unsafe_code)]
// Shortened is only what is known to be short.
#![allow(clippy::cast_possible_truncation)]

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::__cpuid;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::fast::Cut;
use super::fast::{self, Leave, Limits, Memory, Place, Plain};
use super::tables::BlockTables;

/// Input, output and tables without bounds checks.
struct Raw<'a> {
    input: &'a [u8],
    out: &'a mut [u8],
    tables: &'a BlockTables,
}

/// Decodes as [`fast::decode`].
pub(super) fn decode(
    input: &[u8],
    out: &mut [u8],
    tables: &BlockTables,
    limits: Limits,
    place: &mut Place,
) -> Leave {
    let mut raw = Raw { input, out, tables };
    #[cfg(target_arch = "x86_64")]
    match cpu() {
        // SAFETY: `cpu` has found the features.
        Cpu::Bextr => return unsafe { decode_bextr(&mut raw, limits, place) },
        // SAFETY: as above.
        Cpu::Bmi => return unsafe { decode_bmi(&mut raw, limits, place) },
        Cpu::Plain => {}
    }
    fast::decode::<Plain>(&mut raw, limits, place)
}

/// Which loop suits the processor.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Cpu {
    /// It has neither BMI1 nor BMI2.
    Plain,
    /// It has both: masks and shifts by any register.
    Bmi,
    /// It has both, and `BEXTR` is fast.
    Bextr,
}

/// `BEXTR` is a single quick instruction on AMD's processors. On Intel's it takes as long as the shift and the
/// mask that it stands for, and the shift is needed anyway: there it costs 3 %.
#[cfg(target_arch = "x86_64")]
fn cpu() -> Cpu {
    static CPU: LazyLock<Cpu> = LazyLock::new(|| {
        // Miri asks no processor; told to have the features, it takes what uses most of them.
        let amd = cfg!(miri) || __cpuid(0).ebx == u32::from_le_bytes(*b"Auth");
        match is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
            true if amd => Cpu::Bextr,
            true => Cpu::Bmi,
            false => Cpu::Plain,
        }
    });
    *CPU
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn decode_bextr(raw: &mut Raw<'_>, limits: Limits, place: &mut Place) -> Leave {
    fast::decode::<Bextr>(raw, limits, place)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn decode_bmi(raw: &mut Raw<'_>, limits: Limits, place: &mut Place) -> Leave {
    fast::decode::<Bmi>(raw, limits, place)
}

/// With BMI2's instruction for the lowest bits.
#[cfg(target_arch = "x86_64")]
struct Bmi;

#[cfg(target_arch = "x86_64")]
impl Cut for Bmi {
    #[inline(always)]
    fn low(value: u64, count: u64) -> u64 {
        // SAFETY: only `decode_bmi` and `decode_bextr` run the loop with it.
        unsafe { core::arch::x86_64::_bzhi_u64(value, count as u32) }
    }
}

/// With BMI1's instruction for bit fields, too.
#[cfg(target_arch = "x86_64")]
struct Bextr;

#[cfg(target_arch = "x86_64")]
impl Cut for Bextr {
    const BY_CONTROL: bool = true;

    #[inline(always)]
    fn field(value: u64, control: u64) -> u64 {
        // SAFETY: only `decode_bextr` runs the loop with it.
        unsafe { core::arch::x86_64::_bextr2_u64(value, control) }
    }

    #[inline(always)]
    fn low(value: u64, count: u64) -> u64 {
        Bmi::low(value, count)
    }
}

// SAFETY of all that follows: the loop calls these with what its limits allow; see there.
impl Memory for Raw<'_> {
    #[inline(always)]
    fn input_word(&self, at: usize) -> u64 {
        debug_assert!(at + 8 <= self.input.len());
        // SAFETY: refills begin within the input slack of `Limits`.
        unsafe { u64::from_le(self.input.as_ptr().add(at).cast::<u64>().read_unaligned()) }
    }

    #[inline(always)]
    fn litlen(&self, index: usize) -> u32 {
        debug_assert!(index < self.tables.litlen.len());
        // SAFETY: an index is below 2048, or a subtable's start plus its index bits.
        unsafe { *self.tables.litlen.get_unchecked(index) }
    }

    #[inline(always)]
    fn distance(&self, index: usize) -> u64 {
        debug_assert!(index < self.tables.distance.len());
        // SAFETY: an index is below 256, or a subtable's start plus its index bits.
        unsafe { *self.tables.distance.get_unchecked(index) }
    }

    #[inline(always)]
    fn put(&mut self, at: usize, byte: u8) {
        debug_assert!(at < self.out.len());
        // SAFETY: within the output slack of `Limits`.
        unsafe { *self.out.get_unchecked_mut(at) = byte }
    }

    #[inline(always)]
    fn put_word(&mut self, at: usize, word: u64) {
        debug_assert!(at + 8 <= self.out.len());
        // SAFETY: within the output slack of `Limits`.
        unsafe {
            self.out
                .as_mut_ptr()
                .add(at)
                .cast::<u64>()
                .write_unaligned(word.to_le())
        }
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        debug_assert!(at + 8 <= self.out.len());
        // SAFETY: a match starts in the output (it is looked at, or `pos` is `FARTHEST` at least) and is read behind
        // where it is written.
        unsafe { u64::from_le(self.out.as_ptr().add(at).cast::<u64>().read_unaligned()) }
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        debug_assert!(at < self.out.len());
        // SAFETY: a match starts in the output, as above.
        unsafe { *self.out.get_unchecked(at) }
    }

    #[inline(always)]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn align(&self) {
        // SAFETY: only padding. Where the loop lies in its cache lines would change with any code that is linked in front of
        // it; at the beginning of one it is 4 % slower than a quarter, a half or three quarters of a line behind on Zen 3, and all but
        // three quarters are 1 to 3 % slower on Emerald Rapids.
        unsafe {
            core::arch::asm!(
                ".p2align 6",
                ".nops 48",
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    #[cfg(not(miri))]
    fn hold(&self, entry: u32) -> u32 {
        let mut entry = u64::from(entry);
        // SAFETY: no instruction. That it says to change `entry` makes the compiler load it
        // here instead of behind the branch where it is used, which costs 4 %.
        unsafe {
            core::arch::asm!("/* {} */", inout(reg) entry, options(nomem, nostack, preserves_flags));
        }
        entry as u32
    }
}
