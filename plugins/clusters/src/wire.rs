//! Small forms of Envoy's messages that several files write.

use trysail_sdk::Fields;
use trysail_sdk::prost::Name as _;
use trysail_sdk::prost_types::{Any, Duration, ListValue, Struct, Value, value::Kind};
use trysail_sdk::proto::envoy::config::cluster::v3::Filter;
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, Address, ApiVersion, ConfigSource, Pipe, SocketAddress, TypedExtensionConfig, address, config_source,
    http1_protocol_options, socket_address,
};
use trysail_sdk::proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use trysail_sdk::proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use trysail_sdk::proto::envoy::r#type::v3::Percent;
use trysail_sdk::proto::udpa::r#type::v1::TypedStruct;

use crate::settings::Settings;

/// A duration of whole seconds.
pub fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// A percentage.
pub fn percent(value: f64) -> Percent {
    Percent { value }
}

/// Values of a [`Struct`], encoded: clusters carry a few in their metadata, each.
pub mod value {
    use trysail_sdk::Fields;

    const STRING: u32 = 3;
    const BOOL: u32 = 4;
    const STRUCT: u32 = 5;
    const LIST: u32 = 6;

    /// A text.
    pub fn text(text: &str) -> Vec<u8> {
        Fields::of(|value| value.text(STRING, text))
    }

    /// A truth.
    pub fn truth(truth: bool) -> Vec<u8> {
        Fields::of(|value| value.truth(BOOL, truth))
    }

    /// A list of encoded values.
    pub fn list<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Vec<u8> {
        Fields::of(|value| value.nested(LIST, |list| values.into_iter().for_each(|value| list.bytes(1, value))))
    }

    /// A struct of texts, whose keys come in their order.
    pub fn texts<const N: usize>(pairs: [(&str, &str); N]) -> Vec<u8> {
        Fields::of(|value| {
            value.nested(STRUCT, |object| {
                pairs.into_iter().for_each(|(key, of)| entry(object, key, |value| value.text(STRING, of)));
            });
        })
    }

    /// An entry of a struct, or of any map whose values are messages.
    pub fn entry(object: &mut Fields, key: &str, write: impl FnOnce(&mut Fields)) {
        object.nested(1, |entry| {
            entry.text(1, key);
            entry.nested(2, write);
        });
    }
}

/// An extension with its configuration.
pub fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

/// A transport socket, encoded. `config`: the bytes of a message of that type.
pub fn transport(name: &str, type_url: &str, config: &[u8]) -> Vec<u8> {
    Fields::of(|socket| {
        socket.text(1, name);
        socket.nested(3, |any| {
            any.text(1, type_url);
            if !config.is_empty() {
                any.bytes(2, config);
            }
        });
    })
}

/// Plaintext.
pub fn raw_buffer(name: &str) -> Vec<u8> {
    transport(name, &RawBuffer::type_url(), &[])
}

/// An IP address or host and port; a path where there is no port.
pub fn socket(address: &str, port: u32) -> Address {
    let address = if port == 0 {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        address::Address::Pipe(Pipe { path: path.to_owned(), ..Default::default() })
    } else {
        address::Address::SocketAddress(source(address, port))
    };
    Address { address: Some(address) }
}

/// The address part of [`socket`].
pub fn source(address: &str, port: u32) -> SocketAddress {
    SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

/// An assignment of one endpoint.
pub fn single(cluster: &str, address: Address) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: Some(address), ..Default::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    }
}

/// Resources come over the stream the cluster came over. Without a timeout the cluster waits for its endpoints.
pub fn ads(initial_fetch_timeout: Option<Duration>) -> ConfigSource {
    ConfigSource {
        initial_fetch_timeout,
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..Default::default()
    }
}

/// Configuration of the filter by which proxies tell each other who they are over TCP.
pub fn exchange_config(labels: Vec<String>) -> TypedStruct {
    let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let discovers = Value { kind: Some(Kind::BoolValue(true)) };
    let protocol = text("istio-peer-exchange".to_owned());
    let mut config =
        Struct { fields: [("protocol".to_owned(), protocol), ("enable_discovery".to_owned(), discovers)].into() };
    if !labels.is_empty() {
        let list = ListValue { values: labels.into_iter().map(text).collect() };
        config.fields.insert("additional_labels".to_owned(), Value { kind: Some(Kind::ListValue(list)) });
    }
    TypedStruct {
        type_url: "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange".to_owned(),
        value: Some(config),
    }
}

/// That filter.
pub fn metadata_exchange(settings: &Settings) -> Filter {
    let config = Any { type_url: TypedStruct::type_url(), value: settings.exchange.clone() };
    Filter { name: "istio.metadata_exchange".to_owned(), typed_config: Some(config), config_discovery: None }
}

/// HTTP/1.1 with headers as the client wrote them.
pub fn preserve_case() -> core::Http1ProtocolOptions {
    let config = Any {
        type_url:
            "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
                .to_owned(),
        value: Vec::new(),
    };
    let format =
        http1_protocol_options::header_key_format::HeaderFormat::StatefulFormatter(extension("preserve_case", config));
    core::Http1ProtocolOptions {
        header_key_format: Some(http1_protocol_options::HeaderKeyFormat { header_format: Some(format) }),
        ..Default::default()
    }
}
