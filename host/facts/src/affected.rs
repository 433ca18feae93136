//! From what moved to the queries whose answers can have moved: the one place where dependencies are written by hand.
//!
//! Each function states one query kind, or kinds that depend on the same. `old` and `new` are the state before and after
//! the change; where an answer depends on what others refer to (pods of slices), both are asked, because the reference
//! may have moved in the same change. [`crate::audit()`] checks all of this by answering again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_model::{Affected, Proxies, Query};

use crate::config::destination_rule::covers;
use crate::config::virtual_service::Root;
use crate::endpoints::{View, selects_instance};
use crate::gateways::may_be_gateway;
use crate::inputs::Base;
use crate::labels;
use crate::pods::Pod;
use crate::queries::{QUERIES, has_group, kubernetes_key};
use crate::service_entry::Entry;
use crate::services::Service;
use crate::slices::Slice;
use crate::table::prefix;
use crate::touched::Touched;
use crate::workloads::Instance;

/// What was named so far, without repetitions.
#[derive(Default)]
struct Named {
    queries: BTreeSet<Query>,
    proxies: BTreeSet<Proxies>,
    wide: Vec<Affected>,
}

impl Named {
    fn query(&mut self, kind: &'static str, args: &[&str]) {
        self.queries.insert(Query::new(kind, args.iter().copied()));
    }

    fn kind(&mut self, kind: &'static str) {
        if !self.wide.iter().any(|a| matches!(a, Affected::Kind(k) if *k == kind)) {
            self.wide.push(Affected::Kind(kind));
        }
    }

    fn into_list(self) -> Vec<Affected> {
        let proxies = self.proxies.into_iter().map(Affected::Proxies);
        self.wide.into_iter().chain(proxies).chain(self.queries.into_iter().map(Affected::Query)).collect()
    }
}

/// The queries that a change of objects can have moved.
pub fn by_objects(touched: &Touched, old: View<'_>, new: View<'_>) -> Vec<Affected> {
    let mut named = Named::default();
    namespaces(touched, &mut named);
    services(touched, old, new, &mut named);
    endpoints(touched, old, new, &mut named);
    workloads(touched, old, new, &mut named);
    network_gateways(touched, old.base, &mut named);
    objects(touched, old, new, &mut named);
    virtual_services(touched, old, new, &mut named);
    gateway_virtual_services(touched, old, new, &mut named);
    destination_rules(touched, &mut named);
    named.into_list()
}

/// The queries that a change of mesh configuration or networks can have moved.
pub fn by_base(old: &Base, new: &Base) -> Vec<Affected> {
    let same = |field: &str| old.mesh.same(&new.mesh, field);
    if !same("discovery_selectors") {
        let kinds = QUERIES.iter().filter(|decl| !decl.about_proxy).map(|decl| Affected::Kind(decl.kind));
        return kinds.chain([Affected::Proxies(Proxies::All)]).collect();
    }
    let mut named = Named::default();
    // Rare, and much of it (trust domain, networks, what services are) reaches into workloads.
    named.proxies.insert(Proxies::All);
    let mut kinds = |moved: bool, kinds: &[&'static str]| {
        if moved {
            kinds.iter().for_each(|kind| named.kind(kind));
        }
    };
    // What a service states of itself, and who sees it.
    const SERVICES: [&str; 4] = ["service", "service-index", "service-index-namespaces", "services-in-namespace"];
    // What is known of workloads.
    const WORKLOADS: [&str; 4] = ["endpoints", "service-accounts", "targets-at", "workload-at"];
    kinds(!same("trust_domain"), &["service", "endpoints", "service-accounts", "workload-at"]);
    kinds(!same("service_settings") || !same("default_config"), &["endpoints"]);
    kinds(!same("trust_domain_aliases"), &["service-accounts"]);
    kinds(!same("default_service_export_to") || !same("service_entry_visibility"), &SERVICES);
    let roots = ["virtual-service-index", "virtual-service-index-namespaces"];
    kinds(!same("default_virtual_service_export_to"), &roots);
    // Delegates that are not exported lead nowhere.
    let of_gateways = ["gateway-virtual-services", "gateway-virtual-service-namespaces", "gateway-destinations"];
    kinds(!same("default_virtual_service_export_to"), &of_gateways);
    kinds(!same("default_destination_rule_export_to"), &["destination-rules-matching"]);
    kinds(old.networks != new.networks, &WORKLOADS);
    kinds(old.networks != new.networks, &["network-gateways", "network-ranges"]);
    let (before, after) = (old.mesh.clone(), new.mesh.clone());
    named.wide.push(Affected::Matching(
        "mesh-config",
        Arc::new(move |query| query.args.iter().any(|field| !before.same(&after, field))),
    ));
    named.into_list()
}

