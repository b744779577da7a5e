//! One view: its layers, and a map of their spans.

use std::fmt::Write as _;

use proto::spanshot::control::v1 as api;

use super::value::{Totals, fuse_requests, over};
use crate::control_client::images;
use crate::paint::{Colour, Paint, bytes, micros, percent, printable};

/// Cells of a map; a layer with more spans has several of them in a cell.
const WIDTH: usize = 64;

pub(super) fn text(view: &api::View, spans: &[api::LayerSpans]) -> String {
    let paint = Paint::of_stdout();
    let totals = Totals::of(view);
    let mut text = String::new();
    place(&mut text, view, paint);
    work(&mut text, view, &totals);
    for (number, (layer, spans)) in view.layers.iter().zip(spans).enumerate().rev() {
        of_layer(&mut text, number, layer);
        let _ = writeln!(text, "  {}", map(&spans.states, paint));
    }
    let _ = writeln!(
        text,
        "\n{} here  {} partly here  {} in flight  {} absent",
        Cell::Here.paint(paint),
        Cell::Partly.paint(paint),
        Cell::InFlight.paint(paint),
        Cell::Absent.paint(paint)
    );
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{:<12} {value}", format!("{name}:"));
}

/// What is mounted where, and who has it.
fn place(text: &mut String, view: &api::View, paint: Paint) {
    let mut line = |name: &str, value: &str| line(text, name, value);
    line("view", &paint.text(Colour::Bold, &view.id.to_string()));
    for image in images(view) {
        line("image", &printable(image.as_bytes()));
    }
    line(
        "mounted at",
        &format!("{}, {} ago", view.mountpoint, micros(view.age_micros)),
    );
    for container in &view.containers {
        let name = match container.id.as_str() {
            "" => container.rootfs.clone(),
            id => format!("{id} (namespace {})", container.namespace),
        };
        line("container", &printable(name.as_bytes()));
    }
    if let Some(ids) = &view.ids {
        line("users", &ids.users);
        line("groups", &ids.groups);
    }
    for below in &view.below {
        line("above", below);
    }
}

/// What it has cost, and whom it kept waiting.
fn work(text: &mut String, view: &api::View, totals: &Totals) {
    let mut line = |name: &str, value: &str| line(text, name, value);
    let local = percent(totals.present, totals.spans);
    line(
        "local",
        &format!("{local}, {} of {} spans", totals.present, totals.spans),
    );
    line(
        "fetched",
        &format!(
            "{} of {} compressed, in {} requests, {} of them failed",
            bytes(totals.fetched),
            bytes(totals.compressed),
            totals.requests,
            totals.failed_requests
        ),
    );
    let waits = match (view.wait_p50_micros, view.wait_p99_micros) {
        (Some(p50), Some(p99)) => format!(
            "{} waited: half of them at most {}, 99 % at most {}",
            view.waits,
            micros(p50),
            micros(p99)
        ),
        _ => "none waited".to_owned(),
    };
    line(
        "reads",
        &format!(
            "{} given, {} failed, {waits}",
            bytes(view.bytes_read),
            totals.failed_reads
        ),
    );
    let over = over(totals.bytes_decoded, view.bytes_read);
    line(
        "work",
        &format!(
            "{} FUSE requests, {} spans decoded{}, {} copied",
            fuse_requests(view),
            totals.decoded,
            over.map_or_else(String::new, |over| format!(
                " ({over:.2} bytes for each byte read)"
            )),
            bytes(totals.copied)
        ),
    );
}

fn of_layer(text: &mut String, number: usize, layer: &api::Layer) {
    let form = match layer.compact {
        true => ", by its compact zTOC",
        false => "",
    };
    let _ = writeln!(
        text,
        "\nlayer {number} {}{form}\n  {} of {} spans of {}, {} requests, {} fetched, {} hits, {} misses",
        layer.digest,
        layer.spans_present,
        layer.spans,
        bytes(layer.uncompressed_size),
        layer.requests,
        bytes(layer.bytes_fetched),
        layer.hits,
        layer.misses,
    );
}

/// What a cell of the map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Here,
    Partly,
    InFlight,
    Absent,
}

impl Cell {
    fn of(states: &[u8]) -> Self {
        let here = states.iter().filter(|state| **state >= 2).count();
        if states.contains(&1) {
            Self::InFlight
        } else if here == states.len() {
            Self::Here
        } else if here > 0 {
            Self::Partly
        } else {
            Self::Absent
        }
    }

    fn paint(self, paint: Paint) -> String {
        match self {
            Self::Here => paint.text(Colour::Green, "█"),
            Self::Partly => paint.text(Colour::Green, "▒"),
            Self::InFlight => paint.text(Colour::Yellow, ">"),
            Self::Absent => paint.text(Colour::Dim, "·"),
        }
    }
}

fn map(states: &[u8], paint: Paint) -> String {
    let cells = cells(states, WIDTH);
    cells.into_iter().map(|cell| cell.paint(paint)).collect()
}

/// At most `width` cells, as even as can be; none is empty.
fn cells(states: &[u8], width: usize) -> Vec<Cell> {
    let count = states.len().min(width);
    (0..count)
        .map(|cell| {
            let (start, end) = (
                cell * states.len() / count,
                (cell + 1) * states.len() / count,
            );
            Cell::of(&states[start..end])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_layer_has_a_cell_for_each_span_and_a_large_one_hides_nothing_in_flight() {
        use Cell::{Absent, Here, InFlight, Partly};
        assert_eq!(cells(&[], 64), []);
        assert_eq!(cells(&[3, 2, 1, 0], 64), [Here, Here, InFlight, Absent]);
        assert_eq!(
            cells(&[3, 3, 3, 0, 0, 0, 0, 1], 4),
            [Here, Partly, Absent, InFlight]
        );
        assert_eq!(cells(&[0; 1000], 64).len(), 64);
    }
}
