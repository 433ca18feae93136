//! `config`: the plan of an outbound route configuration.
//!
//! Names: `80` (all hosts of a port), `host:80` (a port whose protocol is detected: one service's host, which becomes `*`),
//! `http_proxy` and `unix://PATH` (all ports), and the port of a Sidecar's egress listener. Any other name is answered by an
//! empty configuration, because Envoy waits for an answer.
//!
//! Nothing rejects; what loses a domain warns (see `virtual_hosts`).

use trysail_sdk::facts::{
    EgressListener, EgressListeners, Protocol, Resolution, Service, ServiceSummaries, ServiceSummary, Strings,
    VirtualServiceSummaries, VirtualServiceSummary,
};
use trysail_sdk::proto::envoy::config::route::v3 as envoy;
use trysail_sdk::proto::istio::networking::v1alpha3::OutboundTrafficPolicy;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output};

use crate::addresses::Addresses;
use crate::catch_all;
use crate::domains::{Domain, Naming};
use crate::virtual_hosts::{Candidate, Candidates, Questions, Routes, VirtualHost, plan};

/// Bytes of a body that a direct response may have; Envoy's own default is 4 KiB, the API allows 1 MiB.
pub const MAX_DIRECT_RESPONSE_BODY: u32 = 1024 * 1024;

/// Hook point of virtual hosts. They are calls of their own only where a plugin wants them: a mesh has thousands.
pub const HOOK: &str = "virtual-host";
/// RouteConfiguration.virtual_hosts.
pub const VIRTUAL_HOSTS: u32 = 2;

/// Prefix of names that stand for a Unix domain socket.
const UNIX: &str = "unix://";

/// What the name of a route configuration says.
#[derive(Debug, PartialEq, Eq)]
struct RouteName<'a> {
    /// Port of the listener, 0 for all.
    port: u32,
    /// The one host of a sniffed port, with the port as the name has it.
    sniffed: Option<&'a str>,
}

impl<'a> RouteName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        if name.starts_with(UNIX) || name == "http_proxy" {
            return Some(RouteName { port: 0, sniffed: None });
        }
        let (port, sniffed) = match name.split_once(':') {
            // The first colon counts, so a name with an IPv6 address is no route name, as in istiod.
            Some((_, port)) => (port, Some(name)),
            None => (name, None),
        };
        Some(RouteName { port: port.parse().ok()?, sniffed })
    }
}

/// The RouteConfiguration of an outbound route name: one item.
pub fn route_configuration(ctx: &Ctx<'_>, route_name: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let named = envoy::RouteConfiguration { name: route_name.to_owned(), ..Default::default() };
    let Some(parsed) = RouteName::parse(route_name) else {
        let empty = envoy::RouteConfiguration { validate_clusters: Some(false), ..named };
        output.item(Item::new(route_name, Message::of(&empty)));
        return Ok(output);
    };

    let headers = ProxyHeaders::ask(ctx)?;
    let hooked = ctx.hooked(HOOK);
    let egress: EgressListeners = ctx.derived("scope", "egress", &[])?.unwrap_or_default();
    let mut message = Message::of(&named);
    if let Some(listener) = listener_for(&egress, parsed.port, route_name) {
        let proxy_style = listener.has_port && listener.protocol() == Protocol::HttpProxy;
        let port = if proxy_style { 0 } else { parsed.port };
        let index = listener.index.to_string();
        let planner = Planner { ctx, port, index: &index, sniffed: parsed.sniffed, from_sidecar: egress.from_sidecar };
        let (hosts, sessions) = planner.virtual_hosts(&mut output)?;
        for planned in hosts {
            let host = OutboundHost { planned, listener_port: port, attempt_count: headers.attempt_count, sessions };
            message = if hooked {
                message.hole(VIRTUAL_HOSTS, CallRef::new("routes", "virtual-host", host.to_args()).hooked(HOOK))
            } else {
                message.field(VIRTUAL_HOSTS, host.encode())
            };
        }
    }
    if parsed.sniffed.is_none() {
        let last = last_host(ctx, headers)?;
        message = if hooked {
            message.hole(VIRTUAL_HOSTS, CallRef::new("routes", "catch-all", [last.name]).hooked(HOOK))
        } else {
            message.field(VIRTUAL_HOSTS, Message::of(&last))
        };
    }
    output.item(Item::new(route_name, message.fields(&after_hosts())));
    Ok(output)
}

