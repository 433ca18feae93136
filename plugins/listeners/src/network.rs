//! Network filters of TCP chains: TCP proxies to one or several clusters, and the filters of databases.
//!
//! Nothing here warns or rejects.

use trysail_sdk::facts::Protocol;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use trysail_sdk::proto::envoy::extensions::filters::network::mysql_proxy::v3::MySqlProxy;
use trysail_sdk::proto::envoy::extensions::filters::network::redis_proxy::v3::{RedisProxy, redis_proxy};
use trysail_sdk::proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use trysail_sdk::proto::envoy::r#type::v3::{HashPolicy, hash_policy};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    DestinationRule, load_balancer_settings::LbPolicy, traffic_policy::TunnelSettings,
};
use trysail_sdk::{Ctx, Failure, Item, Message, Output};

use crate::parts::{self, CHAIN_FILTERS, Port, filter_of, list, network_filter, text};
use crate::{access_log, dns, http, node};

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// Where connections go.
pub enum Target {
    /// To this cluster.
    Cluster(String),
    /// To these clusters by weight.
    Weighted(Vec<(String, u32)>),
}

/// A TCP proxy that does nothing else: to the clusters that are no service.
pub fn plain_proxy(cluster: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: cluster.into(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }
}

/// Its filter.
pub fn proxy_filter(proxy: &TcpProxy) -> Message {
    network_filter(TCP_PROXY, proxy)
}

/// The filter that exchanges metadata with the peer of a TCP connection, if it is switched on.
pub fn metadata_exchange(ctx: &Ctx<'_>) -> Result<Option<Message>, Failure> {
    let [exchange] = ctx.flags(["PILOT_ENABLE_METADATA_EXCHANGE"])?;
    if !exchange {
        return Ok(None);
    }
    let labels = http::additional_labels(ctx)?;
    let mut value =
        parts::structure([("protocol", text("istio-peer-exchange")), ("enable_discovery", parts::truth(true))]);
    if !labels.is_empty() {
        value.fields.insert("additional_labels".into(), list(labels.iter().map(|l| text(l))));
    }
    let config = http::typed_struct("type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange", value);
    Ok(Some(filter_of(parts::METADATA_EXCHANGE, &config)))
}

/// `listeners/metadata-exchange`: that filter as an item, or none, shared by all chains.
pub fn metadata_exchange_call(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    if let Some(filter) = metadata_exchange(ctx)? {
        output.item(Item::new("metadata-exchange", filter));
    }
    Ok(output)
}

/// Adds to a TCP proxy what a destination's rule says of connections, hashing and tunnels. A subset's tunnel and load
/// balancer take the place of the rule's own.
pub fn apply_rule(proxy: &mut TcpProxy, rule: Option<&DestinationRule>, subset: &str) {
    let Some(rule) = rule else { return };
    let policy = rule.traffic_policy.as_ref();
    let tcp = policy.and_then(|p| p.connection_pool.as_ref()).and_then(|c| c.tcp.as_ref());
    if let Some(idle) = tcp.and_then(|t| t.idle_timeout) {
        proxy.idle_timeout = Some(idle);
    }
    proxy.max_downstream_connection_duration = tcp.and_then(|t| t.max_connection_duration);

    let by_source = |policy: Option<&LbPolicy>| match policy {
        Some(LbPolicy::ConsistentHash(hash)) => {
            use trysail_sdk::proto::istio::networking::v1alpha3::load_balancer_settings::consistent_hash_lb::HashKey;
            matches!(hash.hash_key, Some(HashKey::UseSourceIp(true)))
        }
        _ => false,
    };
    let own = policy.and_then(|p| p.load_balancer.as_ref()).and_then(|l| l.lb_policy.as_ref());
    let of_subset = rule.subsets.iter().find(|s| s.name == subset);
    let balancer = of_subset.and_then(|s| s.traffic_policy.as_ref()).and_then(|p| p.load_balancer.as_ref());
    let hashes = match balancer {
        Some(balancer) => by_source(balancer.lb_policy.as_ref()),
        None => by_source(own),
    };
    if hashes {
        proxy.hash_policy = vec![HashPolicy {
            policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})),
        }];
    }
    let tunnel = if subset.is_empty() {
        policy.and_then(|p| p.tunnel.as_ref())
    } else {
        of_subset.and_then(|s| s.traffic_policy.as_ref()).and_then(|p| p.tunnel.as_ref())
    };
    proxy.tunneling_config = tunnel.map(tunneling);
}

fn tunneling(settings: &TunnelSettings) -> tcp_proxy::TunnelingConfig {
    let host = &settings.target_host;
    let hostname = if host.contains(':') {
        format!("[{host}]:{}", settings.target_port)
    } else {
        format!("{host}:{}", settings.target_port)
    };
    tcp_proxy::TunnelingConfig { hostname, use_post: settings.protocol == "POST", ..Default::default() }
}

