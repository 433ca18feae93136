//! ServiceEntries: each host is a service, with workloads that are written in, selected, or found by DNS.
//!
//! A host has one record with all of the entry's valid addresses (istiod has one internal service per address). An entry
//! whose addresses are all invalid has no services.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use trysail_model::{Object, ObjectRef};
use trysail_proto::istio::mesh::v1alpha1::ServiceEntryVisibility;
use trysail_proto::istio::mesh::v1alpha1::service_entry_visibility::{Visibility, match_rule::Matcher};
use trysail_proto::istio::networking::v1alpha3::service_entry::{Location, Resolution as Declared};
use trysail_proto::istio::networking::v1alpha3::{ServiceEntry, ServicePort};
use trysail_proto::trysail::facts::v1 as facts;
use trysail_proto::trysail::facts::v1::{Endpoint, Port, Resolution};

use crate::documents;
use crate::inputs::Base;
use crate::json;
use crate::labels::{self, Labels};
use crate::mesh::selector_matches;
use crate::protocol;
use crate::services::{EXTERNAL, NO_ADDRESS, Service, creation, reference, traffic_distribution};
use crate::workloads::{self, Instance, UNIX};

/// A ServiceEntry, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its object.
    pub reference: ObjectRef,
    /// Its spec.
    pub spec: ServiceEntry,
    /// Endpoints written into it.
    pub inline: Vec<Instance>,
    /// Its services, one per host.
    pub services: Vec<Arc<Service>>,
}

impl Entry {
    /// Reads a ServiceEntry; `None` when its spec does not fit. `known` tells what others know of a host.
    pub fn new(
        object: &Object,
        base: &Base,
        namespace_labels: &Labels,
        namespace_annotations: &Labels,
        known: impl Fn(&str) -> Known,
    ) -> Option<Entry> {
        let bytes = documents::document(object, &base.settings.domain).ok()?;
        let spec: ServiceEntry = documents::decode(&bytes).ok()?;
        let inline = spec.endpoints.iter().enumerate();
        let inline = inline.map(|(i, endpoint)| workloads::inline(endpoint, i, &object.reference, base)).collect();
        let mut services = Vec::new();
        let mut seen = BTreeSet::new();
        let addresses: Vec<String> = spec.addresses.iter().filter_map(|address| plain_address(address)).collect();
        let has_services = spec.addresses.is_empty() || !addresses.is_empty();
        for host in spec.hosts.iter().filter(|host| has_services && seen.insert(*host)) {
            let distribution = traffic_distribution("", &object.annotations, namespace_annotations);
            let record = record(object, &spec, host, &addresses, base, distribution, known(host));
            let has_selector = spec.workload_selector.is_some();
            let service = Service { has_selector, ..Service::new(record, object, base, namespace_labels) };
            services.push(Arc::new(service));
        }
        Some(Entry { reference: object.reference.clone(), spec, inline, services })
    }

    /// The labels that select its workloads.
    pub fn selector(&self) -> Option<&Labels> {
        self.spec.workload_selector.as_ref().map(|selector| &selector.labels)
    }

    /// Are its addresses resolved by DNS?
    pub fn is_dns(&self) -> bool {
        matches!(self.spec.resolution(), Declared::Dns | Declared::DnsRoundRobin)
    }

    /// Does it select this workload?
    pub fn takes(&self, instance: &Instance) -> bool {
        let Some(selector) = self.selector() else { return false };
        (!instance.dns_only || self.is_dns()) && labels::subset(selector, &instance.endpoint.labels)
    }

    /// The endpoints of one of its hosts, for all ports; `selected` are the workloads it takes, in order.
    pub fn endpoints(&self, host: &str, selected: &[Arc<Instance>], base: &Base) -> Vec<Endpoint> {
        if self.selector().is_some() {
            return selected.iter().flat_map(|instance| self.ports_of(instance)).collect();
        }
        if !self.inline.is_empty() || !self.is_dns() {
            return self.inline.iter().flat_map(|instance| self.ports_of(instance)).collect();
        }
        // Without endpoints the host itself is what DNS is asked for.
        let itself = |port: &ServicePort| Endpoint {
            addresses: vec![host.to_owned()],
            port: if port.target_port > 0 { port.target_port } else { port.number },
            port_name: port.name.clone(),
            legacy_cluster_port_key: port.number.to_string(),
            tls_mode: "disabled".to_owned(),
            health: facts::Health::Unknown.into(),
            cluster_id: base.settings.cluster_id.clone(),
            namespace: self.reference.namespace.to_string(),
            workload_name: self.reference.name.to_string(),
            ..Default::default()
        };
        self.spec.ports.iter().map(itself).collect()
    }

