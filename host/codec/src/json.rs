//! JSON of protobuf messages, both ways.
//!
//! [`to_json`] prints as Go's protojson does with proto field names, which is how istiod's recorded answers are kept;
//! [`to_json_named`] also with JSON names, which is how dumps are read.
//! [`from_json`] reads what Istio reads (Go's jsonpb): names in either spelling, and Go durations such as `1m30s`.

mod parse;
mod print;
mod time;

use print::Place;
pub(crate) use print::any_parts;
use prost::DecodeError;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use crate::{encode, find_message};

/// Why a message could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The descriptor pool has no such type.
    #[error("unknown message type {name:?}")]
    UnknownMessage {
        /// As it was asked for.
        name: String,
    },
    /// The bytes are not a message of this type.
    #[error("bytes are not a {name}")]
    Decode {
        /// The type they should have.
        name: String,
        /// prost's reason.
        source: DecodeError,
    },
    /// A value in the document does not fit its field.
    #[error("{path}: {problem}")]
    Field {
        /// Where, as the document spells it: `http[0].route[1].destination`. Empty for the document itself.
        path: String,
        /// What is wrong there.
        problem: Problem,
    },
}

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The message has no such field.
    #[error("unknown field of {message}")]
    UnknownField {
        /// Full name of the message.
        message: String,
    },
    /// An `Any` or a document of a type that the pool lacks.
    #[error("unknown message type {0:?}")]
    UnknownMessage(String),
    /// The JSON type or the text is not what the field takes.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What the field takes.
        expected: &'static str,
        /// What was there, shortened.
        found: String,
    },
    /// The enum has no such value.
    #[error("{value:?} is not a value of {name}")]
    UnknownEnumValue {
        /// Full name of the enum.
        name: String,
        /// What was there.
        value: String,
    },
    /// The same field in both spellings.
    #[error("field is given twice")]
    Duplicate,
    /// Another field of the same oneof is set too.
    #[error("only one field of {oneof} may be set")]
    Oneof {
        /// Name of the oneof.
        oneof: String,
    },
    /// Nested deeper than a decoder would read.
    #[error("nested too deeply")]
    TooDeep,
}

/// How strictly to read a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Skip what Istio skips: unknown fields (they are collected), a second spelling of a field (the JSON name wins),
    /// and all but the last field of a oneof. Otherwise these are errors.
    pub ignore_unknown: bool,
    /// Of several fields of a oneof the last in the document takes the place of the others: what an edit adds comes last.
    pub last_of_oneof: bool,
}

impl Options {
    /// Everything must be as the files have it; the default.
    pub const fn strict() -> Self {
        Options { ignore_unknown: false, last_of_oneof: false }
    }

    /// As Istio reads documents.
    pub const fn lenient() -> Self {
        Options { ignore_unknown: true, last_of_oneof: false }
    }

    /// A message that was edited as JSON.
    pub const fn edited() -> Self {
        Options { ignore_unknown: false, last_of_oneof: true }
    }
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The message, encoded deterministically.
    pub bytes: Vec<u8>,
    /// Paths of the fields that were skipped as unknown.
    pub unknown_fields: Vec<String>,
}

/// Prints the message that `bytes` holds; `type_url` may be a full name too.
///
/// Fields are named as in the .proto file, keys are sorted, an `Any` is unpacked. An `Any` of an unknown type or with
/// broken content is printed as `{"@type": ..., "value": base64}`, and an empty one as `{}`.
///
/// # Errors
/// The type is unknown, or the bytes are not of that type.
pub fn to_json(type_url: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    to_json_named(type_url, bytes, Names::Proto)
}

/// How a field is named in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// As in the .proto file, `version_info`.
    Proto,
    /// As protobuf's JSON has it, `versionInfo`.
    Json,
}

/// As [`to_json`], with a choice of names.
///
/// # Errors
/// As [`to_json`].
pub fn to_json_named(type_url: &str, bytes: &[u8], names: Names) -> Result<Value, JsonError> {
    Ok(print::message(&decode(type_url, bytes)?, Place::top(names)))
}

/// Prints a message that is decoded already, in the form of [`to_json`].
pub fn message_to_json(message: &DynamicMessage) -> Value {
    print::message(message, Place::top(Names::Proto))
}

/// Reads a document as the message `message_name` and encodes it. Equal documents give equal bytes.
///
/// # Errors
/// The type is unknown, or a value does not fit; the error names its path.
pub fn from_json(message_name: &str, json: &Value, options: Options) -> Result<Vec<u8>, JsonError> {
    Ok(parse(message_name, json, options)?.bytes)
}

/// As [`from_json`], and says which fields were skipped as unknown.
///
/// # Errors
/// As [`from_json`].
pub fn parse(message_name: &str, json: &Value, options: Options) -> Result<Parsed, JsonError> {
    let (message, unknown_fields) = parse_message(message_name, json, options)?;
    Ok(Parsed { bytes: encode::to_bytes(&message), unknown_fields })
}

/// As [`parse()`], for who goes on working with the message.
///
/// # Errors
/// As [`from_json`].
pub fn parse_message(
    message_name: &str,
    json: &Value,
    options: Options,
) -> Result<(DynamicMessage, Vec<String>), JsonError> {
    let descriptor =
        find_message(message_name).ok_or_else(|| JsonError::UnknownMessage { name: message_name.to_owned() })?;
    parse::document(&descriptor, json, options)
}

/// Decodes bytes by type URL or full name.
///
/// # Errors
/// The type is unknown, or the bytes are not of that type.
pub fn decode(type_url: &str, bytes: &[u8]) -> Result<DynamicMessage, JsonError> {
    let descriptor = find_message(type_url).ok_or_else(|| JsonError::UnknownMessage { name: type_url.to_owned() })?;
    let name = descriptor.full_name().to_owned();
    DynamicMessage::decode(descriptor, bytes).map_err(|source| JsonError::Decode { name, source })
}

#[cfg(test)]
mod tests;
