//! The id mapping that a snapshot is labelled with: which users and groups of this node the container's are.

use fuse::{Extent, IdMap, IdMapping};

use super::labels;
use super::record::Labels;
use crate::error::SnapshotError;

/// The mapping that a snapshot is labelled with, if it is. Labels of an image's layer map nothing: its files are
/// everybody's.
///
/// # Errors
/// `Argument`: only one of the labels is there, or one is no mapping.
pub fn of(labels: &Labels) -> Result<Option<IdMapping>, SnapshotError> {
    if labels.contains_key(labels::REF) {
        return Ok(None);
    }
    let read = |label: &'static str| {
        let text = labels.get(label).filter(|text| !text.is_empty())?;
        Some(parse(text).map_err(|why| refused(label, text, &why)))
    };
    match (read(labels::UID_MAPPING), read(labels::GID_MAPPING)) {
        (None, None) => Ok(None),
        (Some(users), Some(groups)) => Ok(Some(IdMapping {
            users: users?,
            groups: groups?,
        })),
        (Some(_), None) => Err(missing(labels::GID_MAPPING)),
        (None, Some(_)) => Err(missing(labels::UID_MAPPING)),
    }
}

/// Reads `CONTAINER:HOST:LENGTH`, one or several separated by commas; or what is wrong.
fn parse(text: &str) -> Result<IdMap, String> {
    let extents: Option<Vec<Extent>> = text.split(',').map(extent).collect();
    let extents = extents.ok_or("it is not CONTAINER:HOST:LENGTH[,...]")?;
    IdMap::new(extents).map_err(|error| error.to_string())
}

fn extent(text: &str) -> Option<Extent> {
    let mut numbers = text.split(':').map(|number| number.trim().parse().ok());
    let mut next = || numbers.next().flatten();
    let extent = Extent {
        container: next()?,
        host: next()?,
        length: next()?,
    };
    numbers.next().is_none().then_some(extent)
}

fn refused(label: &'static str, text: &str, why: &str) -> SnapshotError {
    SnapshotError::Argument {
        what: "id mapping",
        detail: format!("label {label}: {why}: {text:?}"),
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
        of(&labels.into())
    }

    #[test]
    fn labels_of_one_and_of_several_ranges_are_read() {
        let one = labelled("0:100000:65536", "0:200000:65536")
            .unwrap()
            .unwrap();
        assert_eq!(one.root(), (100_000, 200_000));
        let several = labelled("0:1000:1,1:100000:65535", "0:1000:1")
            .unwrap()
            .unwrap();
        assert_eq!(several.users.to_string(), "0:1000:1,1:100000:65535");
        assert_eq!(several.root(), (1000, 1000));
    }

    #[test]
    fn without_labels_nothing_is_mapped_and_an_image_layer_never_is() {
        assert_eq!(of(&Labels::new()).unwrap(), None);
        assert_eq!(labelled("", "").unwrap(), None);
        let labels =
            [labels::REF, labels::UID_MAPPING].map(|label| (label.to_owned(), "x".to_owned()));
        assert_eq!(of(&labels.into()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let many: Vec<String> = (0..400).map(|id| format!("{id}:{id}:1")).collect();
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
            "0:1000:10,10:1005:10",
            &many.join(","),
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
        fn no_label_brings_the_parser_down_and_what_is_read_is_read_again(text in "[0-9:, x]{0,40}") {
            if let Ok(map) = parse(&text) {
                prop_assert_eq!(parse(&map.to_string()), Ok(map));
            }
        }
    }
}
