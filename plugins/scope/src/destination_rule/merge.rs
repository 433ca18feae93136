//! Several rules become one: subsets are appended, the first traffic policy stays.

use std::collections::BTreeSet;

use trysail_sdk::facts::Object;
use trysail_sdk::proto::istio::networking::v1alpha3::traffic_policy::PortTrafficPolicy;
use trysail_sdk::proto::istio::networking::v1alpha3::{DestinationRule, TrafficPolicy};
use trysail_sdk::{Output, Severity};

/// Annotation of rules that were made from backend policies of the Gateway API.
const BACKEND_POLICY: &str = "internal.istio.io/parents";

/// A rule that grows.
pub struct Merge {
    rule: DestinationRule,
    subsets: BTreeSet<String>,
    first: String,
    /// The first rule was made from backend policies, not by a user.
    from_backend_policy: bool,
}

impl Merge {
    /// Begins with the first rule.
    pub fn new(object: &Object, rule: DestinationRule) -> Self {
        Merge {
            subsets: rule.subsets.iter().map(|subset| subset.name.clone()).collect(),
            first: name(object),
            from_backend_policy: is_backend_policy(object),
            rule,
        }
    }

    /// Merges a younger rule.
    ///
    /// Among rules of users, and among those made from backend policies, the first traffic policy stays as it is; a
    /// user's and a backend policy's are joined field by field, the user's fields first, whichever is older.
    pub fn add(&mut self, object: &Object, rule: &DestinationRule, output: &mut Output) {
        for (n, subset) in rule.subsets.iter().enumerate() {
            if self.subsets.insert(subset.name.clone()) {
                self.rule.subsets.push(subset.clone());
            } else {
                let why = format!(
                    "subset {:?} of this host is already defined by a merged rule, first {}",
                    subset.name, self.first
                );
                output.diagnose(Severity::Warning, name(object), format!("spec.subsets[{n}].name"), why);
            }
        }
        let (held, added) = (self.rule.traffic_policy.take(), rule.traffic_policy.clone());
        self.rule.traffic_policy = match (self.from_backend_policy, is_backend_policy(object)) {
            (false, true) => joined(held, added),
            (true, false) => joined(added, held),
            _ => {
                if held.is_some() && added.is_some() {
                    let why = format!("the traffic policy for this host is that of {}", self.first);
                    output.diagnose(Severity::Warning, name(object), "spec.trafficPolicy", why);
                }
                held.or(added)
            }
        };
    }

    /// The merged rule.
    pub fn into_rule(self) -> DestinationRule {
        self.rule
    }
}

fn name(object: &Object) -> String {
    let reference = object.r#ref.clone().unwrap_or_default();
    format!("DestinationRule {}/{}", reference.namespace, reference.name)
}

fn is_backend_policy(object: &Object) -> bool {
    object.annotations.contains_key(BACKEND_POLICY)
}

/// A user's policy, with what it leaves open from a backend policy.
fn joined(user: Option<TrafficPolicy>, backend: Option<TrafficPolicy>) -> Option<TrafficPolicy> {
    let (Some(user), Some(backend)) = (&user, &backend) else { return user.or(backend) };
    let (user, backend) = (user.clone(), backend.clone());
    Some(TrafficPolicy {
        load_balancer: user.load_balancer.or(backend.load_balancer),
        connection_pool: user.connection_pool.or(backend.connection_pool),
        outlier_detection: user.outlier_detection.or(backend.outlier_detection),
        tls: user.tls.or(backend.tls),
        port_level_settings: joined_ports(user.port_level_settings, backend.port_level_settings),
        tunnel: user.tunnel.or(backend.tunnel),
        proxy_protocol: user.proxy_protocol.or(backend.proxy_protocol),
        retry_budget: user.retry_budget.or(backend.retry_budget),
    })
}

fn joined_ports(mut user: Vec<PortTrafficPolicy>, backend: Vec<PortTrafficPolicy>) -> Vec<PortTrafficPolicy> {
    let number = |policy: &PortTrafficPolicy| policy.port.map_or(0, |port| port.number);
    let n_own = user.len();
    for policy in backend {
        // As the last one of a port is the one that counts, the last one is filled up.
        match user[..n_own].iter_mut().rfind(|own| number(own) == number(&policy)) {
            Some(own) => {
                own.load_balancer = own.load_balancer.take().or(policy.load_balancer);
                own.connection_pool = own.connection_pool.take().or(policy.connection_pool);
                own.outlier_detection = own.outlier_detection.take().or(policy.outlier_detection);
                own.tls = own.tls.take().or(policy.tls);
            }
            None => user.push(policy),
        }
    }
    user
}
