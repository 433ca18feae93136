//! VirtualServices by visibility.
//!
//! One without hosts is only a delegate: it is no entry of any index, and its destinations count for the roots that name it.
//! A delegate that is missing, or not exported to the root's namespace, counts for nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trysail_model::{Object, ObjectRef};
use trysail_proto::istio::networking::v1alpha3::{Destination, HttpRoute, VirtualService};
use trysail_proto::trysail::facts::v1::VirtualServiceSummary;
use trysail_proto::trysail::facts::v1::virtual_service_summary::Destination as Summary;

use crate::documents::{self, MESH_GATEWAY};
use crate::inputs::Base;
use crate::labels::ROUTE_SEMANTICS;
use crate::services::{age, creation};
use crate::table::key;
use crate::wire;

/// A VirtualService, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Virtual {
    /// Its object.
    pub reference: ObjectRef,
    /// Its document.
    pub rule: VirtualService,
    /// Who it is exported to: `*`, `~` or namespaces.
    pub exports: Vec<String>,
    /// The delegates that it names: namespace and name.
    pub delegates: BTreeSet<(String, String)>,
    /// Oldest first, then name and namespace.
    pub order: String,
    /// Generated from a Gateway API route.
    gateway_semantics: bool,
    creation_seconds: i64,
}

/// A root VirtualService as indexes have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Root {
    /// Its object, and those of the delegates it names.
    pub references: Vec<ObjectRef>,
    /// Who sees it: `*` alone, or namespaces.
    pub visibility: Vec<String>,
    /// The gateways it names, `mesh` if it names none.
    pub gateways: BTreeSet<String>,
    /// Hosts that it leads to, each with the namespaces that it is restricted to (none: not restricted).
    pub destinations: Vec<(String, Vec<String>)>,
    /// Oldest first, then name and namespace.
    pub order: String,
    /// Its entry in `facts.v1.VirtualServiceSummaries`.
    pub summary: Bytes,
}

impl Virtual {
    /// Reads a VirtualService from its document.
    pub fn new(object: &Object, document: &[u8], base: &Base) -> Virtual {
        let rule: VirtualService = documents::decode(document).unwrap_or_default();
        let namespace = &*object.reference.namespace;
        let declared = &rule.export_to;
        let list = if declared.is_empty() { &base.mesh.config.default_virtual_service_export_to } else { declared };
        let exports = list.iter().map(|export| if export == "." { namespace } else { export });
        let exports: BTreeSet<&str> = exports.collect();
        let semantics = object.annotations.get(ROUTE_SEMANTICS).map_or("", String::as_str);
        let named = rule.http.iter().filter_map(|route| route.delegate.as_ref()).map(|delegate| {
            let own = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
            (own.to_owned(), delegate.name.clone())
        });
        // Generated ones name no delegates.
        let delegates = if semantics.is_empty() { named.collect() } else { BTreeSet::new() };
        Virtual {
            exports: exports.into_iter().map(str::to_owned).collect(),
            delegates,
            order: key(&[&age(object.creation_nanos), &object.reference.name, namespace]),
            gateway_semantics: semantics == "gateway",
            creation_seconds: creation(object.creation_nanos).0,
            reference: object.reference.clone(),
            rule,
        }
    }

    /// True when it stands for hosts itself.
    pub fn is_root(&self) -> bool {
        !self.rule.hosts.is_empty()
    }

    /// As the indexes have it; `delegate` finds another VirtualService by namespace and name.
    pub fn root(&self, delegate: impl Fn(&str, &str) -> Option<std::sync::Arc<Virtual>>) -> Root {
        let namespace = &*self.reference.namespace;
        let mut destinations = Destinations::default();
        let mut has_http = false;
        for route in &self.rule.http {
            let Some(named) = route.delegate.as_ref().filter(|_| !self.delegates.is_empty()) else {
                has_http = true;
                destinations.add_http(route, &source_namespaces(route));
                continue;
            };
            let home = if named.namespace.is_empty() { namespace } else { &named.namespace };
            let found = delegate(home, &named.name).filter(|found| !found.is_root());
            let visible = found.filter(|found| found.exports.iter().any(|export| export == "*" || export == namespace));
            for inner in visible.iter().flat_map(|found| &found.rule.http) {
                has_http = true;
                let own = source_namespaces(inner);
                destinations.add_http(inner, &if own.is_empty() { source_namespaces(route) } else { own });
            }
        }
        let tcp = self.rule.tcp.iter().flat_map(|route| &route.route).map(|r| r.destination.as_ref());
        let tls = self.rule.tls.iter().flat_map(|route| &route.route).map(|r| r.destination.as_ref());
        tcp.chain(tls).flatten().for_each(|destination| destinations.add(destination, &BTreeSet::new()));
        let gateways =
            if self.rule.gateways.is_empty() { vec![MESH_GATEWAY.to_owned()] } else { self.rule.gateways.clone() };
        let entry = VirtualServiceSummary {
            namespace: namespace.to_owned(),
            name: self.reference.name.to_string(),
            creation_seconds: self.creation_seconds,
            hosts: self.rule.hosts.clone(),
            gateways,
            export_to: self.exports.clone(),
            destinations: destinations.list(),
            has_http,
            has_tcp: !self.rule.tcp.is_empty(),
            has_tls: !self.rule.tls.is_empty(),
            gateway_semantics: self.gateway_semantics,
        };
        let mut summary = Vec::new();
        wire::put_message(&mut summary, 1, &entry);
        let named = self.delegates.iter().map(|(namespace, name)| ObjectRef::new("VirtualService", namespace, name));
        Root {
            gateways: entry.gateways.iter().cloned().collect(),
            destinations: entry.destinations.into_iter().map(|to| (to.host, to.source_namespaces)).collect(),
            references: std::iter::once(self.reference.clone()).chain(named).collect(),
            visibility: crate::services::visibility(&self.exports, namespace),
            order: self.order.clone(),
            summary: summary.into(),
        }
    }
}

