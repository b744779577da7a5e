//! What the next daemon must know of a mounted view: `<root>/views/<number>.json`, beside the mount point.
//!
//! Such a record lives from the mount to the unmount of its view and never over a reboot, so it is
//! renamed into place and not synced: one that a power cut spoils belongs to a mount that is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fuse::{Extent, IdMap, IdMapping, KernelOffer};
use serde::{Deserialize, Serialize};
use ztoc::Digest;

use crate::registry::digest_text;
use crate::snapshot::images::LazyLayer;

/// The version written here. It is counted up whenever a daemon that knows only the number before would
/// serve the kernel wrongly: another meaning of a field, and as well another way of numbering nodes,
/// ordering directories or merging layers, since the kernel remembers what it was told. A daemon adopts
/// records of its own version and of all before. Of a view that shows mapped ids.
const VERSION: u32 = 3;
/// Of a view with passthrough and the image's ids.
const PASSTHROUGH: u32 = 2;
/// Of a view with neither: served as before there was either.
const PLAIN: u32 = 1;
/// Largest record read, in bytes: 1000 layers have some 300 KiB.
const LARGEST: u64 = 4 << 20;

/// A mounted view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ViewRecord {
    version: u32,
    /// The kernel's side of the connection's handshake, as text.
    offer: String,
    /// Device number of the mounted file system, as stat(2) gives it.
    pub(super) device_number: u64,
    /// Bottom first.
    layers: Vec<RecordedLayer>,
    /// The lower directories it was merged above, nearest first.
    pub(super) below: Vec<PathBuf>,
    /// Files of at least so many bytes are counted when they are opened, and may be read by the kernel itself. Since
    /// version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passthrough: Option<u64>,
    /// The ids that it shows instead of the image's. Since version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ids: Option<RecordedIds>,
}

/// Ranges of ids: the container's first, this node's first, how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedIds {
    users: Vec<[u32; 3]>,
    groups: Vec<[u32; 3]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedLayer {
    #[serde(with = "digest_text")]
    digest: Digest,
    image: String,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why a record does not say how to serve a view.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the record cannot be read")]
    Io(#[from] io::Error),
    #[error("the record is damaged: {0}")]
    Damaged(String),
    #[error(
        "it was mounted by a newer version of this daemon (record version {found}, this one knows \
         up to {VERSION}): start that version again, or restart the containers that use the view"
    )]
    Newer { found: u32 },
}

impl ViewRecord {
    pub(super) fn new(
        layers: &[LazyLayer],
        below: &[PathBuf],
        offer: KernelOffer,
        device_number: u64,
    ) -> Self {
        let recorded = |layer: &LazyLayer| RecordedLayer {
            digest: layer.digest,
            image: layer.image.to_string(),
        };
        Self {
            version: PLAIN,
            passthrough: None,
            ids: None,
            offer: offer.to_string(),
            device_number,
            layers: layers.iter().map(recorded).collect(),
            below: below.to_owned(),
        }
    }

    /// The same for a view in which files of at least so many bytes are passed through. A daemon that does not know
    /// of that would not tell the kernel which backing file it reads from, and opens would fail.
    pub(super) fn passing_through(self, passthrough: Option<u64>) -> Self {
        Self {
            passthrough,
            ..self
        }
        .of_its_version()
    }

    /// The same for a view that shows `ids` instead of the image's. A daemon that does not know of that would give the files
    /// of a container to the node's own users.
    pub(super) fn showing(self, ids: Option<&IdMapping>) -> Self {
        let extents = |map: &IdMap| {
            let extents = map.extents().iter();
            extents
                .map(|it| [it.container, it.host, it.length])
                .collect()
        };
        let ids = ids.map(|ids| RecordedIds {
            users: extents(&ids.users),
            groups: extents(&ids.groups),
        });
        Self { ids, ..self }.of_its_version()
    }

    /// The first version that knows all it has.
    fn of_its_version(self) -> Self {
        let version = match (&self.ids, self.passthrough) {
            (Some(_), _) => VERSION,
            (None, Some(_)) => PASSTHROUGH,
            (None, None) => PLAIN,
        };
        Self { version, ..self }
    }

    pub(super) fn passthrough(&self) -> Option<u64> {
        self.passthrough
    }

    pub(super) fn ids(&self) -> Result<Option<IdMapping>, RecordError> {
        let Some(ids) = &self.ids else {
            return Ok(None);
        };
        let map = |extents: &[[u32; 3]]| {
            let extents = extents.iter().map(|&[container, host, length]| Extent {
                container,
                host,
                length,
            });
            let map = IdMap::new(extents.collect());
            map.map_err(|error| RecordError::Damaged(error.to_string()))
        };
        Ok(Some(IdMapping {
            users: map(&ids.users)?,
            groups: map(&ids.groups)?,
        }))
    }

    pub(super) fn offer(&self) -> Result<KernelOffer, RecordError> {
        let parsed = self.offer.parse();
        parsed.map_err(|error: fuse::OfferError| RecordError::Damaged(error.to_string()))
    }

    /// The layers, bottom first.
    pub(super) fn layers(&self) -> Result<Vec<LazyLayer>, RecordError> {
        let layer = |recorded: &RecordedLayer| {
            let image = recorded.image.parse();
            Ok(LazyLayer {
                digest: recorded.digest,
                image: image.map_err(|_| RecordError::Damaged("an image reference".to_owned()))?,
            })
        };
        match self.layers.is_empty() {
            true => Err(RecordError::Damaged("no layers".to_owned())),
            false => self.layers.iter().map(layer).collect(),
        }
    }

