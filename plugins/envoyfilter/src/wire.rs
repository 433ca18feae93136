//! Messages as lists of encoded fields, read and changed without knowing their types.
//!
//! A decoder takes the last of several values of a singular field, and merges several messages; so does everything here.

use std::borrow::Cow;

use trysail_sdk::facts::FieldPath;
use trysail_sdk::prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A field: its number, how it is encoded, and the bytes after its key (without the length, if it has one).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field<'a> {
    number: u32,
    wire: WireType,
    body: Cow<'a, [u8]>,
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a>(Vec<Field<'a>>);

impl<'a> Fields<'a> {
    /// Takes a message apart. What is no message has no fields, and groups (which no message of Envoy has) end it.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut fields = Vec::new();
        let mut rest = bytes;
        while let Some(field) = next(&mut rest) {
            fields.push(field);
        }
        Fields(fields)
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.iter().map(|field| field.body.len() + 8).sum());
        for Field { number, wire, body } in &self.0 {
            encode_key(*number, *wire, &mut out);
            if *wire == WireType::LengthDelimited {
                encode_varint(body.len() as u64, &mut out);
            }
            out.extend_from_slice(body);
        }
        out
    }

    fn bodies(&self, number: u32) -> impl DoubleEndedIterator<Item = &Cow<'a, [u8]>> {
        let delimited = move |field: &&Field<'a>| field.number == number && field.wire == WireType::LengthDelimited;
        self.0.iter().filter(delimited).map(|field| &field.body)
    }

    /// A singular text; empty when unset.
    pub fn text(&self, number: u32) -> String {
        self.bodies(number).next_back().map_or_else(String::new, |body| String::from_utf8_lossy(body).into_owned())
    }

    /// Singular bytes; empty when unset.
    pub fn bytes(&self, number: u32) -> &[u8] {
        self.bodies(number).next_back().map_or(&[][..], |body| &**body)
    }

    /// A singular number; 0 when unset.
    pub fn number(&self, number: u32) -> u64 {
        let found = self.0.iter().rev().find(|field| field.number == number && field.wire == WireType::Varint);
        found.and_then(|field| decode_varint(&mut &*field.body).ok()).unwrap_or_default()
    }

    /// A singular message; none when unset.
    pub fn message(&self, number: u32) -> Option<Cow<'_, [u8]>> {
        let mut bodies = self.bodies(number);
        let first = bodies.next()?;
        let mut merged = Cow::Borrowed(&**first);
        bodies.for_each(|more| merged.to_mut().extend_from_slice(more));
        Some(merged)
    }

    /// The elements of a repeated field of messages or texts.
    pub fn list(&self, number: u32) -> Vec<Vec<u8>> {
        self.bodies(number).map(|body| body.to_vec()).collect()
    }

    /// The texts of a repeated field.
    pub fn texts(&self, number: u32) -> Vec<String> {
        self.bodies(number).map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }

    /// Which of the fields of a oneof is set.
    pub fn set_of(&self, numbers: &[u32]) -> Option<u32> {
        self.0.iter().rev().map(|field| field.number).find(|number| numbers.contains(number))
    }

    /// Has the field any value?
    pub fn has(&self, number: u32) -> bool {
        self.0.iter().any(|field| field.number == number)
    }

    /// Puts elements in the place of a repeated field's.
    pub fn set_list(&mut self, number: u32, elements: impl IntoIterator<Item = Vec<u8>>) {
        let at = self.0.iter().position(|field| field.number == number).unwrap_or(self.0.len());
        let after = self.0[at..].iter().filter(|field| field.number != number).cloned().collect::<Vec<_>>();
        self.0.truncate(at);
        self.0.extend(elements.into_iter().map(|body| delimited(number, body)));
        self.0.extend(after);
    }

    /// Sets a singular field of text, bytes or message. It comes last, and so wins over others of its oneof.
    pub fn set(&mut self, number: u32, body: impl Into<Vec<u8>>) {
        self.remove(number);
        self.0.push(delimited(number, body.into()));
    }

    /// Unsets a field.
    pub fn remove(&mut self, number: u32) {
        self.0.retain(|field| field.number != number);
    }
}