/// `namespace`
fn namespaces(touched: &Touched, named: &mut Named) {
    touched.namespaces.iter().for_each(|name| named.query("namespace", &[name]));
}

/// `service`, `services-of-host`, `service-index`, `service-index-namespaces`, `services-in-namespace`
fn services(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    for (before, after) in &touched.services {
        let both: Vec<&Arc<Service>> = before.iter().chain(after).collect();
        both.iter().for_each(|service| named.query("service", &[&service.key]));
        let order = |service: &Option<Arc<Service>>| service.as_ref().map(|s| (s.key.clone(), s.order.clone()));
        let reordered = order(before) != order(after);
        if reordered {
            both.iter().for_each(|service| named.query("services-of-host", &[service.host()]));
        }
        let line = |service: &Option<Arc<Service>>| service.as_ref().map(|s| s.summary.clone());
        let rewritten = reordered || line(before) != line(after);
        if rewritten {
            both.iter().for_each(|service| named.query("services-in-namespace", &[service.namespace()]));
        }
        for (one, other) in [(before, after), (after, before)] {
            let seen = one.iter().flat_map(|service| &service.visibility);
            let also = |viewer: &String| other.as_ref().is_some_and(|other| other.visibility.contains(viewer));
            groups.extend(seen.filter(|viewer| rewritten || !also(viewer)).map(String::as_str));
        }
    }
    for group in groups {
        named.query("service-index", &[group]);
        if group != "*" && has_group(&old.state.visible, &[group]) != has_group(&new.state.visible, &[group]) {
            named.query("service-index-namespaces", &[]);
        }
    }
}

/// `endpoints`, `has-ready-endpoints`, `service-accounts`
fn endpoints(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    if touched.network {
        named.kind("endpoints");
    }
    // Service keys, and whether identities can have moved too.
    let mut keys: BTreeMap<String, bool> = BTreeMap::new();
    let mut name = |key: &str, accounts: bool| *keys.entry(key.to_owned()).or_default() |= accounts;
    for (before, after) in &touched.services {
        if endpoint_facet(before) != endpoint_facet(after) {
            before.iter().chain(after).for_each(|service| name(&service.key, true));
        }
    }
    for (before, after) in &touched.entries {
        let services = before.iter().chain(after).flat_map(|entry| &entry.services);
        services.for_each(|service| name(&service.key, true));
    }
    for (before, after) in &touched.slices {
        let service = |slice: &Option<Arc<Slice>>| slice.as_ref().map(|slice| slice.service.clone());
        let accounts = service(before) != service(after) || slice_accounts(before, old) != slice_accounts(after, new);
        for slice in before.iter().chain(after) {
            slice_keys(slice, old, new).iter().for_each(|key| name(key, accounts));
        }
    }
    for (before, after) in &touched.pods {
        let accounts = account_facet(before) != account_facet(after);
        for key in pod_keys(before, after, old, new) {
            name(&key, accounts);
        }
    }
    for pod in pods_on_nodes(touched, old, new) {
        for key in pod_keys(&Some(pod.clone()), &Some(pod.clone()), old, new) {
            name(&key, true);
        }
    }
    for (before, after) in &touched.workloads {
        let account = |instance: &Option<Arc<Instance>>| instance.as_ref().map(|i| i.endpoint.service_account.clone());
        // Which services select it depends on its labels, so those may move identities too.
        let labels =
            |instance: &Option<Arc<Instance>>| instance.as_ref().map(|i| (i.endpoint.labels.clone(), i.dns_only));
        let ports = |instance: &Option<Arc<Instance>>| instance.as_ref().map(|i| i.ports.clone());
        let accounts =
            account(before) != account(after) || labels(before) != labels(after) || ports(before) != ports(after);
        for instance in before.iter().chain(after) {
            for view in [old, new] {
                instance_keys(instance, view).iter().for_each(|key| name(key, accounts));
            }
        }
    }
    if !keys.is_empty() {
        let of_these: BTreeSet<String> = keys.keys().cloned().collect();
        let accepts = move |query: &Query| of_these.contains(query.arg(0));
        named.wide.push(Affected::Matching("has-ready-endpoints", Arc::new(accepts)));
    }
    for (key, accounts) in keys {
        let both = [old.state.services_of(&key), new.state.services_of(&key)];
        for port in both.iter().flatten().flat_map(|service| &service.record.ports) {
            named.query("endpoints", &[&key, &port.port.to_string()]);
        }
        if accounts {
            named.query("service-accounts", &[&key]);
        }
    }
}

