//! Which virtual hosts a port has: services and VirtualServices are matched, conflicts decided.
//!
//! Pure. Reads summaries only; whether a VirtualService has any route for this port and proxy is asked through a closure.
//!
//! Nothing rejects. What loses a domain or a whole virtual host to an older one only warns, naming the object that lost.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use trysail_sdk::facts::{Port, Protocol, Resolution, ServiceSummary, VirtualServiceSummary};
use trysail_sdk::{Diagnostic, Severity, hosts};

use crate::domains::{Domain, bracketed, with_port};

/// Where the routes of a virtual host come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routes {
    /// The VirtualService of this key.
    VirtualService(String),
    /// The one default route of a service.
    Service {
        /// Key of the service.
        key: String,
        /// Its host as the route has it.
        host: String,
    },
}

/// A virtual host as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// `host:port`.
    pub name: String,
    /// At least one.
    pub domains: Vec<String>,
    /// Port of the service, which is the listener's port but for listeners that serve all ports (`http_proxy`).
    pub port: u32,
    /// Who fills the routes.
    pub routes: Routes,
    /// Key of the service that the virtual host is for; none for a host that only a VirtualService knows.
    pub service: Option<String>,
}

/// A service on this port.
pub struct Candidate<'a> {
    /// The service.
    pub service: &'a ServiceSummary,
    /// Its host as domains have it: in lower case, but as written on a listener for all ports.
    pub host: String,
    /// Those of its ports that this listener takes and whose traffic may be HTTP.
    http_ports: Vec<u32>,
}

impl Candidate<'_> {
    /// `namespace/host`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.service.namespace, self.service.host)
    }

    fn object(&self) -> String {
        // Only Kubernetes services go by an object's name; the others stand for one host of a ServiceEntry.
        let kind = if self.service.registry == "Kubernetes" { "Service" } else { "ServiceEntry" };
        format!("{kind} {}/{}", self.service.namespace, self.service.name)
    }
}

/// The services that a listener port concerns, by host.
pub struct Candidates<'a> {
    list: Vec<Candidate<'a>>,
    by_host: HashMap<String, usize>,
}

impl<'a> Candidates<'a> {
    /// The services that have `port`, or all of them when the listener serves every port (0). A service later in the list
    /// takes the place of an earlier one of the same host.
    pub fn new(services: impl IntoIterator<Item = &'a ServiceSummary>, port: u32) -> Self {
        let mut list: Vec<Candidate<'a>> = Vec::new();
        let mut by_host = HashMap::new();
        for service in services {
            let mut ports = service.ports.iter().filter(|p| port == 0 || p.port == port).peekable();
            if ports.peek().is_none() {
                continue;
            }
            let http_ports = ports.filter(|p| may_be_http(p)).map(|p| p.port).collect();
            let host = if port == 0 { service.host.clone() } else { service.host.to_lowercase() };
            let candidate = Candidate { service, host, http_ports };
            match by_host.get(&candidate.host) {
                Some(&at) => list[at] = candidate,
                None => {
                    by_host.insert(candidate.host.clone(), list.len());
                    list.push(candidate);
                }
            }
        }
        Candidates { list, by_host }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate<'a>> {
        self.list.iter()
    }
}

/// HTTP by declaration, or undeclared and found out by the proxy.
pub fn may_be_http(port: &Port) -> bool {
    matches!(
        port.protocol(),
        Protocol::Http
            | Protocol::Http2
            | Protocol::Grpc
            | Protocol::GrpcWeb
            | Protocol::HttpProxy
            | Protocol::Unsupported
    )
}

/// Virtual hosts with the same routes.
struct Group {
    port: u32,
    services: Vec<usize>,
    /// Hosts of the VirtualService that are no service's.
    hosts: Vec<String>,
    routes: Routes,
    object: String,
}

