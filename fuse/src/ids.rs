//! Id mappings: which users and groups of this node those of a container in a user namespace are. Values only.

mod values;

use std::fmt;

pub(crate) use self::values::mapped_value;

/// The kernel's limit.
const MOST_EXTENTS: usize = 340;

/// What the kernel shows for an id that has no counterpart, unless the system was told otherwise.
const OVERFLOW: u32 = 65_534;

/// No id: the kernel takes it for nobody's, as what is not mapped in a mount with mapped ids.
pub(crate) const NO_ID: u32 = u32::MAX;

/// The mapping of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdMapping {
    /// Of users.
    pub users: IdMap,
    /// Of groups.
    pub groups: IdMap,
}

/// Ranges of ids that do not overlap; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdMap(
    /// By the container's ids, ascending.
    Box<[Extent]>,
);

/// Neighbouring ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// The first one as the container sees it.
    pub container: u32,
    /// The first one as this node sees it.
    pub host: u32,
    /// How many; at least 1.
    pub length: u32,
}

/// Why ranges of ids are no map. The kernel refuses the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdMapError {
    /// There is none.
    #[error("there is no range of ids")]
    Empty,
    /// There are more than the kernel takes.
    #[error("there are more than {MOST_EXTENTS} ranges of ids")]
    TooMany,
    /// One is empty, or goes beyond the last id there is (2^32 - 2).
    #[error("a range of ids is empty or goes beyond the last id")]
    Range,
    /// Two have an id in common, of the container or of this node.
    #[error("two ranges of ids overlap")]
    Overlap,
}

impl IdMapping {
    /// User and group of this node that are the container's root; nobody if it has none.
    pub fn root(&self) -> (u32, u32) {
        (self.users.shown(0), self.groups.shown(0))
    }
}

impl IdMap {
    /// The map of `extents`, in any order.
    ///
    /// # Errors
    /// They are none.
    pub fn new(mut extents: Vec<Extent>) -> Result<Self, IdMapError> {
        match extents.len() {
            0 => return Err(IdMapError::Empty),
            1..=MOST_EXTENTS => {}
            _ => return Err(IdMapError::TooMany),
        }
        if !extents.iter().all(Extent::is_sound) {
            return Err(IdMapError::Range);
        }
        let firsts: [fn(&Extent) -> u32; 2] = [|it| it.host, |it| it.container];
        for first in firsts {
            extents.sort_unstable_by_key(first);
            let mut pairs = extents.windows(2);
            if pairs.any(|pair| first(&pair[0]) + pair[0].length > first(&pair[1])) {
                return Err(IdMapError::Overlap);
            }
        }
        Ok(Self(extents.into()))
    }

    /// Its ranges, ascending by the container's ids.
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// The id of this node that the container's `id` is; `None` if the container does not have it.
    pub fn to_host(&self, id: u32) -> Option<u32> {
        let next = self.0.partition_point(|extent| extent.container <= id);
        let extent = &self.0[next.checked_sub(1)?];
        let offset = id - extent.container;
        (offset < extent.length).then(|| extent.host + offset)
    }

    /// The container's id that `id` of this node is; `None` if it is none of the container's.
    pub fn to_container(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|extent| {
            let offset = id.checked_sub(extent.host)?;
            (offset < extent.length).then(|| extent.container + offset)
        })
    }

    /// What stat(2) shows on this node of a file that is the container's `id`'s.
    pub fn shown(&self, id: u32) -> u32 {
        self.to_host(id).unwrap_or(OVERFLOW)
    }

    /// An id of this node that the container does not have, if there is one.
    fn stranger(&self) -> u32 {
        let within = |id: u32| self.0.iter().find(|extent| extent.has_host(id));
        let mut stranger = OVERFLOW;
        if within(stranger).is_some() {
            stranger = NO_ID - 1;
        }
        while let Some(extent) = within(stranger)
            && let Some(below) = extent.host.checked_sub(1)
        {
            stranger = below;
        }
        stranger
    }
}

impl Extent {
    fn is_sound(&self) -> bool {
        let within = |first: u32| first.checked_add(self.length).is_some();
        self.length > 0 && within(self.container) && within(self.host)
    }

    fn has_host(&self, id: u32) -> bool {
        id.checked_sub(self.host)
            .is_some_and(|offset| offset < self.length)
    }
}

/// `CONTAINER:HOST:LENGTH`, separated by commas.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, extent) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            let Extent {
                container,
                host,
                length,
            } = extent;
            write!(f, "{comma}{container}:{host}:{length}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
