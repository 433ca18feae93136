//! The traffic policy of one port and subset.
//!
//! A port's settings replace those of all ports as a whole, they inherit nothing. A subset's blocks replace the rule's, each
//! as a whole; its settings for a port take away the rule's blocks even where they are silent.

use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::DefaultTrafficPolicy;
use trysail_sdk::proto::istio::networking::v1alpha3::load_balancer_settings::{LbPolicy, SimpleLb};
use trysail_sdk::proto::istio::networking::v1alpha3::traffic_policy::{ProxyProtocol, RetryBudget};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings, OutlierDetection, Subset,
    TrafficPolicy,
};

/// The blocks that hold for one cluster; each is unset when nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy<'a> {
    /// Limits of connections and requests.
    pub connection_pool: Option<&'a ConnectionPoolSettings>,
    /// Ejection of hosts that fail.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// Choice of hosts.
    pub load_balancer: Option<&'a LoadBalancerSettings>,
    /// TLS towards the hosts.
    pub tls: Option<&'a ClientTlsSettings>,
    /// PROXY protocol towards the hosts. Not known at the level of ports.
    pub proxy_protocol: Option<&'a ProxyProtocol>,
    /// Share of requests that may be retries. Not known at the level of ports.
    pub retry_budget: Option<&'a RetryBudget>,
}

impl<'a> Policy<'a> {
    /// What a policy says of a port, and whether it says so for that port in particular.
    pub fn for_port(policy: Option<&'a TrafficPolicy>, port: u32) -> (Self, bool) {
        let Some(policy) = policy else { return (Self::default(), false) };
        let own = policy.port_level_settings.iter().find(|own| own.port.as_ref().is_some_and(|p| p.number == port));
        match own {
            Some(own) => (
                Policy {
                    connection_pool: own.connection_pool.as_ref(),
                    outlier_detection: own.outlier_detection.as_ref(),
                    load_balancer: own.load_balancer.as_ref(),
                    tls: own.tls.as_ref(),
                    proxy_protocol: None,
                    retry_budget: None,
                },
                true,
            ),
            None => (
                Policy {
                    connection_pool: policy.connection_pool.as_ref(),
                    outlier_detection: policy.outlier_detection.as_ref(),
                    load_balancer: policy.load_balancer.as_ref(),
                    tls: policy.tls.as_ref(),
                    proxy_protocol: policy.proxy_protocol.as_ref(),
                    retry_budget: policy.retry_budget.as_ref(),
                },
                false,
            ),
        }
    }

    /// The same with the mesh's blocks where the rule has none.
    pub fn over_mesh_default(mut self, default: Option<&'a DefaultTrafficPolicy>) -> Self {
        if let Some(default) = default {
            self.connection_pool = self.connection_pool.or(default.connection_pool.as_ref());
            self.outlier_detection = self.outlier_detection.or(default.outlier_detection.as_ref());
        }
        self
    }

    /// The same under the policy of a subset.
    pub fn with_subset(mut self, subset: Option<&'a TrafficPolicy>, port: u32) -> Self {
        let (over, whole) = Self::for_port(subset, port);
        fn replace<'b, T>(mine: &mut Option<&'b T>, over: Option<&'b T>, whole: bool) {
            if over.is_some() || whole {
                *mine = over;
            }
        }
        replace(&mut self.connection_pool, over.connection_pool, whole);
        replace(&mut self.outlier_detection, over.outlier_detection, whole);
        replace(&mut self.load_balancer, over.load_balancer, whole);
        replace(&mut self.tls, over.tls, whole);
        replace(&mut self.proxy_protocol, over.proxy_protocol, false);
        replace(&mut self.retry_budget, over.retry_budget, false);
        self
    }

    /// What a rule says of a port and subset, without the mesh's defaults.
    pub fn of_rule(rule: Option<&'a DestinationRule>, port: u32, subset: &str) -> Self {
        let Some(rule) = rule else { return Self::default() };
        let (base, _) = Self::for_port(rule.traffic_policy.as_ref(), port);
        base.with_subset(subset_of(rule, subset).and_then(|s| s.traffic_policy.as_ref()), port)
    }
}

/// The first subset of that name.
pub fn subset_of<'a>(rule: &'a DestinationRule, name: &str) -> Option<&'a Subset> {
    rule.subsets.iter().find(|subset| subset.name == name)
}

/// The simple balancer that is asked for; unspecified when there is none or a consistent hash.
pub fn simple(settings: Option<&LoadBalancerSettings>) -> SimpleLb {
    match settings.and_then(|s| s.lb_policy.as_ref()) {
        Some(LbPolicy::Simple(number)) => SimpleLb::try_from(*number).unwrap_or(SimpleLb::Unspecified),
        _ => SimpleLb::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::proto::istio::networking::v1alpha3::PortSelector;
    use trysail_sdk::proto::istio::networking::v1alpha3::traffic_policy::PortTrafficPolicy;

    fn pool() -> Option<ConnectionPoolSettings> {
        Some(ConnectionPoolSettings::default())
    }

    fn rule() -> DestinationRule {
        let port = PortTrafficPolicy {
            port: Some(PortSelector { number: 80 }),
            tls: Some(ClientTlsSettings::default()),
            ..Default::default()
        };
        let base =
            TrafficPolicy { connection_pool: pool(), port_level_settings: vec![port.clone()], ..Default::default() };
        let subset = TrafficPolicy { outlier_detection: Some(OutlierDetection::default()), ..Default::default() };
        DestinationRule {
            traffic_policy: Some(base),
            subsets: vec![
                Subset { name: "a".into(), traffic_policy: Some(subset), ..Default::default() },
                Subset {
                    name: "b".into(),
                    traffic_policy: Some(TrafficPolicy { port_level_settings: vec![port], ..Default::default() }),
                    ..Default::default()
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_port_inherits_nothing() {
        let rule = rule();
        let policy = Policy::of_rule(Some(&rule), 80, "");
        assert!(policy.tls.is_some() && policy.connection_pool.is_none());
        assert!(Policy::of_rule(Some(&rule), 81, "").connection_pool.is_some());
    }

    #[test]
    fn a_subset_replaces_blocks_and_its_port_all_of_them() {
        let rule = rule();
        let policy = Policy::of_rule(Some(&rule), 81, "a");
        assert!(policy.connection_pool.is_some() && policy.outlier_detection.is_some());
        let policy = Policy::of_rule(Some(&rule), 81, "b");
        assert!(policy.connection_pool.is_some() && policy.tls.is_none());
        let mut all_ports = rule.clone();
        all_ports.traffic_policy.as_mut().unwrap().port_level_settings.clear();
        let policy = Policy::of_rule(Some(&all_ports), 80, "b");
        assert!(policy.connection_pool.is_none() && policy.tls.is_some());
    }

    #[test]
    fn the_mesh_fills_gaps_only() {
        let mesh =
            DefaultTrafficPolicy { connection_pool: pool(), outlier_detection: Some(OutlierDetection::default()) };
        let rule = rule();
        let (policy, _) = Policy::for_port(rule.traffic_policy.as_ref(), 81);
        let filled = policy.over_mesh_default(Some(&mesh));
        assert!(std::ptr::eq(filled.connection_pool.unwrap(), policy.connection_pool.unwrap()));
        assert!(filled.outlier_detection.is_some());
    }
}
