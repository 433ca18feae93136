//! What a route of a VirtualService does with a request: forward, redirect, or answer.
//!
//! A redirect code that Envoy does not know leaves the route without an action (an error is reported): that is what istiod
//! does, and validation lets none through. Nothing else rejects.

use trysail_sdk::proto::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent, data_source};
use trysail_sdk::proto::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, Route, RouteAction, WeightedCluster,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    route::Action,
    route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy},
    route_match::PathSpecifier,
    weighted_cluster::{ClusterWeight, cluster_weight},
};
use trysail_sdk::proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    HttpDirectResponse, HttpRedirect, HttpRetry, HttpRoute, HttpRouteDestination, http_body,
    http_redirect::{RedirectPort, RedirectPortSelection},
};
use trysail_sdk::{Ctx, Failure};

use crate::destination::Targets;
use crate::virtual_service::Semantics;
use crate::{config, headers, policy};

/// What forwarding needs besides the rule itself.
pub struct Forwarding<'f, 'c, 'h> {
    /// For questions that only some rules make necessary.
    pub ctx: &'c Ctx<'h>,
    /// Destinations asked so far.
    pub targets: &'f mut Targets<'c, 'h>,
    /// Retries of rules that say nothing.
    pub mesh_retries: Option<&'f HttpRetry>,
    /// What kind of document the rule came from.
    pub semantics: Semantics,
}

