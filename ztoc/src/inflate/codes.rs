//! Prefix codes as a header gives them: by the length of each symbol's code (RFC 1951, 3.2.2).
//!
//! Tables are filled by length and, within a length, by symbol. So that nothing has to be sorted, each length has
//! a row of bits with one for each symbol: reading a length sets a bit, and filling walks the bits that are set.

/// Longest code.
pub(super) const MAX_LENGTH: usize = 15;
/// Lit/len codes that a header can give a length.
pub(super) const LITLEN_CODES: usize = 286;
/// Distance codes that a header can give a length.
pub(super) const DISTANCE_CODES: usize = 30;
/// Words that lit/len symbols take of a row.
pub(super) const LITLEN_WORDS: usize = 5;
/// Words of a row: all lit/len and distance symbols of a header, what a last repeat gives too much, and up to a
/// power of two.
const WORDS: usize = 8;

/// How many codes have each length; what is said of length 0 means nothing.
pub(super) type Counts = [u16; MAX_LENGTH + 1];

/// What lengths make of the code space.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// All of it is used.
    Full,
    /// None or one code of one bit: accepted, as zlib does.
    Lone,
    /// Too much or too little is used.
    Bad,
}

/// Which symbols have a code of which length: a row of bits for each length. The row of length 0 means nothing.
#[derive(Debug)]
pub(super) struct Lengths {
    rows: [[u64; WORDS]; MAX_LENGTH + 1],
    counts: Counts,
}

impl Lengths {
    /// No symbol has a code.
    pub(super) fn none() -> Self {
        Self {
            rows: [[0; WORDS]; MAX_LENGTH + 1],
            counts: [0; MAX_LENGTH + 1],
        }
    }

    /// Gives `times` symbols from `first` on, which is below 448, a code of `length` % 16 bits. Of those without a
    /// code, which come in long runs, not all need be noted; of others there are 63 at most.
    #[inline(always)]
    pub(super) fn give(&mut self, length: u8, first: usize, times: u8) {
        let length = usize::from(length % 16);
        let run = (1_u64 << (times % 64)) - 1;
        let (word, bit) = (first / 64, first % 64);
        self.rows[length][word % WORDS] |= run << bit;
        if bit + usize::from(times) > 64 {
            self.rows[length][(word + 1) % WORDS] |= run >> ((64 - bit) % 64);
        }
        self.counts[length] += u16::from(times);
    }

    /// The code of all symbols, which are fewer than 320.
    pub(super) fn code(&self) -> Code<'_> {
        Code {
            lengths: self,
            first: 0,
            counts: self.counts,
        }
    }

    /// The code of the first `litlen` symbols, 257 to 286, and that of those behind them, 30 at most.
    pub(super) fn split(&mut self, litlen: usize) -> (Code<'_>, Code<'_>) {
        let at = litlen % 64;
        let (mut first, mut second) = (self.counts, [0; MAX_LENGTH + 1]);
        for length in 1..=MAX_LENGTH {
            let words = &mut self.rows[length];
            words[LITLEN_WORDS] = words[LITLEN_WORDS - 1] >> at;
            words[LITLEN_WORDS - 1] &= (1 << at) - 1;
            let count = words[LITLEN_WORDS].count_ones();
            second[length] = u16::try_from(count).expect("a word has 64 bits");
            first[length] -= second[length];
        }
        let code = |first, counts| Code {
            lengths: self,
            first,
            counts,
        };
        (code(0, first), code(LITLEN_WORDS, second))
    }
}

/// The symbols of one alphabet with the lengths of their codes.
#[derive(Debug)]
pub(super) struct Code<'l> {
    lengths: &'l Lengths,
    /// Word of the first symbol.
    first: usize,
    pub(super) counts: Counts,
}

impl Code<'_> {
    /// Whether `symbol` has a code.
    pub(super) fn has(&self, symbol: usize) -> bool {
        let word = self.first + symbol / 64;
        let mut rows = self.lengths.rows[1..].iter();
        rows.any(|words| words[word] >> (symbol % 64) & 1 == 1)
    }

    /// Calls `with` for what `of` has for each symbol whose code has this length, in the order of the symbols.
    #[inline(always)]
    pub(super) fn each<T: Copy, const N: usize>(
        &self,
        length: u32,
        of: &[[T; 64]; N],
        mut with: impl FnMut(T),
    ) {
        let words = &self.lengths.rows[length as usize][self.first..][..N];
        for (&word, of) in words.iter().zip(of) {
            let mut left = word;
            while left != 0 {
                with(of[left.trailing_zeros() as usize % 64]);
                left &= left - 1;
            }
        }
    }

    /// Judges the lengths.
    pub(super) fn space(&self) -> Space {
        let used =
            (1..=MAX_LENGTH).map(|length| u32::from(self.counts[length]) << (MAX_LENGTH - length));
        let used: u32 = used.sum();
        match used {
            _ if used == 1 << MAX_LENGTH => Space::Full,
            0 => Space::Lone,
            _ if self.counts[1] == 1 && used == 1 << (MAX_LENGTH - 1) => Space::Lone,
            _ => Space::Bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What [`Code::each`] goes through: symbols as they are numbered.
    const SYMBOLS: [[usize; 64]; LITLEN_WORDS] = {
        let mut symbols = [[0; 64]; LITLEN_WORDS];
        let mut symbol = 0;
        while symbol < LITLEN_WORDS * 64 {
            symbols[symbol / 64][symbol % 64] = symbol;
            symbol += 1;
        }
        symbols
    };

    /// Runs of one length, with as many symbols as a header can say.
    fn runs() -> impl Strategy<Value = Vec<(u8, u8)>> {
        let run = prop_oneof![
            (1..16_u8, Just(1_u8)),
            (1..16_u8, 3..7_u8),
            (Just(0_u8), 1..139_u8)
        ];
        proptest::collection::vec(run, 1..200)
    }

    proptest! {
        #[test]
        fn each_length_has_its_symbols_in_their_order(runs in runs(), litlen in 257..287_usize, distance in 1..31_usize) {
            let (mut lengths, mut plain) = (Lengths::none(), Vec::new());
            for (length, times) in runs {
                if plain.len() + usize::from(times) > litlen + distance {
                    break;
                }
                lengths.give(length, plain.len(), times);
                plain.resize(plain.len() + usize::from(times), length);
            }
            plain.resize(litlen + distance, 0);
            let (litlens, distances) = plain.split_at(litlen);
            let (litlen_code, distance_code) = lengths.split(litlen);
            let distance_symbols = [SYMBOLS[0]];
            for length in 1..16_u8 {
                let expected = |of: &[u8]| -> Vec<usize> { (0..of.len()).filter(|&symbol| of[symbol] == length).collect() };
                let (mut found, mut found_distances) = (Vec::new(), Vec::new());
                litlen_code.each(length.into(), &SYMBOLS, |symbol| found.push(symbol));
                distance_code.each(length.into(), &distance_symbols, |symbol| found_distances.push(symbol));
                prop_assert_eq!(usize::from(litlen_code.counts[usize::from(length)]), found.len());
                prop_assert_eq!(usize::from(distance_code.counts[usize::from(length)]), found_distances.len());
                prop_assert_eq!(found, expected(litlens));
                prop_assert_eq!(found_distances, expected(distances));
            }
            for (symbol, &length) in litlens.iter().enumerate() {
                prop_assert_eq!(litlen_code.has(symbol), length != 0);
            }
        }
    }
}
