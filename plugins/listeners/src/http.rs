//! HTTP connection managers, in three pieces that are shared by all listeners of a direction:
//!
//! ```text
//! HttpConnectionManager = stat prefix, routes          the listener's own
//!                       + http-head(kind, ...)         filters before the plugins' ones
//!                       + hooks/http-filters           what plugins insert
//!                       + http-tail(kind)              router filter, tracing, and everything that is no filter
//! ```
//!
//! Kinds are `outbound`, `proxy` (the HTTP proxy port), `inbound` and `gateway`. Nothing here warns or rejects.

use trysail_sdk::facts::Protocol;
use trysail_sdk::prost::Name;
use trysail_sdk::prost_types::{Any, Duration};
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, ConfigSource, Http1ProtocolOptions, Http2ProtocolOptions, Http3ProtocolOptions, HttpProtocolOptions,
    TypedExtensionConfig, config_source, http1_protocol_options,
};
use trysail_sdk::proto::envoy::extensions::filters::http;
use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, RequestIdExtension, http_connection_manager as hcm,
};
use trysail_sdk::proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use trysail_sdk::proto::istio::envoy::config::filter::http::alpn::v2alpha1::{FilterConfig as Alpn, filter_config};
use trysail_sdk::proto::istio::mesh::v1alpha1::ForwardClientCertDetails;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::proxy_path_normalization::NormalizationType;
use trysail_sdk::proto::udpa::r#type::v1::TypedStruct;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};

use crate::headers::Headers;
use crate::parts::{
    self, HCM_HTTP_FILTERS, HCM_ROUTE_CONFIG, HCM_TRACING, Port, filter_of, list, object, own, text, truth,
};
use crate::{access_log, connection, dns, node};

/// Where an HTTP connection manager stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In a listener for a port of the mesh.
    Outbound,
    /// In the listener of the HTTP proxy port.
    Proxy,
    /// In an inbound filter chain.
    Inbound,
    /// In a listener of a gateway.
    Gateway,
}

impl Kind {
    /// As an argument.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Outbound => "outbound",
            Kind::Proxy => "proxy",
            Kind::Inbound => "inbound",
            Kind::Gateway => "gateway",
        }
    }

    fn parse(text: Option<&String>) -> Result<Self, Failure> {
        match text.map(String::as_str) {
            Some("outbound") => Ok(Kind::Outbound),
            Some("proxy") => Ok(Kind::Proxy),
            Some("inbound") => Ok(Kind::Inbound),
            Some("gateway") => Ok(Kind::Gateway),
            other => Err(Failure::BadArguments(format!("no kind of HTTP connection manager: {other:?}"))),
        }
    }

    /// The direction that plugins and tracing know.
    pub fn direction(self) -> &'static str {
        match self {
            Kind::Outbound | Kind::Proxy => "outbound",
            Kind::Inbound => "inbound",
            Kind::Gateway => "gateway",
        }
    }

    /// Do applications of this proxy's workload send the requests, and not strangers?
    fn is_own_client(self) -> bool {
        matches!(self, Kind::Outbound | Kind::Proxy)
    }
}

/// Where routes come from.
pub enum Routes {
    /// A route configuration of this name.
    Named(String),
    /// Inline, made by a call.
    Inline(CallRef),
    /// Inline, as it is.
    Fixed(Message),
}

/// What is a connection manager's own.
pub struct Manager<'a> {
    /// Where it stands.
    pub kind: Kind,
    /// Prefix of its statistics, with its delimiter.
    pub stat_prefix: String,
    /// Its routes.
    pub routes: Routes,
    /// Protocol of the port, as far as it changes filters.
    pub protocol: Protocol,
    /// Host with a wildcard that is resolved from the requests, or empty.
    pub dynamic_host: &'a str,
    /// Service key for plugins, or empty.
    pub service: &'a str,
    /// Port for plugins.
    pub port: Port,
    /// HTTP/3, over QUIC.
    pub http3: bool,
}

