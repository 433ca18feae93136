//! Servers of several Gateways on one proxy, merged by port.
//!
//! The oldest Gateway comes first, and its servers in order. A server is left out with a diagnostic when
//! - it has no port;
//! - it terminates or passes on TLS for a host that an earlier server of that port and address has;
//! - its protocol cannot share the port with an earlier server's: plain HTTP shares with plain HTTP, TLS with TLS;
//! - it is HTTPS and has the route name of an earlier one (two ports of one name in one Gateway).
//!
//! A server of another address never conflicts.

use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{GatewayPort, GatewayRoutes, GatewayServer, MergedGateway, Object, Protocol, ServiceTarget};
use trysail_sdk::proto::istio::networking::v1alpha3::server_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{Gateway, Server};
use trysail_sdk::proto::protocol;
use trysail_sdk::{Ctx, Failure, Output, Severity, hosts};

use super::title;

/// Annotation of Gateways made from those of the Gateway API: hosts of the services whose proxies they are for.
const ANNOTATION_SERVICES: &str = "internal.istio.io/gateway-service";
/// The namespace of these services, where it is not the Gateway's.
const ANNOTATION_PARENT_NAMESPACE: &str = "internal.istio.io/parent-namespace";
/// Says that a Gateway was made from one of the Gateway API.
const ANNOTATION_SEMANTICS: &str = "internal.istio.io/gateway-semantics";
/// Service account of a gateway that the control plane deploys.
const ANNOTATION_ACCOUNT: &str = "internal.istio.io/service-account-name";
/// Label of services whose ports do not stand for the ports of workloads.
const LABEL_NO_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// Does the protocol carry HTTP without TLS?
fn is_http(protocol: Protocol) -> bool {
    use Protocol::{Grpc, GrpcWeb, Http, Http2, HttpProxy};
    matches!(protocol, Http | Http2 | HttpProxy | Grpc | GrpcWeb)
}

/// Is TLS passed on, not terminated?
pub fn passes_through(server: &GatewayServer) -> bool {
    let mode = TlSmode::try_from(server.tls_mode);
    server.has_tls && matches!(mode, Ok(TlSmode::Passthrough | TlSmode::AutoPassthrough))
}

/// Is it HTTP, or HTTPS that ends here?
fn serves_http(server: &GatewayServer) -> bool {
    is_http(server.protocol()) || (server.protocol() == Protocol::Https && !passes_through(server))
}

/// Is it TLS? HTTP with TLS settings only redirects.
fn is_tls(server: &GatewayServer) -> bool {
    server.has_tls && !is_http(server.protocol())
}

/// Merges the Gateways, given oldest first.
pub fn merge(ctx: &Ctx, gateways: Vec<(String, Object, Gateway)>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    if gateways.is_empty() {
        return Ok(output);
    }
    let targets = ctx.proxy_targets()?;
    let mut selected: Vec<Selected> = Vec::new();
    for (key, object, gateway) in gateways {
        let Some((ports, by_service)) = reached(&object, &targets) else { continue };
        selected.push(Selected { key, object, gateway, targets: ports, by_service });
    }
    strictly(ctx, &mut selected, &mut output)?;
    if selected.is_empty() {
        return Ok(output);
    }
    let [quic] = ctx.flags(["PILOT_ENABLE_QUIC_LISTENERS"])?;
    let mut merge = Merge { ctx, quic, ..Merge::new(ctx) };
    for gateway in &selected {
        merge.gateway(gateway, &mut output)?;
    }
    let merged = merge.finish();
    output.entries = Output::value(&merged).entries;
    Ok(output)
}

/// A Gateway that applies, with the service ports of the proxy that it is about.
struct Selected<'t> {
    key: String,
    object: Object,
    gateway: Gateway,
    targets: Vec<&'t ServiceTarget>,
    /// It names services, so its ports are theirs and nothing else.
    by_service: bool,
}

