//! Which hosts are preferred by where they are.

use trysail_sdk::facts::Service;
use trysail_sdk::proto::istio::networking::v1alpha3::{
    LoadBalancerSettings, LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting,
};

/// Label of a workload's network.
pub const LABEL_NETWORK: &str = "topology.istio.io/network";
/// Label of a workload's cluster.
pub const LABEL_CLUSTER: &str = "topology.istio.io/cluster";
/// Label of a workload's region.
pub const LABEL_REGION: &str = "topology.kubernetes.io/region";
/// Label of a workload's zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a workload's part of a zone.
pub const LABEL_SUBZONE: &str = "topology.istio.io/subzone";
/// Label of a workload's node.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";

/// The preference that holds for a cluster. A rule's goes before the service's traffic distribution, and that before the
/// mesh's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Balancing<'a> {
    /// No preference.
    Off,
    /// `localityLbSetting`. Failover needs outlier detection, else Envoy would never leave the nearest hosts.
    Locality(&'a LocalityLoadBalancerSetting),
    /// `zoneAwareLbSetting`.
    ZoneAware(&'a ZoneAwareLoadBalancerSetting),
    /// The service's traffic distribution: hosts that have these labels' values in common with the proxy, the more the
    /// better. Needs no outlier detection: readiness is the health.
    Preferred(&'static [&'static str]),
}

/// Labels of `PreferSameZone`.
const SAME_ZONE: &[&str] = &[LABEL_NETWORK, LABEL_REGION, LABEL_ZONE];
/// Labels of `PreferSameNode`.
const SAME_NODE: &[&str] = &[LABEL_NETWORK, LABEL_REGION, LABEL_ZONE, LABEL_SUBZONE, LABEL_HOSTNAME];

/// The mesh's preferences.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeshBalancing<'a> {
    /// `localityLbSetting`.
    pub locality: Option<&'a LocalityLoadBalancerSetting>,
    /// `zoneAwareLbSetting`; goes before the other.
    pub zone_aware: Option<&'a ZoneAwareLoadBalancerSetting>,
}

impl<'a> Balancing<'a> {
    /// What holds for a cluster whose rule has these settings.
    pub fn of(mesh: MeshBalancing<'a>, rule: Option<&'a LoadBalancerSettings>, service: &Service) -> Self {
        if let Some(setting) = rule.and_then(|r| r.zone_aware_lb_setting.as_ref()) {
            return Balancing::ZoneAware(setting);
        }
        if let Some(setting) = rule.and_then(|r| r.locality_lb_setting.as_ref()) {
            return Self::unless_disabled(setting);
        }
        match service.traffic_distribution.as_str() {
            "PreferClose" | "PreferSameZone" => return Balancing::Preferred(SAME_ZONE),
            "PreferSameNode" => return Balancing::Preferred(SAME_NODE),
            _ => {}
        }
        if let Some(setting) = mesh.zone_aware {
            return Balancing::ZoneAware(setting);
        }
        mesh.locality.map_or(Balancing::Off, Self::unless_disabled)
    }

    fn unless_disabled(setting: &'a LocalityLoadBalancerSetting) -> Self {
        if setting.enabled == Some(false) { Balancing::Off } else { Balancing::Locality(setting) }
    }
}

/// Whether zone awareness is on: it is unless it says no.
pub fn zone_routing(setting: &ZoneAwareLoadBalancerSetting) -> bool {
    setting.enabled != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_goes_before_the_service_and_the_mesh() {
        let locality = LocalityLoadBalancerSetting::default();
        let mesh = MeshBalancing { locality: Some(&locality), zone_aware: None };
        let near = Service { traffic_distribution: "PreferClose".into(), ..Default::default() };
        let off = LoadBalancerSettings {
            locality_lb_setting: Some(LocalityLoadBalancerSetting { enabled: Some(false), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(Balancing::of(mesh, Some(&off), &near), Balancing::Off);
        assert_eq!(Balancing::of(mesh, None, &near), Balancing::Preferred(SAME_ZONE));
        assert!(matches!(Balancing::of(mesh, None, &Service::default()), Balancing::Locality(_)));
        assert_eq!(Balancing::of(MeshBalancing::default(), None, &Service::default()), Balancing::Off);
    }
}
