//! Specs as their kinds' own protobuf messages.
//!
//! **Invariant:** in the documents that stages get, names are resolved as istiod resolves them, so that no stage has to know
//! the domain: hosts and destinations of VirtualServices and the host of DestinationRules are fully qualified, gateways of
//! VirtualServices are `namespace/name` or `mesh`. VirtualServices with gateway semantics (made from Gateway API routes) are
//! left as they are. Everything else, and delegates, stay as written.
//!
//! Unknown fields are skipped. A spec that does not fit its message is a warning, and the object is as if absent.

use prost::Message;
use serde_json::Value;
use trysail_codec::json::{Options, from_json};
use trysail_model::Object;
use trysail_proto::istio::networking::v1alpha3::{Destination, DestinationRule, VirtualService};

use crate::labels::ROUTE_SEMANTICS;

/// Kinds with a public message, and its full name.
pub const MESSAGES: &[(&str, &str)] = &[
    ("AuthorizationPolicy", "istio.security.v1beta1.AuthorizationPolicy"),
    ("DestinationRule", "istio.networking.v1alpha3.DestinationRule"),
    ("EnvoyFilter", "istio.networking.v1alpha3.EnvoyFilter"),
    ("Gateway", "istio.networking.v1alpha3.Gateway"),
    ("PeerAuthentication", "istio.security.v1beta1.PeerAuthentication"),
    ("ProxyConfig", "istio.networking.v1beta1.ProxyConfig"),
    ("RequestAuthentication", "istio.security.v1beta1.RequestAuthentication"),
    ("ServiceEntry", "istio.networking.v1alpha3.ServiceEntry"),
    ("Sidecar", "istio.networking.v1alpha3.Sidecar"),
    ("Telemetry", "istio.telemetry.v1alpha1.Telemetry"),
    ("TrafficExtension", "istio.extensions.v1alpha1.TrafficExtension"),
    ("VirtualService", "istio.networking.v1alpha3.VirtualService"),
    ("WasmPlugin", "istio.extensions.v1alpha1.WasmPlugin"),
    ("WorkloadEntry", "istio.networking.v1alpha3.WorkloadEntry"),
    ("WorkloadGroup", "istio.networking.v1alpha3.WorkloadGroup"),
];

/// The full name of the message that a kind's specs are.
pub fn message_of(kind: &str) -> Option<&'static str> {
    let at = MESSAGES.binary_search_by(|(k, _)| (*k).cmp(kind)).ok()?;
    Some(MESSAGES[at].1)
}

/// The gateway that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// Encodes an object's spec, with names resolved.
///
/// # Errors
/// The spec does not fit its kind's message; the text says where and why.
pub fn document(object: &Object, domain: &str) -> Result<Vec<u8>, String> {
    let Some(message) = message_of(&object.reference.kind) else { return Ok(Vec::new()) };
    let empty = Value::Object(serde_json::Map::new());
    let spec = object.spec();
    let bytes = from_json(message, if spec.is_null() { &empty } else { &spec }, Options::lenient())
        .map_err(|e| e.to_string())?;
    let namespace = &object.reference.namespace;
    Ok(match &*object.reference.kind {
        "VirtualService" if !gateway_semantics(object) => {
            let mut rule: VirtualService = decode(&bytes)?;
            resolve_virtual_service(&mut rule, namespace, domain);
            rule.encode_to_vec()
        }
        "DestinationRule" => {
            let mut rule: DestinationRule = decode(&bytes)?;
            rule.host = qualify(&rule.host, namespace, domain);
            rule.encode_to_vec()
        }
        _ => bytes,
    })
}

/// Decodes a message that was encoded before.
///
/// # Errors
/// Nested deeper than prost reads.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|e| e.to_string())
}

/// Was the VirtualService made from a Gateway API route?
pub fn gateway_semantics(object: &Object) -> bool {
    object.annotations.get(ROUTE_SEMANTICS).is_some_and(|semantics| semantics == "gateway")
}

