//! What a patch that matches nothing could have been meant for.

use std::fmt;

use trysail_sdk::patching::Context;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, route_configuration_match::route_match::Action,
};

use crate::chains::{FILTERS, SeenChain, http_filters};
use crate::clusters::Named;
use crate::listeners::{self, DEFAULT_FILTER_CHAIN, FILTER_CHAINS, LISTENER_FILTERS};
use crate::patch::Patch;
use crate::routes::{self, DOMAINS, ROUTES, VIRTUAL_HOSTS};
use crate::wire::{self, Fields};

/// Fields of a match, by their paths, and what is there.
type Attributes = Vec<(&'static str, Vec<String>)>;

const CLUSTER: &str = "match.cluster.name";
const SERVICE: &str = "match.cluster.service";
const SUBSET: &str = "match.cluster.subset";
const CLUSTER_PORT: &str = "match.cluster.portNumber";
const LISTENER: &str = "match.listener.name";
const LISTENER_PORT: &str = "match.listener.portNumber";
const LISTENER_FILTER: &str = "match.listener.listenerFilter";
const CHAIN: &str = "match.listener.filterChain.name";
const SNI: &str = "match.listener.filterChain.sni";
const TRANSPORT: &str = "match.listener.filterChain.transportProtocol";
const ALPN: &str = "match.listener.filterChain.applicationProtocols";
const DESTINATION_PORT: &str = "match.listener.filterChain.destinationPort";
const FILTER: &str = "match.listener.filterChain.filter.name";
const SUB_FILTER: &str = "match.listener.filterChain.filter.subFilter.name";
const ROUTES_NAME: &str = "match.routeConfiguration.name";
const ROUTES_PORT: &str = "match.routeConfiguration.portNumber";
const PORT_NAME: &str = "match.routeConfiguration.portName";
const GATEWAY: &str = "match.routeConfiguration.gateway";
const HOST: &str = "match.routeConfiguration.vhost.name";
const DOMAIN: &str = "match.routeConfiguration.vhost.domainName";
const ROUTE: &str = "match.routeConfiguration.vhost.route.name";
const ACTION: &str = "match.routeConfiguration.vhost.route.action";

/// Something that a patch of a kind can match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    title: String,
    attributes: Attributes,
}

impl Candidate {
    fn new(title: impl Into<String>, attributes: Attributes) -> Self {
        Candidate { title: title.into(), attributes }
    }

    /// One more level: what is in it.
    fn inner(&self, title: &str, attributes: impl IntoIterator<Item = (&'static str, Vec<String>)>) -> Self {
        let mut all = self.attributes.clone();
        all.extend(attributes);
        Candidate { title: format!("{} / {title}", self.title), attributes: all }
    }

    /// All of them in a message.
    pub fn all(
        apply_to: ApplyTo,
        context: Context,
        ports: &[(String, Vec<u32>)],
        hosts: &[String],
        message: &[u8],
    ) -> Vec<Candidate> {
        let fields = Fields::parse(message);
        match apply_to {
            ApplyTo::Cluster => vec![cluster(&fields.text(1), hosts)],
            ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
                in_routes(apply_to, &routes::Seen::of(&fields.text(1), context, ports), &fields)
            }
            _ => in_listener(apply_to, &fields),
        }
    }
}

fn cluster(name: &str, hosts: &[String]) -> Candidate {
    let named = Named::parse(name);
    let services = named.hosts(hosts).into_iter().map(str::to_owned).collect();
    Candidate::new(
        format!("cluster {name}"),
        vec![
            (CLUSTER, vec![name.to_owned()]),
            (SERVICE, services),
            (SUBSET, vec![named.subset]),
            (CLUSTER_PORT, vec![named.port.to_string()]),
        ],
    )
}

