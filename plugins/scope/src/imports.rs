//! What the `hosts` of one egress listener import: `namespace/dnsName`, with `.` for the proxy's own namespace, `*` for
//! any, `~` before a namespace (or alone) for what is excluded again.

use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{EgressListener, ServiceSummary};
use trysail_sdk::hosts;

use crate::client::Client;
use crate::virtual_services::Head;

/// Key of the hosts that are imported from any namespace.
const ANY: &str = "*";

/// The parsed `hosts` of a listener.
pub struct Imports {
    by_namespace: BTreeMap<String, HostSet>,
    exact: bool,
    everything: bool,
}

/// The hosts imported from one namespace.
#[derive(Default)]
struct HostSet {
    exact: BTreeSet<String>,
    wildcards: Vec<String>,
    excluded: Vec<String>,
}

/// Splits a host of a listener; none when it has not exactly one slash.
pub fn split(host: &str) -> Option<(&str, &str)> {
    host.split_once('/').filter(|(_, name)| !name.contains('/'))
}

impl Imports {
    /// Parses a listener's hosts. Asks for the proxy's namespace only when one of them is `./`.
    pub fn new(listener: &EgressListener, client: &Client) -> Self {
        let mut imports = Imports { by_namespace: BTreeMap::new(), exact: true, everything: false };
        for (namespace, name) in listener.hosts.iter().filter_map(|host| split(host)) {
            let (excluded, namespace) = match namespace.strip_prefix('~') {
                Some("") => (true, ANY),
                Some(namespace) => (true, namespace),
                None => (false, namespace),
            };
            let namespace = if namespace == "." { client.namespace() } else { namespace };
            let set = imports.by_namespace.entry(namespace.to_owned()).or_default();
            if excluded {
                set.excluded.push(name.to_owned());
                continue;
            }
            if hosts::is_wildcard(name) {
                set.wildcards.push(name.to_owned());
            } else {
                set.exact.insert(name.to_owned());
            }
            imports.exact &= namespace != ANY && !hosts::is_wildcard(name);
        }
        imports.everything = imports.by_namespace.len() == 1
            && imports
                .by_namespace
                .get(ANY)
                .is_some_and(|any| any.excluded.is_empty() && any.wildcards.iter().any(|host| host == "*"));
        imports
    }

    /// Namespace and host of all that is imported, when that is a list of single hosts: these few services can be
    /// looked up one by one.
    pub fn as_list(&self) -> Option<Vec<(&str, &str)>> {
        let list = self
            .by_namespace
            .iter()
            .flat_map(|(namespace, set)| set.exact.iter().map(move |host| (namespace.as_str(), host.as_str())));
        self.exact.then(|| list.collect())
    }

    /// The namespaces that services are imported from, unless from any.
    pub fn namespaces(&self) -> Option<Vec<&str>> {
        let imports = self.by_namespace.iter().filter(|(_, set)| !set.exact.is_empty() || !set.wildcards.is_empty());
        let namespaces: Vec<&str> = imports.map(|(namespace, _)| namespace.as_str()).collect();
        (!namespaces.contains(&ANY)).then_some(namespaces)
    }

    /// Is everything imported that is visible (`*/*` and nothing else)?
    pub fn everything(&self) -> bool {
        self.everything
    }

    /// Imports a service: none when it is not, and without those aliases that are not.
    ///
    /// Hosts of the service's namespace come first, then those of any namespace; aliases must match hosts of the same
    /// list as their service.
    pub fn service(&self, service: ServiceSummary) -> Option<ServiceSummary> {
        if self.everything {
            return Some(service);
        }
        let sets = [self.by_namespace.get(&service.namespace), self.by_namespace.get(ANY)];
        if sets.iter().flatten().any(|set| set.excludes(&service.host)) {
            return None;
        }
        let set = sets.into_iter().flatten().find(|set| set.covers(&service.host))?;
        let mut service = service;
        service.aliases.retain(|alias| set.covers(split(alias).map_or(alias.as_str(), |(_, host)| host)));
        Some(service)
    }

    /// Is a VirtualService imported, by any of its hosts? Hosts need only overlap: a VirtualService of `*.example.com`
    /// comes with the import of `shop.example.com`. Those made from the Gateway API are imported as services are.
    pub fn virtual_service(&self, found: &Head) -> bool {
        if self.everything {
            return !found.hosts.is_empty();
        }
        let sets = [self.by_namespace.get(&found.namespace), self.by_namespace.get(ANY)];
        let imported = |host: &str| {
            let matches = |set: &&HostSet| if found.gateway_semantics { set.covers(host) } else { set.overlaps(host) };
            sets.iter().flatten().any(matches) && !sets.iter().flatten().any(|set| set.excludes(host))
        };
        found.hosts.iter().any(|host| imported(host))
    }
}

impl HostSet {
    fn covers(&self, host: &str) -> bool {
        self.exact.contains(host) || self.wildcards.iter().any(|wildcard| hosts::subset_of(host, wildcard))
    }

    fn overlaps(&self, host: &str) -> bool {
        self.exact.contains(host)
            || self.wildcards.iter().any(|wildcard| hosts::overlap(host, wildcard))
            || hosts::is_wildcard(host) && self.exact.iter().any(|exact| hosts::subset_of(exact, host))
    }

    fn excludes(&self, host: &str) -> bool {
        self.excluded.iter().any(|excluded| hosts::subset_of(host, excluded))
    }
}
