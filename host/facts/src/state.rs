//! The indexed state of a snapshot, and how a change moves it.
//!
//! **Invariant:** the state is a function of the objects and the base alone: whatever the order in which changes came,
//! equal objects give equal tables. So whatever depends on other objects is not worked into an entry but looked up when
//! asked (pods of slices, nodes of pods), or rebuilt here when they move (aliases of services, delegates of roots).

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_model::{Object, ObjectRef};

use crate::config::Config;
use crate::config::destination_rule::Rule;
use crate::config::virtual_service::{Root, Virtual};
use crate::documents;
use crate::gateways;
use crate::inputs::Base;
use crate::json;
use crate::kept::Kept;
use crate::labels::{self, Labels};
use crate::mesh::network_of;
use crate::pods::{Node, Pod};
use crate::service_entry::Entry;
use crate::services::{Service, age, kubernetes_host};
use crate::slices::Slice;
use crate::table::{Table, key, prefix};
use crate::touched::Touched;
use crate::workloads::{self, Instance};

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// All tables. Keys of several parts are joined by [`key`]; each field says which.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// kind, namespace, name: every object given, also those that are not read.
    pub objects: Table<Kept>,
    /// name
    pub namespaces: Table<Arc<Namespace>>,
    /// name
    pub nodes: Table<Arc<Node>>,
    /// namespace, name
    pub pods: Table<Arc<Pod>>,
    /// address, namespace, name
    pub pods_at: Table<Arc<Pod>>,
    /// namespace, service, name
    pub slices: Table<Arc<Slice>>,
    /// namespace, name
    pub slices_named: Table<Arc<Slice>>,
    /// address, namespace, name
    pub slices_at: Table<Arc<Slice>>,
    /// namespace and name of the pod, namespace, name
    pub slices_of_pod: Table<Arc<Slice>>,
    /// namespace, name of WorkloadEntries
    pub workloads: Table<Arc<Instance>>,
    /// address, namespace, name
    pub workloads_at: Table<Arc<Instance>>,
    /// namespace, name of Kubernetes Services
    pub kubernetes: Table<Arc<Service>>,
    /// namespace, name of ServiceEntries
    pub entries: Table<Arc<Entry>>,
    /// address, namespace, name of ServiceEntries that have it as an endpoint written in
    pub inline_at: Table<Arc<Entry>>,
    /// `namespace/host`, order
    pub services: Table<Arc<Service>>,
    /// host, order, namespace
    pub hosts: Table<Arc<Service>>,
    /// visibility, order
    pub visible: Table<Arc<Service>>,
    /// `namespace/host`, order, of services that may be gateways of networks
    pub gateways: Table<Arc<Service>>,
    /// namespace, name of Gateway API gateways that are gateways of networks
    pub gateway_objects: Table<Arc<gateways::Declared>>,
    /// `namespace/host` of the alias: what it stands for
    pub aliases: Table<String>,
    /// host: the aliases that lead to it, `namespace/host`
    pub aliases_of: Table<Arc<Vec<String>>>,
    /// `namespace/host`: addresses that this control plane gave to it
    pub allocated: Table<Arc<[String; 2]>>,
    /// kind, namespace, name
    pub configs: Table<Arc<Config>>,
    /// kind, namespace, age, name
    pub config_order: Table<Arc<Config>>,
    /// namespace, name
    pub virtuals: Table<Arc<Virtual>>,
    /// namespace and name of the delegate, namespace and name of the root
    pub delegations: Table<()>,
    /// namespace, name
    pub roots: Table<Arc<Root>>,
    /// visibility, order
    pub visible_roots: Table<Arc<Root>>,
    /// gateway, order; none for `mesh`, which has all that name nothing else
    pub gateway_roots: Table<Arc<Root>>,
    /// namespace, name
    pub rules: Table<Arc<Rule>>,
    /// host, order
    pub rules_of: Table<Arc<Rule>>,
    /// wildcard host: number of rules
    pub wildcards: Table<usize>,
    /// Who points a tag to our revision: the tag
    pub tags: Table<String>,
    /// Network of this cluster's workloads by the system namespace's label; empty for none.
    pub system_network: String,
}