impl Manager<'_> {
    /// The network filter.
    pub fn filter(self, ctx: &Ctx<'_>) -> Message {
        let mut fields = HttpConnectionManager { stat_prefix: self.stat_prefix, ..Default::default() };
        let h2 = matches!(self.protocol, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb);
        if self.kind == Kind::Inbound && h2 {
            fields.http2_protocol_options = Some(Http2ProtocolOptions::default());
        }
        if self.http3 {
            fields.set_codec_type(hcm::CodecType::Http3);
            fields.http3_protocol_options = Some(Http3ProtocolOptions::default());
        }
        let mut message = match self.routes {
            Routes::Named(name) => {
                fields.route_specifier = Some(hcm::RouteSpecifier::Rds(discovered_routes(name)));
                Message::of(&fields)
            }
            Routes::Inline(call) => Message::of(&fields).hole(HCM_ROUTE_CONFIG, call),
            Routes::Fixed(routes) => Message::of(&fields).field(HCM_ROUTE_CONFIG, routes),
        };
        let grpc_web = if self.protocol == Protocol::GrpcWeb { "grpc-web" } else { "" };
        let hook = |slot: &str| parts::http_filter_hook(slot, self.kind.direction(), self.service, self.port);
        let head = |part: &str| own("http-head", [self.kind.text(), grpc_web, self.dynamic_host, part]);
        message = if ctx.hooked(ANY_SLOT) {
            let first = message.splice(head(FIRST));
            SLOTS.iter().fold(first, |message, slot| message.hole(HCM_HTTP_FILTERS, hook(slot))).splice(head(REST))
        } else {
            // One call for all of it, since hardly anybody has plugins there.
            message.splice(own("http-head", [self.kind.text(), grpc_web, self.dynamic_host]))
        };
        message = message.hole(HCM_HTTP_FILTERS, hook("http-filters")).splice(own("http-tail", [self.kind.text()]));
        parts::filter_with("envoy.filters.network.http_connection_manager", &HttpConnectionManager::type_url(), message)
    }
}

/// Routes that Envoy asks for; it waits for them without a limit, so that no request meets an empty table.
fn discovered_routes(name: String) -> Rds {
    Rds {
        config_source: Some(ConfigSource {
            initial_fetch_timeout: Some(Duration::default()),
            resource_api_version: core::ApiVersion::V3 as i32,
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
            ..Default::default()
        }),
        route_config_name: name,
    }
}

/// The slots of plugins between what tells who calls and what handles the protocol, in their order. Those of authentication and
/// authorization stand where istiod puts its own of the same phase.
const SLOTS: [&str; 4] = ["authn-filters", "authz-filters", "rate-limit-filters", "observability-filters"];
/// The hook point at which all plugins of the slots stand.
const ANY_SLOT: &str = "filter-slots";
/// What of the head stands before the slots.
const FIRST: &str = "first";
/// What of the head stands behind the slots.
const REST: &str = "rest";

/// `listeners/http-head` KIND, `grpc-web` or empty, host of dynamic DNS or empty, `first`, `rest` or nothing for both: filters before
/// those that plugins insert before the router.
pub fn head(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let kind = Kind::parse(args.first())?;
    let grpc_web = args.get(1).is_some_and(|a| a == "grpc-web");
    let dynamic_host = args.get(2).map_or("", String::as_str);
    let [exchange, alpn, sessions] = ctx.flags([
        "PILOT_ENABLE_METADATA_EXCHANGE",
        "PILOT_ENABLE_ALPN_FILTER",
        "PILOT_ENABLE_PERSISTENT_SESSION_FILTER",
    ])?;

    let part = args.get(3).map_or("", String::as_str);
    let mut message = Message::default();
    let mut add = |name: &str, config: Any| {
        message = std::mem::take(&mut message).field(HCM_HTTP_FILTERS, filter_of(name, &config));
    };
    // First of all, so that whatever rejects a request can tell who sent it.
    if exchange && part != REST {
        let in_mesh_only =
            matches!(kind, Kind::Outbound | Kind::Gateway) && Headers::of(ctx, false)?.exchange_in_mesh_only;
        add(parts::METADATA_EXCHANGE, peer_metadata(kind, in_mesh_only, &additional_labels(ctx)?));
    }
    if part == FIRST {
        let mut output = Output::empty();
        output.item(Item::new("http-head", message));
        return Ok(output);
    }
    if grpc_web {
        add("envoy.filters.http.grpc_web", pack(&http::grpc_web::v3::GrpcWeb::default()));
    }
    let stats = http::grpc_stats::v3::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(
            http::grpc_stats::v3::filter_config::PerMethodStatSpecifier::StatsForAllMethods(false),
        ),
        ..Default::default()
    };
    add("envoy.filters.http.grpc_stats", pack(&stats));
    if alpn && kind != Kind::Inbound {
        add("istio.alpn", pack(&alpn_overrides()));
    }
    // Routes configure these two, so they must be there.
    add("envoy.filters.http.fault", pack(&http::fault::v3::HttpFault::default()));
    add("envoy.filters.http.cors", pack(&http::cors::v3::Cors::default()));
    message = message.hole(HCM_HTTP_FILTERS, parts::stats(kind.direction()));
    let mut add = |name: &str, config: Any| {
        message = std::mem::take(&mut message).field(HCM_HTTP_FILTERS, filter_of(name, &config));
    };
    if sessions && kind != Kind::Inbound {
        add("envoy.filters.http.stateful_session", pack(&http::stateful_session::v3::StatefulSession::default()));
    }
    if kind == Kind::Outbound && !dynamic_host.is_empty() {
        add(dns::FORWARD_PROXY, dns::forward_proxy(dns::cache_of_host(ctx, dynamic_host)?));
    }
    if kind.is_own_client() && dns::unknown_hosts_are_resolved(ctx)? {
        add(dns::FORWARD_PROXY, dns::forward_proxy(dns::cache_of_unknown_hosts(ctx)?));
    }
    let mut output = Output::empty();
    output.item(Item::new("http-head", message));
    Ok(output)
}

