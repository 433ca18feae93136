//! Choice of hosts: balancers, preference of localities, ejection of hosts that fail.

use trysail_policy::locality::zone_routing;
use trysail_policy::traffic::simple;
use trysail_policy::{Balancing, MeshBalancing};
use trysail_sdk::facts::{Port, Protocol, Service};
use trysail_sdk::proto::envoy::config::cluster::v3::OutlierDetection;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, DiscoveryType, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig, SlowStartConfig,
};
use trysail_sdk::proto::envoy::config::core::v3::RuntimeDouble;
use trysail_sdk::proto::istio::networking::v1alpha3::load_balancer_settings::{
    ConsistentHashLb, LbPolicy as Asked, SimpleLb, consistent_hash_lb::HashAlgorithm,
};
use trysail_sdk::proto::istio::networking::v1alpha3::{LoadBalancerSettings, OutlierDetection as Ejection};

use crate::draft::Draft;
use crate::settings::Settings;
use crate::wire::percent;

/// Smallest ring when a rule asks for a consistent hash and says nothing else.
const RING_SIZE: u64 = 1024;

fn common(draft: &mut Draft) -> &mut CommonLbConfig {
    draft.cluster.common_lb_config.get_or_insert_with(CommonLbConfig::default)
}

/// Endpoints that are not ready are sent whatever the rule says.
fn unhealthy_forced(settings: &Settings, service: &Service) -> bool {
    settings.unhealthy_always || !service.traffic_distribution.is_empty()
}

/// Applies outlier detection. Success rates never eject: they need more hosts and requests than a mesh has.
pub fn outlier_detection(settings: &Settings, draft: &mut Draft, service: &Service, ejection: Option<&Ejection>) {
    let Some(ejection) = ejection else { return };
    // A number of errors of 0 switches the kind off.
    let enforce = |errors: Option<u32>| errors.map(|errors| if errors > 0 { 100 } else { 0 });
    let split = ejection.split_external_local_origin_errors;
    let local = ejection.consecutive_local_origin_failures.filter(|failures| split && *failures > 0);
    draft.cluster.outlier_detection = Some(OutlierDetection {
        consecutive_5xx: ejection.consecutive_5xx_errors,
        enforcing_consecutive_5xx: enforce(ejection.consecutive_5xx_errors),
        consecutive_gateway_failure: ejection.consecutive_gateway_errors,
        enforcing_consecutive_gateway_failure: enforce(ejection.consecutive_gateway_errors),
        interval: ejection.interval,
        base_ejection_time: ejection.base_ejection_time,
        max_ejection_percent: u32::try_from(ejection.max_ejection_percent).ok().filter(|p| *p > 0),
        enforcing_success_rate: Some(0),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failure: local,
        enforcing_consecutive_local_origin_failure: local.map(|_| 100),
        enforcing_local_origin_success_rate: split.then_some(0),
        ..Default::default()
    });
    // Envoy's panic mode (half of the hosts, by default) suits no service of a few pods, and must never reach pods that are
    // not ready.
    if ejection.min_health_percent >= 0 {
        let panic = if unhealthy_forced(settings, service) { 0 } else { ejection.min_health_percent };
        common(draft).healthy_panic_threshold = Some(percent(f64::from(panic)));
    }
}

/// Applies the balancer. Outlier detection must be there already: failover depends on it.
pub fn apply(
    settings: &Settings,
    draft: &mut Draft,
    service: &Service,
    port: &Port,
    asked: Option<&LoadBalancerSettings>,
    is_waypoint: impl FnOnce() -> bool,
) {
    if draft.dynamic {
        return;
    }
    if settings.unhealthy_by_default || unhealthy_forced(settings, service) {
        common(draft).healthy_panic_threshold.get_or_insert(percent(0.0));
    }
    let mesh = MeshBalancing { locality: settings.locality.as_ref(), zone_aware: settings.zone_aware.as_ref() };
    localities(settings, draft, Balancing::of(mesh, asked, service), is_waypoint);
    if draft.kind() == Some(DiscoveryType::OriginalDst) {
        draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
        return;
    }
    // Keys of Redis stay with their host.
    if settings.redis && port.protocol() == Protocol::Redis {
        draft.cluster.lb_policy = LbPolicy::Maglev.into();
        return;
    }
    let slow_start = asked.and_then(slow_start);
    match simple(asked) {
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
            draft.cluster.lb_policy = LbPolicy::LeastRequest.into();
            draft.cluster.lb_config = slow_start.map(|slow_start_config| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config: Some(slow_start_config),
                    ..Default::default()
                })
            });
        }
        SimpleLb::RoundRobin => {
            draft.cluster.lb_policy = LbPolicy::RoundRobin.into();
            draft.cluster.lb_config = slow_start.map(|slow_start_config| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(slow_start_config) })
            });
        }
        SimpleLb::Random => draft.cluster.lb_policy = LbPolicy::Random.into(),
        SimpleLb::Passthrough => {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided.into();
            draft.set_kind(DiscoveryType::OriginalDst);
        }
    }
    if let Some(Asked::ConsistentHash(hash)) = asked.and_then(|asked| asked.lb_policy.as_ref()) {
        consistent_hash(draft, hash);
    }
}