/// What has to be rebuilt once all objects of a change are in.
#[derive(Default)]
struct Dirty {
    /// namespace, name
    kubernetes: BTreeSet<(String, String)>,
    entries: BTreeSet<(String, String)>,
    virtuals: BTreeSet<(String, String)>,
    aliases: bool,
}

impl State {
    /// Applies a change; a deletion wins over an upsert of the same object.
    pub fn change(&mut self, base: &Base, upserted: impl IntoIterator<Item = Kept>, deleted: &[ObjectRef]) -> Touched {
        let before = self.clone();
        let mut touched = Touched::default();
        let mut dirty = Dirty::default();
        let mut changed: BTreeMap<ObjectRef, Option<Kept>> =
            upserted.into_iter().map(|kept| (kept.reference().clone(), Some(kept))).collect();
        changed.extend(deleted.iter().map(|reference| (reference.clone(), None)));
        let mut references: BTreeSet<ObjectRef> = BTreeSet::new();
        for (reference, object) in changed {
            let key = object_key(&reference);
            match object {
                Some(object) => drop(self.objects.insert(key, object)),
                None => drop(self.objects.remove(&key)),
            }
            if &*reference.kind == "Namespace" {
                self.change_namespace(base, &before, &reference.name, &mut touched, &mut dirty, &mut references);
            }
            self.change_tag(base, &reference);
            references.insert(reference);
        }
        let (own, were) = (self.own_tags(), before.own_tags());
        if own != were {
            // What is labelled with a tag that came or went appears or disappears. Rare enough to look at all objects.
            let moved: BTreeSet<&str> = own.symmetric_difference(&were).copied().collect();
            let is_labelled =
                |o: &&Arc<Object>| o.labels.get(labels::REVISION).is_some_and(|label| moved.contains(&**label));
            let objects = self.objects.iter().filter_map(|(_, kept)| kept.object());
            references.extend(objects.filter(is_labelled).map(|object| object.reference.clone()));
        }
        for reference in &references {
            let key = object_key(reference);
            let old = before.objects.get(&key).filter(|kept| before.accepts(base, kept));
            let new = self.objects.get(&key).filter(|kept| self.accepts(base, kept)).cloned();
            if old != new.as_ref() {
                self.change_object(base, reference, new.as_ref(), &mut touched, &mut dirty);
            }
        }
        self.rebuild(base, dirty, &mut touched);
        touched
    }

    /// Is the object for this control plane to read?
    fn accepts(&self, base: &Base, kept: &Kept) -> bool {
        let reference = kept.reference();
        if !reference.namespace.is_empty() && !self.discovers(base, &reference.namespace) {
            return false;
        }
        let Some(object) = kept.object() else { return true };
        let has_revision = documents::message_of(&reference.kind).is_some() || &*reference.kind == "KubernetesGateway";
        let own = &base.settings.revision;
        let is_ours = |label: &String| own.is_empty() || label == own || self.tags.iter().any(|(_, tag)| tag == label);
        let other = object.labels.get(labels::REVISION).is_some_and(|label| !label.is_empty() && !is_ours(label));
        !(has_revision && other)
    }

    /// Tags are webhook configurations, or Services of the control plane's namespace, with both labels.
    fn change_tag(&mut self, base: &Base, reference: &ObjectRef) {
        let is_service = &*reference.kind == "Service" && *reference.namespace == *base.settings.system_namespace;
        if &*reference.kind != "MutatingWebhookConfiguration" && !is_service {
            return;
        }
        let key = object_key(reference);
        let label =
            |object: &Arc<Object>, name: &str| object.labels.get(name).filter(|value| !value.is_empty()).cloned();
        let tag = self.objects.get(&key).and_then(Kept::object).and_then(|object| {
            let points_to_us = label(object, labels::REVISION)? == base.settings.revision;
            label(object, labels::TAG).filter(|_| points_to_us)
        });
        replace(&mut self.tags, &key, tag.as_ref());
    }

    fn own_tags(&self) -> BTreeSet<&str> {
        self.tags.iter().map(|(_, tag)| tag.as_str()).collect()
    }

    pub(crate) fn discovers(&self, base: &Base, namespace: &str) -> bool {
        if base.mesh.config.discovery_selectors.is_empty() {
            return true;
        }
        self.namespaces.get(namespace).is_some_and(|namespace| base.mesh.discovers(&namespace.labels))
    }

