//! Reads and layers prepared, as messages and as they happen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuse::{Access, View};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use proto::spanshot::control::v1 as api;
use tonic::Status;

use super::Inside;
use super::journal::Entry;
use super::service::{layers_of, micros};
use crate::layer::Layer;

/// How late an event may be.
const INTERVAL: Duration = Duration::from_millis(100);

/// Reads with their paths and where they lie, in a view with `layers`, bottom first. Blocks on a look
/// through the names of the layers read.
pub fn read_messages(view: &View, layers: &[Arc<Layer>], reads: &[Access]) -> Vec<api::Read> {
    let paths = view.paths(reads.iter().map(|read| read.ino));
    reads
        .iter()
        .filter_map(|read| {
            let origin = view.origin(read.ino)?;
            let length = u64::from(read.len).min(origin.size.saturating_sub(read.offset));
            let (start, end) = if origin.contiguous {
                let start = origin.data.start.0.saturating_add(read.offset);
                (start, start.saturating_add(length))
            } else {
                (origin.data.start.0, origin.data.end.0)
            };
            let layer = layers.get(origin.layer);
            Some(api::Read {
                at_micros: micros(read.at),
                path: paths.get(&read.ino).cloned().unwrap_or_default(),
                offset: read.offset,
                length,
                waited_micros: read.waited.map(micros),
                failed: read.failed,
                layer: layer
                    .map(|layer| layer.digest().to_string())
                    .unwrap_or_default(),
                layer_start: start,
                layer_end: end,
            })
        })
        .collect()
}

pub(super) fn prepared_message(entry: Entry) -> api::Prepared {
    let at = entry.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    api::Prepared {
        at_micros: micros(at),
        chain_id: entry.chain_id,
        layer: entry.layer,
        image: entry.image,
        outcome: entry.outcome.to_owned(),
        reason: entry.reason,
    }
}

/// How far each log has been told.
struct Told {
    inside: Inside,
    faults: HashMap<u64, u64>,
    journal: u64,
    waiting: VecDeque<api::Event>,
}

/// What happens from now on; asks the logs now and then, as long as somebody listens.
pub(super) fn events(inside: Inside) -> BoxStream<'static, Result<api::Event, Status>> {
    let (_, journal) = inside.metrics.journal().since(u64::MAX);
    let views = inside.views.open();
    let faults = views
        .iter()
        .map(|view| (view.id, view.inside.accesses.faults(u64::MAX).1));
    let told = Told {
        faults: faults.collect(),
        journal,
        waiting: VecDeque::new(),
        inside,
    };
    stream::unfold(told, |mut told| async move {
        loop {
            if let Some(event) = told.waiting.pop_front() {
                return Some((Ok(event), told));
            }
            tokio::time::sleep(INTERVAL).await;
            let gathered = tokio::task::spawn_blocking(move || {
                told.gather();
                told
            });
            told = gathered.await.ok()?;
        }
    })
    .boxed()
}

impl Told {
    fn gather(&mut self) {
        let (entries, next) = self.inside.metrics.journal().since(self.journal);
        self.journal = next;
        let prepared = entries.into_iter().map(|entry| api::Event {
            event: Some(api::event::Event::Prepared(prepared_message(entry))),
        });
        self.waiting.extend(prepared);
        let views = self.inside.views.open();
        self.faults
            .retain(|id, _| views.iter().any(|view| view.id == *id));
        for view in views {
            let from = self.faults.get(&view.id).copied().unwrap_or_default();
            let (reads, next) = view.inside.accesses.faults(from);
            let id = view.id;
            self.faults.insert(id, next);
            if reads.is_empty() {
                continue;
            }
            let layers = layers_of(&self.inside, &view);
            let messages = read_messages(&view.inside.view, &layers, &reads);
            let faults = messages.into_iter().map(|read| api::Event {
                event: Some(api::event::Event::Fault(api::Fault {
                    view: id,
                    read: Some(read),
                })),
            });
            self.waiting.extend(faults);
        }
    }
}