fn in_listener(apply_to: ApplyTo, listener: &Fields<'_>) -> Vec<Candidate> {
    let seen = listeners::Seen::of(listener);
    let mut attributes = vec![(LISTENER, vec![seen.name.clone()])];
    let port_is_chains = seen.is_virtual() && apply_to != ApplyTo::Listener;
    if !port_is_chains {
        attributes.push((LISTENER_PORT, vec![seen.port.to_string()]));
    }
    let whole = Candidate::new(format!("listener {}", seen.name), attributes);
    match apply_to {
        ApplyTo::Listener => return vec![whole],
        ApplyTo::ListenerFilter => {
            let filters = listener.list(LISTENER_FILTERS);
            let names = filters.iter().map(|filter| wire::name_of(filter));
            return names
                .map(|name| whole.inner(&format!("listener filter {name}"), [(LISTENER_FILTER, vec![name.clone()])]))
                .collect();
        }
        _ => {}
    }
    let mut chains = listener.list(FILTER_CHAINS);
    chains.extend(listener.message(DEFAULT_FILTER_CHAIN).map(|chain| chain.into_owned()));
    let mut found = Vec::new();
    for chain in &chains {
        let fields = Fields::parse(chain);
        let seen = SeenChain::of(&fields);
        let port = seen.destination_port.to_string();
        let mut attributes = vec![
            (CHAIN, vec![seen.name.clone()]),
            (SNI, seen.server_names),
            (TRANSPORT, vec![seen.transport_protocol]),
            (ALPN, seen.application_protocols),
            (DESTINATION_PORT, vec![port.clone()]),
        ];
        if port_is_chains {
            attributes.push((LISTENER_PORT, vec![port]));
        }
        let chain = whole.inner(&format!("filter chain {:?}", seen.name), attributes);
        if apply_to == ApplyTo::FilterChain {
            found.push(chain);
            continue;
        }
        for filter in fields.list(FILTERS) {
            let name = wire::name_of(&filter);
            let of_filter = chain.inner(&name, [(FILTER, vec![name.clone()])]);
            if apply_to == ApplyTo::NetworkFilter {
                found.push(of_filter);
                continue;
            }
            let names = http_filters(&filter).unwrap_or_default().into_iter().map(|filter| wire::name_of(&filter));
            found.extend(names.map(|name| of_filter.inner(&name, [(SUB_FILTER, vec![name.clone()])])));
        }
    }
    found
}

fn in_routes(apply_to: ApplyTo, seen: &routes::Seen, fields: &Fields<'_>) -> Vec<Candidate> {
    let whole = Candidate::new(
        format!("route configuration {}", seen.name),
        vec![
            (ROUTES_NAME, vec![seen.name.clone()]),
            (ROUTES_PORT, seen.ports.iter().map(u32::to_string).collect()),
            (PORT_NAME, vec![seen.port_name.clone()]),
            (GATEWAY, vec![seen.gateway.clone()]),
        ],
    );
    if apply_to == ApplyTo::RouteConfiguration {
        return vec![whole];
    }
    let mut found = Vec::new();
    for host in fields.list(VIRTUAL_HOSTS) {
        let host = Fields::parse(&host);
        let name = host.text(1);
        let of_host = whole.inner(&format!("virtual host {name}"), [(HOST, vec![name]), (DOMAIN, host.texts(DOMAINS))]);
        if apply_to == ApplyTo::VirtualHost {
            found.push(of_host);
            continue;
        }
        for route in host.list(ROUTES) {
            let route = Fields::parse(&route);
            let action = match route.set_of(&routes::ACTIONS) {
                Some(2) => Action::Route,
                Some(3) => Action::Redirect,
                Some(7) => Action::DirectResponse,
                _ => Action::Any,
            };
            let name = route.text(routes::ROUTE_NAME);
            let attributes = [(ROUTE, vec![name.clone()]), (ACTION, vec![action.as_str_name().to_owned()])];
            found.push(of_host.inner(&format!("route {name:?}"), attributes));
        }
    }
    found
}

/// What a patch asks for.
fn wanted(patch: &Patch<'_>) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> = Vec::new();
    let mut text = |path, text: &str| {
        if !text.is_empty() {
            all.push((path, text.to_owned()));
        }
    };
    let number = |number: u32| if number == 0 { String::new() } else { number.to_string() };
    if let Some(cluster) = patch.cluster() {
        text(CLUSTER, &cluster.name);
        // A name is all that counts, where there is one.
        if cluster.name.is_empty() {
            text(SERVICE, &cluster.service);
            text(SUBSET, &cluster.subset);
            text(CLUSTER_PORT, &number(cluster.port_number));
        }
    }
    if let Some(listener) = patch.listener() {
        text(LISTENER, &listener.name);
        text(LISTENER_PORT, &number(listener.port_number));
    }
    text(LISTENER_FILTER, patch.listener_filter().unwrap_or_default());
    if let Some(chain) = patch.chain() {
        text(CHAIN, &chain.name);
        text(SNI, &chain.sni);
        text(TRANSPORT, &chain.transport_protocol);
        chain.application_protocols.split(',').for_each(|protocol| text(ALPN, protocol));
        text(DESTINATION_PORT, &number(chain.destination_port));
    }
    if let Some(filter) = patch.filter() {
        text(FILTER, &filter.name);
    }
    text(SUB_FILTER, patch.sub_filter().unwrap_or_default());
    if let Some(routes) = patch.routes() {
        text(ROUTES_NAME, &routes.name);
        text(ROUTES_PORT, &number(routes.port_number));
        text(PORT_NAME, &routes.port_name);
        text(GATEWAY, &routes.gateway);
    }
    if let Some(host) = patch.virtual_host() {
        text(HOST, &host.name);
        text(DOMAIN, &host.domain_name);
    }
    if let Some(route) = patch.route() {
        text(ROUTE, &route.name);
        if route.action() != Action::Any {
            text(ACTION, route.action().as_str_name());
        }
    }
    all
}