/// `targets-at`, `workload-at`
fn workloads(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    if touched.network {
        // Selectors may name the network.
        named.kind("workload-at");
        named.kind("targets-at");
    }
    let mut targets: BTreeSet<String> = BTreeSet::new();
    let mut workloads: BTreeSet<String> = BTreeSet::new();
    for (before, after) in &touched.services {
        if target_facet(before) == target_facet(after) {
            continue;
        }
        for service in before.iter().chain(after).filter(|service| service.is_kubernetes()) {
            for view in [old, new] {
                selected_addresses(service, view, &mut targets);
            }
        }
    }
    for (before, after) in &touched.entries {
        for (entry, view) in before.iter().map(|entry| (entry, old)).chain(after.iter().map(|entry| (entry, new))) {
            targets.extend(entry.inline.iter().map(|instance| instance.address().to_owned()));
            targets.extend(view.selected_by(entry).iter().flat_map(|instance| instance.endpoint.addresses.clone()));
        }
    }
    for (before, after) in &touched.slices {
        targets.extend(moved_addresses(before.as_deref(), after.as_deref()));
    }
    for pod in touched.pods.iter().flat_map(|(before, after)| before.iter().chain(after)) {
        workloads.extend(pod.ips.iter().cloned());
        pod_addresses(pod, old, new, &mut targets);
    }
    for pod in pods_on_nodes(touched, old, new) {
        workloads.extend(pod.ips.iter().cloned());
        pod_addresses(&pod, old, new, &mut targets);
    }
    for instance in touched.workloads.iter().flat_map(|(before, after)| before.iter().chain(after)) {
        workloads.insert(instance.address().to_owned());
        targets.insert(instance.address().to_owned());
    }
    targets.iter().for_each(|address| named.query("targets-at", &[address]));
    workloads.iter().for_each(|address| named.query("workload-at", &[address]));
    proxies(touched, targets.into_iter().chain(workloads), old, new, named);
}

/// What is known of proxies: as of the workloads at their addresses; but pods are also found by the proxy's name, and services
/// also by the labels that it sent.
fn proxies(
    touched: &Touched,
    addresses: impl Iterator<Item = String>,
    old: View<'_>,
    new: View<'_>,
    named: &mut Named,
) {
    if touched.network {
        named.proxies.insert(Proxies::All);
    }
    named.proxies.extend(addresses.map(Proxies::Address));
    let mut namespace = |namespace: &str| {
        named.proxies.insert(Proxies::Namespace(namespace.to_owned()));
    };
    for pod in touched.pods.iter().flat_map(|(before, after)| before.iter().chain(after)) {
        namespace(&pod.reference.namespace);
    }
    for pod in pods_on_nodes(touched, old, new) {
        namespace(&pod.reference.namespace);
    }
    for (before, after) in touched.services.iter().filter(|(before, after)| target_facet(before) != target_facet(after))
    {
        before.iter().chain(after).for_each(|service| namespace(service.namespace()));
    }
}

