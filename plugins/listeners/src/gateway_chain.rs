//! Filter chains of gateways' listeners: one call per server, per match of TLS that is passed on, and per service behind
//! AUTO_PASSTHROUGH.
//!
//! The first TCP route that matches a server takes all its connections. A server that has none makes no chain. A
//! credential of a secret service that the mesh does not know is reported; nothing here rejects.

use trysail_sdk::facts::{
    GatewayServer, Object, Protocol, ServiceSummaries, VirtualServiceSummaries, VirtualServiceSummary,
};
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::{TransportSocket, transport_socket};
use trysail_sdk::proto::envoy::extensions::transport_sockets::quic::v3::QuicDownstreamTransport;
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    Gateway, L4MatchAttributes, RouteDestination, Server, TlsMatchAttributes, VirtualService,
};
use trysail_sdk::proto::protocol;
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity, hosts};

use crate::chain::Chain;
use crate::gateway::{self, Transport};
use crate::http::{Kind, Manager, Routes};
use crate::matrix::Alpn;
use crate::naming;
use crate::network::{self, Target};
use crate::parts::{self, CHAIN_FILTERS, Port, own};
use crate::routed::{self, Router};
use crate::secrets;
use crate::tls::{self, Inside};

/// Annotation of documents made from others: their kinds and names.
const ANNOTATION_PARENTS: &str = "internal.istio.io/parents";
/// The direction that plugins and metrics know.
const DIRECTION: &str = "gateway";

/// A connection manager of a gateway, by its listener's name.
pub fn manager<'a>(listener: &str, routes: &str, protocol: Protocol, port: u32, http3: bool) -> Manager<'a> {
    Manager {
        kind: Kind::Gateway,
        stat_prefix: format!("outbound_{listener};"),
        routes: Routes::Named(routes.to_owned()),
        protocol,
        dynamic_host: "",
        service: "",
        port: Port::Any(port),
        http3,
    }
}

/// Filters of a chain that serves HTTP.
pub fn http_filters(ctx: &Ctx<'_>, manager: Manager<'_>, port: u32) -> Message {
    Message::default()
        .hole(CHAIN_FILTERS, parts::network_filter_hook(DIRECTION, "", Port::Any(port)))
        .field(CHAIN_FILTERS, manager.filter(ctx))
}

