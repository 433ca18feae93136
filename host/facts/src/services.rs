//! Services of the registry: Kubernetes Services here, hosts of ServiceEntries in [`crate::service_entry`].

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::Value;
use trysail_model::{Object, ObjectRef};
use trysail_proto::trysail::facts::v1 as facts;
use trysail_proto::trysail::facts::v1::{Port, Resolution};

use crate::inputs::Base;
use crate::json;
use crate::labels::{self, Labels};
use crate::table::key;
use crate::{protocol, wire};

/// The address of services that have none.
pub const NO_ADDRESS: &str = "0.0.0.0";
/// Registry name of Kubernetes Services.
pub const KUBERNETES: &str = "Kubernetes";
/// Registry name of ServiceEntries.
pub const EXTERNAL: &str = "External";

/// A service, ready to answer with.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// `namespace/host`.
    pub key: String,
    /// All that is known of it.
    pub record: facts::Service,
    /// Where it came from.
    pub source: ObjectRef,
    /// Does its spec say what selects its workloads?
    pub has_selector: bool,
    /// Transports of the ports, in the order of `record.ports`; empty for ServiceEntries.
    pub transports: Vec<String>,
    /// Who sees it: `*` alone, or namespaces; empty for nobody.
    pub visibility: Vec<String>,
    /// Where it stands among services: oldest first, then name, namespace, Kubernetes before ServiceEntries.
    pub order: String,
    /// `record`, encoded.
    pub body: Bytes,
    /// Its summary as an entry of `facts.v1.ServiceSummaries`.
    pub summary: Bytes,
}

impl Service {
    /// Completes a record.
    pub fn new(record: facts::Service, object: &Object, base: &Base, namespace_labels: &Labels) -> Service {
        let mut record = record;
        let declared = std::mem::take(&mut record.export_to);
        record.export_to = effective_exports(&declared, &record, base, namespace_labels);
        let rank = if record.registry == KUBERNETES { "0" } else { "1" };
        let parts = [&age(object.creation_nanos), &record.name, &record.namespace, rank, &*object.reference.name];
        let order = key(&parts);
        let mut summary = Vec::new();
        wire::put_message(&mut summary, 1, &summarize(&record));
        Service {
            key: format!("{}/{}", record.namespace, record.host),
            visibility: visibility(&record.export_to, &record.namespace),
            source: object.reference.clone(),
            has_selector: false,
            transports: Vec::new(),
            order,
            body: wire::encode(&record),
            summary: summary.into(),
            record,
        }
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.record.host
    }

    /// What selects its workloads; `None` when nothing does.
    pub fn selector(&self) -> Option<&Labels> {
        self.has_selector.then_some(&self.record.label_selectors)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.record.namespace
    }

    /// The resolution.
    pub fn resolution(&self) -> Resolution {
        self.record.resolution()
    }

    /// True for Kubernetes Services.
    pub fn is_kubernetes(&self) -> bool {
        self.record.registry == KUBERNETES
    }
}

/// A sortable form of a creation time.
pub fn age(nanos: i128) -> String {
    format!("{:032x}", (nanos as u128) ^ (1 << 127))
}

/// Whole seconds and the rest in nanoseconds.
pub fn creation(nanos: i128) -> (i64, i64) {
    const SECOND: i128 = 1_000_000_000;
    let seconds = i64::try_from(nanos.div_euclid(SECOND)).unwrap_or_default();
    (seconds, i64::try_from(nanos.rem_euclid(SECOND)).unwrap_or_default())
}

/// Host of a Kubernetes Service.
pub fn kubernetes_host(name: &str, namespace: &str, domain: &str) -> String {
    format!("{name}.{namespace}.svc.{domain}")
}

