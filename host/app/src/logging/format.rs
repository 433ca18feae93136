//! A line of the log: time, level, scope, message and fields, as istiod's are; or the same as JSON.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use trysail_proto::prost_types::Timestamp;

use super::scopes::{DEFAULT, Scopes};

/// Writes events.
pub struct Format {
    /// One JSON object a line.
    pub as_json: bool,
    /// Scopes of modules.
    pub scopes: Arc<Scopes>,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let (scope, callers) = self.scopes.of(metadata.target());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = Line {
            time: micros(SystemTime::now()),
            level: match *metadata.level() {
                Level::ERROR => "error",
                Level::WARN => "warn",
                Level::INFO => "info",
                Level::DEBUG | Level::TRACE => "debug",
            },
            scope,
            caller: metadata.file().zip(metadata.line()).filter(|_| callers),
            fields,
        };
        writer.write_str(&if self.as_json { line.json() } else { line.text() })
    }
}

/// A time with six digits of the second, as Go's.
fn micros(at: SystemTime) -> String {
    let mut at = Timestamp::from(at);
    at.nanos -= at.nanos % 1000;
    let text = at.to_string();
    let (whole, fraction) = text.trim_end_matches('Z').split_once('.').unwrap_or((text.trim_end_matches('Z'), ""));
    format!("{whole}.{fraction:0<6}Z")
}

struct Line {
    time: String,
    level: &'static str,
    scope: &'static str,
    caller: Option<(&'static str, u32)>,
    fields: Fields,
}

impl Line {
    fn text(&self) -> String {
        let Line { time, level, scope, caller, fields } = self;
        let mut line = format!("{time}\t{level}");
        let mut put = |part: &str| {
            line.push('\t');
            // A message is somebody's words; a line is one entry.
            line.push_str(&part.replace(['\n', '\r'], " "));
        };
        if *scope != DEFAULT {
            put(scope);
        }
        if let Some((file, number)) = caller {
            put(&format!("{file}:{number}"));
        }
        put(&fields.message);
        for (name, value) in &fields.rest {
            put(&match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            });
        }
        line.push('\n');
        line
    }

    fn json(self) -> String {
        let Line { time, level, scope, caller, fields } = self;
        let mut object = Map::new();
        object.insert("level".into(), level.into());
        object.insert("time".into(), time.into());
        if scope != DEFAULT {
            object.insert("scope".into(), scope.into());
        }
        if let Some((file, number)) = caller {
            object.insert("caller".into(), format!("{file}:{number}").into());
        }
        object.insert("msg".into(), fields.message.into());
        for (name, value) in fields.rest {
            object.entry(name).or_insert(value);
        }
        format!("{}\n", Value::Object(object))
    }
}

/// Message and fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing into a text does not fail.
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn line(scope: &'static str) -> Line {
        let rest = vec![("proxy", json!("a.ns")), ("n", json!(3))];
        let fields = Fields { message: "two\nlines".into(), rest };
        let time = micros(UNIX_EPOCH + Duration::from_micros(1_795_252_141_224_380));
        Line { time, level: "warn", scope, caller: None, fields }
    }

    #[test]
    fn lines_are_istiods() {
        assert_eq!(line("ads").text(), "2026-11-21T09:09:01.224380Z\twarn\tads\ttwo lines\tproxy=a.ns\tn=3\n");
        assert_eq!(line(DEFAULT).text().split('\t').nth(2), Some("two lines"), "the default scope is not named");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = line("ads").json();
        assert_eq!(text.lines().count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({"level": "warn", "time": "2026-11-21T09:09:01.224380Z", "scope": "ads",
            "msg": "two\nlines", "proxy": "a.ns", "n": 3});
        assert_eq!(value, expected);
    }

    #[test]
    fn whole_seconds_have_six_digits_too() {
        assert_eq!(micros(UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
    }
}