/// What a rule asks for of localities that has no effect: the field of a load balancer, and why. `knows_own_cluster` says whether
/// the proxy was told of the hosts of its own service.
pub fn without_effect(
    draft: &Draft,
    asked: &LoadBalancerSettings,
    knows_own_cluster: impl FnOnce() -> bool,
) -> Option<(&'static str, &'static str)> {
    if let Some(setting) = &asked.zone_aware_lb_setting {
        return (zone_routing(setting) && !knows_own_cluster()).then_some((
            "zoneAwareLbSetting",
            "has no effect: the proxy does not know its own service's hosts (metadata ENABLE_SELF_DISCOVERY)",
        ));
    }
    let setting = asked.locality_lb_setting.as_ref().filter(|setting| setting.enabled != Some(false))?;
    let fails_over = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    (fails_over && draft.cluster.outlier_detection.is_none())
        .then_some(("localityLbSetting", "failover has no effect without outlierDetection"))
}

/// Localities get weights only where something gives them any: with weights on, Envoy first picks a locality, which spoils
/// balancers such as least request.
fn localities(settings: &Settings, draft: &mut Draft, balancing: Balancing<'_>, is_waypoint: impl FnOnce() -> bool) {
    let ejects = draft.cluster.outlier_detection.is_some();
    let weighted = match balancing {
        Balancing::Off => false,
        Balancing::Preferred(_) => true,
        Balancing::Locality(setting) => {
            !setting.distribute.is_empty()
                || (ejects && !(setting.failover.is_empty() && setting.failover_priority.is_empty()))
        }
        // Waypoints cannot, and balance as if nothing was said.
        Balancing::ZoneAware(setting) => {
            if !is_waypoint() {
                common(draft).locality_config_specifier =
                    Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
                        // Zone awareness is Envoy's default, so no is said explicitly.
                        routing_enabled: (!zone_routing(setting)).then(|| percent(0.0)),
                        min_cluster_size: setting.min_cluster_size,
                        ..Default::default()
                    }));
                return;
            }
            false
        }
    };
    if weighted || settings.locality_weighted {
        common(draft).locality_config_specifier =
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {}));
    }
}

/// Traffic to new hosts rises slowly. The older setting has a duration only.
fn slow_start(asked: &LoadBalancerSettings) -> Option<SlowStartConfig> {
    if let Some(warmup) = &asked.warmup {
        return Some(SlowStartConfig {
            slow_start_window: warmup.duration,
            // The key is istiod's; nothing can set it at run time.
            aggression: Some(RuntimeDouble {
                default_value: warmup.aggression.unwrap_or(1.0),
                runtime_key: "(".to_owned(),
            }),
            min_weight_percent: Some(percent(warmup.minimum_percent.unwrap_or(10.0))),
        });
    }
    asked.warmup_duration_secs.map(|window| SlowStartConfig { slow_start_window: Some(window), ..Default::default() })
}

fn consistent_hash(draft: &mut Draft, hash: &ConsistentHashLb) {
    let cluster = &mut draft.cluster;
    let ring =
        |size| LbConfig::RingHashLbConfig(RingHashLbConfig { minimum_ring_size: Some(size), ..Default::default() });
    match &hash.hash_algorithm {
        Some(HashAlgorithm::Maglev(maglev)) => {
            cluster.lb_policy = LbPolicy::Maglev.into();
            if maglev.table_size != 0 {
                cluster.lb_config =
                    Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(maglev.table_size) }));
            }
        }
        Some(HashAlgorithm::RingHash(algorithm)) => {
            cluster.lb_policy = LbPolicy::RingHash.into();
            if algorithm.minimum_ring_size != 0 {
                cluster.lb_config = Some(ring(algorithm.minimum_ring_size));
            }
        }
        None => {
            cluster.lb_policy = LbPolicy::RingHash.into();
            // The older place of the size.
            cluster.lb_config =
                Some(ring(if hash.minimum_ring_size != 0 { hash.minimum_ring_size } else { RING_SIZE }));
        }
    }
}
