//! Outbound listeners: one call per address and port, from the parts that the plan put together.
//!
//! A filter chain that matches the same connections as an earlier one of another service is left out with a
//! diagnostic, because Envoy would refuse the listener. Nothing is rejected.

use trysail_sdk::facts::Protocol;
use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::envoy::config::core::v3::TrafficDirection;
use trysail_sdk::proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener, listener};
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity};

use crate::chain::Chain;
use crate::http::{Kind, Manager, Routes};
use crate::parts::{self, CHAIN_FILTERS, LISTENER_DEFAULT_FILTER_CHAIN, LISTENER_FILTER_CHAINS, Port, own};
use crate::tcp::{Builder, TcpPart};
use crate::{net, node};

/// The HTTP part of a listener, as an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPart {
    /// Protocol of the first service's port.
    pub protocol: Protocol,
    /// Only what is detected as plain HTTP comes here.
    pub sniffs: bool,
    /// Service key, if the listener is one service's own; else empty.
    pub service: String,
    /// Wildcard host whose names the proxy resolves, or empty.
    pub dynamic_host: String,
    /// Name of the route configuration.
    pub routes: String,
}

impl HttpPart {
    /// As an argument.
    pub fn encode(&self) -> String {
        let sniffs = if self.sniffs { "s" } else { "" };
        format!("http|{}|{sniffs}|{}|{}|{}", self.protocol as i32, self.service, self.dynamic_host, self.routes)
    }

    /// From an argument.
    pub fn decode(text: &str) -> Option<Self> {
        let mut fields = text.splitn(6, '|');
        if fields.next()? != "http" {
            return None;
        }
        Some(HttpPart {
            protocol: Protocol::try_from(fields.next()?.parse::<i32>().ok()?).ok()?,
            sniffs: fields.next()? == "s",
            service: fields.next()?.to_owned(),
            dynamic_host: fields.next()?.to_owned(),
            routes: fields.next()?.to_owned(),
        })
    }
}

/// Settings of listeners that are the same for all of a proxy.
struct Common {
    exact_balance: bool,
    connections_per_event: Option<u32>,
    connect_timeout: Option<Duration>,
    detection_timeout: Option<Duration>,
    stat_pattern: String,
}

impl Common {
    fn of(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        let features =
            ctx.features(&["PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT", "MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP"])?;
        let mesh = ctx.mesh_config(&["protocol_detection_timeout", "outbound_cluster_stat_name"])?;
        Ok(Common {
            exact_balance: node::is_true(ctx, "OUTBOUND_LISTENER_EXACT_BALANCE"),
            connections_per_event: node::connections_per_event(&features[1]),
            connect_timeout: net::go_duration(&features[0]).filter(|d| *d != Duration::default()),
            detection_timeout: mesh.protocol_detection_timeout,
            stat_pattern: mesh.outbound_cluster_stat_name,
        })
    }
}

/// `listeners/outbound-listener` NAME, BINDS, PORT, `bind` or empty, PARTS...: one listener, or none for an endpoint's address
/// that is the proxy's own.
pub fn translate(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let [name, binds, port, own_port, encoded @ ..] = args else {
        return Err(Failure::BadArguments("outbound-listener takes a name, binds, a port, and parts".into()));
    };
    let bad = |what: &str| Failure::BadArguments(format!("no part of a listener: {what}"));
    let port: u32 = port.parse().map_err(|_| bad(port))?;
    let binds: Vec<String> = binds.split(',').map(str::to_owned).collect();
    let bind = binds.first().map_or("", String::as_str);
    let common = Common::of(ctx)?;

    let mut name_of = String::new();
    let mut chains: Vec<Chain> = Vec::new();
    let mut refs = Vec::new();
    let mut own_address: Option<bool> = None;
    for (i, text) in encoded.iter().enumerate() {
        let new = if let Some(part) = TcpPart::decode(text) {
            if part.endpoint && *own_address.get_or_insert_with(|| is_own(ctx, bind)) {
                continue;
            }
            let builder = Builder { ctx, port, part: &part, stat_pattern: &common.stat_pattern };
            name_of = part.service.clone();
            builder.chains(&mut output)?
        } else if let Some(part) = HttpPart::decode(text) {
            refs.push(format!("rds:{}", part.routes));
            vec![http_chain(ctx, &part, bind, port)?]
        } else {
            return Err(bad(text));
        };
        merge(&mut chains, new, i == 0, &name_of, &format!("{bind}:{port}"), &mut output);
    }
    if chains.is_empty() {
        return Ok(output);
    }
    let mut item = Item::new(name, listener(&common, &binds, port, own_port == "bind", chains));
    item.claims = binds.iter().map(|b| format!("address:{b}:{port}")).collect();
    item.refs = refs;
    output.item(item);
    Ok(output)
}

