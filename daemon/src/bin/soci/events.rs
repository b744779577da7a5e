//! `soci events`: what the daemon does, as it happens.

use std::io::Write;

use anyhow::Result;
use proto::spanshot::control::v1 as api;
use serde_json::json;

use crate::control_client::Control;
use crate::inspect::{prepared_value, read_value};
use crate::options::Globals;
use crate::paint::{Colour, Paint, bytes, micros, printable};

pub(crate) async fn run(globals: &Globals) -> Result<()> {
    let mut control = Control::new(globals);
    let outcome = control.client.events(()).await;
    let mut events = control.answer(outcome)?;
    let paint = Paint::of_stdout();
    // From here on nothing is missed.
    if globals.json {
        println!("{}", json!({"event": "listening"}));
    }
    loop {
        let message = events.message().await.map(tonic::Response::new);
        let Some(event) = control.answer(message)?.and_then(|event| event.event) else {
            return Ok(());
        };
        let line = match globals.json {
            true => value(&event).to_string(),
            false => text(&event, paint),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()?;
    }
}

fn value(event: &api::event::Event) -> serde_json::Value {
    match event {
        api::event::Event::Fault(fault) => {
            let read = fault.read.as_ref().map(read_value);
            json!({"event": "fault", "view": fault.view, "read": read})
        }
        api::event::Event::Prepared(layer) => {
            json!({"event": "prepared", "layer": prepared_value(layer)})
        }
    }
}

fn text(event: &api::event::Event, paint: Paint) -> String {
    match event {
        api::event::Event::Fault(fault) => {
            let read = fault.read.clone().unwrap_or_default();
            let word = match read.failed {
                true => paint.text(Colour::Red, "FAILED"),
                false => paint.text(Colour::Yellow, "fault "),
            };
            format!(
                "{word} view {} {} at {} waited {} for {}",
                fault.view,
                printable(&read.path),
                read.offset,
                micros(read.waited_micros.unwrap_or_default()),
                bytes(read.length)
            )
        }
        api::event::Event::Prepared(layer) => {
            let colour = if layer.outcome == "lazy" {
                Colour::Green
            } else {
                Colour::Yellow
            };
            let reason = match layer.reason.as_str() {
                "" => String::new(),
                reason => format!(": {}", printable(reason.as_bytes())),
            };
            format!(
                "{} {} of {}{reason}",
                paint.text(colour, &format!("{:<9}", layer.outcome)),
                layer.layer,
                printable(layer.image.as_bytes())
            )
        }
    }
}
