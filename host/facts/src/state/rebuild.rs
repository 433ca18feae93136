//! What several objects decide together: services of entries, allocated addresses, aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trysail_proto::trysail::facts::v1::Resolution;

use super::{Dirty, State, replace};
use crate::allocation;
use crate::gateways;
use crate::inputs::Base;
use crate::service_entry::{Entry, Known};
use crate::services::{self, NO_ADDRESS, Service, kubernetes_host};
use crate::table::key;
use crate::touched::Touched;

impl State {
    /// Rebuilds what depends on several objects.
    pub(super) fn rebuild(&mut self, base: &Base, mut dirty: Dirty, touched: &mut Touched) {
        if dirty.aliases {
            let hosts = self.resolve_aliases();
            for service in hosts.iter().flat_map(|host| self.hosts_services(host)) {
                let name = (service.source.namespace.to_string(), service.source.name.to_string());
                if service.is_kubernetes() {
                    dirty.kubernetes.insert(name)
                } else {
                    dirty.entries.insert(name)
                };
            }
        }
        for (namespace, name) in dirty.kubernetes {
            let place = self.namespaces.get(&namespace).cloned().unwrap_or_default();
            let object = self.accepted(base, "Service", &namespace, &name);
            let new = object.map(|object| {
                let host = kubernetes_host(&name, &namespace, &base.settings.domain);
                let aliases = self.aliases_of.get(&host).map_or(&[][..], |aliases| aliases);
                Arc::new(services::kubernetes(&object, base, &place.labels, &place.annotations, aliases))
            });
            let old = replace(&mut self.kubernetes, &key(&[&namespace, &name]), new.as_ref());
            self.change_services(old.into_iter().collect(), new.into_iter().collect(), base, touched);
        }
        if !dirty.entries.is_empty() {
            self.rebuild_entries(base, dirty.entries, touched);
            let moved = self.allocate(base);
            self.rebuild_entries(base, moved, touched);
        }
        for (namespace, name) in dirty.virtuals {
            let find = |namespace: &str, name: &str| self.virtuals.get(&key(&[namespace, name])).cloned();
            let found = find(&namespace, &name).filter(|found| found.is_root());
            let new = found.map(|found| Arc::new(found.root(find)));
            let old = replace(&mut self.roots, &key(&[&namespace, &name]), new.as_ref());
            if old == new {
                continue;
            }
            if let Some(root) = &old {
                root.visibility.iter().for_each(|v| drop(self.visible_roots.remove(&key(&[v, &root.order]))));
                root.own_gateways().for_each(|g| drop(self.gateway_roots.remove(&key(&[g, &root.order]))));
            }
            if let Some(root) = &new {
                let order = |group: &str| key(&[group, &root.order]);
                root.visibility.iter().for_each(|v| drop(self.visible_roots.insert(order(v), root.clone())));
                root.own_gateways().for_each(|g| drop(self.gateway_roots.insert(order(g), root.clone())));
            }
            touched.roots.push((old, new));
        }
    }

    fn rebuild_entries(&mut self, base: &Base, names: BTreeSet<(String, String)>, touched: &mut Touched) {
        for (namespace, name) in names {
            let place = self.namespaces.get(&namespace).cloned().unwrap_or_default();
            let object = self.accepted(base, "ServiceEntry", &namespace, &name);
            let known = |host: &str| Known {
                aliases: self.aliases_of.get(host).map(|aliases| aliases.to_vec()).unwrap_or_default(),
                allocated: self.allocated.get(&format!("{namespace}/{host}")).cloned(),
            };
            let new = object.and_then(|object| Entry::new(&object, base, &place.labels, &place.annotations, known));
            let new = new.map(Arc::new);
            let old = replace(&mut self.entries, &key(&[&namespace, &name]), new.as_ref());
            if old == new {
                continue;
            }
            for instance in old.iter().flat_map(|entry| &entry.inline) {
                self.inline_at.remove(&key(&[instance.address(), &namespace, &name]));
            }
            for (entry, instance) in new.iter().flat_map(|e| e.inline.iter().map(move |i| (e, i))) {
                self.inline_at.insert(key(&[instance.address(), &namespace, &name]), entry.clone());
            }
            let services = |entry: &Option<Arc<Entry>>| entry.iter().flat_map(|e| e.services.clone()).collect();
            self.change_services(services(&old), services(&new), base, touched);
            touched.entries.push((old, new));
        }
    }

