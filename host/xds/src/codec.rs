//! From ropes to messages, and from messages to requests.
//!
//! Responses are encoded by hand: a generated message would hold each body in one piece, a copy, which the encoder
//! would copy again. Here the segments of a rope go straight into the transport's buffer, the one copy there is.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use trysail_model::rope::put_varint;
use trysail_model::{Fingerprint, Resource, ResourceName, TypeUrl};

use crate::request::{Protocol, Request};

/// What goes out.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Resources that streams share.
    Resources(Outgoing),
    /// A whole message, for one reader.
    Message(Bytes),
}

/// A response that is not encoded yet: references to shared resources.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) protocol: Protocol,
    pub(crate) type_url: TypeUrl,
    /// `<time>/<counter>`.
    pub(crate) version: Arc<str>,
    pub(crate) nonce: String,
    pub(crate) resources: Vec<(Arc<Resource>, Fingerprint)>,
    /// Delta only.
    pub(crate) removed: Vec<ResourceName>,
}

/// Field numbers of `DiscoveryResponse`, of `DeltaDiscoveryResponse` and of what is in them.
mod field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED: u32 = 6;
    pub(super) const RESOURCE_VERSION: u32 = 1;
    pub(super) const RESOURCE_BODY: u32 = 2;
    pub(super) const RESOURCE_NAME: u32 = 3;
    pub(super) const ANY_TYPE_URL: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
}

/// Hexadecimal digits of a version.
const VERSION_LEN: usize = 32;

impl Outgoing {
    /// Length of the encoded message.
    pub(crate) fn encoded_len(&self) -> usize {
        let mut len = text_len(field::VERSION, self.version.len())
            + text_len(field::TYPE_URL, self.type_url.as_str().len())
            + text_len(field::NONCE, self.nonce.len());
        for (resource, _) in &self.resources {
            len += nested_len(field::RESOURCES, self.resource_len(resource));
        }
        // A name in a list is written even if it is empty.
        len + self.removed.iter().map(|name| nested_len(field::REMOVED, name.as_str().len())).sum::<usize>()
    }

    /// Appends what comes before the resources.
    pub(crate) fn write_head(&self, out: &mut impl BufMut) {
        put_text(out, field::VERSION, &self.version);
    }

    /// Appends one of the resources.
    pub(crate) fn write_resource(&self, at: usize, out: &mut impl BufMut) {
        let (resource, version) = &self.resources[at];
        put_head(out, field::RESOURCES, self.resource_len(resource));
        match self.protocol {
            Protocol::Sotw => self.put_any(out, resource),
            Protocol::Delta => {
                put_text(out, field::RESOURCE_VERSION, &version.to_string());
                put_head(out, field::RESOURCE_BODY, self.any_len(resource));
                self.put_any(out, resource);
                put_text(out, field::RESOURCE_NAME, resource.name.as_str());
            }
        }
    }

    /// Appends what comes after the resources.
    pub(crate) fn write_tail(&self, out: &mut impl BufMut) {
        put_text(out, field::TYPE_URL, self.type_url.as_str());
        put_text(out, field::NONCE, &self.nonce);
        for name in &self.removed {
            put_head(out, field::REMOVED, name.as_str().len());
            out.put_slice(name.as_str().as_bytes());
        }
    }

    /// Bytes of all bodies.
    pub(crate) fn body_len(&self) -> usize {
        self.resources.iter().map(|(resource, _)| resource.body.len()).sum()
    }

    fn resource_len(&self, resource: &Resource) -> usize {
        let any = self.any_len(resource);
        match self.protocol {
            Protocol::Sotw => any,
            Protocol::Delta => {
                text_len(field::RESOURCE_VERSION, VERSION_LEN)
                    + nested_len(field::RESOURCE_BODY, any)
                    + text_len(field::RESOURCE_NAME, resource.name.as_str().len())
            }
        }
    }

    fn any_len(&self, resource: &Resource) -> usize {
        text_len(field::ANY_TYPE_URL, self.type_url.as_str().len()) + text_len(field::ANY_VALUE, resource.body.len())
    }

