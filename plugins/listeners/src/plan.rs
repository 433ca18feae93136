//! The plan of outbound listeners: which addresses and ports, and which services share each.
//!
//! Ports of services come in the order of istiod's scope. The first service on an address and port makes the
//! listener; what comes later is merged, turns the listener into one that detects protocols, or loses. Losing makes a
//! diagnostic and never stops the others:
//! - MongoDB and MySQL next to another protocol: servers of these speak first, so their protocol cannot be detected;
//! - a port that the proxy itself uses, or that it may not listen on.
//!
//! Nothing is asked here that is one workload's own: a listener on an endpoint's address is planned for everybody, and
//! left out by its own call for the proxy whose address it is.

use std::collections::BTreeMap;

use trysail_sdk::facts::{EgressListener, EgressListeners, Protocol, Resolution, ServiceSummaries, ServiceSummary};
use trysail_sdk::{Ctx, Failure, Output, Severity};

use crate::net::{self, ANY_IPV4, ANY_IPV6};
use crate::node::{self, Families, Interception, StaticPorts};
use crate::outbound::HttpPart;
use crate::tcp::TcpPart;
use crate::{Planned, parts};

/// How a protocol is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// By HTTP connection managers.
    Http,
    /// By TCP proxies.
    Tcp,
    /// By whatever is detected.
    Auto,
    /// Not at all.
    Unserved,
}

/// The class of a protocol.
pub fn class(protocol: Protocol) -> Class {
    match protocol {
        Protocol::Http | Protocol::Http2 | Protocol::HttpProxy | Protocol::Grpc | Protocol::GrpcWeb => Class::Http,
        Protocol::Tcp | Protocol::Https | Protocol::Tls | Protocol::Mongo | Protocol::Redis | Protocol::Mysql => {
            Class::Tcp
        }
        Protocol::Udp => Class::Unserved,
        Protocol::Unsupported | Protocol::Hbone | Protocol::DoubleHbone => Class::Auto,
    }
}

/// A listener as planned so far.
struct Entry {
    binds: Vec<String>,
    bind_to_port: bool,
    /// Protocol of the service that made it; `Unsupported` once protocols are detected.
    protocol: Protocol,
    /// An earlier egress listener made it: nothing may be added.
    locked: bool,
    /// Encoded parts.
    parts: Vec<String>,
}

/// A port of an egress listener or of a service, offered to the plan.
#[derive(Clone)]
struct Offer<'a> {
    egress: u32,
    binds: Vec<String>,
    bind_to_port: bool,
    port: u32,
    port_name: &'a str,
    protocol: Protocol,
    service: &'a ServiceSummary,
    endpoint: bool,
}

/// What the plan knows of the proxy and the mesh.
struct Plan<'a> {
    ctx: &'a Ctx<'a>,
    families: Families,
    /// Automatically allocated addresses count.
    allocated: bool,
    static_ports: StaticPorts,
    mesh_ports: [u32; 2],
    dual_stack: bool,
    entries: BTreeMap<(String, u32), Entry>,
}

/// What `listeners/outbound` is made of: one call per outbound listener.
pub fn subjects(ctx: &Ctx<'_>, output: &mut Output) -> Result<Vec<Planned>, Failure> {
    let mut found = Vec::new();
    let egress: EgressListeners = ctx.derived("scope", "egress", &[])?.unwrap_or_default();
    let unintercepted = node::interception(ctx) == Interception::None;
    let mesh = ctx.mesh_config(&["proxy_listen_port", "proxy_inbound_listen_port"])?;
    let [auto_allocate, dual_stack, ambient] =
        ctx.flags(["PILOT_ENABLE_IP_AUTOALLOCATE", "ISTIO_DUAL_STACK", "PILOT_ENABLE_AMBIENT"])?;
    let port = |n: i32| u32::try_from(n).unwrap_or(0);
    let mut plan = Plan {
        ctx,
        families: Families::of(ctx),
        allocated: node::is_true(ctx, "DNS_CAPTURE") && (auto_allocate || node::is_true(ctx, "DNS_AUTO_ALLOCATE")),
        static_ports: StaticPorts::of(ctx),
        mesh_ports: [port(mesh.proxy_listen_port), port(mesh.proxy_inbound_listen_port)],
        dual_stack: dual_stack || ambient,
        entries: BTreeMap::new(),
    };
    for listener in &egress.listeners {
        plan.egress(listener, unintercepted, output)?;
    }
    for ((_, port), entry) in plan.entries {
        let name = format!("{}_{port}", entry.binds.first().map_or("", String::as_str));
        let mut args = vec![
            name.clone(),
            entry.binds.join(","),
            port.to_string(),
            if entry.bind_to_port { "bind" } else { "" }.to_owned(),
        ];
        args.extend(entry.parts);
        found.push(Planned { call: parts::own("outbound-listener", args).hooked("listener"), name, port });
    }
    Ok(found)
}

