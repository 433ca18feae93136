use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Inspected, inspect_closely};
use crate::json::{Options, from_json};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CHAIN: &str = "envoy.config.listener.v3.FilterChain";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const VIRTUAL_HOST: &str = "envoy.config.route.v3.VirtualHost";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Numbers of fields that stand for holes, low so that chance meets them.
const HOLES: u32 = 100;

fn packed(name: &str, mut inner: Value) -> Value {
    inner["@type"] = json!(format!("type.googleapis.com/{name}"));
    inner
}

/// Messages in order, of the kinds that are served, with most kinds of rules in them.
fn in_order() -> Vec<(&'static str, Value)> {
    let tls = packed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"sni": "a.b", "common_tls_context": {"alpn_protocols": ["istio", "h2"], "tls_certificate_sds_secret_configs": [
            {"name": "default", "sds_config": {"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": {
                "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}]}}}]}}),
    );
    let cluster = json!({
        "name": "outbound|80||a.b", "type": "EDS", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "eds_cluster_config": {"service_name": "outbound|80||a.b", "eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "circuit_breakers": {"thresholds": [{"max_connections": 4294967295_u32, "retry_budget": {"budget_percent": {"value": 20}}}]},
        "transport_socket_matches": [{"name": "tlsMode-istio", "match": {"tlsMode": "istio"},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}}],
        "metadata": {"filter_metadata": {"istio": {"services": [{"host": "a.b"}], "n": 3.5, "yes": true, "no": null}}},
        "outlier_detection": {"max_ejection_percent": 10, "interval": "1s"},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            json!({"explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 100}}}))},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0.5}, "override_host_status": {"statuses": ["HEALTHY", "DRAINING"]}},
    });
    let host = |name: &str, domain: &str| {
        json!({"name": name, "domains": [domain], "include_request_attempt_count": true, "routes": [
            {"match": {"prefix": "/", "headers": [{"name": "x", "string_match": {"exact": "1"}}]}, "decorator": {"operation": "o"},
             "route": {"cluster": "outbound|80||a.b", "timeout": "0s", "retry_policy": {"num_retries": 2, "retriable_status_codes": [503]},
                       "request_mirror_policies": [{"cluster": "m"}]}},
            {"match": {"prefix": "/w"}, "route": {"weighted_clusters": {"clusters": [
                {"name": "w1", "weight": 20, "request_headers_to_add": [{"header": {"key": "k", "value": "v"}}]},
                {"name": "w2", "weight": 80}]}}},
            {"match": {"safe_regex": {"regex": ".*"}}, "direct_response": {"status": 404}},
        ]})
    };
    let routes = json!({"name": "80", "virtual_hosts": [host("a", "a"), host("b", "b:80")], "max_direct_response_body_size_bytes": 1});
    let manager = packed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({"stat_prefix": "s", "rds": {"route_config_name": "80", "config_source": {"ads": {}}},
               "http_filters": [
                   {"name": "w", "config_discovery": {"config_source": {"ads": {}},
                       "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"]}},
                   {"name": "r", "typed_config": packed("envoy.extensions.filters.http.router.v3.Router", json!({}))}]}),
    );
    let tcp = packed(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "t", "weighted_clusters": {"clusters": [{"name": "x", "weight": 1}]}, "idle_timeout": "1s"}),
    );
    let listener = json!({"name": "l", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}}, "filter_chains": [
        {"filter_chain_match": {"server_names": ["a"], "prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
         "filters": [{"name": "h", "typed_config": manager}]},
        {"filter_chain_match": {"server_names": ["b"]}, "filters": [{"name": "t", "typed_config": tcp}]}],
        "listener_filters_timeout": "0s", "traffic_direction": "OUTBOUND"});
    let endpoints = json!({"cluster_name": "c", "endpoints": [{"locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}, "load_balancing_weight": 2}]}]});
    let chain = listener["filter_chains"][0].clone();
    vec![
        (CHAIN, chain),
        (CLUSTER, cluster),
        (ROUTES, routes),
        (VIRTUAL_HOST, host("h", "Example")),
        (LISTENER, listener),
        (ENDPOINTS, endpoints),
    ]
}

fn encoded() -> Vec<(&'static str, Vec<u8>)> {
    let encode = |(name, json): (&'static str, Value)| (name, from_json(name, &json, Options::default()).unwrap());
    in_order().into_iter().map(encode).collect()
}

/// The same but for the order of references, which is that of fields on the long way and of bytes on the short one.
fn sorted(inspected: Inspected) -> (Vec<String>, Vec<String>) {
    let mut references: Vec<String> = inspected.references.iter().map(|r| format!("{r:?}")).collect();
    references.sort();
    (references, inspected.claims)
}

#[test]
fn what_is_in_order_takes_the_short_way_and_says_the_same() {
    for (name, bytes) in encoded() {
        let closely = inspect_closely(name, &bytes, None);
        assert_eq!(closely.violations, [], "{name}");
        let short = super::inspect(name, &bytes, None).unwrap_or_else(|| panic!("{name} takes the long way"));
        assert_eq!(sorted(short), sorted(closely), "{name}");
    }
}

#[test]
fn a_breach_of_any_kind_takes_the_long_way() {
    let breaches = [
        (CLUSTER, json!({})),
        (CLUSTER, json!({"name": "a", "connect_timeout": "0s"})),
        (CLUSTER, json!({"name": "a", "lb_policy": 99})),
        (CLUSTER, json!({"name": "a", "outlier_detection": {"max_ejection_percent": 101}})),
        (CLUSTER, json!({"name": "a", "transport_socket": {"name": ""}})),
        (CLUSTER, json!({"name": "a", "transport_socket_matches": [{"name": "m"}, {}]})),
        (
            CLUSTER,
            json!({"name": "a", "transport_socket": {"name": "t", "typed_config": packed(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", json!({"cluster": "c"}))}}),
        ),
        (ROUTES, json!({"virtual_hosts": [{"name": "a", "domains": ["x"]}, {"name": "a", "domains": ["y"]}]})),
        (ROUTES, json!({"virtual_hosts": [{"name": "a", "domains": ["x"]}, {"name": "b", "domains": ["X"]}]})),
        (VIRTUAL_HOST, json!({"name": "a"})),
        (VIRTUAL_HOST, json!({"name": "a", "domains": ["x"], "routes": [{"match": {"prefix": "/"}}]})),
        (VIRTUAL_HOST, json!({"name": "a", "domains": ["x"], "request_headers_to_remove": ["a\nb"]})),
        (LISTENER, json!({"filter_chains": [{}, {"filters": []}]})),
    ];
    for (name, json) in breaches {
        let bytes = from_json(name, &json, Options::default()).unwrap();
        assert!(!inspect_closely(name, &bytes, None).violations.is_empty(), "{json} is no breach");
        assert!(super::inspect(name, &bytes, None).is_none(), "{json}");
    }
}

/// How bytes go wrong.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
    Insert(usize, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<usize>(), 1..30_usize).prop_map(|(at, n)| Change::Cut(at, n)),
        (any::<usize>(), 1..60_usize).prop_map(|(at, n)| Change::Repeat(at, n)),
        (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..6))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let at = |at: usize| at % bytes.len().max(1);
    match change {
        Change::Set(position, byte) => {
            let position = at(*position);
            if let Some(slot) = bytes.get_mut(position) {
                *slot = *byte;
            }
        }
        Change::Cut(position, n) => {
            let start = at(*position);
            bytes.drain(start.min(bytes.len())..(start + n).min(bytes.len()));
        }
        Change::Repeat(position, n) => {
            let start = at(*position).min(bytes.len());
            let piece = bytes[start..(start + n).min(bytes.len())].to_vec();
            bytes.splice(start..start, piece);
        }
        Change::Insert(position, piece) => {
            let start = at(*position).min(bytes.len());
            bytes.splice(start..start, piece.iter().copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// The short way never calls clean what the long way objects to, whatever the bytes are.
    #[test]
    fn the_short_way_is_never_laxer(which in 0..6_usize, holes: bool, changes in proptest::collection::vec(change(), 1..4)) {
        let (name, mut bytes) = encoded().swap_remove(which);
        changes.iter().for_each(|change| apply(&mut bytes, change));
        let holes = holes.then_some(HOLES);
        if let Some(short) = super::inspect(name, &bytes, holes) {
            let closely = inspect_closely(name, &bytes, holes);
            prop_assert_eq!(&closely.violations, &[]);
            prop_assert_eq!(sorted(short), sorted(closely));
        }
    }
}
