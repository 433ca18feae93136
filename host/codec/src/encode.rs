//! Encoding a [`DynamicMessage`] so that equal messages give equal bytes.
//!
//! prost-reflect keeps maps in hash maps and writes them in whatever order these have, so its own encoding must never
//! be served or digested. This one writes what prost writes for the same generated type, so that it does not matter
//! whether the host or a plugin encoded a message: fields by number, a oneof in the place of its lowest number whichever
//! of its fields is set, map entries by key, and unknown fields last.

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MapKey, Value};

/// The bytes of `message`, the same for equal messages.
pub fn to_bytes(message: &DynamicMessage) -> Vec<u8> {
    let mut buf = Vec::new();
    encode_message(message, &mut buf);
    buf
}

/// What the encoding needs to know of a field or of an extension.
struct Shape {
    number: u32,
    kind: Kind,
    is_packed: bool,
    is_group: bool,
}

impl From<&FieldDescriptor> for Shape {
    fn from(field: &FieldDescriptor) -> Self {
        Self { number: field.number(), kind: field.kind(), is_packed: field.is_packed(), is_group: field.is_group() }
    }
}

impl From<&ExtensionDescriptor> for Shape {
    fn from(extension: &ExtensionDescriptor) -> Self {
        Self {
            number: extension.number(),
            kind: extension.kind(),
            is_packed: extension.is_packed(),
            is_group: extension.is_group(),
        }
    }
}

fn encode_message(message: &DynamicMessage, buf: &mut Vec<u8>) {
    let mut fields: Vec<(u32, FieldDescriptor, &Value)> =
        message.fields().map(|(field, value)| (position(&field), field, value)).collect();
    fields.sort_by_key(|(position, ..)| *position);
    for (_, field, value) in fields {
        encode_field(&Shape::from(&field), value, buf);
    }
    for (extension, value) in message.extensions() {
        encode_field(&Shape::from(&extension), value, buf);
    }
    for unknown in message.unknown_fields() {
        unknown.encode(buf);
    }
}

/// What a field is ordered by.
fn position(field: &FieldDescriptor) -> u32 {
    // A proto3 `optional` is a oneof of its own; there the lowest number is the field's.
    let oneof = field.containing_oneof();
    let lowest = oneof.and_then(|oneof| oneof.fields().map(|field| field.number()).min());
    lowest.unwrap_or_else(|| field.number())
}

fn encode_field(shape: &Shape, value: &Value, buf: &mut Vec<u8>) {
    match value {
        Value::List(items) if shape.is_packed => {
            let mut packed = Vec::new();
            for item in items {
                encode_scalar(&shape.kind, item, &mut packed);
            }
            encode_key(shape.number, WireType::LengthDelimited, buf);
            encode_delimited(&packed, buf);
        }
        Value::List(items) => {
            for item in items {
                encode_tagged(shape, item, buf);
            }
        }
        Value::Map(entries) => {
            let Kind::Message(entry) = &shape.kind else {
                return;
            };
            let key_shape = Shape::from(&entry.map_entry_key_field());
            let value_shape = Shape::from(&entry.map_entry_value_field());
            let mut sorted: Vec<(&MapKey, &Value)> = entries.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
            for (key, value) in sorted {
                let mut pair = Vec::new();
                // Defaults are left out of an entry, as prost does.
                if !key.is_default(&key_shape.kind) {
                    encode_tagged(&key_shape, &Value::from(key.clone()), &mut pair);
                }
                if !value.is_default(&value_shape.kind) {
                    encode_tagged(&value_shape, value, &mut pair);
                }
                encode_key(shape.number, WireType::LengthDelimited, buf);
                encode_delimited(&pair, buf);
            }
        }
        _ => encode_tagged(shape, value, buf),
    }
}

