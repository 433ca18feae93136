//! What a snapshot knows of a proxy, and the answers about it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use trysail_model::{Answer, ObjectRef, Proxy, Query};
use trysail_proto::istio::mesh::v1alpha1::ProxyConfig;

use crate::endpoints::View;
use crate::labels::{self, Labels};
use crate::mesh::{merge_proxy_config, project_proxy_config};
use crate::table::prefix;
use crate::targets;

impl View<'_> {
    /// The proxy with what the registry knows of its workload; `None` when it knew all of that already.
    pub fn refresh(&self, proxy: &Proxy) -> Option<Proxy> {
        let text = |name: &str| proxy.metadata.get(name).and_then(Value::as_str).unwrap_or_default();
        let own = self.workload_labels(proxy);
        let place = locality_of(&own).unwrap_or_else(|| proxy.node_locality.clone());
        let place_text = if place.iter().all(String::is_empty) { String::new() } else { place.join("/") };
        let labels = labels::augment(&own, text("CLUSTER_ID"), &place_text, text("NODE_NAME"), text("NETWORK"));
        let targets = targets::encode(&self.targets_of(proxy, &labels)).encode_to_vec();
        if *proxy.labels == labels && proxy.locality == place && *proxy.targets == *targets {
            return None;
        }
        let labels = Arc::new(labels);
        Some(Proxy { labels, locality: place, targets: targets.into(), ..proxy.clone() })
    }

    /// The objects behind a proxy's targets: its pod or workload, and the services.
    pub fn behind_targets(&self, proxy: &Proxy) -> BTreeSet<ObjectRef> {
        let targets = self.targets_of(proxy, &proxy.labels);
        let mut objects: BTreeSet<ObjectRef> = targets.iter().map(|target| target.service.source.clone()).collect();
        objects.extend(self.pod_of_proxy(proxy).map(|pod| pod.reference.clone()));
        objects.extend(proxy.addresses.iter().flat_map(|address| self.targets_at(address).1));
        objects
    }

    /// The labels of a proxy's workload: of its pod, else of a ServiceEntry's endpoint, else those it sent.
    fn workload_labels(&self, proxy: &Proxy) -> Labels {
        let sent =
            |name: &str| crate::json::text_map(&Value::Object((*proxy.metadata).clone()), &[name]).unwrap_or_default();
        if targets::is_test_vm(proxy) {
            return sent("LABELS");
        }
        let cluster = proxy.metadata.get("CLUSTER_ID").and_then(Value::as_str).unwrap_or_default();
        let known = if cluster.is_empty() || cluster == self.base.settings.cluster_id {
            self.known_labels(proxy)
        } else {
            None
        };
        let Some(known) = known else { return sent("LABELS") };
        let mut labels = sent("STATIC_LABELS");
        labels.extend(known);
        labels
    }

    fn known_labels(&self, proxy: &Proxy) -> Option<Labels> {
        if let Some(pod) = self.pod_of_proxy(proxy) {
            let node = proxy.metadata.get("NODE_NAME").and_then(Value::as_str).unwrap_or_default();
            let network = self.network(&pod.ip, &pod.labels);
            let cluster = &self.base.settings.cluster_id;
            return Some(labels::augment(&pod.labels, cluster, &self.locality(&pod), node, &network));
        }
        let namespace = proxy.metadata.get("NAMESPACE").and_then(Value::as_str).filter(|ns| !ns.is_empty());
        proxy.addresses.iter().find_map(|address| self.endpoint_labels(address, namespace))
    }

    /// Labels of the ServiceEntry endpoint that has the address.
    fn endpoint_labels(&self, address: &str, namespace: Option<&str>) -> Option<Labels> {
        let at = prefix(&[address]);
        let wanted = |own: &str| namespace.is_none_or(|namespace| namespace == own);
        let inline = self.state.inline_at.with_prefix(&at).filter(|(_, entry)| wanted(&entry.reference.namespace));
        let written = inline.filter(|(_, entry)| entry.selector().is_none() && !entry.spec.ports.is_empty());
        let mut written = written.flat_map(|(_, entry)| &entry.inline).filter(|instance| instance.address() == address);
        if let Some(instance) = written.next() {
            return Some(instance.endpoint.labels.clone());
        }
        let entries = self.state.workloads_at.with_prefix(&at).map(|(_, instance)| (**instance).clone());
        let pods = self.state.pods_at.with_prefix(&at).filter(|(_, pod)| pod.ip == address);
        let select_pods = self.base.environment.flag("PILOT_ENABLE_SERVICEENTRY_SELECT_PODS");
        let pods = pods.filter(|_| select_pods).filter_map(|(_, pod)| self.pod_instance(pod));
        let mut instances = pods.chain(entries).filter(|instance| wanted(&instance.namespace));
        let selected = instances.find(|instance| {
            let in_namespace = prefix(&[&instance.namespace]);
            let mut all = self.state.entries.with_prefix(&in_namespace);
            all.any(|(_, entry)| entry.takes(instance) && !entry.services.is_empty() && !entry.spec.ports.is_empty())
        });
        selected.map(|instance| instance.endpoint.labels)
    }
}

