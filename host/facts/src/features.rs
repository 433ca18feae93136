//! istiod's feature variables: one table of names, types and defaults.
//!
//! A malformed value warns and falls back to the default; an unknown name has no effect. Variables of ambient mode hold
//! only with `PILOT_ENABLE_AMBIENT`, and multi-cluster ones build on each other, as in istiod.

use std::collections::BTreeMap;

use Kind::{Bool, Duration, Float, Int, Text};

/// What values a variable takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As Go's `ParseBool` reads it.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// As Go's `ParseDuration` reads it.
    Duration,
    /// Anything.
    Text,
}

/// One feature variable.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Name in the environment.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Value when unset or malformed.
    pub default: &'static str,
    /// The fixed value while ambient mode is off, for variables of ambient mode.
    pub without_ambient: Option<&'static str>,
}

const fn plain(name: &'static str, kind: Kind, default: &'static str) -> Feature {
    Feature { name, kind, default, without_ambient: None }
}

const fn ambient(name: &'static str, kind: Kind, default: &'static str, without: &'static str) -> Feature {
    Feature { name, kind, default, without_ambient: Some(without) }
}

/// The switch of ambient mode.
const AMBIENT: &str = "PILOT_ENABLE_AMBIENT";

/// Variables that hold only if another does.
const REQUIRES: [(&str, &str); 2] =
    [("ENABLE_MCS_HOST", "ENABLE_MCS_SERVICE_DISCOVERY"), ("ENABLE_MCS_CLUSTER_LOCAL", "ENABLE_MCS_HOST")];

