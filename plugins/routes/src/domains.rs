//! Domains of a virtual host: every text by which a client of this proxy may call a service.
//!
//! Pure: nothing here warns or rejects.

use std::net::IpAddr;

/// One domain of a virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// What Envoy compares with the Host header.
    pub text: String,
    /// It is a shortened form. A shortened form gives way to a service whose full name it happens to be:
    /// `foo.com.cluster.local` must not take `foo.com` from the real one.
    pub expanded: bool,
}

/// What the domains of services depend on besides the service.
pub struct Naming<'a> {
    /// The proxy's DNS domain, `shop.svc.cluster.local`; empty when unknown.
    pub dns_domain: &'a str,
    /// Names with a final dot, too (`PILOT_ENABLE_ABSOLUTE_FQDN_VHOST_DOMAIN`).
    pub absolute: bool,
    /// Port to name beside the plain domains. None when Envoy ignores ports in host matching anyway.
    pub port: Option<u32>,
}

/// `host:port`, with brackets around IPv6 addresses.
pub fn with_port(host: &str, port: u32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A host as a domain: IPv6 addresses stand in brackets.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl Naming<'_> {
    /// All domains of a service: of its own name, then of each alias, then wildcards below them when its single
    /// endpoints have names (`headless`), then its addresses.
    pub fn of_service<'s>(
        &self,
        hosts: impl IntoIterator<Item = &'s str>,
        headless: bool,
        addresses: &[String],
    ) -> Vec<Domain> {
        let mut domains = Vec::new();
        for host in hosts {
            self.push(&mut domains, host, false);
            self.push_alternatives(&mut domains, host);
        }
        if headless {
            for i in 0..domains.len() {
                let text = format!("*.{}", domains[i].text);
                domains.push(Domain { text, expanded: false });
            }
        }
        for address in addresses {
            self.push(&mut domains, address, false);
        }
        domains
    }

    fn push(&self, domains: &mut Vec<Domain>, host: &str, expanded: bool) {
        domains.push(Domain { text: bracketed(host), expanded });
        if let Some(port) = self.port {
            domains.push(Domain { text: with_port(host, port), expanded });
        }
    }

    fn push_alternatives(&self, domains: &mut Vec<Domain>, host: &str) {
        if self.absolute {
            let absolute = format!("{host}.");
            if host.parse::<IpAddr>().is_err() {
                domains.push(Domain { text: absolute.clone(), expanded: true });
            }
            if let Some(port) = self.port {
                domains.push(Domain { text: with_port(&absolute, port), expanded: true });
            }
        }
        match self.dns_domain.split_once(".svc.") {
            Some((namespace, suffix)) => self.push_kubernetes(domains, host, namespace, suffix),
            None => self.push_shared_suffix(domains, host),
        }
    }

    /// Short forms of `name.namespace.svc.suffix` as the resolver of a pod in `own_namespace` would complete them. Names of
    /// another kind have none: they could collide with those of Kubernetes services.
    fn push_kubernetes(&self, domains: &mut Vec<Domain>, host: &str, own_namespace: &str, suffix: &str) {
        let Some((before, after)) = host.split_once(".svc.") else { return };
        let suffix_fits = host.ends_with(suffix) && host[..host.len() - suffix.len()].ends_with(".svc.");
        let Some((name, namespace)) = before.split_once('.') else { return };
        if !suffix_fits || after.is_empty() || before.is_empty() {
            return;
        }
        let service_form = format!("{before}.svc");
        if namespace == own_namespace {
            self.push(domains, name, true);
            self.push(domains, &service_form, true);
            self.push(domains, before, true);
        } else {
            self.push(domains, before, true);
            self.push(domains, &service_form, true);
        }
    }

    /// Outside Kubernetes: what is left of the name without the suffix that it shares with the proxy's DNS domain.
    fn push_shared_suffix(&self, domains: &mut Vec<Domain>, host: &str) {
        let parts: Vec<&str> = host.split('.').collect();
        let shared = parts.iter().rev().zip(self.dns_domain.split('.').rev()).take_while(|(a, b)| **a == *b).count();
        let (unique, common) = parts.split_at(parts.len() - shared);
        // A name that is a part of the proxy's domain would leave the empty text, which Envoy refuses.
        if common.is_empty() || unique.is_empty() {
            return;
        }
        let short = unique.join(".");
        self.push(domains, &short, true);
        if unique.len() == 2 {
            self.push(domains, &format!("{short}.{}", common[0]), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(naming: &Naming<'_>, host: &str) -> Vec<String> {
        naming.of_service([host], false, &[]).into_iter().map(|d| d.text).collect()
    }

    fn naming(dns_domain: &str) -> Naming<'_> {
        Naming { dns_domain, absolute: true, port: None }
    }

    #[test]
    fn short_names_follow_the_proxys_namespace() {
        let host = "cart.shop.svc.cluster.local";
        assert_eq!(
            texts(&naming("shop.svc.cluster.local"), host),
            [host, "cart.shop.svc.cluster.local.", "cart", "cart.shop.svc", "cart.shop"]
        );
        assert_eq!(
            texts(&naming("other.svc.cluster.local"), host),
            [host, "cart.shop.svc.cluster.local.", "cart.shop", "cart.shop.svc"]
        );
        assert_eq!(texts(&naming("other.svc.cluster.test"), host), [host, "cart.shop.svc.cluster.local."]);
    }

    #[test]
    fn external_names_have_no_short_form_in_kubernetes() {
        assert_eq!(
            texts(&naming("shop.svc.cluster.local"), "api.example.com"),
            ["api.example.com", "api.example.com."]
        );
    }

    #[test]
    fn outside_kubernetes_the_shared_suffix_goes() {
        assert_eq!(
            texts(&naming("local.campus.net"), "foo.local.campus.net"),
            ["foo.local.campus.net", "foo.local.campus.net.", "foo"]
        );
        assert_eq!(
            texts(&naming("remote.campus.net"), "foo.local.campus.net"),
            ["foo.local.campus.net", "foo.local.campus.net.", "foo.local", "foo.local.campus"]
        );
        assert_eq!(texts(&naming("example.com"), "foo.local.campus.net").len(), 2);
    }

    #[test]
    fn ports_and_addresses() {
        let naming = Naming { dns_domain: "", absolute: false, port: Some(80) };
        let domains = naming.of_service(["a.test"], true, &["10.0.0.1".into(), "fd00::1".into()]);
        let texts: Vec<&str> = domains.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(
            texts,
            ["a.test", "a.test:80", "*.a.test", "*.a.test:80", "10.0.0.1", "10.0.0.1:80", "[fd00::1]", "[fd00::1]:80"]
        );
    }
}