    fn change_namespace(
        &mut self,
        base: &Base,
        before: &State,
        name: &str,
        touched: &mut Touched,
        dirty: &mut Dirty,
        references: &mut BTreeSet<ObjectRef>,
    ) {
        let object = self.objects.get(&key(&["Namespace", "", name])).and_then(Kept::object);
        let new = object.map(|o| Namespace { labels: (*o.labels).clone(), annotations: (*o.annotations).clone() });
        let old = before.namespaces.get(name);
        if old.map(|old| &**old) == new.as_ref() {
            return;
        }
        touched.namespaces.push(name.to_owned());
        if name == base.settings.system_namespace {
            let network = new.as_ref().map_or("", |namespace| network_of(&namespace.labels)).to_owned();
            touched.network |= network != self.system_network;
            self.system_network = network;
        }
        match new {
            Some(new) => drop(self.namespaces.insert(name, Arc::new(new))),
            None => drop(self.namespaces.remove(name)),
        }
        let in_namespace = prefix(&[name]);
        let names = |table: &mut dyn Iterator<Item = &Arc<str>>| -> Vec<(String, String)> {
            table.map(|key| (name.to_owned(), crate::table::last_part(key).to_owned())).collect()
        };
        dirty.kubernetes.extend(names(&mut self.kubernetes.with_prefix(&in_namespace).map(|(k, _)| k)));
        dirty.entries.extend(names(&mut self.entries.with_prefix(&in_namespace).map(|(k, _)| k)));
        if before.discovers(base, name) != self.discovers(base, name) {
            // Everything in it appears or disappears. Rare enough to look at all objects.
            let inside = self.objects.iter().map(|(_, kept)| kept.reference());
            references.extend(inside.filter(|reference| &*reference.namespace == name).cloned());
        }
    }

    fn change_object(
        &mut self,
        base: &Base,
        reference: &ObjectRef,
        new: Option<&Kept>,
        touched: &mut Touched,
        dirty: &mut Dirty,
    ) {
        let name = (reference.namespace.to_string(), reference.name.to_string());
        match &*reference.kind {
            "Pod" => return self.change_pod(reference, new.and_then(Kept::pod), touched),
            "EndpointSlice" => return self.change_slice(reference, new.and_then(Kept::slice), touched),
            _ => {}
        }
        let new = new.and_then(Kept::object);
        match &*reference.kind {
            "Node" => self.change_node(reference, new, touched),
            "Service" => {
                dirty.kubernetes.insert(name);
                self.change_alias(base, reference, new, dirty);
            }
            "ServiceEntry" => drop(dirty.entries.insert(name)),
            "WorkloadEntry" => self.change_workload(base, reference, new, touched),
            "KubernetesGateway" => {
                let key = key(&[&reference.namespace, &reference.name]);
                let new = new.and_then(|object| gateways::declared(object, base)).map(Arc::new);
                touched.gateways |= replace(&mut self.gateway_objects, &key, new.as_ref()) != new;
            }
            _ => {}
        }
        if documents::message_of(&reference.kind).is_some() {
            self.change_config(base, reference, new, touched, dirty);
        }
    }

    fn change_node(&mut self, reference: &ObjectRef, new: Option<&Arc<Object>>, touched: &mut Touched) {
        let new = new.map(|object| Arc::new(Node::new(object)));
        let old = replace(&mut self.nodes, &reference.name, new.as_ref());
        let locality = |node: &Option<Arc<Node>>| node.as_ref().map(|n| n.locality.clone()).unwrap_or_default();
        if locality(&old) != locality(&new) {
            touched.nodes.push(reference.name.to_string());
        }
        let outside = |node: &Option<Arc<Node>>| {
            let node = node.as_ref().filter(|node| !node.external_ip.is_empty());
            node.map(|node| (node.external_ip.clone(), node.labels.clone()))
        };
        touched.gateways |= outside(&old) != outside(&new);
    }

