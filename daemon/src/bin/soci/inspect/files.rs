//! Which files of a view were read.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::Result;
use proto::spanshot::control::v1 as api;
use serde_json::json;

use super::pretty;
use crate::control_client::{Control, Target};
use crate::paint::{bytes, micros, printable};
use crate::table;

/// What was read of one file.
struct File<'a> {
    path: &'a [u8],
    layer: &'a str,
    first: u64,
    reads: u64,
    bytes: u64,
    waits: u64,
    waited: u64,
    failed: u64,
}

pub(super) async fn show(control: &mut Control, target: &Target, as_json: bool) -> Result<String> {
    let request = api::ViewRequest {
        view: target.view.id,
    };
    let outcome = control.client.reads(request).await;
    let record = control.answer(outcome)?;
    let files = gather(&record.reads);
    if as_json {
        let rows = files.iter().map(|file| {
            json!({
                "path": printable(file.path), "layer": file.layer, "first_at_us": file.first,
                "reads": file.reads, "bytes": file.bytes, "waits": file.waits,
                "waited_us": file.waited, "failed": file.failed,
            })
        });
        let rows: Vec<_> = rows.collect();
        return pretty(&json!({"files": rows, "reads_left_out": record.left_out}));
    }
    let rows: Vec<_> = files.iter().map(row).collect();
    let header = ["FIRST READ", "READS", "BYTES", "WAITED", "FAILED", "PATH"];
    let mut text = table::format(header, &rows);
    let (waits, waited) = files.iter().fold((0, 0), |(waits, waited), file| {
        (waits + file.waits, waited + file.waited)
    });
    let _ = writeln!(
        text,
        "\n{} files, {waits} reads that waited, {} in all. What is read again is read from the kernel's cache and not seen.",
        files.len(),
        micros(waited)
    );
    if record.left_out > 0 {
        let _ = writeln!(
            text,
            "The record is full: {} later reads are not in it.",
            record.left_out
        );
    }
    Ok(text)
}

fn row(file: &File<'_>) -> [String; 6] {
    [
        micros(file.first),
        file.reads.to_string(),
        bytes(file.bytes),
        match file.waits {
            0 => "-".to_owned(),
            _ => micros(file.waited),
        },
        file.failed.to_string(),
        printable(file.path),
    ]
}

/// In the order of first reads.
fn gather(reads: &[api::Read]) -> Vec<File<'_>> {
    let mut files: Vec<File<'_>> = Vec::new();
    let mut known: HashMap<(&[u8], &str), usize> = HashMap::new();
    for read in reads {
        let place = *known.entry((&read.path, &read.layer)).or_insert_with(|| {
            files.push(File {
                path: &read.path,
                layer: &read.layer,
                first: read.at_micros,
                reads: 0,
                bytes: 0,
                waits: 0,
                waited: 0,
                failed: 0,
            });
            files.len() - 1
        });
        let file = &mut files[place];
        file.reads += 1;
        file.bytes += read.length;
        file.waits += u64::from(read.waited_micros.is_some());
        file.waited += read.waited_micros.unwrap_or_default();
        file.failed += u64::from(read.failed);
    }
    files
}