impl Plan<'_> {
    fn egress(&mut self, listener: &EgressListener, unintercepted: bool, output: &mut Output) -> Result<(), Failure> {
        const CAPTURE_NONE: i32 = 2;
        // A pipe cannot be the original destination of anything.
        let bind_to_port =
            unintercepted || listener.capture_mode == CAPTURE_NONE || listener.bind.starts_with("unix://");
        let binds = if !listener.bind.is_empty() {
            vec![listener.bind.clone()]
        } else if bind_to_port {
            self.families.loopbacks()
        } else {
            Vec::new()
        };
        let index = listener.index.to_string();
        let services: ServiceSummaries = self.ctx.derived("scope", "services", &[&index])?.unwrap_or_default();
        let offer = |service, port, port_name, protocol| Offer {
            egress: listener.index,
            binds: binds.clone(),
            bind_to_port,
            port,
            port_name,
            protocol,
            service,
            endpoint: false,
        };
        if listener.has_port {
            let protocol = listener.protocol();
            if self.can_bind(bind_to_port, &binds, listener.port, protocol, "Sidecar egress listener", output) {
                for service in &services.services {
                    let whole = offer(service, listener.port, listener.port_name.as_str(), protocol);
                    for one in one_per_address(service) {
                        self.add(Offer { service: one.as_ref().unwrap_or(service), ..whole.clone() }, output)?;
                    }
                }
            }
            return Ok(());
        }
        // The catch-all adds nothing to ports that have a listener of their own.
        for entry in self.entries.values_mut() {
            entry.locked = true;
        }
        for service in &services.services {
            for port in &service.ports {
                let title = format!("Service {}/{}", service.namespace, service.name);
                if !self.can_bind(bind_to_port, &binds, port.port, port.protocol(), &title, output) {
                    continue;
                }
                let whole = offer(service, port.port, port.name.as_str(), port.protocol());
                for one in one_per_address(service) {
                    self.service_port(Offer { service: one.as_ref().unwrap_or(service), ..whole.clone() }, output)?;
                }
            }
        }
        Ok(())
    }

    /// Offers a port of a service, by endpoint if it is a TCP port of a service without an address.
    fn service_port(&mut self, offer: Offer<'_>, output: &mut Output) -> Result<(), Failure> {
        let by_endpoint = offer.binds.is_empty()
            && offer.service.resolution() == Resolution::Passthrough
            && self.address(offer.service) == ANY_IPV4
            && matches!(class(offer.protocol), Class::Tcp | Class::Auto);
        if !by_endpoint {
            return self.add(offer, output);
        }
        let key = key(offer.service);
        let endpoints = self.ctx.endpoints(&key, offer.port)?;
        if endpoints.is_empty() && offer.service.registry != "Kubernetes" {
            let selects = self.ctx.service(&key)?.is_some_and(|s| s.selects_workloads || !s.label_selectors.is_empty());
            // A selector may find workloads later; then a listener on all addresses would be in their way.
            return if selects { Ok(()) } else { self.add(offer, output) };
        }
        for endpoint in endpoints {
            if endpoint.addresses.is_empty()
                || endpoint.addresses.iter().any(|a| a.parse::<std::net::IpAddr>().is_err())
            {
                continue;
            }
            self.add(Offer { binds: endpoint.addresses, endpoint: true, ..offer.clone() }, output)?;
        }
        Ok(())
    }

    fn add(&mut self, mut offer: Offer<'_>, output: &mut Output) -> Result<(), Failure> {
        if offer.service.resolution() == Resolution::Alias {
            return Ok(());
        }
        let class = class(offer.protocol);
        let mut cidrs = Vec::new();
        if offer.binds.is_empty() {
            match class {
                Class::Http => offer.binds = self.families.wildcards(),
                Class::Tcp | Class::Auto => (offer.binds, cidrs) = self.service_binds(offer.service),
                Class::Unserved => return Ok(()),
            }
        }
        let wildcard = self.families.wildcard();
        let at = (offer.binds.first().cloned().unwrap_or_default(), offer.port);
        let on_wildcard = at.0 == wildcard;
        let current = self.entries.get(&at).map(|e| (e.locked, e.protocol));
        if let Some((true, _)) = current {
            return Ok(());
        }
        let current = current.map(|(_, protocol)| protocol);
        let detects = current.is_some_and(|c| self::class(c) == Class::Auto);

        // A proxy port takes whatever its last service says, as each replaces the one before.
        let is_proxy = offer.protocol == Protocol::HttpProxy;
        let replaces = match (class, current.map(self::class)) {
            _ if is_proxy => true,
            (Class::Unserved, _) => return Ok(()),
            (_, None) => true,
            (Class::Http, Some(Class::Tcp)) => false,
            // One listener serves all HTTP services of a port: routes tell them apart.
            (Class::Http, Some(_)) => return Ok(()),
            (Class::Auto, Some(Class::Http)) => true,
            (Class::Auto, Some(Class::Tcp)) => false,
            (Class::Auto, Some(_)) => return Ok(()),
            (Class::Tcp, Some(_)) => false,
        };
        if !is_proxy
            && let Some(current) = current
            && current != offer.protocol
            && [offer.protocol, current].iter().any(|p| matches!(p, Protocol::Mongo | Protocol::Mysql))
        {
            output.diagnose(
                Severity::Warning,
                format!("Service {}/{}", offer.service.namespace, offer.service.name),
                format!("spec.ports[{}]", offer.port_name),
                format!("left out: {}:{} has a protocol that cannot be told from this one", at.0, at.1),
            );
            output.count_as("outbound-listener-conflict");
            return Ok(());
        }

        let mut parts = Vec::with_capacity(2);
        if !is_proxy && matches!(class, Class::Tcp | Class::Auto) {
            parts.push(self.tcp_part(&offer, cidrs, &at.0));
        }
        // Plain HTTP is told from the rest where the rest goes on to the original destination, or to TCP chains.
        let sniffs = !is_proxy && (class == Class::Auto || on_wildcard);
        if class != Class::Tcp {
            parts.push(http_part(&offer, sniffs, class == Class::Auto && !on_wildcard, &at.0));
        }
        let protocol = if class == Class::Http && sniffs { Protocol::Unsupported } else { offer.protocol };
        if replaces {
            let entry = Entry { binds: offer.binds, bind_to_port: offer.bind_to_port, protocol, locked: false, parts };
            self.entries.insert(at, entry);
        } else if let Some(entry) = self.entries.get_mut(&at) {
            entry.parts.extend(parts);
            // TCP beside TCP stays what it is; any other mixture is detected.
            if !(class == Class::Tcp && (detects || self::class(entry.protocol) == Class::Tcp)) {
                entry.protocol = Protocol::Unsupported;
            }
        }
        Ok(())
    }

    fn tcp_part(&self, offer: &Offer<'_>, cidrs: Vec<String>, bind: &str) -> String {
        let service = offer.service;
        let dynamic = service.host.starts_with('*') && service.resolution() == Resolution::DynamicDns;
        let mut address = self.address(service);
        if address.contains('/') {
            address.clear();
        }
        if service.registry == "External" && !self.families.v4 && address == ANY_IPV4 {
            address = ANY_IPV6.into();
        }
        let wildcard = self.families.wildcard();
        let by_name = dynamic || !cidrs.is_empty() || address.is_empty() || (address == wildcard && bind == wildcard);
        TcpPart {
            egress: offer.egress,
            service: key(service),
            protocol: offer.protocol,
            port_name: offer.port_name.into(),
            // A port of the Sidecar's that the service does not have means the service's only port.
            default_port: if let [only] = service.ports.as_slice() { only.port } else { offer.port },
            by_name,
            dynamic,
            endpoint: offer.endpoint,
            cidrs,
        }
        .encode()
    }

    /// Where a TCP port of a service is listened on: its addresses, or all addresses with its networks.
    fn service_binds(&self, service: &ServiceSummary) -> (Vec<String>, Vec<String>) {
        let mut address = self.address(service);
        let mut extra = self.extra_addresses(service);
        if service.registry == "External" && address == ANY_IPV4 {
            if !self.families.v4 {
                address = ANY_IPV6.into();
            } else if self.families.dual() {
                extra.push(ANY_IPV6.into());
            }
        }
        if address.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let network = address.contains('/');
        let mut all = vec![address];
        all.extend(extra);
        if network { (self.families.wildcards(), all) } else { (all, Vec::new()) }
    }

    /// The address of a service for this proxy: one of its own cluster and families, an allocated one, or the default.
    fn address(&self, service: &ServiceSummary) -> String {
        if let Some(first) = self.cluster_addresses(service).into_iter().next() {
            return first;
        }
        if self.allocated && service.address == ANY_IPV4 {
            let fits = |a: &&String| {
                a.parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| if ip.is_ipv4() { self.families.v4 } else { self.families.v6 })
            };
            let mut found: Vec<&String> = service.auto_allocated_addresses.iter().filter(fits).collect();
            found.sort_by_key(|a| a.contains(':'));
            if let Some(first) = found.first() {
                return (*first).clone();
            }
        }
        service.address.clone()
    }

    fn cluster_addresses(&self, service: &ServiceSummary) -> Vec<String> {
        // Addresses of a ServiceEntry are matched whatever their family is.
        if service.registry == "External" {
            return Vec::new();
        }
        net::of_families(&service.addresses, self.families.v4, self.families.v6)
    }

    /// Its other addresses: of the second family, if listeners may have several.
    fn extra_addresses(&self, service: &ServiceSummary) -> Vec<String> {
        let mut all = if service.registry == "External" { Vec::new() } else { service.addresses.clone() };
        if all.is_empty() && self.allocated {
            all = service.auto_allocated_addresses.clone();
            all.sort_by_key(|a| a.contains(':'));
        }
        if !(self.dual_stack && self.families.dual()) {
            all = net::of_families(&all, self.families.v4, self.families.v6);
        }
        all.into_iter().skip(1).collect()
    }

    fn can_bind(
        &self,
        own: bool,
        binds: &[String],
        port: u32,
        protocol: Protocol,
        title: &str,
        output: &mut Output,
    ) -> bool {
        if own && node::privileged(port) && node::is_true(self.ctx, "UNPRIVILEGED_POD") {
            output.diagnose(Severity::Warning, title, "", format!("left out: the proxy may not listen on port {port}"));
            return false;
        }
        // Only listeners on all addresses meet those of the proxy itself.
        let on_all = match binds.first() {
            Some(bind) => bind == self.families.wildcard(),
            None => class(protocol) == Class::Http,
        };
        let taken = on_all && (self.static_ports.has(port) || self.mesh_ports.contains(&port));
        if taken {
            output.diagnose(Severity::Warning, title, "", format!("left out: port {port} is the proxy's own"));
        }
        !taken
    }
}

