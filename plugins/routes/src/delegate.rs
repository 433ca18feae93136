//! The effective rules of a VirtualService: names resolved, delegates merged in.
//!
//! A rule whose delegate is missing or not visible is left out, and so is a delegate's rule that contradicts the root's.
//! Both are reported; the other rules stay.

use std::collections::BTreeMap;
use std::net::IpAddr;

use trysail_sdk::facts::Object;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    HttpMatchRequest, HttpRoute, StringMatch, VirtualService, string_match::MatchType,
};
use trysail_sdk::{Ctx, Failure, Output, Severity};

use crate::virtual_service::Semantics;

/// The full names of a VirtualService's hosts.
pub fn full_hosts(ctx: &Ctx<'_>, hosts: &[String], namespace: &str) -> Vec<String> {
    let mut names = Names { ctx, domain: None };
    let mut hosts = hosts.to_vec();
    hosts.iter_mut().for_each(|host| names.resolve_host(host, namespace));
    hosts
}

/// A rule and where it is written.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule with full names, and with what its root gave to it.
    pub http: HttpRoute,
    /// `VirtualService namespace/name`.
    pub object: String,
    /// `spec.http[0]`.
    pub field: String,
}

/// The rules of a VirtualService in order.
pub fn effective_rules(
    ctx: &Ctx<'_>,
    object: &Object,
    http: Vec<HttpRoute>,
    semantics: Semantics,
    output: &mut Output,
) -> Result<Vec<Rule>, Failure> {
    let (namespace, name) = object.r#ref.as_ref().map_or(("", ""), |r| (r.namespace.as_str(), r.name.as_str()));
    let mut rules = as_rules(http, &format!("VirtualService {namespace}/{name}"));
    // What was made of other documents has full names already and no delegates.
    if semantics == Semantics::GatewayApi {
        return Ok(rules);
    }
    let mut names = Names { ctx, domain: None };
    for rule in &mut rules {
        names.resolve(&mut rule.http, namespace);
    }
    if semantics == Semantics::Ingress || rules.iter().all(|rule| rule.http.delegate.is_none()) {
        return Ok(rules);
    }

    let mut merged = Vec::new();
    for mut root in rules {
        let Some(delegate) = root.http.delegate.take() else {
            merged.push(root);
            continue;
        };
        let delegate_namespace = if delegate.namespace.is_empty() { namespace } else { delegate.namespace.as_str() };
        let key = format!("{delegate_namespace}/{}", delegate.name);
        let found = ctx.object::<VirtualService>("VirtualService", &key)?;
        let mut refuse = |why: &str| {
            let field = format!("{}.delegate", root.field);
            output.diagnose(Severity::Error, root.object.clone(), field, format!("VirtualService {key} {why}"));
        };
        let Some((_, delegate)) = found.filter(|(_, delegate)| delegate.hosts.is_empty()) else {
            refuse("does not exist, or has hosts and so is no delegate");
            continue;
        };
        if !is_visible(ctx, &delegate.export_to, delegate_namespace, namespace)? {
            refuse("is not exported to this namespace");
            continue;
        }
        for mut rule in as_rules(delegate.http, &format!("VirtualService {key}")) {
            names.resolve(&mut rule.http, delegate_namespace);
            match merge_rule(&root.http, rule.http) {
                Some(http) => merged.push(Rule { http, ..rule }),
                None => {
                    let why = format!("left out: a match contradicts {} of {}", root.field, root.object);
                    output.diagnose(Severity::Error, rule.object, format!("{}.match", rule.field), why);
                }
            }
        }
    }
    Ok(merged)
}

fn as_rules(http: Vec<HttpRoute>, object: &str) -> Vec<Rule> {
    let rule = |(i, http)| Rule { http, object: object.to_owned(), field: format!("spec.http[{i}]") };
    http.into_iter().enumerate().map(rule).collect()
}

/// May rules of `to` delegate to a VirtualService of `from`?
fn is_visible(ctx: &Ctx<'_>, export_to: &[String], from: &str, to: &str) -> Result<bool, Failure> {
    let sees = |exports: &[String]| exports.iter().any(|e| e == "*" || e == to || (e == "." && from == to));
    if !export_to.is_empty() {
        return Ok(sees(export_to));
    }
    let default = ctx.mesh_config(&["default_virtual_service_export_to"])?.default_virtual_service_export_to;
    Ok(default.is_empty() || sees(&default))
}

/// Completes short names. The cluster's domain is asked only if there is one.
struct Names<'c, 'h> {
    ctx: &'c Ctx<'h>,
    domain: Option<String>,
}

