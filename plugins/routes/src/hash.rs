//! Hash policies: a consistent-hash load balancer needs every route to its cluster to say what is hashed.
//!
//! Read from the effective DestinationRule. Nothing warns or rejects.

use trysail_sdk::proto::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    Destination, DestinationRule, LoadBalancerSettings, TrafficPolicy,
    load_balancer_settings::{ConsistentHashLb, LbPolicy, consistent_hash_lb::HashKey},
};

fn of_balancer(balancer: Option<&LoadBalancerSettings>) -> Option<&ConsistentHashLb> {
    match balancer?.lb_policy.as_ref()? {
        LbPolicy::ConsistentHash(hash) => Some(hash),
        LbPolicy::Simple(_) => None,
    }
}

fn of_policy(policy: Option<&TrafficPolicy>) -> Option<&ConsistentHashLb> {
    of_balancer(policy?.load_balancer.as_ref())
}

fn of_port(policy: Option<&TrafficPolicy>, port: u32) -> Option<&ConsistentHashLb> {
    let settings = policy?.port_level_settings.iter();
    // Settings without a port count as port 0, which no route names.
    let setting = settings.into_iter().find(|s| s.port.as_ref().map_or(0, |p| p.number) == port)?;
    of_balancer(setting.load_balancer.as_ref())
}

/// The hash of a destination of a VirtualService. Port settings count only if the destination names its port; subset
/// before rule, port before all ports.
pub fn for_destination<'r>(rule: &'r DestinationRule, destination: &Destination) -> Option<&'r ConsistentHashLb> {
    let subset = rule.subsets.iter().find(|s| s.name == destination.subset);
    let levels = [subset.and_then(|s| s.traffic_policy.as_ref()), rule.traffic_policy.as_ref()];
    levels.into_iter().find_map(|policy| {
        let by_port = destination.port.as_ref().and_then(|port| of_port(policy, port.number));
        by_port.or_else(|| of_policy(policy))
    })
}

/// The hash of a service's default route.
pub fn for_port(rule: &DestinationRule, port: u32) -> Option<&ConsistentHashLb> {
    of_port(rule.traffic_policy.as_ref(), port).or_else(|| of_policy(rule.traffic_policy.as_ref()))
}

/// Envoy's form; none if the hash names nothing to hash.
pub fn policy(hash: &ConsistentHashLb) -> Option<HashPolicy> {
    let specifier = match hash.hash_key.as_ref()? {
        HashKey::HttpHeaderName(name) => hash_policy::PolicySpecifier::Header(hash_policy::Header {
            header_name: name.clone(),
            ..Default::default()
        }),
        HashKey::HttpCookie(cookie) => hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl,
            path: cookie.path.clone(),
            attributes: cookie
                .attributes
                .iter()
                .map(|a| hash_policy::CookieAttribute { name: a.name.clone(), value: a.value.clone() })
                .collect(),
        }),
        HashKey::UseSourceIp(source_ip) => {
            hash_policy::PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties {
                source_ip: *source_ip,
            })
        }
        HashKey::HttpQueryParameterName(name) => {
            hash_policy::PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.clone() })
        }
    };
    Some(HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::proto::istio::networking::v1alpha3::{PortSelector, Subset, traffic_policy::PortTrafficPolicy};

    fn balancer(header: &str) -> Option<LoadBalancerSettings> {
        let hash = ConsistentHashLb { hash_key: Some(HashKey::HttpHeaderName(header.into())), ..Default::default() };
        Some(LoadBalancerSettings { lb_policy: Some(LbPolicy::ConsistentHash(hash)), ..Default::default() })
    }

    fn traffic_policy(all: &str, port: &str) -> Option<TrafficPolicy> {
        let setting = PortTrafficPolicy {
            port: Some(PortSelector { number: 80 }),
            load_balancer: balancer(port),
            ..Default::default()
        };
        Some(TrafficPolicy { load_balancer: balancer(all), port_level_settings: vec![setting], ..Default::default() })
    }

    fn header(hash: Option<&ConsistentHashLb>) -> String {
        match hash.and_then(|h| h.hash_key.clone()) {
            Some(HashKey::HttpHeaderName(name)) => name,
            other => panic!("no header: {other:?}"),
        }
    }

    #[test]
    fn precedence() {
        let subset =
            Subset { name: "v1".into(), traffic_policy: traffic_policy("subset", "subset-port"), ..Default::default() };
        let rule = DestinationRule {
            traffic_policy: traffic_policy("rule", "rule-port"),
            subsets: vec![subset],
            ..Default::default()
        };
        let to = |subset: &str, port: Option<u32>| {
            let port = port.map(|number| PortSelector { number });
            header(for_destination(&rule, &Destination { host: "a".into(), subset: subset.into(), port }))
        };
        assert_eq!(to("v1", Some(80)), "subset-port");
        assert_eq!(to("v1", None), "subset");
        assert_eq!(to("v2", Some(80)), "rule-port");
        assert_eq!(to("", Some(81)), "rule");
        assert_eq!(header(for_port(&rule, 80)), "rule-port");
    }
}
