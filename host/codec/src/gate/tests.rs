use prost::Message;
use serde_json::json;
use trysail_proto::any;
use trysail_proto::prost_types::Any;

use super::*;
use crate::json::{Options, from_json};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

/// Path and rule of each violation.
fn violations(name: &str, json: serde_json::Value) -> Vec<String> {
    let bytes = from_json(name, &json, Options::default()).unwrap();
    match validate(name, &bytes) {
        Ok(()) => Vec::new(),
        Err(violations) => violations.iter().map(|v| format!("{} {}", v.path, v.rule)).collect(),
    }
}

#[test]
fn every_rule_in_the_descriptors_is_understood() {
    let (plans, not_understood) = plan::read_all();
    assert_eq!(not_understood, Vec::<String>::new());
    assert!(plans.len() > 500, "{}", plans.len());
}

#[test]
fn shallow_rules() {
    assert_eq!(violations(CLUSTER, json!({"name": "a", "connect_timeout": "1s"})), Vec::<String>::new());
    assert_eq!(violations(CLUSTER, json!({})), ["name string.min_len"]);
    assert_eq!(
        violations(CLUSTER, json!({"name": "a", "connect_timeout": "0s", "lb_policy": 99})),
        ["connect_timeout duration.range", "lb_policy enum.defined_only"]
    );
    assert_eq!(
        violations(CLUSTER, json!({"name": "a", "transport_socket": {}, "per_connection_buffer_limit_bytes": 0})),
        ["transport_socket.name string.min_len"]
    );
}

#[test]
fn paths_lead_into_lists_and_maps() {
    let routes = json!({"virtual_hosts": [
        {"name": "a", "domains": ["*"], "routes": [{"match": {"prefix": "/"}}, {"direct_response": {"status": 200}}]},
        {"name": "b"},
    ]});
    assert_eq!(
        violations(ROUTES, routes),
        [
            "virtual_hosts[0].routes[0].action oneof.required",
            "virtual_hosts[0].routes[1].match message.required",
            "virtual_hosts[1].domains repeated.min_items",
        ]
    );
    assert_eq!(
        violations(
            CLUSTER,
            json!({"name": "a", "typed_extension_protocol_options": {
                "x y": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster"},
            }})
        ),
        ["typed_extension_protocol_options[\"x y\"].name string.min_len"]
    );
}

#[test]
fn what_is_within_an_any_counts() {
    let hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "rds": {"config_source": {"ads": {}}, "route_config_name": "80"},
    });
    let listener = json!({"filter_chains": [{"filters": [{"name": "hcm", "typed_config": hcm}]}]});
    assert_eq!(violations(LISTENER, listener), ["filter_chains[0].filters[0].typed_config.stat_prefix string.min_len"]);
}

#[test]
fn a_oneof_field_at_its_default_is_set() {
    // An empty prefix and port 0 are values.
    assert_eq!(violations("envoy.config.route.v3.RouteMatch", json!({"prefix": ""})), Vec::<String>::new());
    assert_eq!(
        violations("envoy.config.core.v3.SocketAddress", json!({"address": "::", "port_value": 0})),
        Vec::<String>::new()
    );
    assert_eq!(
        violations("envoy.config.core.v3.SocketAddress", json!({"port_value": 65536})),
        ["address string.min_len", "port_value int.range"]
    );
}

#[test]
fn headers() {
    let header =
        |key: &str, value: &str| violations("envoy.config.core.v3.HeaderValue", json!({"key": key, "value": value}));
    assert_eq!(header("x-a", "b"), Vec::<String>::new());
    assert_eq!(header("x-a\n", "b"), ["key string.well_known_regex"]);
    assert_eq!(header("", "b\r"), ["key string.min_len", "value string.well_known_regex"]);
}

#[test]
fn bytes_that_cannot_be_judged() {
    assert_eq!(validate(CLUSTER, &[0xff]).unwrap_err()[0].rule, "decode");
    assert_eq!(validate("no.Such", &[]).unwrap_err()[0].rule, "type");
    let broken = trysail_proto::envoy::config::core::v3::TypedExtensionConfig {
        name: "a".into(),
        typed_config: Some(Any { type_url: format!("type.googleapis.com/{CLUSTER}"), value: vec![0xff] }),
    };
    let violations = validate("envoy.config.core.v3.TypedExtensionConfig", &broken.encode_to_vec()).unwrap_err();
    assert_eq!((violations[0].path.as_str(), violations[0].rule), ("typed_config", "decode"));
}

#[test]
fn nesting_is_bounded() {
    let mut nested = Any::default();
    for _ in 0..5000 {
        nested = any::pack(&nested);
    }
    assert_eq!(validate(&nested.type_url, &nested.value).unwrap_err()[0].rule, "depth");
}

#[test]
fn clusters_that_resolve_hosts_check_names() {
    let cluster = |options: serde_json::Value, insecure: bool| {
        json!({
            "name": "a",
            "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                "dns_cache_config": {"name": "a"},
                "allow_insecure_cluster_options": insecure,
            }},
            "typed_extension_protocol_options": options,
        })
    };
    let http = |more: serde_json::Value| {
        let mut options = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        });
        options["upstream_http_protocol_options"] = more;
        json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
    };
    let checked = json!({"auto_sni": true, "auto_san_validation": true});
    for (options, insecure) in [(json!({}), false), (http(checked), false), (http(json!({})), true)] {
        assert_eq!(violations(CLUSTER, cluster(options, insecure)), Vec::<String>::new());
    }
    assert_eq!(
        violations(CLUSTER, cluster(http(json!({"auto_sni": true})), false)),
        ["typed_extension_protocol_options dynamic_forward_proxy"]
    );
}
