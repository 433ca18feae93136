//! Connections that no listener or filter chain is for: the virtual outbound listener and what its chains, and the
//! default chains of all others, do with them.
//!
//! Nothing here warns or rejects.

use trysail_sdk::facts::Protocol;
use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::core::v3::TrafficDirection;
use trysail_sdk::proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use trysail_sdk::proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use trysail_sdk::proto::istio::networking::v1alpha3::outbound_traffic_policy::Mode;
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

use crate::headers::Headers;
use crate::http::{Kind, Manager, Routes};
use crate::network::{self, Target};
use crate::node::{self, Families, Interception};
use crate::parts::{self, CHAIN_FILTERS, LISTENER_FILTER_CHAINS, Port, own};
use crate::{access_log, dns, naming};

/// `listeners/unknown-destination`: the filters for connections to destinations that no service stands for.
pub fn destination(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let policy = dns::outbound_policy(ctx)?;
    // Unknown hosts are resolved for HTTP only, so with that policy other traffic passes through, too.
    let cluster = if policy.mode == Mode::RegistryOnly as i32 {
        parts::BLACK_HOLE.to_owned()
    } else if let Some(egress) = &policy.egress_proxy {
        naming::destination_cluster(&egress.host, &egress.subset, egress.port.as_ref().map(|p| p.number), None, 0)
    } else {
        parts::PASSTHROUGH.to_owned()
    };
    let proxy = network::proxy_to(ctx, &cluster, &Target::Cluster(cluster.clone()))?;
    let mut output = Output::empty();
    output.item(Item::new("unknown-destination", network::proxy_filter(&proxy)));
    Ok(output)
}

/// `listeners/virtual-outbound`: the listener that all redirected outbound connections come to.
pub fn listener(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let interception = node::interception(ctx);
    if interception == Interception::None {
        return Ok(output);
    }
    let families = Families::of(ctx);
    let [dual_stack, extra_v4] =
        ctx.flags(["ISTIO_DUAL_STACK", "ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS"])?;
    let port = u32::try_from(ctx.mesh_config(&["proxy_listen_port"])?.proxy_listen_port).unwrap_or(0);
    let features = ctx.features(&["MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP"])?;
    let wildcards = families.wildcards();
    let more = if dual_stack && families.dual() {
        wildcards.get(1..).unwrap_or_default().to_vec()
    } else if extra_v4 && !families.v4 {
        vec![crate::net::ANY_IPV4.to_owned()]
    } else {
        Vec::new()
    };
    let resolves = dns::unknown_hosts_are_resolved(ctx)?;
    let base = Listener {
        name: "virtualOutbound".into(),
        address: Some(parts::address(families.wildcard(), port)),
        additional_addresses: parts::additional_addresses(&more, port),
        transparent: (interception == Interception::Tproxy).then_some(true),
        use_original_dst: Some(true),
        traffic_direction: TrafficDirection::Outbound as i32,
        max_connections_to_accept_per_socket_event: node::connections_per_event(&features[0]),
        listener_filters: if resolves { vec![parts::http_inspector()] } else { Vec::new() },
        access_log: access_log::of_listener(ctx)?,
        ..Default::default()
    };
    let mut message = Message::of(&base).field(
        LISTENER_FILTER_CHAINS,
        black_hole("virtualOutbound-blackhole", port, Message::default().hole(CHAIN_FILTERS, parts::stats("outbound"))),
    );
    if resolves {
        message = message.field(LISTENER_FILTER_CHAINS, resolved_http(ctx)?);
    }
    let rest = Message::default()
        .hole(CHAIN_FILTERS, parts::stats("outbound"))
        .hole(CHAIN_FILTERS, own("unknown-destination", [""; 0]))
        .fields(&FilterChain { name: "virtualOutbound-catchall-tcp".into(), ..Default::default() });
    let mut item = Item::new("virtualOutbound", message.field(LISTENER_FILTER_CHAINS, rest));
    let all = std::iter::once(families.wildcard()).chain(more.iter().map(String::as_str));
    item.claims = all.map(|address| format!("address:{address}:{port}")).collect();
    output.item(item);
    Ok(output)
}

