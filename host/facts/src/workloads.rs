//! Workloads outside of slices: WorkloadEntries, endpoints written into ServiceEntries, and pods as ServiceEntries see
//! them, all in one form.

use std::collections::BTreeMap;

use trysail_model::{Object, ObjectRef};
use trysail_proto::istio::networking::v1alpha3::WorkloadEntry;
use trysail_proto::trysail::facts::v1::{Endpoint, Health};

use crate::documents;
use crate::inputs::Base;
use crate::json;
use crate::labels;

/// Prefix of addresses that are paths of sockets.
pub const UNIX: &str = "unix://";

/// A workload that services select or list.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The object it came from.
    pub reference: ObjectRef,
    /// Its endpoint without ports; its labels are what selectors match.
    pub endpoint: Endpoint,
    /// Its ports by name.
    pub ports: BTreeMap<String, u32>,
    /// Its address is a name or a path, so only services with DNS resolution can have it.
    pub dns_only: bool,
    /// Namespace that selectors look in.
    pub namespace: String,
}

impl Instance {
    /// The address.
    pub fn address(&self) -> &str {
        self.endpoint.addresses.first().map_or("", String::as_str)
    }
}

/// A WorkloadEntry object. `None` when its agent reports it as unhealthy, or when its spec does not fit.
pub fn workload_entry(object: &Object, base: &Base) -> Option<Instance> {
    if base.environment.flag("PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS") && !is_healthy(object) {
        return None;
    }
    let bytes = documents::document(object, &base.settings.domain).ok()?;
    let mut entry: WorkloadEntry = documents::decode(&bytes).ok()?;
    // Labels of the object win over those of its spec.
    entry.labels.extend(object.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
    let group = object.annotations.get(labels::AUTO_REGISTRATION_GROUP);
    let workload = group.or_else(|| object.labels.get(labels::WORKLOAD_NAME));
    let workload = workload.map_or(&*object.reference.name, String::as_str);
    Some(instance(&entry, &object.reference, workload, base))
}

/// The i-th endpoint written into a ServiceEntry.
pub fn inline(entry: &WorkloadEntry, index: usize, reference: &ObjectRef, base: &Base) -> Instance {
    instance(entry, reference, &format!("{}-{index}", reference.name), base)
}

fn instance(entry: &WorkloadEntry, reference: &ObjectRef, workload: &str, base: &Base) -> Instance {
    let namespace = reference.namespace.to_string();
    let address = entry.address.clone();
    let dns_only = !address.is_empty() && address.parse::<std::net::IpAddr>().is_err();
    let own = entry.labels.get(labels::TLS_MODE).map(String::as_str);
    let has_account = !entry.service_account.is_empty();
    let locality =
        if entry.locality.is_empty() { labels::locality_label(&entry.labels) } else { entry.locality.clone() };
    let cluster = &base.settings.cluster_id;
    let endpoint = Endpoint {
        addresses: vec![address],
        labels: labels::augment(&entry.labels, cluster, &locality, "", &entry.network),
        locality: labels::locality(&locality),
        health: Health::Unknown.into(),
        service_account: if has_account {
            base.mesh.identity(&namespace, &entry.service_account)
        } else {
            String::new()
        },
        tls_mode: own.unwrap_or(if has_account { "istio" } else { "disabled" }).to_owned(),
        network: entry.network.clone(),
        workload_name: workload.to_owned(),
        namespace: namespace.clone(),
        weight: entry.weight,
        cluster_id: cluster.clone(),
        ..Default::default()
    };
    Instance { reference: reference.clone(), endpoint, ports: entry.ports.clone(), dns_only, namespace }
}

/// An entry whose agent reports health is unhealthy until it reported success.
fn is_healthy(object: &Object) -> bool {
    let checked = object.annotations.get(labels::HEALTH_CHECKED).map_or("", String::as_str);
    if !matches!(checked, "1" | "t" | "T" | "TRUE" | "true" | "True") {
        return true;
    }
    let status = object.status();
    let mut conditions = json::list(&status, &["conditions"]).iter();
    conditions.any(|c| json::text(c, &["type"]) == "Healthy" && json::text(c, &["status"]).eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::object;

    fn read(body: serde_json::Value) -> Option<Instance> {
        workload_entry(&object("WorkloadEntry", "n", "vm", body), &Base::default())
    }

    #[test]
    fn labels_accounts_and_modes() {
        let vm = read(json!({"metadata": {"labels": {"app": "b"}}, "spec": {
            "address": "1.1.1.1", "labels": {"app": "a", "x": "1"}, "serviceAccount": "sa", "locality": "r/z", "network": "net",
            "ports": {"http": 8080}, "weight": 3,
        }}))
        .unwrap();
        assert_eq!(vm.endpoint.labels["app"], "b");
        assert_eq!(vm.endpoint.labels[labels::NETWORK], "net");
        assert_eq!(vm.endpoint.service_account, "spiffe://cluster.local/ns/n/sa/sa");
        assert_eq!((vm.endpoint.tls_mode.as_str(), vm.ports["http"], vm.dns_only), ("istio", 8080, false));
        assert!(read(json!({"spec": {"address": "example.com"}})).unwrap().dns_only);
    }

    #[test]
    fn health() {
        let status = |status: &str| {
            read(
                json!({"metadata": {"annotations": {"proxy.istio.io/health-checks-enabled": "true"}}, "spec": {"address": "1.1.1.1"},
                "status": {"conditions": [{"type": "Healthy", "status": status}]}}),
            )
        };
        assert!(status("True").is_some() && status("False").is_none());
    }
}