impl Forwarding<'_, '_, '_> {
    /// Forwards to the rule's destinations. `authority` is what the rule's header operations make of the Host header.
    /// Returns the hosts of the destinations in order.
    pub fn apply(
        &mut self,
        route: &mut Route,
        rule: &HttpRoute,
        authority: Option<String>,
    ) -> Result<Vec<String>, Failure> {
        #[allow(deprecated)]
        let mut action = RouteAction {
            timeout: Some(rule.timeout.unwrap_or_default()),
            // Clients cannot ask for more time than the rule allows.
            max_grpc_timeout: Some(rule.timeout.unwrap_or_default()),
            ..Default::default()
        };
        if self.semantics == Semantics::GatewayApi {
            action.cluster_not_found_response_code = ClusterNotFoundResponseCode::InternalServerError.into();
        }
        let authority = self.rewrite(&mut action, route, rule)?.or(authority);
        action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
        self.mirror(&mut action, rule)?;

        let retry = rule.retries.as_ref().or(self.mesh_retries);
        let hosts = match rule.route.as_slice() {
            [only] => {
                let (host, pinned) = self.single(&mut action, route, only)?;
                action.retry_policy = policy::retries(retry, pinned);
                vec![host]
            }
            several => {
                let hosts = self.weighted(&mut action, several)?;
                action.retry_policy = policy::retries(retry, false);
                hosts
            }
        };
        route.action = Some(Action::Route(action));
        Ok(hosts)
    }

    /// Rewrites path and authority; returns the new authority.
    fn rewrite(&self, action: &mut RouteAction, route: &Route, rule: &HttpRoute) -> Result<Option<String>, Failure> {
        let Some(rewrite) = &rule.rewrite else { return Ok(None) };
        action.append_x_forwarded_host = config::forwards_host(self.ctx)?;
        let substitute = |regex: String, substitution: &str| {
            let pattern = Some(RegexMatcher { regex, ..Default::default() });
            Some(RegexMatchAndSubstitute { pattern, substitution: substitution.to_owned() })
        };
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            action.regex_rewrite = substitute(regex.r#match.clone(), &regex.rewrite);
        } else if self.semantics == Semantics::GatewayApi && rewrite.uri == "/" {
            // The prefix goes, but the path keeps its first slash.
            let path = route.r#match.as_ref().and_then(|m| m.path_specifier.as_ref());
            let prefix = match path {
                Some(PathSpecifier::PathSeparatedPrefix(prefix)) => prefix.as_str(),
                _ => "",
            };
            action.regex_rewrite = substitute(format!("^{}(/?)(.*)", quoted(prefix)), r"/\2");
        } else if !rewrite.uri.is_empty() {
            action.prefix_rewrite.clone_from(&rewrite.uri);
        }
        Ok(Some(rewrite.authority.clone()).filter(|a| !a.is_empty()))
    }

    #[allow(deprecated)]
    fn mirror(&mut self, action: &mut RouteAction, rule: &HttpRoute) -> Result<(), Failure> {
        let mut mirrors = Vec::new();
        if let Some(destination) = &rule.mirror {
            let fraction = match (&rule.mirror_percentage, rule.mirror_percent) {
                (Some(percentage), _) => (percentage.value > 0.0).then(|| fraction(policy::millionths(percentage))),
                (None, Some(percent)) => {
                    (percent > 0).then(|| fraction(policy::hundredths(i32::from_ne_bytes(percent.to_ne_bytes()))))
                }
                (None, None) => Some(policy::always()),
            };
            mirrors.push((destination, fraction));
        }
        for mirror in &rule.mirrors {
            let Some(destination) = &mirror.destination else { continue };
            let fraction = match &mirror.percentage {
                Some(percentage) => (percentage.value > 0.0).then(|| fraction(policy::millionths(percentage))),
                None => Some(policy::always()),
            };
            mirrors.push((destination, fraction));
        }
        // Nought per cent is no mirror at all.
        mirrors.retain(|(_, fraction)| fraction.is_some());
        if mirrors.is_empty() {
            return Ok(());
        }
        let [keep_host] = self.ctx.flags(["DISABLE_SHADOW_HOST_SUFFIX"])?;
        for (destination, runtime_fraction) in mirrors {
            action.request_mirror_policies.push(RequestMirrorPolicy {
                cluster: self.targets.cluster(destination)?,
                runtime_fraction,
                trace_sampled: Some(false),
                disable_shadow_host_suffix_append: keep_host,
                ..Default::default()
            });
        }
        Ok(())
    }

    /// One destination: its header operations become the route's.
    fn single(
        &mut self,
        action: &mut RouteAction,
        route: &mut Route,
        to: &HttpRouteDestination,
    ) -> Result<(String, bool), Failure> {
        let destination = to.destination.clone().unwrap_or_default();
        action.cluster_specifier = Some(ClusterSpecifier::Cluster(self.targets.cluster(&destination)?));
        if let Some(headers) = &to.headers {
            let operations = headers::operations(headers);
            route.request_headers_to_add.extend(operations.request_add);
            route.request_headers_to_remove.extend(operations.request_remove);
            route.response_headers_to_add.extend(operations.response_add);
            route.response_headers_to_remove.extend(operations.response_remove);
            // The route's own rewrite goes first, as it would with several destinations.
            if action.host_rewrite_specifier.is_none() {
                action.host_rewrite_specifier = operations.authority.map(HostRewriteSpecifier::HostRewriteLiteral);
            }
        }
        let (hash, pinned) = self.targets.hash(&destination)?;
        action.hash_policy.extend(hash);
        Ok((destination.host, pinned))
    }

    /// Destinations by weight; those of no weight are left out.
    fn weighted(&mut self, action: &mut RouteAction, to: &[HttpRouteDestination]) -> Result<Vec<String>, Failure> {
        let (mut clusters, mut hosts) = (Vec::new(), Vec::new());
        for to in to.iter().filter(|to| to.weight != 0) {
            let destination = to.destination.clone().unwrap_or_default();
            let mut cluster = ClusterWeight {
                name: self.targets.cluster(&destination)?,
                weight: Some(u32::from_ne_bytes(to.weight.to_ne_bytes())),
                ..Default::default()
            };
            if let Some(headers) = &to.headers {
                let operations = headers::operations(headers);
                cluster.request_headers_to_add = operations.request_add;
                cluster.request_headers_to_remove = operations.request_remove;
                cluster.response_headers_to_add = operations.response_add;
                cluster.response_headers_to_remove = operations.response_remove;
                cluster.host_rewrite_specifier =
                    operations.authority.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral);
            }
            clusters.push(cluster);
            action.hash_policy.extend(self.targets.hash(&destination)?.0);
            hosts.push(destination.host);
        }
        action.cluster_specifier =
            Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..Default::default() }));
        Ok(hosts)
    }
}