impl Names<'_, '_> {
    fn resolve(&mut self, http: &mut HttpRoute, namespace: &str) {
        for request in &mut http.r#match {
            for gateway in &mut request.gateways {
                *gateway = resolve_gateway(gateway, namespace);
            }
        }
        let routes = http.route.iter_mut().filter_map(|r| r.destination.as_mut());
        let mirrors = http.mirrors.iter_mut().filter_map(|m| m.destination.as_mut());
        for destination in routes.chain(http.mirror.as_mut()).chain(mirrors) {
            self.resolve_host(&mut destination.host, namespace);
        }
    }

    fn resolve_host(&mut self, host: &mut String, namespace: &str) {
        if host.is_empty() || host == "*" || host.contains('.') || host.parse::<IpAddr>().is_ok() {
            return;
        }
        let domain = self.domain.get_or_insert_with(|| self.ctx.setting("domain"));
        host.push('.');
        host.push_str(namespace);
        if !domain.is_empty() {
            host.push_str(".svc.");
            host.push_str(domain);
        }
    }
}

/// `namespace/name` of a gateway; `mesh` stays. Names with dots are of an older form, `name.namespace.svc.domain`.
fn resolve_gateway(gateway: &str, namespace: &str) -> String {
    if gateway == "mesh" {
        return gateway.to_owned();
    }
    match (gateway.split_once('/'), gateway.split_once('.')) {
        (Some((".", name)), _) => format!("{namespace}/{name}"),
        (Some(_), _) => gateway.to_owned(),
        (None, Some((name, rest))) => format!("{}/{name}", rest.split('.').next().unwrap_or(rest)),
        (None, None) => format!("{namespace}/{gateway}"),
    }
}

