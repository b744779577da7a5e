//! The proof of a whole layer.
//!
//! A span is checked against its zTOC, and the zTOC against the index that names it. Whether the zTOC tells
//! the truth about the image's layer is known only when all of the layer is here. The compressed bytes
//! are gone by then, so it is the uncompressed layer that is hashed: its digest, the diff ID, stands in the image's
//! configuration, which the manifest names by digest. It is done once; what is fetched again later must
//! match the same zTOC.
//!
//! A zTOC ends with the archive, but what is behind its end belongs to the diff ID too: tar pads what it writes
//! with zeros to a multiple of its blocking factor. The usual few are tried; if that is not it, what is there is
//! fetched once more and decoded (see [`super::tail`]).
//!
//! A layer that fails is quarantined: it is read no more, neither now nor after a restart, and is not
//! prepared lazily with this zTOC again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use sha2::{Digest as _, Sha256};
use ztoc::{Digest, SpanId};

use super::Layer;
use super::counters::add;
use super::decode::Scratch;
use super::schedule::{Lane, Ticket};
use super::tail::Tail;

const UNPROVEN: u8 = 0;
const RUNNING: u8 = 1;
const PROVEN: u8 = 2;
const WRONG: u8 = 3;

/// The diff ID, once it is known.
const EXPECTED: &str = "diff_id";
/// There when the layer is what the image says.
const PROOF: &str = "proven";
/// There when it is not; says what it is.
const QUARANTINE: &str = "quarantined";

/// A tar is a number of blocks of this size.
const BLOCK: usize = 512;
/// Most blocks of zeros that are tried: tar's default blocking factor.
const MOST_PADDING: usize = 20;

/// How far the proof of a layer is.
#[derive(Debug)]
pub(crate) struct Proof {
    dir: PathBuf,
    expected: OnceLock<Digest>,
    state: AtomicU8,
}

/// One look at all spans, a span at a time: other work goes in between.
struct Pass {
    layer: Weak<Layer>,
    next: SpanId,
    hash: Sha256,
}

/// Whether the layer in `dir` is quarantined. Blocks on file I/O.
pub(crate) fn is_quarantined(dir: &Path) -> bool {
    dir.join(QUARANTINE).exists()
}

/// Whether the diff ID of the layer in `dir` is known. Blocks on file I/O.
pub(crate) fn is_expected(dir: &Path) -> bool {
    dir.join(EXPECTED).exists()
}

/// Notes the diff ID of the layer in `dir`. Blocks on file I/O.
pub(crate) fn expect(dir: &Path, diff_id: &Digest) -> io::Result<()> {
    fs::write(dir.join(EXPECTED), diff_id.to_string())
}

impl Proof {
    /// What is known of the layer in `dir`. Blocks on file I/O.
    pub(crate) fn open(dir: &Path) -> Self {
        let state = if dir.join(PROOF).exists() {
            PROVEN
        } else {
            UNPROVEN
        };
        let proof = Self {
            dir: dir.to_owned(),
            expected: OnceLock::new(),
            state: AtomicU8::new(state),
        };
        let known = fs::read_to_string(dir.join(EXPECTED)).ok();
        if let Some(diff_id) = known.and_then(|text| text.parse().ok()) {
            let _ = proof.expected.set(diff_id);
        }
        proof
    }

    /// Whether the layer must not be read.
    pub(crate) fn is_wrong(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WRONG
    }

    /// Whether all of the layer has been found to be what the image says.
    pub(crate) fn is_proven(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PROVEN
    }

    /// Ends the proof before all is here: the layer is wrong, as `why` says. The note for later processes is
    /// written by what this returns, which blocks on file I/O; nothing if that is known already.
    pub(crate) fn condemn(&self, why: String) -> Option<impl FnOnce() + Send + use<>> {
        let before = self.state.swap(WRONG, Ordering::AcqRel);
        let path = self.dir.join(QUARANTINE);
        (before != WRONG).then_some(move || {
            if let Err(error) = fs::write(&path, why) {
                tracing::warn!(path = %path.display(), "cannot note what the layer is: {error}");
            }
        })
    }

    /// Whether it is being made.
    #[cfg(test)]
    pub(crate) fn is_running(&self) -> bool {
        self.state.load(Ordering::Relaxed) == RUNNING
    }

    fn go(&self, from: u8, to: u8) -> bool {
        let moved = self
            .state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        moved.is_ok()
    }
}

impl Layer {
    /// Its uncompressed digest, by the image's configuration.
    pub(crate) fn expect(&self, diff_id: Digest) {
        let _ = self.proof.expected.set(diff_id);
        self.prove_if_whole();
    }

    /// Begins the proof if all spans are here and it has not been made.
    pub(crate) fn prove_if_whole(&self) {
        let due = self.proof.expected.get().is_some()
            && self.proof.state.load(Ordering::Relaxed) == UNPROVEN
            && self.flights.is_full();
        if due && self.proof.go(UNPROVEN, RUNNING) {
            let pass = Pass {
                layer: Weak::clone(&self.this),
                next: SpanId(0),
                hash: Sha256::new(),
            };
            let work = move |scratch: &mut Scratch| pass.step(scratch);
            let ticket = Arc::new(Ticket::new(Lane::Fill));
            self.engine.decoders.submit(&ticket, work);
        }
    }
}

