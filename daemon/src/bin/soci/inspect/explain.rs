//! Where a path in a container, or in a view, comes from.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use proto::spanshot::control::v1 as api;
use serde_json::json;
use tonic::Code;

use super::pretty;
use crate::control_client::{Control, Target};
use crate::member::components;
use crate::paint::{Colour, Paint, bytes, printable};

/// Who provides the path.
enum Provider {
    /// The container wrote it.
    Upper(PathBuf),
    /// The container deleted it.
    Deleted(PathBuf),
    /// A layer that is an ordinary directory.
    Directory(PathBuf),
    Lazy(Box<api::ExplainResponse>),
}

pub(super) async fn show(
    control: &mut Control,
    target: &Target,
    path: &str,
    as_json: bool,
) -> Result<String> {
    let provider = find(control, target, path).await?;
    match as_json {
        true => pretty(&value(&provider)),
        false => Ok(text(&provider)),
    }
}

/// Goes through what the container's overlay is made of, as overlayfs does; through the view alone if no
/// container was named.
async fn find(control: &mut Control, target: &Target, path: &str) -> Result<Provider> {
    let mount = &target.view.mountpoint;
    let container = target.container.as_ref();
    let inside = components(path.as_bytes()).join(&b'/');
    let inside = Path::new(OsStr::from_bytes(&inside));
    if let Some(upper) = container
        .map(|it| &it.upper)
        .filter(|upper| !upper.is_empty())
    {
        let there = Path::new(upper).join(inside);
        match fs::symlink_metadata(&there) {
            Ok(found) if found.file_type().is_char_device() && found.rdev() == 0 => {
                return Ok(Provider::Deleted(there));
            }
            Ok(found) if !found.is_dir() => return Ok(Provider::Upper(there)),
            _ => {}
        }
    }
    let lowers = container.map_or_else(|| vec![mount.clone()], |it| it.lower.clone());
    for lower in lowers {
        if lower == *mount {
            let request = api::ExplainRequest {
                view: target.view.id,
                path: path.as_bytes().to_vec(),
            };
            let outcome = control.client.explain(request).await;
            match outcome {
                Err(status) if status.code() == Code::NotFound => {}
                outcome => return Ok(Provider::Lazy(Box::new(control.answer(outcome)?))),
            }
        } else {
            let there = Path::new(&lower).join(inside);
            if fs::symlink_metadata(&there).is_ok() {
                return Ok(Provider::Directory(there));
            }
        }
    }
    bail!("{path}: neither the container nor any of its layers has this")
}

fn state(state: u32) -> &'static str {
    match state {
        0 => "absent",
        1 => "in flight",
        2 => "here, to be checked at first use",
        _ => "here",
    }
}

fn value(provider: &Provider) -> serde_json::Value {
    match provider {
        Provider::Upper(path) => json!({"provider": "container", "file": path}),
        Provider::Deleted(path) => json!({"provider": "deleted", "file": path}),
        Provider::Directory(path) => json!({"provider": "directory", "file": path}),
        Provider::Lazy(found) => json!({
            "provider": "lazy",
            "path": printable(&found.path),
            "kind": found.kind,
            "size": found.size,
            "layer": found.layer,
            "layer_number": found.layer_number,
            "layer_range": [found.layer_start, found.layer_end],
            "spans": found.spans.iter().map(|span| json!({
                "id": span.id, "state": state(span.state), "digest": span.digest,
                "compressed": [span.compressed_start, span.compressed_end],
                "uncompressed": [span.uncompressed_start, span.uncompressed_end],
                "checkpoint": {
                    "byte": span.compressed_start + u64::from(span.checkpoint_bits > 0),
                    "bits": span.checkpoint_bits,
                },
            })).collect::<Vec<_>>(),
        }),
    }
}

fn text(provider: &Provider) -> String {
    let found = match provider {
        Provider::Upper(path) => {
            return format!("written by the container: {}\n", path.display());
        }
        Provider::Deleted(path) => {
            return format!("deleted by the container: {}\n", path.display());
        }
        Provider::Directory(path) => {
            return format!("of a layer that is unpacked: {}\n", path.display());
        }
        Provider::Lazy(found) => found,
    };
    let paint = Paint::of_stdout();
    let mut text = format!(
        "path:     {}\nkind:     {}\nlayer:    {} (number {} from the bottom)\n",
        paint.text(Colour::Bold, &printable(&found.path)),
        found.kind,
        found.layer,
        found.layer_number
    );
    if found.kind != "reg" {
        return text;
    }
    let here = found.spans.iter().filter(|span| span.state >= 2).count();
    let _ = writeln!(
        text,
        "size:     {}\nentry:    bytes {} to {} of the layer's tar\nspans:    {}, {here} of them here",
        bytes(found.size),
        found.layer_start,
        found.layer_end,
        found.spans.len()
    );
    for span in &found.spans {
        let colour = match span.state {
            0 => Colour::Dim,
            1 => Colour::Yellow,
            _ => Colour::Green,
        };
        let _ = writeln!(
            text,
            "  span {:<5} {}  tar {}..{}, compressed {}..{} ({}), checkpoint at bit {} of byte {}",
            span.id,
            paint.text(colour, state(span.state)),
            span.uncompressed_start,
            span.uncompressed_end,
            span.compressed_start,
            span.compressed_end,
            bytes(span.compressed_end - span.compressed_start),
            (8 - span.checkpoint_bits) % 8,
            span.compressed_start,
        );
    }
    text
}
