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
        ["transport_socket.name string.min_len", "transport_socket.typed_config extension"]
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
fn what_ends_a_chain_is_its_last_filter() {
    const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let http = |name: &str, of: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/envoy.extensions.filters.http.{of}")}});
    let (router, fault) = (|| http("r", "router.v3.Router"), || http("f", "fault.v3.HTTPFault"));
    let manager = |filters: serde_json::Value| {
        let routes = json!({"config_source": {"ads": {}}, "route_config_name": "80"});
        violations(MANAGER, json!({"stat_prefix": "s", "rds": routes, "http_filters": filters}))
    };
    let nothing: [&str; 0] = [];
    assert_eq!(manager(json!([fault(), router()])), nothing);
    assert_eq!(manager(json!([router(), fault()])), ["http_filters[0] terminal", "http_filters[1] terminal"]);
    assert_eq!(manager(json!([fault()])), ["http_filters[0] terminal"]);
    let discovered = json!({"name": "d", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["a"]}});
    assert_eq!(manager(json!([router(), discovered])), ["http_filters[0] terminal"]);
    assert_eq!(manager(json!([{"name": "envoy.filters.http.router"}])), ["http_filters[0].typed_config extension"]);
    assert_eq!(manager(json!([{"name": "n", "is_optional": true}, router()])), nothing);

    let tcp = json!({"name": "t", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "s", "cluster": "c"}});
    let limit = json!({"name": "l", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        "stat_prefix": "s", "max_connections": 1}});
    let listener = |filters: serde_json::Value| violations(LISTENER, json!({"filter_chains": [{"filters": filters}]}));
    assert_eq!(listener(json!([limit, tcp])), nothing);
    assert_eq!(listener(json!([])), nothing, "connections are closed at once");
    let wrong = ["filter_chains[0].filters[0] terminal", "filter_chains[0].filters[1] terminal"];
    assert_eq!(listener(json!([tcp, limit])), wrong);
    assert_eq!(violations(LISTENER, json!({"name": "l"})), ["filter_chains chains"]);
    assert_eq!(violations(LISTENER, json!({"name": "l", "udp_listener_config": {}})), nothing);
}

#[test]
fn where_connections_were_going_to_is_chosen_by_the_cluster() {
    let of = |fields: serde_json::Value| {
        let mut cluster = json!({"name": "a", "type": "ORIGINAL_DST"});
        cluster.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        violations(CLUSTER, cluster)
    };
    assert_eq!(of(json!({"lb_policy": "CLUSTER_PROVIDED"})), Vec::<String>::new());
    assert_eq!(of(json!({"lb_policy": "RING_HASH"})), ["lb_policy original_dst"]);
    assert_eq!(of(json!({})), ["lb_policy original_dst"]);
    assert_eq!(of(json!({"type": "STATIC"})), Vec::<String>::new());
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

const HOST: &str = "envoy.config.route.v3.VirtualHost";

fn inspected(name: &str, json: serde_json::Value) -> Inspected {
    inspect(name, &from_json(name, &json, Options::default()).unwrap(), None)
}

/// What a message names, as `TARGET NAME PATH`.
fn named(name: &str, json: serde_json::Value) -> Vec<String> {
    let found = inspected(name, json).references;
    found.iter().map(|r| format!("{} {} {}", r.target.prefix(), r.name, r.path)).collect()
}

#[test]
fn a_cluster_waits_for_the_endpoints_that_the_stream_brings() {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let eds = |config: serde_json::Value| json!({"name": "a", "type": "EDS", "eds_cluster_config": config});
    assert_eq!(named(CLUSTER, eds(json!({"eds_config": ads, "service_name": "b"}))), ["eds b eds_cluster_config"]);
    assert_eq!(
        named(CLUSTER, eds(json!({"eds_config": ads}))),
        ["eds a eds_cluster_config"],
        "its own name by default"
    );
    let file = json!({"path_config_source": {"path": "/f"}});
    assert_eq!(named(CLUSTER, eds(json!({"eds_config": file}))), [""; 0]);
    assert_eq!(
        named(CLUSTER, json!({"name": "a", "type": "STATIC", "eds_cluster_config": {"eds_config": ads}})),
        [""; 0]
    );
}

#[test]
fn a_listener_waits_for_routes_and_filters() {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "s",
        "rds": {"config_source": ads, "route_config_name": "80"},
        "http_filters": [
            {"name": "late", "config_discovery": {"config_source": ads, "type_urls": ["a"]}},
            {"name": "has-a-default", "config_discovery": {
                "config_source": ads, "type_urls": ["a"], "apply_default_config_without_warming": true}},
        ],
    });
    let listener = json!({"name": "l", "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]});
    let hcm = "filter_chains[0].filters[0].typed_config";
    assert_eq!(
        named(LISTENER, listener),
        [format!("rds 80 {hcm}.rds.route_config_name"), format!("ecds late {hcm}.http_filters[0].name")]
    );
}

#[test]
fn routes_name_clusters() {
    let routes = json!({"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "route": {"cluster": "x", "request_mirror_policies": [{"cluster": "m"}]}},
        {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "y", "weight": 1}]}}},
    ]}]});
    let route = |i: usize| format!("virtual_hosts[0].routes[{i}].route");
    assert_eq!(
        named(ROUTES, routes),
        [
            format!("cluster x {}.cluster", route(0)),
            format!("cluster m {}.request_mirror_policies[0].cluster", route(0)),
            format!("cluster y {}.weighted_clusters.clusters[0].name", route(1)),
        ]
    );
    assert!(!Target::Cluster.is_awaited() && Target::Routes.is_awaited());
}