/// A Kubernetes Service.
pub fn kubernetes(
    object: &Object,
    base: &Base,
    namespace_labels: &Labels,
    namespace_annotations: &Labels,
    aliases: &[String],
) -> Service {
    let body = &*object.body.read();
    let (name, namespace) = (&*object.reference.name, &*object.reference.namespace);
    let kind = json::text(body, &["spec", "type"]);
    let external_name = if kind == "ExternalName" { json::text(body, &["spec", "externalName"]) } else { "" };
    let cluster_ip = json::text(body, &["spec", "clusterIP"]);
    let headless = cluster_ip == "None";
    let resolution = match (headless, external_name) {
        (true, _) => Resolution::Passthrough,
        (false, "") => Resolution::ClientSideLb,
        _ => Resolution::Alias,
    };
    let mut addresses = Vec::new();
    if !headless && !cluster_ip.is_empty() {
        addresses = json::texts(body, &["spec", "clusterIPs"]);
        if addresses.len() < 2 {
            addresses = vec![cluster_ip.to_owned()];
        }
    }
    let ports = json::list(body, &["spec", "ports"]);
    let annotation = |name: &str| object.annotations.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let accounts =
        annotation(labels::CANONICAL_ACCOUNTS).into_iter().flat_map(|text| text.split(',')).map(str::to_owned);
    let kubernetes_accounts = annotation(labels::KUBERNETES_ACCOUNTS).into_iter().flat_map(|text| text.split(','));
    let subject_alt_names =
        accounts.chain(kubernetes_accounts.map(|account| base.mesh.identity(namespace, account))).collect();
    let export_to = annotation(labels::EXPORT_TO).into_iter().flat_map(|text| text.split(','));
    let (creation_seconds, creation_nanos) = creation(object.creation_nanos);
    let selector = json::text_map(body, &["spec", "selector"]);
    let has_selector = selector.is_some();
    let record = facts::Service {
        host: kubernetes_host(name, namespace, &base.settings.domain),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        source: Some(reference(&object.reference)),
        creation_seconds,
        creation_nanos,
        ports: ports.iter().map(port).collect(),
        resolution: resolution.into(),
        address: addresses.first().map_or(NO_ADDRESS, String::as_str).to_owned(),
        addresses,
        mesh_external: !external_name.is_empty(),
        export_to: export_to.map(|namespace| namespace.trim().to_owned()).collect(),
        labels: (*object.labels).clone(),
        label_selectors: selector.unwrap_or_default(),
        registry: KUBERNETES.to_owned(),
        kubernetes_type: kind.to_owned(),
        headless,
        external_name: external_name.to_owned(),
        traffic_distribution: traffic_distribution(
            json::text(body, &["spec", "trafficDistribution"]),
            &object.annotations,
            namespace_annotations,
        )
        .to_owned(),
        publish_not_ready_addresses: json::flag(body, &["spec", "publishNotReadyAddresses"]).unwrap_or_default(),
        subject_alt_names,
        aliases: aliases.to_vec(),
        external_ips: external_addresses(body, kind),
        annotations: (*object.annotations).clone(),
        cluster_id: base.settings.cluster_id.clone(),
        node_local: json::text(body, &["spec", "internalTrafficPolicy"]) == "Local",
        ..Default::default()
    };
    let transports = ports.iter().map(|port| transport(port).to_owned()).collect();
    Service { has_selector, transports, ..Service::new(record, object, base, namespace_labels) }
}

/// Load balancer addresses (by IP, else name), then external IPs.
fn external_addresses(body: &Value, kind: &str) -> Vec<String> {
    let ingress = if kind == "LoadBalancer" { json::list(body, &["status", "loadBalancer", "ingress"]) } else { &[] };
    let named = ingress.iter().filter_map(|item| {
        let either = [json::text(item, &["ip"]), json::text(item, &["hostname"])];
        either.into_iter().find(|text| !text.is_empty())
    });
    named.map(str::to_owned).chain(json::texts(body, &["spec", "externalIPs"])).collect()
}

fn transport(port: &Value) -> &str {
    match json::text(port, &["protocol"]) {
        "" => "TCP",
        other => other,
    }
}

fn port(port: &Value) -> Port {
    let number = json::number(port, &["port"]);
    let name = json::text(port, &["name"]);
    let target = json::at(port, &["targetPort"]);
    let app_protocol = json::at(port, &["appProtocol"]).as_str();
    let (target_port, target_name) = match target {
        // What may be a number or a name is a name when it is text.
        Value::String(name) => (0, name.clone()),
        Value::Null => (number, String::new()),
        _ => (json::number(target, &[]), String::new()),
    };
    Port {
        name: name.to_owned(),
        port: number,
        protocol: protocol::of_service_port(number, name, transport(port), app_protocol).into(),
        target_port,
        target_name,
        node_port: json::number(port, &["nodePort"]),
    }
}

/// How traffic is spread: by the service's field, its annotation, its namespace's annotation; empty for evenly.
pub fn traffic_distribution(field: &str, annotations: &Labels, namespace_annotations: &Labels) -> &'static str {
    const CLOSE: &str = "PreferClose";
    const SAME_NODE: &str = "PreferSameNode";
    let annotated = |from: &Labels| {
        let text = from.get(labels::TRAFFIC_DISTRIBUTION)?.to_ascii_lowercase();
        match text.as_str() {
            "" => None,
            "preferclose" | "prefersamezone" => Some(CLOSE),
            "prefersamenode" => Some(SAME_NODE),
            // What is not known means evenly, and hides the namespace's.
            _ => Some(""),
        }
    };
    match field {
        CLOSE | "PreferSameZone" => CLOSE,
        SAME_NODE => SAME_NODE,
        _ => annotated(annotations).or_else(|| annotated(namespace_annotations)).unwrap_or_default(),
    }
}