/// Labels that peers exchange beyond the usual ones.
pub fn additional_labels(ctx: &Ctx<'_>) -> Result<Vec<String>, Failure> {
    let values = ctx.features(&["PILOT_MX_ADDITIONAL_LABELS"])?;
    // An unset text variable and a host that knows it only as a switch both mean: none.
    let mut labels: Vec<String> =
        values[0].split(',').filter(|l| !l.is_empty() && *l != "false").map(str::to_owned).collect();
    labels.sort();
    labels.dedup();
    Ok(labels)
}

/// The filter that learns about the peer and tells it about itself.
fn peer_metadata(kind: Kind, in_mesh_only: bool, labels: &[String]) -> Any {
    let headers = object([("istio_headers", object([]))]);
    let discovery = list([headers.clone(), object([("workload_discovery", object([]))])]);
    let propagation = if in_mesh_only {
        list([object([("istio_headers", object([("skip_external_clusters", truth(true))]))])])
    } else {
        list([headers])
    };
    let side = if kind == Kind::Inbound { "downstream" } else { "upstream" };
    let mut value = parts::structure([]);
    value.fields.insert(format!("{side}_discovery"), discovery);
    value.fields.insert(format!("{side}_propagation"), propagation);
    if !labels.is_empty() {
        value.fields.insert("additional_labels".into(), list(labels.iter().map(|l| text(l))));
    }
    typed_struct("type.googleapis.com/io.istio.http.peer_metadata.Config", value)
}

/// A configuration whose message Envoy's published protos lack.
pub fn typed_struct(type_url: &str, value: trysail_sdk::prost_types::Struct) -> Any {
    pack(&TypedStruct { type_url: type_url.into(), value: Some(value) })
}

/// ALPN of upstream connections by the request's protocol. The plain names come last, for destinations outside the mesh.
fn alpn_overrides() -> Alpn {
    use filter_config::Protocol::{Http2, Http10, Http11};
    let one = |protocol: filter_config::Protocol, names: [&str; 3]| filter_config::AlpnOverride {
        upstream_protocol: protocol as i32,
        alpn_override: names.map(str::to_owned).to_vec(),
    };
    Alpn {
        alpn_override: vec![
            one(Http10, ["istio-http/1.0", "istio", "http/1.0"]),
            one(Http11, ["istio-http/1.1", "istio", "http/1.1"]),
            one(Http2, ["istio-h2", "istio", "h2"]),
        ],
    }
}

/// `listeners/http-tail` KIND: the router filter, tracing, and everything that is no filter.
pub fn tail(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let kind = Kind::parse(args.first())?;
    let headers = Headers::of(ctx, !kind.is_own_client())?;
    let [continues, http10, remote_address, internal] = ctx.flags([
        "ENABLE_100_CONTINUE_HEADERS",
        "PILOT_HTTP10",
        "PILOT_SIDECAR_USE_REMOTE_ADDRESS",
        "ENABLE_HCM_INTERNAL_NETWORKS",
    ])?;
    // A gateway is where clients' addresses are known.
    let remote_address = kind == Kind::Gateway || (kind == Kind::Outbound && remote_address);
    let http10 = http10 || ctx.proxy_metadata("HTTP10").as_deref() == Some("1");
    let mesh = ctx.mesh_config(&["path_normalization"])?;

    let mut manager = HttpConnectionManager {
        server_name: headers.server_name.clone(),
        server_header_transformation: headers.server_transformation as i32,
        generate_request_id: headers.generate_request_id,
        append_x_forwarded_port: headers.forwarded_port,
        proxy_100_continue: continues,
        use_remote_address: Some(remote_address),
        upgrade_configs: vec![hcm::UpgradeConfig { upgrade_type: "websocket".into(), ..Default::default() }],
        stream_idle_timeout: Some(Duration::default()),
        path_with_escaped_slashes_action: hcm::PathWithEscapedSlashesAction::KeepUnchanged as i32,
        http_protocol_options: http1_options(kind, http10, headers.preserve_case),
        common_http_protocol_options: node::idle_timeout(ctx)
            .map(|idle| HttpProtocolOptions { idle_timeout: Some(idle), ..Default::default() }),
        request_id_extension: Some(RequestIdExtension {
            typed_config: Some(pack(&UuidRequestIdConfig {
                use_request_id_for_trace_sampling: Some(true),
                ..Default::default()
            })),
        }),
        access_log: access_log::of_http(ctx)?,
        ..Default::default()
    };
    if kind == Kind::Inbound {
        manager.forward_client_cert_details = headers.forward_client_cert;
        manager.set_current_client_cert_details = Some(headers.client_cert_details);
    }
    if internal || remote_address {
        manager.internal_address_config = internal_addresses(ctx)?;
    }
    normalize(&mut manager, mesh.path_normalization.map_or(0, |p| p.normalization));
    let settings = if kind == Kind::Gateway {
        gateway_topology(ctx, &mut manager)?;
        connection::edge_settings(ctx)?
    } else {
        connection::settings(ctx)?
    };
    if let Some(settings) = settings {
        connection::apply(&mut manager, &settings);
    }

    let router =
        http::router::v3::Router { suppress_envoy_headers: headers.suppress_debug_headers, ..Default::default() };
    let message = Message::default()
        .field(HCM_HTTP_FILTERS, filter_of("envoy.filters.http.router", &pack(&router)))
        .hole(HCM_TRACING, own("tracing", [kind.direction()]))
        .fields(&manager);
    let mut output = Output::empty();
    output.item(Item::new("http-tail", message));
    Ok(output)
}

