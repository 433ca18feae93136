//! Host names with wildcards, as Istio compares them.

/// True for `*` and `*.example.com`.
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// Is every host that `inner` stands for also covered by `outer`?
pub fn subset_of(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (None, None) => inner == outer,
        // Among wildcards the longer text is the narrower one.
        (Some(a), Some(b)) => a.len() >= b.len() && a.ends_with(b),
        (None, Some(b)) => inner.len() >= b.len() && inner.ends_with(b),
        (Some(_), None) => false,
    }
}

/// Is there a host that both stand for?
pub fn overlap(a: &str, b: &str) -> bool {
    subset_of(a, b) || subset_of(b, a)
}

/// Order of specificity: exact hosts first, then longer wildcards, ties by text.
pub fn more_specific_first(a: &str, b: &str) -> std::cmp::Ordering {
    let key = |h: &str| (is_wildcard(h), std::cmp::Reverse(h.len()));
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

/// A short host name in a namespace as a fully qualified one; names with dots, wildcards and addresses stay.
pub fn qualify(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains('.') || is_wildcard(host) || host.is_empty() {
        return host.to_owned();
    }
    format!("{host}.{namespace}.svc.{domain}")
}

/// Hosts of a Gateway's server, `.` and `*` as namespaces resolved: `namespace/host` where it is for one namespace only.
pub fn of_server(hosts: &[String], namespace: &str) -> Vec<String> {
    if hosts.iter().any(|host| host == "*/*") {
        return vec!["*".to_owned()];
    }
    let resolved = |host: &String| match host.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(("*", name)) => name.to_owned(),
        _ => host.clone(),
    };
    hosts.iter().map(resolved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        assert!(subset_of("a.b.com", "*.b.com") && subset_of("*.a.b.com", "*.b.com") && subset_of("x", "*"));
        assert!(!subset_of("*.b.com", "a.b.com") && !subset_of("b.com", "*.b.com"));
        assert!(overlap("*.com", "a.com") && !overlap("a.com", "b.com"));
    }

    #[test]
    fn hosts_of_servers_have_namespaces_that_matter() {
        let hosts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let found = of_server(&hosts(&["./a.test", "*/b.test", "team/c.test", "d.test"]), "edge");
        assert_eq!(found, ["edge/a.test", "b.test", "team/c.test", "d.test"]);
        assert_eq!(of_server(&hosts(&["a.test", "*/*"]), "edge"), ["*"]);
    }

    #[test]
    fn qualifies_short_names_only() {
        assert_eq!(qualify("a", "ns", "cluster.local"), "a.ns.svc.cluster.local");
        assert_eq!(qualify("a.b", "ns", "cluster.local"), "a.b");
    }
}
