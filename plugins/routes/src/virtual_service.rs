//! `virtual-service` and `gateway-routes`: all routes of one VirtualService on one port of the mesh or of a gateway, in order.
//!
//! Which rules apply to the proxy is asked by predicates, and only for rules that choose by source. Rules after one that
//! takes everything are reported as shadowed; destinations that lead nowhere, unsupported faults, redirects and unusable
//! delegates are reported, too. Nothing rejects: other routes of the document stay.

use std::collections::BTreeMap;

use trysail_sdk::facts::Object;
use trysail_sdk::prost_types::{Struct, Value, value::Kind};
use trysail_sdk::proto::envoy::config::core::v3::Metadata;
use trysail_sdk::proto::envoy::config::route::v3::{
    Decorator, Route, route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    Destination, HttpMatchRequest, HttpRetry, HttpRoute, VirtualService,
};
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity};

use crate::action::{self, Forwarding};
use crate::delegate::{self, Rule};
use crate::destination::Targets;
use crate::matching::{Prefixes, is_catch_all, route_match};
use crate::shadow::Taken;
use crate::{headers, policy, session};

/// Annotation of VirtualServices that were made of other documents.
const SEMANTICS: &str = "internal.istio.io/route-semantics";

/// Whose rules a VirtualService follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Semantics {
    /// Written as a VirtualService.
    VirtualService,
    /// Made of an Ingress.
    Ingress,
    /// Made of a route of the Gateway API.
    GatewayApi,
}

impl Semantics {
    /// By the object's annotation.
    pub fn of(object: &Object) -> Self {
        match object.annotations.get(SEMANTICS).map(String::as_str) {
            Some("ingress") => Semantics::Ingress,
            Some("gateway") => Semantics::GatewayApi,
            _ => Semantics::VirtualService,
        }
    }
}

/// Where a VirtualService is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place<'a> {
    /// Port of the listener, 0 for all; at a gateway the port of its server as written.
    pub port: u32,
    /// The gateway, `namespace/name`; none for the mesh.
    pub gateway: Option<&'a str>,
    /// Requests come over TLS.
    pub tls: bool,
    /// Clients are told that the same port has HTTP/3.
    pub http3: bool,
}

/// Which routes are wanted. Where VirtualServices share a virtual host, the last route of each that takes everything comes
/// after all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All.
    #[default]
    All,
    /// Those that leave something.
    Specific,
    /// The one that takes everything, if there is one.
    CatchAll,
}

impl Part {
    /// As an argument.
    pub fn text(self) -> &'static str {
        match self {
            Part::All => "all",
            Part::Specific => "specific",
            Part::CatchAll => "catch-all",
        }
    }

    /// From an argument.
    pub fn parse(text: &str) -> Option<Self> {
        [Part::All, Part::Specific, Part::CatchAll].into_iter().find(|part| part.text() == text)
    }
}

/// Items: the routes.
pub fn routes(ctx: &Ctx<'_>, key: &str, at: Place<'_>, part: Part) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let Some((object, spec)) = ctx.object::<VirtualService>("VirtualService", key)? else { return Ok(output) };
    let semantics = Semantics::of(&object);
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    let own_hosts = delegate::full_hosts(ctx, &spec.hosts, namespace);
    let rules = delegate::effective_rules(ctx, &object, spec.http, semantics, &mut output)?;
    let mut translation = Translation {
        ctx,
        port: at.port,
        at,
        last_takes_all: false,
        semantics,
        prefixes: if semantics == Semantics::VirtualService { Prefixes::Text } else { Prefixes::Segments },
        metadata: config_metadata(&object),
        name: name.to_owned(),
        own_hosts,
        mesh_retries: None,
        targets: match at.gateway {
            None => Targets::new(ctx, at.port),
            Some(_) => Targets::of_gateway(ctx, at.port, namespace),
        },
        taken: Taken::default(),
        output,
    };
    let mut ends = false;
    for (i, rule) in rules.iter().enumerate() {
        if translation.rule(rule)? {
            translation.report_shadowed(&rules[i + 1..]);
            ends = translation.last_takes_all;
            break;
        }
    }
    let mut output = translation.output;
    match part {
        Part::All => {}
        Part::Specific if ends => drop(output.entries.pop()),
        Part::Specific => {}
        Part::CatchAll => {
            // What is wrong was said with the other routes.
            output.diagnostics.clear();
            let before = output.entries.len() - usize::from(ends);
            output.entries.drain(..before);
        }
    }
    Ok(output)
}

