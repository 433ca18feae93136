//! What clusters depend on besides services and rules, condensed to two small records.
//!
//! Each cluster call asks for both. Their fingerprints change only when something here does, however the mesh
//! configuration, the feature variables or the proxy's metadata change otherwise.

use trysail_sdk::prost::{self, Message as _};
use trysail_sdk::prost_types::Duration;
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config::{
    DefaultTrafficPolicy, H2UpgradePolicy, TlsConfig, inbound_traffic_policy,
};
use trysail_sdk::proto::istio::networking::v1alpha3::connection_pool_settings::tcp_settings::TcpKeepalive;
use trysail_sdk::proto::istio::networking::v1alpha3::{LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting};
use trysail_sdk::{Ctx, Failure, Output};

use crate::{tls, wire};

/// From the mesh configuration and the feature variables (named in capitals).
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Settings {
    /// Time to connect, unless a rule says otherwise.
    #[prost(message, optional, tag = "1")]
    pub connect_timeout: Option<Duration>,
    /// Keepalive of connections, which rules override field by field.
    #[prost(message, optional, tag = "2")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// HTTP/1.1 ports are upgraded to HTTP/2.
    #[prost(bool, tag = "3")]
    pub h2_upgrade: bool,
    /// Time between DNS queries where records have no TTL.
    #[prost(message, optional, tag = "4")]
    pub dns_refresh_rate: Option<Duration>,
    /// Mutual TLS where both sides have sidecars.
    #[prost(bool, tag = "5")]
    pub auto_mtls: bool,
    /// Curves and ciphers of TLS that is not mutual TLS of the mesh.
    #[prost(message, optional, tag = "6")]
    pub tls_defaults: Option<TlsConfig>,
    /// Preference of localities.
    #[prost(message, optional, tag = "7")]
    pub locality: Option<LocalityLoadBalancerSetting>,
    /// Preference of zones.
    #[prost(message, optional, tag = "8")]
    pub zone_aware: Option<ZoneAwareLoadBalancerSetting>,
    /// Blocks for rules that have none.
    #[prost(message, optional, tag = "9")]
    pub default_policy: Option<DefaultTrafficPolicy>,
    /// Pattern of names in statistics; empty: the cluster's name.
    #[prost(string, tag = "10")]
    pub outbound_stat_name: String,
    /// The same of inbound clusters.
    #[prost(string, tag = "11")]
    pub inbound_stat_name: String,
    /// Inbound traffic goes to the loopback address and not to the one it came to.
    #[prost(bool, tag = "13")]
    pub inbound_localhost: bool,

    /// `PILOT_ENABLE_METADATA_EXCHANGE`
    #[prost(bool, tag = "20")]
    pub metadata_exchange: bool,
    /// `PILOT_DISABLE_MX_ALPN`
    #[prost(bool, tag = "21")]
    pub no_exchange_alpn: bool,
    /// `PILOT_ENABLE_TELEMETRY_LABEL`
    #[prost(bool, tag = "23")]
    pub telemetry: bool,
    /// `PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS`
    #[prost(bool, tag = "24")]
    pub unhealthy_by_default: bool,
    /// `PILOT_SEND_UNHEALTHY_ENDPOINTS`
    #[prost(bool, tag = "25")]
    pub unhealthy_always: bool,
    /// Not `DISABLE_TRACK_REMAINING_CB_METRICS`
    #[prost(bool, tag = "26")]
    pub track_remaining: bool,
    /// `PILOT_ENABLE_REDIS_FILTER`
    #[prost(bool, tag = "27")]
    pub redis: bool,
    /// `ENABLE_LOCALITY_WEIGHTED_LB_CONFIG`
    #[prost(bool, tag = "28")]
    pub locality_weighted: bool,
    /// `PREFER_DESTINATIONRULE_TLS_FOR_EXTERNAL_SERVICES`
    #[prost(bool, tag = "29")]
    pub rule_tls_for_external: bool,
    /// `PILOT_ENABLE_EDS_FOR_HEADLESS_SERVICES`
    #[prost(bool, tag = "30")]
    pub headless_eds: bool,
    /// `ISTIO_DUAL_STACK`
    #[prost(bool, tag = "31")]
    pub dual_stack: bool,
    /// `ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS`
    #[prost(bool, tag = "32")]
    pub ipv4_for_ipv6: bool,
    /// `PILOT_PERSISTENT_SESSION_LABEL`, `PILOT_PERSISTENT_SESSION_HEADER_LABEL`
    #[prost(string, repeated, tag = "33")]
    pub session_labels: Vec<String>,
    /// `COMPLIANCE_POLICY`
    #[prost(string, tag = "34")]
    pub compliance: String,
    /// `PILOT_DNS_CARES_UDP_MAX_QUERIES`
    #[prost(uint32, tag = "35")]
    pub dns_max_queries: u32,
    /// `PILOT_DNS_JITTER_DURATION`
    #[prost(message, optional, tag = "36")]
    pub dns_jitter: Option<Duration>,
    /// `PILOT_ENABLE_AMBIENT`
    #[prost(bool, tag = "37")]
    pub ambient: bool,
    /// `PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS`
    #[prost(uint32, tag = "38")]
    pub dynamic_dns_max_hosts: u32,
    /// `PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE`
    #[prost(bool, tag = "39")]
    pub merge_ingress: bool,

    /// Configuration of the metadata exchange filter, encoded. Parts that are in every cluster are encoded here once.
    #[prost(bytes = "vec", tag = "50")]
    pub exchange: Vec<u8>,
    /// Fields of the TLS context that all mutual TLS of the mesh has.
    #[prost(bytes = "vec", tag = "51")]
    pub mesh_tls: Vec<u8>,
    /// The mesh's roots as a secret, encoded.
    #[prost(bytes = "vec", tag = "52")]
    pub mesh_roots: Vec<u8>,
}