/// `network-gateways`
fn network_gateways(touched: &Touched, base: &Base, named: &mut Named) {
    let mut services = touched.services.iter().flat_map(|(before, after)| before.iter().chain(after));
    if touched.gateways || services.any(|service| may_be_gateway(service, base)) {
        named.query("network-gateways", &[]);
    }
}

/// `object`, `selectors`, `selector-namespaces`
fn objects(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    for (reference, reordered, before, after) in &touched.configs {
        let kind: &str = &reference.kind;
        let namespace: &str = &reference.namespace;
        if before.as_ref().map(|c| &c.record) != after.as_ref().map(|c| &c.record) {
            named.query("object", &[kind, &format!("{namespace}/{}", reference.name)]);
        }
        if before.as_ref().map(|c| &c.patches) != after.as_ref().map(|c| &c.patches) {
            named.query("envoy-filter", &[&format!("{namespace}/{}", reference.name)]);
        }
        if *reordered || before.as_ref().map(|c| &c.summary) != after.as_ref().map(|c| &c.summary) {
            named.query("selectors", &[kind, namespace]);
        }
        let group = [kind, namespace];
        if has_group(&old.state.config_order, &group) != has_group(&new.state.config_order, &group) {
            named.query("selector-namespaces", &[kind]);
        }
    }
}

/// `virtual-service-index`, `virtual-service-index-namespaces`
fn virtual_services(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    for (before, after) in &touched.roots {
        let line = |root: &Option<Arc<Root>>| root.as_ref().map(|root| (root.order.clone(), root.summary.clone()));
        let rewritten = line(before) != line(after);
        for (one, other) in [(before, after), (after, before)] {
            let seen = one.iter().flat_map(|root| &root.visibility);
            let also = |viewer: &String| other.as_ref().is_some_and(|other| other.visibility.contains(viewer));
            groups.extend(seen.filter(|viewer| rewritten || !also(viewer)).map(String::as_str));
        }
    }
    for group in groups {
        named.query("virtual-service-index", &[group]);
        let has = |view: View<'_>| has_group(&view.state.visible_roots, &[group]);
        if group != "*" && has(old) != has(new) {
            named.query("virtual-service-index-namespaces", &[]);
        }
    }
}

/// `gateway-virtual-services`, `gateway-virtual-service-namespaces`, `gateway-destinations`, `virtual-service-gateways`
fn gateway_virtual_services(touched: &Touched, old: View<'_>, new: View<'_>, named: &mut Named) {
    for (before, after) in &touched.roots {
        let both = || before.iter().chain(after);
        let viewers: BTreeSet<&str> = both().flat_map(|root| &root.visibility).map(String::as_str).collect();
        let gateways: BTreeSet<&str> = both().flat_map(|root| root.own_gateways()).collect();
        for gateway in gateways {
            viewers.iter().for_each(|viewer| named.query("gateway-virtual-services", &[gateway, viewer]));
            let seen_by = |root: &Option<Arc<Root>>| {
                root.as_ref().filter(|root| root.gateways.contains(gateway)).map(|root| root.visibility.clone())
            };
            if seen_by(before) != seen_by(after) {
                named.query("gateway-virtual-service-namespaces", &[gateway]);
            }
            let of_gateway = gateway.to_owned();
            let accepts = move |query: &Query| query.arg(0) == of_gateway;
            named.wide.push(Affected::Matching("gateway-destinations", Arc::new(accepts)));
            let has = |view: View<'_>| has_group(&view.state.gateway_roots, &[gateway]);
            if has(old) != has(new) {
                named.query("virtual-service-gateways", &[]);
            }
        }
    }
}

