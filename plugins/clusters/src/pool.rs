//! Limits of connections and requests: circuit breakers, keepalive, HTTP options of connections.

use trysail_sdk::proto::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds};
use trysail_sdk::proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, UpstreamConnectionOptions};
use trysail_sdk::proto::envoy::config::core::v3::{self as core, KeepaliveSettings};
use trysail_sdk::proto::istio::networking::v1alpha3::ConnectionPoolSettings;
use trysail_sdk::proto::istio::networking::v1alpha3::connection_pool_settings::http_settings::H2UpgradePolicy;
use trysail_sdk::proto::istio::networking::v1alpha3::connection_pool_settings::tcp_settings::TcpKeepalive;
use trysail_sdk::proto::istio::networking::v1alpha3::traffic_policy::RetryBudget;

use crate::draft::Http;
use crate::settings::Settings;
use crate::wire::percent;

/// Is the cluster to speak HTTP/2 although its port says HTTP/1.1? A rule may say so for any port, because its author knows; the
/// mesh only for ports that are declared as HTTP.
pub fn upgrades_to_h2(settings: &Settings, port_is_http: bool, pool: Option<&ConnectionPoolSettings>) -> bool {
    if let Some(http) = pool.and_then(|pool| pool.http.as_ref()) {
        if http.use_client_protocol {
            return false;
        }
        match http.h2_upgrade_policy() {
            H2UpgradePolicy::Upgrade => return true,
            H2UpgradePolicy::DoNotUpgrade => return false,
            H2UpgradePolicy::Default => {}
        }
    }
    port_is_http && settings.h2_upgrade
}

/// Applies a pool. Numbers that are not positive count as unset: the API cannot tell 0 from unset. Without a limit there is
/// none: Envoy's own of 1024 is too small for a mesh.
pub fn apply(
    settings: &Settings,
    cluster: &mut Cluster,
    http: &mut Http,
    pool: Option<&ConnectionPoolSettings>,
    retry_budget: Option<&RetryBudget>,
) {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let request = pool.and_then(|pool| pool.http.as_ref());
    let limit = |value: Option<i32>| Some(value.and_then(positive).unwrap_or(u32::MAX));
    cluster.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(tcp.map(|t| t.max_connections)),
            max_pending_requests: limit(request.map(|r| r.http1_max_pending_requests)),
            max_requests: limit(request.map(|r| r.http2_max_requests)),
            max_retries: limit(request.map(|r| r.max_retries)),
            retry_budget: retry_budget.map(|budget| thresholds::RetryBudget {
                budget_percent: Some(percent(budget.percent.unwrap_or(20.0))),
                budget_interval: budget.budget_interval,
                min_retry_concurrency: Some(if budget.min_retry_concurrency > 0 {
                    budget.min_retry_concurrency
                } else {
                    3
                }),
            }),
            track_remaining: settings.track_remaining,
            ..Default::default()
        }],
        ..Default::default()
    });
    cluster.connect_timeout = tcp.and_then(|t| t.connect_timeout).or(settings.connect_timeout);
    keepalive(cluster, settings.tcp_keepalive.as_ref());
    keepalive(cluster, tcp.and_then(|t| t.tcp_keepalive.as_ref()));

    let idle_timeout = request.and_then(|r| r.idle_timeout).or(tcp.and_then(|t| t.idle_timeout));
    // Only these are taken as they are, whatever their sign.
    let per_connection = request.map_or(0, |r| r.max_requests_per_connection.cast_unsigned());
    let streams = request.map_or(0, |r| r.max_concurrent_streams.cast_unsigned());
    let max_duration = tcp.and_then(|t| t.max_connection_duration);
    let pings = request.and_then(|r| r.http2_keep_alive.as_ref());
    if idle_timeout.is_some() || per_connection > 0 || streams > 0 || max_duration.is_some() || pings.is_some() {
        http.used = true;
        let common = http.common.get_or_insert_with(core::HttpProtocolOptions::default);
        common.idle_timeout = idle_timeout.or(common.idle_timeout);
        if per_connection > 0 {
            common.max_requests_per_connection = Some(per_connection);
        }
        common.max_connection_duration = max_duration.or(common.max_connection_duration);
        if let Some(h2) = http.explicit_h2() {
            if streams > 0 {
                h2.max_concurrent_streams = Some(streams);
            }
            if let Some(pings) = pings {
                let (interval, timeout) = (pings.interval, pings.timeout);
                h2.connection_keepalive = Some(KeepaliveSettings { interval, timeout, ..Default::default() });
            }
        }
    }
    if request.is_some_and(|r| r.use_client_protocol) {
        http.use_downstream();
    }
}

fn positive(value: i32) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| *value > 0)
}

/// Keepalive of the mesh, then of the rule, field by field. An empty one means the defaults of the operating system.
fn keepalive(cluster: &mut Cluster, settings: Option<&TcpKeepalive>) {
    let Some(settings) = settings else { return };
    let options = cluster.upstream_connection_options.get_or_insert_with(UpstreamConnectionOptions::default);
    let keepalive = options.tcp_keepalive.get_or_insert_with(core::TcpKeepalive::default);
    // Envoy takes whole seconds.
    let whole = |duration: trysail_sdk::prost_types::Duration| u32::try_from(duration.seconds).unwrap_or(0);
    if settings.probes > 0 {
        keepalive.keepalive_probes = Some(settings.probes);
    }
    keepalive.keepalive_time = settings.time.map(whole).or(keepalive.keepalive_time);
    keepalive.keepalive_interval = settings.interval.map(whole).or(keepalive.keepalive_interval);
}
