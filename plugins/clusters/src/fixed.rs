//! Clusters that do not depend on any service.

use std::borrow::Cow;

use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
use trysail_sdk::proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use trysail_sdk::proto::envoy::config::core::v3::{self as core, BindConfig};
use trysail_sdk::proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use trysail_sdk::proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use trysail_sdk::proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use trysail_sdk::proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;
use trysail_sdk::proto::istio::networking::v1alpha3::{ClientTlsSettings, OutboundTrafficPolicy};
use trysail_sdk::{Ctx, Failure, Item, Message, Output, Severity};

use crate::draft::{self, HTTP_OPTIONS, Http};
use crate::inbound::{SOURCE, SOURCE_V6, extra_source};
use crate::settings::{ProxyTraits, Settings};
use crate::tls::{self, Choice, Situation};
use crate::{dynamic, outbound, pool, wire};

/// Takes what has no destination.
const BLACK_HOLE: &str = "BlackHoleCluster";
/// Sends what the mesh does not know to where it was meant for.
const PASSTHROUGH: &str = "PassthroughCluster";
/// The same towards the workload, for ports that no service has.
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// Sends what the mesh does not know to the host that the request names.
const DYNAMIC_DNS: &str = "AllowAnyDynamicDNSCluster";
/// `ALLOW_ANY_DYNAMIC_DNS`, which the Sidecar's own form of the policy cannot name.
const MODE_DYNAMIC_DNS: i32 = 3;
/// Cache that the cluster shares with the filters of listeners.
const DYNAMIC_DNS_CACHE: &str = "allow_any_dfp_dns_cache";
/// Socket of the secret service that the `credential` metadata promises.
const CREDENTIAL_SOCKET: &str = "./var/run/secrets/credential-uds/socket";

/// Where connections from the workload, or through a gateway, go.
pub const OUTBOUND: &str = "outbound";
/// Where connections to the workload go.
pub const INBOUND: &str = "inbound";
/// What EnvoyFilters do not touch.
pub const UNPATCHED: &str = "unpatched";

/// The function `fixed`.
pub fn fixed(ctx: &Ctx<'_>, args: &[String]) -> Result<Output, Failure> {
    let settings = Settings::ask(ctx)?;
    let proxy = ProxyTraits::ask(ctx)?;
    let mut output = Output::empty();
    match args.first().map(String::as_str) {
        Some(OUTBOUND) => outbound_side(ctx, &settings, &proxy, &mut output)?,
        Some(INBOUND) => add(&mut output, inbound_passthrough(ctx, &settings, &proxy)),
        Some(UNPATCHED) if proxy.credential_socket => add(&mut output, external_secrets(&settings)),
        Some(UNPATCHED) => {}
        _ => return Err(Failure::BadArguments("clusters/fixed needs a side".into())),
    }
    Ok(output)
}

fn outbound_side(ctx: &Ctx<'_>, settings: &Settings, proxy: &ProxyTraits, output: &mut Output) -> Result<(), Failure> {
    add(output, black_hole(settings));
    if ctx.proxy("type").as_deref() == Some("sidecar") {
        add(output, passthrough(settings, proxy));
        let policy = ctx.derived::<OutboundTrafficPolicy>("scope", "outbound-policy", &[])?;
        if policy.is_some_and(|policy| policy.mode == MODE_DYNAMIC_DNS) {
            let cluster = dynamic_dns(ctx, settings, proxy, output)?;
            output.item(Item::new(DYNAMIC_DNS, cluster));
        }
    }
    Ok(())
}

fn inbound_passthrough(ctx: &Ctx<'_>, settings: &Settings, proxy: &ProxyTraits) -> Cluster {
    let families = ctx.proxy("ip-families").unwrap_or_default();
    let mut inbound = passthrough(settings, proxy);
    inbound.name = INBOUND_PASSTHROUGH.to_owned();
    inbound.filters.clear();
    let first = if matches!(families.as_str(), "ipv4" | "dual") { SOURCE } else { SOURCE_V6 };
    inbound.upstream_bind_config = Some(BindConfig {
        source_address: Some(wire::source(first, 0)),
        extra_source_addresses: if families == "dual" { vec![extra_source()] } else { Vec::new() },
        ..Default::default()
    });
    inbound
}

fn add(output: &mut Output, cluster: Cluster) {
    output.item(Item::new(cluster.name.clone(), Message::of(&cluster)));
}

