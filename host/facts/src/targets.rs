//! Which service ports a workload is an endpoint of: what its inbound listeners are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{ObjectRef, Proxy};
use trysail_proto::trysail::facts::v1::{Port, Protocol, Resolution, ServiceTarget, ServiceTargets};

use crate::endpoints::{View, selected_endpoint, selects_instance};
use crate::labels::{self, Labels};
use crate::pods::{ContainerPort, Pod};
use crate::service_entry::Entry;
use crate::services::Service;
use crate::table::{key, prefix};
use crate::workloads::Instance;

/// A service port and the workload's port behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: Port,
    /// The workload's port.
    pub number: u32,
}

impl View<'_> {
    /// The targets of whatever workload has this address, with the objects looked at.
    pub fn targets_at(&self, address: &str) -> (Vec<Target>, BTreeSet<ObjectRef>) {
        let mut objects = BTreeSet::new();
        let instance = self.selectable_at(address).into_iter().next();
        let pod = self.pod_at(address);
        let mut targets = Vec::new();
        if let Some(instance) = &instance {
            objects.insert(instance.reference.clone());
            targets = self.instance_targets(instance);
        } else if let Some(pod) = &pod {
            objects.insert(pod.reference.clone());
            targets = self.pod_targets(pod, address);
        }
        targets.extend(self.entry_targets(address, None));
        objects.extend(targets.iter().map(|target| target.service.source.clone()));
        (sorted(targets), objects)
    }

    /// The targets of a proxy, as istiod finds them: the WorkloadEntry of its first address, else the pod that it names
    /// itself, else services that select its labels; and ServiceEntries of its namespace that have one of its addresses.
    pub fn targets_of(&self, proxy: &Proxy, labels: &Labels) -> Vec<Target> {
        let mut targets = Vec::new();
        if self.is_of_cluster(proxy) {
            targets = self.kubernetes_targets(proxy, labels);
        }
        let namespace = proxy.metadata.get("NAMESPACE").and_then(Value::as_str).filter(|ns| !ns.is_empty());
        for address in &proxy.addresses {
            targets.extend(self.entry_targets(address, namespace));
        }
        sorted(targets)
    }

    /// Why no service of the cluster is for a proxy's workload, in istiod's words; `None` when one is.
    pub fn lacks_targets(&self, proxy: &Proxy) -> Option<&'static str> {
        if !self.is_of_cluster(proxy) {
            return Some("incorrect_cluster");
        }
        let address = proxy.addresses.first()?;
        if !self.selectable_at(address).is_empty() || !self.kubernetes_targets(proxy, &proxy.labels).is_empty() {
            return None;
        }
        let has_pod = self.pod_of_proxy(proxy).is_some() && !is_test_vm(proxy);
        Some(if has_pod { "no_matching_services" } else { "no_matching_metadata" })
    }

    fn is_of_cluster(&self, proxy: &Proxy) -> bool {
        let cluster = proxy.metadata.get("CLUSTER_ID").and_then(Value::as_str).unwrap_or_default();
        cluster.is_empty() || cluster == self.base.settings.cluster_id
    }

    fn kubernetes_targets(&self, proxy: &Proxy, labels: &Labels) -> Vec<Target> {
        let Some(address) = proxy.addresses.first() else { return Vec::new() };
        let mut instances = self.selectable_at(address);
        if !instances.is_empty() {
            let own = proxy.id.split_once('.').filter(|(_, namespace)| **namespace == *proxy.namespace);
            let named = |i: &Arc<Instance>| own.is_some_and(|(name, _)| name == &*i.reference.name);
            let near = |i: &Arc<Instance>| i.namespace == *proxy.namespace;
            let best = instances.iter().position(|i| named(i) && near(i)).or_else(|| instances.iter().position(near));
            return self.instance_targets(&instances.swap_remove(best.unwrap_or_default()));
        }
        match self.pod_of_proxy(proxy).filter(|_| !is_test_vm(proxy)) {
            Some(pod) => self.pod_targets(&pod, address),
            None => self.metadata_targets(proxy, labels),
        }
    }

    /// The pod that a proxy runs in: the one that it names, which must be of its namespace.
    pub fn pod_of_proxy(&self, proxy: &Proxy) -> Option<Arc<Pod>> {
        let namespace = proxy.metadata.get("NAMESPACE").and_then(Value::as_str).unwrap_or_default();
        let named = proxy.id.split_once('.').filter(|(name, own)| !name.is_empty() && *own == namespace);
        let pod = named.and_then(|(name, namespace)| self.state.pods.get(&key(&[namespace, name])));
        if pod.is_some() || !self.base.environment.flag("ENABLE_PROXY_FIND_POD_BY_IP") {
            return pod.cloned();
        }
        let at = prefix(&[proxy.addresses.first()?]);
        let here = self.state.pods_at.with_prefix(&at).map(|(_, pod)| pod).filter(|pod| pod.in_service);
        let pods: Vec<&Arc<Pod>> = here.collect();
        match pods.as_slice() {
            [one] => Some((*one).clone()),
            // Only pods of the host's network share an address.
            many => many.iter().find(|pod| pod.reference.namespace == proxy.namespace).map(|pod| (*pod).clone()),
        }
    }

    /// WorkloadEntries of an address that Kubernetes services can select, by namespace and name.
    fn selectable_at(&self, address: &str) -> Vec<Arc<Instance>> {
        if !self.base.environment.flag("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES") {
            return Vec::new();
        }
        let at = prefix(&[address]);
        let all = self.state.workloads_at.with_prefix(&at).map(|(_, instance)| instance.clone());
        all.filter(|instance| !instance.dns_only).collect()
    }

    /// The pod of an address; of several the first by namespace and name.
    pub fn pod_at(&self, address: &str) -> Option<Arc<Pod>> {
        let at = prefix(&[address]);
        let mut pods = self.state.pods_at.with_prefix(&at).map(|(_, pod)| pod);
        pods.find(|pod| !pod.ended).cloned()
    }

    fn services_in(&self, namespace: &str) -> Vec<&Arc<Service>> {
        let in_namespace = prefix(&[namespace]);
        let all = self.state.kubernetes.from(&in_namespace).take_while(|(k, _)| k.starts_with(&in_namespace));
        all.map(|(_, service)| service).collect()
    }

    fn instance_targets(&self, instance: &Instance) -> Vec<Target> {
        let mut found = Vec::new();
        for service in self.services_in(&instance.namespace) {
            if service.resolution() != Resolution::ClientSideLb || !selects_instance(service, instance) {
                continue;
            }
            for (index, port) in service.record.ports.iter().enumerate() {
                if port.protocol() == Protocol::Udp {
                    continue;
                }
                if let Some(endpoint) = selected_endpoint(service, index, instance) {
                    found.push(Target { service: service.clone(), port: port.clone(), number: endpoint.port });
                }
            }
        }
        found
    }

    fn pod_targets(&self, pod: &Pod, address: &str) -> Vec<Target> {
        let namespace = &*pod.reference.namespace;
        let selecting = |service: &&Arc<Service>| service.selector().is_some_and(|s| labels::selects(s, &pod.labels));
        let mut selected = self.services_in(namespace).into_iter().filter(selecting).peekable();
        if selected.peek().is_none() {
            return self.slice_targets(namespace, address);
        }
        let port = |port: &Port, transport: &str| match port.target_name.as_str() {
            "" => Some(port.target_port),
            name => pod.port(name, transport),
        };
        selected.flat_map(|service| distinct(service, port)).collect()
    }

    /// Services without a selector whose slices have the address.
    fn slice_targets(&self, namespace: &str, address: &str) -> Vec<Target> {
        let at = prefix(&[address, namespace]);
        let services: BTreeSet<&str> =
            self.state.slices_at.with_prefix(&at).map(|(_, slice)| slice.service.as_str()).collect();
        let mut found = Vec::new();
        for service in services.iter().filter_map(|name| self.state.kubernetes.get(&key(&[namespace, name]))) {
            let slices = self.slices_of(service);
            let endpoints = slices.iter().flat_map(|slice| self.slice_endpoints(service, slice));
            let mut seen = BTreeSet::new();
            for endpoint in endpoints.filter(|e| e.addresses.first().is_some_and(|first| first == address)) {
                let port = service.record.ports.iter().find(|port| port.name == endpoint.port_name);
                if let Some(port) = port.filter(|_| seen.insert(endpoint.port_name.clone())) {
                    found.push(Target { service: service.clone(), port: port.clone(), number: endpoint.port });
                }
            }
        }
        found
    }

    /// Services that select a proxy's labels, when its pod is not known (yet).
    fn metadata_targets(&self, proxy: &Proxy, labels: &Labels) -> Vec<Target> {
        let declared = pod_ports(proxy);
        let mut found = Vec::new();
        for service in self.services_in(&proxy.namespace) {
            if labels.is_empty() || !service.selector().is_some_and(|s| labels::selects(s, labels)) {
                continue;
            }
            let resolve = |port: &Port, transport: &str| match port.target_name.as_str() {
                "" => Some(port.target_port),
                name if declared.is_empty() => Some(name.parse().unwrap_or_default()),
                name => declared.iter().find(|p| p.name == name && p.transport == transport).map(|p| p.number),
            };
            let ports = service.record.ports.iter().zip(&service.transports);
            if ports.clone().any(|(port, transport)| resolve(port, transport).is_none()) {
                // One port that cannot be found makes istiod give up on all.
                return Vec::new();
            }
            found.extend(distinct(service, resolve));
        }
        found
    }

    /// ServiceEntries that have the address as an endpoint; of one namespace, if that is given.
    fn entry_targets(&self, address: &str, namespace: Option<&str>) -> Vec<Target> {
        let at = prefix(&[address]);
        let wanted = |entry_namespace: &str| namespace.is_none_or(|namespace| namespace == entry_namespace);
        let mut found: BTreeMap<(String, String), (Arc<Entry>, Vec<Instance>)> = BTreeMap::new();
        let mut add = |entry: &Arc<Entry>, instance: Instance| {
            let name = (entry.reference.namespace.to_string(), entry.reference.name.to_string());
            found.entry(name).or_insert_with(|| (entry.clone(), Vec::new())).1.push(instance);
        };
        for (_, entry) in self.state.inline_at.with_prefix(&at).filter(|(_, e)| wanted(&e.reference.namespace)) {
            let here = entry.inline.iter().filter(|i| entry.selector().is_none() && i.address() == address);
            here.for_each(|instance| add(entry, instance.clone()));
        }
        let mut instances: Vec<Instance> = Vec::new();
        if self.base.environment.flag("PILOT_ENABLE_SERVICEENTRY_SELECT_PODS") {
            let pods = self.state.pods_at.with_prefix(&at).filter(|(_, pod)| pod.ip == address);
            instances.extend(pods.filter_map(|(_, pod)| self.pod_instance(pod)));
        }
        instances.extend(self.state.workloads_at.with_prefix(&at).map(|(_, instance)| (**instance).clone()));
        for instance in instances.into_iter().filter(|instance| wanted(&instance.namespace)) {
            let in_namespace = prefix(&[&instance.namespace]);
            for (_, entry) in self.state.entries.with_prefix(&in_namespace).filter(|(_, entry)| entry.takes(&instance))
            {
                add(entry, instance.clone());
            }
        }
        let mut targets = Vec::new();
        for (entry, instances) in found.values() {
            for (service, instance) in entry.services.iter().flat_map(|s| instances.iter().map(move |i| (s, i))) {
                let ports = service.record.ports.iter().zip(entry.ports_of(instance));
                targets.extend(ports.map(|(port, endpoint)| Target {
                    service: service.clone(),
                    port: port.clone(),
                    number: endpoint.port,
                }));
            }
        }
        targets
    }
}

