//! From JSON to a message.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Field};
use serde_json::{Map, Value};

use super::{JsonError, Options, Problem, print, time};
use crate::path::Step;
use crate::{MAX_DEPTH, encode, find_message};

/// Reads a document; returns the message and the paths of the unknown fields that were skipped.
pub(super) fn document(
    descriptor: &MessageDescriptor,
    json: &Value,
    options: Options,
) -> Result<(DynamicMessage, Vec<String>), JsonError> {
    let mut parser = Parser { options, path: Vec::new(), depth: 0, unknown_fields: Vec::new() };
    match parser.message(descriptor, json) {
        Ok(message) => Ok((message, parser.unknown_fields)),
        Err(problem) => Err(JsonError::Field { path: render(&parser.path), problem }),
    }
}

struct Parser<'v> {
    options: Options,
    /// Where the parser is. After an error it stays there, so the error need not carry it.
    path: Vec<Step<'v>>,
    depth: usize,
    unknown_fields: Vec<String>,
}

/// Of the fields of a oneof only the last stays.
fn keep_last_of_oneofs(found: &mut Vec<(FieldDescriptor, &str, &Value)>) {
    let mut taken = Vec::new();
    let mut kept: Vec<_> = std::mem::take(found)
        .into_iter()
        .rev()
        .filter(|(field, _, value)| match field.containing_oneof() {
            Some(oneof) if taken.contains(&oneof) => false,
            Some(oneof) if !value.is_null() => {
                taken.push(oneof);
                true
            }
            _ => true,
        })
        .collect();
    kept.reverse();
    *found = kept;
}

/// A value that fits its field, or what is wrong with it.
type Fit<T> = Result<T, Problem>;

impl<'v> Parser<'v> {
    fn message(&mut self, descriptor: &MessageDescriptor, json: &'v Value) -> Fit<DynamicMessage> {
        // One more level is what a decoder refuses to read.
        if self.depth >= MAX_DEPTH {
            return Err(Problem::TooDeep);
        }
        self.depth += 1;
        let message = match descriptor.full_name().strip_prefix("google.protobuf.") {
            Some(name) => self.well_known(name, descriptor, json)?,
            None => self.plain(descriptor, object(json, "an object")?, false)?,
        };
        self.depth -= 1;
        Ok(message)
    }

    /// `is_in_any` skips `@type`, which stands beside the fields.
    fn plain(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &'v Map<String, Value>,
        is_in_any: bool,
    ) -> Fit<DynamicMessage> {
        let mut found: Vec<(FieldDescriptor, &'v str, &'v Value)> = Vec::with_capacity(object.len());
        for (name, value) in object {
            if is_in_any && name == "@type" {
                continue;
            }
            let by_json_name = descriptor.get_field_by_json_name(name);
            match by_json_name.or_else(|| descriptor.get_field_by_name(name)) {
                Some(field) => found.push((field, name, value)),
                None => {
                    self.path.push(Step::Field(name));
                    if !self.options.ignore_unknown {
                        return Err(Problem::UnknownField { message: descriptor.full_name().to_owned() });
                    }
                    self.unknown_fields.push(render(&self.path));
                    self.path.pop();
                }
            }
        }
        if self.options.last_of_oneof {
            keep_last_of_oneofs(&mut found);
        }
        // In the order of declaration with the JSON name last, so that when Istio's leniency is asked for the same
        // one of several values wins as there.
        found.sort_by_key(|(field, name, _)| (field.path().last().copied(), *name == field.json_name()));

        let mut message = DynamicMessage::new(descriptor.clone());
        let mut previous = None;
        for (field, name, value) in found {
            self.path.push(Step::Field(name));
            if !self.options.ignore_unknown && previous == Some(field.number()) {
                return Err(Problem::Duplicate);
            }
            previous = Some(field.number());
            if !value.is_null() || takes_null(&field) {
                self.check_oneof(&message, &field)?;
                let value = self.field(&field, value)?;
                message.set_field(&field, value);
            }
            self.path.pop();
        }
        Ok(message)
    }

    fn check_oneof(&self, message: &DynamicMessage, field: &FieldDescriptor) -> Fit<()> {
        let Some(oneof) = field.containing_oneof() else {
            return Ok(());
        };
        let is_taken = oneof.fields().any(|other| other != *field && message.has_field(&other));
        if is_taken && !self.options.ignore_unknown {
            return Err(Problem::Oneof { oneof: oneof.name().to_owned() });
        }
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor, json: &'v Value) -> Fit<Field> {
        let kind = field.kind();
        if field.is_list() {
            return self.list(&kind, json);
        }
        if !field.is_map() {
            return self.single(&kind, json);
        }
        let Kind::Message(entry) = kind else {
            return Err(expected("a map", json));
        };
        let key_kind = entry.map_entry_key_field().kind();
        let value_kind = entry.map_entry_value_field().kind();
        let object = object(json, "a map")?;
        let mut entries = std::collections::HashMap::with_capacity(object.len());
        self.depth += 1;
        for (key, value) in object {
            self.path.push(Step::Key(key));
            let key = map_key(&key_kind, key)?;
            let value = self.single(&value_kind, value)?;
            entries.insert(key, value);
            self.path.pop();
        }
        self.depth -= 1;
        Ok(Field::Map(entries))
    }