/// The service ports that a Gateway is about, and whether it names services; none when it is for other services.
fn reached<'t>(object: &Object, targets: &'t [ServiceTarget]) -> Option<(Vec<&'t ServiceTarget>, bool)> {
    let Some(services) = object.annotations.get(ANNOTATION_SERVICES) else {
        return Some((targets.iter().collect(), false));
    };
    let own = object.r#ref.as_ref().map_or("", |named| named.namespace.as_str());
    let home = object.annotations.get(ANNOTATION_PARENT_NAMESPACE).filter(|ns| !ns.is_empty());
    let home = home.map_or(own, String::as_str);
    let named = |target: &&ServiceTarget| {
        let (namespace, host) = target.service.split_once('/').unwrap_or_default();
        namespace == home && services.split(',').any(|service| service == host)
    };
    let found: Vec<_> = targets.iter().filter(named).collect();
    (!found.is_empty()).then_some((found, true))
}

/// With strict merging a gateway that the control plane deploys takes Gateways of its own namespace only, so that no
/// other namespace can use its certificates.
fn strictly(ctx: &Ctx, selected: &mut Vec<Selected<'_>>, output: &mut Output) -> Result<(), Failure> {
    let annotation = |s: &Selected<'_>, key: &str| s.object.annotations.get(key).cloned().unwrap_or_default();
    let from_gateway_api = |s: &Selected<'_>| annotation(s, ANNOTATION_SEMANTICS) == "gateway";
    let namespace = |s: &Selected<'_>| s.key.split_once('/').map_or(String::new(), |(namespace, _)| namespace.into());
    let deployed = selected.iter().filter(|s| from_gateway_api(s) && !annotation(s, ANNOTATION_ACCOUNT).is_empty());
    let managed: BTreeSet<String> = deployed.map(namespace).collect();
    if managed.is_empty() || !ctx.flags(["PILOT_ENABLE_STRICT_GATEWAY_MERGING"])?[0] {
        return Ok(());
    }
    selected.retain(|s| {
        let stays = from_gateway_api(s) || managed.contains(&namespace(s));
        if !stays {
            let why = "left out: the proxy is deployed for a Gateway of another namespace, and merging is strict";
            output.diagnose(Severity::Error, title(&s.object), "", why);
        }
        stays
    });
    Ok(())
}

/// Port, protocol as written, address: what servers must share to be served together.
type PortKey = (u32, String, String);

/// The work in progress.
struct Merge<'c> {
    ctx: &'c Ctx<'c>,
    quic: bool,
    /// In the order in which they came up.
    ports: Vec<(PortKey, GatewayPort)>,
    /// The server port of plain text that came last, by port.
    plain: BTreeMap<u32, (PortKey, Protocol)>,
    seen: BTreeSet<u32>,
    routes: BTreeMap<String, Vec<GatewayServer>>,
    http3: BTreeSet<String>,
    gateways: BTreeSet<String>,
    /// Hosts that have TLS, by port: their address.
    tls_hosts: BTreeMap<u32, BTreeMap<String, String>>,
    auto_passthrough: bool,
}

impl<'c> Merge<'c> {
    fn new(ctx: &'c Ctx<'c>) -> Self {
        Merge {
            ctx,
            quic: false,
            ports: Vec::new(),
            plain: BTreeMap::new(),
            seen: BTreeSet::new(),
            routes: BTreeMap::new(),
            http3: BTreeSet::new(),
            gateways: BTreeSet::new(),
            tls_hosts: BTreeMap::new(),
            auto_passthrough: false,
        }
    }