    fn change_pod(&mut self, reference: &ObjectRef, new: Option<&Arc<Pod>>, touched: &mut Touched) {
        let (namespace, name) = (&*reference.namespace, &*reference.name);
        let new = new.filter(|pod| !pod.failed).cloned();
        let old = replace(&mut self.pods, &key(&[namespace, name]), new.as_ref());
        if old == new {
            return;
        }
        if let Some(pod) = &old {
            pod.ips.iter().for_each(|ip| drop(self.pods_at.remove(&key(&[ip, namespace, name]))));
        }
        if let Some(pod) = &new {
            pod.ips.iter().for_each(|ip| drop(self.pods_at.insert(key(&[ip, namespace, name]), pod.clone())));
        }
        touched.pods.push((old, new));
    }

    fn change_slice(&mut self, reference: &ObjectRef, new: Option<&Arc<Slice>>, touched: &mut Touched) {
        let (namespace, name) = (&*reference.namespace, &*reference.name);
        let new = new.cloned();
        let old = replace(&mut self.slices_named, &key(&[namespace, name]), new.as_ref());
        if old == new {
            return;
        }
        if let Some(slice) = &old {
            self.slices.remove(&key(&[namespace, &slice.service, name]));
            slice.addresses().for_each(|ip| drop(self.slices_at.remove(&key(&[ip, namespace, name]))));
            for (pod_namespace, pod) in slice.members.iter().filter_map(|m| m.pod.as_ref()) {
                self.slices_of_pod.remove(&key(&[pod_namespace, pod, namespace, name]));
            }
        }
        if let Some(slice) = &new {
            self.slices.insert(key(&[namespace, &slice.service, name]), slice.clone());
            slice.addresses().for_each(|ip| drop(self.slices_at.insert(key(&[ip, namespace, name]), slice.clone())));
            for (pod_namespace, pod) in slice.members.iter().filter_map(|m| m.pod.as_ref()) {
                self.slices_of_pod.insert(key(&[pod_namespace, pod, namespace, name]), slice.clone());
            }
        }
        touched.slices.push((old, new));
    }

    fn change_workload(
        &mut self,
        base: &Base,
        reference: &ObjectRef,
        new: Option<&Arc<Object>>,
        touched: &mut Touched,
    ) {
        let (namespace, name) = (&*reference.namespace, &*reference.name);
        let new = new.and_then(|object| workloads::workload_entry(object, base)).map(Arc::new);
        let old = replace(&mut self.workloads, &key(&[namespace, name]), new.as_ref());
        if old == new {
            return;
        }
        if let Some(instance) = &old {
            self.workloads_at.remove(&key(&[instance.address(), namespace, name]));
        }
        if let Some(instance) = &new {
            self.workloads_at.insert(key(&[instance.address(), namespace, name]), instance.clone());
        }
        touched.workloads.push((old, new));
    }

    fn change_alias(&mut self, base: &Base, reference: &ObjectRef, new: Option<&Arc<Object>>, dirty: &mut Dirty) {
        let target = new.and_then(|object| {
            let spec = object.spec();
            let external = json::text(&spec, &["type"]) == "ExternalName";
            let headless = json::text(&spec, &["clusterIP"]) == "None";
            let name = json::text(&spec, &["externalName"]);
            (external && !headless && !name.is_empty()).then(|| name.to_owned())
        });
        let host = kubernetes_host(&reference.name, &reference.namespace, &base.settings.domain);
        let key = format!("{}/{host}", reference.namespace);
        dirty.aliases |= replace(&mut self.aliases, &key, target.as_ref()) != target;
    }

