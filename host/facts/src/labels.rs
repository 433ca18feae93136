//! Labels and annotations that mean something to Istio, and what follows from a workload's labels.

use std::collections::BTreeMap;

use trysail_proto::trysail::facts::v1::Locality;

/// A set of labels.
pub type Labels = BTreeMap<String, String>;

/// Which revision of the control plane reads an object.
pub const REVISION: &str = "istio.io/rev";
/// Name of a revision tag, on what points to the revision in [`REVISION`].
pub const TAG: &str = "istio.io/tag";
/// Network of a workload, of a gateway service, and of all a cluster's workloads when on the system namespace.
pub const NETWORK: &str = "topology.istio.io/network";
/// Port of a network gateway, on its service.
pub const GATEWAY_PORT: &str = "networking.istio.io/gatewayPort";
/// Cluster of a workload.
pub const CLUSTER: &str = "topology.istio.io/cluster";
/// Region of a node or workload.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Zone of a node or workload.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Region of a node, as before Kubernetes 1.17.
pub const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
/// Zone of a node, as before Kubernetes 1.17.
pub const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
/// Sub-zone of a node or workload.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// Name of a workload's node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// Locality set by hand.
pub const LOCALITY: &str = "topology.istio.io/locality";
/// The same, older.
pub const OLD_LOCALITY: &str = "istio-locality";
/// `istio` when the workload has a proxy that speaks mutual TLS.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Name of the workload, in place of what is derived from its owner.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// Name that telemetry groups by.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Revision that telemetry groups by.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Marks a pod that plays a virtual machine in Istio's tests.
pub const TEST_VM: &str = "istio.io/test-vm";
/// `false` opts a ServiceEntry out of automatic addresses.
pub const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";
/// Annotation: namespaces that see a Kubernetes service.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";
/// Annotation: how traffic is spread, on services and namespaces.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Annotation: identities of a service.
pub const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
/// Annotation: service accounts of a service.
pub const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
/// Annotation: nodes whose addresses a NodePort gateway is reached at.
pub const NODE_SELECTOR: &str = "traffic.istio.io/nodeSelector";
/// Annotation: WorkloadGroup of an auto-registered WorkloadEntry.
pub const AUTO_REGISTRATION_GROUP: &str = "istio.io/autoRegistrationGroup";
/// Annotation: the WorkloadEntry's health is reported by its agent.
pub const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";
/// Annotation of generated VirtualServices: `ingress` or `gateway`.
pub const ROUTE_SEMANTICS: &str = "internal.istio.io/route-semantics";

/// Does the selector's every pair occur among the labels? An empty selector selects all.
pub fn subset(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// As [`subset`], but an empty selector selects nothing: how services select.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && subset(selector, labels)
}

/// A locality set by hand in the labels, as `region/zone/subzone`.
pub fn locality_label(labels: &Labels) -> String {
    let text = labels.get(LOCALITY).or_else(|| labels.get(OLD_LOCALITY)).map_or("", String::as_str);
    // Label values cannot hold slashes, so dots stand for them.
    if text.contains('/') { text.to_owned() } else { text.replace('.', "/") }
}

/// A locality from its text `region/zone/subzone`; `None` for the empty text.
pub fn locality(text: &str) -> Option<Locality> {
    if text.is_empty() {
        return None;
    }
    let mut parts = text.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Some(Locality { region: next(), zone: next(), sub_zone: next() })
}

/// The labels with what the registry knows of the place; a network label that is there stays.
pub fn augment(labels: &Labels, cluster: &str, locality_text: &str, node: &str, network: &str) -> Labels {
    let mut out = labels.clone();
    let place = locality(locality_text).unwrap_or_default();
    for (key, value) in [
        (REGION, place.region.as_str()),
        (ZONE, &place.zone),
        (SUBZONE, &place.sub_zone),
        (CLUSTER, cluster),
        (HOSTNAME, node),
    ] {
        if !value.is_empty() {
            out.insert(key.to_owned(), value.to_owned());
        }
    }
    if !network.is_empty() && out.get(NETWORK).is_none_or(String::is_empty) {
        out.insert(NETWORK.to_owned(), network.to_owned());
    }
    out
}

/// Canonical name and revision of a workload.
pub fn canonical(labels: &Labels, workload: &str) -> (String, String) {
    let first =
        |keys: [&str; 3], or: &str| keys.iter().find_map(|k| labels.get(*k)).map_or(or, String::as_str).to_owned();
    (
        first([CANONICAL_NAME, "app.kubernetes.io/name", "app"], workload),
        first([CANONICAL_REVISION, "app.kubernetes.io/version", "version"], "latest"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn augmenting_keeps_a_network() {
        let out = augment(&labels(&[("app", "a"), (NETWORK, "n1")]), "c", "r/z", "", "n2");
        assert_eq!(out, labels(&[("app", "a"), (NETWORK, "n1"), (CLUSTER, "c"), (REGION, "r"), (ZONE, "z")]));
        assert_eq!(augment(&Labels::new(), "", "", "h", "n2"), labels(&[(HOSTNAME, "h"), (NETWORK, "n2")]));
    }

    #[test]
    fn localities() {
        assert_eq!(locality_label(&labels(&[(OLD_LOCALITY, "r.z.s")])), "r/z/s");
        assert_eq!(locality_label(&labels(&[(LOCALITY, "r/z.1")])), "r/z.1");
        assert_eq!(locality("r/z").unwrap().zone, "z");
        assert!(locality("").is_none());
    }

    #[test]
    fn selectors() {
        assert!(subset(&Labels::new(), &Labels::new()) && !selects(&Labels::new(), &Labels::new()));
        assert!(selects(&labels(&[("a", "1")]), &labels(&[("a", "1"), ("b", "2")])));
    }
}
