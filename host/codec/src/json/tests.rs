use proptest::prelude::*;
use prost::Message;
use serde_json::json;
use trysail_proto::envoy::config::core::v3::Metadata;
use trysail_proto::prost::Name;
use trysail_proto::prost_types::{self, Any};
use trysail_proto::{any, istio};

use super::*;

const STRICT: Options = Options::strict();
const LENIENT: Options = Options::lenient();
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

fn round_trip(name: &str, json: Value) {
    let bytes = from_json(name, &json, STRICT).unwrap();
    let printed = to_json(name, &bytes).unwrap();
    // As text, so that the order of keys and the spelling of numbers count too.
    assert_eq!(printed.to_string(), json.to_string());
}

fn problem(name: &str, json: Value, options: Options) -> String {
    from_json(name, &json, options).unwrap_err().to_string()
}

#[test]
fn what_has_presence_is_printed_when_set() {
    round_trip("envoy.config.core.v3.SocketAddress", json!({"address": "::", "port_value": 0}));
    round_trip(CLUSTER, json!({"eds_cluster_config": {"eds_config": {"ads": {}}}, "name": "a"}));
    round_trip(
        CLUSTER,
        json!({"common_lb_config": {"healthy_panic_threshold": {}}, "per_connection_buffer_limit_bytes": 0}),
    );
}

#[test]
fn numbers_enums_and_bytes() {
    round_trip(CLUSTER, json!({"connect_timeout": "0.250s", "type": "EDS", "wait_for_warm_on_init": false}));
    round_trip("envoy.type.v3.Percent", json!({"value": 100}));
    round_trip("envoy.type.v3.Percent", json!({"value": 0.5}));
    round_trip("envoy.type.v3.DoubleRange", json!({"end": "Infinity", "start": "NaN"}));
    round_trip("envoy.config.core.v3.DataSource", json!({"inline_bytes": "AP8="}));
    round_trip("istio.workload.Workload", json!({"addresses": ["fwAAAQ==", ""], "workload_type": 77}));
    // 64-bit integers are text, and proto2-style floats are as short as they were written.
    round_trip("google.protobuf.FloatValue", json!(0.1));
    round_trip("google.protobuf.UInt64Value", json!("18446744073709551615"));
}

#[test]
fn well_known_types() {
    round_trip(
        "envoy.config.core.v3.Metadata",
        json!({"filter_metadata": {
            "a": {"list": [1, "x", null, {}], "nested": {"deep": true}, "number": 1.5},
            "b": {},
        }}),
    );
    round_trip("google.protobuf.FieldMask", json!("a.fooBar,b"));
    round_trip("google.protobuf.Timestamp", json!("2026-01-02T03:04:05.600Z"));
    round_trip("google.protobuf.Value", Value::Null);
}