/// What a plan has to ask; each question only where its answer matters.
pub trait Questions {
    /// Has the VirtualService any route for this port and proxy?
    fn has_routes(&self, virtual_service: &VirtualServiceSummary) -> bool;
    /// Is the proxy of this namespace?
    fn proxy_in(&self, namespace: &str) -> bool;
    /// Domains of a service on one of its ports.
    fn domains(&self, candidate: &Candidate<'_>, service_port: u32) -> Vec<Domain>;
}

/// Plans the virtual hosts of a listener port (0: all ports).
///
/// Order of precedence: VirtualServices as given (oldest first), then services as given.
pub fn plan(
    candidates: &Candidates<'_>,
    virtual_services: &[VirtualServiceSummary],
    port: u32,
    questions: &impl Questions,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<VirtualHost> {
    let owners = WildcardOwners::new(virtual_services);
    let mut groups = Vec::new();
    for virtual_service in virtual_services.iter().filter(|v| v.has_http) {
        let (hosts, services) = split_hosts(virtual_service, candidates, &owners);
        let mut by_port: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &at in &services {
            for &service_port in &candidates.list[at].http_ports {
                by_port.entry(service_port).or_default().push(at);
            }
        }
        // Hosts that no service has are routed on port 80 only.
        if by_port.is_empty() && port == 80 && !hosts.is_empty() {
            by_port.insert(80, Vec::new());
        }
        if by_port.is_empty() || !may_route(virtual_service, &services, candidates, questions) {
            continue;
        }
        if !questions.has_routes(virtual_service) {
            continue;
        }
        let key = format!("{}/{}", virtual_service.namespace, virtual_service.name);
        // Port 80 first: on a listener for all ports only its virtual hosts keep the domains without a port.
        let mut ports: Vec<_> = by_port.into_iter().collect();
        ports.sort_by_key(|(port, _)| (*port != 80, *port));
        for (port, services) in ports {
            let (hosts, routes) = (hosts.clone(), Routes::VirtualService(key.clone()));
            groups.push(Group { port, services, hosts, routes, object: format!("VirtualService {key}") });
        }
    }

    let mut taken = vec![false; candidates.list.len()];
    groups.iter().flat_map(|g| &g.services).for_each(|&at| taken[at] = true);
    for (at, candidate) in candidates.list.iter().enumerate() {
        // Aliases have no virtual hosts: their names are domains of the service that they stand for.
        if taken[at] || candidate.service.resolution() == Resolution::Alias {
            continue;
        }
        for &port in &candidate.http_ports {
            let routes = Routes::Service { key: candidate.key(), host: candidate.host.clone() };
            groups.push(Group { port, services: vec![at], hosts: Vec::new(), routes, object: candidate.object() });
        }
    }
    assign(candidates, groups, port, questions, diagnostics)
}

/// Routes of the Gateway API are taken by clients of their namespace (consumer routes), and for services of their
/// namespace (producer routes).
fn may_route(
    virtual_service: &VirtualServiceSummary,
    services: &[usize],
    candidates: &Candidates<'_>,
    questions: &impl Questions,
) -> bool {
    let namespace = &virtual_service.namespace;
    !virtual_service.gateway_semantics
        || services.iter().any(|&at| candidates.list[at].service.namespace == *namespace)
        || (!services.is_empty() && questions.proxy_in(namespace))
}

/// A virtual host that a group asks for.
struct Wish<'a> {
    name: String,
    group: &'a Group,
    candidate: Option<&'a Candidate<'a>>,
    domains: Vec<Domain>,
}

/// Gives every group's virtual hosts their names and domains, first come first served.
fn assign(
    candidates: &Candidates<'_>,
    groups: Vec<Group>,
    listener_port: u32,
    questions: &impl Questions,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<VirtualHost> {
    let wishes = wishes(candidates, &groups, questions);
    let full_names = full_names(candidates, &groups, listener_port);
    let mut names = HashSet::with_capacity(wishes.len());
    let mut taken: HashSet<Cow<'_, str>> = HashSet::with_capacity(wishes.iter().map(|w| w.domains.len()).sum());
    let mut planned = Vec::with_capacity(wishes.len());
    for wish in &wishes {
        let (name, object) = (wish.name.as_str(), &wish.group.object);
        if !names.insert(name) {
            diagnostics.push(lost(object, format!("virtual host {name} belongs to an older object already")));
            continue;
        }
        let (mut domains, mut refused) = (Vec::with_capacity(wish.domains.len()), Vec::new());
        for domain in &wish.domains {
            let text = domain.text.as_str();
            let folded = folded(text);
            if taken.contains(&folded) {
                refused.push(text);
            } else if !(domain.expanded && full_names.contains(text)) {
                taken.insert(folded);
                domains.push(text.to_owned());
            }
        }
        if !refused.is_empty() {
            let refused = refused.join(", ");
            diagnostics.push(lost(object, format!("virtual host {name} loses domains to an older one: {refused}")));
        }
        // A listener for all ports tells ports apart by the Host header; plain names mean port 80 there.
        let port = wish.group.port;
        if listener_port == 0 && port != 80 {
            domains.retain(|d| d.contains(':'));
        }
        if !domains.is_empty() {
            let service = wish.candidate.map(Candidate::key);
            planned.push(VirtualHost {
                name: name.to_owned(),
                domains,
                port,
                routes: wish.group.routes.clone(),
                service,
            });
        }
    }
    planned.sort_by(|a, b| a.name.cmp(&b.name));
    planned
}

fn wishes<'a>(candidates: &'a Candidates<'a>, groups: &'a [Group], questions: &impl Questions) -> Vec<Wish<'a>> {
    let mut wishes = Vec::with_capacity(groups.len());
    for group in groups {
        for host in &group.hosts {
            let host = host.to_lowercase();
            let domains = vec![Domain { text: bracketed(&host), expanded: false }];
            wishes.push(Wish { name: with_port(&host, group.port), group, candidate: None, domains });
        }
        for &at in &group.services {
            let candidate = &candidates.list[at];
            let domains = questions.domains(candidate, group.port);
            wishes.push(Wish {
                name: with_port(&candidate.host, group.port),
                group,
                candidate: Some(candidate),
                domains,
            });
        }
    }
    wishes
}