/// An object's name in a record.
pub fn reference(reference: &ObjectRef) -> facts::ObjectRef {
    facts::ObjectRef {
        kind: reference.kind.to_string(),
        namespace: reference.namespace.to_string(),
        name: reference.name.to_string(),
    }
}

/// What a declared export list means under the mesh's default, and the limits it sets to ServiceEntries.
fn effective_exports(
    declared: &[String],
    record: &facts::Service,
    base: &Base,
    namespace_labels: &Labels,
) -> Vec<String> {
    let list = if declared.is_empty() { &base.mesh.config.default_service_export_to } else { declared };
    let exports: BTreeSet<&str> = list.iter().map(String::as_str).collect();
    let only = |one: &str| vec![one.to_owned()];
    if exports.len() == 1 && exports.contains("~") {
        return only("~");
    }
    let limits = base.mesh.config.service_entry_visibility.as_ref().filter(|v| v.apply_to_sidecars);
    if let Some(limits) = limits.filter(|_| record.registry == EXTERNAL) {
        match crate::service_entry::visibility_limit(limits, namespace_labels) {
            crate::service_entry::Limit::Public => {}
            crate::service_entry::Limit::Namespace => {
                let own = ["*", ".", &record.namespace].iter().any(|export| exports.contains(export));
                return only(if own { "." } else { "~" });
            }
            crate::service_entry::Limit::None => return only("~"),
        }
    }
    exports.into_iter().map(str::to_owned).collect()
}

/// The groups of viewers that a list names: `*` hides all others, `~` hides from all.
pub fn visibility(exports: &[String], namespace: &str) -> Vec<String> {
    if exports.iter().any(|export| export == "*") {
        return vec!["*".to_owned()];
    }
    if exports.iter().any(|export| export == "~") {
        return Vec::new();
    }
    let named = exports.iter().map(|export| if export == "." { namespace } else { export });
    named.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
}

fn summarize(record: &facts::Service) -> facts::ServiceSummary {
    facts::ServiceSummary {
        host: record.host.clone(),
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        creation_seconds: record.creation_seconds,
        ports: record.ports.clone(),
        resolution: record.resolution,
        address: record.address.clone(),
        addresses: record.addresses.clone(),
        mesh_external: record.mesh_external,
        export_to: record.export_to.clone(),
        headless: record.headless,
        registry: record.registry.clone(),
        kubernetes_type: record.kubernetes_type.clone(),
        aliases: record.aliases.clone(),
        auto_allocated_addresses: record.auto_allocated_addresses.clone(),
        external_name: record.external_name.clone(),
        external_ips: record.external_ips.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::object;

    fn read(body: Value) -> Service {
        let none = Labels::new();
        kubernetes(&object("Service", "n", "a", body), &Base::default(), &none, &none, &[])
    }

    #[test]
    fn forms_of_services() {
        let service = read(json!({"spec": {"clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1", "fd00::1"],
            "ports": [{"port": 80, "name": "http", "targetPort": "web"}]}}));
        assert_eq!(service.key, "n/a.n.svc.cluster.local");
        assert_eq!(service.record.addresses, ["10.1.0.1", "fd00::1"]);
        assert_eq!((service.record.ports[0].target_port, service.record.ports[0].target_name.as_str()), (0, "web"));
        assert_eq!(service.visibility, ["*"]);
        let headless = read(json!({"spec": {"clusterIP": "None"}}));
        assert_eq!((headless.resolution(), headless.record.address.as_str()), (Resolution::Passthrough, NO_ADDRESS));
        let alias = read(json!({"spec": {"type": "ExternalName", "externalName": "x.com"}}));
        assert_eq!((alias.resolution(), alias.record.mesh_external), (Resolution::Alias, true));
        let lb = read(json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.1.0.1", "externalIPs": ["1.1.1.1"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "lb"}]}}}));
        assert_eq!(lb.record.external_ips, ["2.2.2.2", "lb", "1.1.1.1"]);
    }

    #[test]
    fn exports() {
        let exported = |text: &str| read(json!({"metadata": {"annotations": {"networking.istio.io/exportTo": text}}}));
        assert_eq!(exported("., b").visibility, ["b", "n"]);
        assert_eq!(exported(".,*").visibility, ["*"]);
        assert!(exported("~").visibility.is_empty());
        assert_eq!(exported(".,n").visibility, ["n"]);
    }

    #[test]
    fn spreading() {
        let note = |v: &str| Labels::from([(labels::TRAFFIC_DISTRIBUTION.to_owned(), v.to_owned())]);
        let none = Labels::new();
        assert_eq!(traffic_distribution("PreferSameZone", &none, &none), "PreferClose");
        assert_eq!(traffic_distribution("", &note("any"), &note("PreferClose")), "");
        assert_eq!(traffic_distribution("Other", &none, &note("PreferSameNode")), "PreferSameNode");
    }
}