/// `destination-rules-matching`: a wildcard reaches every host that it covers.
fn destination_rules(touched: &Touched, named: &mut Named) {
    for rule in touched.rules.iter().flat_map(|(before, after)| before.iter().chain(after)) {
        if rule.host.starts_with('*') {
            let host = rule.host.clone();
            let accepts = move |query: &Query| covers(&host, query.arg(0));
            named.wide.push(Affected::Matching("destination-rules-matching", Arc::new(accepts)));
        } else {
            named.query("destination-rules-matching", &[&rule.host]);
        }
    }
}

/// What of a service its endpoints depend on.
fn endpoint_facet(service: &Option<Arc<Service>>) -> Option<impl PartialEq + use<>> {
    service.as_ref().map(|service| {
        let record = &service.record;
        (
            service.order.clone(),
            (record.ports.clone(), record.resolution, record.addresses.clone(), record.subject_alt_names.clone()),
            (service.selector().cloned(), record.labels.clone()),
        )
    })
}

/// What of a service the targets of workloads depend on.
fn target_facet(service: &Option<Arc<Service>>) -> Option<impl PartialEq + use<>> {
    service.as_ref().map(|service| {
        let record = &service.record;
        let rest = (service.selector().cloned(), service.transports.clone(), record.addresses.clone());
        (service.order.clone(), record.ports.clone(), record.resolution, rest)
    })
}

/// What of a pod identities depend on: its account, whether it is there, and who selects it.
fn account_facet(pod: &Option<Arc<Pod>>) -> Option<impl PartialEq + use<>> {
    pod.as_ref().map(|pod| (pod.account.clone(), pod.ips.clone(), pod.in_service, pod.labels.clone()))
}

/// Keys of the service that a slice belongs to.
fn slice_keys(slice: &Slice, old: View<'_>, new: View<'_>) -> BTreeSet<String> {
    let key = |view: View<'_>| kubernetes_key(&view, &slice.reference.namespace, &slice.service);
    [old, new].into_iter().filter_map(key).collect()
}

/// The identities in a slice.
fn slice_accounts(slice: &Option<Arc<Slice>>, view: View<'_>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // A slice without ports has no endpoints, and so no identities.
    let Some(slice) = slice.as_ref().filter(|slice| !slice.ports.is_empty()) else { return found };
    for member in &slice.members {
        for address in &member.addresses {
            let pod = view.pod_of(slice, member, address);
            found.extend(pod.map(|pod| format!("{}/{}", pod.reference.namespace, pod.account)));
        }
    }
    found
}

/// Keys of the services that a pod is, or may be, an endpoint of.
fn pod_keys(before: &Option<Arc<Pod>>, after: &Option<Arc<Pod>>, old: View<'_>, new: View<'_>) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for pod in before.iter().chain(after) {
        for slice in slices_of(pod, old, new) {
            keys.extend(slice_keys(&slice, old, new));
        }
        for view in [old, new] {
            if let Some(instance) = view.pod_instance(pod) {
                keys.extend(
                    entries_taking(&instance, view).iter().flat_map(|e| e.services.iter().map(|s| s.key.clone())),
                );
            }
        }
    }
    keys
}

/// Keys of the services that select a WorkloadEntry.
fn instance_keys(instance: &Instance, view: View<'_>) -> BTreeSet<String> {
    let in_namespace = prefix(&[&instance.namespace]);
    let services = view.state.kubernetes.with_prefix(&in_namespace).map(|(_, service)| service);
    let mut keys: BTreeSet<String> =
        services.filter(|service| selects_instance(service, instance)).map(|service| service.key.clone()).collect();
    keys.extend(entries_taking(instance, view).iter().flat_map(|e| e.services.iter().map(|s| s.key.clone())));
    keys
}

/// ServiceEntries that select a workload.
fn entries_taking(instance: &Instance, view: View<'_>) -> Vec<Arc<Entry>> {
    let in_namespace = prefix(&[&instance.namespace]);
    let entries = view.state.entries.with_prefix(&in_namespace).map(|(_, entry)| entry);
    entries.filter(|entry| entry.takes(instance)).cloned().collect()
}