/// The fields that follow the virtual hosts, at gateways too.
pub fn after_hosts() -> envoy::RouteConfiguration {
    envoy::RouteConfiguration {
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(MAX_DIRECT_RESPONSE_BODY),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// `virtual-host` ARGS: a virtual host by itself, for plugins.
pub fn virtual_host(args: &[&str]) -> Result<Output, Failure> {
    let host = OutboundHost::of_args(args)?;
    let mut output = Output::empty();
    output.item(Item::new(host.planned.name.clone(), host.encode()));
    Ok(output)
}

/// `catch-all` NAME: the last virtual host by itself, for plugins.
pub fn catch_all(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let last = last_host(ctx, ProxyHeaders::ask(ctx)?)?;
    let mut output = Output::empty();
    output.item(Item::new(last.name.clone(), Message::of(&last)));
    Ok(output)
}

fn last_host(ctx: &Ctx<'_>, headers: ProxyHeaders) -> Result<envoy::VirtualHost, Failure> {
    let policy: OutboundTrafficPolicy = ctx.derived("scope", "outbound-policy", &[])?.unwrap_or_default();
    // Only sidecars resolve unknown names; every other mode asks nothing of the proxy.
    let dynamic_dns = policy.mode > 1 && ctx.proxy("type").as_deref() == Some("sidecar");
    let mut last = catch_all::virtual_host(&policy, dynamic_dns, headers.forwarded_host);
    last.include_request_attempt_count = headers.attempt_count;
    Ok(last)
}

/// The egress listener that a route name belongs to: the one of its port, or of its socket, else the catch-all.
fn listener_for<'a>(egress: &'a EgressListeners, port: u32, route_name: &str) -> Option<&'a EgressListener> {
    egress.listeners.iter().find(|l| !l.has_port || (l.port == port && (port != 0 || l.bind == route_name)))
}

/// How many requests a virtual host's clients sent may be told upstream.
#[derive(Clone, Copy)]
pub struct ProxyHeaders {
    /// Attempts are counted in a header.
    pub attempt_count: bool,
    forwarded_host: bool,
}

impl ProxyHeaders {
    /// Asks.
    pub fn ask(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        let config = ctx.proxy_config(&["proxy_headers"])?;
        let headers = config.proxy_headers.unwrap_or_default();
        let attempts_disabled = headers.attempt_count.and_then(|h| h.disabled).unwrap_or_default();
        let forwarded_host = headers.x_forwarded_host.and_then(|h| h.enabled).unwrap_or_default();
        Ok(ProxyHeaders { attempt_count: !attempts_disabled, forwarded_host })
    }
}

/// Does the proxy want `X-Forwarded-Host` when an authority is rewritten?
pub fn forwards_host(ctx: &Ctx<'_>) -> Result<bool, Failure> {
    Ok(ProxyHeaders::ask(ctx)?.forwarded_host)
}

/// What the plan of a route configuration is made for.
struct Planner<'c, 'h> {
    ctx: &'c Ctx<'h>,
    /// Port of the listener, 0 for all.
    port: u32,
    /// Egress listener.
    index: &'c str,
    /// Name of a sniffed port.
    sniffed: Option<&'c str>,
    /// A Sidecar object decides what the listener sees.
    from_sidecar: bool,
}