    /// Writes it to `path`, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec_pretty(self)?)?;
        fs::rename(unfinished, path)
    }

    pub(super) fn read(path: &Path) -> Result<Self, RecordError> {
        if path.metadata()?.len() > LARGEST {
            return Err(RecordError::Damaged("it is too large".to_owned()));
        }
        Self::parse(&fs::read(path)?)
    }

    /// The record in `text`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, RecordError> {
        let damaged = |error: serde_json::Error| RecordError::Damaged(error.to_string());
        let Versioned { version } = serde_json::from_slice(text).map_err(damaged)?;
        match version {
            PLAIN..=VERSION => {
                let record: Self = serde_json::from_slice(text).map_err(damaged)?;
                match record.ids.is_some() == (version == VERSION) {
                    true => Ok(record),
                    false => Err(RecordError::Damaged("ids and version".to_owned())),
                }
            }
            0 => Err(RecordError::Damaged("there was never version 0".to_owned())),
            found => Err(RecordError::Newer { found }),
        }
    }
}

/// For [`crate::hostile`]: some file.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    if let Ok(record) = ViewRecord::parse(bytes) {
        assert!((PLAIN..=VERSION).contains(&record.version));
        let _ = (record.offer(), record.layers(), record.ids());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As version 1 writes it. Not to be changed: daemons out there wrote such files.
    const FIRST: &str = r#"{
        "version": 1,
        "offer": "7 2d 20000 73fffffb",
        "device_number": 47,
        "layers": [{
            "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "image": "registry.test/name:tag"
        }],
        "below": ["/lower"]
    }"#;

    #[test]
    fn a_record_of_version_1_is_read() {
        let record = ViewRecord::parse(FIRST.as_bytes()).unwrap();
        assert_eq!(record.device_number, 47);
        assert_eq!(record.below, [Path::new("/lower")]);
        assert_eq!(record.offer().unwrap().to_string(), "7 2d 20000 73fffffb");
        let layers = record.layers().unwrap();
        assert_eq!(layers[0].digest, Digest::of(b""));
        assert_eq!(layers[0].image.to_string(), "registry.test/name:tag");
    }

    #[test]
    fn a_written_record_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        let record = ViewRecord::parse(FIRST.as_bytes()).unwrap();
        record.write(&path).unwrap();
        assert_eq!(ViewRecord::read(&path).unwrap(), record);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_view_with_passthrough_needs_a_daemon_that_knows_it() {
        let record = ViewRecord::parse(FIRST.as_bytes()).unwrap();
        assert_eq!((record.version, record.passthrough()), (1, None));
        assert_eq!(record.clone().passing_through(None), record);
        let through = record.passing_through(Some(1 << 20));
        let text = serde_json::to_vec(&through).unwrap();
        assert_eq!(ViewRecord::parse(&text).unwrap(), through);
        assert_eq!((through.version, through.passthrough()), (2, Some(1 << 20)));
    }

    #[test]
    fn only_a_view_that_shows_mapped_ids_needs_a_daemon_that_knows_those() {
        let map = |host| {
            let extent = |(container, host)| Extent {
                container,
                host,
                length: 1,
            };
            IdMap::new([(0, host), (1, 7)].map(extent).to_vec()).unwrap()
        };
        let ids = IdMapping {
            users: map(1000),
            groups: map(2000),
        };
        let plain = ViewRecord::parse(FIRST.as_bytes()).unwrap();
        assert_eq!(plain.ids().unwrap(), None);
        assert_eq!(plain.clone().showing(None), plain);
        for passthrough in [None, Some(1 << 20)] {
            let shifted = plain.clone().showing(Some(&ids));
            let shifted = shifted.passing_through(passthrough);
            let text = serde_json::to_string(&shifted).unwrap();
            let read = ViewRecord::parse(text.as_bytes()).unwrap();
            assert_eq!((read.version, read.passthrough()), (3, passthrough));
            assert_eq!(read.ids().unwrap().as_ref(), Some(&ids));
            // Never served without its ids, nor with such as the kernel would not take.
            for (right, wrong) in [("\"ids\"", "\"other\""), ("[1,7,1]", "[0,7,1]")] {
                let damaged = text.replace(right, wrong);
                let damaged = ViewRecord::parse(damaged.as_bytes()).and_then(|read| read.ids());
                assert!(matches!(damaged, Err(RecordError::Damaged(_))), "{wrong}");
            }
        }
    }

    #[test]
    fn a_newer_record_is_refused_with_what_to_do() {
        let text = r#"{"version": 4, "something": "new"}"#;
        let error = ViewRecord::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, RecordError::Newer { found: 4 }));
        assert!(error.to_string().contains("newer version"), "{error}");
    }

    #[test]
    fn what_is_no_record_is_damaged() {
        let version_0 = FIRST.replacen('1', "0", 1);
        for text in ["", "{}", "[1]", "\0", &FIRST[..200], &version_0] {
            let error = ViewRecord::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, RecordError::Damaged(_)), "{text}: {error}");
        }
        let none = FIRST.replace(r#""image": "registry.test/name:tag""#, r#""image": """#);
        assert!(
            ViewRecord::parse(none.as_bytes())
                .unwrap()
                .layers()
                .is_err()
        );
        let offer = FIRST.replace("7 2d", "7 x");
        assert!(
            ViewRecord::parse(offer.as_bytes())
                .unwrap()
                .offer()
                .is_err()
        );
    }
}