/// Is the endpoint's address the proxy's first one? An application that calls its own address does not pass through
/// this listener, and the address is taken inbound.
fn is_own(ctx: &Ctx<'_>, address: &str) -> bool {
    ctx.proxy_has_address(&[address])
        && ctx.proxy("addresses").is_none_or(|all| all.split(',').next().is_none_or(|first| first.trim() == address))
}

/// Adds chains to those of the services before. Only the first service's own chains are taken as they are.
fn merge(chains: &mut Vec<Chain>, new: Vec<Chain>, first: bool, service: &str, address: &str, output: &mut Output) {
    for chain in new {
        if !first && chains.iter().any(|other| other.identity() == chain.identity()) {
            output.diagnose(
                Severity::Warning,
                format!("Service {service}"),
                "",
                format!("left out: another service has the same connections at {address}"),
            );
            output.count_as("outbound-listener-conflict");
            continue;
        }
        chains.push(chain);
    }
}

fn http_chain(ctx: &Ctx<'_>, part: &HttpPart, bind: &str, port: u32) -> Result<Chain, Failure> {
    let manager = Manager {
        kind: Kind::Outbound,
        stat_prefix: format!("outbound_{bind}_{port};"),
        routes: Routes::Named(part.routes.clone()),
        protocol: part.protocol,
        dynamic_host: &part.dynamic_host,
        service: &part.service,
        port: Port::Any(port),
        http3: false,
    };
    let filters = Message::default()
        .hole(CHAIN_FILTERS, parts::network_filter_hook("outbound", &part.service, Port::Any(port)))
        .field(CHAIN_FILTERS, manager.filter(ctx));
    Ok(Chain {
        alpn: if part.sniffs { node::plaintext_alpn(ctx)? } else { Vec::new() },
        transport: if part.sniffs { "raw_buffer" } else { "" },
        filters,
        ..Default::default()
    })
}

/// The listener around its chains: inspectors as chains need them, and a default chain for what no chain takes.
fn listener(common: &Common, binds: &[String], port: u32, own_port: bool, chains: Vec<Chain>) -> Message {
    let bind = binds.first().map_or("", String::as_str);
    let reads_tls = chains.iter().any(|c| !c.sni.is_empty() || c.reads_sni);
    let reads_http = chains.iter().any(|c| !c.alpn.is_empty());
    let mut base = Listener {
        name: format!("{bind}_{port}"),
        address: Some(parts::address(bind, port)),
        additional_addresses: parts::additional_addresses(binds.get(1..).unwrap_or_default(), port),
        traffic_direction: TrafficDirection::Outbound as i32,
        continue_on_listener_filters_timeout: true,
        // Without detection nothing can time out; with it, the mesh decides.
        listener_filters_timeout: if reads_http { common.detection_timeout } else { Some(Duration::default()) },
        ..Default::default()
    };
    if common.exact_balance {
        base.connection_balance_config = Some(exact_balance());
    }
    if own_port {
        base.max_connections_to_accept_per_socket_event = common.connections_per_event;
    } else {
        base.bind_to_port = Some(false);
    }
    if reads_tls {
        base.listener_filters.push(parts::tls_inspector());
    }
    if reads_http {
        base.listener_filters.push(parts::http_inspector());
    }

    let mut message = Message::of(&base);
    let mut rest = None;
    let mut alone = true;
    for chain in chains {
        if chain.matches_all() {
            rest = Some(chain);
        } else {
            message = message.field(LISTENER_FILTER_CHAINS, chain.message(common.connect_timeout));
            alone = false;
        }
    }
    // A chain for everything is the default: as one among others it would hide that others match in part only.
    match rest {
        Some(chain) if alone => message.field(LISTENER_FILTER_CHAINS, chain.message(common.connect_timeout)),
        Some(chain) => message.field(LISTENER_DEFAULT_FILTER_CHAIN, chain.message(common.connect_timeout)),
        None => message.field(LISTENER_DEFAULT_FILTER_CHAIN, fallthrough()),
    }
}