impl Root {
    /// The gateways that it names, but for `mesh`.
    pub fn own_gateways(&self) -> impl Iterator<Item = &str> {
        self.gateways.iter().map(String::as_str).filter(|gateway| *gateway != MESH_GATEWAY)
    }

    /// Hosts that routes lead the proxies of a namespace to. The empty namespace stands for any.
    pub fn leads_from<'r>(&'r self, namespace: &'r str) -> impl Iterator<Item = &'r str> {
        let open = move |sources: &[String]| {
            namespace.is_empty() || sources.is_empty() || sources.iter().any(|source| source == namespace)
        };
        self.destinations.iter().filter(move |(_, sources)| open(sources)).map(|(host, _)| host.as_str())
    }
}

/// Destinations in the order they are first named, with the namespaces they are restricted to (none: not restricted).
#[derive(Default)]
struct Destinations {
    order: Vec<(String, u32)>,
    sources: BTreeMap<(String, u32), BTreeSet<String>>,
}

impl Destinations {
    fn add_http(&mut self, route: &HttpRoute, sources: &BTreeSet<String>) {
        let direct = route.route.iter().map(|r| r.destination.as_ref());
        let mirrors = route.mirrors.iter().map(|m| m.destination.as_ref());
        let all = direct.chain([route.mirror.as_ref()]).chain(mirrors);
        all.flatten().for_each(|destination| self.add(destination, sources));
    }

    fn add(&mut self, destination: &Destination, sources: &BTreeSet<String>) {
        let port = destination.port.as_ref().map_or(0, |port| port.number);
        let id = (destination.host.clone(), port);
        match self.sources.get_mut(&id) {
            None => {
                self.order.push(id.clone());
                self.sources.insert(id, sources.clone());
            }
            // One way without a restriction lifts it.
            Some(known) if known.is_empty() || sources.is_empty() => known.clear(),
            Some(known) => known.extend(sources.iter().cloned()),
        }
    }

    fn list(mut self) -> Vec<Summary> {
        let entry = |id: (String, u32)| {
            let sources = self.sources.remove(&id).unwrap_or_default();
            Summary { host: id.0, port: id.1, source_namespaces: sources.into_iter().collect() }
        };
        self.order.into_iter().map(entry).collect()
    }
}

/// The namespaces that an HTTP route is restricted to. As in istiod, one match with a source namespace restricts the route,
/// whatever the other matches say.
fn source_namespaces(route: &HttpRoute) -> BTreeSet<String> {
    let named = route.r#match.iter().map(|m| &m.source_namespace);
    named.filter(|namespace| !namespace.is_empty()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use serde_json::{Value, json};
    use trysail_proto::trysail::facts::v1::VirtualServiceSummaries;

    use super::*;
    use crate::testing::object;

    fn read(namespace: &str, name: &str, spec: Value) -> Virtual {
        let object = object("VirtualService", namespace, name, json!({"spec": spec}));
        Virtual::new(&object, &documents::document(&object, "d").unwrap(), &Base::default())
    }

    fn summary(root: &Root) -> VirtualServiceSummary {
        VirtualServiceSummaries::decode(root.summary.clone()).unwrap().virtual_services.remove(0)
    }

    #[test]
    fn destinations_and_sources() {
        let virtual_service = read(
            "n",
            "v",
            json!({"hosts": ["a"], "exportTo": [".", "m"], "http": [
            {"match": [{"sourceNamespace": "x"}], "route": [{"destination": {"host": "b", "port": {"number": 80}}}, {"destination": {"host": "c"}}]},
            {"route": [{"destination": {"host": "c"}}]},
        ], "tcp": [{"route": [{"destination": {"host": "d.com"}}]}]}),
        );
        let root = virtual_service.root(|_, _| None);
        assert_eq!(root.visibility, ["m", "n"]);
        let summary = summary(&root);
        let found: Vec<_> =
            summary.destinations.iter().map(|d| (d.host.as_str(), d.port, d.source_namespaces.len())).collect();
        assert_eq!(found, [("b.n.svc.d", 80, 1), ("c.n.svc.d", 0, 0), ("d.com", 0, 0)]);
        assert_eq!(
            (summary.gateways, summary.has_http, summary.has_tcp, summary.has_tls),
            (vec!["mesh".to_owned()], true, true, false)
        );
    }

    #[test]
    fn delegates_count_when_visible() {
        let root = read("n", "v", json!({"hosts": ["a"], "http": [{"delegate": {"name": "d", "namespace": "m"}}]}));
        let delegate = |export: &str| {
            Arc::new(read(
                "m",
                "d",
                json!({"exportTo": [export], "http": [{"route": [{"destination": {"host": "x"}}]}]}),
            ))
        };
        assert_eq!(summary(&root.root(|_, _| Some(delegate("n")))).destinations[0].host, "x.m.svc.d");
        let hidden = summary(&root.root(|_, _| Some(delegate("."))));
        assert!(hidden.destinations.is_empty() && !hidden.has_http);
        assert!(!delegate("*").is_root());
    }
}
