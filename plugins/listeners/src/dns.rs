//! Destinations that Envoy resolves itself, from the host that a request or a ClientHello names.

use trysail_sdk::prost_types::Any;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use trysail_sdk::proto::envoy::config::core::v3::TypedExtensionConfig;
use trysail_sdk::proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use trysail_sdk::proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3::{FilterConfig, filter_config};
use trysail_sdk::proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use trysail_sdk::proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::outbound_traffic_policy::Mode;
use trysail_sdk::proto::istio::networking::v1alpha3::OutboundTrafficPolicy;
use trysail_sdk::{Ctx, Failure};

use crate::node::{self, Families};
use crate::parts;

/// Name of the HTTP filter.
pub const FORWARD_PROXY: &str = "envoy.filters.http.dynamic_forward_proxy";
/// Name of the network filter.
pub const SNI_FORWARD_PROXY: &str = "envoy.extensions.filters.network.sni_dynamic_forward_proxy";

/// The policy for destinations that no service stands for.
pub fn outbound_policy(ctx: &Ctx<'_>) -> Result<OutboundTrafficPolicy, Failure> {
    Ok(ctx.derived("scope", "outbound-policy", &[])?.unwrap_or_default())
}

/// Are unknown hosts resolved by the proxy (ALLOW_ANY_DYNAMIC_DNS)?
pub fn unknown_hosts_are_resolved(ctx: &Ctx<'_>) -> Result<bool, Failure> {
    Ok(outbound_policy(ctx)?.mode == Mode::AllowAnyDynamicDns as i32)
}

/// The HTTP filter's configuration.
pub fn forward_proxy(cache: DnsCacheConfig) -> Any {
    pack(&FilterConfig {
        implementation_specifier: Some(filter_config::ImplementationSpecifier::DnsCacheConfig(cache)),
        ..Default::default()
    })
}

/// The network filter's configuration: the port that a resolved host is called at.
pub fn sni_forward_proxy(cache: DnsCacheConfig, port: u32) -> sni::FilterConfig {
    sni::FilterConfig {
        dns_cache_config: Some(cache),
        port_specifier: Some(sni::filter_config::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

/// The cache of a wildcard host. Clusters of that host have the same name and family, else Envoy refuses one of them.
pub fn cache_of_host(ctx: &Ctx<'_>, host: &str) -> Result<DnsCacheConfig, Failure> {
    Ok(DnsCacheConfig {
        name: format!("{host}_dfp_dns_cache"),
        dns_lookup_family: lookup_family(ctx)? as i32,
        ..Default::default()
    })
}

/// The cache of all other hosts, resolved by the agent if it captures DNS.
pub fn cache_of_unknown_hosts(ctx: &Ctx<'_>) -> Result<DnsCacheConfig, Failure> {
    let hosts = ctx.features(&["PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS"])?;
    let mut cache = DnsCacheConfig {
        name: "allow_any_dfp_dns_cache".into(),
        max_hosts: Some(hosts[0].parse().unwrap_or(1024)),
        dns_lookup_family: lookup_family(ctx)? as i32,
        ..Default::default()
    };
    if node::is_true(ctx, "DNS_CAPTURE") {
        let configured = ctx.proxy_metadata("DNS_PROXY_ADDR").unwrap_or_default();
        let (host, port) = split_host_port(&configured).unwrap_or(("127.0.0.1", "15053"));
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        let resolver = parts::address(host, port.parse().unwrap_or(15053));
        cache.typed_dns_resolver_config = Some(TypedExtensionConfig {
            name: "envoy.network.dns_resolver.cares".into(),
            typed_config: Some(pack(&CaresDnsResolverConfig { resolvers: vec![resolver], ..Default::default() })),
        });
    }
    Ok(cache)
}

fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(rest) => Some((rest.strip_suffix(']')?, port)),
        None => (!host.contains(':')).then_some((host, port)),
    }
}

/// Families that hosts are resolved to, from the proxy's own addresses.
fn lookup_family(ctx: &Ctx<'_>) -> Result<DnsLookupFamily, Failure> {
    let families = Families::of(ctx);
    if families.v4 && !families.v6 {
        return Ok(DnsLookupFamily::V4Only);
    }
    let [dual_stack, extra_v4] =
        ctx.flags(["ISTIO_DUAL_STACK", "ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS"])?;
    Ok(match (families.v4, dual_stack, extra_v4) {
        (true, true, _) | (false, _, true) => DnsLookupFamily::All,
        (true, false, _) => DnsLookupFamily::V4Only,
        (false, _, false) => DnsLookupFamily::V6Only,
    })
}
