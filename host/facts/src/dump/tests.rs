use serde_json::json;
use trysail_model::Object;

use crate::testing::{object, pod, slice};
use crate::{FactsSnapshot, Inputs};

fn snapshot(objects: Vec<Object>) -> FactsSnapshot {
    let objects = objects.into_iter().map(std::sync::Arc::new).collect();
    FactsSnapshot::new(Inputs { objects, ..Inputs::default() })
}

fn service(name: &str) -> Object {
    object(
        "Service",
        "shop",
        name,
        json!({
            "metadata": {"resourceVersion": "7", "created": 1_795_242_691},
            "spec": {"clusterIP": "10.96.2.10", "type": "ClusterIP", "selector": {"app": name},
                "ports": [{"name": "http", "port": 9080, "targetPort": 8080}]},
        }),
    )
}

fn rule(name: &str, created: u64, subsets: serde_json::Value) -> Object {
    let spec = json!({"host": "reviews", "subsets": subsets});
    let mut rule = object("DestinationRule", "shop", name, json!({"metadata": {"created": created}, "spec": spec}));
    rule.api_version = "networking.istio.io/v1".into();
    rule
}

#[test]
fn a_service_looks_as_in_istiod() {
    let dump = snapshot(vec![service("reviews")]).dump_services();
    let expected = json!([{
        "Attributes": {
            "ServiceRegistry": "Kubernetes", "Name": "reviews", "Namespace": "shop", "Labels": null, "ExportTo": null,
            "Visibility": 0, "LabelSelectors": {"app": "reviews"}, "Aliases": null,
            "ClusterExternalAddresses": {"Addresses": null}, "ClusterExternalPorts": null,
            "PassthroughTargetPorts": null, "Type": "ClusterIP", "ExternalName": "", "NodeLocal": false,
            "TrafficDistribution": 0, "ObjectName": "", "DNSConnectStrategy": 0, "PublishNotReadyAddresses": false
        },
        "ports": [{"name": "http", "port": 9080, "protocol": "HTTP"}],
        "creationTime": "2026-11-21T06:31:31Z",
        "hostname": "reviews.shop.svc.cluster.local",
        "clusterVIPs": {"Addresses": {"Kubernetes": ["10.96.2.10"]}},
        "defaultAddress": "10.96.2.10",
        "Resolution": 0,
        "MeshExternal": false,
        "ResourceVersion": "7"
    }]);
    assert_eq!(dump, expected);
}

#[test]
fn shards_hold_endpoints_and_accounts() {
    let dump = snapshot(vec![
        service("reviews"),
        pod("shop", "r1", "reviews", "10.0.0.1"),
        slice("shop", "reviews", "s", &[("10.0.0.1", "r1")]),
    ])
    .dump_shards();
    let shard = &dump["reviews.shop.svc.cluster.local"]["shop"];
    let endpoint = &shard["Shards"]["Kubernetes/Kubernetes"][0];
    assert_eq!(endpoint["Addresses"], json!(["10.0.0.1"]));
    assert_eq!((&endpoint["EndpointPort"], &endpoint["HealthStatus"]), (&json!(8080), &json!(1)));
    assert_eq!(shard["ServiceAccounts"], json!({"spiffe://cluster.local/ns/shop/sa/reviews": {}}));
}

#[test]
fn configuration_is_shown_as_objects() {
    let all = snapshot(vec![rule("r", 1, json!([{"name": "v1", "labels": {"version": "v1"}}])), service("reviews")]);
    let configs = all.dump_configs();
    assert_eq!(configs.as_array().map(Vec::len), Some(1), "a Service is no configuration: {configs}");
    assert_eq!(configs[0]["spec"]["host"], "reviews", "as it was written");
    assert_eq!(configs[0]["metadata"]["namespace"], "shop");
    assert_eq!(all.dump_kinds(), json!([{"group": "networking.istio.io", "version": "v1", "kind": "DestinationRule"}]));
    let policies = all.dump_policies("AuthorizationPolicy", "namespace_to_policies");
    assert_eq!(policies, json!({"namespace_to_policies": {}, "root_namespace": "istio-system"}));
    let rules = all.dump_policies("DestinationRule", "all");
    assert_eq!(rules["all"]["shop"][0]["name"], "r");
}

#[test]
fn mesh_configuration_has_json_names() {
    let mesh = snapshot(Vec::new()).dump_mesh();
    assert_eq!(mesh["proxyListenPort"], 15001);
    assert_eq!(mesh["defaultConfig"]["discoveryAddress"], "istiod.istio-system.svc:15012");
}

#[test]
fn problems_name_their_cases() {
    let version = |name: &str| json!({"name": name, "labels": {"version": name}});
    let problems = snapshot(vec![
        service("reviews"),
        pod("shop", "r1", "reviews", "10.0.0.1"),
        slice("shop", "reviews", "s", &[("10.0.0.1", "r1"), ("10.0.0.2", "gone")]),
        rule("a", 1, json!([version("v1"), version("v2")])),
        rule("b", 2, json!([version("v2"), version("v3")])),
        service("empty"),
    ])
    .problems();
    assert_eq!(
        problems.dump(),
        json!({
            "endpoint_no_pod": {"shop/gone": {}},
            "pilot_destrule_subsets": {"reviews.shop.svc.cluster.local": {"message":
                "Duplicate subset v2 found while merging destination rules for reviews.shop.svc.cluster.local"}},
            "pilot_eds_no_instances": {
                "outbound|9080||empty.shop.svc.cluster.local": {},
                "outbound|9080|v1|reviews.shop.svc.cluster.local": {},
                "outbound|9080|v2|reviews.shop.svc.cluster.local": {},
                "outbound|9080|v3|reviews.shop.svc.cluster.local": {},
            },
        })
    );
    assert_eq!((problems.count("endpoint_no_pod"), problems.count("pilot_endpoint_not_ready")), (1, 0));
}
