//! What is odd about the present state: the gauges that istiod records with each push, and `push_status`.
//!
//! istiod counts while it generates, for the proxies that happen to be connected. Here it follows from the facts, so that the
//! numbers do not depend on who is connected.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use trysail_proto::istio::networking::v1alpha3::DestinationRule;
use trysail_proto::trysail::facts::v1::{Endpoint, Health, Resolution};

use crate::FactsSnapshot;
use crate::documents;
use crate::endpoints::View;
use crate::labels;
use crate::services::Service;
use crate::table::key;

/// Keys of what is odd, by istiod's name of the metric, each with a message that may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(BTreeMap<&'static str, BTreeMap<String, String>>);

const NO_POD: &str = "endpoint_no_pod";
const PENDING_POD: &str = "pilot_k8s_endpoints_pending_pod";
const NO_INSTANCES: &str = "pilot_eds_no_instances";
const NOT_READY: &str = "pilot_endpoint_not_ready";
const DNS_WITHOUT_ENDPOINTS: &str = "pilot_dns_cluster_without_endpoints";
const DUPLICATE_SUBSETS: &str = "pilot_destrule_subsets";

impl Problems {
    /// Names of the metrics, with what they count.
    pub const METRICS: [(&'static str, &'static str); 6] = [
        (NO_POD, "Endpoints that name a pod which is not known."),
        (PENDING_POD, "Endpoints that wait for their pod."),
        (NO_INSTANCES, "Clusters without instances."),
        (NOT_READY, "Endpoints that are not ready."),
        (DNS_WITHOUT_ENDPOINTS, "Clusters by DNS without endpoints."),
        (DUPLICATE_SUBSETS, "Subsets that several DestinationRules of a host define."),
    ];

    /// Number of cases of a metric.
    pub fn count(&self, metric: &str) -> usize {
        // The same under its newer name.
        let metric = if metric == PENDING_POD { NO_POD } else { metric };
        self.0.get(metric).map_or(0, BTreeMap::len)
    }

    /// As istiod's `push_status` has it: cases by metric, without those that have none.
    pub fn dump(&self) -> Value {
        let case = |(key, message): (&String, &String)| {
            let shown = if message.is_empty() { json!({}) } else { json!({"message": message}) };
            (key.clone(), shown)
        };
        let of = |cases: &BTreeMap<String, String>| Value::Object(cases.iter().map(case).collect::<Map<_, _>>());
        Value::Object(self.0.iter().map(|(metric, cases)| ((*metric).to_owned(), of(cases))).collect())
    }

    fn add(&mut self, metric: &'static str, key: String, message: String) {
        self.0.entry(metric).or_default().insert(key, message);
    }
}

impl FactsSnapshot {
    /// Looks over everything: linear in services and endpoints, so callers keep the result for the revision.
    pub fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let view = self.view();
        let subsets = subsets(view, &mut problems);
        for (_, service) in view.state.services.iter() {
            clusters(view, service, subsets.get(service.host()), &mut problems);
        }
        for (_, slice) in view.state.slices_named.iter() {
            for member in &slice.members {
                let Some((namespace, name)) = &member.pod else { continue };
                if !view.state.pods.contains(&key(&[namespace, name])) {
                    problems.add(NO_POD, format!("{namespace}/{name}"), String::new());
                } else if !member.ready && !member.terminating {
                    problems.add(NOT_READY, format!("{name}.{namespace}"), String::new());
                }
            }
        }
        problems
    }
}

/// A subset's name and the labels that its endpoints have.
type Subsets = Vec<(String, BTreeMap<String, String>)>;

/// The subsets of hosts; of one name the first counts, as in a merge of rules.
fn subsets(view: View<'_>, problems: &mut Problems) -> BTreeMap<String, Subsets> {
    let mut found: BTreeMap<String, Subsets> = BTreeMap::new();
    for (_, rule) in view.state.rules_of.iter() {
        let reference = &rule.reference;
        let config = view.state.configs.get(&key(&[&reference.kind, &reference.namespace, &reference.name]));
        let document = config.and_then(|config| documents::decode::<DestinationRule>(&config.document).ok());
        let document = document.filter(|document| document.workload_selector.is_none());
        let of_host = found.entry(rule.host.clone()).or_default();
        let before: BTreeSet<String> = of_host.iter().map(|(name, _)| name.clone()).collect();
        for subset in document.into_iter().flat_map(|document| document.subsets) {
            if before.contains(&subset.name) {
                let message =
                    format!("Duplicate subset {} found while merging destination rules for {}", subset.name, rule.host);
                problems.add(DUPLICATE_SUBSETS, rule.host.clone(), message);
            } else {
                of_host.push((subset.name, subset.labels));
            }
        }
    }
    found
}

fn clusters(view: View<'_>, service: &Service, subsets: Option<&Subsets>, problems: &mut Problems) {
    let metric = match service.resolution() {
        Resolution::ClientSideLb => NO_INSTANCES,
        Resolution::DnsLb | Resolution::DnsRoundRobinLb => DNS_WITHOUT_ENDPOINTS,
        // These have no endpoints of their own.
        Resolution::Passthrough | Resolution::Alias | Resolution::DynamicDns => return,
    };
    let found = view.endpoints_of(&service.key).endpoints;
    let served = |endpoint: &&Endpoint| endpoint.health() != Health::Terminating;
    for port in &service.record.ports {
        let of_port: Vec<&Endpoint> = found
            .iter()
            .filter(served)
            .filter(|e| e.port_name == port.name || e.legacy_cluster_port_key == port.port.to_string())
            .collect();
        let mut check = |subset: &str, is_empty: bool| {
            if is_empty {
                let cluster = format!("outbound|{}|{subset}|{}", port.port, service.host());
                problems.add(metric, cluster, String::new());
            }
        };
        check("", of_port.is_empty());
        for (name, wanted) in subsets.into_iter().flatten() {
            check(name, !of_port.iter().any(|endpoint| labels::selects(wanted, &endpoint.labels)));
        }
    }
}