/// Slices that name a pod, or have its address without naming one.
fn slices_of(pod: &Pod, old: View<'_>, new: View<'_>) -> Vec<Arc<Slice>> {
    let named = prefix(&[&pod.reference.namespace, &pod.reference.name]);
    let mut found = Vec::new();
    for view in [old, new] {
        found.extend(view.state.slices_of_pod.with_prefix(&named).map(|(_, slice)| slice.clone()));
        for ip in &pod.ips {
            let at = prefix(&[ip, &pod.reference.namespace]);
            let here = view.state.slices_at.with_prefix(&at).map(|(_, slice)| slice);
            let nameless =
                |slice: &&Arc<Slice>| slice.members.iter().any(|m| m.pod.is_none() && m.addresses.contains(ip));
            found.extend(here.filter(nameless).cloned());
        }
    }
    found
}

/// Pods on the nodes whose locality moved.
fn pods_on_nodes(touched: &Touched, old: View<'_>, new: View<'_>) -> Vec<Arc<Pod>> {
    if touched.nodes.is_empty() {
        return Vec::new();
    }
    let nodes: BTreeSet<&str> = touched.nodes.iter().map(String::as_str).collect();
    // Rare enough to look at all pods.
    let pods = [old, new].into_iter().flat_map(|view| view.state.pods.iter()).map(|(_, pod)| pod);
    pods.filter(|pod| nodes.contains(&*pod.node)).cloned().collect()
}

/// Addresses whose targets a Kubernetes service can be: of pods and WorkloadEntries that it selects, and of its slices.
fn selected_addresses(service: &Service, view: View<'_>, addresses: &mut BTreeSet<String>) {
    let in_namespace = prefix(&[service.namespace()]);
    if let Some(selector) = service.selector() {
        let pods = view.state.pods.with_prefix(&in_namespace).map(|(_, pod)| pod);
        addresses.extend(pods.filter(|pod| labels::selects(selector, &pod.labels)).flat_map(|pod| pod.ips.clone()));
        let entries = view.state.workloads.with_prefix(&in_namespace).map(|(_, instance)| instance);
        let selected = entries.filter(|instance| selects_instance(service, instance));
        addresses.extend(selected.map(|instance| instance.address().to_owned()));
    }
    for slice in view.slices_of(service) {
        addresses.extend(slice.addresses().map(str::to_owned));
    }
}

/// Addresses whose place in a slice moved; health does not count.
fn moved_addresses(before: Option<&Slice>, after: Option<&Slice>) -> BTreeSet<String> {
    let places = |slice: Option<&Slice>| -> BTreeSet<(String, Option<(String, String)>)> {
        let members = slice.into_iter().flat_map(|slice| &slice.members);
        members.flat_map(|m| m.addresses.iter().map(|address| (address.clone(), m.pod.clone()))).collect()
    };
    let shape = |slice: Option<&Slice>| slice.map(|slice| (slice.service.clone(), slice.ports.clone(), slice.ipv6));
    let (old, new) = (places(before), places(after));
    if shape(before) != shape(after) {
        return old.into_iter().chain(new).map(|(address, _)| address).collect();
    }
    old.symmetric_difference(&new).map(|(address, _)| address.clone()).collect()
}

/// Addresses whose targets depend on a pod: its own, and those that slices say are its.
fn pod_addresses(pod: &Pod, old: View<'_>, new: View<'_>, addresses: &mut BTreeSet<String>) {
    addresses.extend(pod.ips.iter().cloned());
    let name = (pod.reference.namespace.to_string(), pod.reference.name.to_string());
    for slice in slices_of(pod, old, new) {
        let members = slice.members.iter().filter(|member| member.pod.as_ref() == Some(&name));
        addresses.extend(members.flat_map(|member| member.addresses.iter().cloned()));
    }
}
