//! From a message to JSON. It never fails: what cannot be unpacked is shown as it is.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value as Field};
use serde_json::{Map, Number, Value};

use super::{Names, time};
use crate::{MAX_DEPTH, find_message};

/// Where printing is, and how it names fields.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// How fields are named.
    pub(super) names: Names,
    /// Messages around this one.
    pub(super) depth: usize,
}

impl Place {
    pub(super) fn top(names: Names) -> Place {
        Place { names, depth: 0 }
    }

    fn deeper(self) -> Place {
        Place { depth: self.depth + 1, ..self }
    }
}

/// Prints a message.
pub(super) fn message(message: &DynamicMessage, at: Place) -> Value {
    if let Some(special) = well_known(message, at) {
        return special;
    }
    Value::Object(sorted(fields(message, at)))
}

fn fields(message: &DynamicMessage, at: Place) -> Vec<(String, Value)> {
    // `fields` yields what protojson prints: fields with presence when set, others when not at their default.
    let name = |field: &FieldDescriptor| match at.names {
        Names::Proto => field.name().to_owned(),
        Names::Json => field.json_name().to_owned(),
    };
    message.fields().map(|(field, value)| (name(&field), any_field(&field.kind(), value, at))).collect()
}

/// A field of any cardinality.
fn any_field(kind: &Kind, value: &Field, at: Place) -> Value {
    match value {
        Field::List(items) => Value::Array(items.iter().map(|item| single(kind, item, at)).collect()),
        Field::Map(entries) => {
            let Kind::Message(entry) = kind else {
                return Value::Null;
            };
            let value_kind = entry.map_entry_value_field().kind();
            let entries = entries.iter().map(|(key, value)| (map_key(key), single(&value_kind, value, at))).collect();
            Value::Object(sorted(entries))
        }
        _ => single(kind, value, at),
    }
}

fn single(kind: &Kind, value: &Field, at: Place) -> Value {
    match value {
        Field::Bool(v) => Value::Bool(*v),
        Field::I32(v) => Value::from(*v),
        Field::U32(v) => Value::from(*v),
        // Doubles cannot hold every 64-bit integer, so JSON has them as text.
        Field::I64(v) => Value::String(v.to_string()),
        Field::U64(v) => Value::String(v.to_string()),
        Field::F32(v) => float32(*v),
        Field::F64(v) => float64(*v),
        Field::String(v) => Value::String(v.clone()),
        Field::Bytes(v) => Value::String(BASE64_STANDARD.encode(v)),
        Field::EnumNumber(number) => enum_value(kind, *number),
        Field::Message(inner) => message(inner, at.deeper()),
        // Not below another list or map; protobuf has no such thing.
        Field::List(_) | Field::Map(_) => any_field(kind, value, at),
    }
}