    /// A workload's endpoints, one per port: its own port of that name, else the entry's target port, else the port.
    pub fn ports_of<'a>(&'a self, instance: &'a Instance) -> impl Iterator<Item = Endpoint> + 'a {
        self.spec.ports.iter().map(|port| {
            let mut endpoint = instance.endpoint.clone();
            let own = instance.ports.get(&port.name).copied().filter(|number| *number > 0);
            if let [address] = endpoint.addresses.as_mut_slice()
                && let Some(path) = address.strip_prefix(UNIX)
            {
                *address = path.to_owned();
                endpoint.port = 0;
            } else {
                endpoint.port = own.unwrap_or(if port.target_port > 0 { port.target_port } else { port.number });
            }
            endpoint.port_name.clone_from(&port.name);
            endpoint.legacy_cluster_port_key = port.number.to_string();
            endpoint
        })
    }
}

/// What is known of a host beside its entry.
#[derive(Default)]
pub struct Known {
    /// Services that stand for it, `namespace/host`.
    pub aliases: Vec<String>,
    /// Addresses that this control plane gave to it.
    pub allocated: Option<Arc<[String; 2]>>,
}

/// How widely mesh configuration lets ServiceEntries of a namespace be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As they say themselves.
    Public,
    /// By their own namespace at most.
    Namespace,
    /// By nobody.
    None,
}

/// The limit for entries of a namespace: the first policy whose rules all match, else the default.
pub fn visibility_limit(limits: &ServiceEntryVisibility, namespace_labels: &Labels) -> Limit {
    let matches = |matcher: &Option<Matcher>| match matcher {
        Some(Matcher::NamespaceSelector(selector)) => selector_matches(selector, namespace_labels),
        // A matcher that is not known matches nothing.
        None => false,
    };
    let mut policies = limits.policies.iter();
    let policy = policies.find(|policy| policy.matching_rules.iter().all(|rule| matches(&rule.matcher)));
    match policy.map_or(limits.default_visibility(), |policy| policy.visibility()) {
        Visibility::None => Limit::None,
        Visibility::Namespace => Limit::Namespace,
        Visibility::Public | Visibility::Unspecified => Limit::Public,
    }
}

/// An address as services have it: an IP, or a range that is more than one address.
fn plain_address(address: &str) -> Option<String> {
    if address.parse::<std::net::IpAddr>().is_ok() {
        return Some(address.to_owned());
    }
    let range: IpNet = address.parse().ok()?;
    let single = range.prefix_len() == range.max_prefix_len();
    Some(if single { range.addr().to_string() } else { address.to_owned() })
}

fn record(
    object: &Object,
    spec: &ServiceEntry,
    host: &str,
    addresses: &[String],
    base: &Base,
    distribution: &str,
    known: Known,
) -> facts::Service {
    let external = spec.location() == Location::MeshExternal;
    let resolution = match spec.resolution() {
        Declared::None => Resolution::Passthrough,
        Declared::Static => Resolution::ClientSideLb,
        Declared::Dns => Resolution::DnsLb,
        Declared::DnsRoundRobin => Resolution::DnsRoundRobinLb,
        Declared::DynamicDns => Resolution::DynamicDns,
    };
    let mut labels = (*object.labels).clone();
    if external && base.environment.flag("LABEL_CANONICAL_SERVICES_FOR_MESH_EXTERNAL_SERVICE_ENTRIES") {
        let (name, revision) = labels::canonical(&labels, &object.reference.name);
        labels.insert(labels::CANONICAL_NAME.to_owned(), name);
        labels.insert(labels::CANONICAL_REVISION.to_owned(), revision);
    }
    let port = |port: &ServicePort| Port {
        name: port.name.clone(),
        port: port.number,
        protocol: protocol::parse(&port.protocol).into(),
        target_port: port.target_port,
        ..Default::default()
    };
    let (creation_seconds, creation_nanos) = creation(object.creation_nanos);
    facts::Service {
        host: host.to_owned(),
        namespace: object.reference.namespace.to_string(),
        name: host.to_owned(),
        source: Some(reference(&object.reference)),
        creation_seconds,
        creation_nanos,
        ports: spec.ports.iter().map(port).collect(),
        resolution: resolution.into(),
        address: addresses.first().map_or(NO_ADDRESS, String::as_str).to_owned(),
        addresses: addresses.to_vec(),
        mesh_external: external,
        export_to: spec.export_to.clone(),
        labels,
        label_selectors: spec.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default(),
        registry: EXTERNAL.to_owned(),
        traffic_distribution: distribution.to_owned(),
        subject_alt_names: spec.subject_alt_names.clone(),
        auto_allocated_addresses: match known.allocated {
            Some(addresses) => addresses.to_vec(),
            None => allocated_addresses(object, spec, host, base),
        },
        aliases: known.aliases,
        annotations: (*object.annotations).clone(),
        cluster_id: base.settings.cluster_id.clone(),
        selects_workloads: spec.workload_selector.is_some(),
        ..Default::default()
    }
}