    fn list(&mut self, kind: &Kind, json: &'v Value) -> Fit<Field> {
        let items = json.as_array().ok_or_else(|| expected("a list", json))?;
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            self.path.push(Step::Index(index));
            list.push(self.single(kind, item)?);
            self.path.pop();
        }
        Ok(Field::List(list))
    }

    fn single(&mut self, kind: &Kind, json: &'v Value) -> Fit<Field> {
        match kind {
            Kind::Message(descriptor) => Ok(Field::Message(self.message(descriptor, json)?)),
            Kind::Enum(descriptor) => enum_number(descriptor, json).map(Field::EnumNumber),
            _ => scalar(kind, json),
        }
    }

    /// `name` is that of the type within `google.protobuf`.
    fn well_known(&mut self, name: &str, descriptor: &MessageDescriptor, json: &'v Value) -> Fit<DynamicMessage> {
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut set = |number, value| message.set_field_by_number(number, value);
        match name {
            "Any" => {
                let (type_url, bytes) = self.any(json)?;
                set(1, Field::String(type_url));
                set(2, Field::Bytes(bytes.into()));
            }
            "Duration" | "Timestamp" => {
                let text = json.as_str();
                let (parsed, what) = if name == "Duration" {
                    (text.and_then(time::parse_duration), "a duration such as \"1.5s\"")
                } else {
                    (text.and_then(time::parse_timestamp), "an RFC 3339 time")
                };
                let (seconds, nanos) = parsed.ok_or_else(|| expected(what, json))?;
                set(1, Field::I64(seconds));
                set(2, Field::I32(nanos));
            }
            "Struct" | "ListValue" => {
                let field = descriptor.get_field(1).ok_or_else(|| expected("a value", json))?;
                set(1, self.field(&field, json)?);
            }
            "Value" => {
                let number = match json {
                    Value::Null => 1,
                    Value::Number(_) => 2,
                    Value::String(_) => 3,
                    Value::Bool(_) => 4,
                    Value::Object(_) => 5,
                    Value::Array(_) => 6,
                };
                let field = descriptor.get_field(number).ok_or_else(|| expected("a value", json))?;
                set(number, self.field(&field, json)?);
            }
            "FieldMask" => {
                let text = json.as_str().ok_or_else(|| expected("a field mask", json))?;
                let paths = text.split(',').filter(|path| !path.is_empty());
                set(1, Field::List(paths.map(|path| Field::String(snake_case(path))).collect()));
            }
            "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue"
            | "DoubleValue" | "StringValue" | "BytesValue" => {
                let field = descriptor.get_field(1).ok_or_else(|| expected("a value", json))?;
                set(1, self.field(&field, json)?);
            }
            _ => return self.plain(descriptor, object(json, "an object")?, false),
        }
        Ok(message)
    }

    /// Type URL and encoded content.
    fn any(&mut self, json: &'v Value) -> Fit<(String, Vec<u8>)> {
        let object = object(json, "an object with @type")?;
        if object.is_empty() {
            return Ok(Default::default());
        }
        let Some(type_url) = object.get("@type").and_then(Value::as_str) else {
            return Err(expected("an object with @type", json));
        };
        let Some(descriptor) = find_message(type_url) else {
            return unknown_any(type_url, object);
        };
        let message = if print::is_under_value(descriptor.full_name()) {
            let Some(value) = object.get("value") else {
                return Err(expected("a well-known type under value", json));
            };
            self.path.push(Step::Field("value"));
            let message = self.message(&descriptor, value)?;
            self.path.pop();
            message
        } else {
            self.plain(&descriptor, object, true)?
        };
        Ok((type_url.to_owned(), encode::to_bytes(&message)))
    }
}

/// An `Any` of an unknown type in the form that the printer gives it.
fn unknown_any(type_url: &str, object: &Map<String, Value>) -> Fit<(String, Vec<u8>)> {
    match object.get("value").and_then(Value::as_str).map(|text| BASE64.decode(text)) {
        Some(Ok(bytes)) if object.len() == 2 => Ok((type_url.to_owned(), bytes)),
        _ => Err(Problem::UnknownMessage(type_url.to_owned())),
    }
}

