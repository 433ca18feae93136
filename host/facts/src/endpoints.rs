//! Endpoints of services, as istiod's registries have them.

use std::collections::BTreeSet;
use std::sync::Arc;

use trysail_model::ObjectRef;
use trysail_proto::trysail::facts::v1::{Endpoint, Resolution};

use crate::inputs::Base;
use crate::labels::{self, Labels};
use crate::pods::Pod;
use crate::service_entry::Entry;
use crate::services::Service;
use crate::slices::{Member, Slice};
use crate::state::State;
use crate::table::{key, prefix};
use crate::workloads::Instance;

/// The state together with the base it was built on: what questions are answered from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Settings and mesh configuration.
    pub base: &'a Base,
    /// Tables.
    pub state: &'a State,
}

/// Endpoints with the objects that they came from.
#[derive(Default)]
pub struct Found {
    /// Endpoints, in order.
    pub endpoints: Vec<Endpoint>,
    /// Slices and workloads behind them, and those that were looked at in vain.
    pub objects: BTreeSet<ObjectRef>,
}

impl View<'_> {
    /// All endpoints of a service key, of every port.
    pub fn endpoints_of(&self, service_key: &str) -> Found {
        let services = self.state.services_of(service_key);
        let mut found = Found::default();
        for service in &services {
            found.objects.insert(service.source.clone());
            if service.is_kubernetes() {
                self.add_slices(service, &mut found);
                self.add_selected(service, &mut found);
            }
        }
        // Only one endpoint per port counts for services that resolve to one address, whichever entry has it.
        let mut ports = BTreeSet::new();
        for service in services.iter().filter(|service| !service.is_kubernetes()) {
            let name = key(&[&service.source.namespace, &service.source.name]);
            let Some(entry) = self.state.entries.get(&name) else { continue };
            let selected = self.selected_by(entry);
            found.objects.extend(selected.iter().map(|instance| instance.reference.clone()));
            for endpoint in entry.endpoints(service.host(), &selected, self.base) {
                let fresh = ports.insert(endpoint.legacy_cluster_port_key.clone());
                if fresh || service.resolution() != Resolution::DnsRoundRobinLb {
                    found.endpoints.push(endpoint);
                }
            }
        }
        if services.first().is_some_and(|service| self.base.is_cluster_local(service.host())) {
            found.endpoints.iter_mut().for_each(|endpoint| endpoint.cluster_local = true);
        }
        found
    }

    /// The endpoints of one port: those with the port's name, and those of ServiceEntries with its number.
    pub fn endpoints_of_port(&self, service_key: &str, port: &str) -> Option<Found> {
        let services = self.state.services_of(service_key);
        let ports = services.iter().flat_map(|service| &service.record.ports);
        let names: BTreeSet<&str> = ports.filter(|p| p.port.to_string() == port).map(|p| p.name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        let mut found = self.endpoints_of(service_key);
        found.endpoints.retain(|endpoint| match endpoint.legacy_cluster_port_key.as_str() {
            "" => names.contains(endpoint.port_name.as_str()),
            number => number == port || names.contains(endpoint.port_name.as_str()),
        });
        Some(found)
    }

    /// Identities of a service: of all its endpoints and those it states, in all trust domains.
    pub fn accounts_of(&self, service_key: &str) -> Option<(Vec<String>, BTreeSet<ObjectRef>)> {
        let services = self.state.services_of(service_key);
        let stated = services.last()?.record.subject_alt_names.clone();
        let found = self.endpoints_of(service_key);
        let own = found.endpoints.into_iter().map(|endpoint| endpoint.service_account);
        let mut accounts: BTreeSet<String> = own.filter(|account| !account.is_empty()).chain(stated).collect();
        let known: Vec<String> = accounts.iter().cloned().collect();
        for alias in &self.base.mesh.config.trust_domain_aliases {
            let identities = known.iter().filter_map(|id| id.strip_prefix("spiffe://")?.split_once('/'));
            accounts.extend(identities.map(|(_, rest)| format!("spiffe://{alias}/{rest}")));
        }
        Some((accounts.into_iter().collect(), found.objects))
    }

    /// The slices of a Kubernetes service, by name.
    pub fn slices_of(&self, service: &Service) -> Vec<Arc<Slice>> {
        let of_service = prefix(&[service.namespace(), &service.record.name]);
        self.state.slices.with_prefix(&of_service).map(|(_, slice)| slice.clone()).collect()
    }

    fn add_slices(&self, service: &Service, found: &mut Found) {
        let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
        for slice in self.slices_of(service) {
            found.objects.insert(slice.reference.clone());
            for member in &slice.members {
                // The pod gives the labels and the identity; one that is missing would have.
                match &member.pod {
                    Some((namespace, name)) => found.objects.extend([ObjectRef::new("Pod", namespace, name)]),
                    None => found.objects.extend(
                        member
                            .addresses
                            .iter()
                            .filter_map(|at| Some(self.pod_of(&slice, member, at)?.reference.clone())),
                    ),
                }
            }
            for endpoint in self.slice_endpoints(service, &slice) {
                // An address may be in two slices while it moves from one to the other.
                let first = endpoint.addresses.first().cloned().unwrap_or_default();
                if seen.insert((first, endpoint.port_name.clone())) {
                    found.endpoints.push(endpoint);
                }
            }
        }
    }

    /// A slice's endpoints, of all ports. Members whose pod is not known are left out, because nothing would be known of
    /// their identity.
    pub fn slice_endpoints(&self, service: &Service, slice: &Slice) -> Vec<Endpoint> {
        let dual_stack = self.base.environment.flag("ISTIO_DUAL_STACK") && service.record.addresses.len() > 1;
        let drains = self.drains(service);
        let mut found = Vec::new();
        for member in &slice.members {
            let health = member.health(true, drains);
            for address in &member.addresses {
                let pod = self.pod_of(slice, member, address);
                if pod.is_none() && member.pod.is_some() {
                    continue;
                }
                let mut addresses = vec![address.clone()];
                if let Some(pod) = pod.as_ref().filter(|pod| dual_stack && member.pod.is_some() && pod.ips.len() > 1) {
                    if slice.ipv6 {
                        // The slice of the other family has the same pod, and gets both addresses.
                        continue;
                    }
                    addresses.clone_from(&pod.ips);
                }
                let template =
                    Endpoint { addresses, health: health.into(), ..self.pod_endpoint(pod.as_deref(), address) };
                found.extend(slice.ports.iter().map(|(name, number)| Endpoint {
                    port: *number,
                    port_name: name.clone(),
                    ..template.clone()
                }));
            }
        }
        found
    }

    /// Does a service keep ending endpoints for the sessions they have?
    fn drains(&self, service: &Service) -> bool {
        ["PILOT_PERSISTENT_SESSION_LABEL", "PILOT_PERSISTENT_SESSION_HEADER_LABEL"].iter().any(|variable| {
            let label = self.base.environment.text(variable);
            !label.is_empty() && service.record.labels.get(label).is_some_and(|value| !value.is_empty())
        })
    }

    /// The pod behind an address of a slice: the one that the member names, or one with that address in the namespace.
    pub fn pod_of(&self, slice: &Slice, member: &Member, address: &str) -> Option<Arc<Pod>> {
        match &member.pod {
            Some((namespace, name)) => self.state.pods.get(&key(&[namespace, name])).cloned(),
            None => {
                let at = prefix(&[address, &slice.reference.namespace]);
                let mut pods = self.state.pods_at.with_prefix(&at).map(|(_, pod)| pod);
                pods.find(|pod| pod.in_service && pod.ip == address).cloned()
            }
        }
    }

    /// What is known of an endpoint from its pod, without address and port.
    pub fn pod_endpoint(&self, pod: Option<&Pod>, address: &str) -> Endpoint {
        let cluster = &self.base.settings.cluster_id;
        let Some(pod) = pod else {
            let network = self.network(address, &Labels::new());
            return Endpoint {
                labels: labels::augment(&Labels::new(), cluster, "", "", &network),
                tls_mode: "disabled".to_owned(),
                network,
                cluster_id: cluster.clone(),
                ..Default::default()
            };
        };
        let locality = self.locality(pod);
        let mut network = self.network(&pod.ip, &pod.labels);
        if network.is_empty() {
            network = self.network(address, &pod.labels);
        }
        Endpoint {
            labels: labels::augment(&pod.labels, cluster, &locality, &pod.node, &network),
            locality: labels::locality(&locality),
            service_account: self.base.mesh.identity(&pod.reference.namespace, &pod.account),
            tls_mode: pod.labels.get(labels::TLS_MODE).map_or("disabled", String::as_str).to_owned(),
            network,
            workload_name: pod.workload.clone(),
            namespace: pod.reference.namespace.to_string(),
            cluster_id: cluster.clone(),
            host_name: pod.hostname.clone(),
            sub_domain: pod.subdomain.clone(),
            node_name: pod.node.clone(),
            ..Default::default()
        }
    }

    /// `region/zone/subzone` of a pod: by its label, else of its node.
    pub fn locality(&self, pod: &Pod) -> String {
        let own = labels::locality_label(&pod.labels);
        if !own.is_empty() {
            return own;
        }
        self.state.nodes.get(&pod.node).map(|node| node.locality.clone()).unwrap_or_default()
    }

    /// The network of a workload of this cluster: by its label, the system namespace's label, MeshNetworks.
    pub fn network(&self, address: &str, labels: &Labels) -> String {
        let own = labels.get(labels::NETWORK).map(String::as_str).filter(|network| !network.is_empty());
        let system = Some(self.state.system_network.as_str()).filter(|network| !network.is_empty());
        own.or(system).unwrap_or_else(|| self.base.networks.of(address)).to_owned()
    }

    /// WorkloadEntries that a Kubernetes service selects, with one endpoint per port.
    fn add_selected(&self, service: &Service, found: &mut Found) {
        for instance in self.workload_entries_of(service) {
            found.objects.insert(instance.reference.clone());
            let ports = 0..service.record.ports.len();
            found.endpoints.extend(ports.filter_map(|i| selected_endpoint(service, i, &instance)));
        }
    }

    /// The WorkloadEntries that a Kubernetes service selects.
    pub fn workload_entries_of(&self, service: &Service) -> Vec<Arc<Instance>> {
        if !self.base.environment.flag("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES") || !takes_workload_entries(service) {
            return Vec::new();
        }
        let in_namespace = prefix(&[service.namespace()]);
        let all = self.state.workloads.with_prefix(&in_namespace).map(|(_, instance)| instance);
        all.filter(|instance| selects_instance(service, instance)).cloned().collect()
    }

    /// The workloads that a ServiceEntry selects: pods by name, then WorkloadEntries by name.
    pub fn selected_by(&self, entry: &Entry) -> Vec<Arc<Instance>> {
        if entry.selector().is_none() {
            return Vec::new();
        }
        let in_namespace = prefix(&[&entry.reference.namespace]);
        let mut found = Vec::new();
        if self.base.environment.flag("PILOT_ENABLE_SERVICEENTRY_SELECT_PODS") {
            let pods = self.state.pods.with_prefix(&in_namespace).filter_map(|(_, pod)| self.pod_instance(pod));
            found.extend(pods.filter(|instance| entry.takes(instance)).map(Arc::new));
        }
        let entries = self.state.workloads.with_prefix(&in_namespace).map(|(_, instance)| instance);
        found.extend(entries.filter(|instance| entry.takes(instance)).cloned());
        found
    }

    /// A pod as ServiceEntries select it; `None` unless it is in service.
    pub fn pod_instance(&self, pod: &Pod) -> Option<Instance> {
        if !pod.in_service {
            return None;
        }
        let mut addresses = vec![pod.ip.clone()];
        if self.base.environment.flag("ISTIO_DUAL_STACK") && pod.ips.len() > 1 {
            addresses.clone_from(&pod.ips);
        }
        let named = pod.ports.iter().filter(|port| !port.name.is_empty() && port.transport == "TCP");
        // Backwards, so that of two ports with one name the first stays.
        let ports = named.rev().map(|port| (port.name.clone(), port.number)).collect();
        Some(Instance {
            reference: pod.reference.clone(),
            endpoint: Endpoint { addresses, ..self.pod_endpoint(Some(pod), &pod.ip) },
            ports,
            dns_only: false,
            namespace: pod.reference.namespace.to_string(),
        })
    }
}