/// Every feature variable of release 1.31.
pub const FEATURES: &[Feature] = &[
    plain("AMBIENT_SCOPED_ADDRESS_PUSHES", Bool, "true"),
    plain("BLOCKED_CIDRS_IN_JWKS_URIS", Text, ""),
    plain("CA_TRUSTED_NODE_ACCOUNTS", Text, ""),
    plain("CERT_SIGNER_DOMAIN", Text, ""),
    plain("CLUSTER_ID", Text, "Kubernetes"),
    plain("COMPLIANCE_POLICY", Text, ""),
    plain("DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES", Text, ""),
    plain("DISABLE_SHADOW_HOST_SUFFIX", Bool, "true"),
    plain("DISABLE_TRACK_REMAINING_CB_METRICS", Bool, "true"),
    plain("ENABLE_100_CONTINUE_HEADERS", Bool, "true"),
    plain("ENABLE_CA_SERVER", Bool, "true"),
    plain("ENABLE_CLUSTER_TRUST_BUNDLE_API", Bool, "false"),
    plain("ENABLE_DEBUG_ENDPOINT_AUTH", Bool, "true"),
    plain("ENABLE_DEBUG_ON_HTTP", Bool, "true"),
    plain("ENABLE_ENHANCED_DESTINATIONRULE_MERGE", Bool, "true"),
    plain("ENABLE_GATEWAY_API_INFERENCE_EXTENSION", Bool, "false"),
    plain("ENABLE_GATEWAY_API_MANUAL_DEPLOYMENT", Bool, "true"),
    plain("ENABLE_HCM_INTERNAL_NETWORKS", Bool, "false"),
    plain("ENABLE_LAYERED_WAYPOINT_AUTHORIZATION_POLICIES", Bool, "false"),
    plain("ENABLE_LAZY_SIDECAR_EVALUATION", Bool, "true"),
    plain("ENABLE_LEADER_ELECTION", Bool, "true"),
    plain("ENABLE_LOCALITY_WEIGHTED_LB_CONFIG", Bool, "false"),
    plain("ENABLE_MCS_AUTO_EXPORT", Bool, "false"),
    plain("ENABLE_MCS_CLUSTER_LOCAL", Bool, "false"),
    plain("ENABLE_MCS_HOST", Bool, "false"),
    plain("ENABLE_MCS_SERVICE_DISCOVERY", Bool, "false"),
    plain("ENABLE_MULTICLUSTER_HEADLESS", Bool, "true"),
    plain("ENABLE_NATIVE_SIDECARS", Text, "auto"),
    plain("ENABLE_PROXY_FIND_POD_BY_IP", Bool, "false"),
    plain("ENABLE_SELECTOR_BASED_K8S_GATEWAY_POLICY", Bool, "true"),
    plain("ENABLE_TLS_ON_SIDECAR_INGRESS", Bool, "false"),
    plain("ENABLE_VTPROTOBUF", Bool, "true"),
    plain("ENABLE_WILDCARD_HOST_SERVICE_ENTRIES_FOR_TLS", Bool, "false"),
    plain("ENABLE_XDS_API_GENERATOR_AUTH", Bool, "true"),
    plain("ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", Bool, "false"),
    plain("EXTERNAL_ISTIOD", Bool, "false"),
    plain("INJECTION_WEBHOOK_CONFIG_NAME", Text, "istio-sidecar-injector"),
    plain("ISTIOD_CUSTOM_HOST", Text, ""),
    plain("ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION", Bool, "true"),
    plain("ISTIO_DELTA_XDS", Bool, "true"),
    plain("ISTIO_DUAL_STACK", Bool, "false"),
    plain("ISTIO_ENABLE_CONTROLLER_QUEUE_METRICS", Bool, "false"),
    plain("ISTIO_ENABLE_IPV4_OUTBOUND_LISTENER_FOR_IPV6_CLUSTERS", Bool, "false"),
    plain("ISTIO_GPRC_MAXRECVMSGSIZE", Int, "4194304"),
    plain("ISTIO_GPRC_MAXSTREAMS", Int, "100000"),
    plain("ISTIO_KUBE_CLIENT_CONTENT_TYPE", Text, "protobuf"),
    plain("ISTIO_MULTIROOT_MESH", Bool, "false"),
    plain("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", Int, "268435456"),
    plain("ISTIO_WATCH_NAMESPACE", Text, ""),
    plain("ISTIO_WORKLOAD_ENTRY_VALIDATE_IDENTITY", Bool, "true"),
    plain("JWKS_RESOLVER_INSECURE_SKIP_VERIFY", Bool, "false"),
    plain("LABEL_CANONICAL_SERVICES_FOR_MESH_EXTERNAL_SERVICE_ENTRIES", Bool, "false"),
    plain("LOCAL_CLUSTER_SECRET_WATCHER", Bool, "false"),
    plain("MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP", Int, "1"),
    plain("MCS_API_GROUP", Text, "multicluster.x-k8s.io"),
    plain("MCS_API_VERSION", Text, "v1alpha1"),
    plain("MUTEX_PROFILE_FRACTION", Int, "1000"),
    plain("PILOT_AGENT_MERGE_ENVOY_STATS", Bool, "true"),
    plain("PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS", Int, "1024"),
    plain("PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE", Bool, "false"),
    plain("PILOT_ANALYSIS_INTERVAL", Duration, "10s"),
    plain("PILOT_AUTO_SEND_UNHEALTHY_ENDPOINTS", Bool, "true"),
    plain("PILOT_CA_CERT_CONFIGMAP", Text, "istio-ca-root-cert"),
    plain("PILOT_CERT_PROVIDER", Text, "istiod"),
    plain("PILOT_CONVERT_SIDECAR_SCOPE_CONCURRENCY", Int, "1"),
    plain("PILOT_CRL_CONFIGMAP", Text, "istio-ca-crl"),
    plain("PILOT_DEBOUNCE_AFTER", Duration, "100ms"),
    plain("PILOT_DEBOUNCE_MAX", Duration, "10s"),
    plain("PILOT_DISABLE_MX_ALPN", Bool, "false"),
    plain("PILOT_DNS_CARES_UDP_MAX_QUERIES", Int, "100"),
    plain("PILOT_DNS_JITTER_DURATION", Duration, "100ms"),
    plain("PILOT_DRAINING_LABEL", Text, "istio.io/draining"),
    plain("PILOT_ENABLE_ABSOLUTE_FQDN_VHOST_DOMAIN", Bool, "true"),
    plain("PILOT_ENABLE_AGENTGATEWAY", Bool, "false"),
    plain("PILOT_ENABLE_ALPHA_GATEWAY_API", Bool, "false"),
    plain("PILOT_ENABLE_ALPN_FILTER", Bool, "true"),
    plain("PILOT_ENABLE_AMBIENT", Bool, "false"),
    plain("PILOT_ENABLE_ANALYSIS", Bool, "false"),
    plain("PILOT_ENABLE_CA_CRL", Bool, "true"),
    plain("PILOT_ENABLE_CDS_CACHE", Bool, "true"),
    plain("PILOT_ENABLE_CROSS_CLUSTER_WORKLOAD_ENTRY", Bool, "true"),
    plain("PILOT_ENABLE_EDS_DEBOUNCE", Bool, "true"),
    plain("PILOT_ENABLE_EDS_FOR_HEADLESS_SERVICES", Bool, "false"),
    plain("PILOT_ENABLE_GATEWAY_API", Bool, "true"),
    plain("PILOT_ENABLE_GATEWAY_API_COPY_LABELS_ANNOTATIONS", Bool, "true"),
    plain("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER", Bool, "true"),
    plain("PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER", Bool, "true"),
    plain("PILOT_ENABLE_GATEWAY_API_STATUS", Bool, "true"),
    plain("PILOT_ENABLE_IP_AUTOALLOCATE", Bool, "true"),
    plain("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES", Bool, "true"),
    plain("PILOT_ENABLE_METADATA_EXCHANGE", Bool, "true"),
    plain("PILOT_ENABLE_MONGO_FILTER", Bool, "true"),
    plain("PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS", Bool, "false"),
    plain("PILOT_ENABLE_MYSQL_FILTER", Bool, "false"),
    plain("PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS", Bool, "false"),
    plain("PILOT_ENABLE_PERSISTENT_SESSION_FILTER", Bool, "false"),
    plain("PILOT_ENABLE_QUIC_LISTENERS", Bool, "false"),
    plain("PILOT_ENABLE_RDS_CACHE", Bool, "true"),
    plain("PILOT_ENABLE_REDIS_FILTER", Bool, "false"),
    plain("PILOT_ENABLE_REMOTE_CREDENTIALS_CONTROLLER", Bool, "true"),
    plain("PILOT_ENABLE_ROUTE_COLLAPSE_OPTIMIZATION", Bool, "true"),
    plain("PILOT_ENABLE_SERVICEENTRY_SELECT_PODS", Bool, "true"),
    plain("PILOT_ENABLE_STRICT_GATEWAY_MERGING", Bool, "true"),
    plain("PILOT_ENABLE_TELEMETRY_LABEL", Bool, "true"),
    plain("PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION", Bool, "true"),
    plain("PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS", Bool, "true"),
    plain("PILOT_ENABLE_XDS_CACHE", Bool, "true"),
    plain("PILOT_ENABLE_XDS_IDENTITY_CHECK", Bool, "true"),
    plain("PILOT_ENDPOINT_TELEMETRY_LABEL", Bool, "true"),
    plain("PILOT_ENVOY_FILTER_STATS", Bool, "false"),
    plain("PILOT_FILTER_GATEWAY_CLUSTER_CONFIG", Bool, "false"),
    plain("PILOT_GATEWAY_API_CONTROLLER_NAME", Text, "istio.io/gateway-controller"),
    plain("PILOT_GATEWAY_API_DEFAULT_GATEWAYCLASS_NAME", Text, "istio"),
    plain("PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT", Duration, "15s"),
    plain("PILOT_HTTP10", Bool, "false"),
    plain("PILOT_IGNORE_RESOURCES", Text, ""),
    plain("PILOT_INCLUDE_RESOURCES", Text, ""),
    plain("PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS", Text, ""),
    plain("PILOT_IP_AUTOALLOCATE_IPV4_PREFIX", Text, "240.240.0.0/16"),
    plain("PILOT_IP_AUTOALLOCATE_IPV6_PREFIX", Text, "2001:2::/48"),
    plain("PILOT_JWT_ENABLE_REMOTE_JWKS", Text, "false"),
    plain("PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", Duration, "20m0s"),
    plain("PILOT_MAX_REQUESTS_PER_SECOND", Float, "0"),
    plain("PILOT_MULTICLUSTER_KUBECONFIG_PATH", Text, ""),
    plain("PILOT_MULTI_NETWORK_DISCOVER_GATEWAY_API", Bool, "true"),
    plain("PILOT_MX_ADDITIONAL_LABELS", Text, ""),
    plain("PILOT_NODE_UNTAINT_CONTROLLERS_TAINT_NAME", Text, "cni.istio.io/not-ready"),
    plain("PILOT_PERSISTENT_SESSION_HEADER_LABEL", Text, "istio.io/persistent-session-header"),
    plain("PILOT_PERSISTENT_SESSION_LABEL", Text, "istio.io/persistent-session"),
    plain("PILOT_PUSH_THROTTLE", Int, "0"),
    plain("PILOT_REMOTE_CLUSTER_TIMEOUT", Duration, "30s"),
    plain("PILOT_SCOPE_GATEWAY_TO_NAMESPACE", Bool, "false"),
    plain("PILOT_SEND_UNHEALTHY_ENDPOINTS", Bool, "false"),
    plain("PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE", Bool, "true"),
    plain("PILOT_SIDECAR_USE_REMOTE_ADDRESS", Bool, "false"),
    plain("PILOT_SKIP_VALIDATE_TRUST_DOMAIN", Bool, "false"),
    plain("PILOT_STATUS_MAX_WORKERS", Int, "100"),
    plain("PILOT_TRACE_SAMPLING", Float, "1"),
    plain("PILOT_UNIFIED_SIDECAR_SCOPE", Bool, "true"),
    plain("PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", Duration, "10s"),
    plain("PILOT_XDS_CACHE_INDEX_CLEAR_INTERVAL", Duration, "5s"),
    plain("PILOT_XDS_CACHE_SIZE", Int, "60000"),
    plain("PILOT_XDS_CACHE_STATS", Bool, "false"),
    plain("PLATFORM", Text, ""),
    plain("PREFER_DESTINATIONRULE_TLS_FOR_EXTERNAL_SERVICES", Bool, "true"),
    plain("RESOLVE_HOSTNAME_GATEWAYS", Bool, "true"),
    plain("SHARED_MESH_CONFIG", Text, ""),
    plain("TRUSTED_GATEWAY_CIDR", Text, ""),
    plain("UNSAFE_ENABLE_ADMIN_ENDPOINTS", Bool, "false"),
    plain("UNSAFE_PILOT_ENABLE_RUNTIME_ASSERTIONS", Bool, "false"),
    plain("USE_CACERTS_FOR_SELF_SIGNED_CA", Bool, "false"),
    plain("VALIDATION_WEBHOOK_CONFIG_NAME", Text, "istio-istio-system"),
    plain("XDS_AUTH", Bool, "true"),
    ambient("AMBIENT_ENABLE_BAGGAGE", Bool, "false", "false"),
    ambient("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", Bool, "false", "false"),
    ambient("AMBIENT_ENABLE_MULTI_NETWORK", Bool, "false", "false"),
    ambient("AMBIENT_ENABLE_MULTI_NETWORK_INGRESS", Bool, "false", "false"),
    ambient("AMBIENT_ENABLE_MULTI_NETWORK_WAYPOINT", Bool, "true", "false"),
    ambient("AMBIENT_ENABLE_STATUS", Bool, "true", "false"),
    ambient("ENABLE_INGRESS_WAYPOINT_ROUTING", Bool, "true", "false"),
    ambient("PILOT_AUTO_ALLOW_WAYPOINT_POLICY", Bool, "false", "false"),
    ambient("PILOT_ENABLE_AMBIENT_WAYPOINTS", Bool, "true", "false"),
    ambient("PILOT_ENABLE_SENDING_HBONE", Bool, "true", "false"),
    ambient("PILOT_ENABLE_SIDECAR_LISTENING_HBONE", Bool, "true", "false"),
    ambient("PILOT_HBONE_INITIAL_CONNECTION_WINDOW_SIZE", Int, "0", "0"),
    ambient("PILOT_HBONE_INITIAL_STREAM_WINDOW_SIZE", Int, "0", "0"),
    ambient("PILOT_PREFER_SENDING_HBONE", Bool, "false", "false"),
];