/// A chain that drops connections to the listener's own port, which would come back to it forever.
pub fn black_hole(name: &str, port: u32, before: Message) -> Message {
    let head = FilterChain {
        filter_chain_match: Some(FilterChainMatch { destination_port: Some(port), ..Default::default() }),
        ..Default::default()
    };
    let mut chain = Message::of(&head);
    chain.parts.extend(before.parts);
    chain
        .field(CHAIN_FILTERS, network::proxy_filter(&network::plain_proxy(parts::BLACK_HOLE)))
        .fields(&FilterChain { name: name.into(), ..Default::default() })
}

/// Plain HTTP to unknown hosts, which the proxy resolves.
fn resolved_http(ctx: &Ctx<'_>) -> Result<Message, Failure> {
    let headers = Headers::of(ctx, false)?;
    let manager = Manager {
        kind: Kind::Outbound,
        stat_prefix: "outbound_virtualOutbound_allow_any_dynamic_dns;".into(),
        routes: Routes::Fixed(Message::of(&resolving_routes(&headers))),
        protocol: Protocol::Http,
        dynamic_host: "",
        service: "",
        port: Port::Any(0),
        http3: false,
    };
    let head = FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: node::plaintext_alpn(ctx)?,
            ..Default::default()
        }),
        ..Default::default()
    };
    Ok(Message::of(&head)
        .field(CHAIN_FILTERS, manager.filter(ctx))
        .fields(&FilterChain { name: "virtualOutbound-catchall-tcp-http".into(), ..Default::default() }))
}

#[allow(deprecated)] // `max_grpc_timeout` is what istiod sends: its replacement breaks streams.
fn resolving_routes(headers: &Headers) -> RouteConfiguration {
    const NAME: &str = "allow_any_dynamic_dns";
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("AllowAnyDynamicDNSCluster".into())),
        timeout: Some(Duration::default()),
        max_grpc_timeout: Some(Duration::default()),
        append_x_forwarded_host: headers.forwarded_host,
        ..Default::default()
    };
    let all = Route {
        name: NAME.into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    RouteConfiguration {
        name: NAME.into(),
        virtual_hosts: vec![VirtualHost {
            name: NAME.into(),
            domains: vec!["*".into()],
            routes: vec![all],
            include_request_attempt_count: headers.attempt_count,
            ..Default::default()
        }],
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(1024 * 1024),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, items};
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, mesh_config};
    use trysail_sdk::proto::istio::networking::v1alpha3::OutboundTrafficPolicy;

    fn virtual_outbound(mode: i32) -> Listener {
        let mesh = MeshConfig { proxy_listen_port: 15001, ..Default::default() };
        let host = Answers::default().message("mesh-config", &[], &mesh).message(
            "derived",
            &["scope", "outbound-policy"],
            &OutboundTrafficPolicy { mode, egress_proxy: None },
        );
        let ctx = Ctx::new(&host);
        let output = listener(&ctx).expect("a listener");
        Listener::decode(items(&ctx, &output)[0].1.as_slice()).expect("decodes")
    }

    #[test]
    fn the_own_port_is_a_black_hole_and_the_rest_passes() {
        let names: Vec<String> =
            virtual_outbound(Mode::AllowAny as i32).filter_chains.into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["virtualOutbound-blackhole", "virtualOutbound-catchall-tcp"]);
    }

    #[test]
    fn unknown_hosts_can_be_resolved_for_http() {
        let listener = virtual_outbound(mesh_config::outbound_traffic_policy::Mode::AllowAnyDynamicDns as i32);
        assert_eq!(listener.filter_chains.len(), 3);
        assert_eq!(listener.filter_chains[1].name, "virtualOutbound-catchall-tcp-http");
        assert_eq!(listener.listener_filters.len(), 1);
    }
}
