//! Clusters of inference pools at gateways: an endpoint picker, asked by a filter, chooses the host and names it in metadata.
//!
//! Nothing here warns or rejects.

use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::LbPolicy;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use trysail_sdk::proto::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy, load_balancing_policy::Policy};
use trysail_sdk::proto::envoy::extensions::load_balancing_policies::override_host::v3::OverrideHost;
use trysail_sdk::proto::envoy::extensions::load_balancing_policies::override_host::v3::override_host::OverrideHostSource;
use trysail_sdk::proto::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use trysail_sdk::proto::envoy::r#type::metadata::v3::{
    MetadataKey, metadata_key::PathSegment, metadata_key::path_segment,
};

use crate::wire;

/// Metadata that the picker and Envoy read and write.
const METADATA: &str = "envoy.lb";
/// The host that the picker chose.
const CHOSEN: &str = "x-gateway-destination-endpoint";
/// The host that the request went to.
const SERVED: &str = "x-gateway-destination-endpoint-served";

/// Lets the picker choose; without its word hosts take turns.
pub fn choose_by_picker(cluster: &mut Cluster) {
    // Envoy takes no weights of localities beside a policy of the new kind.
    if let Some(common) = &mut cluster.common_lb_config
        && matches!(common.locality_config_specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)))
    {
        common.locality_config_specifier = None;
    }
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    let turns = policy("envoy.load_balancing_policies.round_robin", pack(&RoundRobin::default()));
    let chosen = OverrideHost {
        override_host_sources: vec![OverrideHostSource { metadata: Some(key(CHOSEN)), ..Default::default() }],
        selected_host_key: Some(key(SERVED)),
        fallback_policy: Some(turns),
    };
    cluster.load_balancing_policy = Some(policy("envoy.load_balancing_policies.override_host", pack(&chosen)));
}

fn policy(name: &str, config: trysail_sdk::prost_types::Any) -> LoadBalancingPolicy {
    let typed_extension_config = Some(wire::extension(name, config));
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config }] }
}

fn key(name: &str) -> MetadataKey {
    let segment = path_segment::Segment::Key(name.to_owned());
    MetadataKey { key: METADATA.to_owned(), path: vec![PathSegment { segment: Some(segment) }] }
}