    fn put_any(&self, out: &mut impl BufMut, resource: &Resource) {
        put_text(out, field::ANY_TYPE_URL, self.type_url.as_str());
        if !resource.body.is_empty() {
            put_head(out, field::ANY_VALUE, resource.body.len());
            resource.body.write_to(out);
        }
    }
}

/// Tag and length of a length-delimited field.
fn put_head(out: &mut impl BufMut, number: u32, len: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, len as u64);
}

/// A text field; left out when empty, as encoders do.
fn put_text(out: &mut impl BufMut, number: u32, text: &str) {
    if !text.is_empty() {
        put_head(out, number, text.len());
        out.put_slice(text.as_bytes());
    }
}

fn text_len(number: u32, len: usize) -> usize {
    if len == 0 { 0 } else { nested_len(number, len) }
}

fn nested_len(number: u32, len: usize) -> usize {
    prost::length_delimiter_len((number << 3) as usize) + prost::length_delimiter_len(len) + len
}

/// A request, and its length in bytes.
pub(crate) type Incoming = (Request, usize);

/// A generated message that requests come as.
pub(crate) trait IncomingMessage: Message + Default + Into<Request> + 'static {}

impl<X: Message + Default + Into<Request> + 'static> IncomingMessage for X {}

/// The decoder of both methods; `X` is the request's generated message.
#[derive(Debug)]
pub(crate) struct RequestDecoder<X>(PhantomData<X>);

impl<X> Default for RequestDecoder<X> {
    fn default() -> Self {
        RequestDecoder(PhantomData)
    }
}

impl<X: IncomingMessage> Decoder for RequestDecoder<X> {
    type Item = Incoming;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<Incoming>, Status> {
        let len = frame.remaining();
        let xds = X::decode(frame).map_err(|error| Status::internal(format!("cannot decode the request: {error}")))?;
        Ok(Some((xds.into(), len)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1 << 10, 32 << 10)
    }
}

#[cfg(test)]
mod tests {
    use trysail_model::Rope;
    use trysail_model::ids::type_urls;
    use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

    use super::*;

    fn outgoing(protocol: Protocol) -> Outgoing {
        let resource = |name: &str, body: Vec<u8>| {
            let body = Rope::from_bytes(body);
            let version = body.fingerprint();
            (Arc::new(Resource { name: name.into(), version, body }), version)
        };
        Outgoing {
            protocol,
            type_url: type_urls::CLUSTER.into(),
            version: "2026-01-01T00:00:00Z/1".into(),
            nonce: "n".into(),
            resources: vec![resource("a", vec![7; 300]), resource("", vec![]), resource("b", vec![1])],
            removed: if protocol == Protocol::Delta { vec!["gone".into(), "".into()] } else { Vec::new() },
        }
    }

    fn written(response: &Outgoing) -> Vec<u8> {
        let mut out = Vec::new();
        response.write_head(&mut out);
        (0..response.resources.len()).for_each(|at| response.write_resource(at, &mut out));
        response.write_tail(&mut out);
        assert_eq!(out.len(), response.encoded_len());
        out
    }

    #[test]
    fn bytes_are_those_of_an_ordinary_encoder() {
        let sotw = outgoing(Protocol::Sotw);
        let bytes = written(&sotw);
        let decoded = DiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!(decoded.encode_to_vec(), bytes);
        assert_eq!(decoded.resources[0].type_url, type_urls::CLUSTER);
        assert_eq!(decoded.resources[0].value, vec![7; 300]);
        assert_eq!((decoded.version_info.as_str(), decoded.nonce.as_str()), ("2026-01-01T00:00:00Z/1", "n"));

        let delta = outgoing(Protocol::Delta);
        let bytes = written(&delta);
        let decoded = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        // The ordinary encoder writes the fields of a resource by number, and so do we, but for the order of the
        // message's declaration, which it follows: compare the decoded forms.
        assert_eq!(DeltaDiscoveryResponse::decode(&*decoded.encode_to_vec()).unwrap(), decoded);
        assert_eq!(decoded.encoded_len(), bytes.len());
        assert_eq!(decoded.removed_resources, ["gone", ""]);
        assert_eq!(decoded.resources[0].name, "a");
        assert_eq!(decoded.resources[0].version, delta.resources[0].1.to_string());
        assert_eq!(decoded.resources[2].resource.as_ref().unwrap().value, [1]);
    }
}