fn http_part(offer: &Offer<'_>, sniffs: bool, own_routes: bool, bind: &str) -> String {
    let service = offer.service;
    let routes = if offer.port == 0 {
        bind.to_owned()
    } else if own_routes {
        format!("{}:{}", service.host, offer.port)
    } else {
        offer.port.to_string()
    };
    HttpPart {
        protocol: offer.protocol,
        sniffs,
        service: if own_routes { key(service) } else { String::new() },
        dynamic_host: if service.host.starts_with('*') && service.resolution() == Resolution::DynamicDns {
            service.host.clone()
        } else {
            String::new()
        },
        routes,
    }
    .encode()
}

/// A ServiceEntry counts as one service per address; `None` is the service as it is.
fn one_per_address(service: &ServiceSummary) -> Vec<Option<ServiceSummary>> {
    if service.registry != "External" || service.addresses.len() < 2 {
        return vec![None];
    }
    let with = |address: &String| {
        Some(ServiceSummary { address: address.clone(), addresses: vec![address.clone()], ..service.clone() })
    };
    service.addresses.iter().map(with).collect()
}

fn key(service: &ServiceSummary) -> String {
    format!("{}/{}", service.namespace, service.host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answers;
    use trysail_sdk::facts::Port;

    fn service(host: &str, address: &str, ports: &[(u32, Protocol)]) -> ServiceSummary {
        ServiceSummary {
            host: host.into(),
            namespace: "shop".into(),
            name: host.into(),
            address: address.into(),
            addresses: if address == ANY_IPV4 { vec![] } else { vec![address.into()] },
            registry: "Kubernetes".into(),
            ports: ports
                .iter()
                .map(|(port, protocol)| Port { port: *port, protocol: *protocol as i32, ..Default::default() })
                .collect(),
            ..Default::default()
        }
    }

    fn planned(services: Vec<ServiceSummary>) -> Vec<Vec<String>> {
        let host = Answers::default()
            .message(
                "derived",
                &["scope", "egress"],
                &EgressListeners { listeners: vec![EgressListener::default()], from_sidecar: false },
            )
            .message("derived", &["scope", "services", "0"], &ServiceSummaries { services })
            .message(
                "mesh-config",
                &[],
                &trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig {
                    proxy_listen_port: 15001,
                    proxy_inbound_listen_port: 15006,
                    ..Default::default()
                },
            );
        let found = subjects(&Ctx::new(&host), &mut Output::empty()).expect("a plan");
        found.into_iter().map(|planned| planned.call.args).collect()
    }

    #[test]
    fn http_services_share_a_listener_and_tcp_services_do_not() {
        let got = planned(vec![
            service("a", "10.0.0.1", &[(80, Protocol::Http), (90, Protocol::Tcp)]),
            service("b", "10.0.0.2", &[(80, Protocol::Http), (90, Protocol::Tcp)]),
        ]);
        let at: Vec<(&str, &str, usize)> = got.iter().map(|a| (a[1].as_str(), a[2].as_str(), a.len() - 4)).collect();
        assert_eq!(at, [("0.0.0.0", "80", 1), ("10.0.0.1", "90", 1), ("10.0.0.2", "90", 1)]);
    }

    #[test]
    fn detected_protocols_get_a_listener_of_their_own_with_own_routes() {
        let got = planned(vec![service("a", "10.0.0.1", &[(80, Protocol::Unsupported)])]);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0][0], "10.0.0.1_80");
        assert!(got[0][4].starts_with("tcp|") && got[0][5].ends_with("a:80"), "{got:?}");
    }

    #[test]
    fn tcp_without_address_joins_http_of_the_port() {
        let mut external = service("x", ANY_IPV4, &[(80, Protocol::Tcp)]);
        external.registry = "External".into();
        let got = planned(vec![service("a", "10.0.0.1", &[(80, Protocol::Http)]), external]);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].len(), 6);
    }

    #[test]
    fn ports_of_the_proxy_stay_free() {
        assert!(planned(vec![service("a", "10.0.0.1", &[(15001, Protocol::Http)])]).is_empty());
        assert_eq!(planned(vec![service("a", "10.0.0.1", &[(15001, Protocol::Tcp)])]).len(), 1);
    }

    #[test]
    fn server_first_protocols_are_not_mixed() {
        let mut mongo = service("m", ANY_IPV4, &[(9000, Protocol::Mongo)]);
        mongo.registry = "External".into();
        let got = planned(vec![service("a", "10.0.0.1", &[(9000, Protocol::Http)]), mongo]);
        assert_eq!(got[0].len(), 5);
    }
}
