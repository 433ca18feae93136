//! A cluster while it is made.

use trysail_sdk::facts::{Port, Protocol};
use trysail_sdk::prost_types::Struct;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig,
};
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, Http1ProtocolOptions, Http2ProtocolOptions, Metadata, UpstreamHttpProtocolOptions,
};
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
};

use crate::wire;

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

/// A cluster while it is made.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What is made so far.
    pub cluster: Cluster,
    /// Its HTTP options.
    pub http: Http,
    /// Its hosts come from requests (dynamic forward proxy).
    pub dynamic: bool,
}

impl Draft {
    /// A cluster of a kind of discovery. Statistics go by its name; the semicolon ends the name there.
    pub fn new(name: String, kind: DiscoveryType) -> Self {
        let cluster = Cluster {
            alt_stat_name: format!("{name};"),
            name,
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
            common_lb_config: Some(CommonLbConfig::default()),
            ..Default::default()
        };
        Draft { cluster, http: Http::default(), dynamic: false }
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

    /// The metadata of Istio's filters.
    pub fn istio_metadata(&mut self) -> &mut Struct {
        let metadata = self.cluster.metadata.get_or_insert_with(Metadata::default);
        metadata.filter_metadata.entry(META_ISTIO.to_owned()).or_default()
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
    pub fn build(mut self) -> Cluster {
        if self.http.used {
            self.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&self.http.build()));
        }
        self.cluster
    }
}