/// Names in a ClientHello that a server's hosts mean: without namespaces, sorted, each once.
pub fn names_of(hosts: &[String]) -> Vec<String> {
    let mut names: Vec<String> =
        hosts.iter().map(|host| host.split_once('/').map_or(host.as_str(), |(_, name)| name).to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// A Gateway's server, and what of it decides about routes.
struct Place {
    server: Server,
    summary: GatewayServer,
}

/// The server of a Gateway by its place; none when it is gone.
fn place(ctx: &Ctx<'_>, key: &str, index: &str) -> Result<Option<Place>, Failure> {
    let bad = || Failure::BadArguments(format!("{index:?} is no place of a server"));
    let index: u32 = index.parse().map_err(|_| bad())?;
    let Some((_, spec)) = ctx.object::<Gateway>("Gateway", key)? else { return Ok(None) };
    let at = usize::try_from(index).map_err(|_| bad())?;
    let Some(server) = spec.servers.into_iter().nth(at) else { return Ok(None) };
    let port = server.port.clone().unwrap_or_default();
    let summary = GatewayServer {
        gateway: key.to_owned(),
        index,
        port: port.number,
        protocol: protocol::parse(&port.protocol).into(),
        hosts: hosts::of_server(&server.hosts, key.split_once('/').map_or("", |(namespace, _)| namespace)),
        has_tls: server.tls.is_some(),
        tls_mode: server.tls.as_ref().map_or(0, |tls| tls.mode),
        ..Default::default()
    };
    Ok(Some(Place { server, summary }))
}

/// `listeners/gateway-https-chain` GATEWAY, INDEX, LISTENER, `tcp` or `quic`, ROUTES: the chain of an HTTPS server.
pub fn https(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let bad = || Failure::BadArguments(format!("gateway-https-chain({})", args.join(", ")));
    let [gateway, index, listener, transport, routes] = args else { return Err(bad()) };
    let transport = Transport::parse(transport).ok_or_else(bad)?;
    let Some(Place { server, summary }) = place(ctx, gateway, index)? else { return Ok(output) };
    let http3 = transport == Transport::Quic;
    let mut manager = manager(listener, routes, Protocol::Https, summary.port, http3);
    if !server.name.is_empty() {
        manager.stat_prefix.clone_from(&server.name);
    }
    let chain = Chain {
        sni: names_of(&summary.hosts),
        filters: http_filters(ctx, manager, summary.port),
        socket: socket(ctx, &server, if http3 { Inside::Http3 } else { Inside::Http })?,
        ..Default::default()
    };
    output.item(Item::new("chain", chain.message(gateway::connect_timeout(ctx)?)));
    diagnose_credentials(ctx, &server, &summary, &mut output)?;
    Ok(output)
}

/// Reports credentials that lead nowhere.
fn diagnose_credentials(
    ctx: &Ctx<'_>,
    server: &Server,
    summary: &GatewayServer,
    output: &mut Output,
) -> Result<(), Failure> {
    let Some(settings) = &server.tls else { return Ok(()) };
    for name in settings.credential_names.iter().chain([&settings.credential_name]).filter(|name| !name.is_empty()) {
        if secrets::served(ctx, name)?.is_none() {
            let field = gateway::field(summary, ".tls.credentialName");
            let why = format!("{name} is of the mesh's external secret service, which is no service of the mesh");
            output.diagnose(Severity::Error, gateway::title(summary), field, why);
        }
    }
    Ok(())
}

/// The transport socket of a server whose TLS ends here.
fn socket(ctx: &Ctx<'_>, server: &Server, inside: Inside) -> Result<Option<Message>, Failure> {
    let Some(settings) = &server.tls else { return Ok(None) };
    let context = tls::server(ctx, settings, inside)?;
    if inside != Inside::Http3 {
        return Ok(Some(Message::of(&parts::tls_socket(&context))));
    }
    let quic = QuicDownstreamTransport { downstream_tls_context: Some(context), ..Default::default() };
    Ok(Some(Message::of(&TransportSocket {
        name: "envoy.transport_sockets.quic".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&quic))),
    })))
}

/// VirtualServices bound to a gateway whose hosts a server takes, with their documents.
fn rules(ctx: &Ctx<'_>, server: &GatewayServer, l4: fn(&VirtualServiceSummary) -> bool) -> Result<Vec<Rules>, Failure> {
    let bound: Option<VirtualServiceSummaries> =
        ctx.derived("scope", "gateway-virtual-services", &[&server.gateway])?;
    let mut found = Vec::new();
    for summary in bound.unwrap_or_default().virtual_services {
        if !l4(&summary) || !takes_any(server, &summary) {
            continue;
        }
        let key = format!("{}/{}", summary.namespace, summary.name);
        if let Some((object, spec)) = ctx.object::<VirtualService>("VirtualService", &key)? {
            found.push(Rules { key, object, spec });
        }
    }
    Ok(found)
}

/// Is one of a VirtualService's hosts among a server's?
fn takes_any(server: &GatewayServer, rule: &VirtualServiceSummary) -> bool {
    let mut own = server.hosts.iter().filter_map(|host| match host.split_once('/') {
        Some((namespace, name)) => (namespace == rule.namespace).then_some(name),
        None => Some(host.as_str()),
    });
    own.any(|own| rule.hosts.iter().any(|host| hosts::overlap(own, host)))
}

/// A VirtualService.
struct Rules {
    key: String,
    object: Object,
    spec: VirtualService,
}

impl Rules {
    fn owner(&self) -> (&str, &str) {
        self.key.split_once('/').unwrap_or_default()
    }

    /// Was it made from a TLSRoute? These have TLS routes also where TLS ends here.
    fn is_of_tls_route(&self) -> bool {
        self.object.annotations.get(ANNOTATION_PARENTS).is_some_and(|parents| parents.starts_with("TLSRoute/"))
    }

