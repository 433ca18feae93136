//! Every query that stages may ask, and how it is answered.
//!
//! Which queries a change can have moved is stated in [`crate::affected`], one function per kind or group of kinds.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use trysail_model::{Answer, ObjectRef, Query, QueryDecl};
use trysail_proto::trysail::facts::v1 as facts;

use crate::config::destination_rule::covers;
use crate::config::virtual_service::Root;
use crate::endpoints::View;
use crate::gateways;
use crate::labels;
use crate::services::Service;
use crate::state::object_key;
use crate::table::{Table, key, last_part, prefix};
use crate::{targets, wire};

const fn mesh(kind: &'static str, arity: usize) -> QueryDecl {
    QueryDecl { kind, about_proxy: false, predicate: false, takes_list: false, arity }
}

const fn mesh_list(kind: &'static str) -> QueryDecl {
    QueryDecl { kind, about_proxy: false, predicate: false, takes_list: true, arity: 0 }
}

const fn mesh_truth_with_list(kind: &'static str, arity: usize) -> QueryDecl {
    QueryDecl { kind, about_proxy: false, predicate: true, takes_list: true, arity }
}

const fn about(kind: &'static str, arity: usize, takes_list: bool, predicate: bool) -> QueryDecl {
    QueryDecl { kind, about_proxy: true, predicate, takes_list, arity }
}

/// All of them, except those that ask for other calls' outputs.
pub const QUERIES: &[QueryDecl] = &[
    mesh_list("mesh-config"),
    mesh_list("features"),
    mesh("setting", 1),
    mesh("service", 1),
    mesh("services-of-host", 1),
    mesh("service-index", 1),
    mesh("service-index-namespaces", 0),
    mesh("services-in-namespace", 1),
    mesh("endpoints", 2),
    mesh_truth_with_list("has-ready-endpoints", 2),
    mesh("service-accounts", 1),
    mesh("targets-at", 1),
    mesh("workload-at", 1),
    mesh("namespace", 1),
    mesh("network-gateways", 0),
    mesh("network-ranges", 0),
    mesh("object", 2),
    mesh("selectors", 2),
    mesh("envoy-filter", 1),
    mesh("selector-namespaces", 1),
    mesh("virtual-service-index", 1),
    mesh("virtual-service-index-namespaces", 0),
    mesh("gateway-virtual-services", 2),
    mesh("gateway-virtual-service-namespaces", 1),
    mesh("gateway-destinations", 2),
    mesh("virtual-service-gateways", 0),
    mesh("destination-rules-matching", 1),
    about("proxy", 1, false, false),
    about("proxy-in-namespaces", 0, true, false),
    about("proxy-labels-match", 0, true, true),
    about("proxy-has-address", 0, true, true),
    about("proxy-version-at-least", 1, false, true),
    about("proxy-version-matches", 1, false, true),
    about("proxy-metadata-match", 0, true, true),
    about("proxy-targets", 0, false, false),
    about("proxy-config", 0, true, false),
];