#[test]
fn what_may_be_there_once_only() {
    let hosts = |a: serde_json::Value, b: serde_json::Value| violations(ROUTES, json!({"virtual_hosts": [a, b]}));
    let a = json!({"name": "a", "domains": ["x.test"]});
    assert_eq!(hosts(a.clone(), json!({"name": "b", "domains": ["y.test"]})), [""; 0]);
    assert_eq!(hosts(a.clone(), json!({"name": "a", "domains": ["y.test"]})), ["virtual_hosts[1] unique"]);
    assert_eq!(hosts(a, json!({"name": "b", "domains": ["X.test"]})), ["virtual_hosts[1] unique"], "whatever its case");
    let chain = |port: u32| json!({"filter_chain_match": {"destination_port": port}, "filters": []});
    let listener = |ports: [u32; 2]| json!({"name": "l", "filter_chains": ports.map(chain)});
    assert_eq!(violations(LISTENER, listener([1, 2])), [""; 0]);
    assert_eq!(violations(LISTENER, listener([1, 1])), ["filter_chains[1] unique"]);
    let mut by_name = listener([1, 1]);
    by_name["filter_chain_matcher"] = json!({"matcher_list": {"matchers": []}});
    assert!(!violations(LISTENER, by_name).iter().any(|v| v.ends_with("unique")), "a matcher chooses by name");
    assert_eq!(
        inspected(HOST, json!({"name": "a", "domains": ["X.test", "x.test:80"]})).claims,
        ["name:a", "domain:x.test", "domain:x.test:80"]
    );
}

#[test]
fn chains_of_overlapping_matches_are_refused() {
    let chain = |found: serde_json::Value| json!({"filter_chain_match": found, "filters": []});
    let listener = |a, b| violations(LISTENER, json!({"name": "l", "filter_chains": [chain(a), chain(b)]}));
    let names = |names: &[&str]| json!({"server_names": names});
    assert_eq!(listener(names(&["a", "b"]), names(&["b", "c"])), ["filter_chains[1] unique"]);
    assert_eq!(listener(names(&["a", "b"]), names(&["c"])), [""; 0]);
    let range =
        |address: &str, length: u32| json!({"prefix_ranges": [{"address_prefix": address, "prefix_len": length}]});
    assert_eq!(listener(range("10.1.0.1", 16), range("10.1.9.9", 16)), ["filter_chains[1] unique"]);
    assert_eq!(listener(range("10.1.0.0", 16), range("10.1.0.0", 24)), [""; 0]);
    assert_eq!(listener(range("fd00::1", 64), range("fd00::2", 64)), ["filter_chains[1] unique"]);
    assert_eq!(listener(json!({}), json!({"transport_protocol": "tls"})), [""; 0]);
}

#[test]
fn what_is_yet_to_come_is_not_missed() {
    const HOLES: u32 = 1000;
    let host = |name: &str, hole: Option<u32>| {
        let mut bytes = from_json(HOST, &json!({"name": name}), Options::default()).unwrap();
        if let Some(field) = hole {
            // A varint field of that number, of value 0.
            bytes.extend([0x80 | ((HOLES + field) << 3 & 0x7f) as u8, ((HOLES + field) << 3 >> 7) as u8, 0]);
        }
        let found = inspect(HOST, &bytes, Some(HOLES)).violations;
        found.into_iter().map(|violation| format!("{} {}", violation.path, violation.rule)).collect::<Vec<_>>()
    };
    let (domains, name) = ("domains repeated.min_items", "name string.min_len");
    assert_eq!(host("a", None), [domains]);
    assert_eq!(host("a", Some(2)), [""; 0], "domains come by a hole");
    assert_eq!(host("", Some(2)), [name], "but no name does");
    assert_eq!(host("", Some(0)), [""; 0], "a hole whose content is fields may bring anything");
}
