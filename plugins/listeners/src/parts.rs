//! Small builders of Envoy messages, and the numbers of the fields that are filled through holes.

use trysail_sdk::prost::Name;
use trysail_sdk::prost_types::{Any, Duration, ListValue, Struct, Value, value::Kind};
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, Address, Pipe, SocketAddress, TransportSocket, address, socket_address,
};
use trysail_sdk::proto::envoy::config::listener::v3::{
    AdditionalAddress, FilterChainMatch, ListenerFilter, listener_filter,
};
use trysail_sdk::proto::envoy::extensions::filters::listener as listener_filters;
use trysail_sdk::{CallRef, Message};

/// `Listener.filter_chains`.
pub const LISTENER_FILTER_CHAINS: u32 = 3;
/// `Listener.default_filter_chain`.
pub const LISTENER_DEFAULT_FILTER_CHAIN: u32 = 25;
/// `FilterChain.filters`.
pub const CHAIN_FILTERS: u32 = 3;
/// `FilterChain.transport_socket`.
pub const CHAIN_TRANSPORT_SOCKET: u32 = 6;
/// `HttpConnectionManager.route_config`.
pub const HCM_ROUTE_CONFIG: u32 = 4;
/// `HttpConnectionManager.http_filters`.
pub const HCM_HTTP_FILTERS: u32 = 5;
/// `HttpConnectionManager.tracing`.
pub const HCM_TRACING: u32 = 7;

/// Cluster that drops everything.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Cluster of the original destination, outbound.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Cluster of the original destination, inbound.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// Name of the filter that exchanges metadata of the peers, on both levels.
pub const METADATA_EXCHANGE: &str = "istio.metadata_exchange";

/// The call of this stage.
pub fn own<S: Into<String>>(function: &str, args: impl IntoIterator<Item = S>) -> CallRef {
    CallRef::new("listeners", function, args)
}

/// The filters that count, of a direction: the same ones for HTTP and for TCP.
pub fn stats(direction: &str) -> CallRef {
    own("stats", [direction])
}

/// What plugins insert before the last HTTP filter.
pub fn http_filter_hook(slot: &str, direction: &str, service: &str, port: Port) -> CallRef {
    CallRef::new("hooks", slot, port.after([direction, service]))
}

/// What plugins insert before the terminal network filter.
pub fn network_filter_hook(direction: &str, service: &str, port: Port) -> CallRef {
    CallRef::new("hooks", "network-filters", port.after([direction, service]))
}

/// A port as plugins are told of it.
#[derive(Clone, Copy)]
pub enum Port {
    /// Of a service or listener; 0 for all.
    Any(u32),
    /// Of a service at a workload that listens on the other.
    Inbound(u32, u32),
}

impl Port {
    /// The arguments of a hook point: what comes before, and the port.
    fn after(self, first: [&str; 2]) -> Vec<String> {
        let (port, workload) = match self {
            Port::Any(port) => (port, None),
            Port::Inbound(port, workload) => (port, Some(workload)),
        };
        let numbers = [Some(port), workload].into_iter().flatten().map(|number| number.to_string());
        first.map(str::to_owned).into_iter().chain(numbers).collect()
    }
}

/// A network filter with a configuration.
pub fn network_filter<M: Name>(name: &str, config: &M) -> Message {
    filter_with(name, &M::type_url(), Message::of(config))
}

/// A network or HTTP filter whose configuration may have holes: in both `name` is field 1 and `typed_config` field 4.
pub fn filter_with(name: &str, type_url: &str, config: Message) -> Message {
    Message::default().text(1, name).any(4, type_url, config)
}

/// A network or HTTP filter whose configuration is in an `Any`.
pub fn filter_of(name: &str, config: &Any) -> Message {
    Message::default().text(1, name).field(4, Message::of(config))
}

/// A listener filter.
pub fn listener_filter<M: Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.into(),
        filter_disabled: None,
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(config))),
    }
}

/// Detects TLS and reads SNI and ALPN. Its first read is small because a ClientHello rarely needs Envoy's 64 KiB.
pub fn tls_inspector() -> ListenerFilter {
    let config =
        listener_filters::tls_inspector::v3::TlsInspector { initial_read_buffer_size: Some(512), ..Default::default() };
    listener_filter("envoy.filters.listener.tls_inspector", &config)
}

/// Detects plain HTTP.
pub fn http_inspector() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.http_inspector",
        &listener_filters::http_inspector::v3::HttpInspector::default(),
    )
}

/// Restores the address that a connection was redirected from.
pub fn original_destination() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &listener_filters::original_dst::v3::OriginalDst::default())
}

/// Keeps the client's address on upstream connections; the mark is the one that istio-iptables lets pass.
pub fn original_source() -> ListenerFilter {
    let config = listener_filters::original_src::v3::OriginalSrc { mark: 1337, ..Default::default() };
    listener_filter("envoy.filters.listener.original_src", &config)
}

/// A TLS transport socket.
pub fn tls_socket<M: Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(context))),
    }
}

/// A socket address, or a pipe for `unix:` binds, which have port 0.
pub fn address(bind: &str, port: u32) -> Address {
    let inner = if port == 0 {
        // The scheme is written `unix://`, of which the path keeps what follows.
        let path = bind.strip_prefix("unix://").unwrap_or(bind).to_owned();
        address::Address::Pipe(Pipe { path, mode: 0 })
    } else {
        address::Address::SocketAddress(SocketAddress {
            address: bind.into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })
    };
    Address { address: Some(inner) }
}

/// Further addresses of a listener.
pub fn additional_addresses(binds: &[String], port: u32) -> Vec<AdditionalAddress> {
    binds
        .iter()
        .filter(|bind| !bind.is_empty())
        .map(|bind| AdditionalAddress { address: Some(address(bind, port)), ..Default::default() })
        .collect()
}

/// Seconds as a duration.
pub fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// A canonical text of a filter chain's match: equal for chains that Envoy would refuse beside each other.
pub fn match_text(m: &FilterChainMatch) -> String {
    let mut names: Vec<&str> = m.server_names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let mut ranges: Vec<String> = m
        .prefix_ranges
        .iter()
        .map(|r| crate::net::masked(&format!("{}/{}", r.address_prefix, r.prefix_len.unwrap_or(0))))
        .collect();
    ranges.sort_unstable();
    let port = m.destination_port.map(|p| p.to_string()).unwrap_or_default();
    format!(
        "match:{port};{};{};{};{}",
        m.transport_protocol,
        m.application_protocols.join(","),
        names.join(","),
        ranges.join(",")
    )
}

/// An object as a JSON-like value.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

/// A struct.
pub fn structure<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// A list.
pub fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into_iter().collect() })) }
}

/// A text.
pub fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

/// A truth value.
pub fn truth(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

/// Metadata that names the object a piece of configuration came from.
pub fn config_metadata(api_version: &str, namespace: &str, kind: &str, name: &str) -> core::Metadata {
    let path = format!("/apis/{api_version}/namespaces/{namespace}/{kind}/{name}");
    core::Metadata {
        filter_metadata: [("istio".to_owned(), structure([("config", text(&path))]))].into(),
        ..Default::default()
    }
}