impl Planner<'_, '_> {
    /// The virtual hosts in order, and whether services may have sticky sessions.
    fn virtual_hosts(&self, output: &mut Output) -> Result<(Vec<VirtualHost>, bool), Failure> {
        let services = self.services()?;
        let candidates = Candidates::new(&services, self.port);
        let virtual_services: VirtualServiceSummaries =
            self.ctx.derived("scope", "virtual-services", &[self.index])?.unwrap_or_default();
        let [absolute, sessions] =
            self.ctx.flags(["PILOT_ENABLE_ABSOLUTE_FQDN_VHOST_DOMAIN", "PILOT_ENABLE_PERSISTENT_SESSION_FILTER"])?;
        let answers = Answers {
            ctx: self.ctx,
            port: self.port,
            addresses: Addresses::ask(self.ctx, &candidates, self.port)?,
            absolute,
            dns_domain: match candidates.iter().next() {
                Some(_) => self.ctx.proxy("dns-domain").unwrap_or_default(),
                None => String::new(),
            },
        };
        let mut hosts =
            plan(&candidates, &virtual_services.virtual_services, self.port, &answers, &mut output.diagnostics);
        if let Some(name) = self.sniffed {
            keep_sniffed(&mut hosts, name);
        }
        Ok((hosts, sessions))
    }

    /// The services that can have a virtual host here. For a sniffed port those of its host: only virtual hosts with that
    /// domain are kept, and no other service can get in their way, because a service's own name is never given away.
    fn services(&self) -> Result<Vec<ServiceSummary>, Failure> {
        let listed = || -> Result<Vec<ServiceSummary>, Failure> {
            let found: Option<ServiceSummaries> = self.ctx.derived("scope", "services", &[self.index])?;
            Ok(found.unwrap_or_default().services)
        };
        let Some(host) = self.sniffed.map(host_of) else { return listed() };
        // Without a Sidecar the listener sees all that is visible, so the one service can be asked for.
        if !self.from_sidecar {
            let keys: Strings = self.ctx.derived("scope", "service-key", &[host])?.unwrap_or_default();
            let Some(key) = keys.values.first() else { return Ok(Vec::new()) };
            return Ok(self.ctx.service(key)?.map(summary).into_iter().collect());
        }
        let mut services = listed()?;
        services.retain(|s| s.host.eq_ignore_ascii_case(host) || aliases(&s.aliases).any(|alias| alias == host));
        Ok(services)
    }
}

/// What of a service matters to its virtual hosts.
fn summary(service: Service) -> ServiceSummary {
    ServiceSummary {
        host: service.host,
        namespace: service.namespace,
        name: service.name,
        ports: service.ports,
        resolution: service.resolution,
        address: service.address,
        addresses: service.addresses,
        registry: service.registry,
        aliases: service.aliases,
        auto_allocated_addresses: service.auto_allocated_addresses,
        ..Default::default()
    }
}

/// Answers what the plan of virtual hosts asks.
struct Answers<'c, 'h> {
    ctx: &'c Ctx<'h>,
    port: u32,
    addresses: Addresses,
    absolute: bool,
    dns_domain: String,
}

impl Questions for Answers<'_, '_> {
    fn has_routes(&self, virtual_service: &VirtualServiceSummary) -> bool {
        let key = format!("{}/{}", virtual_service.namespace, virtual_service.name);
        self.ctx.derived_exists("routes", "virtual-service", &[&key, &self.port.to_string()])
    }

    fn proxy_in(&self, namespace: &str) -> bool {
        self.ctx.proxy_in_namespaces(&[namespace]).is_some()
    }

    fn domains(&self, candidate: &Candidate<'_>, service_port: u32) -> Vec<Domain> {
        let port = (self.port == 0).then_some(service_port);
        let naming = Naming { dns_domain: &self.dns_domain, absolute: self.absolute, port };
        let service = candidate.service;
        // Endpoints of headless services are called by names of their own, too.
        let headless = service.resolution() == Resolution::Passthrough && service.registry == "Kubernetes";
        let hosts = std::iter::once(candidate.host.as_str()).chain(aliases(&service.aliases));
        naming.of_service(hosts, headless, &self.addresses.of(service))
    }
}

/// Hosts of aliases, which are given as keys.
fn aliases(keys: &[String]) -> impl Iterator<Item = &str> {
    keys.iter().map(|key| key.split_once('/').map_or(key.as_str(), |(_, host)| host))
}

fn host_of(route_name: &str) -> &str {
    route_name.split_once(':').map_or(route_name, |(host, _)| host)
}