struct Translation<'c, 'h> {
    ctx: &'c Ctx<'h>,
    port: u32,
    at: Place<'c>,
    /// The route made last takes everything.
    last_takes_all: bool,
    semantics: Semantics,
    prefixes: Prefixes,
    metadata: Metadata,
    /// Name of the VirtualService, for traces of routes with several destinations.
    name: String,
    /// Its hosts.
    own_hosts: Vec<String>,
    /// Asked with the first route that forwards.
    mesh_retries: Option<Option<HttpRetry>>,
    targets: Targets<'c, 'h>,
    /// What the routes so far take.
    taken: Taken,
    output: Output,
}

impl Translation<'_, '_> {
    /// Translates a rule; true if it takes all requests that are left.
    fn rule(&mut self, rule: &Rule) -> Result<bool, Failure> {
        if rule.http.r#match.is_empty() {
            self.route(rule, None)?;
            return Ok(true);
        }
        let (mut diagnosed, mut n_shadowed, mut n_applied) = (false, 0, 0);
        for request in &rule.http.r#match {
            if !self.applies(request) {
                continue;
            }
            let reported = self.output.diagnostics.len();
            let (last, shadowed) = self.route(rule, Some(request))?;
            n_applied += 1;
            n_shadowed += usize::from(shadowed);
            if diagnosed {
                // What is wrong with the action was said with the first match.
                self.output.diagnostics.truncate(reported);
            }
            diagnosed = true;
            if last {
                return Ok(true);
            }
        }
        if n_applied > 0 && n_shadowed == n_applied {
            let message = "never reached: rules before it take these paths".to_owned();
            self.report(Severity::Info, rule, "match", message);
        }
        Ok(false)
    }

    /// Is the match for this port, and for this proxy as the source?
    fn applies(&self, request: &HttpMatchRequest) -> bool {
        if request.port != 0 && request.port != self.port {
            return false;
        }
        if !request.gateways.is_empty() {
            let own = self.at.gateway.unwrap_or("mesh");
            return request.gateways.iter().any(|gateway| gateway == own);
        }
        let namespace = request.source_namespace.as_str();
        (namespace.is_empty() || self.ctx.proxy_in_namespaces(&[namespace]).is_some())
            && self.ctx.proxy_labels_match(&request.source_labels)
    }

    /// One route; whether it takes everything, and whether earlier ones leave nothing for it.
    fn route(&mut self, rule: &Rule, request: Option<&HttpMatchRequest>) -> Result<(bool, bool), Failure> {
        let http = &rule.http;
        let matched = route_match(request, self.prefixes);
        let catch_all = is_catch_all(&matched);
        let shadowed = self.taken.add(&matched);
        let mut route = Route { metadata: Some(self.metadata.clone()), r#match: Some(matched), ..Default::default() };
        route.name.clone_from(&http.name);
        if let Some(request) = request {
            if !request.name.is_empty() {
                route.name = format!("{}.{}", http.name, request.name);
            }
            route.stat_prefix.clone_from(&request.stat_prefix);
        }
        let operations = http.headers.as_ref().map(headers::operations).unwrap_or_default();
        route.request_headers_to_add = operations.request_add;
        route.request_headers_to_remove = operations.request_remove;
        route.response_headers_to_add = operations.response_add;
        route.response_headers_to_remove = operations.response_remove;

        let mut hosts = Vec::new();
        if let Some(redirect) = &http.redirect {
            route.action = action::redirect(redirect, self.port, self.at.tls);
            if route.action.is_none() {
                let message = format!("redirect code {} is not supported", redirect.redirect_code);
                self.report(Severity::Error, rule, "redirect.redirectCode", message);
            }
        } else if let Some(response) = &http.direct_response {
            route.action = Some(action::direct_response(response));
        } else {
            hosts = self.forward(&mut route, http, operations.authority)?;
            self.diagnose_destinations(rule)?;
        }
        route.decorator = Some(Decorator { operation: self.operation(&route), propagate: None });
        self.extensions(&mut route, rule, &hosts)?;
        if self.at.http3 {
            route.response_headers_to_add.push(headers::alt_svc(self.port));
        }

        self.last_takes_all = catch_all;
        let key = self.output.entries.len().to_string();
        self.output.item(Item::new(key, Message::of(&route)));
        Ok((catch_all, shadowed))
    }

    fn forward(
        &mut self,
        route: &mut Route,
        http: &HttpRoute,
        authority: Option<String>,
    ) -> Result<Vec<String>, Failure> {
        if http.retries.is_none() && self.mesh_retries.is_none() {
            self.mesh_retries = Some(self.ctx.mesh_config(&["default_http_retry_policy"])?.default_http_retry_policy);
        }
        let mesh_retries = self.mesh_retries.as_ref().and_then(Option::as_ref);
        let mut forwarding =
            Forwarding { ctx: self.ctx, targets: &mut self.targets, mesh_retries, semantics: self.semantics };
        forwarding.apply(route, http, authority)
    }

    /// Faults, CORS and sticky sessions are settings of filters.
    fn extensions(&mut self, route: &mut Route, rule: &Rule, hosts: &[String]) -> Result<(), Failure> {
        if let Some(fault) = &rule.http.fault {
            let (config, left_out) = policy::fault(fault);
            for (part, why) in left_out {
                self.report(Severity::Error, rule, &format!("fault.{part}"), why.to_owned());
            }
            route.typed_per_filter_config.insert("envoy.filters.http.fault".to_owned(), config);
        }
        if let Some(cors) = &rule.http.cors_policy {
            route.typed_per_filter_config.insert("envoy.filters.http.cors".to_owned(), policy::cors(cors));
        }
        let mut chosen = None;
        for host in hosts {
            let session = self.targets.session(host)?;
            if session.is_some() && chosen.is_some() {
                let message = "destinations want different sticky sessions; the first one's are used".to_owned();
                self.report(Severity::Warning, rule, "route", message);
                break;
            }
            chosen = session;
        }
        if let Some(session) = chosen {
            route.typed_per_filter_config.insert(session::FILTER.to_owned(), session::per_route(session));
        }
        Ok(())
    }

    /// What traces call the route: its destination if there is one, else the VirtualService, with the path.
    fn operation(&self, route: &Route) -> String {
        let path = match route.r#match.as_ref().and_then(|m| m.path_specifier.as_ref()) {
            Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
            Some(PathSpecifier::Path(path)) => path.clone(),
            Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
            _ => "/*".to_owned(),
        };
        if let Some(Action::Route(action)) = &route.action
            && let Some(ClusterSpecifier::Cluster(cluster)) = &action.cluster_specifier
        {
            let parts: Vec<&str> = cluster.split('|').collect();
            if let [_, port, _, host] = parts.as_slice() {
                return format!("{host}:{port}{path}");
            }
        }
        format!("{}:{}{path}", self.name, self.port)
    }

    fn diagnose_destinations(&mut self, rule: &Rule) -> Result<(), Failure> {
        let single = rule.http.route.len() == 1;
        let mut found: Vec<(String, &Destination)> = Vec::new();
        for (i, to) in rule.http.route.iter().enumerate().filter(|(_, to)| single || to.weight != 0) {
            found.extend(to.destination.as_ref().map(|d| (format!("{}.route[{i}].destination", rule.field), d)));
        }
        found.extend(rule.http.mirror.as_ref().map(|d| (format!("{}.mirror", rule.field), d)));
        for (i, mirror) in rule.http.mirrors.iter().enumerate() {
            found.extend(mirror.destination.as_ref().map(|d| (format!("{}.mirrors[{i}].destination", rule.field), d)));
        }
        for (field, destination) in found {
            let (object, hosts) = (&rule.object, &self.own_hosts);
            self.targets.diagnose(destination, object, &field, hosts, &mut self.output.diagnostics)?;
        }
        if found_nothing(rule) {
            self.report(Severity::Error, rule, "route", "no destination has any weight".to_owned());
        }
        Ok(())
    }

    fn report_shadowed(&mut self, rules: &[Rule]) {
        for rule in rules {
            self.report(Severity::Info, rule, "", "never reached: a rule before it takes every request".to_owned());
        }
    }

    fn report(&mut self, severity: Severity, rule: &Rule, part: &str, message: String) {
        let field = if part.is_empty() { rule.field.clone() } else { format!("{}.{part}", rule.field) };
        self.output.diagnose(severity, rule.object.clone(), field, message);
    }
}

