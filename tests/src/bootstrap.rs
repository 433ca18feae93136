//! The bootstrap configuration that Istio's agent would write for a sidecar, as far as tests need it.
//!
//! Left out: tracing, statsd, the readiness and Prometheus listeners. Different: `xds-grpc` goes straight to the control
//! plane, since there is no agent in between, and all of Envoy's stats are kept, because tests read them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use crate::agent::SERVER_NAME;
use crate::kube::PodSpec;
use crate::netns::Interception;

/// Port of Envoy's admin interface, within the pod.
pub const ADMIN: u16 = 15000;

/// The variant of the xDS protocol that a sidecar speaks. Istio's speak [`Variant::Delta`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Changes only.
    #[default]
    Delta,
    /// State of the world.
    Sotw,
}

/// What a bootstrap is made of.
pub struct Config<'a> {
    /// The pod that the sidecar stands in.
    pub pod: &'a PodSpec,
    /// xDS of the control plane; plaintext, unless `secure` says how.
    pub control_plane: SocketAddr,
    /// Root to trust and token to show on a TLS connection.
    pub secure: Option<(&'a str, &'a str)>,
    /// Unix socket of the secret service.
    pub sds: &'a Path,
    /// Variant of the protocol.
    pub variant: Variant,
    /// How traffic comes to the sidecar.
    pub interception: Interception,
}

/// The node as Istio's agent sends it.
pub fn node(pod: &PodSpec, interception: Interception) -> Value {
    let PodSpec { name, namespace, service_account, ip, labels, .. } = pod;
    let kind = if pod.gateway { "router" } else { "sidecar" };
    let app = labels.get("app").map_or(name.as_str(), String::as_str);
    let mode = match interception {
        Interception::Redirect => "REDIRECT",
        Interception::Tproxy => "TPROXY",
        Interception::None => "NONE",
    };
    json!({
        "id": format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        "cluster": format!("{app}.{namespace}"),
        "metadata": {
            "NAME": name,
            "NAMESPACE": namespace,
            "LABELS": labels,
            "SERVICE_ACCOUNT": service_account,
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.31.0",
            "INSTANCE_IPS": ip.to_string(),
            "MESH_ID": "cluster.local",
            "WORKLOAD_NAME": name,
            "INTERCEPTION_MODE": mode,
        },
    })
}

/// The whole bootstrap.
pub fn bootstrap(config: &Config<'_>) -> Value {
    let Config { pod, control_plane, secure, sds, variant, interception } = *config;
    let api_type = match variant {
        Variant::Delta => "DELTA_GRPC",
        Variant::Sotw => "GRPC",
    };
    let from_ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    let xds_at =
        json!({"socket_address": {"address": control_plane.ip().to_string(), "port_value": control_plane.port()}});
    let listeners = match interception {
        Interception::None if !pod.gateway => json!([inbound(pod)]),
        _ => json!([]),
    };
    let mut clusters =
        vec![grpc_cluster("sds-grpc", &json!({"pipe": {"path": sds}})), grpc_cluster("xds-grpc", &xds_at)];
    let mut xds = json!({"envoy_grpc": {"cluster_name": "xds-grpc"}});
    if let Some((root, token)) = secure {
        xds["initial_metadata"] = json!([{"key": "authorization", "value": format!("Bearer {token}")}]);
        clusters[1]["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": SERVER_NAME,
            "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {
                "trusted_ca": {"inline_string": root},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}],
            }},
        }});
    }
    if interception == Interception::None {
        clusters.push(cluster("app", SocketAddr::from((Ipv4Addr::LOCALHOST, pod.port()))));
    }
    json!({
        "node": node(pod, interception),
        "layered_runtime": {"layers": [
            {"name": "global config", "static_layer": {"re2.max_program_size.error_level": "32768"}},
            {"name": "admin", "admin_layer": {}},
        ]},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                "buffer_size_kb": 64,
            },
        }],
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "dynamic_resources": {
            "lds_config": from_ads,
            "cds_config": from_ads,
            "ads_config": {
                "api_type": api_type,
                "set_node_on_first_message_only": true,
                "transport_api_version": "V3",
                "grpc_services": [xds],
            },
        },
        "static_resources": {"clusters": clusters, "listeners": listeners},
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 2_147_483_647,
            },
        }]},
        "cluster_manager": {"enable_deferred_cluster_creation": true},
    })
}

/// A cluster of one address.
pub fn cluster(name: &str, at: SocketAddr) -> Value {
    let at = json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    json!({"name": name, "type": "STATIC", "load_assignment": assignment(name, &at)})
}

fn grpc_cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": assignment(name, address),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
    })
}

fn assignment(cluster: &str, address: &Value) -> Value {
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

/// Without redirection a sidecar gets no inbound listener from istiod, yet others speak mutual TLS to its pod, as the label
/// `security.istio.io/tlsMode` tells them. So this listener takes the pod's address, and the application the loopback one.
fn inbound(pod: &PodSpec) -> Value {
    let secret = |name: &str| {
        json!({"name": name, "sds_config": {
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
            },
            "initial_fetch_timeout": "0s",
            "resource_api_version": "V3",
        }})
    };
    let http = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "forward_client_cert_details": "APPEND_FORWARD",
            "set_current_client_cert_details": {"uri": true},
            "route_config": {"virtual_hosts": [{
                "name": "app",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    });
    let tls = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [secret("default")],
            "validation_context_sds_secret_config": secret("ROOTCA"),
            "alpn_protocols": ["h2", "http/1.1"],
        },
    }});
    json!({
        "name": "inbound",
        "address": {"socket_address": {"address": pod.ip.to_string(), "port_value": pod.port()}},
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
        }],
        "filter_chains": [
            {"filter_chain_match": {"transport_protocol": "tls"}, "filters": [http], "transport_socket": tls},
            {"filters": [http]},
        ],
    })
}
