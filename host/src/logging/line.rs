//! One event as a line of text.

use std::fmt::{self, Write};

use jiff::Timestamp;
use piman_core::text::{Escaped, EscapedJson};
use serde_json::{Map, Value};
use tracing::Level;
use tracing::field::{Field, Visit};

/// How a line is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    /// Time, level, message, fields.
    Human {
        /// Whether the level has a colour.
        color: bool,
    },
    /// The level as `<6>`; the journal adds the time.
    Journal,
    /// An object.
    Json,
}

/// The message and the fields of one event, in their order.
#[derive(Debug, Default)]
pub(super) struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    /// With a message and other fields.
    #[cfg(test)]
    pub(super) fn new<const N: usize>(message: &str, others: [(&'static str, Value); N]) -> Self {
        Self { message: message.to_owned(), others: others.into() }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.others.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// A line that is nothing but this message.
    pub(super) fn of_message(message: String) -> Self {
        Self { message, others: Vec::new() }
    }

    fn put(&mut self, field: &Field, value: Value) {
        // Fields whose names begin so are how `tracing-log` carries a record's metadata.
        if !field.name().starts_with("log.") {
            self.others.push((field.name(), value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.put(field, Value::String(format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.put(field, value.into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

impl Style {
    /// The line with its end.
    pub(super) fn line(self, level: Level, target: &str, fields: &Fields, now: Timestamp) -> String {
        match self {
            Self::Json => json(level, target, fields, now),
            Self::Journal => text(format!("<{}>", syslog(level)), fields),
            Self::Human { color: false } => text(format!("{now:.3} {level:<5} "), fields),
            Self::Human { color: true } => {
                text(format!("{now:.3} \x1b[{}m{level:<5}\x1b[0m ", color(level)), fields)
            }
        }
    }
}

fn text(mut line: String, fields: &Fields) -> String {
    let mut between = "";
    if !fields.message.is_empty() {
        let _ = write!(line, "{}", Escaped(&fields.message));
        between = " ";
    }
    for (name, value) in &fields.others {
        let _ = write!(line, "{between}{name}=");
        between = " ";
        match value {
            Value::String(text) if is_bare(text) => line.push_str(text),
            other => line.push_str(&escaped_json(other)),
        }
    }
    line.push('\n');
    line
}

fn json(level: Level, target: &str, fields: &Fields, now: Timestamp) -> String {
    let room = target.strip_prefix("piman::").and_then(|path| path.split("::").next()).unwrap_or(target);
    let mut object = Map::new();
    object.insert("time".into(), format!("{now:.3}").into());
    object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
    object.insert("room".into(), room.into());
    object.insert("target".into(), target.into());
    object.insert("message".into(), fields.message.as_str().into());
    let others = fields.others.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    object.insert("fields".into(), Value::Object(others));
    escaped_json(&Value::Object(object)) + "\n"
}

/// JSON that no terminal obeys.
fn escaped_json(value: &Value) -> String {
    EscapedJson(&value.to_string()).to_string()
}

/// Whether a value can stand without quotes.
fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_.:/@#+[]%".contains(c))
}

fn syslog(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG | Level::TRACE => 36,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::text::is_shown;

    fn hostile() -> Fields {
        Fields {
            message: "a\nb\x1b[31m\u{202e}c".into(),
            others: vec![("model", "Pi\n<3>fake\x1b]0;x\u{7}\u{202e}".into()), ("bytes", 5.into())],
        }
    }

    fn line(style: Style) -> String {
        style.line(Level::INFO, "piman::provision::control", &hostile(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn hostile_values_are_escaped_in_every_format() {
        for style in [Style::Json, Style::Journal, Style::Human { color: false }] {
            let line = line(style);
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(!line.trim_end().chars().any(|c| !is_shown(c)), "{line:?}");
        }
    }

    #[test]
    fn json_gives_values_back_as_they_were() {
        let value: Value = serde_json::from_str(&line(Style::Json)).expect("a JSON object");
        assert_eq!(value["level"], "info");
        assert_eq!(value["room"], "provision");
        assert_eq!(value["message"], "a\nb\x1b[31m\u{202e}c");
        assert_eq!(value["fields"]["model"], "Pi\n<3>fake\x1b]0;x\u{7}\u{202e}");
        assert_eq!(value["fields"]["bytes"], 5);
    }

    #[test]
    fn the_journal_gets_a_level_and_no_time() {
        assert!(line(Style::Journal).starts_with("<6>a"));
        assert!(line(Style::Human { color: false }).starts_with("1970-01-01T00:00:00.000Z INFO  a"));
    }
}