/// Names that no shortened form may take.
fn full_names<'a>(candidates: &'a Candidates<'_>, groups: &[Group], listener_port: u32) -> HashSet<Cow<'a, str>> {
    let mut full_names = HashSet::with_capacity(groups.len());
    for group in groups {
        for &at in &group.services {
            let host = candidates.list[at].host.as_str();
            full_names.insert(Cow::Borrowed(host));
            // Domains have ports on listeners for all ports only.
            if listener_port == 0 {
                full_names.insert(Cow::Owned(with_port(host, group.port)));
            }
        }
    }
    full_names
}

/// Host names do not differ by case; nearly all are in lower case already.
fn folded(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) { text.into() } else { text.to_lowercase().into() }
}

fn lost(object: &str, message: String) -> Diagnostic {
    let (object, code) = (object.to_owned(), "duplicate-domain".to_owned());
    Diagnostic { severity: Severity::Warning, object, field: String::new(), message, code }
}

/// Splits the hosts of a VirtualService into those without a service, and the services it is for.
fn split_hosts(
    virtual_service: &VirtualServiceSummary,
    candidates: &Candidates<'_>,
    owners: &WildcardOwners<'_>,
) -> (Vec<String>, Vec<usize>) {
    let (mut unknown, mut services) = (Vec::new(), Vec::new());
    let (wildcards, exact): (Vec<&String>, Vec<&String>) =
        virtual_service.hosts.iter().partition(|h| hosts::is_wildcard(h));
    for host in exact {
        match candidates.by_host.get(&host.to_lowercase()) {
            Some(&at) => services.push(at),
            None => unknown.push(host.clone()),
        }
    }
    for host in wildcards {
        // In the Gateway API a wildcard is a host of its own, not a stand-in for services.
        if virtual_service.gateway_semantics {
            unknown.push(host.clone());
            continue;
        }
        let host = host.to_lowercase();
        let mut found = false;
        for (at, candidate) in candidates.list.iter().enumerate() {
            if !hosts::overlap(&candidate.host, &host) {
                continue;
            }
            found = true;
            // A service follows the VirtualService whose host fits it most closely, no matter how many cover it. A host with
            // capitals follows none, as in istiod, whose index has it as written.
            let as_written = candidate.host == candidate.service.host;
            if as_written && owners.of(&candidate.host).is_some_and(|owner| std::ptr::eq(owner, virtual_service)) {
                services.push(at);
            }
        }
        if !found {
            unknown.push(host);
        }
    }
    (unknown, services)
}

