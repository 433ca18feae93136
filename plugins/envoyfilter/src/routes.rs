//! Patches of route configurations, their virtual hosts, and the routes in those.

use trysail_sdk::facts::{MergedGateway, PatchScope};
use trysail_sdk::patching::Context;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, patch::Operation, route_configuration_match::route_match::Action,
};
use trysail_sdk::{Ctx, Failure};

use crate::clusters::Named;
use crate::listeners::of;
use crate::patch::{Notes, Patch, no_such_operation};
use crate::wire::{self, Fields};

/// RouteConfiguration.virtual_hosts.
pub const VIRTUAL_HOSTS: u32 = 2;
/// VirtualHost.domains.
pub const DOMAINS: u32 = 2;
/// VirtualHost.routes.
pub const ROUTES: u32 = 3;
/// Route.name.
pub const ROUTE_NAME: u32 = 14;
/// The fields of Route.action.
pub const ACTIONS: [u32; 5] = [2, 3, 7, 17, 18];

/// By route configuration of a gateway the ports of its servers as written, which a patch may mean.
pub fn server_ports(ctx: &Ctx<'_>) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let merged: MergedGateway = ctx.derived("scope", "merged-gateway", &[])?.unwrap_or_default();
    let of_routes = |routes: trysail_sdk::facts::GatewayRoutes| {
        let ports = routes.servers.iter().map(|server| server.port).collect();
        (routes.name, ports)
    };
    Ok(merged.routes.into_iter().map(of_routes).collect())
}

/// What of a route configuration patches can match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Ports that it may be meant by.
    pub ports: Vec<u32>,
    /// Of a gateway's HTTPS server: the name of its port.
    pub port_name: String,
    /// The Gateway, `namespace/name`.
    pub gateway: String,
}

impl Seen {
    /// Looks at a name. `ports` are those of a gateway's servers by route configuration.
    pub fn of(name: &str, context: Context, ports: &[(String, Vec<u32>)]) -> Self {
        let mut seen = Seen { name: name.to_owned(), ..Default::default() };
        if context != Context::Gateway {
            let inbound = name.starts_with("inbound");
            let port = if inbound { Some(Named::parse(name).port) } else { name.parse().ok() };
            seen.ports = vec![port.unwrap_or_default()];
            return seen;
        }
        let (port, https) = at_gateway(name);
        if let Some([port_name, gateway, namespace]) = https {
            seen.port_name = port_name.to_owned();
            seen.gateway = format!("{namespace}/{gateway}");
        }
        // Several names may have one port; what all their servers say counts for each.
        let same = ports.iter().filter(|(name, _)| at_gateway(name).0 == port);
        seen.ports = same.flat_map(|(_, ports)| ports.clone()).collect();
        if seen.ports.is_empty() {
            seen.ports = vec![port];
        }
        seen
    }

    fn matches(&self, patch: &Patch<'_>, context: Context) -> bool {
        let Some(wanted) = patch.routes() else { return true };
        let is = |wanted: &str, own: &str| wanted.is_empty() || wanted == own;
        let of_gateway = context != Context::Gateway
            || (is(&wanted.port_name, &self.port_name) && is(&wanted.gateway, &self.gateway));
        is(&wanted.name, &self.name)
            && of_gateway
            && (wanted.port_number == 0 || self.ports.contains(&wanted.port_number))
    }
}

/// What the name of a gateway's route configuration says: `http.PORT` or `https.PORT.NAME.GATEWAY.NAMESPACE`.
fn at_gateway(name: &str) -> (u32, Option<[&str; 3]>) {
    if let Some(port) = name.strip_prefix("http.") {
        return (port.parse().unwrap_or_default(), None);
    }
    let rest = name.strip_prefix("https.").unwrap_or_default();
    match rest.split('.').collect::<Vec<_>>()[..] {
        [port, name, gateway, namespace] => (port.parse().unwrap_or_default(), Some([name, gateway, namespace])),
        _ => (0, None),
    }
}

