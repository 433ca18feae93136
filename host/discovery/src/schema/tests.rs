use serde_json::json;

use super::types::{Additional, Rule};
use super::*;
use crate::kinds;

fn run(kind: &str, group_version: &str, spec: Value) -> (Value, Vec<String>, Vec<String>) {
    let kinds::Lookup::Known(known) = kinds::find(group_version, kind) else { panic!("{kind} is not known") };
    let mut body = json!({"apiVersion": group_version, "kind": kind, "metadata": {"name": "a", "x": 1}, "spec": spec});
    let (mut violations, mut warnings) = (Vec::new(), Vec::new());
    apply(known, group_version, &mut body, &mut violations, &mut warnings);
    assert_eq!(body["metadata"], json!({"name": "a", "x": 1}));
    let text =
        |found: Vec<Violation>| found.into_iter().map(|found| format!("{}: {}", found.field, found.reason)).collect();
    (body["spec"].take(), text(violations), text(warnings))
}

fn violations(kind: &str, group_version: &str, spec: Value) -> Vec<String> {
    run(kind, group_version, spec).1
}

const NETWORKING: &str = "networking.istio.io/v1";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

#[test]
fn fields_are_named_by_their_path() {
    let route = |weight: Value| json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "b"}, "weight": weight}]}]});
    assert_eq!(violations("VirtualService", NETWORKING, route(json!(50))), Vec::<String>::new());
    assert_eq!(
        violations("VirtualService", NETWORKING, route(json!("50"))),
        ["spec.http[0].route[0].weight: must be an integer, is a string"]
    );
    assert_eq!(
        violations(
            "Gateway",
            NETWORKING,
            json!({"servers": [{"port": {"number": 80, "name": "a", "protocol": "HTTP"}}]})
        ),
        ["spec.servers[0].hosts: required value"]
    );
    let found = violations("ServiceEntry", NETWORKING, json!({"hosts": [true]}));
    assert!(found[0].starts_with("spec.hosts[0]: must be a string, is a boolean (quote it"), "{found:?}");
    let both = json!({"hosts": ["a"], "http": [{"match": [{"uri": {"exact": "/a", "prefix": "/b"}}]}]});
    let found = violations("VirtualService", NETWORKING, both);
    assert!(
        found[0].starts_with("spec.http[0].match[0].uri: must satisfy exactly one of: none of them set, exact set"),
        "{found:?}"
    );
}

#[test]
fn rules_are_asked_and_name_their_field() {
    assert_eq!(
        violations("ServiceEntry", NETWORKING, json!({"hosts": ["*"]})),
        ["spec.hosts[0]: hostname cannot be wildcard"]
    );
    let twice = json!({"hosts": ["a"], "ports": [{"number": 1, "name": "a"}, {"number": 2, "name": "a"}]});
    assert_eq!(violations("ServiceEntry", NETWORKING, twice), ["spec.ports[1]: duplicate value {\"name\":\"a\"}"]);
}

#[test]
fn defaults_come_from_the_schema() {
    let (spec, violations, _) = run(
        "HTTPRoute",
        GATEWAY_API,
        json!({"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [{"name": "b", "port": 80}]}]}),
    );
    assert_eq!(violations, Vec::<String>::new());
    assert_eq!(spec["parentRefs"][0], json!({"name": "g", "group": "gateway.networking.k8s.io", "kind": "Gateway"}));
    assert_eq!(spec["rules"][0]["matches"], json!([{"path": {"type": "PathPrefix", "value": "/"}}]));
    assert_eq!(spec["rules"][0]["backendRefs"][0]["weight"], 1);
}

#[test]
fn unknown_fields_are_dropped_and_told() {
    let (spec, violations, warnings) =
        run("DestinationRule", NETWORKING, json!({"host": "a", "traficPolicy": {}, "zzz": 1, "exportTo": null}));
    assert_eq!((spec, violations), (json!({"host": "a"}), Vec::new()));
    assert_eq!(
        warnings,
        [
            "spec.traficPolicy: unknown field, left out (did you mean trafficPolicy?)",
            "spec.zzz: unknown field, left out"
        ]
    );
    // Where anything may stand nothing is dropped.
    let patch = json!({"configPatches": [{"applyTo": "CLUSTER", "patch": {"operation": "ADD", "value": {"any": {"thing": null}}}}]});
    let (spec, violations, warnings) = run("EnvoyFilter", "networking.istio.io/v1alpha3", patch.clone());
    assert_eq!((spec, violations, warnings), (patch, Vec::new(), Vec::new()));
}

#[test]
fn kubernetes_kinds_are_checked_where_they_are_read() {
    let port = |port: Value| violations("Service", "v1", json!({"ports": [port], "anything": {"goes": 1}}));
    assert_eq!(port(json!({"port": 80, "targetPort": "web"})), Vec::<String>::new());
    assert_eq!(port(json!({"port": "80"})), ["spec.ports[0].port: must be an integer, is a string"]);
    assert_eq!(port(json!({"port": 70000})), ["spec.ports[0].port: 70000 must be at most 65535"]);
    assert_eq!(
        port(json!({"port": 80, "targetPort": true})),
        ["spec.ports[0].targetPort: must be an integer or a string, is a boolean"]
    );
    let nameless = json!({"ports": [{"port": 80}, {"port": 81}]});
    assert_eq!(
        violations("Service", "v1", nameless),
        ["spec.ports: every port of a service with several ports needs a name"]
    );
}

/// Visits every schema of every file.
fn every(mut visit: impl FnMut(&Schema)) {
    fn walk(schema: &Schema, visit: &mut impl FnMut(&Schema)) {
        visit(schema);
        let additional = match &schema.additional_properties {
            Some(Additional::Schema(schema)) => Some(&**schema),
            _ => None,
        };
        let parts = schema.all_of.iter().chain(&schema.any_of).chain(&schema.one_of);
        let children = schema.properties.values().chain(schema.items.as_deref()).chain(schema.not.as_deref());
        for child in children.chain(additional).chain(parts) {
            walk(child, visit);
        }
    }
    for file in embedded::FILES {
        let definition: Definition =
            serde_json::from_str(file.text).unwrap_or_else(|error| panic!("{}: {error}", file.kind));
        for schema in &definition.schemas {
            walk(schema, &mut visit);
        }
    }
}

#[test]
fn every_rule_and_pattern_is_understood() {
    let (mut n_rules, mut n_patterns) = (0, 0);
    every(|schema| {
        for rule in &schema.rules {
            n_rules += 1;
            assert!(Rule::program(rule).is_ok(), "{}: {:?}", rule.rule, rule.program());
        }
        if let Some(pattern) = &schema.pattern {
            n_patterns += 1;
            assert!(pattern.regex().is_some(), "{}", pattern.text);
        }
    });
    assert!(n_rules > 300 && n_patterns > 200, "{n_rules} rules, {n_patterns} patterns");
}

#[test]
fn every_schema_is_of_a_known_kind_and_version() {
    for file in embedded::FILES {
        let definition: Definition = serde_json::from_str(file.text).expect("reads");
        for version in &definition.versions {
            let api_version =
                if file.group.is_empty() { version.name.clone() } else { format!("{}/{}", file.group, version.name) };
            let kinds::Lookup::Known(known) = kinds::find(&api_version, file.kind) else {
                panic!("{api_version} {} is not known", file.kind)
            };
            assert_eq!(known.namespaced, definition.scope == "Namespaced", "{}", file.kind);
        }
        assert_eq!((definition.group.as_str(), definition.kind.as_str()), (file.group, file.kind));
        assert!(!definition.plural.is_empty());
    }
}