/// The effective values of all feature variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    values: BTreeMap<&'static str, String>,
    warnings: Vec<String>,
}

impl Default for Environment {
    fn default() -> Self {
        Environment::new(&BTreeMap::new())
    }
}

impl Environment {
    /// Reads the variables that were set; names that are no feature variables are skipped.
    pub fn new(given: &BTreeMap<String, String>) -> Self {
        let mut warnings = Vec::new();
        let mut value = |feature: &Feature| {
            let Some(text) = given.get(feature.name) else { return feature.default.to_owned() };
            normalize(feature.kind, text).unwrap_or_else(|| {
                warnings.push(format!(
                    "feature variable {} has the malformed value {text:?}; the default {:?} holds",
                    feature.name, feature.default
                ));
                feature.default.to_owned()
            })
        };
        let mut values: BTreeMap<&'static str, String> = FEATURES.iter().map(|f| (f.name, value(f))).collect();
        if values[AMBIENT] != "true" {
            let forced = FEATURES.iter().filter_map(|f| Some((f, f.without_ambient?)));
            for (feature, fixed) in forced {
                if given.contains_key(feature.name) {
                    warnings.push(format!("feature variable {} is ignored without {AMBIENT}=true", feature.name));
                }
                values.insert(feature.name, fixed.to_owned());
            }
        }
        for (name, required) in REQUIRES {
            if values[required] != "true" {
                values.insert(name, "false".to_owned());
            }
        }
        Environment { values, warnings }
    }

