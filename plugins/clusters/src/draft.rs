//! A cluster while it is made.
//!
//! What nearly every cluster has (metadata, transport sockets) is encoded by hand and appended to the typed message: as typed
//! messages these made up half of a cold call.

use std::collections::BTreeMap;

use trysail_sdk::facts::{Port, Protocol};
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig,
};
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, Http1ProtocolOptions, Http2ProtocolOptions, UpstreamHttpProtocolOptions,
};
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
};

use trysail_sdk::{Fields, Message};

use crate::wire;

/// Fields of a cluster.
const TRANSPORT_SOCKET: u32 = 24;
const METADATA: u32 = 25;
const TRANSPORT_SOCKET_MATCHES: u32 = 43;

/// Key of a cluster's HTTP options.
pub const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Metadata that Istio's filters read.
const META_ISTIO: &str = "istio";

/// Whether a protocol runs over HTTP.
pub fn is_http(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::HttpProxy) || is_http2(protocol)
}

/// Whether a protocol runs over HTTP/2.
pub fn is_http2(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
}

/// HTTP options of a cluster, written when anything set them.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// Something is set.
    pub used: bool,
    /// Options of all versions.
    pub common: Option<core::HttpProtocolOptions>,
    /// SNI and SANs from the request's host.
    pub upstream: Option<UpstreamHttpProtocolOptions>,
    /// The version; Envoy requires one, HTTP/1.1 if nothing is said.
    pub protocol: Option<UpstreamProtocolOptions>,
}

impl Http {
    /// Speaks HTTP/2, unless a version is already chosen.
    pub fn use_h2(&mut self) {
        self.used = true;
        let h2 = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
        self.protocol.get_or_insert(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(h2),
        }));
    }

    /// Speaks HTTP/1.1 and keeps the case of headers.
    pub fn use_h1_with_case(&mut self) {
        self.used = true;
        let h1 = ProtocolConfig::HttpProtocolOptions(wire::preserve_case());
        self.protocol =
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(h1) }));
    }

    /// Speaks what the client speaks.
    pub fn use_downstream(&mut self) {
        self.used = true;
        let h1 = match self.protocol.take() {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(h1)),
            })) => h1,
            _ => Http1ProtocolOptions::default(),
        };
        self.protocol = Some(downstream(h1));
    }

    /// The options of HTTP/2 if that is what it speaks.
    pub fn explicit_h2(&mut self) -> Option<&mut Http2ProtocolOptions> {
        match &mut self.protocol {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(h2)),
            })) => Some(h2),
            _ => None,
        }
    }

    /// Does it speak HTTP/2, whatever the client speaks?
    pub fn is_h2(&mut self) -> bool {
        self.explicit_h2().is_some()
    }

    fn build(self) -> HttpProtocolOptions {
        let h1 = || ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default());
        let h1 = || UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(h1()) });
        HttpProtocolOptions {
            common_http_protocol_options: self.common,
            upstream_http_protocol_options: self.upstream,
            upstream_protocol_options: Some(self.protocol.unwrap_or_else(h1)),
            ..Default::default()
        }
    }
}

/// The version that the client speaks.
pub fn downstream(h1: Http1ProtocolOptions) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(h1),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..Default::default()
    })
}

/// What carries the traffic of a cluster. Sockets are encoded.
#[derive(Clone, Debug, Default)]
pub enum Transport {
    /// Envoy's default, plaintext.
    #[default]
    Plain,
    /// The same for all hosts.
    Socket(Vec<u8>),
    /// Mutual TLS for hosts that say that they take it, the other for all others.
    ByHost {
        /// For hosts with a sidecar.
        mutual: Vec<u8>,
        /// For hosts without.
        plain: Vec<u8>,
    },
}

/// A cluster while it is made.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What is made so far, but for metadata and transport. Boxed, since it is large and handed on.
    pub cluster: Box<Cluster>,
    /// Its HTTP options.
    pub http: Http,
    /// Its hosts come from requests (dynamic forward proxy).
    pub dynamic: bool,
    /// Metadata for Istio's filters: encoded values by key.
    pub metadata: BTreeMap<&'static str, Vec<u8>>,
    /// What carries the traffic.
    pub transport: Transport,
}

impl Draft {
    /// A cluster of a kind of discovery. Statistics go by its name; the semicolon ends the name there.
    pub fn new(name: String, kind: DiscoveryType) -> Self {
        Draft::of(Cluster {
            alt_stat_name: format!("{name};"),
            name,
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
            common_lb_config: Some(CommonLbConfig::default()),
            ..Default::default()
        })
    }

    /// A cluster that has something already.
    pub fn of(cluster: Cluster) -> Self {
        Draft {
            cluster: Box::new(cluster),
            http: Http::default(),
            dynamic: false,
            metadata: BTreeMap::new(),
            transport: Transport::Plain,
        }
    }

    /// The kind of discovery; none for dynamic ones.
    pub fn kind(&self) -> Option<DiscoveryType> {
        match self.cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).ok(),
            _ => None,
        }
    }

    /// Changes the kind of discovery.
    pub fn set_kind(&mut self, kind: DiscoveryType) {
        self.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
    }

    /// Chooses the HTTP version by the port's protocol. `sniffs`: this kind of proxy detects protocols, so the cluster of a
    /// port without one speaks what the client spoke.
    pub fn protocol(&mut self, port: &Port, preserve_case: bool, sniffs: impl FnOnce() -> bool) {
        let protocol = port.protocol();
        if is_http2(protocol) {
            self.http.use_h2();
            return;
        }
        let undeclared = protocol == Protocol::Unsupported;
        if preserve_case && (undeclared || is_http(protocol)) {
            self.http.use_h1_with_case();
        }
        if undeclared && sniffs() {
            self.http.use_downstream();
        }
    }

    /// Endpoints by EDS, under the cluster's name.
    pub fn eds(&mut self) {
        if self.kind() == Some(DiscoveryType::Eds) {
            self.cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(wire::ads(Some(wire::seconds(0)))),
                service_name: self.cluster.name.clone(),
            });
        }
    }

    /// The finished cluster.
    pub fn build(mut self) -> Message {
        if self.http.used {
            self.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&self.http.build()));
        }
        let sockets = match &self.transport {
            Transport::Plain => 0,
            Transport::Socket(socket) => socket.len(),
            Transport::ByHost { mutual, plain } => mutual.len() + plain.len() + 64,
        };
        let more = sockets + self.metadata.values().map(|value| value.len() + 24).sum::<usize>() + 32;
        Message::encoded(Fields::after(&*self.cluster, more, |cluster| {
            if let Transport::Socket(socket) = &self.transport {
                cluster.bytes(TRANSPORT_SOCKET, socket);
            }
            if !self.metadata.is_empty() {
                let values = |object: &mut Fields| {
                    for (key, value) in &self.metadata {
                        wire::value::entry(object, key, |of| of.raw(value));
                    }
                };
                cluster.nested(METADATA, |metadata| wire::value::entry(metadata, META_ISTIO, values));
            }
            if let Transport::ByHost { mutual, plain } = &self.transport {
                cluster.nested(TRANSPORT_SOCKET_MATCHES, |entry| {
                    entry.text(1, "tlsMode-istio");
                    entry.nested(2, |labels| wire::value::entry(labels, "tlsMode", |value| value.text(3, "istio")));
                    entry.bytes(3, mutual);
                });
                cluster.nested(TRANSPORT_SOCKET_MATCHES, |entry| {
                    entry.text(1, "tlsMode-disabled");
                    entry.bytes(2, &[]);
                    entry.bytes(3, plain);
                });
            }
        }))
    }
}