fn delimited<'a>(number: u32, body: Vec<u8>) -> Field<'a> {
    Field { number, wire: WireType::LengthDelimited, body: Cow::Owned(body) }
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let (number, wire) = decode_key(rest).ok()?;
    let length = match wire {
        WireType::Varint => {
            let mut after = *rest;
            decode_varint(&mut after).ok()?;
            rest.len() - after.len()
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => usize::try_from(decode_varint(rest).ok()?).ok()?,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (body, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Field { number, wire, body: Cow::Borrowed(body) })
}

/// Merges a value into a message, as protobuf does but for the fields named.
pub fn merge(into: &[u8], value: &[u8], replaced: &[FieldPath]) -> Vec<u8> {
    let paths: Vec<&[u32]> = replaced.iter().map(|path| path.numbers.as_slice()).collect();
    let mut merged = if paths.is_empty() { into.to_vec() } else { without(into, &paths) };
    merged.extend_from_slice(value);
    merged
}

fn without(message: &[u8], paths: &[&[u32]]) -> Vec<u8> {
    let mut fields = Fields::parse(message);
    fields.0.retain(|field| !paths.iter().any(|path| matches!(path, [only] if *only == field.number)));
    for field in fields.0.iter_mut().filter(|field| field.wire == WireType::LengthDelimited) {
        let below: Vec<&[u32]> = paths.iter().filter(|path| path[0] == field.number).map(|path| &path[1..]).collect();
        if !below.is_empty() {
            field.body = Cow::Owned(without(&field.body, &below));
        }
    }
    fields.encode()
}

/// The name of what has it in field 1: clusters, listeners, routes' configurations and virtual hosts, filters.
pub fn name_of(message: &[u8]) -> String {
    Fields::parse(message).text(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::prost_types::Duration;
    use trysail_sdk::proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers::Thresholds};
    use trysail_sdk::proto::envoy::config::route::v3::VirtualHost;

    fn cluster() -> Cluster {
        Cluster {
            name: "a".into(),
            connect_timeout: Some(Duration { seconds: 1, nanos: 5 }),
            circuit_breakers: Some(CircuitBreakers {
                thresholds: vec![Thresholds { max_retries: Some(7), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_message_survives_being_taken_apart() {
        let bytes = cluster().encode_to_vec();
        assert_eq!(Fields::parse(&bytes).encode(), bytes);
        assert_eq!(name_of(&bytes), "a");
        assert_eq!(Fields::parse(b"\xff\xff\xff"), Fields::default());
        // A length beyond the end ends the message.
        assert_eq!(Fields::parse(b"\x0a\x7fx"), Fields::default());
    }

    #[test]
    fn durations_are_replaced_and_lists_appended() {
        let more = CircuitBreakers { thresholds: vec![Thresholds::default()], ..Default::default() };
        let value = Cluster {
            connect_timeout: Some(Duration { seconds: 2, nanos: 0 }),
            circuit_breakers: Some(more),
            ..Default::default()
        };
        let replaced = [FieldPath { numbers: vec![4] }];
        let merged = merge(&cluster().encode_to_vec(), &value.encode_to_vec(), &replaced);
        let merged = Cluster::decode(merged.as_slice()).expect("a cluster");
        assert_eq!(merged.connect_timeout, Some(Duration { seconds: 2, nanos: 0 }));
        assert_eq!(merged.circuit_breakers.expect("set").thresholds.len(), 2);
        let replaced = [FieldPath { numbers: vec![10, 1] }];
        let merged = merge(&cluster().encode_to_vec(), &value.encode_to_vec(), &replaced);
        let merged = Cluster::decode(merged.as_slice()).expect("a cluster");
        assert_eq!(merged.circuit_breakers.expect("set").thresholds.len(), 1);
    }

    #[test]
    fn lists_change_in_place() {
        let host = VirtualHost { name: "h".into(), domains: vec!["a".into(), "b".into()], ..Default::default() };
        let bytes = host.encode_to_vec();
        let mut fields = Fields::parse(&bytes);
        assert_eq!(fields.texts(2), ["a", "b"]);
        fields.set_list(2, [b"c".to_vec()]);
        fields.set(1, "k");
        let changed = VirtualHost::decode(fields.encode().as_slice()).expect("a virtual host");
        assert_eq!((changed.name.as_str(), changed.domains.as_slice()), ("k", &["c".to_owned()][..]));
        assert_eq!((fields.set_of(&[2, 9]), fields.set_of(&[1, 2]), fields.has(3)), (Some(2), Some(1), false));
    }
}