/// A delegate's rule with what the root adds; none if they contradict each other.
pub fn merge_rule(root: &HttpRoute, mut rule: HttpRoute) -> Option<HttpRoute> {
    rule.r#match = merge_matches(&root.r#match, rule.r#match)?;
    rule.name = joined(&root.name, &rule.name);
    rule.rewrite = rule.rewrite.or_else(|| root.rewrite.clone());
    rule.direct_response = rule.direct_response.or_else(|| root.direct_response.clone());
    rule.timeout = rule.timeout.or(root.timeout);
    rule.retries = rule.retries.or_else(|| root.retries.clone());
    rule.fault = rule.fault.or_else(|| root.fault.clone());
    rule.mirror = rule.mirror.or_else(|| root.mirror.clone());
    #[allow(deprecated)]
    {
        rule.mirror_percent = rule.mirror_percent.or(root.mirror_percent);
    }
    rule.mirror_percentage = rule.mirror_percentage.or(root.mirror_percentage);
    rule.cors_policy = rule.cors_policy.or_else(|| root.cors_policy.clone());
    rule.headers = rule.headers.or_else(|| root.headers.clone());
    if rule.mirrors.is_empty() {
        rule.mirrors.clone_from(&root.mirrors);
    }
    Some(rule)
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        (root, "") => root.to_owned(),
        ("", own) => own.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// Every match of the delegate within every one of the root that it does not contradict. None if one of them contradicts
/// all: then the whole rule goes, not only that match.
pub fn merge_matches(root: &[HttpMatchRequest], own: Vec<HttpMatchRequest>) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(own);
    }
    if own.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for own in &own {
        let before = merged.len();
        merged.extend(root.iter().filter(|root| !contradict(root, own)).map(|root| merge_match(root, own)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatchRequest, own: &HttpMatchRequest) -> HttpMatchRequest {
    fn both<V: Clone>(root: &BTreeMap<String, V>, own: &BTreeMap<String, V>) -> BTreeMap<String, V> {
        root.iter().chain(own).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    fn text(own: &str, root: &str) -> String {
        if own.is_empty() { root.to_owned() } else { own.to_owned() }
    }
    HttpMatchRequest {
        name: joined(&root.name, &own.name),
        uri: own.uri.clone().or_else(|| root.uri.clone()),
        scheme: own.scheme.clone().or_else(|| root.scheme.clone()),
        method: own.method.clone().or_else(|| root.method.clone()),
        authority: own.authority.clone().or_else(|| root.authority.clone()),
        headers: both(&root.headers, &own.headers),
        port: if own.port == 0 { root.port } else { own.port },
        source_labels: both(&root.source_labels, &own.source_labels),
        gateways: if own.gateways.is_empty() { root.gateways.clone() } else { own.gateways.clone() },
        query_params: both(&root.query_params, &own.query_params),
        ignore_uri_case: own.ignore_uri_case,
        without_headers: both(&root.without_headers, &own.without_headers),
        source_namespace: text(&own.source_namespace, &root.source_namespace),
        stat_prefix: text(&own.stat_prefix, &root.stat_prefix),
    }
}

/// Does the delegate's match reach beyond the root's?
fn contradict(root: &HttpMatchRequest, own: &HttpMatchRequest) -> bool {
    let texts = [
        (&root.uri, &own.uri),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let maps = [
        (&root.headers, &own.headers),
        (&root.without_headers, &own.without_headers),
        (&root.query_params, &own.query_params),
    ];
    let maps_contradict = |(root, own): (&BTreeMap<String, StringMatch>, &BTreeMap<String, StringMatch>)| {
        own.iter().any(|(key, own)| root.get(key).is_some_and(|root| texts_contradict(root, own)))
    };
    texts.into_iter().any(|(root, own)| matches!((root, own), (Some(root), Some(own)) if texts_contradict(root, own)))
        || maps.into_iter().any(maps_contradict)
        || root.ignore_uri_case != own.ignore_uri_case
        || (root.port > 0 && own.port > 0 && root.port != own.port)
        || (!root.source_namespace.is_empty() && own.source_namespace != root.source_namespace)
        || own.source_labels.iter().any(|(key, own)| root.source_labels.get(key).is_some_and(|root| root != own))
        || gateways_contradict(&root.gateways, &own.gateways)
}

fn gateways_contradict(root: &[String], own: &[String]) -> bool {
    !root.is_empty() && !own.is_empty() && (root.len() < own.len() || own.iter().any(|g| !root.contains(g)))
}

/// Both say something, and the delegate's is no part of the root's. Empty texts say nothing, but they are not equal to
/// anything either.
fn texts_contradict(root: &StringMatch, own: &StringMatch) -> bool {
    let said = |m: &StringMatch| {
        m.match_type
            .clone()
            .filter(|m| !matches!(m, MatchType::Exact(t) | MatchType::Prefix(t) | MatchType::Regex(t) if t.is_empty()))
    };
    match (said(root), said(own)) {
        (Some(MatchType::Exact(root)), Some(MatchType::Exact(own))) => root != own,
        (Some(MatchType::Prefix(root)), Some(MatchType::Prefix(own) | MatchType::Exact(own))) => {
            !own.starts_with(&root)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{exact, prefix, regex};

    fn uri(uri: StringMatch) -> HttpMatchRequest {
        HttpMatchRequest { uri: Some(uri), ..Default::default() }
    }

    #[test]
    fn the_narrower_match_stays() {
        let merged = merge_matches(&[uri(prefix("/a"))], vec![uri(exact("/a/b"))]).expect("no contradiction");
        assert_eq!(merged, [uri(exact("/a/b"))]);
        assert!(merge_matches(&[uri(prefix("/a"))], vec![uri(exact("/b"))]).is_none());
        assert!(merge_matches(&[uri(prefix("/a/b"))], vec![uri(prefix("/a"))]).is_none());
        assert!(merge_matches(&[uri(regex("/a.*"))], vec![uri(prefix("/a"))]).is_none());
    }

    #[test]
    fn one_contradiction_takes_the_whole_rule() {
        let own = vec![uri(exact("/a/b")), uri(exact("/c"))];
        assert!(merge_matches(&[uri(prefix("/a"))], own).is_none());
    }

    #[test]
    fn every_root_match_that_fits_is_combined() {
        let header = |name: &str| HttpMatchRequest {
            headers: BTreeMap::from([(name.to_owned(), exact("1"))]),
            name: name.to_owned(),
            ..Default::default()
        };
        let merged = merge_matches(&[header("a"), header("b")], vec![header("c")]).expect("no contradiction");
        let names: Vec<(&str, usize)> = merged.iter().map(|m| (m.name.as_str(), m.headers.len())).collect();
        assert_eq!(names, [("a-c", 2), ("b-c", 2)]);
    }

    #[test]
    fn gateways_of_the_delegate_are_among_the_roots() {
        let gateways = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(!gateways_contradict(&gateways(&["a", "b"]), &gateways(&["b"])));
        assert!(gateways_contradict(&gateways(&["a"]), &gateways(&["b"])));
        assert!(!gateways_contradict(&[], &gateways(&["b"])));
        assert_eq!(resolve_gateway("./a", "ns"), "ns/a");
        assert_eq!(resolve_gateway("a", "ns"), "ns/a");
        assert_eq!(resolve_gateway("a.other.svc.cluster.local", "ns"), "other/a");
        assert_eq!(resolve_gateway("mesh", "ns"), "mesh");
    }

    #[test]
    fn settings_are_inherited() {
        let root = HttpRoute { name: "r".into(), timeout: Some(Default::default()), ..Default::default() };
        let merged = merge_rule(&root, HttpRoute { name: "d".into(), ..Default::default() }).expect("no contradiction");
        assert_eq!((merged.name.as_str(), merged.timeout.is_some()), ("r-d", true));
    }
}