/// A sniffed port serves one host, whatever the Host header says.
fn keep_sniffed(hosts: &mut Vec<VirtualHost>, route_name: &str) {
    let host = host_of(route_name);
    hosts.retain(|h| h.domains.iter().any(|d| d == route_name || d == host));
    if let [only] = hosts.as_mut_slice() {
        only.domains = vec!["*".to_owned()];
    }
}

/// A planned virtual host with what its encoding depends on.
struct OutboundHost {
    planned: VirtualHost,
    /// Port of the listener, 0 for all.
    listener_port: u32,
    attempt_count: bool,
    /// Services may have sticky sessions.
    sessions: bool,
}

impl OutboundHost {
    /// The message, with holes for its routes and, where services may have them, its sticky sessions.
    fn encode(self) -> Message {
        let OutboundHost { planned, listener_port, attempt_count, sessions } = self;
        let VirtualHost { name, domains, port, routes, service } = planned;
        let routes = match &routes {
            Routes::VirtualService(key) => {
                CallRef::new("routes", "virtual-service", [key.clone(), listener_port.to_string()])
            }
            Routes::Service { key, host } => {
                let mut args = vec![key.clone(), port.to_string()];
                // Only a host with capitals is not as its key has it.
                if !key.ends_with(host.as_str()) {
                    args.push(host.clone());
                }
                CallRef::new("routes", "service-default", args)
            }
        };
        let message = Message::of(&envoy::VirtualHost { name, domains, ..Default::default() })
            .hole(3, routes.hooked("routes"))
            .fields(&envoy::VirtualHost { include_request_attempt_count: attempt_count, ..Default::default() });
        match service {
            Some(key) if sessions => message.splice(CallRef::new("routes", "session", [key])),
            _ => message,
        }
    }

    /// As arguments of `virtual-host`: name, ports of listener and service, `attempt-count` and `sessions` where they hold, the
    /// service's key or nothing, the host of default routes or nothing, the key that routes come from, the domains.
    fn to_args(&self) -> Vec<String> {
        let VirtualHost { name, domains, port, routes, service } = &self.planned;
        let flag = |on: bool, name: &str| if on { name.to_owned() } else { String::new() };
        let (host, key) = match routes {
            Routes::VirtualService(key) => (String::new(), key.clone()),
            Routes::Service { key, host } => (host.clone(), key.clone()),
        };
        let mut args = vec![
            name.clone(),
            self.listener_port.to_string(),
            port.to_string(),
            flag(self.attempt_count, "attempt-count"),
            flag(self.sessions, "sessions"),
            service.clone().unwrap_or_default(),
            host,
            key,
        ];
        args.extend(domains.iter().cloned());
        args
    }

