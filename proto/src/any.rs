//! Packing messages into `google.protobuf.Any`, and looking into one.

use prost::{DecodeError, Name};
use prost_types::Any;

/// What every `type_url` starts with that Envoy and Istio use.
pub const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// Packs a message. The bytes are the same each time, as messages encode deterministically.
pub fn pack<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Decodes the message inside, or `None` when `any` holds another type.
///
/// # Errors
/// The type is right but the bytes are not.
pub fn unpack<M: Name + Default>(any: &Any) -> Option<Result<M, DecodeError>> {
    is::<M>(any).then(|| M::decode(any.value.as_slice()))
}

/// Whether `any` holds an `M`. The part before the last slash does not matter, as the protobuf documentation says.
pub fn is<M: Name>(any: &Any) -> bool {
    full_name(&any.type_url) == M::full_name()
}

/// The message name in a `type_url`: what follows the last slash.
pub fn full_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;
    use crate::envoy::config::route::v3::RouteConfiguration;

    #[test]
    fn packs_and_unpacks() {
        let cluster = Cluster { name: "a".into(), ..Default::default() };
        let any = pack(&cluster);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!(unpack::<Cluster>(&any).unwrap().unwrap(), cluster);
        assert!(unpack::<RouteConfiguration>(&any).is_none());
        assert!(is::<Cluster>(&Any {
            type_url: "example.com/other/envoy.config.cluster.v3.Cluster".into(),
            value: Vec::new(),
        }));
    }

    #[test]
    fn well_known_types_pack_too() {
        let any = pack(&"text".to_owned());
        assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.StringValue");
    }

    #[test]
    fn broken_bytes_are_an_error() {
        let any = Any { value: vec![0xff], ..pack(&Cluster::default()) };
        assert!(unpack::<Cluster>(&any).unwrap().is_err());
    }
}