/// Both alphabets are told apart by the caller; padding is optional, as protobuf's JSON has it.
const BASE64: GeneralPurpose = lenient(&alphabet::STANDARD);
const BASE64_URL: GeneralPurpose = lenient(&alphabet::URL_SAFE);

const fn lenient(alphabet: &alphabet::Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

/// Whether `null` is a value of this field rather than its absence.
fn takes_null(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value" && !field.is_list(),
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue" && !field.is_list(),
        _ => false,
    }
}

fn scalar(kind: &Kind, json: &Value) -> Fit<Field> {
    let value = match kind {
        Kind::Double => number(json).map(Field::F64),
        Kind::Float => number(json).and_then(narrow).map(Field::F32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            integer(json).and_then(|v| i32::try_from(v).ok()).map(Field::I32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            integer(json).and_then(|v| i64::try_from(v).ok()).map(Field::I64)
        }
        Kind::Uint32 | Kind::Fixed32 => integer(json).and_then(|v| u32::try_from(v).ok()).map(Field::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(json).and_then(|v| u64::try_from(v).ok()).map(Field::U64),
        Kind::Bool => json.as_bool().map(Field::Bool),
        Kind::String => json.as_str().map(|v| Field::String(v.to_owned())),
        Kind::Bytes => json.as_str().and_then(bytes).map(|v| Field::Bytes(v.into())),
        Kind::Message(_) | Kind::Enum(_) => None,
    };
    value.ok_or_else(|| expected(name_of(kind), json))
}

fn name_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double | Kind::Float => "a number",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a 32-bit integer",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a 64-bit integer",
        Kind::Uint32 | Kind::Fixed32 => "an unsigned 32-bit integer",
        Kind::Uint64 | Kind::Fixed64 => "an unsigned 64-bit integer",
        Kind::Bool => "true or false",
        Kind::String => "text",
        Kind::Bytes => "base64",
        Kind::Message(_) => "an object",
        Kind::Enum(_) => "an enum value",
    }
}

fn number(json: &Value) -> Option<f64> {
    match json {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            // Rust also reads "inf" and "nan", which JSON does not have.
            text => text.parse().ok().filter(|v: &f64| v.is_finite()),
        },
        _ => None,
    }
}

fn narrow(v: f64) -> Option<f32> {
    let narrow = v as f32;
    (narrow.is_finite() || !v.is_finite()).then_some(narrow)
}

/// Integers may be written as text, with a fraction of zero or with an exponent.
fn integer(json: &Value) -> Option<i128> {
    let (text, whole) = match json {
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            (None, whole)
        }
        Value::String(text) => (Some(text), text.parse().ok()),
        _ => return None,
    };
    if whole.is_some() {
        return whole;
    }
    let v = match text {
        Some(text) => text.parse().ok()?,
        None => json.as_f64()?,
    };
    // 2^64 bounds every integer type; beyond it the cast would mean nothing.
    (v.fract() == 0.0 && v.abs() < 18_446_744_073_709_551_616.0).then_some(v as i128)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let is_url = text.contains(['-', '_']);
    let engine = if is_url { &BASE64_URL } else { &BASE64 };
    engine.decode(text).ok()
}

fn enum_number(descriptor: &EnumDescriptor, json: &Value) -> Fit<i32> {
    if json.is_null() && descriptor.full_name() == "google.protobuf.NullValue" {
        return Ok(0);
    }
    match json {
        Value::String(name) => match descriptor.get_value_by_name(name) {
            Some(value) => Ok(value.number()),
            None => Err(Problem::UnknownEnumValue { name: descriptor.full_name().to_owned(), value: shorten(name) }),
        },
        _ => integer(json).and_then(|v| i32::try_from(v).ok()).ok_or_else(|| expected("an enum value", json)),
    }
}

fn map_key(kind: &Kind, key: &str) -> Fit<MapKey> {
    if matches!(kind, Kind::String) {
        return Ok(MapKey::String(key.to_owned()));
    }
    let json = match key {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => Value::from(key),
    };
    let value = scalar(kind, &json)?;
    value.into_map_key().ok_or_else(|| expected(name_of(kind), &json))
}

fn object<'v>(json: &'v Value, what: &'static str) -> Fit<&'v Map<String, Value>> {
    json.as_object().ok_or_else(|| expected(what, json))
}

fn expected(expected: &'static str, found: &Value) -> Problem {
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        found => shorten(&found.to_string()),
    };
    Problem::Expected { expected, found }
}

/// User text in a message: enough to recognise it.
fn shorten(text: &str) -> String {
    const MAX: usize = 60;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn snake_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn render(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        step.push_to(&mut text);
    }
    text
}
