//! The names in directories while a tree is built. Most archives are written in the order of names: then a new name is
//! behind all others of its directory, and what is looked up is the last one.

use std::collections::BTreeMap;

use super::draft::DraftIndex;
use super::room::room;

/// No name.
const NONE: u32 = u32::MAX;

/// The names of all directories, as they came. One list for all, as each directory's own would have to grow.
pub(super) struct Names<'t> {
    list: Vec<Name<'t>>,
}

#[derive(Clone, Copy)]
struct Name<'t> {
    name: &'t [u8],
    stands_for: DraftIndex,
    /// The next one in the same directory.
    next: u32,
}

/// The names in one directory.
pub(super) enum Children<'t> {
    /// All came in ascending order: a chain through the list.
    InOrder { first: u32, last: u32 },
    /// One did not, or one that is not the last was looked for.
    Sorted(BTreeMap<&'t [u8], DraftIndex>),
}

impl Default for Children<'_> {
    fn default() -> Self {
        Self::InOrder {
            first: NONE,
            last: NONE,
        }
    }
}

impl<'t> Names<'t> {
    /// With room for so many.
    pub(super) fn new(count: usize) -> Self {
        Self { list: room(count) }
    }

    /// What `name` stands for in the directory.
    pub(super) fn get(&self, directory: &mut Children<'t>, name: &[u8]) -> Option<DraftIndex> {
        if let Children::InOrder { last, .. } = *directory {
            let last = self.at(last)?;
            if last.name <= name {
                return (last.name == name).then_some(last.stands_for);
            }
        }
        self.sort(directory).get(name).copied()
    }

    /// Has `name` stand for `child` in the directory; returns what it stood for.
    pub(super) fn insert(
        &mut self,
        directory: &mut Children<'t>,
        name: &'t [u8],
        child: DraftIndex,
    ) -> Option<DraftIndex> {
        let added = u32::try_from(self.list.len()).ok().filter(|&at| at != NONE);
        if let (Children::InOrder { first, last }, Some(added)) = (&mut *directory, added)
            && self.at(*last).is_none_or(|last| last.name < name)
        {
            match self.list.get_mut(*last as usize) {
                Some(last) => last.next = added,
                None => *first = added,
            }
            *last = added;
            self.list.push(Name {
                name,
                stands_for: child,
                next: NONE,
            });
            return None;
        }
        self.sort(directory).insert(name, child)
    }

    /// All names in the directory, ascending.
    pub(super) fn iter<'s>(
        &'s self,
        directory: &'s Children<'t>,
    ) -> impl Iterator<Item = (&'t [u8], DraftIndex)> {
        let (first, sorted) = match directory {
            Children::InOrder { first, .. } => (*first, None),
            Children::Sorted(sorted) => (NONE, Some(sorted)),
        };
        let chain = std::iter::successors(self.at(first), |name| self.at(name.next));
        let sorted = sorted.into_iter().flatten();
        chain
            .map(|name| (name.name, name.stands_for))
            .chain(sorted.map(|(name, child)| (*name, *child)))
    }

    fn at(&self, number: u32) -> Option<&Name<'t>> {
        self.list.get(number as usize)
    }

    /// The names of the directory as a sorted map, from now on.
    fn sort<'d>(&self, directory: &'d mut Children<'t>) -> &'d mut BTreeMap<&'t [u8], DraftIndex> {
        if let Children::InOrder { .. } = directory {
            *directory = Children::Sorted(self.iter(directory).collect());
        }
        match directory {
            Children::Sorted(sorted) => sorted,
            Children::InOrder { .. } => unreachable!("sorted above"),
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
            let mut order = names.clone();
            order[..sorted].sort();
            let mut ours = Names::new(0);
            // Two directories whose names come in turn.
            let mut directories = [Children::default(), Children::default()];
            let mut maps = [BTreeMap::new(), BTreeMap::new()];
            for (name, child) in order.iter().zip(0..) {
                let which = child as usize % 2;
                let (directory, map) = (&mut directories[which], &mut maps[which]);
                if child % 3 == 0 {
                    assert_eq!(ours.get(directory, name), map.get(&**name).copied());
                }
                assert_eq!(
                    ours.insert(directory, name, child),
                    map.insert(&**name, child)
                );
                assert_eq!(ours.get(directory, name), Some(child));
            }
            for (directory, map) in directories.iter().zip(maps) {
                assert!(ours.iter(directory).eq(map));
            }
        }
    }
}
