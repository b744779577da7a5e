//! What the kernel offered when a view was mounted.

use std::fmt;
use std::str::FromStr;

use fuser::{KernelConfig, Version};

/// FUSE_INIT's opcode.
const INIT: u32 = 26;

/// Says that the upper half of the flags is there too.
const INIT_EXT: u64 = 1 << 30;

/// Bytes of `fuse_in_header` and `fuse_init_in`.
const REQUEST_LEN: u32 = 40 + 64;

/// The kernel's side of the handshake of a connection. It is told once, at the mount, and must be
/// known to whoever [adopts](crate::adopt) the connection later: keep it as text beside the
/// connection's descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOffer {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// A text that is no [`KernelOffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a kernel's FUSE offer: four numbers are expected, in hexadecimal")]
pub struct OfferError;

impl KernelOffer {
    pub(crate) fn of(config: &mut KernelConfig) -> Self {
        let Version(major, minor) = config.kernel_abi();
        // The limit is told only to who exceeds it.
        let max_readahead = match config.set_max_readahead(u32::MAX) {
            Ok(_) => u32::MAX,
            Err(limit) => limit,
        };
        Self {
            major,
            minor,
            max_readahead,
            flags: config.capabilities().bits(),
        }
    }

    /// The request that the kernel made this offer with: a `fuse_in_header` and a `fuse_init_in`.
    pub(super) fn request(&self) -> Vec<u8> {
        let [low, high] = halves(self.flags | INIT_EXT);
        let unique = 1u64.to_ne_bytes();
        let mut request = Vec::new();
        for word in [REQUEST_LEN, INIT] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(unique);
        // Node id, user, group, process, lengths of extensions: none.
        request.extend([0; 24]);
        for word in [self.major, self.minor, self.max_readahead, low, high] {
            request.extend(word.to_ne_bytes());
        }
        request.resize(REQUEST_LEN as usize, 0);
        request
    }
}

fn halves(flags: u64) -> [u32; 2] {
    let half = |shifted: u64| u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or_default();
    [half(flags), half(flags >> 32)]
}

impl fmt::Display for KernelOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            max_readahead,
            flags,
        } = self;
        write!(f, "{major:x} {minor:x} {max_readahead:x} {flags:x}")
    }
}

impl FromStr for KernelOffer {
    type Err = OfferError;

    fn from_str(text: &str) -> Result<Self, OfferError> {
        let numbers: Result<Vec<u64>, _> = text
            .split(' ')
            .map(|number| u64::from_str_radix(number, 16))
            .collect();
        let Ok(Ok([major, minor, max_readahead, flags])) = numbers.map(<[u64; 4]>::try_from) else {
            return Err(OfferError);
        };
        let word = |number| u32::try_from(number).map_err(|_| OfferError);
        Ok(Self {
            major: word(major)?,
            minor: word(minor)?,
            max_readahead: word(max_readahead)?,
            flags,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_offer_survives_being_written_down() {
        let offer = KernelOffer {
            major: 7,
            minor: 45,
            max_readahead: 131_072,
            flags: 0x7ff_ffff_ffff,
        };
        assert_eq!(offer.to_string().parse(), Ok(offer));
        for text in [
            "",
            "7",
            "7 2d 20000",
            "7 2d 20000 1 1",
            "7 2d 1ffffffff 1",
            "x y z w",
        ] {
            assert_eq!(text.parse::<KernelOffer>(), Err(OfferError));
        }
    }
}