/// A candidate, and where it is not what the patch asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    title: String,
    /// Path of a field, what is there, and what the patch wants.
    differences: Vec<(&'static str, Vec<String>, String)>,
    distance: usize,
}

impl Nearest {
    /// The field of the patch to look at: the one that differs, if it is one.
    pub fn path(&self) -> String {
        match &self.differences[..] {
            [(path, _, _)] => (*path).to_owned(),
            _ => "match".to_owned(),
        }
    }

    fn rank(&self) -> (usize, usize) {
        (self.differences.len(), self.distance)
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        for (i, (path, there, wanted)) in self.differences.iter().enumerate() {
            let there: Vec<&str> = there.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
            let there = if there.is_empty() { "unset".to_owned() } else { there.join(", ") };
            let (lead, field) = (if i == 0 { ", whose" } else { " and" }, path.trim_start_matches("match."));
            write!(f, "{lead} {field} is {there} and not {wanted}")?;
        }
        Ok(())
    }
}

/// The candidate that comes nearest to what a patch asks for; the first of several.
pub fn find(patch: &Patch<'_>, candidates: impl Iterator<Item = Candidate>) -> Option<Nearest> {
    let wanted = wanted(patch);
    let judge = |candidate: Candidate| {
        let mut nearest = Nearest { title: candidate.title, differences: Vec::new(), distance: 0 };
        for (path, text) in &wanted {
            let there = candidate.attributes.iter().find(|(own, _)| own == path);
            let there = there.map(|(_, there)| there.clone()).unwrap_or_default();
            if !there.contains(text) {
                nearest.distance += there.iter().map(|own| distance(own, text)).min().unwrap_or(2 * text.len());
                nearest.differences.push((*path, there, text.clone()));
            }
        }
        nearest
    };
    candidates.map(judge).min_by_key(Nearest::rank)
}

/// The nearer of two.
pub fn better(one: Option<Nearest>, other: Option<Nearest>) -> Option<Nearest> {
    one.into_iter().chain(other).min_by_key(Nearest::rank)
}

/// What a patch applies to, in words.
pub fn words(apply_to: ApplyTo) -> &'static str {
    match apply_to {
        ApplyTo::Cluster => "clusters",
        ApplyTo::Listener => "listeners",
        ApplyTo::ListenerFilter => "listener filters",
        ApplyTo::FilterChain => "filter chains",
        ApplyTo::NetworkFilter => "network filters",
        ApplyTo::HttpFilter => "HTTP filters",
        ApplyTo::RouteConfiguration => "route configurations",
        ApplyTo::VirtualHost => "virtual hosts",
        ApplyTo::HttpRoute => "routes",
        ApplyTo::Invalid | ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => "such things",
    }
}

/// How far a text is from the one wanted (Levenshtein). What it has more counts half: names grow, as `envoy.router` did.
fn distance(there: &str, wanted: &str) -> usize {
    let wanted: Vec<char> = wanted.chars().collect();
    let mut row: Vec<usize> = (0..=wanted.len()).map(|missing| 2 * missing).collect();
    for (i, x) in there.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in wanted.iter().enumerate() {
            let change = diagonal + if x == *y { 0 } else { 2 };
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 2).min(diagonal + 1);
        }
    }
    row[wanted.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_differ() {
        assert_eq!([distance("", "ab"), distance("ab", ""), distance("a", "a"), distance("a", "b")], [4, 2, 0, 2]);
        assert!(distance("envoy.filters.http.router", "envoy.router") < distance("istio.alpn", "envoy.router"));
    }
}