/// The proxy says of itself that it only plays a virtual machine.
pub fn is_test_vm(proxy: &Proxy) -> bool {
    let label = proxy.metadata.get("LABELS").and_then(|labels| labels.get(labels::TEST_VM));
    label.and_then(Value::as_str).is_some_and(|value| !value.is_empty())
}

/// Encodes targets as `facts.v1.ServiceTargets`.
pub fn encode(targets: &[Target]) -> ServiceTargets {
    let target = |target: &Target| ServiceTarget {
        service: target.service.key.clone(),
        port: Some(target.port.clone()),
        target_port: target.number,
        endpoint: None,
    };
    ServiceTargets { targets: targets.iter().map(target).collect() }
}

/// A service's targets; of ports with one number and protocol the first counts, because they would share a listener.
fn distinct(service: &Arc<Service>, number: impl Fn(&Port, &str) -> Option<u32>) -> Vec<Target> {
    let mut seen = BTreeSet::new();
    let ports = service.record.ports.iter().zip(&service.transports);
    let found = ports.filter_map(|(port, transport)| {
        let number = number(port, transport)?;
        seen.insert((number, port.protocol)).then(|| Target { service: service.clone(), port: port.clone(), number })
    });
    found.collect()
}

fn sorted(mut targets: Vec<Target>) -> Vec<Target> {
    let age = |t: &Target| (t.service.record.creation_seconds, t.service.record.creation_nanos);
    targets.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| a.service.host().cmp(b.service.host())));
    targets
}

/// Ports that a proxy says its pod declares: metadata POD_PORTS, a list or its text.
fn pod_ports(proxy: &Proxy) -> Vec<ContainerPort> {
    let list = match proxy.metadata.get("POD_PORTS") {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        Some(other) => other.clone(),
        None => Value::Null,
    };
    let port = |port: &Value| ContainerPort {
        name: crate::json::text(port, &["name"]).to_owned(),
        transport: crate::json::text(port, &["protocol"]).to_owned(),
        number: crate::json::number(port, &["containerPort"]),
    };
    crate::json::list(&list, &[]).iter().map(port).collect()
}