impl View<'_> {
    /// Answers a query about the mesh; an unknown kind or malformed argument is "there is none".
    pub fn answer(&self, query: &Query) -> Answer {
        match query.kind {
            "mesh-config" => present(self.base.mesh.project(&query.args), []),
            "features" => {
                let values = query.args.iter().map(|name| self.base.environment.text(name).to_owned());
                present(strings(values.collect()), [])
            }
            "setting" => {
                let value = self.base.settings.named(query.arg(0));
                value.map_or_else(Answer::none, |text| present(Bytes::copy_from_slice(text.as_bytes()), []))
            }
            "service" => self.service(query.arg(0)),
            "services-of-host" => self.services_of_host(query.arg(0)),
            "service-index" => joined(&self.state.visible, &[query.arg(0)], |s| (&s.summary, vec![s.source.clone()])),
            "service-index-namespaces" => present(strings(groups(&self.state.visible, "", "*")), []),
            "services-in-namespace" => self.services_in_namespace(query.arg(0)),
            "endpoints" => self.endpoints(query.arg(0), query.arg(1)),
            "has-ready-endpoints" => {
                self.has_ready_endpoints(query.arg(0), query.arg(1), query.args.get(2..).unwrap_or_default())
            }
            "service-accounts" => match self.accounts_of(query.arg(0)) {
                Some((accounts, objects)) => present(strings(accounts), objects),
                None => Answer::none(),
            },
            "targets-at" => {
                let (found, objects) = self.targets_at(query.arg(0));
                if found.is_empty() { none(objects) } else { present(wire::encode(&targets::encode(&found)), objects) }
            }
            "workload-at" => self.workload_at(query.arg(0)),
            "namespace" => self.namespace(query.arg(0)),
            "network-gateways" => {
                let (gateways, objects) = gateways::all(self.state, self.base);
                present(wire::encode(&facts::NetworkGateways { gateways }), objects)
            }
            "network-ranges" => present(strings(self.base.networks.ranges()), []),
            "object" => self.object(query.arg(0), query.arg(1)),
            "selectors" => self.selectors(query.arg(0), query.arg(1)),
            "envoy-filter" => self.envoy_filter(query.arg(0)),
            "selector-namespaces" => {
                present(strings(groups(&self.state.config_order, &prefix(&[query.arg(0)]), "")), [])
            }
            "virtual-service-index" => {
                joined(&self.state.visible_roots, &[query.arg(0)], |root| (&root.summary, root.references.clone()))
            }
            "virtual-service-index-namespaces" => present(strings(groups(&self.state.visible_roots, "", "*")), []),
            "gateway-virtual-services" => self.gateway_virtual_services(query.arg(0), query.arg(1)),
            "gateway-virtual-service-namespaces" => {
                let named = self.gateway_roots(query.arg(0)).flat_map(|root| &root.visibility);
                let namespaces: BTreeSet<&String> = named.filter(|viewer| *viewer != "*").collect();
                present(strings(namespaces.into_iter().cloned().collect()), [])
            }
            "gateway-destinations" => {
                let hosts = self.gateway_roots(query.arg(0)).flat_map(|root| root.leads_from(query.arg(1)));
                let hosts: BTreeSet<&str> = hosts.collect();
                let objects = self.gateway_roots(query.arg(0)).flat_map(|root| root.references.clone());
                present(strings(hosts.into_iter().map(str::to_owned).collect()), objects)
            }
            "virtual-service-gateways" => present(strings(groups(&self.state.gateway_roots, "", "")), []),
            "destination-rules-matching" => self.destination_rules(query.arg(0)),
            _ => Answer::none(),
        }
    }

    /// The service that a key means: the Kubernetes one, else the oldest; with the ports of those that istiod would merge
    /// into it.
    fn service(&self, service_key: &str) -> Answer {
        let all = self.state.services_of(service_key);
        let objects: Vec<ObjectRef> = all.iter().map(|service| service.source.clone()).collect();
        let chosen = all.iter().find(|service| service.is_kubernetes()).or(all.first());
        let Some(chosen) = chosen else { return none(objects) };
        let mergeable = |other: &&Arc<Service>| {
            let (a, b) = (&chosen.record, &other.record);
            !Arc::ptr_eq(chosen, other)
                && !chosen.is_kubernetes()
                && (a.resolution, &a.labels, &a.label_selectors, &a.export_to)
                    == (b.resolution, &b.labels, &b.label_selectors, &b.export_to)
        };
        let mut others = all.iter().filter(mergeable).peekable();
        if others.peek().is_none() {
            return present(chosen.body.clone(), objects);
        }
        let mut record = chosen.record.clone();
        for port in others.flat_map(|other| &other.record.ports) {
            if record.ports.iter().all(|known| known.port != port.port) {
                record.ports.push(port.clone());
            }
        }
        present(wire::encode(&record), objects)
    }

    fn services_of_host(&self, host: &str) -> Answer {
        let all = self.state.hosts_services(host);
        let mut seen = BTreeSet::new();
        let keys = all.iter().filter(|service| seen.insert(&service.key)).map(|service| service.key.clone());
        present(strings(keys.collect()), all.iter().map(|service| service.source.clone()))
    }

    fn services_in_namespace(&self, namespace: &str) -> Answer {
        let of_namespace = format!("{namespace}/");
        let mut all: Vec<&Arc<Service>> = self.state.services.with_prefix(&of_namespace).map(|(_, s)| s).collect();
        all.sort_by(|a, b| a.order.cmp(&b.order));
        let bytes: Vec<u8> = all.iter().flat_map(|service| service.summary.iter().copied()).collect();
        present(bytes.into(), all.iter().map(|service| service.source.clone()))
    }

    fn endpoints(&self, service_key: &str, port: &str) -> Answer {
        match self.endpoints_of_port(service_key, port) {
            Some(found) => {
                let endpoints = facts::Endpoints { endpoints: found.endpoints };
                present(wire::encode(&endpoints), found.objects)
            }
            None => none(self.state.services_of(service_key).iter().map(|service| service.source.clone())),
        }
    }

    fn has_ready_endpoints(&self, service_key: &str, port: &str, labels: &[String]) -> Answer {
        let Some(found) = self.endpoints_of_port(service_key, port) else {
            return none(self.state.services_of(service_key).iter().map(|service| service.source.clone()));
        };
        let has = |endpoint: &facts::Endpoint, pair: &str| {
            pair.split_once('=').is_some_and(|(name, value)| endpoint.labels.get(name).is_some_and(|v| v == value))
        };
        let is_ready = found.endpoints.iter().any(|endpoint| {
            endpoint.health() == facts::Health::Healthy && labels.iter().all(|pair| has(endpoint, pair))
        });
        if is_ready { present(Bytes::new(), found.objects) } else { none(found.objects) }
    }

    fn workload_at(&self, address: &str) -> Answer {
        let (endpoint, reference, labels) = match self.pod_at(address) {
            Some(pod) => (self.pod_endpoint(Some(&pod), address), pod.reference.clone(), None),
            None => {
                let at = prefix(&[address]);
                let found = self.state.workloads_at.with_prefix(&at).next().map(|(_, instance)| instance.clone());
                let Some(found) = found else { return Answer::none() };
                (found.endpoint.clone(), found.reference.clone(), found.endpoint.labels.get(labels::NETWORK).cloned())
            }
        };
        let workload = facts::Workload {
            namespace: reference.namespace.to_string(),
            name: reference.name.to_string(),
            labels: endpoint.labels,
            service_account: endpoint.service_account,
            locality: endpoint.locality,
            network: labels.unwrap_or(endpoint.network),
            node_name: endpoint.node_name,
            kind: reference.kind.to_string(),
        };
        present(wire::encode(&workload), [reference])
    }

    fn namespace(&self, name: &str) -> Answer {
        let objects = [ObjectRef::new("Namespace", "", name)];
        match self.state.namespaces.get(name) {
            Some(namespace) => {
                let record =
                    facts::Namespace { labels: namespace.labels.clone(), annotations: namespace.annotations.clone() };
                present(wire::encode(&record), objects)
            }
            None => none(objects),
        }
    }

    fn object(&self, kind: &str, name: &str) -> Answer {
        let Some((namespace, name)) = name.split_once('/') else { return Answer::none() };
        let reference = ObjectRef::new(kind, namespace, name);
        match self.state.configs.get(&object_key(&reference)) {
            Some(config) => present(config.record.clone(), [reference]),
            None => none([reference]),
        }
    }

    fn envoy_filter(&self, name: &str) -> Answer {
        let Some((namespace, name)) = name.split_once('/') else { return Answer::none() };
        let reference = ObjectRef::new("EnvoyFilter", namespace, name);
        match self.state.configs.get(&object_key(&reference)) {
            Some(config) => present(config.patches.clone(), [reference]),
            None => none([reference]),
        }
    }

    fn selectors(&self, kind: &str, namespace: &str) -> Answer {
        let in_namespace = prefix(&[kind, namespace]);
        let mut bytes = Vec::new();
        let mut objects = Vec::new();
        for (key, config) in self.state.config_order.with_prefix(&in_namespace) {
            bytes.extend_from_slice(&config.summary);
            objects.push(ObjectRef::new(kind, namespace, last_part(key)));
        }
        present(bytes.into(), objects)
    }

    /// Root VirtualServices of a gateway, oldest first.
    fn gateway_roots(&self, gateway: &str) -> impl Iterator<Item = &Arc<Root>> {
        let of_gateway = prefix(&[gateway]);
        let from = self.state.gateway_roots.from(&of_gateway);
        from.take_while(move |(key, _)| key.starts_with(&of_gateway)).map(|(_, root)| root)
    }

    fn gateway_virtual_services(&self, gateway: &str, visibility: &str) -> Answer {
        let mut bytes = Vec::new();
        let mut objects = Vec::new();
        for root in self.gateway_roots(gateway).filter(|root| root.visibility.iter().any(|v| v == visibility)) {
            bytes.extend_from_slice(&root.summary);
            objects.extend(root.references.iter().cloned());
        }
        present(bytes.into(), objects)
    }

    fn destination_rules(&self, host: &str) -> Answer {
        let wildcards = self.state.wildcards.iter().map(|(wildcard, _)| &**wildcard);
        let mut hosts: BTreeSet<&str> = wildcards.filter(|wildcard| covers(wildcard, host)).collect();
        hosts.insert(host);
        let mut found = Vec::new();
        for host in hosts {
            let of_host = prefix(&[host]);
            found.extend(
                self.state.rules_of.from(&of_host).take_while(|(k, _)| k.starts_with(&of_host)).map(|(_, r)| r),
            );
        }
        found.sort_by(|a, b| a.order.cmp(&b.order));
        let bytes: Vec<u8> = found.iter().flat_map(|rule| rule.summary.iter().copied()).collect();
        present(bytes.into(), found.iter().map(|rule| rule.reference.clone()))
    }
}

