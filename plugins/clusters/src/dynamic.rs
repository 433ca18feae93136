//! Clusters whose hosts come from requests (dynamic forward proxy): wildcard ServiceEntries with `DYNAMIC_DNS`, and the
//! mesh's `ALLOW_ANY_DYNAMIC_DNS`.

use trysail_sdk::facts::Protocol;
use trysail_sdk::proto::any::{pack, unpack};
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DnsLookupFamily, LbPolicy,
};
use trysail_sdk::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use trysail_sdk::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use trysail_sdk::proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;

use crate::draft::Draft;

/// Protocols whose requests name their host.
pub fn supports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls)
}

/// The cluster of a wildcard host.
pub fn cluster(name: String, host: &str, family: DnsLookupFamily) -> Draft {
    let cache = DnsCacheConfig {
        // Filters and cluster share the cache by its name.
        name: format!("{host}_dfp_dns_cache"),
        dns_lookup_family: family.into(),
        ..Default::default()
    };
    with_cache(name, cache, false)
}

/// A cluster with a DNS cache. Without TLS settings Envoy insists on names from requests, unless it is allowed not to.
pub fn with_cache(name: String, cache: DnsCacheConfig, allow_insecure: bool) -> Draft {
    let config = ClusterConfig {
        allow_insecure_cluster_options: allow_insecure,
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)),
        ..Default::default()
    };
    let cluster = Cluster {
        alt_stat_name: format!("{name};"),
        name,
        lb_policy: LbPolicy::ClusterProvided.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
            name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
            typed_config: Some(pack(&config)),
        })),
        ..Default::default()
    };
    Draft { dynamic: true, ..Draft::of(cluster) }
}

/// Allows TLS whose names do not come from requests.
pub fn allow_insecure(cluster: &mut Cluster) {
    let Some(ClusterDiscoveryType::ClusterType(custom)) = &mut cluster.cluster_discovery_type else { return };
    if let Some(Ok(mut config)) = custom.typed_config.as_ref().and_then(unpack::<ClusterConfig>) {
        config.allow_insecure_cluster_options = true;
        custom.typed_config = Some(pack(&config));
    }
}