impl Settings {
    /// Asks for them.
    pub fn ask(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        Ok(ctx.derived("clusters", "settings", &[])?.unwrap_or_default())
    }
}

/// The function `settings`.
pub fn settings(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mesh = ctx.mesh_config(&[
        "connect_timeout",
        "tcp_keepalive",
        "h2_upgrade_policy",
        "dns_refresh_rate",
        "enable_auto_mtls",
        "tls_defaults",
        "locality_lb_setting",
        "zone_aware_lb_setting",
        "default_traffic_policy",
        "outbound_cluster_stat_name",
        "inbound_cluster_stat_name",
        "inbound_traffic_policy",
    ])?;
    let texts = ctx.features(&FEATURES)?;
    let text = |name: &str| FEATURES.iter().position(|known| *known == name).map_or("", |i| texts[i].as_str());
    let flag = |name: &str| text(name) == "true";
    let localhost = inbound_traffic_policy::Mode::Localhost;
    let compliance = text("COMPLIANCE_POLICY");
    Ok(Output::value(&Settings {
        exchange: wire::exchange_config(names(text("PILOT_MX_ADDITIONAL_LABELS"))).encode_to_vec(),
        mesh_tls: tls::mesh_context(compliance).encode_to_vec(),
        mesh_roots: tls::mesh_roots().encode_to_vec(),
        connect_timeout: mesh.connect_timeout,
        tcp_keepalive: mesh.tcp_keepalive,
        h2_upgrade: mesh.h2_upgrade_policy() == H2UpgradePolicy::Upgrade,
        dns_refresh_rate: mesh.dns_refresh_rate,
        auto_mtls: mesh.enable_auto_mtls.unwrap_or_default(),
        tls_defaults: mesh.tls_defaults,
        locality: mesh.locality_lb_setting,
        zone_aware: mesh.zone_aware_lb_setting,
        default_policy: mesh.default_traffic_policy,
        outbound_stat_name: mesh.outbound_cluster_stat_name,
        inbound_stat_name: mesh.inbound_cluster_stat_name,
        inbound_localhost: mesh.inbound_traffic_policy.is_some_and(|policy| policy.mode() == localhost),
        metadata_exchange: flag("PILOT_ENABLE_METADATA_EXCHANGE"),
        no_exchange_alpn: flag("PILOT_DISABLE_MX_ALPN"),
        telemetry: flag("PILOT_ENABLE_TELEMETRY_LABEL"),
        unhealthy_by_default: flag("PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS"),
        unhealthy_always: flag("PILOT_SEND_UNHEALTHY_ENDPOINTS"),
        track_remaining: !flag("DISABLE_TRACK_REMAINING_CB_METRICS"),
        redis: flag("PILOT_ENABLE_REDIS_FILTER"),
        locality_weighted: flag("ENABLE_LOCALITY_WEIGHTED_LB_CONFIG"),
        rule_tls_for_external: flag("PREFER_DESTINATIONRULE_TLS_FOR_EXTERNAL_SERVICES"),
        headless_eds: flag("PILOT_ENABLE_EDS_FOR_HEADLESS_SERVICES"),
        dual_stack: flag("ISTIO_DUAL_STACK"),
        ipv4_for_ipv6: flag("ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS"),
        session_labels: [text("PILOT_PERSISTENT_SESSION_LABEL"), text("PILOT_PERSISTENT_SESSION_HEADER_LABEL")]
            .into_iter()
            .filter(|label| !label.is_empty())
            .map(str::to_owned)
            .collect(),
        compliance: compliance.to_owned(),
        dns_max_queries: text("PILOT_DNS_CARES_UDP_MAX_QUERIES").parse().unwrap_or(100),
        dns_jitter: go_duration(text("PILOT_DNS_JITTER_DURATION")),
        ambient: flag("PILOT_ENABLE_AMBIENT"),
        dynamic_dns_max_hosts: text("PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS").parse().unwrap_or(1024),
        merge_ingress: flag("PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE"),
    }))
}

