use trysail_sdk::facts::{GatewayPort, MergedGateway, Protocol, Strings, VirtualServiceSummaries};
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{Port, Server, ServerTlsSettings};

use crate::testing::World;

fn world() -> World {
    let mut world = World::new("edge");
    world.proxy_type = "router".into();
    world.labels = [("app".to_owned(), "gw".to_owned())].into();
    let off = ["PILOT_SCOPE_GATEWAY_TO_NAMESPACE", "PILOT_ENABLE_QUIC_LISTENERS"];
    world.flags = off.map(|name| (name, "false")).into();
    world
}

fn server(port: u32, protocol: &str, name: &str, hosts: &[&str], tls: Option<TlSmode>) -> Server {
    Server {
        port: Some(Port { number: port, protocol: protocol.into(), name: name.into(), ..Default::default() }),
        hosts: hosts.iter().map(|host| host.to_string()).collect(),
        tls: tls.map(|mode| ServerTlsSettings { mode: mode.into(), credential_name: "c".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn http(port: u32, hosts: &[&str]) -> Server {
    server(port, "HTTP", "http", hosts, None)
}

fn https(name: &str, hosts: &[&str]) -> Server {
    server(443, "HTTPS", name, hosts, Some(TlSmode::Simple))
}

/// `port/protocol bind: gateway[index] gateway[index]` of each port, and the diagnostics.
fn merged(world: &World) -> (Vec<String>, Vec<String>) {
    let (merged, diagnostics) = world.call::<MergedGateway>("merged-gateway", &[]);
    let line = |port: &GatewayPort| {
        let servers: Vec<String> = port.servers.iter().map(|s| format!("{}[{}]", s.gateway, s.index)).collect();
        format!("{}/{} {}: {}", port.number, port.protocol().as_str_name(), port.bind, servers.join(" "))
    };
    let ports = merged.unwrap_or_default().ports.iter().map(line).collect();
    (ports, diagnostics.iter().map(|d| format!("{} {}: {}", d.object, d.field, d.message)).collect())
}

fn routes(world: &World) -> Vec<String> {
    let (merged, _) = world.call::<MergedGateway>("merged-gateway", &[]);
    merged.unwrap().routes.iter().map(|r| format!("{} {}", r.name, r.servers.len())).collect()
}

#[test]
fn selectors_choose_and_age_orders() {
    let world = world()
        .gateway("z", "old", "gw", vec![http(80, &["*"])])
        .gateway("a", "other", "else", vec![http(80, &["*"])])
        .gateway("a", "young", "gw", vec![http(80, &["*"])]);
    let (keys, _) = world.call::<Strings>("gateways", &[]);
    assert_eq!(keys.unwrap().values, ["z/old", "a/young"]);
    assert_eq!(merged(&world).0, ["80/HTTP : z/old[0] a/young[0]"]);
    assert_eq!(routes(&world), ["http.80 2"]);
}

#[test]
fn scoped_to_namespaces_only_the_own_one_counts() {
    let mut world = world().gateway("edge", "own", "gw", vec![http(80, &["*"])]).gateway(
        "a",
        "other",
        "gw",
        vec![http(80, &["*"])],
    );
    world.flags.insert("PILOT_SCOPE_GATEWAY_TO_NAMESPACE", "true");
    assert_eq!(merged(&world).0, ["80/HTTP : edge/own[0]"]);
}

#[test]
fn ports_are_those_that_services_lead_to() {
    let world = world()
        .service("edge", "gw", &[80], "*")
        .target("edge/gw.edge.svc.cluster.local", 80, 8080, Protocol::Http)
        .gateway("edge", "gw", "gw", vec![http(80, &["*"]), http(81, &["*"])]);
    assert_eq!(merged(&world).0, ["8080/HTTP : edge/gw[0]", "81/HTTP : edge/gw[1]"]);
    assert_eq!(routes(&world), ["http.8080 1", "http.81 1"]);
}

#[test]
fn a_service_may_switch_the_translation_off() {
    let mut world = world()
        .service("edge", "gw", &[80], "*")
        .target("edge/gw.edge.svc.cluster.local", 80, 8080, Protocol::Http)
        .gateway("edge", "gw", "gw", vec![http(80, &["*"])]);
    world.services[0].labels.insert("experimental.istio.io/disable-gateway-port-translation".into(), "true".into());
    assert_eq!(merged(&world).0, ["80/HTTP : edge/gw[0]"]);
}

#[test]
fn tls_is_told_apart_by_names_and_each_name_is_taken_once() {
    let world = world()
        .gateway("edge", "a", "gw", vec![https("one", &["a.test", "b.test"]), https("two", &["c.test"])])
        .gateway("edge", "b", "gw", vec![https("three", &["b.test"]), https("four", &["d.test"])]);
    let (ports, diagnostics) = merged(&world);
    assert_eq!(ports, ["443/HTTPS : edge/a[0] edge/a[1] edge/b[1]"]);
    assert_eq!(diagnostics.len(), 1);
    assert!(diagnostics[0].starts_with("Gateway edge/b spec.servers[0].hosts: left out"), "{diagnostics:?}");
    assert_eq!(routes(&world), ["https.443.four.b.edge 1", "https.443.one.a.edge 1", "https.443.two.a.edge 1"]);
}

#[test]
fn the_first_protocol_of_a_port_stays() {
    let tcp = || server(80, "TCP", "tcp", &["*"], None);
    let world = world().gateway("edge", "a", "gw", vec![http(80, &["*"]), tcp()]).gateway(
        "edge",
        "b",
        "gw",
        vec![server(90, "TCP", "t", &["*"], None), http(90, &["*"])],
    );
    let (ports, diagnostics) = merged(&world);
    assert_eq!(ports, ["80/HTTP : edge/a[0]", "90/TCP : edge/b[0]"]);
    assert_eq!(diagnostics.len(), 2);
}

#[test]
fn addresses_never_conflict() {
    let bound = |bind: &str, server: Server| Server { bind: bind.into(), ..server };
    let servers = vec![bound("10.0.0.1", http(80, &["*"])), bound("10.0.0.2", server(80, "TCP", "t", &["*"], None))];
    let world = world().gateway("edge", "a", "gw", servers);
    let (ports, diagnostics) = merged(&world);
    assert_eq!(ports, ["80/HTTP 10.0.0.1: edge/a[0]", "80/TCP 10.0.0.2: edge/a[1]"]);
    assert!(diagnostics.is_empty());
    assert_eq!(routes(&world), ["http.80.10.0.0.1 1"]);
}

#[test]
fn http3_needs_the_flag_and_a_udp_port() {
    let with = |protocol: Protocol, flag: &'static str| {
        let mut world = world()
            .service("edge", "gw", &[443], "*")
            .target("edge/gw.edge.svc.cluster.local", 443, 443, protocol)
            .gateway("edge", "a", "gw", vec![https("one", &["a.test"])]);
        world.flags.insert("PILOT_ENABLE_QUIC_LISTENERS", flag);
        let (merged, _) = world.call::<MergedGateway>("merged-gateway", &[]);
        let merged = merged.unwrap();
        (merged.ports[0].quic_servers.len(), merged.routes[0].advertises_http3)
    };
    assert_eq!(with(Protocol::Udp, "true"), (1, true));
    assert_eq!(with(Protocol::Udp, "false"), (0, false));
    assert_eq!(with(Protocol::Tcp, "true"), (0, false));
}

#[test]
fn hosts_of_namespaces_are_resolved() {
    let world = world().gateway("edge", "a", "gw", vec![http(80, &["./a.test", "*/b.test", "team/c.test"])]);
    let (merged, _) = world.call::<MergedGateway>("merged-gateway", &[]);
    assert_eq!(merged.unwrap().ports[0].servers[0].hosts, ["edge/a.test", "b.test", "team/c.test"]);
}

#[test]
fn bound_virtual_services_are_those_the_proxy_sees() {
    let world = world()
        .bound("edge", "private", &["a.test"], "edge/gw", ".")
        .bound("shop", "exported", &["b.test"], "edge/gw", "edge")
        .bound("shop", "public", &["c.test"], "edge/gw", "*")
        .bound("shop", "hidden", &["d.test"], "edge/gw", ".")
        .bound("shop", "elsewhere", &["e.test"], "edge/other", "*");
    let (found, _) = world.call::<VirtualServiceSummaries>("gateway-virtual-services", &["edge/gw"]);
    let names: Vec<String> = found.unwrap().virtual_services.into_iter().map(|rule| rule.name).collect();
    assert_eq!(names, ["private", "exported", "public"]);
}

#[test]
fn what_serves_nobody_is_reported() {
    let mut bare = https("bare", &["x.test"]);
    bare.tls.as_mut().expect("it has TLS").credential_name.clear();
    let world = world()
        .gateway("edge", "gw", "gw", vec![http(80, &["team/a.test", "b.test"]), bare])
        .bound("shop", "rule", &["a.test", "*.b.test", "b.test"], "edge/gw", "*")
        .bound("shop", "lost", &["a.test"], "edge/missing", "*");
    let checked = world.output("gateway-check", &["edge/gw"]);
    let told: Vec<String> = checked.diagnostics.iter().map(|d| format!("{} {}", d.object, d.field)).collect();
    assert_eq!(
        told,
        [
            "Gateway edge/gw spec.servers[1].tls",
            "VirtualService shop/rule spec.hosts[0]",
            "VirtualService shop/rule spec.hosts[1]",
        ]
    );
    let unknown = world.output("unknown-gateways", &[]);
    assert_eq!(unknown.diagnostics[0].message, "there is no Gateway edge/missing");
    assert_eq!(unknown.diagnostics.len(), 1);
}