/// Region, zone and sub-zone that labels tell.
fn locality_of(labels: &Labels) -> Option<[String; 3]> {
    let keys = [labels::REGION, labels::ZONE, labels::SUBZONE];
    if keys.iter().any(|key| labels.contains_key(*key)) {
        return Some(keys.map(|key| labels.get(key).cloned().unwrap_or_default()));
    }
    let by_hand = labels.get(labels::LOCALITY).or_else(|| labels.get(labels::OLD_LOCALITY));
    let place = labels::locality(by_hand.filter(|text| !text.is_empty())?)?;
    Some([place.region, place.zone, place.sub_zone])
}

/// Answers a query about a proxy.
pub fn answer(proxy: &Proxy, query: &Query) -> Answer {
    let text = |text: &str| Answer::new(Some(Bytes::copy_from_slice(text.as_bytes())), []);
    match query.kind {
        "proxy" => attribute(proxy, query.arg(0)).map_or_else(Answer::none, |value| text(&value)),
        "proxy-in-namespaces" => {
            let own = query.args.iter().find(|namespace| **namespace == *proxy.namespace);
            own.map_or_else(Answer::none, |namespace| text(namespace))
        }
        "proxy-labels-match" => Answer::truth(query.args.iter().all(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            proxy.labels.get(key).is_some_and(|own| own == value)
        })),
        "proxy-has-address" => Answer::truth(query.args.iter().any(|address| has_address(proxy, address))),
        "proxy-version-at-least" => {
            Answer::truth(at_least(&proxy.metadata_text("ISTIO_VERSION").unwrap_or_default(), query.arg(0)))
        }
        "proxy-version-matches" => Answer::truth(version_matches(proxy, query.arg(0))),
        "proxy-metadata-match" => Answer::truth(query.args.iter().all(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            proxy.metadata.get(key).and_then(Value::as_str) == Some(value)
        })),
        "proxy-targets" => Answer::new(Some(Bytes::copy_from_slice(&proxy.targets)), []),
        "proxy-config" => match own_config(proxy) {
            Some(own) => Answer::new(Some(project_proxy_config(&own, &query.args)), []),
            None => Answer::none(),
        },
        _ => Answer::none(),
    }
}

fn attribute(proxy: &Proxy, name: &str) -> Option<String> {
    if let Some(label) = name.strip_prefix("label:") {
        return proxy.labels.get(label).cloned();
    }
    if let Some(key) = name.strip_prefix("metadata:") {
        return proxy.metadata_text(key);
    }
    Some(match name {
        "type" => proxy.proxy_type.to_string(),
        "id" => proxy.id.to_string(),
        "namespace" => proxy.namespace.to_string(),
        "dns-domain" => proxy.dns_domain.to_string(),
        "addresses" => proxy.addresses.join(","),
        "network" => proxy.network.to_string(),
        "locality" => proxy.locality.join("/"),
        "cluster-id" => proxy.metadata_text("CLUSTER_ID")?,
        "service-account" => proxy.metadata_text("SERVICE_ACCOUNT")?,
        "ip-families" => ip_families(proxy).to_owned(),
        "labels" => {
            let pairs = proxy.labels.iter().map(|(key, value)| (key.clone(), Value::String(value.clone())));
            Value::Object(pairs.collect::<Map<_, _>>()).to_string()
        }
        _ => return None,
    })
}

/// Bytes of an expression: what it is read into takes hundreds of times the memory.
const MAX_PATTERN: usize = 1024;

/// Does the expression find anything in the proxy's version? One that is none was taken by nobody who checks objects, and stands
/// in nobody's way, as in istiod.
fn version_matches(proxy: &Proxy, pattern: &str) -> bool {
    let version = proxy.metadata.get("ISTIO_VERSION").and_then(Value::as_str).filter(|version| !version.is_empty());
    // Asked once for each proxy and pattern, since answers are remembered; the limit bounds what a hostile one costs.
    if pattern.len() > MAX_PATTERN {
        return true;
    }
    match regex::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
        Ok(expression) => version.is_some_and(|version| expression.is_match(version)),
        Err(_) => true,
    }
}

fn ip_families(proxy: &Proxy) -> &'static str {
    let parsed = || proxy.addresses.iter().filter_map(|address| address.parse::<std::net::IpAddr>().ok());
    match (parsed().any(|ip| ip.is_ipv4()), parsed().any(|ip| ip.is_ipv6())) {
        (true, true) => "dual",
        (false, true) => "ipv6",
        _ => "ipv4",
    }
}

