//! The names in a directory while its tree is built. Most archives are written in the order of names, and
//! then a new name is behind all others.

use std::collections::BTreeMap;

use super::build::DraftIndex;

/// Names and what they stand for.
#[derive(Debug, Default)]
pub(super) struct Children<'t> {
    /// Ascending.
    in_order: Vec<(&'t [u8], DraftIndex)>,
    /// Names that came out of order; none that is in `in_order`.
    others: BTreeMap<&'t [u8], DraftIndex>,
}

impl<'t> Children<'t> {
    /// What `name` stands for.
    pub(super) fn get(&self, name: &[u8]) -> Option<DraftIndex> {
        match self.find(name) {
            Ok(at) => Some(self.in_order[at].1),
            Err(_) => self.others.get(name).copied(),
        }
    }

    /// Has `name` stand for `child`; returns what it stood for.
    pub(super) fn insert(&mut self, name: &'t [u8], child: DraftIndex) -> Option<DraftIndex> {
        match self.find(name) {
            Ok(at) => Some(std::mem::replace(&mut self.in_order[at].1, child)),
            Err(at) if at == self.in_order.len() && !self.others.contains_key(name) => {
                self.in_order.push((name, child));
                None
            }
            Err(_) => self.others.insert(name, child),
        }
    }

    /// All of them, ascending by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'t [u8], DraftIndex)> {
        let mut in_order = self.in_order.iter().copied().peekable();
        let mut others = self
            .others
            .iter()
            .map(|(name, child)| (*name, *child))
            .peekable();
        std::iter::from_fn(move || match (in_order.peek(), others.peek()) {
            (Some(one), Some(other)) if other.0 < one.0 => others.next(),
            (Some(_), _) => in_order.next(),
            (None, _) => others.next(),
        })
    }

    /// Where `name` is in `in_order`, or belongs.
    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        match self.in_order.last() {
            Some((last, _)) if *last >= name => {
                self.in_order.binary_search_by(|(one, _)| (*one).cmp(name))
            }
            _ => Err(self.in_order.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_order_are_as_in_a_sorted_map() {
        let names: Vec<Vec<u8>> = (0..400u32)
            .map(|number| {
                (number.wrapping_mul(2_654_435_761) % 97)
                    .to_string()
                    .into_bytes()
            })
            .collect();
        for sorted in [0, 50, 400] {
            let mut names = names.clone();
            names[..sorted].sort();
            let (mut ours, mut map) = (Children::default(), BTreeMap::new());
            for (name, child) in names.iter().zip(0..) {
                assert_eq!(ours.get(name), map.get(&**name).copied());
                assert_eq!(ours.insert(name, child), map.insert(&**name, child));
                assert_eq!(ours.get(name), Some(child));
            }
            assert!(ours.iter().eq(map));
        }
    }
}