/// For each service host the VirtualService with the most specific host that covers it.
struct WildcardOwners<'a> {
    exact: HashMap<&'a str, &'a VirtualServiceSummary>,
    wildcards: BTreeMap<&'a str, &'a VirtualServiceSummary>,
}

impl<'a> WildcardOwners<'a> {
    fn new(virtual_services: &'a [VirtualServiceSummary]) -> Self {
        let mut owners = WildcardOwners { exact: HashMap::new(), wildcards: BTreeMap::new() };
        // Without a wildcard host nobody asks.
        if !virtual_services.iter().any(|v| v.hosts.iter().any(|h| hosts::is_wildcard(h))) {
            return owners;
        }
        for virtual_service in virtual_services {
            for host in &virtual_service.hosts {
                if hosts::is_wildcard(host) {
                    owners.wildcards.entry(host).or_insert(virtual_service);
                } else {
                    owners.exact.entry(host).or_insert(virtual_service);
                }
            }
        }
        owners
    }

    fn of(&self, host: &str) -> Option<&'a VirtualServiceSummary> {
        if let Some(owner) = self.exact.get(host).or_else(|| self.wildcards.get(host)) {
            return Some(owner);
        }
        let covering = self.wildcards.iter().filter(|(wildcard, _)| hosts::subset_of(host, wildcard));
        covering.max_by_key(|(wildcard, _)| wildcard.len()).map(|(_, owner)| *owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, ports: &[(u32, Protocol)]) -> ServiceSummary {
        let ports =
            ports.iter().map(|&(port, protocol)| Port { port, protocol: protocol.into(), ..Default::default() });
        ServiceSummary {
            host: host.into(),
            namespace: "ns".into(),
            name: host.into(),
            ports: ports.collect(),
            ..Default::default()
        }
    }

    fn virtual_service(name: &str, hosts: &[&str]) -> VirtualServiceSummary {
        VirtualServiceSummary {
            namespace: "ns".into(),
            name: name.into(),
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            has_http: true,
            ..Default::default()
        }
    }

