//! `config` at a gateway: the plan of the route configuration that servers of one port, or one HTTPS server, share.
//!
//! Each host that a server and a VirtualService have in common becomes a virtual host. Where several VirtualServices have
//! one host, all their routes are in it, in the order of the servers and of the VirtualServices, those that take
//! everything last. Hosts with the same routes share one virtual host. A server that redirects to HTTPS does so for all its
//! hosts, with or without routes; a configuration without any host answers 404.
//!
//! Names that no server has are answered by an empty configuration, because Envoy waits for an answer. Nothing rejects.

use std::collections::{BTreeMap, HashMap};

use trysail_sdk::facts::{GatewayRoutes, GatewayServer, Strings, VirtualServiceSummaries, VirtualServiceSummary};
use trysail_sdk::proto::envoy::config::route::v3 as envoy;
use trysail_sdk::proto::istio::networking::v1alpha3::VirtualService;
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output, hosts};

use crate::config::{HOOK, ProxyHeaders, VIRTUAL_HOSTS, after_hosts};
use crate::destination;
use crate::domains::with_port;
use crate::virtual_service::Part;

/// The RouteConfiguration of a gateway's route name: one item.
pub fn route_configuration(ctx: &Ctx<'_>, route_name: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some(routes) = servers_of(ctx, route_name)? else {
        // Right after a server went, Envoy still asks for the routes of the listener that it drains.
        let empty = envoy::RouteConfiguration {
            name: route_name.to_owned(),
            validate_clusters: Some(false),
            ..Default::default()
        };
        output.item(Item::new(route_name, Message::of(&empty)));
        return Ok(output);
    };
    let hooked = ctx.hooked(HOOK);
    let mut message = Message::of(&envoy::RouteConfiguration { name: route_name.to_owned(), ..Default::default() });
    for (name, host) in virtual_hosts(ctx, &routes)? {
        message = if hooked {
            message.hole(VIRTUAL_HOSTS, CallRef::new("routes", "gateway-host", [&name, route_name]).hooked(HOOK))
        } else {
            message.field(VIRTUAL_HOSTS, host)
        };
    }
    output.item(Item::new(route_name, message.fields(&after_hosts())));
    Ok(output)
}

/// `gateway-host` NAME ROUTE-NAME: a virtual host by itself, for plugins.
pub fn virtual_host(ctx: &Ctx<'_>, name: &str, route_name: &str) -> Result<Output, Failure> {
    let mut output = Output::empty();
    if let Some(routes) = servers_of(ctx, route_name)? {
        let found = virtual_hosts(ctx, &routes)?.into_iter().find(|(found, _)| found == name);
        found.into_iter().for_each(|(name, host)| output.item(Item::new(name, host)));
    }
    Ok(output)
}

/// The servers that share a route name; none if no server has it.
fn servers_of(ctx: &Ctx<'_>, route_name: &str) -> Result<Option<GatewayRoutes>, Failure> {
    ctx.derived_item("scope", "gateway-routes", route_name, &[])
}

/// The virtual hosts of a route configuration with their names, sorted; one that leads nowhere if there is no other.
fn virtual_hosts(ctx: &Ctx<'_>, routes: &GatewayRoutes) -> Result<Vec<(String, Message)>, Failure> {
    let attempt_count = ProxyHeaders::ask(ctx)?.attempt_count;
    let [collapses, sessions] =
        ctx.flags(["PILOT_ENABLE_ROUTE_COLLAPSE_OPTIMIZATION", "PILOT_ENABLE_PERSISTENT_SESSION_FILTER"])?;
    let mut plan =
        Plan { ctx, http3: routes.advertises_http3, sessions, made: BTreeMap::new(), hosts: BTreeMap::new() };
    for server in &routes.servers {
        plan.server(server)?;
    }
    let mut hosts: Vec<VirtualHost> = if collapses { collapse(plan.hosts) } else { plan.hosts.into_values().collect() };
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    if hosts.is_empty() {
        let name = with_port("blackhole", routes.servers.first().map_or(0, |server| server.port));
        let nowhere = envoy::VirtualHost { name: name.clone(), domains: vec!["*".to_owned()], ..Default::default() };
        return Ok(vec![(name, Message::of(&nowhere))]);
    }
    Ok(hosts.into_iter().map(|host| (host.name.clone(), encode(host, attempt_count))).collect())
}

/// Routes of one VirtualService at one gateway: the arguments of a call but for the part.
type Rules = [String; 4];

/// A virtual host as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VirtualHost {
    name: String,
    domains: Vec<String>,
    rules: Vec<Rules>,
    /// Requests without TLS are redirected.
    redirects: bool,
    /// Key of the service with the sticky sessions of the host.
    session: Option<String>,
}

struct Plan<'c, 'h> {
    ctx: &'c Ctx<'h>,
    http3: bool,
    /// Services may have sticky sessions.
    sessions: bool,
    /// By gateway and VirtualService. The first server of a gateway decides for all of them, as in istiod.
    made: BTreeMap<(String, String), Rules>,
    /// By host.
    hosts: BTreeMap<String, VirtualHost>,
}