#[test]
fn any_is_unpacked() {
    let config = |json| json!({"name": "x", "typed_config": json});
    let name = "envoy.config.core.v3.TypedExtensionConfig";
    round_trip(
        name,
        config(json!({"@type": "type.googleapis.com/envoy.config.core.v3.SocketAddress", "address": "a"})),
    );
    round_trip(name, config(json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "text"})));
    round_trip(name, config(json!({"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}})));
    round_trip(name, config(json!({})));
    round_trip(name, config(json!({"@type": "type.googleapis.com/some.unknown.Type", "value": "AQI="})));
    assert_eq!(
        problem(name, config(json!({"@type": "x/some.unknown.Type", "a": 1})), STRICT),
        "typed_config: unknown message type \"x/some.unknown.Type\""
    );
}

#[test]
fn broken_content_of_an_any_is_shown() {
    let config = trysail_proto::envoy::config::core::v3::TypedExtensionConfig {
        name: String::new(),
        typed_config: Some(Any {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
            value: vec![0xff],
        }),
    };
    assert_eq!(
        to_json("envoy.config.core.v3.TypedExtensionConfig", &config.encode_to_vec()).unwrap(),
        json!({"typed_config": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "value": "/w=="}})
    );
}

#[test]
fn both_spellings_are_read() {
    let name = istio::networking::v1alpha3::VirtualService::full_name();
    let camel =
        json!({"exportTo": ["."], "http": [{"timeout": "1m30s", "rewrite": {"uriRegexRewrite": {"match": "x"}}}]});
    let snake =
        json!({"export_to": ["."], "http": [{"timeout": "90s", "rewrite": {"uri_regex_rewrite": {"match": "x"}}}]});
    assert_eq!(from_json(&name, &camel, STRICT).unwrap(), from_json(&name, &snake, STRICT).unwrap());
}

#[test]
fn errors_name_the_path() {
    let name = istio::networking::v1alpha3::VirtualService::full_name();
    let route = |destination| json!({"http": [{}, {"route": [{"destination": destination}]}]});
    assert_eq!(
        problem(&name, route(json!({"host": 5})), STRICT),
        "http[1].route[0].destination.host: expected text, found 5"
    );
    assert_eq!(
        problem(&name, route(json!({"hosst": "a"})), STRICT),
        "http[1].route[0].destination.hosst: unknown field of istio.networking.v1alpha3.Destination"
    );
    assert_eq!(
        problem(&name, json!({"http": [{"headers": {"request": {"set": {"a b": 1}}}}]}), LENIENT),
        "http[0].headers.request.set[\"a b\"]: expected text, found 1"
    );
    assert_eq!(problem(&name, json!([]), STRICT), ": expected an object, found a list");
    assert_eq!(
        problem(CLUSTER, json!({"type": "EDSX"}), LENIENT),
        "type: \"EDSX\" is not a value of envoy.config.cluster.v3.Cluster.DiscoveryType"
    );
    assert_eq!(
        problem(CLUSTER, json!({"per_connection_buffer_limit_bytes": 4_294_967_296_i64}), STRICT),
        "per_connection_buffer_limit_bytes: expected an unsigned 32-bit integer, found 4294967296"
    );
    assert_eq!(problem("x.Y", json!({}), STRICT), "unknown message type \"x.Y\"");
}

#[test]
fn lenient_as_istio_is() {
    let json = json!({
        "name": "a", "x": 1, "connectTimeout": "1s", "connect_timeout": "2s",
        "type": "EDS", "cluster_type": {"name": "b", "y": 2},
    });
    let parsed = parse(CLUSTER, &json, LENIENT).unwrap();
    assert_eq!(parsed.unknown_fields, ["x", "cluster_type.y"]);
    assert_eq!(
        to_json(CLUSTER, &parsed.bytes).unwrap(),
        json!({"cluster_type": {"name": "b"}, "connect_timeout": "1s", "name": "a"})
    );
    assert_eq!(
        problem(CLUSTER, json!({"connectTimeout": "1s", "connect_timeout": "2s"}), STRICT),
        "connectTimeout: field is given twice"
    );
    assert_eq!(
        problem(CLUSTER, json!({"type": "EDS", "cluster_type": {}}), STRICT),
        "cluster_type: only one field of cluster_discovery_type may be set"
    );
}

#[test]
fn null_means_absent() {
    let json = json!({"name": null, "connect_timeout": null, "load_assignment": null, "health_checks": null});
    assert!(from_json(CLUSTER, &json, STRICT).unwrap().is_empty());
}

#[test]
fn same_bytes_whatever_the_order() {
    let names = ["q", "a", "z", "m", "c", "b", "y"];
    let object = |names: &mut dyn Iterator<Item = &str>| {
        let entries: serde_json::Map<String, Value> = names.map(|name| (name.to_owned(), json!({"k": name}))).collect();
        json!({"filter_metadata": entries})
    };
    let name = Metadata::full_name();
    let forwards = from_json(&name, &object(&mut names.into_iter()), STRICT).unwrap();
    let backwards = from_json(&name, &object(&mut names.into_iter().rev()), STRICT).unwrap();
    assert_eq!(forwards, backwards);
    assert_eq!(Metadata::decode(forwards.as_slice()).unwrap().encode_to_vec(), forwards);
}

#[test]
fn nesting_is_bounded() {
    let mut json = json!({});
    for _ in 0..200 {
        json = json!({ "a": json });
    }
    let error = problem("google.protobuf.Struct", json, STRICT);
    assert!(error.ends_with("nested too deeply"), "{error}");

    let mut nested = Any::default();
    for _ in 0..5000 {
        nested = any::pack(&nested);
    }
    to_json(&nested.type_url, &nested.value).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_print(bytes: Vec<u8>) {
        for name in [CLUSTER, "google.protobuf.Struct", "istio.workload.Workload", "google.protobuf.Any"] {
            if let Ok(json) = to_json(name, &bytes) {
                json.to_string();
            }
        }
    }

    #[test]
    fn any_struct_round_trips(entries in proptest::collection::btree_map(".*", value(), 0..8)) {
        let json = Value::Object(entries.into_iter().collect());
        let bytes = from_json("google.protobuf.Struct", &json, STRICT).unwrap();
        prop_assert_eq!(to_json("google.protobuf.Struct", &bytes).unwrap().to_string(), json.to_string());
        let typed = prost_types::Struct::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(typed.encode_to_vec(), bytes);
    }
}

/// JSON in the printed form.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        proptest::bool::ANY.prop_map(Value::from),
        proptest::num::i32::ANY.prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".*", inner, 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

#[test]
fn json_names_at_every_depth_and_keys_of_maps_as_they_are() {
    let json = json!({
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3"}, "service_name": "s"},
        "metadata": {"filter_metadata": {"some_key": {"inner_key": 1}}},
        "name": "a",
    });
    let bytes = from_json(CLUSTER, &json, STRICT).unwrap();
    let expected = json!({
        "edsClusterConfig": {"edsConfig": {"resourceApiVersion": "V3"}, "serviceName": "s"},
        "metadata": {"filterMetadata": {"some_key": {"inner_key": 1}}},
        "name": "a",
    });
    assert_eq!(to_json_named(CLUSTER, &bytes, Names::Json).unwrap(), expected);
}

#[test]
fn the_last_of_a_oneof_takes_the_place_of_the_others_in_what_was_edited() {
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
    let both = json!({"name": "a", "type": "EDS", "cluster_type": {"name": "c"}, "lrs_server": null});
    assert!(from_json(CLUSTER, &both, STRICT).is_err());
    let bytes = from_json(CLUSTER, &both, Options::edited()).unwrap();
    assert_eq!(to_json(CLUSTER, &bytes).unwrap(), json!({"name": "a", "cluster_type": {"name": "c"}}));
    let other_way = json!({"cluster_type": {"name": "c"}, "name": "a", "type": "EDS"});
    let bytes = from_json(CLUSTER, &other_way, Options::edited()).unwrap();
    assert_eq!(to_json(CLUSTER, &bytes).unwrap(), json!({"name": "a", "type": "EDS"}));
    let unset = json!({"name": "a", "type": "EDS", "cluster_type": null});
    let bytes = from_json(CLUSTER, &unset, Options::edited()).unwrap();
    assert_eq!(to_json(CLUSTER, &bytes).unwrap(), json!({"name": "a", "type": "EDS"}), "null is nothing");
}