    fn gateway(&mut self, from: &Selected<'_>, output: &mut Output) -> Result<(), Failure> {
        let title = title(&from.object);
        for (index, server) in from.gateway.servers.iter().enumerate() {
            let mut refuse = |field: &str, why: String| {
                let field = format!("spec.servers[{index}]{field}");
                output.diagnose(Severity::Error, &title, field, format!("left out: {why}"));
            };
            let Some(port) = &server.port else {
                refuse("", "it has no port".into());
                continue;
            };
            self.gateways.insert(from.key.clone());
            let parsed = summary(from, index, server, port.number);
            for number in self.resolve(from, port.number)? {
                let key = (number, port.protocol.clone(), server.bind.clone());
                let mut one = parsed.clone();
                one.route_name = route_name(&one, number, &port.name, &server.bind, &from.key);
                if let Err((field, why)) = self.server(key, one, &from.targets) {
                    refuse(field, why);
                }
            }
        }
        Ok(())
    }

    /// The ports of the proxy that a Gateway's port means: the service port's target, else, where the Gateway selects by
    /// labels, the port itself.
    fn resolve(&self, from: &Selected<'_>, number: u32) -> Result<BTreeSet<u32>, Failure> {
        let mut found = BTreeSet::new();
        for target in from.targets.iter().filter(|t| t.port.as_ref().is_some_and(|port| port.port == number)) {
            if from.by_service {
                found.insert(target.target_port);
                continue;
            }
            let service = self.ctx.service(&target.service)?;
            if service.is_some_and(|service| service.labels.contains_key(LABEL_NO_TRANSLATION)) {
                continue;
            }
            return Ok([target.target_port].into());
        }
        if found.is_empty() && !from.by_service {
            found.insert(number);
        }
        Ok(found)
    }

    /// Takes up one server; an error says which field loses, and to what.
    fn server(
        &mut self,
        key: PortKey,
        server: GatewayServer,
        targets: &[&ServiceTarget],
    ) -> Result<(), (&'static str, String)> {
        let (number, bind) = (key.0, key.2.clone());
        if server.has_tls {
            self.claim_hosts(&server, number, &bind)?;
        }
        let protocol = server.protocol();
        let upgrades = self.upgrades(&server, targets);
        let http3 = |this: &mut Self, key: &PortKey, server: GatewayServer| {
            if upgrades {
                this.http3.insert(server.route_name.clone());
                this.port(key, &server).quic_servers.push(server);
            }
        };
        if self.seen.insert(number) {
            self.add(&key, server.clone());
            if serves_http(&server) {
                http3(self, &key, server);
            }
            return Ok(());
        }
        if let Some((current, current_protocol)) = self.plain.get(&number).cloned() {
            if current.2 == bind {
                if !is_http(protocol) || !is_http(current_protocol) {
                    let why = format!("port {number} already serves {} in plain text", current.1);
                    return Err((".port.protocol", why));
                }
                self.routes.entry(server.route_name.clone()).or_default().push(server.clone());
                self.port(&current, &server).servers.push(server);
                return Ok(());
            }
            if self.ports.iter().any(|(known, _)| *known == key) {
                if !server.route_name.is_empty() {
                    self.routes.entry(server.route_name.clone()).or_default().push(server.clone());
                }
                let port = self.port(&key, &server);
                port.route_name.clone_from(&server.route_name);
                port.servers.push(server.clone());
            } else {
                self.add(&key, server.clone());
            }
            if serves_http(&server) {
                http3(self, &key, server);
            }
            return Ok(());
        }
        if !is_tls(&server) {
            // Plain text beside TLS: another listener's chain that takes what is no TLS.
            self.ports.retain(|(known, _)| *known != key);
            self.add(&key, server);
            return Ok(());
        }
        if serves_http(&server) {
            if self.routes.contains_key(&server.route_name) {
                return Err((".port.name", format!("another server has the route name {}", server.route_name)));
            }
            self.routes.insert(server.route_name.clone(), vec![server.clone()]);
        }
        self.port(&key, &server).servers.push(server.clone());
        http3(self, &key, server);
        Ok(())
    }