fn named(name: &str, kind: DiscoveryType, settings: &Settings) -> Cluster {
    Cluster {
        name: name.to_owned(),
        alt_stat_name: format!("{name};"),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        connect_timeout: settings.connect_timeout,
        ..Default::default()
    }
}

fn black_hole(settings: &Settings) -> Cluster {
    named(BLACK_HOLE, DiscoveryType::Static, settings)
}

/// Speaks what the client speaks.
fn passthrough_options(proxy: &ProxyTraits) -> HttpProtocolOptions {
    let h1 = if proxy.preserve_case { wire::preserve_case() } else { core::Http1ProtocolOptions::default() };
    HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(wire::seconds(300)),
            ..Default::default()
        }),
        upstream_protocol_options: Some(draft::downstream(h1)),
        ..Default::default()
    }
}

fn passthrough(settings: &Settings, proxy: &ProxyTraits) -> Cluster {
    let mut cluster = named(PASSTHROUGH, DiscoveryType::OriginalDst, settings);
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&passthrough_options(proxy)));
    let limits = settings.default_policy.as_ref().and_then(|policy| policy.connection_pool.as_ref());
    // Limits of connections only: the options of HTTP stay those above.
    pool::apply(settings, &mut cluster, &mut Http::default(), limits, None);
    if settings.metadata_exchange {
        cluster.filters.push(wire::metadata_exchange(settings));
    }
    cluster
}

fn dynamic_dns(
    ctx: &Ctx<'_>,
    settings: &Settings,
    proxy: &ProxyTraits,
    output: &mut Output,
) -> Result<Message, Failure> {
    let mesh = ctx.mesh_config(&["outbound_traffic_policy"])?;
    let asked: Option<ClientTlsSettings> = mesh.outbound_traffic_policy.and_then(|policy| policy.tls);
    let asked = asked.filter(|tls| tls.mode() != TlSmode::Disable);
    let mut cache = DnsCacheConfig {
        name: DYNAMIC_DNS_CACHE.to_owned(),
        dns_lookup_family: outbound::lookup_family(settings, ctx.proxy("ip-families").as_deref()).into(),
        max_hosts: Some(settings.dynamic_dns_max_hosts),
        ..Default::default()
    };
    if matches!(ctx.proxy_metadata("DNS_CAPTURE").as_deref(), Some("true" | "1" | "True" | "TRUE" | "t" | "T")) {
        let (host, port) = agent_dns(&ctx.proxy_metadata("DNS_PROXY_ADDR").unwrap_or_default());
        let resolver = CaresDnsResolverConfig { resolvers: vec![wire::socket(&host, port)], ..Default::default() };
        cache.typed_dns_resolver_config = Some(wire::extension("envoy.network.dns_resolver.cares", pack(&resolver)));
    }
    let mut draft = dynamic::with_cache(DYNAMIC_DNS.to_owned(), cache, asked.is_none());
    // They give way to those that TLS needs, if it needs any.
    let options = passthrough_options(proxy);
    draft.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&options));
    pool::apply(settings, &mut draft.cluster, &mut draft.http, None, None);
    if let Some(tls) = asked {
        let at = Situation { settings, proxy, external: true, entry: false, selective: false, sni: "" };
        let choice = Choice { tls: Cow::Owned(tls), automatic: false };
        let nobody = || Ok::<_, Failure>(Vec::new());
        if let Err(why) = tls::apply(&at, &mut draft, Some(&choice), nobody, || true)? {
            output.diagnose(Severity::Error, "MeshConfig", "outboundTrafficPolicy.tls", why);
        }
    }
    if settings.metadata_exchange {
        draft.cluster.filters.push(wire::metadata_exchange(settings));
    }
    Ok(draft.build())
}

/// Where the agent beside the proxy answers DNS.
fn agent_dns(text: &str) -> (String, u32) {
    let (host, port) = text.rsplit_once(':').unwrap_or((LOOPBACK, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host == "localhost" { LOOPBACK } else { host };
    (host.to_owned(), port.parse().unwrap_or(15053))
}

const LOOPBACK: &str = "127.0.0.1";

fn external_secrets(settings: &Settings) -> Cluster {
    let mut cluster = named(tls::EXTERNAL, DiscoveryType::Static, settings);
    cluster.load_assignment = Some(wire::single(tls::EXTERNAL, wire::socket(CREDENTIAL_SOCKET, 0)));
    let mut http = Http::default();
    http.use_h2();
    let options = HttpProtocolOptions { upstream_protocol_options: http.protocol, ..Default::default() };
    cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&options));
    cluster
}