    /// A proxy of namespace `client` and plain domains.
    struct Given<'a> {
        port: u32,
        without_routes: &'a str,
    }

    impl Questions for Given<'_> {
        fn has_routes(&self, virtual_service: &VirtualServiceSummary) -> bool {
            virtual_service.name != self.without_routes
        }

        fn proxy_in(&self, namespace: &str) -> bool {
            namespace == "client"
        }

        fn domains(&self, candidate: &Candidate<'_>, service_port: u32) -> Vec<Domain> {
            let port = (self.port == 0).then_some(service_port);
            let naming = crate::domains::Naming { dns_domain: "", absolute: false, port };
            naming.of_service([candidate.host.as_str()], false, &[])
        }
    }

    type Outline = (String, Vec<String>, Routes);

    fn planned(
        services: &[ServiceSummary],
        virtual_services: &[VirtualServiceSummary],
        port: u32,
        without_routes: &str,
    ) -> (Vec<Outline>, Vec<Diagnostic>) {
        let candidates = Candidates::new(services, port);
        let mut diagnostics = Vec::new();
        let hosts = plan(&candidates, virtual_services, port, &Given { port, without_routes }, &mut diagnostics);
        (hosts.into_iter().map(|h| (h.name, h.domains, h.routes)).collect(), diagnostics)
    }

    fn of_vs(name: &str) -> Routes {
        Routes::VirtualService(format!("ns/{name}"))
    }

    fn of_service(host: &str) -> Routes {
        Routes::Service { key: format!("ns/{host}"), host: host.to_owned() }
    }

    #[test]
    fn the_older_virtual_service_keeps_the_host() {
        let services = [service("a.test", &[(80, Protocol::Http)]), service("b.test", &[(80, Protocol::Tcp)])];
        let both = [virtual_service("old", &["a.test"]), virtual_service("new", &["a.test"])];
        let (hosts, diagnostics) = planned(&services, &both, 80, "");
        assert_eq!(hosts, [("a.test:80".into(), vec!["a.test".into()], of_vs("old"))]);
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].object, "VirtualService ns/new");
        let (hosts, _) = planned(&services, &both, 80, "old");
        assert_eq!(hosts[0].2, of_vs("new"));
    }

    #[test]
    fn without_routes_the_default_stays() {
        let services = [service("a.test", &[(80, Protocol::Http)])];
        let (hosts, _) = planned(&services, &[virtual_service("v", &["a.test"])], 80, "v");
        assert_eq!(hosts[0].2, of_service("a.test"));
    }

    #[test]
    fn unknown_hosts_are_routed_on_port_80_only() {
        let vs = [virtual_service("v", &["Other.test"])];
        let (hosts, _) = planned(&[], &vs, 80, "");
        assert_eq!(hosts, [("other.test:80".into(), vec!["other.test".into()], of_vs("v"))]);
        assert!(planned(&[], &vs, 8080, "").0.is_empty());
    }

    #[test]
    fn the_closest_wildcard_wins() {
        let services = [
            service("a.b.test", &[(8080, Protocol::Http)]),
            service("c.test", &[(8080, Protocol::Unsupported)]),
            service("d.b.test", &[(8080, Protocol::Http)]),
        ];
        let all = [
            virtual_service("wide", &["*.test"]),
            virtual_service("close", &["*.b.test"]),
            virtual_service("exact", &["d.b.test"]),
        ];
        let (hosts, diagnostics) = planned(&services, &all, 8080, "");
        let routes: Vec<&Routes> = hosts.iter().map(|h| &h.2).collect();
        assert_eq!(routes, [&of_vs("close"), &of_vs("wide"), &of_vs("exact")]);
        assert!(diagnostics.is_empty());
    }

    #[test]
    fn all_ports_are_told_apart_by_the_host_header() {
        let services = [service("a.test", &[(80, Protocol::Http), (8080, Protocol::Http), (90, Protocol::Tcp)])];
        let (hosts, _) = planned(&services, &[], 0, "");
        assert_eq!(
            hosts,
            [
                ("a.test:80".into(), vec!["a.test".into(), "a.test:80".into()], of_service("a.test")),
                ("a.test:8080".into(), vec!["a.test:8080".into()], of_service("a.test")),
            ]
        );
    }

    #[test]
    fn gateway_api_routes_are_of_consumers_and_producers() {
        let services = [service("a.test", &[(80, Protocol::Http)])];
        let mut route = virtual_service("r", &["a.test"]);
        route.gateway_semantics = true;
        assert_eq!(planned(&services, &[route.clone()], 80, "").0[0].2, of_vs("r"));
        route.namespace = "stranger".into();
        assert_eq!(planned(&services, &[route.clone()], 80, "").0[0].2, of_service("a.test"));
        route.namespace = "client".into();
        assert_eq!(planned(&services, &[route], 80, "").0[0].2, Routes::VirtualService("client/r".into()));
    }

    #[test]
    fn aliases_have_no_virtual_host() {
        let mut alias = service("alias.test", &[(80, Protocol::Http)]);
        alias.resolution = Resolution::Alias.into();
        assert!(planned(&[alias], &[], 80, "").0.is_empty());
    }
}
