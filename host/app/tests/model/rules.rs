//! Rules of traffic: VirtualServices, DestinationRules, Sidecars, Gateways and PeerAuthentications.

use serde_json::{Value, json};

use super::dice::{Dice, EXPORTS, HOSTS, NAMES, NAMESPACES};

fn host(dice: &mut Dice) -> &'static str {
    if dice.one_in(2) { dice.pick(&NAMES) } else { dice.pick(&HOSTS) }
}

fn destination(dice: &mut Dice) -> Value {
    let (port, subset) = (dice.pick(&[80, 81, 90]), dice.pick(&["v1", "v2"]));
    json!({
        "host": host(dice),
        "port": dice.maybe(2, json!({"number": port})),
        "subset": dice.maybe(3, json!(subset)),
    })
}

fn http_route(i: usize, dice: &mut Dice) -> Value {
    let mirror = destination(dice);
    let attempts = dice.below(4);
    let port = dice.maybe(4, json!(80));
    let mut route = json!({
        "name": dice.maybe(3, json!(format!("r{i}"))),
        "match": dice.of([
            Value::Null,
            json!([{"headers": {"end-user": {"exact": "jason"}}}]),
            json!([{"uri": {"prefix": format!("/{i}")}, "port": port}]),
        ]),
        "timeout": dice.maybe(4, json!("3s")),
        "retries": dice.maybe(4, json!({"attempts": attempts, "retryOn": "5xx"})),
        "rewrite": dice.maybe(6, json!({"uri": "/"})),
        "fault": dice.maybe(6, json!({"abort": {"httpStatus": 503, "percentage": {"value": 10}}})),
        "mirror": dice.maybe(8, mirror),
        "headers": dice.maybe(6, json!({"request": {"set": {"x": "y"}}})),
    });
    let namespace = dice.pick(&NAMESPACES);
    match dice.below(8) {
        0 => route["redirect"] = json!({"uri": "/elsewhere"}),
        1 => route["delegate"] = json!({"name": dice.pick(&NAMES), "namespace": dice.maybe(2, json!(namespace))}),
        2 => {
            let (one, other) = (destination(dice), destination(dice));
            route["route"] = json!([{"destination": one, "weight": 30}, {"destination": other, "weight": 70}]);
        }
        _ => route["route"] = json!([{"destination": destination(dice)}]),
    }
    route
}

pub fn virtual_service(dice: &mut Dice) -> Value {
    let http: Vec<Value> = (0..1 + dice.below(3)).map(|i| http_route(i, dice)).collect();
    let (to, tls_to) = (destination(dice), destination(dice));
    let hosts = [host(dice), host(dice)];
    let gateways = match dice.below(4) {
        0 => json!(["mesh", format!("n1/{}", dice.pick(&NAMES))]),
        1 => json!([dice.pick(&NAMES), format!("istio-system/{}", dice.pick(&NAMES))]),
        _ => Value::Null,
    };
    json!({
        // Without hosts it is a delegate.
        "hosts": if dice.one_in(5) { json!([]) } else { json!(hosts) },
        "gateways": gateways,
        "exportTo": dice.pick(&EXPORTS[..4]),
        "http": http,
        "tcp": dice.maybe(4, json!([{"match": [{"port": 90}], "route": [{"destination": to}]}])),
        "tls": dice.maybe(5, json!([{
            "match": [{"port": 443, "sniHosts": ["x.example.com"]}], "route": [{"destination": tls_to}],
        }])),
    })
}

pub fn traffic_policy(dice: &mut Dice) -> Value {
    let tls = dice.pick(&["DISABLE", "SIMPLE", "ISTIO_MUTUAL"]);
    let balance = dice.of([
        json!({"simple": "ROUND_ROBIN"}),
        json!({"consistentHash": {"httpHeaderName": "x-user"}}),
        json!({"localityLbSetting": {"enabled": true, "failover": [{"from": "r1", "to": "r2"}]}}),
    ]);
    json!({
        "tls": dice.maybe(3, json!({"mode": tls})),
        "loadBalancer": dice.maybe(3, balance),
        "connectionPool": dice.maybe(3, json!({"tcp": {"maxConnections": 7}, "http": {"http2MaxRequests": 9}})),
        "outlierDetection": dice.maybe(3, json!({"consecutive5xxErrors": 3})),
        "portLevelSettings": dice.maybe(4, json!([{"port": {"number": 80}, "tls": {"mode": "DISABLE"}}])),
    })
}

pub fn sidecar(dice: &mut Dice) -> Value {
    let app = dice.pick(&NAMES);
    json!({
        "workloadSelector": dice.maybe(2, json!({"labels": {"app": app}})),
        "egress": dice.of([
            json!([{"hosts": ["*/*"]}]),
            json!([{"hosts": ["./*", "istio-system/*"]}]),
            json!([{"hosts": ["n1/a.n1.svc.cluster.local"]}]),
            json!([{"port": {"number": 80, "protocol": "HTTP", "name": "h"}, "hosts": ["n2/*"]}, {"hosts": ["~/*"]}]),
        ]),
        "ingress": dice.maybe(4, json!([{
            "port": {"number": 8080, "protocol": "HTTP", "name": "h"}, "defaultEndpoint": "127.0.0.1:8080",
        }])),
        "outboundTrafficPolicy": dice.maybe(3, json!({"mode": "REGISTRY_ONLY"})),
    })
}