/// A host as its author meant it: names without a dot are services of the author's namespace.
pub fn qualify(host: &str, namespace: &str, domain: &str) -> String {
    let short = !host.is_empty() && host != "*" && !host.contains('.') && host.parse::<std::net::IpAddr>().is_err();
    if !short {
        return host.to_owned();
    }
    match (namespace, domain) {
        ("", "") => host.to_owned(),
        ("", domain) => format!("{host}.svc.{domain}"),
        (namespace, "") => format!("{host}.{namespace}"),
        (namespace, domain) => format!("{host}.{namespace}.svc.{domain}"),
    }
}

/// A gateway's name as `namespace/name`.
pub fn qualify_gateway(name: &str, namespace: &str) -> String {
    if name == MESH_GATEWAY {
        return name.to_owned();
    }
    match name.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => name.to_owned(),
        None => match name.split_once('.') {
            // The form of old: `name.namespace.svc.domain`.
            Some((name, rest)) => format!("{}/{name}", rest.split('.').next().unwrap_or_default()),
            None => format!("{namespace}/{name}"),
        },
    }
}

fn resolve_virtual_service(rule: &mut VirtualService, namespace: &str, domain: &str) {
    let host = |host: &mut String| *host = qualify(host, namespace, domain);
    let gateways = |names: &mut Vec<String>| names.iter_mut().for_each(|name| *name = qualify_gateway(name, namespace));
    let destination = |destination: &mut Option<Destination>| {
        destination.iter_mut().for_each(|d| host(&mut d.host));
    };
    rule.hosts.iter_mut().for_each(host);
    gateways(&mut rule.gateways);
    for route in &mut rule.http {
        route.r#match.iter_mut().for_each(|m| gateways(&mut m.gateways));
        route.route.iter_mut().for_each(|r| destination(&mut r.destination));
        destination(&mut route.mirror);
        route.mirrors.iter_mut().for_each(|m| destination(&mut m.destination));
    }
    for route in &mut rule.tcp {
        route.r#match.iter_mut().for_each(|m| gateways(&mut m.gateways));
        route.route.iter_mut().for_each(|r| destination(&mut r.destination));
    }
    for route in &mut rule.tls {
        route.r#match.iter_mut().for_each(|m| gateways(&mut m.gateways));
        route.route.iter_mut().for_each(|r| destination(&mut r.destination));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::testing::object;

    #[test]
    fn kinds_are_sorted_and_known() {
        assert!(MESSAGES.is_sorted());
        for (kind, _) in MESSAGES {
            assert_eq!(document(&object(kind, "n", "a", json!({})), "cluster.local"), Ok(Vec::new()), "{kind}");
        }
        assert_eq!(message_of("Pod"), None);
    }

    #[test]
    fn hosts_and_gateways() {
        let q = |host| qualify(host, "n", "d");
        assert_eq!(
            (q("a"), q("*"), q("a.b"), q("1.2.3.4")),
            ("a.n.svc.d".into(), "*".into(), "a.b".into(), "1.2.3.4".into())
        );
        let g = |name| qualify_gateway(name, "n");
        assert_eq!(
            (g("mesh"), g("gw"), g("./gw"), g("m/gw")),
            ("mesh".into(), "n/gw".into(), "n/gw".into(), "m/gw".into())
        );
        assert_eq!((g("gw.m"), g("gw.m.svc.cluster.local")), ("m/gw".into(), "m/gw".into()));
    }

    #[test]
    fn virtual_services_are_resolved() {
        let spec = json!({"hosts": ["a"], "gateways": ["gw"], "http": [
            {"match": [{"gateways": ["mesh"]}], "route": [{"destination": {"host": "b"}}], "mirror": {"host": "c"}}
        ]});
        let mut given = object("VirtualService", "n", "v", json!({"spec": spec}));
        let rule: VirtualService = decode(&document(&given, "d").unwrap()).unwrap();
        assert_eq!((rule.hosts[0].as_str(), rule.gateways[0].as_str()), ("a.n.svc.d", "n/gw"));
        let route = &rule.http[0];
        assert_eq!(route.route[0].destination.as_ref().unwrap().host, "b.n.svc.d");
        assert_eq!(route.mirror.as_ref().unwrap().host, "c.n.svc.d");
        Arc::make_mut(&mut given.annotations).insert(ROUTE_SEMANTICS.into(), "gateway".into());
        let rule: VirtualService = decode(&document(&given, "d").unwrap()).unwrap();
        assert_eq!(rule.hosts[0], "a");
    }
}