/// One value with its key in front.
fn encode_tagged(shape: &Shape, value: &Value, buf: &mut Vec<u8>) {
    if let (true, Value::Message(group)) = (shape.is_group, value) {
        encode_key(shape.number, WireType::StartGroup, buf);
        encode_message(group, buf);
        encode_key(shape.number, WireType::EndGroup, buf);
        return;
    }
    encode_key(shape.number, shape.kind.wire_type(), buf);
    encode_scalar(&shape.kind, value, buf);
}

/// One value without its key.
fn encode_scalar(kind: &Kind, value: &Value, buf: &mut Vec<u8>) {
    match value {
        Value::Bool(v) => encode_varint(u64::from(*v), buf),
        Value::EnumNumber(v) => encode_varint(i64::from(*v) as u64, buf),
        Value::I32(v) => match kind {
            Kind::Sint32 => encode_varint(u64::from(((v << 1) ^ (v >> 31)) as u32), buf),
            Kind::Sfixed32 => buf.extend(v.to_le_bytes()),
            // A negative int32 takes ten bytes, so that it can be read as int64.
            _ => encode_varint(i64::from(*v) as u64, buf),
        },
        Value::I64(v) => match kind {
            Kind::Sint64 => encode_varint(((v << 1) ^ (v >> 63)) as u64, buf),
            Kind::Sfixed64 => buf.extend(v.to_le_bytes()),
            _ => encode_varint(*v as u64, buf),
        },
        Value::U32(v) => match kind {
            Kind::Fixed32 => buf.extend(v.to_le_bytes()),
            _ => encode_varint(u64::from(*v), buf),
        },
        Value::U64(v) => match kind {
            Kind::Fixed64 => buf.extend(v.to_le_bytes()),
            _ => encode_varint(*v, buf),
        },
        Value::F32(v) => buf.extend(v.to_le_bytes()),
        Value::F64(v) => buf.extend(v.to_le_bytes()),
        Value::String(v) => encode_delimited(v.as_bytes(), buf),
        Value::Bytes(v) => encode_delimited(v, buf),
        Value::Message(v) => encode_delimited(&to_bytes(v), buf),
        // A list of lists or of maps does not exist in protobuf.
        Value::List(_) | Value::Map(_) => {}
    }
}

fn encode_delimited(bytes: &[u8], buf: &mut Vec<u8>) {
    encode_varint(bytes.len() as u64, buf);
    buf.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::DynamicMessage;
    use trysail_proto::envoy::config::cluster::v3::Cluster;
    use trysail_proto::envoy::config::core::v3::Metadata;
    use trysail_proto::istio::workload::Workload;
    use trysail_proto::prost::Name;
    use trysail_proto::{descriptors, prost_types};

    use super::*;

    fn reencode<M: Message + Name>(message: &M) -> Vec<u8> {
        let descriptor = descriptors::pool().get_message_by_name(&M::full_name()).unwrap();
        to_bytes(&DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap())
    }

    #[test]
    fn same_bytes_as_the_generated_type() {
        let names = || ["z", "a", "m", "", "b"].map(str::to_owned);
        let cluster = Cluster {
            name: "a".into(),
            connect_timeout: Some(prost_types::Duration { seconds: -1, nanos: -5 }),
            metadata: Some(Metadata {
                filter_metadata: names().map(|name| (name, prost_types::Struct::default())).into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(reencode(&cluster), cluster.encode_to_vec());
        let workload = Workload {
            services: names().map(|name| (name, Default::default())).into(),
            addresses: vec![vec![1, 2, 3, 4], vec![]],
            ..Default::default()
        };
        assert_eq!(reencode(&workload), workload.encode_to_vec());
    }

    #[test]
    fn unknown_fields_stay() {
        let descriptor = descriptors::pool().get_message_by_name("istio.workload.Locality").unwrap();
        let bytes = [0x0a, 1, b'r', 0xf8, 0x07, 5];
        let message = DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap();
        assert_eq!(to_bytes(&message), bytes);
    }
}