/// What takes connections that no service stands for.
fn fallthrough() -> Message {
    let head = FilterChain { filter_chain_match: Some(FilterChainMatch::default()), ..Default::default() };
    let tail = FilterChain { name: "PassthroughFilterChain".into(), ..Default::default() };
    Message::of(&head)
        .hole(CHAIN_FILTERS, parts::stats("outbound"))
        .hole(CHAIN_FILTERS, own("unknown-destination", [""; 0]))
        .fields(&tail)
}

/// Connections are spread evenly over worker threads.
pub fn exact_balance() -> listener::ConnectionBalanceConfig {
    listener::ConnectionBalanceConfig {
        balance_type: Some(listener::connection_balance_config::BalanceType::ExactBalance(
            listener::connection_balance_config::ExactBalance {},
        )),
    }
}

/// `listeners/http-proxy`: the listener of the mesh's HTTP proxy port, if it has one.
pub fn http_proxy(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let own = ctx.proxy_metadata("HTTP_PROXY_PORT").and_then(|p| p.parse::<u32>().ok());
    let port = match own {
        Some(port) => port,
        None => u32::try_from(ctx.mesh_config(&["proxy_http_port"])?.proxy_http_port).unwrap_or(0),
    };
    if port == 0 {
        return Ok(output);
    }
    let binds = node::Families::of(ctx).loopbacks();
    let bind = binds.first().map_or("", String::as_str);
    let manager = Manager {
        kind: Kind::Proxy,
        stat_prefix: format!("outbound_{bind}_{port};"),
        routes: Routes::Named("http_proxy".into()),
        protocol: Protocol::HttpProxy,
        dynamic_host: "",
        service: "",
        port: Port::Any(port),
        http3: false,
    };
    let chain = Chain {
        filters: Message::default()
            .hole(CHAIN_FILTERS, parts::network_filter_hook("outbound", "", Port::Any(port)))
            .field(CHAIN_FILTERS, manager.filter(ctx)),
        ..Default::default()
    };
    let message = listener(&Common::of(ctx)?, &binds, port, true, vec![chain]);
    let mut item = Item::new(format!("{bind}_{port}"), message);
    item.claims = vec![format!("address:{bind}:{port}")];
    item.refs = vec!["rds:http_proxy".into()];
    output.item(item);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, items};
    use trysail_sdk::facts::{self, Port, Service, VirtualServiceSummaries, VirtualServiceSummary};
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::any::unpack;
    use trysail_sdk::proto::envoy::config::listener::v3::filter;
    use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    use trysail_sdk::proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
    use trysail_sdk::proto::istio::networking::v1alpha3::{
        Destination, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
    };

    fn tcp(service: &str, protocol: Protocol) -> TcpPart {
        TcpPart {
            egress: 0,
            service: service.into(),
            protocol,
            port_name: "p".into(),
            default_port: 443,
            by_name: true,
            dynamic: false,
            endpoint: false,
            cidrs: vec![],
        }
    }

    fn http(routes: &str) -> String {
        HttpPart {
            protocol: Protocol::Http,
            sniffs: true,
            service: String::new(),
            dynamic_host: String::new(),
            routes: routes.into(),
        }
        .encode()
    }

    fn made(host: &Answers, args: &[&str]) -> (Vec<Listener>, Output) {
        let ctx = Ctx::new(host);
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let output = translate(&ctx, &args).expect("a listener");
        let listeners = items(&ctx, &output)
            .iter()
            .map(|(_, bytes)| Listener::decode(bytes.as_slice()).expect("a listener"))
            .collect();
        (listeners, output)
    }

    fn proxy(chain: &FilterChain) -> TcpProxy {
        let last = chain.filters.last().expect("a filter");
        let Some(filter::ConfigType::TypedConfig(any)) = &last.config_type else { panic!("no config") };
        unpack(any).expect("a TCP proxy").expect("decodes")
    }

    fn with_rules(spec: &VirtualService, tls: bool) -> Answers {
        let summary = VirtualServiceSummary {
            namespace: "shop".into(),
            name: "rules".into(),
            hosts: vec!["a.example".into()],
            has_tls: tls,
            has_tcp: !tls,
            ..Default::default()
        };
        let object = facts::Object {
            r#ref: Some(facts::ObjectRef {
                kind: "VirtualService".into(),
                namespace: "shop".into(),
                name: "rules".into(),
            }),
            api_version: "networking.istio.io/v1".into(),
            spec: spec.encode_to_vec(),
            ..Default::default()
        };
        let service = Service {
            host: "a.example".into(),
            ports: vec![Port { port: 443, ..Default::default() }],
            ..Default::default()
        };
        Answers::default()
            .message(
                "derived",
                &["scope", "virtual-services", "0"],
                &VirtualServiceSummaries { virtual_services: vec![summary] },
            )
            .message("object", &["VirtualService", "shop/rules"], &object)
            .message("service", &["shop/a.example"], &service)
    }

    fn to(host: &str, subset: &str, weight: i32) -> RouteDestination {
        let destination = Destination { host: host.into(), subset: subset.into(), port: None };
        RouteDestination { destination: Some(destination), weight }
    }

    #[test]
    fn an_http_listener_lets_the_rest_pass() {
        let (listeners, output) = made(&Answers::default(), &["0.0.0.0_80", "0.0.0.0", "80", "", &http("80")]);
        let listener = &listeners[0];
        assert_eq!(listener.name, "0.0.0.0_80");
        assert_eq!(listener.bind_to_port, Some(false));
        assert_eq!(listener.listener_filters.len(), 1);
        assert_eq!(listener.filter_chains[0].transport_socket_connect_timeout, Some(parts::seconds(15)));
        let rest = listener.default_filter_chain.as_ref().expect("a default chain");
        assert_eq!(rest.name, "PassthroughFilterChain");
        // Without an answer of the scope stage the policy is the strictest one.
        assert_eq!(proxy(rest).stat_prefix, "BlackHoleCluster");
        let trysail_sdk::Entry::Item(item) = &output.entries[0] else { panic!("an item") };
        assert_eq!(item.refs, ["rds:80"]);
        assert_eq!(item.claims, ["address:0.0.0.0:80"]);
    }

    #[test]
    fn filters_of_a_connection_manager_come_in_order() {
        let (listeners, _) = made(&Answers::default(), &["0.0.0.0_80", "0.0.0.0", "80", "", &http("80")]);
        let Some(filter::ConfigType::TypedConfig(any)) = &listeners[0].filter_chains[0].filters[0].config_type else {
            panic!("no config")
        };
        let manager: HttpConnectionManager = unpack(any).expect("a manager").expect("decodes");
        let names: Vec<&str> = manager.http_filters.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "istio.metadata_exchange",
                "envoy.filters.http.grpc_stats",
                "istio.alpn",
                "envoy.filters.http.fault",
                "envoy.filters.http.cors",
                "envoy.filters.http.router"
            ]
        );
        assert_eq!(manager.stat_prefix, "outbound_0.0.0.0_80;");
        assert_eq!(manager.normalize_path, Some(true));
    }

    #[test]
    fn services_without_addresses_are_told_apart_by_name() {
        let parts = [tcp("shop/a.example", Protocol::Tls).encode(), tcp("shop/b.example", Protocol::Tls).encode()];
        let twice = tcp("shop/b.example", Protocol::Https).encode();
        let (listeners, output) =
            made(&Answers::default(), &["0.0.0.0_443", "0.0.0.0", "443", "", &parts[0], &parts[1], &twice]);
        let names: Vec<&str> = listeners[0]
            .filter_chains
            .iter()
            .filter_map(|c| c.filter_chain_match.as_ref())
            .map(|m| m.server_names[0].as_str())
            .collect();
        assert_eq!(names, ["a.example", "b.example"]);
        assert_eq!(output.diagnostics.len(), 1);
    }

    #[test]
    fn tls_routes_match_names_and_only_the_first_of_equal_ones() {
        let matching = |name: &str| TlsMatchAttributes { sni_hosts: vec![name.into()], ..Default::default() };
        let elsewhere = TlsMatchAttributes { port: 8443, ..matching("other.example") };
        let spec = VirtualService {
            tls: vec![TlsRoute {
                r#match: vec![matching("a.example"), elsewhere, matching("a.example")],
                route: vec![to("a.example", "v1", 0)],
            }],
            ..Default::default()
        };
        let part = tcp("shop/a.example", Protocol::Tls).encode();
        let (listeners, output) = made(&with_rules(&spec, true), &["10.0.0.1_443", "10.0.0.1", "443", "", &part]);
        assert_eq!(listeners[0].filter_chains.len(), 1);
        assert!(listeners[0].filter_chains[0].metadata.is_some());
        assert_eq!(proxy(&listeners[0].filter_chains[0]).stat_prefix, "outbound|443|v1|a.example");
        let fields: Vec<&str> = output.diagnostics.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, ["spec.tls[0].route[0].destination.subset", "spec.tls[0].match[2]"]);
    }

    #[test]
    fn tcp_routes_share_connections_by_weight() {
        let routes = vec![to("a.example", "v1", 80), to("a.example", "v2", 20), to("a.example", "v3", 0)];
        let spec = VirtualService { tcp: vec![TcpRoute { route: routes, ..Default::default() }], ..Default::default() };
        let part = tcp("shop/a.example", Protocol::Tcp).encode();
        let (listeners, _) = made(&with_rules(&spec, false), &["10.0.0.1_443", "10.0.0.1", "443", "", &part]);
        assert!(listeners[0].default_filter_chain.is_none());
        let found = proxy(&listeners[0].filter_chains[0]);
        assert_eq!(found.stat_prefix, "rules.shop");
        let Some(tcp_proxy::ClusterSpecifier::WeightedClusters(clusters)) = found.cluster_specifier else {
            panic!("weights")
        };
        let weights: Vec<u32> = clusters.clusters.iter().map(|c| c.weight).collect();
        assert_eq!(weights, [80, 20]);
    }

    #[test]
    fn an_endpoint_does_not_listen_for_itself() {
        let part = TcpPart { endpoint: true, ..tcp("shop/a.example", Protocol::Tcp) }.encode();
        let args = ["10.0.0.9_443", "10.0.0.9", "443", "", part.as_str()];
        assert_eq!(made(&Answers::default(), &args).0.len(), 1);
        let own = Answers::default().text("proxy-has-address", &["10.0.0.9"], "").text(
            "proxy",
            &["addresses"],
            "10.0.0.9,::1",
        );
        assert!(made(&own, &args).0.is_empty());
    }

    #[test]
    fn the_http_proxy_port_takes_absolute_urls() {
        let host = Answers::default().text("proxy", &["metadata:HTTP_PROXY_PORT"], "15002");
        let ctx = Ctx::new(&host);
        let output = http_proxy(&ctx).expect("a listener");
        let (name, bytes) = items(&ctx, &output).remove(0);
        assert_eq!(name, "127.0.0.1_15002");
        let listener = Listener::decode(bytes.as_slice()).expect("a listener");
        assert!(listener.default_filter_chain.is_none() && listener.bind_to_port.is_none());
    }
}
