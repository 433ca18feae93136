//! Which virtual host and route take a request.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Call;
use super::json::{field, items, text, texts};

/// The virtual host whose domain fits best: the name itself, then the longest `*suffix`, the longest `prefix*`, then `*`.
pub(super) fn virtual_host<'a>(configuration: &'a Value, host: &str) -> Option<&'a Value> {
    let ignores_port = configuration.get("ignore_port_in_host_matching").and_then(Value::as_bool) == Some(true);
    let host = if ignores_port { without_port(host) } else { host };
    let rank = |domain: &str| {
        if domain == "*" {
            return Some((0, 0));
        }
        if let Some(suffix) = domain.strip_prefix('*') {
            return (host.len() > suffix.len() && host.ends_with(suffix)).then_some((2, domain.len()));
        }
        if let Some(prefix) = domain.strip_suffix('*') {
            return (host.len() > prefix.len() && host.starts_with(prefix)).then_some((1, domain.len()));
        }
        domain.eq_ignore_ascii_case(host).then_some((3, 0))
    };
    let ranked = items(configuration, "virtual_hosts").filter_map(|virtual_host| {
        Some((texts(virtual_host, "domains").into_iter().filter_map(rank).max()?, virtual_host))
    });
    // The first of several that fit alike.
    ranked.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, virtual_host)| virtual_host)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The first route that fits.
pub(super) fn route<'a>(virtual_host: &'a Value, call: &Call) -> Result<Option<&'a Value>> {
    for route in items(virtual_host, "routes") {
        let asked = route.get("match").context("a route without match")?;
        if path_fits(asked, &call.path)? && headers_fit(asked, call)? && asked.get("query_parameters").is_none() {
            return Ok(Some(route));
        }
    }
    Ok(None)
}

fn path_fits(asked: &Value, path_and_query: &str) -> Result<bool> {
    let path = path_and_query.split('?').next().unwrap_or_default();
    let ignores_case = asked.get("case_sensitive").and_then(Value::as_bool) == Some(false);
    let cased = |text: String| if ignores_case { text.to_lowercase() } else { text };
    let path = cased(path.to_owned());
    if let Some(prefix) = text(asked, "prefix") {
        return Ok(path.starts_with(&cased(prefix)));
    }
    if let Some(prefix) = text(asked, "path_separated_prefix") {
        let rest = path.strip_prefix(&cased(prefix));
        return Ok(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    }
    if let Some(exact) = text(asked, "path") {
        return Ok(path == cased(exact));
    }
    if let Some(pattern) = field(asked, "/safe_regex/regex") {
        return matches_whole(&pattern, &path);
    }
    bail!("a route's path is matched in a way that is not modelled: {asked}")
}

fn matches_whole(pattern: &str, text: &str) -> Result<bool> {
    let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).with_context(|| format!("regex {pattern}"))?;
    Ok(pattern.is_match(text))
}

fn headers_fit(asked: &Value, call: &Call) -> Result<bool> {
    for header in items(asked, "headers") {
        let value = match text(header, "name").as_deref() {
            Some(":authority") => Some(call.host_header.as_str()),
            Some(":path") => Some(call.path.as_str()),
            Some(":method") => Some("GET"),
            Some(":scheme") => Some("http"),
            _ => None,
        };
        let fits = match (value, header.get("string_match"), header.get("present_match")) {
            (value, None, Some(present)) => present.as_bool() == Some(value.is_some()),
            (Some(value), Some(wanted), _) => string_fits(wanted, value)?,
            (None, Some(_), _) => false,
            (_, None, None) => bail!("a header is matched in a way that is not modelled: {header}"),
        };
        if fits == (header.get("invert_match").and_then(Value::as_bool) == Some(true)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn string_fits(wanted: &Value, value: &str) -> Result<bool> {
    if let Some(pattern) = field(wanted, "/safe_regex/regex") {
        return matches_whole(&pattern, value);
    }
    let fits = |name: &str, test: fn(&str, &str) -> bool| text(wanted, name).map(|wanted| test(value, &wanted));
    fits("exact", |value, wanted| value == wanted)
        .or_else(|| fits("prefix", |value, wanted| value.starts_with(wanted)))
        .or_else(|| fits("suffix", |value, wanted| value.ends_with(wanted)))
        .or_else(|| fits("contains", |value, wanted| value.contains(wanted)))
        .with_context(|| format!("a text is matched in a way that is not modelled: {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn domains_by_rank() {
        let hosts = [["a.example.com"], ["*.example.com"], ["*.com"], ["a.*"], ["*"]];
        let hosts: Vec<_> = hosts.iter().map(|domains| json!({"name": domains[0], "domains": domains})).collect();
        let configuration = json!({"virtual_hosts": hosts, "ignore_port_in_host_matching": true});
        for (host, domain) in [
            ("a.example.com", "a.example.com"),
            ("a.example.com:8080", "a.example.com"),
            ("b.example.com", "*.example.com"),
            ("a.com", "*.com"),
            ("a.org", "a.*"),
            ("b.org", "*"),
        ] {
            assert_eq!(text(virtual_host(&configuration, host).unwrap(), "name").as_deref(), Some(domain), "{host}");
        }
    }

    #[test]
    fn paths() {
        let fits = |asked: Value, path: &str| path_fits(&asked, path).unwrap();
        assert!(fits(json!({"prefix": "/a"}), "/ab?c"));
        assert!(!fits(json!({"path_separated_prefix": "/a"}), "/ab"));
        assert!(fits(json!({"path_separated_prefix": "/a"}), "/a/b"));
        assert!(fits(json!({"path": "/A", "case_sensitive": false}), "/a?b"));
        assert!(!fits(json!({"safe_regex": {"regex": "/a"}}), "/ab"));
        assert!(path_fits(&json!({"connect_matcher": {}}), "/").is_err());
    }
}