fn found_nothing(rule: &Rule) -> bool {
    rule.http.route.len() != 1 && rule.http.route.iter().all(|to| to.weight == 0)
}

/// Names the object that a route came from, with the version it was read as, for access logs and `istioctl`.
fn config_metadata(object: &Object) -> Metadata {
    let (namespace, name) = object.r#ref.as_ref().map_or(("", ""), |r| (r.namespace.as_str(), r.name.as_str()));
    let path = format!("/apis/{}/namespaces/{namespace}/virtual-service/{name}", object.api_version);
    let config = Value { kind: Some(Kind::StringValue(path)) };
    let istio = Struct { fields: BTreeMap::from([("config".to_owned(), config)]) };
    Metadata { filter_metadata: BTreeMap::from([("istio".to_owned(), istio)]), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, decode_items, exact, prefix};
    use trysail_sdk::facts::{ObjectRef, Port, Service, Strings};
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::prost_types::Duration;
    use trysail_sdk::proto::istio::networking::v1alpha3::{
        DestinationRule, HttpMirrorPolicy, HttpRouteDestination, Percent, Subset,
    };

    pub(crate) fn object(name: &str, spec: &VirtualService) -> Object {
        Object {
            r#ref: Some(ObjectRef { kind: "VirtualService".into(), namespace: "shop".into(), name: name.into() }),
            api_version: "networking.istio.io/v1".into(),
            spec: spec.encode_to_vec(),
            ..Default::default()
        }
    }

    fn to(host: &str, subset: &str, weight: i32) -> HttpRouteDestination {
        let destination = Destination { host: host.into(), subset: subset.into(), port: None };
        HttpRouteDestination { destination: Some(destination), weight, headers: None }
    }

    fn fake(http: Vec<HttpRoute>) -> Fake {
        let spec = VirtualService { hosts: vec!["web".into()], http, ..Default::default() };
        let host = "web.shop.svc.cluster.local";
        let ports = vec![Port { port: 80, ..Default::default() }];
        let rule =
            DestinationRule { subsets: vec![Subset { name: "v1".into(), ..Default::default() }], ..Default::default() };
        Fake::default()
            .answer("object", &["VirtualService", "shop/web"], &object("web", &spec))
            .text("setting", &["domain"], "cluster.local")
            .text("has-ready-endpoints", &[&format!("shop/{host}"), "80"], "")
            .answer("derived", &["scope", "service-key", host], &Strings { values: vec![format!("shop/{host}")] })
            .answer("service", &[&format!("shop/{host}")], &Service { ports, ..Default::default() })
            .answer(
                "derived",
                &["scope", "destination-rule", &format!("shop/{host}")],
                &Object { spec: rule.encode_to_vec(), ..Default::default() },
            )
    }

    fn matching(request: HttpMatchRequest) -> HttpRoute {
        HttpRoute { r#match: vec![request], route: vec![to("web", "v1", 0)], ..Default::default() }
    }

    fn run(fake: &Fake) -> (Vec<Route>, Vec<String>) {
        let output = fake.run("virtual-service", &["shop/web", "80"]);
        let diagnostics = output.diagnostics.iter().map(|d| format!("{}: {}", d.field, d.message)).collect();
        (decode_items(&output), diagnostics)
    }

    #[test]
    fn a_rule_without_matches_ends_the_list() {
        let rules = vec![
            matching(HttpMatchRequest { uri: Some(prefix("/a")), name: "m".into(), ..Default::default() }),
            HttpRoute { name: "all".into(), route: vec![to("web", "v1", 1), to("web", "v2", 0)], ..Default::default() },
            matching(HttpMatchRequest::default()),
        ];
        let (routes, diagnostics) = run(&fake(rules));
        let names: Vec<&str> = routes.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, [".m", "all"]);
        let operations: Vec<String> = routes.iter().map(|r| r.decorator.clone().expect("set").operation).collect();
        assert_eq!(operations, ["web.shop.svc.cluster.local:80/a*", "web:80/*"]);
        assert_eq!(diagnostics, ["spec.http[2]: never reached: a rule before it takes every request"]);
        let metadata = routes[0].metadata.as_ref().expect("set").filter_metadata["istio"].fields["config"].clone();
        assert_eq!(
            metadata.kind,
            Some(Kind::StringValue("/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web".into()))
        );
    }

    #[test]
    fn rules_that_earlier_ones_leave_nothing_are_said() {
        let at = |uri| matching(HttpMatchRequest { uri: Some(uri), ..Default::default() });
        let (routes, diagnostics) = run(&fake(vec![at(prefix("/a")), at(exact("/a/b")), at(exact("/b"))]));
        assert_eq!(routes.len(), 3, "istiod sends them, too");
        assert_eq!(diagnostics, ["spec.http[1].match: never reached: rules before it take these paths"]);
    }

    #[test]
    fn sources_are_asked_by_predicates() {
        let labels = BTreeMap::from([("app".to_owned(), "cart".to_owned())]);
        let rules = || {
            vec![
                matching(HttpMatchRequest {
                    source_labels: labels.clone(),
                    uri: Some(exact("/labels")),
                    ..Default::default()
                }),
                matching(HttpMatchRequest {
                    source_namespace: "shop".into(),
                    uri: Some(exact("/ns")),
                    ..Default::default()
                }),
                matching(HttpMatchRequest {
                    gateways: vec!["edge".into()],
                    uri: Some(exact("/edge")),
                    ..Default::default()
                }),
                matching(HttpMatchRequest {
                    gateways: vec!["mesh".into()],
                    uri: Some(exact("/mesh")),
                    ..Default::default()
                }),
                matching(HttpMatchRequest { port: 81, ..Default::default() }),
            ]
        };
        let paths = |fake: &Fake| -> Vec<String> {
            let path = |r: &Route| match r.r#match.clone().and_then(|m| m.path_specifier) {
                Some(PathSpecifier::Path(path)) => path,
                other => format!("{other:?}"),
            };
            run(fake).0.iter().map(path).collect()
        };
        assert_eq!(paths(&fake(rules())), ["/mesh"]);
        let all =
            fake(rules()).text("proxy-labels-match", &["app=cart"], "").text("proxy-in-namespaces", &["shop"], "shop");
        assert_eq!(paths(&all), ["/labels", "/ns", "/mesh"]);
    }

    fn action(route: &Route) -> &trysail_sdk::proto::envoy::config::route::v3::RouteAction {
        match &route.action {
            Some(Action::Route(action)) => action,
            other => panic!("does not forward: {other:?}"),
        }
    }

    #[test]
    fn weights_timeouts_and_mirrors() {
        let percentage = |value| Some(Percent { value });
        let mirror =
            |value| HttpMirrorPolicy { destination: to("web", "v2", 0).destination, percentage: percentage(value) };
        let rule = HttpRoute {
            route: vec![to("web", "v1", 90), to("web", "v2", 10), to("web", "v3", 0)],
            timeout: Some(Duration { seconds: 3, nanos: 0 }),
            mirror: to("web", "v1", 0).destination,
            mirrors: vec![mirror(0.0), mirror(12.5)],
            ..Default::default()
        };
        let (routes, _) = run(&fake(vec![rule]));
        let action = action(&routes[0]);
        let Some(ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else {
            panic!("not weighted")
        };
        let clusters: Vec<(&str, Option<u32>)> =
            weighted.clusters.iter().map(|c| (c.name.as_str(), c.weight)).collect();
        assert_eq!(
            clusters,
            [
                ("outbound|80|v1|web.shop.svc.cluster.local", Some(90)),
                ("outbound|80|v2|web.shop.svc.cluster.local", Some(10))
            ]
        );
        assert_eq!(action.timeout, Some(Duration { seconds: 3, nanos: 0 }));
        let mirrored: Vec<u32> = action
            .request_mirror_policies
            .iter()
            .filter_map(|m| m.runtime_fraction.as_ref()?.default_value.as_ref().map(|f| f.numerator))
            .collect();
        assert_eq!(mirrored, [100, 125_000]);
    }

    #[test]
    fn aliases_lead_to_what_they_stand_for() {
        let host = "web.shop.svc.cluster.local";
        let ports = vec![Port { port: 80, ..Default::default() }];
        let alias = Service { ports, external_name: "real.shop.svc.cluster.local".into(), ..Default::default() };
        let fake =
            fake(vec![matching(HttpMatchRequest::default())]).answer("service", &[&format!("shop/{host}")], &alias);
        let (routes, _) = run(&fake);
        assert_eq!(
            action(&routes[0]).cluster_specifier,
            Some(ClusterSpecifier::Cluster("outbound|80|v1|real.shop.svc.cluster.local".into()))
        );
    }

    #[test]
    fn sticky_sessions_of_the_destination() {
        let host = "web.shop.svc.cluster.local";
        let labels = BTreeMap::from([("cookie".to_owned(), "pin:/a".to_owned())]);
        let ports = vec![Port { port: 80, ..Default::default() }];
        let fake = fake(vec![matching(HttpMatchRequest::default())])
            .answer("service", &[&format!("shop/{host}")], &Service { ports, labels, ..Default::default() })
            .answer("features", &["PILOT_ENABLE_PERSISTENT_SESSION_FILTER"], &Strings { values: vec!["true".into()] })
            .answer(
                "features",
                &["PILOT_PERSISTENT_SESSION_LABEL", "PILOT_PERSISTENT_SESSION_HEADER_LABEL"],
                &Strings { values: vec!["cookie".into(), "header".into()] },
            );
        let (routes, _) = run(&fake);
        assert!(routes[0].typed_per_filter_config.contains_key(session::FILTER));
        let fields = fake.run("session", &[&format!("shop/{host}")]);
        assert_eq!(fields.entries.len(), 1);
    }

    #[test]
    fn destinations_that_lead_nowhere_are_reported() {
        let rule = HttpRoute { route: vec![to("web", "v9", 1), to("gone", "", 1)], ..Default::default() };
        let (routes, diagnostics) = run(&fake(vec![rule]));
        assert_eq!(routes.len(), 1);
        assert_eq!(
            diagnostics,
            [
                "spec.http[0].route[0].destination.subset: subset \"v9\" of web.shop.svc.cluster.local is in no DestinationRule",
                "spec.http[0].route[1].destination.host: no service \"gone.shop.svc.cluster.local\" is visible to the proxies",
            ]
        );
    }
}