/// Clients whose internal headers are believed, since Envoy believes nobody by default: those of the mesh's networks.
fn internal_addresses(ctx: &Ctx<'_>) -> Result<Option<hcm::InternalAddressConfig>, Failure> {
    let ranges = ctx.network_ranges()?;
    let cidr_ranges: Vec<_> = ranges.iter().filter_map(|range| crate::net::cidr_range(range)).collect();
    let config = hcm::InternalAddressConfig { cidr_ranges, ..Default::default() };
    Ok((!config.cidr_ranges.is_empty()).then_some(config))
}

/// What stands in front of a gateway: how many proxies it trusts, and what becomes of certificates that they forward.
fn gateway_topology(ctx: &Ctx<'_>, manager: &mut HttpConnectionManager) -> Result<(), Failure> {
    let topology = ctx.proxy_config(&["gateway_topology"])?.gateway_topology.unwrap_or_default();
    manager.xff_num_trusted_hops = topology.num_trusted_proxies;
    let details = match ForwardClientCertDetails::try_from(topology.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::Undefined) | Err(_) => hcm::ForwardClientCertDetails::SanitizeSet as i32,
        // Both enumerations have the same values in the same order; Istio's begins with "undefined".
        Ok(details) => details as i32 - 1,
    };
    manager.forward_client_cert_details = details;
    let adds = [hcm::ForwardClientCertDetails::AppendForward, hcm::ForwardClientCertDetails::SanitizeSet];
    if adds.iter().any(|mode| *mode as i32 == details) {
        manager.set_current_client_cert_details = Some(hcm::SetCurrentClientCertDetails {
            subject: Some(true),
            cert: true,
            dns: true,
            uri: true,
            ..Default::default()
        });
    }
    Ok(())
}

fn http1_options(kind: Kind, http10: bool, preserve_case: bool) -> Option<Http1ProtocolOptions> {
    use trysail_sdk::proto::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
    let header_key_format = preserve_case.then(|| http1_protocol_options::HeaderKeyFormat {
        header_format: Some(http1_protocol_options::header_key_format::HeaderFormat::StatefulFormatter(
            TypedExtensionConfig {
                name: "preserve_case".into(),
                typed_config: Some(pack(&PreserveCaseFormatterConfig::default())),
            },
        )),
    });
    let allow_absolute_url = (kind == Kind::Proxy).then_some(true);
    let always = kind == Kind::Gateway;
    (always || http10 || preserve_case || allow_absolute_url.is_some()).then(|| Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10: http10,
        header_key_format,
        ..Default::default()
    })
}

fn normalize(manager: &mut HttpConnectionManager, mode: i32) {
    let mode = NormalizationType::try_from(mode).unwrap_or(NormalizationType::Default);
    manager.normalize_path = Some(mode != NormalizationType::None);
    manager.merge_slashes = matches!(mode, NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes);
    if mode == NormalizationType::DecodeAndMergeSlashes {
        manager.path_with_escaped_slashes_action = hcm::PathWithEscapedSlashesAction::UnescapeAndForward as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalized_unless_that_is_off() {
        let normalized = |mode: NormalizationType| {
            let mut manager = HttpConnectionManager::default();
            normalize(&mut manager, mode as i32);
            (manager.normalize_path, manager.merge_slashes)
        };
        assert_eq!(normalized(NormalizationType::Default), (Some(true), false));
        assert_eq!(normalized(NormalizationType::None), (Some(false), false));
        assert_eq!(normalized(NormalizationType::DecodeAndMergeSlashes), (Some(true), true));
    }
}