impl Plan<'_, '_> {
    fn server(&mut self, server: &GatewayServer) -> Result<(), Failure> {
        let bound: Option<VirtualServiceSummaries> =
            self.ctx.derived("scope", "gateway-virtual-services", &[&server.gateway])?;
        for rule in bound.unwrap_or_default().virtual_services {
            let common = common_hosts(&server.hosts, &rule);
            if common.is_empty() {
                continue;
            }
            let Some(rules) = self.rules(server, &rule) else { continue };
            for host in common {
                let host = host.to_ascii_lowercase();
                if let Some(known) = self.hosts.get_mut(&host) {
                    known.rules.push(rules.clone());
                    known.redirects |= server.https_redirect;
                    continue;
                }
                let session = if self.sessions { self.session(&rule, &host)? } else { None };
                self.add(server, &host, vec![rules.clone()], session);
            }
        }
        if server.https_redirect {
            for host in &server.hosts {
                let host = host.to_ascii_lowercase();
                match self.hosts.get_mut(&host) {
                    Some(known) => known.redirects = true,
                    None => self.add(server, &host, Vec::new(), None),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, server: &GatewayServer, host: &str, rules: Vec<Rules>, session: Option<String>) {
        let made = VirtualHost {
            name: with_port(host, server.port),
            domains: vec![host.to_owned()],
            rules,
            redirects: server.https_redirect,
            session,
        };
        self.hosts.insert(host.to_owned(), made);
    }

    /// The routes of a VirtualService at a server's gateway; none if it has no route there.
    fn rules(&mut self, server: &GatewayServer, rule: &VirtualServiceSummary) -> Option<Rules> {
        let key = format!("{}/{}", rule.namespace, rule.name);
        let at = (server.gateway.clone(), key.clone());
        if let Some(known) = self.made.get(&at) {
            return Some(known.clone());
        }
        let flag = |set: bool, letter: &'static str| if set { letter } else { "" };
        let flags = format!("{}{}", flag(server.has_tls, "t"), flag(self.http3, "3"));
        let rules = [key, server.port.to_string(), server.gateway.clone(), flags];
        let [key, port, gateway, flags] = &rules;
        let all = Part::All.text();
        if !self.ctx.derived_exists("routes", "gateway-routes", &[key, port, gateway, flags, all]) {
            return None;
        }
        self.made.insert(at, rules.clone());
        Some(rules)
    }

    /// The service whose sticky sessions a virtual host has: the one of its host, if the VirtualService leads there.
    fn session(&self, rule: &VirtualServiceSummary, host: &str) -> Result<Option<String>, Failure> {
        let key = format!("{}/{}", rule.namespace, rule.name);
        let Some((_, spec)) = self.ctx.object::<VirtualService>("VirtualService", &key)? else { return Ok(None) };
        let leads = spec.http.iter().any(|http| {
            let routes = http.route.iter().map(|route| route.destination.as_ref());
            let mirrors = http.mirrors.iter().map(|mirror| mirror.destination.as_ref());
            routes.chain(mirrors).chain([http.mirror.as_ref()]).flatten().any(|to| to.host == host)
        });
        if !leads {
            return Ok(None);
        }
        let keys: Strings = self.ctx.derived("scope", "service-key", &[host])?.unwrap_or_default();
        let of_proxy = keys.values.first().map_or("", String::as_str);
        let service = destination::seen_from(self.ctx, host, &rule.namespace, of_proxy)?;
        Ok(service.map(|service| format!("{}/{}", service.namespace, service.host)))
    }
}

/// Hosts that a server and a VirtualService have in common: of two that overlap the narrower one.
fn common_hosts(server: &[String], rule: &VirtualServiceSummary) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for own in server {
        let own = match own.split_once('/') {
            Some((namespace, name)) if namespace == rule.namespace || namespace == "*" => name,
            Some(_) => continue,
            None => own.as_str(),
        };
        for other in &rule.hosts {
            let narrower = if hosts::subset_of(own, other) {
                own
            } else if hosts::subset_of(other, own) {
                other
            } else {
                continue;
            };
            if !found.iter().any(|known| known == narrower) {
                found.push(narrower.to_owned());
            }
        }
    }
    found
}

/// Hosts with the same routes share a virtual host, named after the most specific one.
fn collapse(hosts: BTreeMap<String, VirtualHost>) -> Vec<VirtualHost> {
    let mut sorted: Vec<(String, VirtualHost)> = hosts.into_iter().collect();
    sorted.sort_by(|a, b| hosts::more_specific_first(&a.0, &b.0));
    let mut made: Vec<VirtualHost> = Vec::new();
    // Looked up, never walked.
    let mut known: HashMap<Vec<Rules>, usize> = HashMap::new();
    for (_, host) in sorted {
        let same = known.get(&host.rules).copied().filter(|at| made[*at].redirects == host.redirects);
        if let Some(at) = same {
            made[at].domains.extend(host.domains);
            continue;
        }
        known.insert(host.rules.clone(), made.len());
        made.push(host);
    }
    made
}

fn encode(host: VirtualHost, attempt_count: bool) -> Message {
    let VirtualHost { name, domains, rules, redirects, session } = host;
    let call = |rules: &Rules, part: Part| {
        let args = rules.iter().map(String::as_str).chain([part.text()]);
        CallRef::new("routes", "gateway-routes", args).hooked("routes")
    };
    let mut message = Message::of(&envoy::VirtualHost { name, domains, ..Default::default() });
    if let [only] = rules.as_slice() {
        message = message.hole(3, call(only, Part::All));
    } else {
        for part in [Part::Specific, Part::CatchAll] {
            for rules in &rules {
                message = message.hole(3, call(rules, part));
            }
        }
    }
    let require_tls = if redirects { envoy::virtual_host::TlsRequirementType::All } else { Default::default() };
    message = message.fields(&envoy::VirtualHost {
        require_tls: require_tls.into(),
        include_request_attempt_count: attempt_count,
        ..Default::default()
    });
    match session {
        Some(key) => message.splice(CallRef::new("routes", "session", [key])),
        None => message,
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::testing::{Fake, outline, whole};

    fn server(hosts: &[&str], redirect: bool) -> GatewayServer {
        GatewayServer {
            gateway: "ns/gw".into(),
            port: 80,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            has_tls: redirect,
            https_redirect: redirect,
            ..Default::default()
        }
    }

    fn rule(name: &str, hosts: &[&str]) -> VirtualServiceSummary {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        VirtualServiceSummary { namespace: "shop".into(), name: name.into(), hosts, ..Default::default() }
    }

    fn gateway(servers: Vec<GatewayServer>, bound: &[VirtualServiceSummary]) -> Fake {
        let routes = GatewayRoutes { name: "http.80".into(), servers, ..Default::default() };
        let bound_to_gateway = VirtualServiceSummaries { virtual_services: bound.to_vec() };
        let flags = ["PILOT_ENABLE_ROUTE_COLLAPSE_OPTIMIZATION", "PILOT_ENABLE_PERSISTENT_SESSION_FILTER"];
        let mut fake = Fake::default()
            .answer("derived-item", &["scope", "gateway-routes", "http.80"], &routes)
            .answer("derived", &["scope", "gateway-virtual-services", "ns/gw"], &bound_to_gateway)
            .answer("features", &flags, &Strings { values: vec!["true".into(), "false".into()] });
        for rule in bound {
            let key = format!("shop/{}", rule.name);
            fake = fake.text("derived-exists", &["routes", "gateway-routes", &key, "80", "ns/gw", "", "all"], "");
        }
        fake
    }

    fn planned(servers: Vec<GatewayServer>, bound: &[VirtualServiceSummary]) -> Vec<String> {
        let fake = gateway(servers, bound);
        outline(&route_configuration(&Ctx::new(&fake), "http.80").expect("a configuration")).hosts
    }

    #[test]
    fn plugins_see_the_virtual_hosts_with_the_same_bytes() {
        let rules = [rule("a", &["a.test", "b.test"]), rule("b", &["b.test"])];
        let made =
            |fake: Fake| whole(&fake, &route_configuration(&Ctx::new(&fake), "http.80").expect("a configuration"));
        let servers = || vec![server(&["*"], false)];
        let (plain, none) = made(gateway(servers(), &rules));
        let hooked = gateway(servers(), &rules).text("hooked", &[HOOK], "").text("proxy", &["type"], "router");
        let (hooked, n_hooked) = made(hooked);
        assert_eq!((none, n_hooked), (0, 2));
        assert_eq!(hooked, plain);
    }

    #[test]
    fn the_narrower_host_of_two_is_common() {
        let rule = rule("a", &["*.b.test", "c.test"]);
        let found = common_hosts(&["x.b.test".into(), "shop/*.test".into(), "other/*".into()], &rule);
        assert_eq!(found, ["x.b.test", "*.b.test", "c.test"]);
    }

    #[test]
    fn hosts_with_the_same_routes_share_a_virtual_host() {
        let found = planned(vec![server(&["*"], false)], &[rule("a", &["b.test", "a.test"])]);
        assert_eq!(found, ["a.test:80 [a.test b.test] gateway-routes(shop/a, 80, ns/gw, , all)"]);
    }

    #[test]
    fn routes_that_take_everything_come_last() {
        let found = planned(vec![server(&["*"], false)], &[rule("a", &["x.test"]), rule("b", &["x.test"])]);
        let call = |name: &str, part: &str| format!("gateway-routes(shop/{name}, 80, ns/gw, , {part})");
        let calls = [("a", "specific"), ("b", "specific"), ("a", "catch-all"), ("b", "catch-all")];
        let calls = calls.map(|(name, part)| call(name, part)).join(" ");
        assert_eq!(found, [format!("x.test:80 [x.test] {calls}")]);
    }

    #[test]
    fn a_redirect_needs_no_routes_and_nothing_is_answered_by_404() {
        let redirected = planned(vec![server(&["X.test"], true)], &[]);
        assert_eq!(redirected, ["x.test:80 [x.test] inline redirects"]);
        assert_eq!(planned(vec![server(&["x.test"], false)], &[]), ["blackhole:80 [*] inline"]);
    }
}