/// Addresses that a controller gave to a host (IPv4 first): only where the operator wants them and they can be honoured.
fn allocated_addresses(object: &Object, spec: &ServiceEntry, host: &str, base: &Base) -> Vec<String> {
    let opted_out = object.labels.get(labels::AUTO_ALLOCATE).is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let enabled = base.environment.flag("PILOT_ENABLE_IP_AUTOALLOCATE");
    if !enabled || opted_out || spec.resolution() == Declared::None || !spec.addresses.is_empty() {
        return Vec::new();
    }
    let (mut v4, mut v6) = (None, None);
    let status = object.status();
    let listed = json::list(&status, &["addresses"]).iter();
    for address in listed.filter(|a| json::text(a, &["host"]) == host).map(|a| json::text(a, &["value"])) {
        match address.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.is_ipv4() => v4 = Some(ip.to_string()),
            Ok(ip) => v6 = Some(ip.to_string()),
            Err(_) => {}
        }
    }
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::object;

    fn entry(body: Value) -> Entry {
        let none = Labels::new();
        Entry::new(&object("ServiceEntry", "n", "e", body), &Base::default(), &none, &none, |_| Known::default())
            .unwrap()
    }

    #[test]
    fn hosts_and_addresses() {
        let entry = entry(
            json!({"spec": {"hosts": ["a.com", "*.b.com"], "addresses": ["1.1.1.1", "10.0.0.0/8", "2.2.2.2/32", "bad"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "STATIC", "exportTo": ["."]}}),
        );
        assert_eq!(entry.services.len(), 2);
        let service = &entry.services[0];
        assert_eq!((service.key.as_str(), service.visibility.as_slice()), ("n/a.com", &["n".to_owned()][..]));
        assert_eq!(service.record.addresses, ["1.1.1.1", "10.0.0.0/8", "2.2.2.2"]);
        assert!(service.record.mesh_external);
    }

    #[test]
    fn invalid_addresses_alone_make_no_service() {
        assert!(entry(json!({"spec": {"hosts": ["a.com"], "addresses": ["bad"]}})).services.is_empty());
    }

    #[test]
    fn dns_entries_resolve_themselves() {
        let entry = entry(json!({"spec": {"hosts": ["a.com"], "resolution": "DNS", "location": "MESH_EXTERNAL",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}]},
            "status": {"addresses": [{"host": "a.com", "value": "2001:2::1"}, {"host": "a.com", "value": "240.240.0.1"}]}}));
        let endpoints = entry.endpoints("a.com", &[], &Base::default());
        assert_eq!((endpoints[0].addresses[0].as_str(), endpoints[0].port), ("a.com", 8080));
        assert_eq!(entry.services[0].record.auto_allocated_addresses, ["240.240.0.1", "2001:2::1"]);
    }

    #[test]
    fn ports_of_endpoints() {
        let entry = entry(json!({"spec": {"hosts": ["a.com"], "resolution": "STATIC", "ports": [
            {"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 90, "name": "x", "protocol": "TCP", "targetPort": 91}],
            "endpoints": [{"address": "1.1.1.1", "ports": {"http": 8080}}, {"address": "unix:///a/b"}]}}));
        let found: Vec<_> = entry
            .endpoints("a.com", &[], &Base::default())
            .into_iter()
            .map(|e| (e.addresses[0].clone(), e.port))
            .collect();
        let expected = [("1.1.1.1", 8080), ("1.1.1.1", 91), ("/a/b", 0), ("/a/b", 0)];
        assert_eq!(found, expected.map(|(a, p)| (a.to_owned(), p)));
    }
}
