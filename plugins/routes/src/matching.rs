//! Matches of a VirtualService's HTTP route, and whether one leaves anything for later routes.
//!
//! Nothing warns or rejects here. Maps are taken in the order of their keys; istiod takes query parameters and claims in a
//! random one.

use trysail_sdk::proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use trysail_sdk::proto::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher, list_matcher,
    metadata_matcher::{PathSegment, path_segment},
    string_matcher::MatchPattern,
    value_matcher,
};
use trysail_sdk::proto::istio::networking::v1alpha3::{HttpMatchRequest, StringMatch, string_match::MatchType};

/// Header name under which a VirtualService means claims of a verified token.
const CLAIMS: &str = "@request.auth.claims";

/// How prefixes of paths are meant: as text, or (for what was a Gateway API route or an Ingress) as whole segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefixes {
    /// `/a` matches `/ab`.
    Text,
    /// `/a` matches `/a` and `/a/b` only.
    Segments,
}

/// Translates a match; none matches everything.
pub fn route_match(request: Option<&HttpMatchRequest>, prefixes: Prefixes) -> RouteMatch {
    let everything = PathSpecifier::Prefix("/".to_owned());
    let Some(request) = request else {
        return RouteMatch { path_specifier: Some(everything), ..Default::default() };
    };
    let mut out =
        RouteMatch { path_specifier: Some(path(request, prefixes).unwrap_or(everything)), ..Default::default() };
    out.case_sensitive = Some(!request.ignore_uri_case);

    for (name, value) in &request.headers {
        match claim(name, value) {
            Some(claim) => out.dynamic_metadata.push(claim),
            None => out.headers.push(header(name, value)),
        }
    }
    for (name, value) in &request.without_headers {
        match claim(name, value) {
            Some(claim) => out.dynamic_metadata.push(MetadataMatcher { invert: true, ..claim }),
            None => out.headers.push(HeaderMatcher {
                invert_match: true,
                // Envoy refuses this together with a match for presence.
                treat_missing_header_as_empty: !is_presence(value),
                ..header(name, value)
            }),
        }
    }
    out.headers.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, value) in
        [(":method", &request.method), (":authority", &request.authority), (":scheme", &request.scheme)]
    {
        out.headers.extend(value.as_ref().map(|value| header(name, value)));
    }
    out.query_parameters = request.query_params.iter().map(|(name, value)| query_parameter(name, value)).collect();
    out
}

/// Does the match take every request, so that no later route is reached?
pub fn is_catch_all(matched: &RouteMatch) -> bool {
    let everywhere = match &matched.path_specifier {
        Some(PathSpecifier::Prefix(prefix) | PathSpecifier::PathSeparatedPrefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == ".*",
        _ => false,
    };
    everywhere
        && matched.headers.is_empty()
        && matched.query_parameters.is_empty()
        && matched.dynamic_metadata.is_empty()
}

/// A text match in Envoy's form; none if it says nothing.
pub fn string_matcher(value: &StringMatch) -> Option<StringMatcher> {
    let pattern = match value.match_type.as_ref()? {
        MatchType::Exact(text) => MatchPattern::Exact(text.clone()),
        MatchType::Prefix(text) => MatchPattern::Prefix(text.clone()),
        MatchType::Regex(regex) => MatchPattern::SafeRegex(RegexMatcher { regex: regex.clone(), ..Default::default() }),
    };
    Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() })
}

fn path(request: &HttpMatchRequest, prefixes: Prefixes) -> Option<PathSpecifier> {
    Some(match request.uri.as_ref()?.match_type.as_ref()? {
        MatchType::Exact(path) => PathSpecifier::Path(path.clone()),
        MatchType::Prefix(prefix) if prefixes == Prefixes::Segments && prefix != "/" => {
            PathSpecifier::PathSeparatedPrefix(prefix.strip_suffix('/').unwrap_or(prefix).to_owned())
        }
        MatchType::Prefix(prefix) => PathSpecifier::Prefix(prefix.clone()),
        MatchType::Regex(regex) => {
            PathSpecifier::SafeRegex(RegexMatcher { regex: regex.clone(), ..Default::default() })
        }
    })
}

/// Any value will do: nothing is asked of it, or by the customary `*`, which is no regular expression.
fn is_presence(value: &StringMatch) -> bool {
    match &value.match_type {
        None => true,
        Some(MatchType::Regex(regex)) => regex == "*",
        Some(_) => false,
    }
}

