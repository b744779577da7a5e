//! Logs: one JSON object per line on standard error, in the form that tools for the original read.
//!
//! Fields are `level` (in logrus' words), `msg`, `time` (RFC 3339 with nine digits), and those of the
//! event and of the spans around it. A field of a span that an event repeats is the event's.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::traces::Traces;

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

/// How much is logged, in logrus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

/// A word that names no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level {0:?}: use trace, debug, info, warn, error, fatal or panic")]
pub struct UnknownLevel(String);

impl FromStr for LogLevel {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "trace" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "warn" | "warning" => LevelFilter::WARN,
            "error" | "fatal" | "panic" => LevelFilter::ERROR,
            _ => return Err(UnknownLevel(text.to_owned())),
        }))
    }
}

/// Starts logging, and making traces if there are any, for the whole process. A second call changes nothing.
pub fn start(level: LogLevel, traces: Option<&Traces>) {
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(level.0.min(LevelFilter::INFO))
        .with_target("daemon", level.0)
        .with_target("fuse", level.0)
        .with_target("soci_snapshotter_grpc", level.0)
        .with_target(fuse::TRACE, LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .fmt_fields(JsonFields)
        .event_format(Line)
        .with_filter(filter);
    let subscriber = tracing_subscriber::registry()
        .with(traces.map(Traces::layer))
        .with(lines);
    // Only tests start logging twice in a process.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Formats an event as one line.
#[derive(Debug)]
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<FormattedFields<N>>() {
                fields.keep(&of_span.fields);
            }
        }
        event.record(&mut fields);
        let Fields(mut line) = fields;
        let message = line.remove("message").unwrap_or_default();
        line.insert("level".to_owned(), level(event.metadata().level()).into());
        line.insert("msg".to_owned(), message);
        line.insert("time".to_owned(), now().into());
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

/// logrus' names.
fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn now() -> String {
    OffsetDateTime::now_utc().format(TIME).unwrap_or_default()
}

/// Keeps a span's fields as a JSON object, for [`Line`] to merge.
#[derive(Debug)]
struct JsonFields;

impl<'w> FormatFields<'w> for JsonFields {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut writer: Writer<'w>,
        fields: R,
    ) -> fmt::Result {
        let mut map = Fields::default();
        fields.record(&mut map);
        let text = serde_json::to_string(&map.0).map_err(|_| fmt::Error)?;
        writer.write_str(&text)
    }
}

#[derive(Debug, Default)]
struct Fields(Map<String, Value>);

impl Fields {
    /// Adds the fields of an outer span, where they are not known yet. Fields recorded later stand
    /// in an object of their own behind the first.
    fn keep(&mut self, objects: &str) {
        let objects = serde_json::Deserializer::from_str(objects).into_iter::<Map<String, Value>>();
        for (name, value) in objects.flatten().flatten() {
            self.0.entry(name).or_insert(value);
        }
    }

    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, crate::error::chain(value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_what_readers_of_the_originals_log_expect() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields)
            .event_format(Line)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", image = "a/b:1", layer = "outer");
            let _entered = span.enter();
            tracing::warn!(
                "remote-snapshot-prepared" = "true",
                layer = "x\"\n",
                n = 3,
                "done"
            );
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!(line["msg"], "done");
        assert_eq!(line["remote-snapshot-prepared"], "true");
        assert_eq!(line["image"], "a/b:1");
        assert_eq!(line["layer"], "x\"\n");
        assert_eq!(line["n"], 3);
        let time = line["time"].as_str().unwrap();
        assert_eq!(time.len(), "2026-01-02T15:04:05.000000000Z".len(), "{time}");
    }

    #[test]
    fn levels_are_logrus_words() {
        assert_eq!("WARNING".parse(), Ok(LogLevel(LevelFilter::WARN)));
        assert_eq!("panic".parse(), Ok(LogLevel(LevelFilter::ERROR)));
        assert!("loud".parse::<LogLevel>().is_err());
    }
}