fn gateway_server(i: usize, dice: &mut Dice) -> Value {
    let (number, protocol) = dice.pick(&[(80, "HTTP"), (80, "HTTP"), (443, "HTTPS"), (443, "TLS"), (90, "TCP")]);
    let modes = ["SIMPLE", "MUTUAL", "PASSTHROUGH", "ISTIO_MUTUAL", "AUTO_PASSTHROUGH"];
    let tls = json!({"mode": dice.pick(&modes), "credentialName": dice.pick(&NAMES)});
    let redirect = dice.maybe(4, json!({"httpsRedirect": true}));
    let (own, other) = (host(dice), dice.pick(&HOSTS));
    json!({
        "port": {"number": number, "protocol": protocol, "name": format!("p{i}")},
        "bind": dice.maybe(8, json!("10.0.0.1")),
        "hosts": [own, dice.pick(&["*/*", "./a", "n1/*", other])],
        "tls": match protocol {
            "HTTP" => redirect,
            "TCP" => Value::Null,
            _ => tls,
        },
    })
}

pub fn gateway(dice: &mut Dice) -> Value {
    let servers: Vec<Value> = (0..1 + dice.below(3)).map(|i| gateway_server(i, dice)).collect();
    let app = json!({"app": dice.pick(&NAMES)});
    json!({"selector": dice.maybe(2, app), "servers": servers})
}

/// The spec of a rule.
fn config_patch(dice: &mut Dice) -> Value {
    let router = json!({"name": "envoy.filters.http.router"});
    let manager = json!({"name": "envoy.filters.network.http_connection_manager", "subFilter": router});
    let in_manager = json!({"listener": {"portNumber": 80, "filterChain": {"filter": manager}}});
    let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
    let added = json!({"name": "added", "typed_config": {"@type": cors}});
    let at_80 = json!({"address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}}});
    let (host, name) = (dice.pick(&HOSTS), dice.pick(&["0.0.0.0_80", "virtualInbound", "80", "nothing"]));
    let (apply_to, operation, matching, value) = match dice.below(10) {
        0 => ("CLUSTER", "MERGE", json!({"cluster": {"service": host}}), json!({"connect_timeout": "7s"})),
        1 => ("CLUSTER", "REMOVE", json!({"cluster": {"portNumber": 90}}), Value::Null),
        2 => ("CLUSTER", "ADD", json!({}), json!({"name": "added", "connect_timeout": "1s"})),
        3 => ("HTTP_FILTER", "INSERT_BEFORE", dice.of([in_manager, json!({})]), added),
        4 => {
            ("LISTENER", "MERGE", json!({"listener": {"name": name}}), json!({"per_connection_buffer_limit_bytes": 9}))
        }
        5 => ("LISTENER", "ADD", json!({}), json!({"name": "added", "address": at_80["address"]})),
        6 => (
            "FILTER_CHAIN",
            "MERGE",
            json!({"listener": {"name": name}}),
            json!({"transport_socket_connect_timeout": "3s"}),
        ),
        7 => ("VIRTUAL_HOST", "MERGE", json!({"routeConfiguration": {"name": name}}), json!({"require_tls": "ALL"})),
        8 => ("HTTP_ROUTE", "ADD", json!({}), json!({"name": "added", "match": {"prefix": "/x"}, "redirect": {}})),
        _ => ("EXTENSION_CONFIG", "ADD", json!({}), added),
    };
    let mut matching = matching;
    let context = dice.pick(&["SIDECAR_OUTBOUND", "SIDECAR_INBOUND", "GATEWAY"]);
    matching["context"] = dice.maybe(2, json!(context));
    matching["proxy"] = dice.maybe(4, json!({"proxyVersion": "^1.31", "metadata": {"CLUSTER_ID": "Kubernetes"}}));
    json!({"applyTo": apply_to, "match": matching, "patch": {"operation": operation, "value": value}})
}

fn envoy_filter(dice: &mut Dice) -> Value {
    let patches: Vec<Value> = (0..1 + dice.below(3)).map(|_| config_patch(dice)).collect();
    let (app, priority) = (dice.pick(&NAMES), dice.pick(&[-1, 1]));
    json!({
        "workloadSelector": dice.maybe(3, json!({"labels": {"app": app}})),
        "priority": dice.maybe(3, json!(priority)),
        "configPatches": patches,
    })
}

pub fn spec(kind: &str, dice: &mut Dice) -> Value {
    let x = dice.pick(&NAMES);
    match kind {
        "VirtualService" => virtual_service(dice),
        "DestinationRule" => {
            let of_subset = traffic_policy(dice);
            json!({
                "host": host(dice),
                "exportTo": dice.pick(&EXPORTS[..4]),
                "trafficPolicy": traffic_policy(dice),
                "workloadSelector": dice.maybe(6, json!({"matchLabels": {"app": x}})),
                "subsets": [
                    {"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": dice.maybe(3, of_subset)},
                    {"name": "v2", "labels": {"version": "v2"}},
                ],
            })
        }
        "Sidecar" => sidecar(dice),
        "Gateway" => gateway(dice),
        "EnvoyFilter" => envoy_filter(dice),
        "PeerAuthentication" => {
            let mode = dice.pick(&["STRICT", "PERMISSIVE", "DISABLE"]);
            json!({
                "selector": dice.maybe(2, json!({"matchLabels": {"app": x}})),
                "mtls": dice.maybe(2, json!({"mode": mode})),
                "portLevelMtls": dice.maybe(4, json!({"8080": {"mode": "DISABLE"}})),
            })
        }
        _ => Value::Null,
    }
}