fn enum_value(kind: &Kind, number: i32) -> Value {
    let Kind::Enum(descriptor) = kind else {
        return Value::from(number);
    };
    if descriptor.full_name() == "google.protobuf.NullValue" {
        return Value::Null;
    }
    match descriptor.get_value(number) {
        Some(value) => Value::String(value.name().to_owned()),
        None => Value::from(number),
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

/// Whole numbers without a fraction, as Go prints them.
fn float64(v: f64) -> Value {
    // Up to 2^53 every whole double is exactly that integer.
    let is_plain = v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 && !(v == 0.0 && v.is_sign_negative());
    if is_plain {
        return Value::from(v as i64);
    }
    match Number::from_f64(v) {
        Some(number) => Value::Number(number),
        None if v.is_nan() => Value::from("NaN"),
        None if v > 0.0 => Value::from("Infinity"),
        None => Value::from("-Infinity"),
    }
}

/// The shortest decimal that reads back as this float, not the longer one of the same value as a double.
fn float32(v: f32) -> Value {
    float64(v.to_string().parse().unwrap_or_else(|_| f64::from(v)))
}

/// JSON of the types that protobuf spells in their own way, or `None` for every other type.
fn well_known(message: &DynamicMessage, at: Place) -> Option<Value> {
    let descriptor = message.descriptor();
    let json = match descriptor.full_name().strip_prefix("google.protobuf.")? {
        "Any" => any(message, at),
        "Duration" => {
            let (seconds, nanos) = seconds_and_nanos(message);
            Value::String(time::format_duration(seconds, nanos))
        }
        "Timestamp" => {
            let (seconds, nanos) = seconds_and_nanos(message);
            Value::String(time::format_timestamp(seconds, nanos))
        }
        "Struct" | "ListValue" => {
            let field = descriptor.get_field(1)?;
            any_field(&field.kind(), &message.get_field(&field), at)
        }
        // One field of a oneof, or none, which has no JSON of its own.
        "Value" => match message.fields().next() {
            Some((field, value)) => single(&field.kind(), value, at),
            None => Value::Null,
        },
        "FieldMask" => {
            let paths = message.get_field_by_number(1)?;
            let paths: Vec<String> = paths.as_list()?.iter().filter_map(Field::as_str).map(camel_case).collect();
            Value::String(paths.join(","))
        }
        "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue" | "DoubleValue"
        | "StringValue" | "BytesValue" => {
            let field = descriptor.get_field(1)?;
            single(&field.kind(), &message.get_field(&field), at)
        }
        // Prints as `{}` like any other message, but counts as well known within an Any.
        _ => return None,
    };
    Some(json)
}

/// Whether an `Any` keeps this type's JSON under `value` rather than beside `@type`.
pub(super) fn is_under_value(full_name: &str) -> bool {
    matches!(
        full_name.strip_prefix("google.protobuf."),
        Some(
            "Any"
                | "Duration"
                | "Timestamp"
                | "Struct"
                | "ListValue"
                | "Value"
                | "FieldMask"
                | "Empty"
                | "BoolValue"
                | "Int32Value"
                | "Int64Value"
                | "UInt32Value"
                | "UInt64Value"
                | "FloatValue"
                | "DoubleValue"
                | "StringValue"
                | "BytesValue"
        )
    )
}

fn any(message: &DynamicMessage, at: Place) -> Value {
    let (type_url, bytes) = any_parts(message);
    if type_url.is_empty() && bytes.is_empty() {
        return Value::Object(Map::new());
    }
    let mut entries = match unpack(&type_url, &bytes, at) {
        Some(inner) if is_under_value(inner.descriptor().full_name()) => {
            vec![("value".to_owned(), self::message(&inner, at.deeper()))]
        }
        Some(inner) => fields(&inner, at.deeper()),
        None => vec![("value".to_owned(), Value::String(BASE64_STANDARD.encode(&bytes)))],
    };
    entries.push(("@type".to_owned(), Value::String(type_url)));
    Value::Object(sorted(entries))
}

fn unpack(type_url: &str, bytes: &[u8], at: Place) -> Option<DynamicMessage> {
    if at.depth >= MAX_DEPTH {
        return None;
    }
    DynamicMessage::decode(find_message(type_url)?, bytes).ok()
}

/// Type URL and content of a `google.protobuf.Any`.
pub(crate) fn any_parts(message: &DynamicMessage) -> (String, Vec<u8>) {
    let type_url = message.get_field_by_number(1);
    let bytes = message.get_field_by_number(2);
    (
        type_url.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default(),
        bytes.and_then(|value| value.as_bytes().map(|bytes| bytes.to_vec())).unwrap_or_default(),
    )
}

fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message.get_field_by_number(1).and_then(|value| value.as_i64());
    let nanos = message.get_field_by_number(2).and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

fn camel_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut is_upper = false;
    for c in path.chars() {
        if c == '_' {
            is_upper = true;
        } else if std::mem::take(&mut is_upper) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// An object with its keys in order: the map keeps the order of insertion.
fn sorted(mut entries: Vec<(String, Value)>) -> Map<String, Value> {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.into_iter().collect()
}
