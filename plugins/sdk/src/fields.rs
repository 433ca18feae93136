//! Encoding by hand: protobuf fields appended one after the other.
//!
//! For messages that are made often and from parts that are encoded already. All others are built as typed messages.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Encoded fields of one message, in the order in which they were appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// Fields made by `write`.
    pub fn of(write: impl FnOnce(&mut Fields)) -> Vec<u8> {
        // Room for what a small message needs, since growing step by step costs more than the encoding.
        let mut fields = Fields(Vec::with_capacity(128));
        write(&mut fields);
        fields.0
    }

    /// The fields of `message`, and then those that `write` appends, of which there are about `more` bytes.
    pub fn after(message: &impl Message, more: usize, write: impl FnOnce(&mut Fields)) -> Vec<u8> {
        let mut fields = Fields(Vec::with_capacity(message.encoded_len() + more));
        message.encode_raw(&mut fields.0);
        write(&mut fields);
        fields.0
    }

    /// Appends a string field.
    pub fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    /// Appends a length-delimited field whose content is encoded already.
    pub fn bytes(&mut self, number: u32, content: &[u8]) {
        begin(number, content.len(), &mut self.0);
        self.0.extend_from_slice(content);
    }

    /// Appends a boolean field, `false` too.
    pub fn truth(&mut self, number: u32, value: bool) {
        encode_key(number, WireType::Varint, &mut self.0);
        self.0.push(u8::from(value));
    }

    /// Appends a message as a field.
    pub fn message(&mut self, number: u32, message: &impl Message) {
        begin(number, message.encoded_len(), &mut self.0);
        message.encode_raw(&mut self.0);
    }

    /// Appends the message whose fields `write` appends as a field.
    pub fn nested(&mut self, number: u32, write: impl FnOnce(&mut Fields)) {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        // Most are short enough for one byte of length; others are moved to make room.
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let len = self.0.len() - at - 1;
        let more = encoded_len_varint(len as u64) - 1;
        if more > 0 {
            let end = self.0.len();
            self.0.resize(end + more, 0);
            self.0.copy_within(at + 1..end, at + 1 + more);
        }
        encode_varint(len as u64, &mut &mut self.0[at..]);
    }

    /// Appends fields that are encoded already.
    pub fn raw(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }
}

/// Number and length of a length-delimited field; its content follows.
pub(crate) fn begin(number: u32, len: usize, bytes: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, bytes);
    encode_varint(len as u64, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::{Any, Struct, Value, value::Kind};

    #[test]
    fn by_hand_is_what_the_typed_message_is() {
        for n_bytes in [0, 1, 100, 125, 126, 127, 128, 129, 16_380, 16_384, 70_000] {
            let text = "x".repeat(n_bytes);
            let typed =
                Struct { fields: [("key".to_owned(), Value { kind: Some(Kind::StringValue(text.clone())) })].into() };
            let by_hand = Fields::of(|whole| {
                whole.nested(1, |entry| {
                    entry.text(1, "key");
                    entry.nested(2, |value| value.text(3, &text));
                });
            });
            assert_eq!(by_hand, typed.encode_to_vec(), "{n_bytes} bytes");
            let any = Any { type_url: "t/u".into(), value: typed.encode_to_vec() };
            let wrapped = Fields::of(|whole| {
                whole.text(1, "t/u");
                whole.message(2, &typed);
            });
            assert_eq!(Any::decode(wrapped.as_slice()).unwrap(), any);
        }
    }

    #[test]
    fn a_truth_is_a_truth() {
        let value = Value { kind: Some(Kind::BoolValue(true)) };
        assert_eq!(Fields::of(|fields| fields.truth(4, true)), value.encode_to_vec());
    }
}