    /// The effective value; empty for a name that is no feature variable.
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// True when the variable is on.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// What was malformed or ignored.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The canonical text of a value, or `None` when it is malformed.
fn normalize(kind: Kind, text: &str) -> Option<String> {
    match kind {
        Bool => match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some("true".to_owned()),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some("false".to_owned()),
            _ => None,
        },
        Int => text.parse::<i64>().ok().map(|n| n.to_string()),
        Float => text.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n.to_string()),
        Duration => is_duration(text).then(|| text.to_owned()),
        Text => Some(text.to_owned()),
    }
}

/// Is the text a duration as Go writes it: a sign, then numbers with units?
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if text.len() - rest.len() > 1 || rest.is_empty() {
        return false;
    }
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &rest[..rest.len() - unit.len()];
        let Some(length) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"]
            .iter()
            .find(|u| unit.strip_prefix(**u).is_some_and(|after| !after.starts_with(|c: char| c.is_alphabetic())))
        else {
            return false;
        };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = &unit[length.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn names_are_unique_and_defaults_well_formed() {
        let names: std::collections::BTreeSet<&str> = FEATURES.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), FEATURES.len());
        assert!(FEATURES.iter().all(|f| normalize(f.kind, f.default).as_deref() == Some(f.default)));
    }

    #[test]
    fn malformed_values_fall_back() {
        let env = environment(&[("PILOT_HTTP10", "yes"), ("ENABLE_100_CONTINUE_HEADERS", "F"), ("OTHER", "x")]);
        assert!(!env.flag("PILOT_HTTP10") && !env.flag("ENABLE_100_CONTINUE_HEADERS"));
        assert_eq!(env.warnings().len(), 1);
        assert!(is_duration("1m30s") && is_duration("1.5h") && !is_duration("1") && !is_duration("s"));
    }

    #[test]
    fn ambient_variables_need_ambient_mode() {
        let off = environment(&[("PILOT_PREFER_SENDING_HBONE", "true")]);
        let on = environment(&[("PILOT_PREFER_SENDING_HBONE", "true"), ("PILOT_ENABLE_AMBIENT", "1")]);
        assert!(!off.flag("PILOT_PREFER_SENDING_HBONE") && on.flag("PILOT_PREFER_SENDING_HBONE"));
        assert!(!off.flag("PILOT_ENABLE_SENDING_HBONE") && on.flag("PILOT_ENABLE_SENDING_HBONE"));
    }
}