/// Can WorkloadEntries be endpoints of the service at all?
pub fn takes_workload_entries(service: &Service) -> bool {
    service.is_kubernetes() && service.resolution() == Resolution::ClientSideLb && service.selector().is_some()
}

/// Does a Kubernetes service select this WorkloadEntry?
pub fn selects_instance(service: &Service, instance: &Instance) -> bool {
    let selector = service.selector();
    !instance.dns_only
        && instance.namespace == service.namespace()
        && selector.is_some_and(|selector| labels::selects(selector, &instance.endpoint.labels))
}

/// A selected WorkloadEntry as endpoint of the i-th port; `None` when it lacks the target port by name.
pub fn selected_endpoint(service: &Service, index: usize, instance: &Instance) -> Option<Endpoint> {
    let port = service.record.ports.get(index)?;
    let number = if port.target_port > 0 { port.target_port } else { port.port };
    // A numbered target may be renumbered by the entry's port of the service port's name.
    let name = if port.target_port > 0 { &port.name } else { &port.target_name };
    let own = instance.ports.get(name).copied().filter(|own| *own > 0 && !name.is_empty());
    if own.is_none() && port.target_port == 0 && !port.target_name.is_empty() {
        return None;
    }
    Some(Endpoint { port: own.unwrap_or(number), port_name: port.name.clone(), ..instance.endpoint.clone() })
}