fn present(bytes: Bytes, objects: impl IntoIterator<Item = ObjectRef>) -> Answer {
    Answer::new(Some(bytes), objects.into_iter().collect::<Vec<_>>())
}

fn none(objects: impl IntoIterator<Item = ObjectRef>) -> Answer {
    Answer::new(None, objects.into_iter().collect::<Vec<_>>())
}

fn strings(values: Vec<String>) -> Bytes {
    wire::encode(&facts::Strings { values })
}

/// The entries of a group of a table, encoded one after the other.
fn joined<V: Clone>(table: &Table<V>, group: &[&str], entry: impl Fn(&V) -> (&Bytes, Vec<ObjectRef>)) -> Answer {
    let group = prefix(group);
    let mut bytes = Vec::new();
    let mut objects = Vec::new();
    for (_, value) in table.with_prefix(&group) {
        let (summary, behind) = entry(value);
        bytes.extend_from_slice(summary);
        objects.extend(behind);
    }
    present(bytes.into(), objects)
}

/// The distinct parts of keys that follow a prefix, without one of them.
pub fn groups<V: Clone>(table: &Table<V>, of: &str, without: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut at = of.to_owned();
    while let Some((next, _)) = table.from(&at).next().filter(|(next, _)| next.starts_with(of)) {
        let group = next[of.len()..].split('\0').next().unwrap_or_default().to_owned();
        // All keys of the group are below this, because parts never contain control characters.
        at = format!("{of}{group}\u{1}");
        if group != without {
            found.push(group);
        }
    }
    found
}

/// Is there an entry of a group?
pub fn has_group<V: Clone>(table: &Table<V>, group: &[&str]) -> bool {
    let group = prefix(group);
    table.from(&group).next().is_some_and(|(next, _)| next.starts_with(&group))
}

/// The key of a Kubernetes Service by its name.
pub fn kubernetes_key(view: &View<'_>, namespace: &str, name: &str) -> Option<String> {
    view.state.kubernetes.get(&key(&[namespace, name])).map(|service| service.key.clone())
}
