//! Id mappings: which users and groups of this node those of a container in a user namespace are. Values only.

use std::fmt;

use super::labels;
use super::record::Labels;
use crate::error::SnapshotError;

/// The kernel's limit, and more than fit in a label.
const MAX_EXTENTS: usize = 340;

/// What the kernel shows for an id that has no counterpart.
const OVERFLOW: u32 = 65_534;

/// The mapping of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMapping {
    /// Of users.
    pub users: IdMap,
    /// Of groups.
    pub groups: IdMap,
}

/// Ranges of ids, in the order given; not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMap(Vec<Extent>);

/// Neighbouring ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    /// The first one as the container sees it.
    container: u32,
    /// The first one as this node sees it.
    host: u32,
    /// How many; at least 1.
    length: u32,
}

impl IdMapping {
    /// The mapping that a snapshot is labelled with, if it is. Labels of an image's layer map nothing: its files are
    /// everybody's.
    ///
    /// # Errors
    /// `Argument`: only one of the labels is there, or one is malformed.
    pub fn of(labels: &Labels) -> Result<Option<Self>, SnapshotError> {
        if labels.contains_key(labels::REF) {
            return Ok(None);
        }
        let read = |label: &'static str| {
            let text = labels.get(label).filter(|text| !text.is_empty())?;
            Some(IdMap::parse(text).ok_or_else(|| malformed(label, text)))
        };
        match (read(labels::UID_MAPPING), read(labels::GID_MAPPING)) {
            (None, None) => Ok(None),
            (Some(users), Some(groups)) => Ok(Some(Self {
                users: users?,
                groups: groups?,
            })),
            (Some(_), None) => Err(missing(labels::GID_MAPPING)),
            (None, Some(_)) => Err(missing(labels::UID_MAPPING)),
        }
    }

    /// User and group of this node that are the container's root.
    pub fn root(&self) -> (u32, u32) {
        (self.users.to_host(0), self.groups.to_host(0))
    }
}

impl IdMap {
    /// Reads `CONTAINER:HOST:LENGTH`, one or several separated by commas; `None` if it is not that, or maps more than
    /// ids there are. Whether ranges overlap is the kernel's to say.
    fn parse(text: &str) -> Option<Self> {
        let extents: Option<Vec<Extent>> = text
            .split(',')
            .take(MAX_EXTENTS + 1)
            .map(Extent::parse)
            .collect();
        let extents = extents.filter(|extents| extents.len() <= MAX_EXTENTS)?;
        Some(Self(extents))
    }

    /// The id of this node that the container's `id` is.
    pub fn to_host(&self, id: u32) -> u32 {
        let mut extents = self.0.iter();
        let host = extents.find_map(|extent| {
            let offset = id.checked_sub(extent.container)?;
            (offset < extent.length).then(|| extent.host + offset)
        });
        host.unwrap_or(OVERFLOW)
    }
}

impl Extent {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':').map(|number| number.trim().parse().ok());
        let mut next = || numbers.next().flatten();
        let extent = Self {
            container: next()?,
            host: next()?,
            length: next()?,
        };
        let within = |first: u32| first.checked_add(extent.length).is_some();
        let sound = extent.length > 0 && within(extent.container) && within(extent.host);
        (sound && numbers.next().is_none()).then_some(extent)
    }
}

/// As the kernel reads it from `/proc/PID/uid_map`.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for extent in &self.0 {
            let Extent {
                container,
                host,
                length,
            } = extent;
            writeln!(f, "{container} {host} {length}")?;
        }
        Ok(())
    }
}

fn malformed(label: &'static str, text: &str) -> SnapshotError {
    SnapshotError::Argument {
        what: "id mapping",
        detail: format!("label {label} is not CONTAINER:HOST:LENGTH[,...]: {text:?}"),
    }
}

fn missing(label: &'static str) -> SnapshotError {
    SnapshotError::Argument {
        what: "id mapping",
        detail: format!("label {label} is missing: users and groups are mapped together"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn labelled(users: &str, groups: &str) -> Result<Option<IdMapping>, SnapshotError> {
        let labels = [(labels::UID_MAPPING, users), (labels::GID_MAPPING, groups)];
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
        IdMapping::of(&labels.into())
    }

    #[test]
    fn labels_of_one_and_of_several_ranges_are_read() {
        let one = labelled("0:100000:65536", "0:200000:65536")
            .unwrap()
            .unwrap();
        assert_eq!(one.root(), (100_000, 200_000));
        assert_eq!(one.users.to_string(), "0 100000 65536\n");
        let several = labelled("0:1000:1,1:100000:65535", "0:1000:1")
            .unwrap()
            .unwrap();
        let hosts = [0, 1, 65_535, 65_536].map(|id| several.users.to_host(id));
        assert_eq!(hosts, [1000, 100_000, 165_534, OVERFLOW]);
        assert_eq!(several.users.to_string(), "0 1000 1\n1 100000 65535\n");
    }

    #[test]
    fn without_labels_nothing_is_mapped_and_an_image_layer_never_is() {
        assert_eq!(IdMapping::of(&Labels::new()).unwrap(), None);
        assert_eq!(labelled("", "").unwrap(), None);
        let labels =
            [labels::REF, labels::UID_MAPPING].map(|label| (label.to_owned(), "x".to_owned()));
        assert_eq!(IdMapping::of(&labels.into()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let most = vec!["0:1:1"; MAX_EXTENTS + 1].join(",");
        for text in [
            "0",
            "0:1",
            "0:1:0",
            "0:1:1:1",
            "0:1:1,",
            "a:1:1",
            "-1:1:1",
            "0:4294967295:2",
            "4294967295:0:1",
            &most,
        ] {
            let refused = labelled(text, "0:1:1");
            assert!(
                matches!(refused, Err(SnapshotError::Argument { .. })),
                "{text}"
            );
        }
        assert!(labelled("0:1:1", "").is_err() && labelled("", "0:1:1").is_err());
    }

    proptest! {
        #[test]
        fn no_label_brings_the_parser_down(text in "[0-9:, x]{0,40}", id in any::<u32>()) {
            if let Some(map) = IdMap::parse(&text) {
                let _ = (map.to_host(id), map.to_string());
            }
        }
    }
}
