//! JSON documents, one after another, with their duplicate keys, of which `serde_json` alone says nothing.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{ChunkError, Duplicate, Read};

/// Reads all values of a chunk, each with the line it starts at.
pub(super) fn parse(chunk: &str, values: &mut Vec<Read>) -> Result<(), ChunkError> {
    // The chunk keeps its separator line, for the sake of line numbers.
    let (mut rest, mut line) = match chunk.strip_prefix("---") {
        Some(rest) => (rest, 1),
        None => (chunk, 1),
    };
    loop {
        let trimmed = rest.trim_start();
        line += newlines(&rest[..rest.len() - trimmed.len()]);
        if trimmed.is_empty() {
            return Ok(());
        }
        let mut stream = serde_json::Deserializer::from_str(trimmed).into_iter::<Whole>();
        match stream.next() {
            Some(Ok(Whole { value, duplicates })) => {
                let used = stream.byte_offset();
                values.push(Read { line, value, duplicates });
                line += newlines(&trimmed[..used]);
                rest = &trimmed[used..];
            }
            Some(Err(error)) => {
                return Err(ChunkError {
                    line: line + error.line().saturating_sub(1),
                    column: error.column(),
                    reason: error.to_string(),
                });
            }
            None => return Ok(()),
        }
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

struct Whole {
    value: Value,
    duplicates: Vec<Duplicate>,
}

impl<'de> serde::Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut duplicates = Vec::new();
        let value = Seed(&mut duplicates).deserialize(deserializer)?;
        Ok(Whole { value, duplicates })
    }
}

struct Seed<'a>(&'a mut Vec<Duplicate>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Seed(self.0))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Seed(self.0))?;
            if map.insert(key.clone(), value).is_some() {
                self.0.push(Duplicate { key, line: None });
            }
        }
        Ok(Value::Object(map))
    }
}