const FEATURES: [&str; 21] = [
    "PILOT_ENABLE_METADATA_EXCHANGE",
    "PILOT_DISABLE_MX_ALPN",
    "PILOT_MX_ADDITIONAL_LABELS",
    "PILOT_ENABLE_TELEMETRY_LABEL",
    "PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS",
    "PILOT_SEND_UNHEALTHY_ENDPOINTS",
    "DISABLE_TRACK_REMAINING_CB_METRICS",
    "PILOT_ENABLE_REDIS_FILTER",
    "ENABLE_LOCALITY_WEIGHTED_LB_CONFIG",
    "PREFER_DESTINATIONRULE_TLS_FOR_EXTERNAL_SERVICES",
    "PILOT_ENABLE_EDS_FOR_HEADLESS_SERVICES",
    "ISTIO_DUAL_STACK",
    "ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS",
    "PILOT_PERSISTENT_SESSION_LABEL",
    "PILOT_PERSISTENT_SESSION_HEADER_LABEL",
    "COMPLIANCE_POLICY",
    "PILOT_DNS_CARES_UDP_MAX_QUERIES",
    "PILOT_DNS_JITTER_DURATION",
    "PILOT_ENABLE_AMBIENT",
    "PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS",
    "PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE",
];

fn names(list: &str) -> Vec<String> {
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// From the proxy's node metadata. None when all is as usual, so that usual proxies share.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct ProxyTraits {
    /// Headers of HTTP/1.1 keep their case (proxy configuration).
    #[prost(bool, tag = "1")]
    pub preserve_case: bool,
    /// Path of the proxy's own client certificate; empty: it uses the mesh's identity.
    #[prost(string, tag = "2")]
    pub cert_chain: String,
    /// Path of its key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Path of the roots it trusts.
    #[prost(string, tag = "4")]
    pub root: String,
    /// Named credentials come from a socket in the pod.
    #[prost(bool, tag = "5")]
    pub credential_socket: bool,
    /// Certificate files are served by a socket in the pod.
    #[prost(bool, tag = "6")]
    pub file_credential_socket: bool,
}

impl ProxyTraits {
    /// Asks for them.
    pub fn ask(ctx: &Ctx<'_>) -> Result<Self, Failure> {
        Ok(ctx.derived("clusters", "proxy", &[])?.unwrap_or_default())
    }
}

/// The function `proxy`.
pub fn proxy(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let headers = ctx.proxy_config(&["proxy_headers"])?.proxy_headers;
    let text = |key: &str| ctx.proxy_metadata(key).unwrap_or_default();
    let flag = |key: &str| ctx.proxy_metadata(key).as_deref() == Some("true");
    let mut traits = ProxyTraits {
        preserve_case: headers.and_then(|headers| headers.preserve_http1_header_case).unwrap_or_default(),
        cert_chain: text("TLS_CLIENT_CERT_CHAIN"),
        credential_socket: flag("credential"),
        file_credential_socket: flag("file-credential"),
        ..Default::default()
    };
    if !traits.cert_chain.is_empty() {
        traits.key = text("TLS_CLIENT_KEY");
        traits.root = text("TLS_CLIENT_ROOT_CERT");
    }
    Ok(if traits == ProxyTraits::default() { Output::empty() } else { Output::value(&traits) })
}

/// A duration as Go writes it, `1m0.5s`.
pub fn go_duration(text: &str) -> Option<Duration> {
    let mut nanos: i128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let next = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(next);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        nanos += whole.parse::<i128>().ok()? * scale;
        let mut place = scale;
        for digit in fraction.chars() {
            place /= 10;
            nanos += i128::from(digit.to_digit(10)?) * place;
        }
        rest = tail;
    }
    Some(Duration {
        seconds: i64::try_from(nanos / 1_000_000_000).ok()?,
        nanos: i32::try_from(nanos % 1_000_000_000).ok()?,
    })
}