    fn of_args(args: &[&str]) -> Result<Self, Failure> {
        let [name, listener_port, port, attempt_count, sessions, service, host, key, domains @ ..] = args else {
            return Err(Failure::BadArguments(format!("virtual-host({})", args.join(", "))));
        };
        let key = (*key).to_owned();
        let routes = match *host {
            "" => Routes::VirtualService(key),
            host => Routes::Service { key, host: host.to_owned() },
        };
        let planned = VirtualHost {
            name: (*name).to_owned(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            port: crate::number(port)?,
            routes,
            service: (!service.is_empty()).then(|| (*service).to_owned()),
        };
        Ok(OutboundHost {
            planned,
            listener_port: crate::number(listener_port)?,
            attempt_count: !attempt_count.is_empty(),
            sessions: !sessions.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, outline, whole};
    use trysail_sdk::facts::Port;
    use trysail_sdk::proto::istio::networking::v1alpha3::outbound_traffic_policy::Mode;

    fn service(host: &str, port: u32, address: &str) -> ServiceSummary {
        ServiceSummary {
            host: host.into(),
            namespace: "shop".into(),
            name: host.split('.').next().unwrap_or_default().into(),
            registry: "Kubernetes".into(),
            address: address.into(),
            ports: vec![Port { port, protocol: Protocol::Http.into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn shop() -> Fake {
        let services = ServiceSummaries {
            services: vec![
                service("web.shop.svc.cluster.local", 80, "10.0.0.1"),
                service("cart.shop.svc.cluster.local", 80, "10.0.0.2"),
            ],
        };
        let virtual_service = VirtualServiceSummary {
            namespace: "shop".into(),
            name: "cart".into(),
            hosts: vec!["cart.shop.svc.cluster.local".into()],
            has_http: true,
            ..Default::default()
        };
        let policy = OutboundTrafficPolicy { mode: Mode::AllowAny.into(), egress_proxy: None };
        Fake::default()
            .answer(
                "derived",
                &["scope", "egress"],
                &EgressListeners { listeners: vec![EgressListener::default()], ..Default::default() },
            )
            .answer("derived", &["scope", "services", "0"], &services)
            .answer(
                "derived",
                &["scope", "virtual-services", "0"],
                &VirtualServiceSummaries { virtual_services: vec![virtual_service] },
            )
            .answer("derived", &["scope", "outbound-policy"], &policy)
            .text("proxy", &["dns-domain"], "shop.svc.cluster.local")
            .text("proxy", &["ip-families"], "ipv4")
    }

    #[test]
    fn plugins_see_every_virtual_host_with_the_same_bytes() {
        let with_routes = || shop().text("derived-exists", &["routes", "virtual-service", "shop/cart", "80"], "");
        let whole = |fake: Fake| whole(&fake, &fake.run("config", &["80"]));
        let (plain, none) = whole(with_routes());
        let (hooked, n_hooked) = whole(with_routes().text("hooked", &[HOOK], ""));
        assert_eq!((none, n_hooked), (0, 3));
        assert_eq!(hooked, plain);
    }

    #[test]
    fn names() {
        let name = |text| RouteName::parse(text).map(|n| (n.port, n.sniffed.is_some()));
        assert_eq!(name("80"), Some((80, false)));
        assert_eq!(name("a.test:80"), Some((80, true)));
        assert_eq!(name("http_proxy"), Some((0, false)));
        assert_eq!(name("unix:///run/a.sock"), Some((0, false)));
        assert_eq!(name("https"), None);
    }

    #[test]
    fn a_port_has_all_its_hosts() {
        let fake = shop().text("derived-exists", &["routes", "virtual-service", "shop/cart", "80"], "");
        let outline = outline(&fake.run("config", &["80"]));
        assert_eq!(
            outline.hosts,
            [
                "cart.shop.svc.cluster.local:80 [cart.shop.svc.cluster.local cart cart.shop.svc cart.shop 10.0.0.2] virtual-service(shop/cart, 80)",
                "web.shop.svc.cluster.local:80 [web.shop.svc.cluster.local web web.shop.svc web.shop 10.0.0.1] service-default(shop/web.shop.svc.cluster.local, 80)",
                "allow_any [*] inline",
            ]
        );
        assert!(outline.configuration.ignore_port_in_host_matching);
    }

    #[test]
    fn a_sniffed_port_has_one_host() {
        let host = "web.shop.svc.cluster.local";
        let key = format!("shop/{host}");
        let ports = vec![Port { port: 80, ..Default::default() }];
        let service = Service { host: host.into(), namespace: "shop".into(), ports, ..Default::default() };
        let fake = shop()
            .answer("derived", &["scope", "service-key", host], &Strings { values: vec![key.clone()] })
            .answer("service", &[&key], &service);
        let outline = outline(&fake.run("config", &[&format!("{host}:80")]));
        assert_eq!(
            outline.hosts,
            ["web.shop.svc.cluster.local:80 [*] service-default(shop/web.shop.svc.cluster.local, 80)"]
        );
    }

    #[test]
    fn unknown_names_are_answered() {
        let outline = outline(&Fake::default().run("config", &["nonsense"]));
        assert!(outline.hosts.is_empty());
        assert_eq!(outline.configuration.validate_clusters, Some(false));
    }

    #[test]
    fn unknown_hosts_are_blocked_without_a_policy() {
        let outline = outline(&Fake::default().run("config", &["81"]));
        assert_eq!(outline.hosts, ["block_all [*] inline"]);
    }
}