    /// The first routes that take a server's connections.
    fn tcp_routes(&self, server: &GatewayServer) -> Option<&[RouteDestination]> {
        let matches = |m: &L4MatchAttributes| applies(server, m.port, &m.gateways);
        let mut tcp = self.spec.tcp.iter().filter(|tcp| !tcp.route.is_empty());
        if let Some(found) = tcp.find(|tcp| tcp.r#match.is_empty() || tcp.r#match.iter().any(matches)) {
            return Some(&found.route);
        }
        let matches = |m: &TlsMatchAttributes| applies(server, m.port, &m.gateways);
        let mut tls = self.spec.tls.iter().filter(|tls| self.is_of_tls_route() && !tls.route.is_empty());
        tls.find(|tls| tls.r#match.iter().any(matches)).map(|tls| tls.route.as_slice())
    }
}

/// Is a match for this server?
fn applies(server: &GatewayServer, port: u32, gateways: &[String]) -> bool {
    (port == 0 || port == server.port) && (gateways.is_empty() || gateways.contains(&server.gateway))
}

/// `listeners/gateway-tcp-chain` GATEWAY, INDEX: the chain of a server that passes on what it takes as TCP, with or without
/// TLS that ends here; none without a route.
pub fn tcp(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let [gateway, index] = args else {
        return Err(Failure::BadArguments(format!("gateway-tcp-chain({})", args.join(", "))));
    };
    let Some(Place { server, summary }) = place(ctx, gateway, index)? else { return Ok(output) };
    let all = rules(ctx, &summary, |rule| rule.has_tcp || rule.has_tls)?;
    let Some((rules, routes)) = all.iter().find_map(|rules| Some((rules, rules.tcp_routes(&summary)?))) else {
        return Ok(output);
    };
    let mut filters = Message::default();
    if summary.has_tls && TlSmode::try_from(summary.tls_mode) == Ok(TlSmode::IstioMutual) {
        filters = filters.hole(CHAIN_FILTERS, own("metadata-exchange", [""; 0]));
    }
    // Only where it is no HTTP by its name may the mesh's exchange of metadata be offered.
    let inside = if summary.protocol() == Protocol::Https { Inside::Http } else { Inside::Tcp };
    let chain = Chain {
        sni: if summary.has_tls { names_of(&summary.hosts) } else { Vec::new() },
        filters: router(ctx, &server, &summary, &stat_pattern(ctx)?).filters(filters, routes, rules.owner())?,
        socket: socket(ctx, &server, inside)?,
        ..Default::default()
    };
    output.item(Item::new("chain", chain.message(gateway::connect_timeout(ctx)?)));
    Ok(output)
}

fn stat_pattern(ctx: &Ctx<'_>) -> Result<String, Failure> {
    Ok(ctx.mesh_config(&["outbound_cluster_stat_name"])?.outbound_cluster_stat_name)
}

fn router<'a>(ctx: &'a Ctx<'a>, server: &'a Server, summary: &GatewayServer, stat_pattern: &'a str) -> Router<'a> {
    Router {
        ctx,
        direction: DIRECTION,
        port: summary.port,
        port_name: server.port.as_ref().map_or("", |port| port.name.as_str()),
        protocol: summary.protocol(),
        service: "",
        stat_pattern,
    }
}

/// A match of a VirtualService on TLS that a server passes on.
pub struct TlsMatch {
    /// Key of the VirtualService.
    pub rule: String,
    /// Place among its TLS routes.
    pub tls: usize,
    /// Place among that route's matches.
    pub at: usize,
    /// Names in the ClientHello.
    pub names: Vec<String>,
}

impl TlsMatch {
    /// Arguments of the chain's call.
    pub fn args(&self, server: &GatewayServer) -> [String; 5] {
        let [index, tls, at] = [server.index.to_string(), self.tls.to_string(), self.at.to_string()];
        [server.gateway.clone(), index, self.rule.clone(), tls, at]
    }
}

/// The matches of TLS that a server passes on, in istiod's order.
pub fn tls_matches(ctx: &Ctx<'_>, server: &GatewayServer) -> Result<Vec<TlsMatch>, Failure> {
    let mut found = Vec::new();
    for rules in rules(ctx, server, |rule| rule.has_tls)? {
        for (tls, route) in rules.spec.tls.iter().enumerate().filter(|(_, route)| !route.route.is_empty()) {
            let matches = route.r#match.iter().enumerate().filter(|(_, m)| applies(server, m.port, &m.gateways));
            let found_here = |(at, m): (usize, &TlsMatchAttributes)| TlsMatch {
                rule: rules.key.clone(),
                tls,
                at,
                names: m.sni_hosts.clone(),
            };
            found.extend(matches.map(found_here));
        }
    }
    Ok(found)
}

/// `listeners/gateway-tls-chain` GATEWAY, INDEX, VIRTUAL SERVICE, ROUTE, MATCH: the chain of one match.
pub fn passed_on(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let bad = || Failure::BadArguments(format!("gateway-tls-chain({})", args.join(", ")));
    let [gateway, index, rule, tls, at] = args else { return Err(bad()) };
    let (tls, at): (usize, usize) = (tls.parse().map_err(|_| bad())?, at.parse().map_err(|_| bad())?);
    let Some(Place { server, summary }) = place(ctx, gateway, index)? else { return Ok(output) };
    let Some((_, spec)) = ctx.object::<VirtualService>("VirtualService", rule)? else { return Ok(output) };
    let Some(route) = spec.tls.get(tls) else { return Ok(output) };
    let Some(found) = route.r#match.get(at) else { return Ok(output) };
    let owner = rule.split_once('/').unwrap_or_default();
    let chain = Chain {
        sni: found.sni_hosts.clone(),
        filters: router(ctx, &server, &summary, &stat_pattern(ctx)?).filters(
            Message::default(),
            &route.route,
            owner,
        )?,
        ..Default::default()
    };
    output.item(Item::new("chain", chain.message(gateway::connect_timeout(ctx)?)));
    Ok(output)
}

/// `listeners/gateway-sni-chains` NAMES...: chains to all services of the mesh whose host is one of the names.
pub fn all_services(ctx: &Ctx<'_>, names: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let services: Option<ServiceSummaries> = ctx.derived("scope", "services", &["all"])?;
    for service in services.unwrap_or_default().services {
        if !service.mesh_external && names.iter().any(|name| hosts::subset_of(&service.host, name)) {
            output.include(own("sni-chains", [format!("{}/{}", service.namespace, service.host)]));
        }
    }
    Ok(output)
}

/// `listeners/sni-chains` SERVICE: for each port, and each subset of the rule, a chain that passes mutual TLS of the mesh on
/// to its cluster. Only clients of the mesh know the names, and only their protocols are taken, so that what arrives at
/// workloads is mutual TLS although it is not looked into here.
pub fn one_service(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some(key) = args.first() else { return Err(Failure::BadArguments("sni-chains needs a service".into())) };
    let Some(service) = ctx.service(key)? else { return Ok(output) };
    let rule = routed::rule(ctx, key)?;
    let pattern = stat_pattern(ctx)?;
    let connect_timeout = gateway::connect_timeout(ctx)?;
    let of_rule = rule.iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str());
    let subsets: Vec<&str> = std::iter::once("").chain(of_rule).collect();
    for port in service.ports.iter().filter(|port| port.protocol() != Protocol::Udp) {
        for subset in &subsets {
            let cluster = naming::sni_cluster(port.port, subset, &service.host);
            let stat_prefix = match pattern.as_str() {
                "" => cluster.clone(),
                pattern => naming::stat_prefix(pattern, &service, &service.host, subset, port.port, &port.name),
            };
            let mut proxy = network::proxy_to(ctx, &stat_prefix, &Target::Cluster(cluster.clone()))?;
            network::apply_rule(&mut proxy, rule.as_ref(), subset);
            // The client's own proxy made the tunnel, if there is to be one.
            proxy.tunneling_config = None;
            let terminal = network::Terminal {
                direction: DIRECTION,
                service: key,
                protocol: port.protocol(),
                port: port.port,
                dynamic_host: "",
            };
            let chain = Chain {
                sni: vec![cluster.clone()],
                alpn: Alpn::Mesh.names(&[]),
                filters: terminal.append(ctx, Message::default(), &proxy, &cluster)?,
                ..Default::default()
            };
            output.item(Item::new(cluster, chain.message(connect_timeout)));
        }
    }
    Ok(output)
}