    /// Names in a ClientHello choose the server, so each may be there once.
    fn claim_hosts(&mut self, server: &GatewayServer, number: u32, bind: &str) -> Result<(), (&'static str, String)> {
        let known = self.tls_hosts.entry(number).or_default();
        let taken: Vec<&String> =
            server.hosts.iter().filter(|host| known.get(*host).is_some_and(|other| other == bind)).collect();
        if let Some(host) = taken.first() {
            return Err((".hosts", format!("an earlier server of port {number} has TLS for {host}")));
        }
        known.extend(server.hosts.iter().map(|host| (host.clone(), bind.to_owned())));
        let mode = TlSmode::try_from(server.tls_mode);
        self.auto_passthrough |= mode == Ok(TlSmode::AutoPassthrough);
        Ok(())
    }

    /// Is the server offered over QUIC, too? Its service must have the port for UDP as well.
    fn upgrades(&self, server: &GatewayServer, targets: &[&ServiceTarget]) -> bool {
        let udp = |target: &&ServiceTarget| {
            target.port.as_ref().is_some_and(|port| port.port == server.port && port.protocol() == Protocol::Udp)
        };
        self.quic && server.protocol() == Protocol::Https && !passes_through(server) && targets.iter().any(udp)
    }

    /// The port of the key, new or known.
    fn port(&mut self, key: &PortKey, server: &GatewayServer) -> &mut GatewayPort {
        let at = self.ports.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
            let port =
                GatewayPort { number: key.0, protocol: server.protocol, bind: key.2.clone(), ..Default::default() };
            self.ports.push((key.clone(), port));
            self.ports.len() - 1
        });
        &mut self.ports[at].1
    }

    /// The first server of a port, protocol and address.
    fn add(&mut self, key: &PortKey, server: GatewayServer) {
        if !is_tls(&server) {
            self.plain.insert(key.0, (key.clone(), server.protocol()));
        }
        if serves_http(&server) {
            self.routes.insert(server.route_name.clone(), vec![server.clone()]);
        }
        let port = self.port(key, &server);
        port.route_name.clone_from(&server.route_name);
        port.servers.push(server);
    }

    fn finish(self) -> MergedGateway {
        let http3 = &self.http3;
        let routes = self.routes.into_iter().map(|(name, servers)| {
            let advertises_http3 = http3.contains(&name);
            GatewayRoutes { name, servers, advertises_http3 }
        });
        MergedGateway {
            routes: routes.collect(),
            ports: self.ports.into_iter().map(|(_, port)| port).collect(),
            gateways: self.gateways.into_iter().collect(),
            auto_passthrough: self.auto_passthrough,
        }
    }
}

fn summary(from: &Selected<'_>, index: usize, server: &Server, port: u32) -> GatewayServer {
    let namespace = from.key.split_once('/').map_or("", |(namespace, _)| namespace);
    let protocol = server.port.as_ref().map_or("", |port| port.protocol.as_str());
    GatewayServer {
        gateway: from.key.clone(),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        port,
        protocol: protocol::parse(protocol).into(),
        hosts: hosts::of_server(&server.hosts, namespace),
        route_name: String::new(),
        has_tls: server.tls.is_some(),
        tls_mode: server.tls.as_ref().map_or(0, |tls| tls.mode),
        https_redirect: server.tls.as_ref().is_some_and(|tls| tls.https_redirect),
    }
}

/// Name of a server's route configuration; empty if it serves no HTTP. Plain HTTP of a port has one for all servers,
/// HTTPS one for each, since servers of different certificates must not answer for each other's hosts.
fn route_name(server: &GatewayServer, number: u32, port_name: &str, bind: &str, gateway: &str) -> String {
    let bind = if bind.is_empty() { String::new() } else { format!(".{bind}") };
    if is_http(server.protocol()) {
        return format!("http.{number}{bind}");
    }
    if !serves_http(server) {
        return String::new();
    }
    let (namespace, name) = gateway.split_once('/').unwrap_or_default();
    format!("https.{}.{port_name}.{name}.{namespace}{bind}", server.port)
}
