use super::*;
use serde_json::json;

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

fn rbac(rules: &str) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    json!({"name": "envoy.filters.http.rbac", "typed_config": {"@type": kind, "rules": rules}})
}

fn jwt() -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
    json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {"@type": kind}})
}

fn filter(name: &str) -> Value {
    json!({"name": name, "typed_config": {"@type": "type.googleapis.com/some.Filter"}})
}

fn tls(validation: &str) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    json!({"name": "tls", "typed_config": {"@type": kind, "require_client_certificate": true,
        "common_tls_context": {"combined_validation_context": validation, "alpn_protocols": ["h2"]}}})
}

/// An inbound listener with mutual TLS, which authenticates and authorizes.
fn inbound(filters: Vec<Value>) -> Value {
    let manager = json!({"@type": "type.googleapis.com/h.HttpConnectionManager", "http_filters": filters,
        "forward_client_cert_details": "APPEND_FORWARD"});
    json!({"name": "in", "address": {"port": 15006}, "filter_chains": [
        {"name": "c", "transport_socket": tls("mesh"), "filters": [{"name": "http", "typed_config": manager}]}
    ]})
}

fn found(message: &str, old: Option<Value>, new: Value) -> Option<String> {
    let items = |value: Value| vec![("i".to_owned(), value)];
    weakened(message, &old.map(items).unwrap_or_default(), &items(new))
}

fn changed(change: impl Fn(&mut Value)) -> Option<String> {
    let old = inbound(vec![jwt(), rbac("r"), filter("router")]);
    let mut new = old.clone();
    change(&mut new);
    assert_ne!(old, new, "it changes something");
    found(LISTENER, Some(old), new)
}

const FILTERS: &str = "/filter_chains/0/filters/0/typed_config/http_filters";

fn list<'a>(value: &'a mut Value, at: &str) -> &'a mut Vec<Value> {
    value.pointer_mut(at).and_then(Value::as_array_mut).expect("there is a list")
}

#[test]
fn what_does_no_harm_is_no_matter() {
    assert_eq!(changed(|new| new["per_connection_buffer_limit_bytes"] = json!(1)), None);
    assert_eq!(changed(|new| list(new, FILTERS).insert(0, filter("lua"))), None);
    assert_eq!(changed(|new| list(new, FILTERS).insert(2, rbac("more"))), None, "more of a guard is no less");
    let alpn = "/filter_chains/0/transport_socket/typed_config/common_tls_context/alpn_protocols";
    assert_eq!(changed(|new| list(new, alpn).clear()), None, "other settings of TLS are free");
}

#[test]
fn guards_stay_as_they_are_and_in_order() {
    let guard = |change: &dyn Fn(&mut Vec<Value>)| changed(|new| change(list(new, FILTERS)));
    for found in [
        guard(&|filters| drop(filters.remove(1))),
        guard(&|filters| filters.swap(0, 1)),
        guard(&|filters| filters[1] = rbac("none")),
        guard(&|filters| filters.clear()),
    ] {
        assert!(found.is_some_and(|why| why.contains("authenticates or authorizes")));
    }
}

#[test]
fn mutual_tls_stays() {
    let chain = |change: &dyn Fn(&mut Value)| changed(|new| change(&mut new["filter_chains"][0]));
    let gone = chain(&|chain| drop(chain.as_object_mut().and_then(|chain| chain.shift_remove("transport_socket"))));
    assert!(gone.is_some_and(|why| why.contains("takes away TLS")));
    assert!(chain(&|chain| chain["transport_socket"] = tls("anybody")).is_some());
    assert!(
        chain(&|chain| chain["transport_socket"]["typed_config"]["require_client_certificate"] = json!(false))
            .is_some()
    );
    let beside = changed(|new| list(new, "/filter_chains").push(json!({"name": "plain", "filters": []})));
    assert!(beside.is_some_and(|why| why.contains("without TLS")));
}

#[test]
fn clusters_keep_their_tls() {
    let cluster = json!({"name": "c", "transport_socket": tls("server")});
    let mut plain = cluster.clone();
    plain["transport_socket"] = json!({"name": "raw", "typed_config": {"@type": "type.googleapis.com/RawBuffer"}});
    assert!(found(CLUSTER, Some(cluster.clone()), plain).is_some());
    let mut quick = cluster.clone();
    quick["connect_timeout"] = json!("1s");
    assert_eq!(found(CLUSTER, Some(cluster), quick), None);
}

#[test]
fn a_new_listener_has_tls() {
    let plain = json!({"name": "n", "address": {"port": 1}, "filter_chains": [{"filters": []}]});
    assert!(found(LISTENER, None, plain.clone()).is_some_and(|why| why.contains("without TLS")));
    let mut encrypted = plain;
    encrypted["filter_chains"][0]["transport_socket"] = tls("mesh");
    assert_eq!(found(LISTENER, None, encrypted), None);
    let moved = changed(|new| {
        new["address"]["port"] = json!(80);
        new["filter_chains"][0]["transport_socket"] = json!({"name": "raw"});
    });
    assert!(moved.is_some());
}

#[test]
fn no_route_goes_around_a_guard() {
    let route = |configs: Value| json!({"name": "r", "typed_per_filter_config": configs});
    let off = route(
        json!({"envoy.filters.http.rbac": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}),
    );
    let route_message = "envoy.config.route.v3.Route";
    assert!(found(route_message, Some(route(json!({}))), off.clone()).is_some_and(|why| why.contains("some routes")));
    assert!(found("envoy.config.route.v3.VirtualHost", Some(json!({})), json!({"routes": [off]})).is_some());
    let limit = route(json!({"envoy.filters.http.local_ratelimit": {"@type": "type.googleapis.com/x.LocalRateLimit"}}));
    assert_eq!(found(route_message, Some(route(json!({}))), limit), None);
}

#[test]
fn identities_are_passed_on_as_before() {
    let header = "/filter_chains/0/filters/0/typed_config/forward_client_cert_details";
    let change = |new: &mut Value| *new.pointer_mut(header).expect("it is there") = json!("ALWAYS_FORWARD_ONLY");
    assert!(changed(change).is_some_and(|why| why.contains("identity of callers")));
}

#[test]
fn no_secret_is_in_the_clear() {
    let key = json!({"tls_certificates": [{"private_key": {"inline_string": "k"}}]});
    assert!(found(CLUSTER, Some(json!({})), json!({"x": key})).is_some_and(|why| why.contains("private_key")));
    let pem = json!({"x": "-----BEGIN PRIVATE KEY-----"});
    assert!(found(CLUSTER, Some(json!({})), pem).is_some());
    let file = json!({"tls_certificates": [{"private_key": {"filename": "/k"}}]});
    assert_eq!(found(CLUSTER, Some(json!({})), json!({"x": file})), None);
}

#[test]
fn an_inserted_filter_ends_nothing_and_passes_for_none_of_ours() {
    let message = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let router = json!({"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    assert!(found(message, None, router).is_some_and(|why| why.contains("ends the chain")));
    assert!(found(message, None, filter("envoy.filters.http.rbac")).is_some_and(|why| why.contains("is taken")));
    assert_eq!(found(message, None, filter("envoy.filters.http.lua")), None);
}