fn has_address(proxy: &Proxy, address: &str) -> bool {
    proxy.addresses.iter().any(|own| own == address)
}

/// Compares `1.30.1-dev` with `1.30` part by part; what is no version counts as the newest.
fn at_least(version: &str, wanted: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<u32>> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|part| part.parse().ok()).collect()
    };
    let (Some(own), Some(wanted)) = (parts(version), parts(wanted)) else { return true };
    let part = |list: &[u32], i: usize| list.get(i).copied().unwrap_or_default();
    (0..own.len().max(wanted.len()))
        .map(|i| part(&own, i).cmp(&part(&wanted, i)))
        .find(|o| o.is_ne())
        .is_none_or(|o| o.is_gt())
}

/// The configuration that a proxy sent, an object or its text.
fn own_config(proxy: &Proxy) -> Option<ProxyConfig> {
    let sent = match proxy.metadata.get("PROXY_CONFIG")? {
        Value::String(text) => serde_json::from_str(text).ok()?,
        other => other.clone(),
    };
    let mut warnings = Vec::new();
    let config = merge_proxy_config(ProxyConfig::default(), sent.as_object()?, &mut warnings);
    for warning in warnings {
        tracing::warn!(proxy = %proxy.node_id, warning, "proxy configuration");
    }
    Some(config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trysail_proto::istio::mesh::v1alpha1::ProxyConfig;

    use super::*;

    fn proxy(metadata: Value) -> Proxy {
        let metadata = metadata.as_object().cloned().unwrap();
        Proxy::from_node("sidecar~10.0.0.1~a.n~n.svc.cluster.local", metadata, Default::default()).unwrap()
    }

    fn ask(proxy: &Proxy, kind: &'static str, args: &[&str]) -> Option<String> {
        let value = answer(proxy, &Query::new(kind, args.iter().copied())).value?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn attributes() {
        let proxy = proxy(json!({"LABELS": {"app": "a", "x": "1"}, "INSTANCE_IPS": "10.0.0.1,fd00::1", "FLAG": true}));
        assert_eq!(ask(&proxy, "proxy", &["labels"]).unwrap(), r#"{"app":"a","x":"1"}"#);
        assert_eq!(ask(&proxy, "proxy", &["label:app"]).unwrap(), "a");
        assert_eq!(ask(&proxy, "proxy", &["metadata:FLAG"]).unwrap(), "true");
        assert_eq!(ask(&proxy, "proxy", &["ip-families"]).unwrap(), "dual");
        assert_eq!(ask(&proxy, "proxy", &["nothing"]), None);
        assert_eq!(ask(&proxy, "proxy-in-namespaces", &["m", "n"]).unwrap(), "n");
        assert!(ask(&proxy, "proxy-labels-match", &["app=a", "x=1"]).is_some());
        assert!(ask(&proxy, "proxy-labels-match", &["app=b"]).is_none());
        assert!(ask(&proxy, "proxy-has-address", &["fd00::1"]).is_some());
    }

    #[test]
    fn versions() {
        assert!(
            at_least("1.30.1", "1.30")
                && at_least("1.31-dev", "1.31")
                && at_least("1.30", "1.30.0")
                && at_least("master", "1.31")
        );
        assert!(!at_least("1.29.4", "1.30"));
    }

    #[test]
    fn versions_by_expression_and_metadata() {
        let is = |metadata: Value, kind, args: &[&str]| ask(&proxy(metadata), kind, args).is_some();
        let of = |version: &str| json!({"ISTIO_VERSION": version});
        assert!(is(of("1.31.0"), "proxy-version-matches", &[r"^1\.3[01]"]));
        assert!(!is(of("1.29.0"), "proxy-version-matches", &[r"^1\.3[01]"]));
        assert!(is(of("x1.30"), "proxy-version-matches", &["1.30"]), "it need not match all of it");
        assert!(!is(json!({}), "proxy-version-matches", &[".*"]));
        assert!(is(of("1.31.0"), "proxy-version-matches", &["("]));
        let metadata = json!({"A": "1", "B": 1, "C": "x=y"});
        assert!(is(metadata.clone(), "proxy-metadata-match", &["A=1", "C=x=y"]));
        assert!(!is(metadata.clone(), "proxy-metadata-match", &["B=1"]), "numbers are no text");
        assert!(!is(metadata, "proxy-metadata-match", &["D="]));
    }

    #[test]
    fn own_proxy_config() {
        let names = ["stat_name_length"];
        assert_eq!(ask(&proxy(json!({})), "proxy-config", &names), None);
        let sent = proxy(json!({"PROXY_CONFIG": {"statNameLength": 7, "tracing": {}}}));
        let bytes = answer(&sent, &Query::new("proxy-config", names)).value.unwrap();
        assert_eq!(ProxyConfig::decode(bytes).unwrap(), ProxyConfig { stat_name_length: 7, ..Default::default() });
    }
}