fn header(name: &str, value: &StringMatch) -> HeaderMatcher {
    let specifier = if is_presence(value) {
        Some(HeaderMatchSpecifier::PresentMatch(true))
    } else {
        string_matcher(value).map(HeaderMatchSpecifier::StringMatch)
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: specifier, ..Default::default() }
}

fn query_parameter(name: &str, value: &StringMatch) -> QueryParameterMatcher {
    let specifier = if is_presence(value) {
        Some(QueryParameterMatchSpecifier::PresentMatch(true))
    } else {
        string_matcher(value).map(QueryParameterMatchSpecifier::StringMatch)
    };
    QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: specifier }
}

/// `@request.auth.claims.a.b` or `@request.auth.claims[a][b]` as a match of what the JWT filter found.
fn claim(name: &str, value: &StringMatch) -> Option<MetadataMatcher> {
    let prefix = name.get(..CLAIMS.len())?;
    if !prefix.eq_ignore_ascii_case(CLAIMS) {
        return None;
    }
    let rest = &name[CLAIMS.len()..];
    let claims: Vec<&str> = if let Some(dotted) = rest.strip_prefix('.').filter(|r| !r.is_empty()) {
        dotted.split('.').collect()
    } else {
        let inside = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')).filter(|r| !r.is_empty())?;
        inside.split("][").collect()
    };
    let segment = |key: &str| PathSegment { segment: Some(path_segment::Segment::Key(key.to_owned())) };
    let text = ValueMatcher {
        match_pattern: Some(value_matcher::MatchPattern::StringMatch(string_matcher(value).unwrap_or_default())),
    };
    // A claim is a text or a list of texts.
    let in_list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(text.clone()))) };
    let in_list = ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(in_list))) };
    let either = OrMatcher { value_matchers: vec![in_list, text] };
    Some(MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: std::iter::once("payload").chain(claims).map(segment).collect(),
        value: Some(ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::OrMatch(either)) }),
        invert: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{exact, prefix, regex};
    use std::collections::BTreeMap;

    fn translated(request: HttpMatchRequest) -> RouteMatch {
        route_match(Some(&request), Prefixes::Text)
    }

    #[test]
    fn nothing_asked_is_a_catch_all() {
        assert!(is_catch_all(&route_match(None, Prefixes::Text)));
        assert!(is_catch_all(&translated(HttpMatchRequest { uri: Some(regex(".*")), ..Default::default() })));
        let with_header =
            HttpMatchRequest { headers: BTreeMap::from([("x".into(), exact("1"))]), ..Default::default() };
        assert!(!is_catch_all(&translated(with_header)));
        assert!(!is_catch_all(&translated(HttpMatchRequest { uri: Some(prefix("/a")), ..Default::default() })));
    }

    #[test]
    fn headers_come_sorted_before_pseudo_headers() {
        let matched = translated(HttpMatchRequest {
            headers: BTreeMap::from([("z".into(), exact("1")), ("b".into(), regex("*"))]),
            without_headers: BTreeMap::from([("a".into(), prefix("x")), ("c".into(), StringMatch::default())]),
            method: Some(exact("GET")),
            authority: Some(exact("a.test")),
            scheme: Some(exact("http")),
            ..Default::default()
        });
        let names: Vec<&str> = matched.headers.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "z", ":method", ":authority", ":scheme"]);
        assert!(matched.headers[0].invert_match && matched.headers[0].treat_missing_header_as_empty);
        assert_eq!(matched.headers[1].header_match_specifier, Some(HeaderMatchSpecifier::PresentMatch(true)));
        assert!(matched.headers[2].invert_match && !matched.headers[2].treat_missing_header_as_empty);
    }

    #[test]
    fn claims_are_metadata() {
        for name in
            ["@request.auth.claims.group.id", "@request.auth.claims[group][id]", "@Request.Auth.Claims[group][id]"]
        {
            let found = claim(name, &exact("x")).expect("a claim");
            assert_eq!(found.path.len(), 3, "{name}");
        }
        assert!(claim("@request.auth.claims", &exact("x")).is_none());
        assert!(claim("x", &exact("x")).is_none());
    }

    #[test]
    fn whole_segments() {
        let request = HttpMatchRequest { uri: Some(prefix("/a/")), ..Default::default() };
        let matched = route_match(Some(&request), Prefixes::Segments);
        assert_eq!(matched.path_specifier, Some(PathSpecifier::PathSeparatedPrefix("/a".into())));
    }
}