impl Pass {
    fn step(mut self, scratch: &mut Scratch) {
        let Some(layer) = self.layer.upgrade() else {
            return;
        };
        if self.next.0 == layer.spans.count() {
            return self.conclude(&layer);
        }
        let range = layer.spans.uncompressed(self.next);
        let checked = layer.cache.check(self.next, &range, &mut scratch.plain);
        scratch.used(scratch.plain.len());
        if !matches!(checked, Ok(true)) {
            // Given up meanwhile, or damaged on disk: then it goes, and is fetched when it is read.
            if layer.evict(self.next) > 0 {
                add(&layer.counters.bad_cached_spans, 1);
            }
            layer.proof.go(RUNNING, UNPROVEN);
            return;
        }
        self.hash.update(&scratch.plain);
        self.next.0 += 1;
        let engine = Arc::clone(&layer.engine);
        drop(layer);
        let ticket = Arc::new(Ticket::new(Lane::Fill));
        engine
            .decoders
            .submit(&ticket, move |scratch| self.step(scratch));
    }

    fn conclude(self, layer: &Arc<Layer>) {
        let Some(expected) = layer.proof.expected.get() else {
            return;
        };
        if padded(&self.hash, layer.spans.uncompressed_size(), expected) {
            layer.judge(None);
        } else {
            Tail::fetch(layer, self.hash);
        }
    }
}

impl Layer {
    /// Ends the proof: what all of the layer is if that is not what it should be. Blocks on file I/O.
    pub(super) fn judge(&self, wrong: Option<Digest>) {
        let proof = &self.proof;
        let (file, text) = if let Some(actual) = wrong {
            let expected = proof.expected.get().copied().unwrap_or(actual);
            if proof.state.swap(WRONG, Ordering::AcqRel) == WRONG {
                return;
            }
            add(&self.counters.quarantined, 1);
            tracing::error!(
                layer = %self.digest, %expected, %actual,
                "THE LAYER IS NOT WHAT THE IMAGE SAYS: its zTOC describes other bytes. It is quarantined, its \
                 reads fail. Remove the image, and build and push its SOCI index again"
            );
            (QUARANTINE, format!("{actual} instead of {expected}\n"))
        } else {
            if !proof.go(RUNNING, PROVEN) {
                // Something else was found wrong meanwhile.
                return;
            }
            tracing::debug!(layer = %self.digest, "all of the layer is here and is what the image says");
            (PROOF, String::new())
        };
        if let Err(error) = fs::write(proof.dir.join(file), text) {
            tracing::warn!(layer = %self.digest, file, "cannot note what the layer is: {error}");
        }
        self.make_own_files();
    }

    /// Compares the digest of all bytes with the one expected.
    pub(super) fn judge_by(&self, hash: Sha256) {
        let actual = Digest::from_bytes(hash.finalize().into());
        let right = self.proof.expected.get() == Some(&actual);
        self.judge((!right).then_some(actual));
    }

    /// The proof cannot be made now; it is begun again when the layer is mounted or completed again.
    pub(super) fn put_off(&self, why: &str) {
        tracing::warn!(layer = %self.digest, "what is behind the end of the layer's archive cannot be proven now: {why}");
        self.proof.go(RUNNING, UNPROVEN);
    }
}

/// Whether `expected` is the digest of what was hashed, `size` bytes, and zeros up to some block's end.
fn padded(hash: &Sha256, size: u64, expected: &Digest) -> bool {
    let is_it = |hash: &Sha256| Digest::from_bytes(hash.clone().finalize().into()) == *expected;
    if is_it(hash) {
        return true;
    }
    let mut hash = hash.clone();
    let zeros = [0; BLOCK];
    let begun = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    hash.update(&zeros[begun..]);
    (0..=MOST_PADDING).any(|_| {
        let found = is_it(&hash);
        hash.update(zeros);
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_to_any_block_is_of_the_layer_and_nothing_else_is() {
        let archive = vec![7; 3000];
        let mut hash = Sha256::new();
        hash.update(&archive);
        let is_padded = |whole: &[u8]| padded(&hash, 3000, &Digest::of(whole));
        for length in [3000, 3072, 3584, 10_240, 3072 + 10_240] {
            let mut whole = archive.clone();
            whole.resize(length, 0);
            assert!(is_padded(&whole), "{length}");
            whole[2999] = 8;
            assert!(!is_padded(&whole), "{length}, another archive");
        }
        assert!(!is_padded(&[&archive[..], &[1]].concat()));
        assert!(!is_padded(&archive[..2999]));
        let mut more = archive;
        more.resize(3072 + 10_240 + 512, 0);
        assert!(!is_padded(&more), "more is decoded, not tried");
    }
}
