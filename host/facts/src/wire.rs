//! Small pieces of the protobuf encoding.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};

/// Appends a message as the length-delimited field of that number.
pub fn put_message(out: &mut Vec<u8>, field: u32, message: &impl Message) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(message.encoded_len() as u64, out);
    message.encode_raw(out);
}

/// Splits an encoded message into its top-level fields: all bytes of a field number together, keys included.
pub fn fields(message: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut found: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let Ok((number, wire_type)) = decode_key(&mut rest) else { break };
        if skip_field(wire_type, number, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        found.entry(number).or_default().extend_from_slice(&start[..start.len() - rest.remaining()]);
    }
    found
}

/// Encodes a message.
pub fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use trysail_proto::trysail::facts::v1::Strings;

    use super::*;

    #[test]
    fn splits_and_joins() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 3, &Strings { values: vec!["a".into()] });
        put_message(&mut bytes, 1, &Strings::default());
        put_message(&mut bytes, 3, &Strings::default());
        let split = fields(&bytes);
        assert_eq!(split.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(split.values().map(Vec::len).sum::<usize>(), bytes.len());
    }
}