/// The TCP proxy to a target, with the proxy's own idle timeout and access logs.
pub fn proxy_to(ctx: &Ctx<'_>, stat_prefix: &str, target: &Target) -> Result<TcpProxy, Failure> {
    let specifier = match target {
        Target::Cluster(name) => tcp_proxy::ClusterSpecifier::Cluster(name.clone()),
        Target::Weighted(clusters) => tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster {
            clusters: clusters
                .iter()
                .map(|(name, weight)| tcp_proxy::weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    Ok(TcpProxy {
        stat_prefix: stat_prefix.into(),
        cluster_specifier: Some(specifier),
        idle_timeout: node::idle_timeout(ctx),
        access_log: access_log::of_tcp(ctx)?,
        ..Default::default()
    })
}

/// The last filters of a chain: the TCP proxy, with or instead of it a database's filter where that is switched on.
pub fn terminal(
    ctx: &Ctx<'_>,
    protocol: Protocol,
    proxy: &TcpProxy,
    first_cluster: &str,
) -> Result<Vec<Message>, Failure> {
    let prefix = proxy.stat_prefix.clone();
    let flag = match protocol {
        Protocol::Mongo => "PILOT_ENABLE_MONGO_FILTER",
        Protocol::Redis => "PILOT_ENABLE_REDIS_FILTER",
        Protocol::Mysql => "PILOT_ENABLE_MYSQL_FILTER",
        _ => return Ok(vec![proxy_filter(proxy)]),
    };
    let [enabled] = ctx.flags([flag])?;
    if !enabled {
        return Ok(vec![proxy_filter(proxy)]);
    }
    Ok(match protocol {
        Protocol::Mongo => {
            let config = MongoProxy { stat_prefix: prefix, ..Default::default() };
            vec![network_filter("envoy.filters.network.mongo_proxy", &config), proxy_filter(proxy)]
        }
        Protocol::Mysql => {
            let config = MySqlProxy { stat_prefix: prefix, ..Default::default() };
            vec![filter_of("envoy.filters.network.mysql_proxy", &pack(&config)), proxy_filter(proxy)]
        }
        // It has routes of its own and ends the chain; of weighted clusters it knows the first only.
        _ => {
            let config = RedisProxy {
                stat_prefix: prefix,
                latency_in_micros: true,
                settings: Some(redis_proxy::ConnPoolSettings {
                    op_timeout: Some(parts::seconds(5)),
                    ..Default::default()
                }),
                prefix_routes: Some(redis_proxy::PrefixRoutes {
                    catch_all_route: Some(redis_proxy::prefix_routes::Route {
                        cluster: first_cluster.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            vec![network_filter("envoy.filters.network.redis_proxy", &config)]
        }
    })
}

/// The filters that end a TCP chain towards services, as fields of the chain.
pub struct Terminal<'a> {
    /// `outbound` or `gateway`, for plugins and metrics.
    pub direction: &'static str,
    /// Service key for plugins.
    pub service: &'a str,
    /// Protocol of the listener's port.
    pub protocol: Protocol,
    /// Port of the listener.
    pub port: u32,
    /// Wildcard host that is resolved from the ClientHello, or empty.
    pub dynamic_host: &'a str,
}

impl Terminal<'_> {
    /// Appends the filters to a chain.
    pub fn append(
        &self,
        ctx: &Ctx<'_>,
        chain: Message,
        proxy: &TcpProxy,
        first_cluster: &str,
    ) -> Result<Message, Failure> {
        let mut chain = chain.hole(CHAIN_FILTERS, parts::stats(self.direction));
        if !self.dynamic_host.is_empty() {
            let config = dns::sni_forward_proxy(dns::cache_of_host(ctx, self.dynamic_host)?, self.port);
            chain = chain.field(CHAIN_FILTERS, network_filter(dns::SNI_FORWARD_PROXY, &config));
        }
        chain =
            chain.hole(CHAIN_FILTERS, parts::network_filter_hook(self.direction, self.service, Port::Any(self.port)));
        for filter in terminal(ctx, self.protocol, proxy, first_cluster)? {
            chain = chain.field(CHAIN_FILTERS, filter);
        }
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_sdk::proto::istio::networking::v1alpha3::{
        LoadBalancerSettings, Subset, TrafficPolicy,
        load_balancer_settings::{ConsistentHashLb, consistent_hash_lb::HashKey},
    };

    fn hashing(by_source: bool) -> TrafficPolicy {
        let key = if by_source { HashKey::UseSourceIp(true) } else { HashKey::HttpHeaderName("x".into()) };
        TrafficPolicy {
            load_balancer: Some(LoadBalancerSettings {
                lb_policy: Some(LbPolicy::ConsistentHash(ConsistentHashLb {
                    hash_key: Some(key),
                    ..Default::default()
                })),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_subset_overrides_the_hash_of_its_rule() {
        let rule = DestinationRule {
            traffic_policy: Some(hashing(true)),
            subsets: vec![
                Subset { name: "a".into(), traffic_policy: Some(hashing(false)), ..Default::default() },
                Subset { name: "b".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        for (subset, hashed) in [("", true), ("a", false), ("b", true)] {
            let mut proxy = plain_proxy("c");
            apply_rule(&mut proxy, Some(&rule), subset);
            assert_eq!(!proxy.hash_policy.is_empty(), hashed, "{subset}");
        }
    }

    #[test]
    fn a_subset_has_no_tunnel_but_its_own() {
        let policy = TrafficPolicy {
            tunnel: Some(TunnelSettings { protocol: "POST".into(), target_host: "::1".into(), target_port: 443 }),
            ..Default::default()
        };
        let rule = DestinationRule {
            traffic_policy: Some(policy),
            subsets: vec![Subset { name: "a".into(), ..Default::default() }],
            ..Default::default()
        };
        let mut proxy = plain_proxy("c");
        apply_rule(&mut proxy, Some(&rule), "");
        assert_eq!(proxy.tunneling_config.as_ref().map(|t| t.hostname.as_str()), Some("[::1]:443"));
        apply_rule(&mut proxy, Some(&rule), "a");
        assert_eq!(proxy.tunneling_config, None);
    }
}
