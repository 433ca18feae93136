//! Which routes of a virtual host no request can reach, because an earlier one takes it.
//!
//! Only the plain case is looked for, in which mistakes are made: an earlier match by nothing but a path or prefix. Whether one
//! regular expression or set of headers covers another is not asked.

use std::collections::BTreeSet;

use trysail_sdk::proto::envoy::config::route::v3::RouteMatch;
use trysail_sdk::proto::envoy::config::route::v3::route_match::PathSpecifier;

/// What earlier routes take.
#[derive(Default)]
pub struct Taken {
    prefixes: BTreeSet<String>,
    paths: BTreeSet<String>,
}

impl Taken {
    /// Adds a match; true if nothing is left for it.
    pub fn add(&mut self, matched: &RouteMatch) -> bool {
        let (path, is_prefix) = match &matched.path_specifier {
            Some(PathSpecifier::Prefix(prefix)) => (prefix, true),
            Some(PathSpecifier::Path(path)) => (path, false),
            _ => return false,
        };
        // Paths that ignore case were not compared with those that do not.
        let same_case = matched.case_sensitive.is_none_or(|sensitive| sensitive);
        let taken = same_case && (self.covers(path) || (!is_prefix && self.paths.contains(path)));
        let plain = RouteMatch {
            path_specifier: matched.path_specifier.clone(),
            case_sensitive: matched.case_sensitive,
            ..Default::default()
        };
        if !taken && same_case && plain == *matched {
            if is_prefix { &mut self.prefixes } else { &mut self.paths }.insert(path.clone());
        }
        taken
    }

    /// Whether a prefix begins the path. Looks up each beginning where that is less than comparing with each prefix.
    fn covers(&self, path: &str) -> bool {
        if self.prefixes.len() < path.len() {
            return self.prefixes.iter().any(|prefix| path.starts_with(prefix.as_str()));
        }
        let ends = path.char_indices().map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().any(|end| self.prefixes.contains(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::proto::envoy::config::route::v3::HeaderMatcher;

    #[test]
    fn by_path_and_prefix() {
        let prefix = |text: &str| PathSpecifier::Prefix(text.into());
        let path = |text: &str| PathSpecifier::Path(text.into());
        let plain = |path| RouteMatch { path_specifier: Some(path), ..Default::default() };
        let with_header = |path| RouteMatch {
            headers: vec![HeaderMatcher { name: "x".into(), ..Default::default() }],
            ..plain(path)
        };
        let mut taken = Taken::default();
        assert!(!taken.add(&with_header(prefix("/"))), "a header is not always there");
        assert!(!taken.add(&plain(path("/a"))));
        assert!(taken.add(&with_header(path("/a"))));
        assert!(!taken.add(&plain(prefix("/a"))), "the path alone is not all of the prefix");
        assert!(taken.add(&plain(prefix("/a/b"))) && taken.add(&plain(path("/abc"))));
        assert!(!taken.add(&plain(prefix("/b"))));
        for n in 0..20 {
            assert!(!taken.add(&plain(prefix(&format!("/many/{n:02}/")))));
        }
        assert!(taken.add(&plain(path("/many/07/x"))) && !taken.add(&plain(path("/many/7"))));
        let any_case = RouteMatch { case_sensitive: Some(false), ..plain(prefix("/b/c")) };
        assert!(!taken.add(&any_case));
    }
}
