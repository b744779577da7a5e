//! All views, and the layers that are not lazy.

use std::fmt::Write as _;

use proto::spanshot::control::v1 as api;

use super::value::Totals;
use crate::control_client::images;
use crate::paint::{bytes, micros, percent, printable};
use crate::table;

pub(super) fn text(views: &[api::View], prepared: &[api::Prepared]) -> String {
    let mut text = if views.is_empty() {
        "No view is mounted: no container runs on a lazy layer.\n".to_owned()
    } else {
        let rows: Vec<_> = views.iter().map(row).collect();
        table::format(
            [
                "VIEW",
                "IMAGE",
                "LAYERS",
                "LOCAL",
                "FETCHED",
                "READ",
                "REQUESTS",
                "HITS",
                "WAIT P50",
                "WAIT P99",
                "ERRORS",
                "CONTAINERS",
            ],
            &rows,
        )
    };
    let provided: Vec<_> = newest(prepared)
        .into_iter()
        .filter(|it| it.outcome != "lazy")
        .collect();
    if !provided.is_empty() {
        text.push_str("\nNot lazy:\n");
        let rows: Vec<_> = provided
            .iter()
            .map(|it| {
                let image = printable(it.image.as_bytes());
                let by = match it.outcome.as_str() {
                    "unpacked" => "unpacked here",
                    "deferred" => "left to containerd",
                    other => other,
                };
                [
                    image,
                    it.layer.clone(),
                    by.to_owned(),
                    printable(it.reason.as_bytes()),
                ]
            })
            .collect();
        text.push_str(&table::format(["IMAGE", "LAYER", "PROVIDED", "WHY"], &rows));
    }
    let lazy = newest(prepared)
        .iter()
        .filter(|it| it.outcome == "lazy")
        .count();
    let _ = writeln!(
        text,
        "\nOf the layers prepared last, {lazy} are lazy and {} are not.",
        provided.len()
    );
    text
}

/// The last word on each layer of each image. That one was there already says nothing of how it came.
fn newest(prepared: &[api::Prepared]) -> Vec<&api::Prepared> {
    let mut last: Vec<&api::Prepared> = Vec::new();
    for entry in prepared.iter().filter(|it| it.outcome != "known") {
        last.retain(|it| {
            (&it.image, &it.layer, &it.chain_id) != (&entry.image, &entry.layer, &entry.chain_id)
        });
        last.push(entry);
    }
    last
}

fn row(view: &api::View) -> [String; 12] {
    let totals = Totals::of(view);
    let wait = |micros_waited: Option<u64>| match micros_waited {
        Some(waited) => format!("<= {}", micros(waited)),
        None => "-".to_owned(),
    };
    let mut containers: Vec<_> = view.containers.iter().map(|it| it.id.as_str()).collect();
    let ids = view.ids.as_ref();
    let ids = ids.map(|ids| format!("(users {})", ids.users));
    containers.extend(ids.as_deref());
    [
        view.id.to_string(),
        images(view)
            .first()
            .map(|it| printable(it.as_bytes()))
            .unwrap_or_default(),
        view.layers.len().to_string(),
        percent(totals.present, totals.spans),
        bytes(totals.fetched),
        bytes(view.bytes_read),
        totals.requests.to_string(),
        percent(totals.hits, totals.hits + totals.misses),
        wait(view.wait_p50_micros),
        wait(view.wait_p99_micros),
        (totals.failed_reads + totals.failed_requests).to_string(),
        containers.join(" "),
    ]
}
