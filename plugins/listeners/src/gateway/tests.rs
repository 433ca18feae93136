use trysail_sdk::facts::{self, GatewayPort, GatewayServer, MergedGateway, Protocol, VirtualServiceSummaries};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::any::unpack;
use trysail_sdk::proto::envoy::config::listener::v3::{FilterChain, Listener, filter};
use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use trysail_sdk::proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    Destination, Gateway, L4MatchAttributes, Port, RouteDestination, Server, ServerTlsSettings, TcpRoute,
    TlsMatchAttributes, TlsRoute, VirtualService,
};
use trysail_sdk::{Ctx, Entry};

use crate::testing::{Answers, items};

const GATEWAY: &str = "edge/gw";

fn server(port: u32, protocol: &str, name: &str, hosts: &[&str], tls: Option<TlSmode>) -> Server {
    Server {
        name: name.into(),
        port: Some(Port { number: port, protocol: protocol.into(), name: name.into(), ..Default::default() }),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        tls: tls.map(|mode| ServerTlsSettings { mode: mode.into(), credential_name: "c".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// A gateway with these servers, each on a port of its own number, merged.
fn answers(servers: Vec<Server>) -> Answers {
    let mut merged = MergedGateway { gateways: vec![GATEWAY.into()], ..Default::default() };
    for (i, server) in servers.iter().enumerate() {
        let port = server.port.clone().unwrap_or_default();
        let protocol = trysail_sdk::proto::protocol::parse(&port.protocol);
        let one = GatewayServer {
            gateway: GATEWAY.into(),
            index: i as u32,
            port: port.number,
            protocol: protocol.into(),
            hosts: server.hosts.clone(),
            route_name: format!("routes.{}", port.number),
            has_tls: server.tls.is_some(),
            tls_mode: server.tls.as_ref().map_or(0, |tls| tls.mode),
            https_redirect: false,
        };
        match merged.ports.iter_mut().find(|p| p.number == port.number && p.protocol == one.protocol) {
            Some(known) => known.servers.push(one),
            None => merged.ports.push(GatewayPort {
                number: port.number,
                protocol: protocol.into(),
                route_name: one.route_name.clone(),
                servers: vec![one],
                ..Default::default()
            }),
        }
    }
    let gateway = Gateway { servers, ..Default::default() };
    Answers::default().message("derived", &["scope", "merged-gateway"], &merged).message(
        "object",
        &["Gateway", GATEWAY],
        &facts::Object { spec: gateway.encode_to_vec(), ..Default::default() },
    )
}

/// Binds a VirtualService.
fn bound(host: Answers, rule: &VirtualService) -> Answers {
    let summary = facts::VirtualServiceSummary {
        namespace: "shop".into(),
        name: "rule".into(),
        hosts: rule.hosts.clone(),
        has_tcp: !rule.tcp.is_empty(),
        has_tls: !rule.tls.is_empty(),
        ..Default::default()
    };
    let bound = VirtualServiceSummaries { virtual_services: vec![summary] };
    host.message("derived", &["scope", "gateway-virtual-services", GATEWAY], &bound).message(
        "object",
        &["VirtualService", "shop/rule"],
        &facts::Object { spec: rule.encode_to_vec(), ..Default::default() },
    )
}

fn listeners(host: &Answers) -> Vec<Listener> {
    let ctx = Ctx::new(host);
    let output = crate::translate(&ctx, "gateway", &[]).expect("a plan");
    let decode = |(_, bytes): (String, Vec<u8>)| Listener::decode(bytes.as_slice()).expect("a listener");
    // `derived-exists` is answered by making the call.
    items(&ctx, &output).into_iter().map(decode).collect()
}

fn manager(chain: &FilterChain) -> HttpConnectionManager {
    let last = chain.filters.last().expect("a filter");
    let Some(filter::ConfigType::TypedConfig(any)) = &last.config_type else { panic!("no config") };
    unpack(any).expect("a connection manager").expect("decodes")
}

fn cluster(chain: &FilterChain) -> String {
    let last = chain.filters.last().expect("a filter");
    let Some(filter::ConfigType::TypedConfig(any)) = &last.config_type else { panic!("no config") };
    let proxy: TcpProxy = unpack(any).expect("a TCP proxy").expect("decodes");
    match proxy.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => name,
        other => panic!("no cluster: {other:?}"),
    }
}

fn names(chain: &FilterChain) -> Vec<String> {
    chain.filter_chain_match.clone().unwrap_or_default().server_names
}

fn to(host: &str) -> Vec<RouteDestination> {
    let destination = Some(Destination { host: host.into(), ..Default::default() });
    vec![RouteDestination { destination, ..Default::default() }]
}

#[test]
fn plain_http_is_one_chain() {
    let found = listeners(&answers(vec![server(80, "HTTP", "a", &["a"], None), server(80, "HTTP", "b", &["b"], None)]));
    let [listener] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((listener.name.as_str(), listener.filter_chains.len()), ("0.0.0.0_80", 1));
    assert!(listener.listener_filters.is_empty(), "nothing to detect");
    let manager = manager(&listener.filter_chains[0]);
    assert_eq!((manager.stat_prefix.as_str(), manager.use_remote_address), ("outbound_0.0.0.0_80;", Some(true)));
}

#[test]
fn https_has_a_chain_for_each_server() {
    let servers = vec![
        server(443, "HTTPS", "one", &["edge/b.test", "a.test"], Some(TlSmode::Simple)),
        server(443, "HTTPS", "two", &["*"], Some(TlSmode::Mutual)),
    ];
    let found = listeners(&answers(servers));
    let chains = &found[0].filter_chains;
    assert_eq!(names(&chains[0]), ["a.test", "b.test"]);
    assert!(chains[1].filter_chain_match.is_none(), "it takes every name");
    assert!(chains.iter().all(|chain| chain.transport_socket.is_some()));
    assert_eq!(manager(&chains[0]).stat_prefix, "one");
    assert_eq!(found[0].listener_filters.len(), 1, "the TLS inspector");
}

#[test]
fn tcp_goes_where_the_first_matching_route_leads() {
    let rule = VirtualService {
        hosts: vec!["x.test".into()],
        tcp: vec![
            TcpRoute { r#match: vec![L4MatchAttributes { port: 91, ..Default::default() }], route: to("other.test") },
            TcpRoute { r#match: vec![], route: to("tcp.test") },
        ],
        ..Default::default()
    };
    let host = bound(answers(vec![server(90, "TCP", "t", &["*"], None)]), &rule);
    let found = listeners(&host);
    assert_eq!(cluster(&found[0].filter_chains[0]), "outbound|90||tcp.test");
    // Without a route there is nothing to listen for.
    assert!(listeners(&answers(vec![server(90, "TCP", "t", &["*"], None)])).is_empty());
}

#[test]
fn names_of_passed_on_tls_are_taken_once() {
    let m = |names: &[&str]| TlsMatchAttributes {
        sni_hosts: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let rule = VirtualService {
        hosts: vec!["*.test".into()],
        tls: vec![
            TlsRoute { r#match: vec![m(&["a.test"])], route: to("a.test") },
            TlsRoute { r#match: vec![m(&["b.test", "a.test"])], route: to("b.test") },
        ],
        ..Default::default()
    };
    let passthrough = server(443, "TLS", "t", &["*.test"], Some(TlSmode::Passthrough));
    let host = bound(answers(vec![passthrough]), &rule);
    let found = listeners(&host);
    assert_eq!(found[0].filter_chains.len(), 1);
    assert_eq!(names(&found[0].filter_chains[0]), ["a.test"]);
    assert!(found[0].filter_chains[0].transport_socket.is_none(), "TLS is passed on");
    let args = ["0.0.0.0_443", "0.0.0.0", "443", "tcp", ""].map(str::to_owned);
    let output = crate::translate(&Ctx::new(&host), "gateway-listener", &args).expect("a listener");
    assert_eq!(output.diagnostics[0].field, "spec.tls[1].match[0].sniHosts");
}

#[test]
fn ports_that_need_privileges_are_left_out() {
    let servers = || vec![server(80, "HTTP", "a", &["a"], None), server(8080, "HTTP", "b", &["b"], None)];
    let host = answers(servers()).text("proxy", &["metadata:UNPRIVILEGED_POD"], "true");
    let found: Vec<String> = listeners(&host).into_iter().map(|listener| listener.name).collect();
    assert_eq!(found, ["0.0.0.0_8080"]);
    let output = crate::translate(&Ctx::new(&host), "gateway", &[]).expect("a plan");
    assert_eq!(output.diagnostics[0].field, "spec.servers[0].port.number");
    assert!(output.entries.iter().any(|entry| matches!(entry, Entry::Include(call) if call.stage == "scope")));
}

#[test]
fn quic_is_a_listener_of_its_own() {
    let mut merged = MergedGateway::default();
    let one = GatewayServer {
        gateway: GATEWAY.into(),
        port: 443,
        protocol: Protocol::Https.into(),
        hosts: vec!["a.test".into()],
        route_name: "r".into(),
        has_tls: true,
        tls_mode: TlSmode::Simple.into(),
        ..Default::default()
    };
    merged.ports.push(GatewayPort {
        number: 443,
        protocol: Protocol::Https.into(),
        servers: vec![one.clone()],
        quic_servers: vec![one],
        ..Default::default()
    });
    let host = answers(vec![server(443, "HTTPS", "", &["a.test"], Some(TlSmode::Simple))]).message(
        "derived",
        &["scope", "merged-gateway"],
        &merged,
    );
    let found = listeners(&host);
    let quic = found.iter().find(|listener| listener.name == "udp_0.0.0.0_443").expect("a listener for QUIC");
    assert!(quic.udp_listener_config.is_some() && quic.listener_filters.is_empty());
    let socket = quic.filter_chains[0].transport_socket.as_ref().expect("a socket");
    assert_eq!(socket.name, "envoy.transport_sockets.quic");
    assert!(manager(&quic.filter_chains[0]).http3_protocol_options.is_some());
    assert_eq!(found.len(), 2);
}