    /// Gives addresses to hosts of ServiceEntries, unless a controller does; returns the entries whose hosts' moved.
    fn allocate(&mut self, base: &Base) -> BTreeSet<(String, String)> {
        if base.environment.flag("PILOT_ENABLE_IP_AUTOALLOCATE") {
            return BTreeSet::new();
        }
        let all = self.services.iter().map(|(_, service)| service);
        let wants = |service: &&Arc<Service>| {
            let fixed = service.resolution() != Resolution::Passthrough && !service.host().starts_with('*');
            !service.is_kubernetes() && service.record.address == NO_ADDRESS && fixed
        };
        let mut fresh = allocation::allocate(all.filter(wants).map(|service| service.key.as_str()));
        let mut moved: BTreeSet<String> = BTreeSet::new();
        let known: Vec<(Arc<str>, Arc<[String; 2]>)> =
            self.allocated.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        for (service_key, addresses) in known {
            match fresh.remove(&*service_key) {
                Some(same) if same == *addresses => continue,
                Some(other) => drop(self.allocated.insert(service_key.clone(), Arc::new(other))),
                None => drop(self.allocated.remove(&service_key)),
            }
            moved.insert(service_key.to_string());
        }
        for (service_key, addresses) in fresh {
            self.allocated.insert(service_key.as_str(), Arc::new(addresses));
            moved.insert(service_key);
        }
        let services = moved.iter().flat_map(|service_key| self.services_of(service_key));
        let external = services.filter(|service| !service.is_kubernetes()).map(|service| service.source.clone());
        external.map(|source| (source.namespace.to_string(), source.name.to_string())).collect()
    }

    fn change_services(&mut self, old: Vec<Arc<Service>>, new: Vec<Arc<Service>>, base: &Base, touched: &mut Touched) {
        let pairs = |list: Vec<Arc<Service>>| -> BTreeMap<String, Arc<Service>> {
            list.into_iter().map(|service| (service.key.clone(), service)).collect()
        };
        let (mut old, new) = (pairs(old), pairs(new));
        // The old and the new form.
        type Moved = (Option<Arc<Service>>, Option<Arc<Service>>);
        let mut moved: Vec<Moved> = Vec::new();
        for (name, new) in new {
            let old = old.remove(&name);
            if old.as_ref() != Some(&new) {
                moved.push((old, Some(new)));
            }
        }
        moved.extend(old.into_values().map(|old| (Some(old), None)));
        for (old, new) in &moved {
            if let Some(service) = &old {
                self.services.remove(&key(&[&service.key, &service.order]));
                self.hosts.remove(&key(&[service.host(), &service.order, service.namespace()]));
                self.gateways.remove(&key(&[&service.key, &service.order]));
                for visibility in &service.visibility {
                    self.visible.remove(&key(&[visibility, &service.order]));
                }
            }
            if let Some(service) = &new {
                self.services.insert(key(&[&service.key, &service.order]), service.clone());
                self.hosts.insert(key(&[service.host(), &service.order, service.namespace()]), service.clone());
                if gateways::may_be_gateway(service, base) {
                    self.gateways.insert(key(&[&service.key, &service.order]), service.clone());
                }
                for visibility in &service.visibility {
                    self.visible.insert(key(&[visibility, &service.order]), service.clone());
                }
            }
        }
        touched.services.extend(moved);
    }

    /// Follows all aliases to their ends; returns the hosts whose aliases moved.
    fn resolve_aliases(&mut self) -> BTreeSet<String> {
        let host_of = |key: &str| key.split_once('/').map_or(String::new(), |(_, host)| host.to_owned());
        let next: BTreeMap<String, &String> = self.aliases.iter().map(|(key, target)| (host_of(key), target)).collect();
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (alias, target) in self.aliases.iter() {
            let mut seen = BTreeSet::from([host_of(alias)]);
            let mut at = target;
            // A circle leads nowhere.
            while seen.insert(at.clone()) {
                match next.get(at) {
                    Some(further) => at = further,
                    None => {
                        found.entry(at.clone()).or_default().push(alias.to_string());
                        break;
                    }
                }
            }
        }
        for aliases in found.values_mut() {
            aliases.sort_by(|a, b| a.split_once('/').cmp(&b.split_once('/')));
        }
        let mut moved = BTreeSet::new();
        let known: Vec<Arc<str>> = self.aliases_of.iter().map(|(host, _)| host.clone()).collect();
        for host in known.iter().filter(|host| !found.contains_key(&***host)) {
            self.aliases_of.remove(host);
            moved.insert(host.to_string());
        }
        for (host, aliases) in found {
            if self.aliases_of.get(&host).is_none_or(|known| **known != aliases) {
                self.aliases_of.insert(host.as_str(), Arc::new(aliases));
                moved.insert(host);
            }
        }
        moved
    }
}
