use super::*;

fn patches(patch: Value) -> Vec<Value> {
    translate(&patch).expect("it has a hook").patches
}

fn refusal(patch: Value) -> String {
    translate(&patch).map(|done| done.patches).expect_err("it has no hook")
}

fn http_filter(context: &str, operation: &str, anchor: Value, listener: Value) -> Value {
    let mut of = json!({"filterChain": {"filter": {"name": MANAGERS[0], "subFilter": anchor}}});
    of.as_object_mut().expect("it is one").extend(listener.as_object().expect("it is one").clone());
    json!({"applyTo": "HTTP_FILTER", "match": {"context": context, "listener": of}, "patch": {"operation": operation, "value": {
        "name": "f", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
        "maxRequestBytes": 1}}}})
}

#[test]
fn an_inserted_filter_finds_its_slot() {
    let before = |name: &str| http_filter("SIDECAR_INBOUND", "INSERT_BEFORE", json!({"name": name}), json!({}));
    assert_eq!(
        patches(before("envoy.filters.http.router")),
        [json!({"hook": "http-filters", "direction": "inbound", "put": {"message": {
            "name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
            "max_request_bytes": 1}}}})]
    );
    assert_eq!(patches(before("envoy.filters.http.rbac"))[0]["hook"], "authz-filters");
    assert!(refusal(before("acme.filter")).contains("acme.filter"));
    let at = |context, listener| http_filter(context, "INSERT_FIRST", json!({}), listener);
    let port = patches(at("SIDECAR_INBOUND", json!({"portNumber": 8080})));
    assert_eq!(port[0]["attributes"], json!({"workload-port": "8080"}));
    assert_eq!(patches(at("SIDECAR_OUTBOUND", json!({"portNumber": 80})))[0]["port"], 80);
    assert_eq!(patches(at("GATEWAY", json!({"name": "0.0.0.0_8443"})))[0]["port"], 8443);
    assert!(refusal(at("ANY", json!({"portNumber": 80}))).contains("portNumber"));
    assert!(translate(&at("ANY", json!({}))).expect("it has a hook").reaches_far);
    let sni = json!({"filterChain": {"sni": "a.b"}});
    assert!(refusal(at("GATEWAY", sni)).contains("filterChain.sni"));
}

#[test]
fn a_merge_appends_to_lists_as_protobuf_does() {
    let merge = |operation: &str| {
        json!({"applyTo": "NETWORK_FILTER", "match": {"context": "GATEWAY", "listener": {"filterChain": {"filter": {
            "name": "envoy.filters.network.http_connection_manager"}}}}, "patch": {"operation": operation, "value": {
            "name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "xff_num_trusted_hops": 2, "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "common_http_protocol_options": {"idle_timeout": "30s"}}}}})
    };
    let hook = "connection-managers";
    assert_eq!(
        patches(merge("MERGE")),
        [
            json!({"hook": hook, "direction": "gateway", "merge": {"value": {
                "common_http_protocol_options": {"idle_timeout": "30s"}, "xff_num_trusted_hops": 2}}}),
            json!({"hook": hook, "direction": "gateway", "insert": {
                "path": "upgrade_configs", "at": "last", "value": {"upgrade_type": "CONNECT"}}}),
        ]
    );
    let [replaced] = &patches(merge("MERGE_AND_REPLACE_LIST"))[..] else { panic!("one patch") };
    assert_eq!(replaced["merge"]["value"]["upgrade_configs"], json!([{"upgrade_type": "CONNECT"}]));
}

#[test]
fn clusters_are_chosen_by_service_or_name() {
    let merge = |context: &str, cluster: Value| {
        json!({"applyTo": "CLUSTER", "match": {"context": context, "cluster": cluster},
            "patch": {"operation": "MERGE", "value": {"connect_timeout": "3s"}}})
    };
    let of_service = patches(merge("SIDECAR_OUTBOUND", json!({"service": "a.b.svc.cluster.local"})));
    assert_eq!(
        of_service,
        [
            json!({"hook": "clusters", "proxyType": "sidecar", "direction": "outbound", "service": "*/a.b.svc.cluster.local",
            "merge": {"value": {"connect_timeout": "3s"}}})
        ]
    );
    let by_name = patches(merge("GATEWAY", json!({"name": "outbound|80|v1|a.b.svc.cluster.local"})));
    assert_eq!(
        (&by_name[0]["item"], &by_name[0]["proxyType"]),
        (&json!("outbound|80|v1|a.b.svc.cluster.local"), &json!("router"))
    );
    assert_eq!(patches(merge("SIDECAR_INBOUND", json!({"portNumber": 8080})))[0]["port"], 8080);
    assert!(refusal(merge("ANY", json!({"portNumber": 8080, "service": "a"}))).contains("port"));
    assert!(refusal(merge("ANY", json!({"name": "BlackHoleCluster"}))).contains("BlackHoleCluster"));
}

#[test]
fn routes_are_changed_within_their_configuration() {
    let of = |apply_to: &str, operation: &str, vhost: Value, value: Value| {
        json!({"applyTo": apply_to, "match": {"context": "GATEWAY", "routeConfiguration": {"vhost": vhost}},
            "patch": {"operation": operation, "value": value}})
    };
    let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200}});
    let [first] = &patches(of("HTTP_ROUTE", "INSERT_FIRST", json!({"name": "h"}), route.clone()))[..] else {
        panic!("one")
    };
    assert_eq!(first["insert"], json!({"path": "virtual_hosts/name=h/routes", "at": "first", "value": route}));
    let merged = patches(of("VIRTUAL_HOST", "MERGE", json!({}), json!({"include_request_attempt_count": true})));
    assert_eq!(merged[0]["merge"]["path"], "virtual_hosts/*");
    let removed = patches(of("VIRTUAL_HOST", "REMOVE", json!({"name": "h"}), Value::Null));
    assert_eq!(removed[0]["remove"], "virtual_hosts/name=h");
    assert!(refusal(of("HTTP_ROUTE", "MERGE", json!({"route": {"action": "REDIRECT"}}), json!({}))).contains("action"));
}

#[test]
fn listener_filters_are_in_their_listener() {
    let of = |operation: &str, named: &str| {
        json!({"applyTo": "LISTENER_FILTER", "match": {"context": "SIDECAR_INBOUND", "listener": {"listenerFilter": named}},
            "patch": {"operation": operation, "value": {"name": "envoy.filters.listener.proxy_protocol"}}})
    };
    let [first] = &patches(of("INSERT_FIRST", ""))[..] else { panic!("one") };
    assert_eq!(
        (&first["hook"], &first["direction"], &first["insert"]["at"]),
        (&json!("listeners"), &json!("inbound"), &json!("first"))
    );
    assert_eq!(patches(of("REMOVE", "a"))[0]["remove"], "listener_filters/name=a");
    assert!(refusal(of("INSERT_AFTER", "a")).contains("\"a\""));
}

#[test]
fn what_has_no_hook_says_why() {
    assert!(
        refusal(json!({"applyTo": "BOOTSTRAP", "patch": {"operation": "MERGE", "value": {}}})).contains("BOOTSTRAP")
    );
    let versioned = json!({"applyTo": "CLUSTER", "match": {"proxy": {"proxyVersion": "^1.2"}}, "patch": {"operation": "MERGE", "value": {}}});
    assert!(refusal(versioned).contains("match.proxy"));
    let typo = json!({"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"connect_timeoot": "1s"}}});
    assert!(refusal(typo).contains("connect_timeoot"));
}