/// The route configuration after the patches.
pub fn apply(
    patches: &[Patch<'_>],
    context: Context,
    ports: &[(String, Vec<u32>)],
    routes: &[u8],
    notes: &mut Notes,
) -> Vec<u8> {
    let mut routes = routes.to_vec();
    for patch in of(patches, ApplyTo::RouteConfiguration) {
        if !Seen::of(&wire::name_of(&routes), context, ports).matches(patch, context) {
            continue;
        }
        if !patch.merges() {
            notes.refused(patch, no_such_operation(patch));
            continue;
        }
        let merged = patch.merged(&routes);
        notes.applied(patch, merged != routes);
        routes = merged;
    }
    let mut fields = Fields::parse(&routes);
    let seen = Seen::of(&fields.text(1), context, ports);
    let concerned: Vec<&Patch<'_>> = patches.iter().filter(|patch| seen.matches(patch, context)).collect();
    let before = fields.list(VIRTUAL_HOSTS);
    let mut removed: Vec<String> = Vec::new();
    let mut hosts = Vec::with_capacity(before.len());
    for host in &before {
        match patched_host(&concerned, host, notes) {
            Ok(host) => hosts.push(host),
            Err(name) => removed.push(name),
        }
    }
    let adds = |patch: &&&Patch<'_>| patch.apply_to == ApplyTo::VirtualHost && patch.operation == Operation::Add;
    for patch in concerned.iter().filter(adds) {
        hosts.push(patch.value().to_vec());
        notes.applied(patch, true);
    }
    // A name that is removed stays so, whoever adds it.
    hosts.retain(|host| !removed.contains(&wire::name_of(host)));
    if hosts == before {
        return routes;
    }
    fields.set_list(VIRTUAL_HOSTS, hosts);
    fields.encode()
}

fn host_matches(patch: &Patch<'_>, host: &[u8]) -> bool {
    let Some(wanted) = patch.virtual_host() else { return true };
    let host = Fields::parse(host);
    (wanted.name.is_empty() || wanted.name == host.text(1))
        && (wanted.domain_name.is_empty() || host.texts(DOMAINS).contains(&wanted.domain_name))
}

/// The virtual host after the patches, or its name if one removes it.
fn patched_host(patches: &[&Patch<'_>], host: &[u8], notes: &mut Notes) -> Result<Vec<u8>, String> {
    let mut host = host.to_vec();
    for patch in patches.iter().filter(|patch| patch.apply_to == ApplyTo::VirtualHost) {
        if patch.operation == Operation::Add || !host_matches(patch, &host) {
            continue;
        }
        let changed = match patch.operation {
            Operation::Remove => {
                notes.applied(patch, true);
                return Err(wire::name_of(&host));
            }
            Operation::Replace => patch.value().to_vec(),
            _ if patch.merges() => patch.merged(&host),
            _ => {
                notes.refused(patch, no_such_operation(patch));
                continue;
            }
        };
        notes.applied(patch, changed != host);
        host = changed;
    }
    let concerned: Vec<&Patch<'_>> = patches
        .iter()
        .copied()
        .filter(|patch| patch.apply_to == ApplyTo::HttpRoute && host_matches(patch, &host))
        .collect();
    if concerned.is_empty() {
        return Ok(host);
    }
    let mut fields = Fields::parse(&host);
    let before = fields.list(ROUTES);
    // A removed route keeps its place until all are inserted.
    let mut routes: Vec<Option<Vec<u8>>> = before.iter().map(|route| patched_route(&concerned, route, notes)).collect();
    for patch in &concerned {
        insert_route(patch, &mut routes, notes);
    }
    let routes: Vec<Vec<u8>> = routes.into_iter().flatten().collect();
    if routes != before {
        fields.set_list(ROUTES, routes);
        host = fields.encode();
    }
    Ok(host)
}

fn route_matches(patch: &Patch<'_>, route: Option<&Vec<u8>>) -> bool {
    let Some(wanted) = patch.route() else { return true };
    let Some(route) = route else { return false };
    let route = Fields::parse(route);
    if !wanted.name.is_empty() && wanted.name != route.text(ROUTE_NAME) {
        return false;
    }
    match (wanted.action(), route.set_of(&ACTIONS)) {
        (Action::Any, _) => true,
        (wanted, Some(2)) => wanted == Action::Route,
        (wanted, Some(3)) => wanted == Action::Redirect,
        (wanted, Some(7)) => wanted == Action::DirectResponse,
        // Of other actions, and of none, Istio takes any.
        _ => true,
    }
}

/// The route after merges; none if a patch removes it.
fn patched_route(patches: &[&Patch<'_>], route: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let mut route = route.to_vec();
    for patch in patches.iter().filter(|patch| patch.operation == Operation::Remove || patch.merges()) {
        if !route_matches(patch, Some(&route)) {
            continue;
        }
        if patch.operation == Operation::Remove {
            notes.applied(patch, true);
            return None;
        }
        let merged = patch.merged(&route);
        notes.applied(patch, merged != route);
        route = merged;
    }
    Some(route)
}

fn insert_route(patch: &Patch<'_>, routes: &mut Vec<Option<Vec<u8>>>, notes: &mut Notes) {
    let named = patch.route().is_some();
    let found = routes.iter().position(|route| route_matches(patch, route.as_ref()));
    let at = match patch.operation {
        Operation::Add => Some(routes.len()),
        Operation::InsertAfter if !named => Some(routes.len()),
        Operation::InsertBefore | Operation::InsertFirst if !named => Some(0),
        Operation::InsertAfter => found.map(|at| at + 1),
        Operation::InsertBefore => found,
        Operation::InsertFirst => found.map(|_| 0),
        Operation::Remove => return,
        _ if patch.merges() => return,
        _ => return notes.refused(patch, no_such_operation(patch)),
    };
    if let Some(at) = at {
        routes.insert(at, Some(patch.value().to_vec()));
        notes.applied(patch, true);
    }
}

/// Notes the route configurations that a patch matches; false if that can be any.
pub fn cover(patch: &Patch<'_>, context: Context, scope: &mut PatchScope) -> bool {
    let Some(wanted) = patch.routes() else { return false };
    if !wanted.name.is_empty() {
        scope.names.push(wanted.name.clone());
    } else if wanted.port_number != 0 && context != Context::Gateway {
        // A gateway's ports may be meant as its Service has them.
        scope.ports.push(wanted.port_number);
    } else {
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{matching, patch, route};
    use trysail_sdk::facts::EnvoyFilterPatch;
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::envoy::config::route::v3::{RedirectAction, Route, RouteConfiguration, VirtualHost, route};

    fn named(name: &str) -> Route {
        let action = route::Action::Redirect(RedirectAction::default());
        Route { name: name.into(), action: Some(action), ..Default::default() }
    }

    fn configuration(routes: &[&str]) -> RouteConfiguration {
        let routes = routes.iter().map(|name| named(name)).collect();
        let host = VirtualHost { name: "h".into(), domains: vec!["d".into()], routes, ..Default::default() };
        RouteConfiguration { name: "80".into(), virtual_hosts: vec![host], ..Default::default() }
    }

    fn run(patches: &[EnvoyFilterPatch], before: &RouteConfiguration) -> RouteConfiguration {
        let patches = Patch::all(patches).expect("patches");
        let made = apply(&patches, Context::Outbound, &[], &before.encode_to_vec(), &mut Notes::default());
        RouteConfiguration::decode(made.as_slice()).expect("routes")
    }

    #[test]
    fn routes_are_arranged() {
        let at = |operation, wanted: Option<&str>| {
            let mut patch = patch(ApplyTo::HttpRoute, operation, &named("x"));
            if let Some(wanted) = wanted {
                patch = matching(route(wanted), patch);
            }
            let made = run(&[patch], &configuration(&["a", "b"]));
            made.virtual_hosts[0].routes.iter().map(|route| route.name.as_str()).collect::<String>()
        };
        let b = Some("b");
        assert_eq!((at(Operation::InsertBefore, b), at(Operation::InsertAfter, b)), ("axb".into(), "abx".into()));
        assert_eq!((at(Operation::InsertFirst, b), at(Operation::InsertFirst, Some("z"))), ("xab".into(), "ab".into()));
        assert_eq!((at(Operation::InsertFirst, None), at(Operation::Add, b)), ("xab".into(), "abx".into()));
        assert_eq!((at(Operation::Remove, b), at(Operation::Remove, None)), ("a".into(), "".into()));
    }

    #[test]
    fn virtual_hosts_are_replaced_before_their_routes_are_patched() {
        let other = VirtualHost { name: "o".into(), domains: vec!["e".into()], ..Default::default() };
        let replace = patch(ApplyTo::VirtualHost, Operation::Replace, &other);
        let add = patch(ApplyTo::HttpRoute, Operation::Add, &named("x"));
        let made = run(&[add, replace], &configuration(&["a"]));
        assert_eq!((made.virtual_hosts[0].name.as_str(), made.virtual_hosts[0].routes.len()), ("o", 1));
    }

    #[test]
    fn a_removed_name_stays_removed() {
        let again = VirtualHost { name: "h".into(), ..Default::default() };
        let patches =
            [patch(ApplyTo::VirtualHost, Operation::Remove, &()), patch(ApplyTo::VirtualHost, Operation::Add, &again)];
        assert!(run(&patches, &configuration(&[])).virtual_hosts.is_empty());
    }

    #[test]
    fn names_at_gateways() {
        let ports = [("https.443.web.gw.ns".to_owned(), vec![443]), ("http.8080".to_owned(), vec![80, 8080])];
        let seen = Seen::of("https.443.web.gw.ns", Context::Gateway, &ports);
        assert_eq!((seen.port_name.as_str(), seen.gateway.as_str(), &*seen.ports), ("web", "ns/gw", &[443][..]));
        assert_eq!(Seen::of("http.8080", Context::Gateway, &ports).ports, [80, 8080]);
        assert_eq!(Seen::of("http.81", Context::Gateway, &ports).ports, [81]);
        assert_eq!(Seen::of("inbound|8080||", Context::Inbound, &[]).ports, [8080]);
        assert_eq!(Seen::of("a:80", Context::Outbound, &[]).ports, [0]);
    }
}
