//! YAML events to values: anchors, merge keys, duplicate keys, bounds.

use rustc_hash::FxHashMap;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Value};

use super::{ChunkError, Duplicate, MAX_COPIED, MAX_DEPTH, Read, scalar};

/// Reads all documents of a chunk, each with the line it starts at.
///
/// What was read before an error is left in `values`.
pub(super) fn parse(chunk: &str, values: &mut Vec<Read>) -> Result<(), ChunkError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(chunk) {
        let (event, span) = event.map_err(|error| at_marker(&error))?;
        if let Some((line, value)) = builder.event(event, span).map_err(|reason| at_span(&span, reason))? {
            values.push(Read { line, value, duplicates: std::mem::take(&mut builder.duplicates) });
        }
    }
    Ok(())
}

fn nested() -> String {
    format!("nested more than {MAX_DEPTH} levels deep")
}

fn at_marker(error: &ScanError) -> ChunkError {
    let marker = error.marker();
    ChunkError { line: marker.line().max(1), column: marker.col() + 1, reason: error.info().to_owned() }
}

fn at_span(span: &Span, reason: String) -> ChunkError {
    ChunkError { line: span.start.line().max(1), column: span.start.col() + 1, reason }
}

/// A collection that is still open.
struct Open {
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Sequence(Vec<Value>),
    /// `merged` holds what `<<` brings in; explicit keys go before it.
    Mapping {
        map: Map<String, Value>,
        key: Option<Key>,
        merged: Vec<Value>,
    },
}

enum Key {
    Merge,
    Name(String),
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: FxHashMap<usize, (Value, usize)>,
    copied: usize,
    first_line: usize,
    duplicates: Vec<Duplicate>,
}

impl Builder {
    /// Takes an event; gives the document that it ended, with its line.
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<Option<(usize, Value)>, String> {
        match event {
            Event::DocumentStart(_) => {
                *self = Builder::default();
                Ok(None)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let merge = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                if merge && self.expects_key() {
                    self.set_key(Key::Merge, &span);
                    return Ok(None);
                }
                let value = resolve(text.into_owned(), style, tag.as_deref())?;
                self.remember(anchor, &value)?;
                self.value(value, &span)
            }
            Event::Alias(anchor) => {
                let Some((value, cost)) = self.anchors.get(&anchor) else {
                    return Err("alias of an anchor that is still open or unknown".to_owned());
                };
                let (value, cost) = (value.clone(), *cost);
                self.spend(cost)?;
                self.value(value, &span)
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, OpenKind::Sequence(Vec::new()), &span),
            Event::MappingStart(anchor, _) => {
                let kind = OpenKind::Mapping { map: Map::new(), key: None, merged: Vec::new() };
                self.open(anchor, kind, &span)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { anchor, kind }) = self.stack.pop() else {
                    return Err("a collection ends that never began".to_owned());
                };
                let value = match kind {
                    OpenKind::Sequence(items) => Value::Array(items),
                    OpenKind::Mapping { map, merged, .. } => Value::Object(merge(map, merged)?),
                };
                self.remember(anchor, &value)?;
                self.value(value, &span)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(None),
        }
    }

    fn open(&mut self, anchor: usize, kind: OpenKind, span: &Span) -> Result<Option<(usize, Value)>, String> {
        if self.expects_key() {
            return Err("a key must be a scalar".to_owned());
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(nested());
        }
        if self.stack.is_empty() {
            self.first_line = span.start.line().max(1);
        }
        self.stack.push(Open { anchor, kind });
        Ok(None)
    }

    fn expects_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open { kind: OpenKind::Mapping { key: None, .. }, .. }))
    }

    fn set_key(&mut self, name: Key, span: &Span) {
        if let Some(Open { kind: OpenKind::Mapping { map, key, .. }, .. }) = self.stack.last_mut() {
            if let Key::Name(name) = &name
                && map.contains_key(name)
            {
                self.duplicates.push(Duplicate { key: name.clone(), line: Some(span.start.line().max(1)) });
            }
            *key = Some(name);
        }
    }

    /// Puts a finished value where it belongs; gives it back when it is the whole document.
    fn value(&mut self, value: Value, span: &Span) -> Result<Option<(usize, Value)>, String> {
        if self.expects_key() {
            let name = match value {
                Value::String(name) => name,
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                Value::Null => return Err("a key must not be null".to_owned()),
                Value::Array(_) | Value::Object(_) => {
                    return Err("a key must be a scalar".to_owned());
                }
            };
            self.set_key(Key::Name(name), span);
            return Ok(None);
        }
        match self.stack.last_mut() {
            None => {
                let line = if self.first_line == 0 { span.start.line().max(1) } else { self.first_line };
                return Ok(Some((line, value)));
            }
            Some(Open { kind: OpenKind::Sequence(items), .. }) => items.push(value),
            Some(Open { kind: OpenKind::Mapping { map, key, merged }, .. }) => match key.take() {
                Some(Key::Merge) => merged.push(value),
                Some(Key::Name(name)) => {
                    map.insert(name, value);
                }
                None => return Err("a value without a key".to_owned()),
            },
        }
        Ok(None)
    }

    fn remember(&mut self, anchor: usize, value: &Value) -> Result<(), String> {
        if anchor != 0 {
            let cost = cost(value);
            self.spend(cost)?;
            self.anchors.insert(anchor, (value.clone(), cost));
        }
        Ok(())
    }

    fn spend(&mut self, cost: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(cost);
        if self.copied > MAX_COPIED {
            return Err("anchors and aliases copy too much".to_owned());
        }
        Ok(())
    }
}

fn resolve(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() => scalar::tagged(&tag.suffix, text),
        Some(_) => Ok(Value::String(text)),
        None if style == ScalarStyle::Plain => scalar::plain(&text),
        None => Ok(Value::String(text)),
    }
}

/// Lays what `<<` named under the explicit keys; earlier ones win over later ones.
fn merge(mut map: Map<String, Value>, merged: Vec<Value>) -> Result<Map<String, Value>, String> {
    for value in merged {
        let sources = match value {
            Value::Array(items) => items,
            one => vec![one],
        };
        for source in sources {
            let Value::Object(source) = source else {
                return Err("`<<` takes a mapping or a list of mappings".to_owned());
            };
            for (key, value) in source {
                map.entry(key).or_insert(value);
            }
        }
    }
    Ok(map)
}

/// Bytes, roughly, that a copy takes.
fn cost(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(cost).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + cost(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}