    fn change_config(
        &mut self,
        base: &Base,
        reference: &ObjectRef,
        new: Option<&Arc<Object>>,
        touched: &mut Touched,
        dirty: &mut Dirty,
    ) {
        let (kind, namespace, name) = (&*reference.kind, &*reference.namespace, &*reference.name);
        let read = |object: &Arc<Object>| match Config::new(object, &base.settings.domain) {
            Ok(config) => Some((object.clone(), Arc::new(config))),
            Err(error) => {
                tracing::warn!(object = %object.reference, origin = %object.origin, %error, "left out");
                None
            }
        };
        let new = new.and_then(read);
        let config = new.as_ref().map(|(_, config)| config.clone());
        let old = replace(&mut self.configs, &key(&[kind, namespace, name]), config.as_ref());
        let order = new.as_ref().map(|(object, _)| key(&[kind, namespace, &age(object.creation_nanos), name]));
        let in_namespace = prefix(&[kind, namespace]);
        let stale = match (&old, &order) {
            (None, _) => None,
            (Some(_), Some(order)) if self.config_order.contains(order) => Some(order.clone()),
            _ => {
                let mut all = self.config_order.with_prefix(&in_namespace).map(|(k, _)| k);
                all.find(|k| crate::table::last_part(k) == name).map(ToString::to_string)
            }
        };
        if let Some(stale) = &stale {
            self.config_order.remove(stale);
        }
        if let (Some(order), Some(config)) = (&order, &config) {
            self.config_order.insert(order.as_str(), config.clone());
        }
        touched.configs.push((reference.clone(), stale != order, old, config));
        match kind {
            "VirtualService" => {
                let virtual_service =
                    new.as_ref().map(|(object, config)| Arc::new(Virtual::new(object, &config.document, base)));
                self.change_virtual(namespace, name, virtual_service, dirty);
            }
            "DestinationRule" => {
                let rule = new.as_ref().map(|(object, config)| Arc::new(Rule::new(object, &config.document, base)));
                self.change_rule(namespace, name, rule, touched);
            }
            _ => {}
        }
    }

    fn change_virtual(&mut self, namespace: &str, name: &str, new: Option<Arc<Virtual>>, dirty: &mut Dirty) {
        let old = replace(&mut self.virtuals, &key(&[namespace, name]), new.as_ref());
        for (home, delegate) in old.iter().flat_map(|old| &old.delegates) {
            self.delegations.remove(&key(&[home, delegate, namespace, name]));
        }
        for (home, delegate) in new.iter().flat_map(|new| &new.delegates) {
            self.delegations.insert(key(&[home, delegate, namespace, name]), ());
        }
        dirty.virtuals.insert((namespace.to_owned(), name.to_owned()));
        let named_by = prefix(&[namespace, name]);
        for (key, ()) in self.delegations.with_prefix(&named_by) {
            let mut parts = key.split('\0').skip(2);
            let mut next = || parts.next().unwrap_or_default().to_owned();
            dirty.virtuals.insert((next(), next()));
        }
    }

    fn change_rule(&mut self, namespace: &str, name: &str, new: Option<Arc<Rule>>, touched: &mut Touched) {
        let old = replace(&mut self.rules, &key(&[namespace, name]), new.as_ref());
        if old == new {
            return;
        }
        if let Some(rule) = &old {
            self.rules_of.remove(&key(&[&rule.host, &rule.order]));
            if rule.host.starts_with('*') {
                let left = self.wildcards.get(&rule.host).map_or(0, |n| n.saturating_sub(1));
                replace(&mut self.wildcards, &rule.host, Some(&left).filter(|left| **left > 0));
            }
        }
        if let Some(rule) = &new {
            self.rules_of.insert(key(&[&rule.host, &rule.order]), rule.clone());
            if rule.host.starts_with('*') {
                let count = self.wildcards.get(&rule.host).copied().unwrap_or_default();
                self.wildcards.insert(rule.host.as_str(), count + 1);
            }
        }
        touched.rules.push((old, new));
    }

    /// All services of a host, oldest first.
    pub fn hosts_services(&self, host: &str) -> Vec<Arc<Service>> {
        let of_host = prefix(&[host]);
        self.hosts.with_prefix(&of_host).map(|(_, service)| service.clone()).collect()
    }

    /// All services of a key, oldest first.
    pub fn services_of(&self, service_key: &str) -> Vec<Arc<Service>> {
        let of_key = prefix(&[service_key]);
        self.services.with_prefix(&of_key).map(|(_, service)| service.clone()).collect()
    }

    fn accepted(&self, base: &Base, kind: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let kept = self.objects.get(&key(&[kind, namespace, name])).filter(|kept| self.accepts(base, kept))?;
        kept.object().cloned()
    }
}

/// The key of an object.
pub fn object_key(reference: &ObjectRef) -> String {
    key(&[&reference.kind, &reference.namespace, &reference.name])
}

fn replace<V: Clone>(table: &mut Table<V>, key: &str, new: Option<&V>) -> Option<V> {
    match new {
        Some(new) => table.insert(key, new.clone()),
        None => table.remove(key),
    }
}