fn fraction(percent: trysail_sdk::proto::envoy::r#type::v3::FractionalPercent) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(percent), ..Default::default() }
}

/// A text as a regular expression that matches it literally.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Redirects; none for a code that Envoy does not know. `port` is the listener's, which a redirect may keep; `tls`: requests
/// come over TLS.
pub fn redirect(redirect: &HttpRedirect, port: u32, tls: bool) -> Option<Action> {
    let response_code = match redirect.redirect_code {
        0 | 301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => return None,
    };
    let path = match redirect.prefix_rewrite.as_str() {
        "" => PathRewriteSpecifier::PathRedirect(redirect.uri.clone()),
        prefix => PathRewriteSpecifier::PrefixRewrite(prefix.to_owned()),
    };
    let scheme = Some(redirect.scheme.clone()).filter(|s| !s.is_empty());
    let mut port_redirect = match &redirect.redirect_port {
        // Envoy cannot read the port of the request, but this route serves one port only.
        Some(RedirectPort::DerivePort(derive)) if *derive == i32::from(RedirectPortSelection::FromRequestPort) => port,
        Some(RedirectPort::DerivePort(_)) | None => 0,
        Some(RedirectPort::Port(port)) => *port,
    };
    // The scheme's own port is not written where a port is asked for.
    let own_scheme = if tls { "https" } else { "http" };
    if matches!((port_redirect, scheme.as_deref().unwrap_or(own_scheme)), (80, "http") | (443, "https")) {
        port_redirect = 0;
    }
    Some(Action::Redirect(RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect,
        response_code: response_code.into(),
        scheme_rewrite_specifier: scheme.map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: Some(path),
        ..Default::default()
    }))
}

/// Answers without asking anyone.
pub fn direct_response(response: &HttpDirectResponse) -> Action {
    let specifier = response.body.as_ref().and_then(|body| body.specifier.as_ref()).map(|specifier| match specifier {
        http_body::Specifier::String(text) => data_source::Specifier::InlineString(text.clone()),
        http_body::Specifier::Bytes(bytes) => data_source::Specifier::InlineBytes(bytes.clone()),
    });
    Action::DirectResponse(DirectResponseAction {
        status: response.status,
        body: specifier.map(|specifier| DataSource { specifier: Some(specifier), ..Default::default() }),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirected(port: u32, redirected: &HttpRedirect) -> RedirectAction {
        match redirect(redirected, port, false) {
            Some(Action::Redirect(action)) => action,
            other => panic!("no redirect: {other:?}"),
        }
    }

    #[test]
    fn redirects_leave_out_the_schemes_own_port() {
        let from_request = Some(RedirectPort::DerivePort(RedirectPortSelection::FromRequestPort.into()));
        let rule = HttpRedirect { redirect_port: from_request, ..Default::default() };
        assert_eq!(redirected(8080, &rule).port_redirect, 8080);
        assert_eq!(redirected(80, &rule).port_redirect, 0);
        let https = HttpRedirect { scheme: "https".into(), ..rule };
        assert_eq!(redirected(80, &https).port_redirect, 80);
        assert_eq!(redirected(443, &https).port_redirect, 0);
    }

    #[test]
    fn unknown_codes_redirect_nowhere() {
        assert!(redirect(&HttpRedirect { redirect_code: 305, ..Default::default() }, 80, false).is_none());
        assert_eq!(
            redirected(80, &HttpRedirect::default()).path_rewrite_specifier,
            Some(PathRewriteSpecifier::PathRedirect(String::new()))
        );
    }

    #[test]
    fn texts_are_quoted() {
        assert_eq!(quoted("/a.b(c)"), r"/a\.b\(c\)");
    }
}
