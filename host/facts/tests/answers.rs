//! Answers over small worlds, as whole values.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use serde_json::{Value, json};
use trysail_facts::{Change, FactsSnapshot, Inputs};
use trysail_model::{Affected, Object, ObjectRef, Proxy, Query, Snapshot};
use trysail_proto::trysail::facts::v1 as facts;

fn object(kind: &str, namespace: &str, name: &str, body: Value) -> Arc<Object> {
    let map = |key: &str| -> BTreeMap<String, String> {
        let pairs = body["metadata"][key].as_object().cloned().unwrap_or_default();
        pairs.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect()
    };
    Arc::new(Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: body["created"].as_i64().map_or(0, i128::from) * 1_000_000_000,
        labels: Arc::new(map("labels")),
        annotations: Arc::new(map("annotations")),
        body: body.into(),
        origin: "test".into(),
    })
}

fn service(namespace: &str, name: &str) -> Arc<Object> {
    object(
        "Service",
        namespace,
        name,
        json!({"spec": {
        "type": "ClusterIP", "clusterIP": "10.1.0.1", "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "web", "port": 81, "targetPort": "named"}]}}),
    )
}

fn pod(namespace: &str, name: &str, app: &str, ip: &str) -> Arc<Object> {
    object(
        "Pod",
        namespace,
        name,
        json!({"metadata": {"labels": {"app": app, "security.istio.io/tlsMode": "istio"}},
        "spec": {"serviceAccountName": "sa", "nodeName": "node", "containers": [{"ports": [{"name": "named", "containerPort": 9000}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}}),
    )
}

fn slice(namespace: &str, service: &str, name: &str, members: &[(&str, &str)]) -> Arc<Object> {
    let member = |(ip, pod): &(&str, &str)| json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}});
    let endpoints: Vec<Value> = members.iter().map(member).collect();
    object(
        "EndpointSlice",
        namespace,
        name,
        json!({"metadata": {"labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}, {"name": "web", "port": 9000}]}),
    )
}

fn world(objects: &[Arc<Object>]) -> FactsSnapshot {
    FactsSnapshot::new(Inputs { objects: objects.to_vec(), ..Inputs::default() })
}

fn ask<M: Message + Default>(snapshot: &FactsSnapshot, kind: &'static str, args: &[&str]) -> Option<M> {
    let answer = snapshot.answer(&Query::new(kind, args.iter().copied()));
    Some(M::decode(answer.value?).expect("answers decode"))
}

fn proxy(id: &str, ip: &str, labels: Value) -> Proxy {
    let metadata = json!({"NAMESPACE": "n", "CLUSTER_ID": "Kubernetes", "LABELS": labels});
    let node = format!("sidecar~{ip}~{id}~n.svc.cluster.local");
    Proxy::from_node(&node, metadata.as_object().cloned().unwrap_or_default(), Default::default()).expect("well-formed")
}

fn targets(snapshot: &FactsSnapshot, proxy: &Proxy) -> Vec<(String, u32, u32)> {
    let known = snapshot.refresh(proxy).expect("the first refresh always knows more");
    assert_eq!(snapshot.refresh(&known), None);
    let found = facts::ServiceTargets::decode(&*known.targets).expect("targets decode");
    found.targets.into_iter().map(|t| (t.service, t.port.unwrap_or_default().port, t.target_port)).collect()
}

#[test]
fn endpoints_know_their_pods() {
    let node = object(
        "Node",
        "",
        "node",
        json!({"metadata": {"labels": {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}}}),
    );
    let world = world(&[
        node,
        service("n", "a"),
        pod("n", "a-1", "a", "10.0.0.1"),
        slice("n", "a", "s", &[("10.0.0.1", "a-1"), ("10.0.0.2", "gone")]),
    ]);
    let key = "n/a.n.svc.cluster.local";
    let found: facts::Endpoints = ask(&world, "endpoints", &[key, "80"]).expect("the port is known");
    let expected_labels = [
        ("app", "a"),
        ("kubernetes.io/hostname", "node"),
        ("security.istio.io/tlsMode", "istio"),
        ("topology.istio.io/cluster", "Kubernetes"),
        ("topology.kubernetes.io/region", "r"),
        ("topology.kubernetes.io/zone", "z"),
    ];
    let expected = facts::Endpoint {
        addresses: vec!["10.0.0.1".into()],
        port: 8080,
        labels: expected_labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        locality: Some(facts::Locality { region: "r".into(), zone: "z".into(), sub_zone: String::new() }),
        service_account: "spiffe://cluster.local/ns/n/sa/sa".into(),
        tls_mode: "istio".into(),
        workload_name: "a-1".into(),
        namespace: "n".into(),
        cluster_id: "Kubernetes".into(),
        node_name: "node".into(),
        port_name: "http".into(),
        ..Default::default()
    };
    assert_eq!(found.endpoints, [expected]);
    assert_eq!(ask::<facts::Endpoints>(&world, "endpoints", &[key, "82"]), None);
    let ready = |args: &[&str]| {
        let query = Query::new("has-ready-endpoints", [key].into_iter().chain(args.iter().copied()));
        world.answer(&query).value.is_some()
    };
    assert!(ready(&["80"]) && ready(&["81", "app=a"]));
    assert!(!ready(&["80", "app=b"]) && !ready(&["82"]));
    let accounts: facts::Strings = ask(&world, "service-accounts", &[key]).expect("the service is known");
    assert_eq!(accounts.values, ["spiffe://cluster.local/ns/n/sa/sa"]);
    let workload: facts::Workload = ask(&world, "workload-at", &["10.0.0.1"]).expect("the pod is known");
    assert_eq!((workload.name.as_str(), workload.kind.as_str()), ("a-1", "Pod"));
}

#[test]
fn targets_of_proxies() {
    let key = "n/a.n.svc.cluster.local".to_owned();
    let vm = object(
        "WorkloadEntry",
        "n",
        "vm",
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"address": "10.0.0.9", "ports": {"named": 7}}}),
    );
    let entry = object(
        "ServiceEntry",
        "n",
        "e",
        json!({"spec": {"hosts": ["x.com"], "resolution": "STATIC", "location": "MESH_INTERNAL",
        "workloadSelector": {"labels": {"app": "a"}}, "ports": [{"number": 90, "name": "x", "protocol": "HTTP", "targetPort": 91}]}}),
    );
    let world = world(&[service("n", "a"), pod("n", "a-1", "a", "10.0.0.1"), vm, entry]);
    let from_entry = || ("n/x.com".to_owned(), 90, 91);
    // By name: the pod's ports.
    let own = [(key.clone(), 80, 8080), (key.clone(), 81, 9000), from_entry()];
    assert_eq!(targets(&world, &proxy("a-1.n", "10.0.0.1", json!({}))), own);
    // The address alone does not make it that pod, but ServiceEntries go by address.
    assert_eq!(
        targets(&world, &proxy("other.n", "10.0.0.1", json!({}))),
        [(key.clone(), 80, 8080), (key.clone(), 81, 0), from_entry()]
    );
    // A WorkloadEntry is known by address; its ports are its own.
    assert_eq!(
        targets(&world, &proxy("vm.n", "10.0.0.9", json!({}))),
        [(key.clone(), 80, 8080), (key.clone(), 81, 7), from_entry()]
    );
    // Nothing but the labels it sent: named target ports are not known.
    assert_eq!(
        targets(&world, &proxy("x.n", "10.0.0.8", json!({"app": "a"}))),
        [(key.clone(), 80, 8080), (key, 81, 0)]
    );
    let by_address: facts::ServiceTargets = ask(&world, "targets-at", &["10.0.0.1"]).expect("the pod has targets");
    assert_eq!(by_address.targets.len(), 3);
}

#[test]
fn kubernetes_services_go_before_service_entries() {
    let host = "a.n.svc.cluster.local";
    let squatter = object(
        "ServiceEntry",
        "n",
        "e",
        json!({"spec": {"hosts": [host], "ports": [{"number": 90, "name": "x", "protocol": "TCP"}]}}),
    );
    let mut young = (*service("n", "a")).clone();
    young.creation_nanos = 1;
    let world = world(&[Arc::new(young), squatter]);
    let service: facts::Service = ask(&world, "service", &[&format!("n/{host}")]).expect("there is one");
    assert_eq!(service.registry, "Kubernetes");
    let index: facts::ServiceSummaries = ask(&world, "service-index", &["*"]).expect("an index is always there");
    let registries: Vec<&str> = index.services.iter().map(|s| s.registry.as_str()).collect();
    assert_eq!(registries, ["External", "Kubernetes"]);
    let keys: facts::Strings = ask(&world, "services-of-host", &[host]).expect("an index is always there");
    assert_eq!(keys.values, [format!("n/{host}")]);
}

#[test]
fn aliases_lead_to_their_end() {
    let alias = |name: &str, to: &str| {
        object("Service", "n", name, json!({"spec": {"type": "ExternalName", "externalName": to}}))
    };
    let world = world(&[
        service("n", "a"),
        alias("b", "a.n.svc.cluster.local"),
        alias("c", "b.n.svc.cluster.local"),
        alias("x", "y.n.svc.cluster.local"),
        alias("y", "x.n.svc.cluster.local"),
    ]);
    let service: facts::Service = ask(&world, "service", &["n/a.n.svc.cluster.local"]).expect("there is one");
    assert_eq!(service.aliases, ["n/b.n.svc.cluster.local", "n/c.n.svc.cluster.local"]);
    let (next, affected) =
        world.apply(&Change { deleted: vec![ObjectRef::new("Service", "n", "b")], ..Change::default() });
    let service: facts::Service = ask(&next, "service", &["n/a.n.svc.cluster.local"]).expect("there is one");
    assert!(service.aliases.is_empty());
    assert!(affected.iter().any(|a| a.covers(&Query::new("service", ["n/a.n.svc.cluster.local"]))));
}

#[test]
fn one_endpoint_names_few_queries() {
    let objects: Vec<_> = (0..20)
        .flat_map(|i| {
            let name = format!("s{i}");
            let (pod_name, ip) = (format!("{name}-1"), format!("10.0.1.{i}"));
            [service("n", &name), pod("n", &pod_name, &name, &ip), slice("n", &name, &name, &[(&ip, &pod_name)])]
        })
        .collect();
    let world = world(&objects);
    let change = Change {
        upserted: vec![slice("n", "s3", "s3", &[("10.0.1.3", "s3-1"), ("10.0.1.4", "s4-1")])],
        ..Change::default()
    };
    let (_, affected) = world.apply(&change);
    let mut named: Vec<String> = affected.iter().map(|a| format!("{a:?}")).collect();
    named.sort();
    let key = "n/s3.n.svc.cluster.local";
    // The proxy at the new address is an endpoint of one service more.
    let of_address =
        ["has-ready-endpoints(some)", "proxies(Address(\"10.0.1.4\"))", "targets-at(10.0.1.4)"].map(str::to_owned);
    let expected =
        [vec![format!("endpoints({key}, 80)"), format!("endpoints({key}, 81)")], of_address.to_vec()].concat();
    assert_eq!(named, expected);
}

#[test]
fn revisions_and_discovery_selectors() {
    let rule = |revision: &str| {
        object(
            "DestinationRule",
            "n",
            "d",
            json!({"metadata": {"labels": {"istio.io/rev": revision}}, "spec": {"host": "a"}}),
        )
    };
    assert!(ask::<facts::Object>(&world(&[rule("other")]), "object", &["DestinationRule", "n/d"]).is_none());
    assert!(ask::<facts::Object>(&world(&[rule("default")]), "object", &["DestinationRule", "n/d"]).is_some());
    let namespace = |on: &str| object("Namespace", "", "n", json!({"metadata": {"labels": {"mesh": on}}}));
    let inputs = Inputs {
        objects: vec![namespace("off"), service("n", "a")],
        mesh: json!({"discoverySelectors": [{"matchLabels": {"mesh": "on"}}]}),
        ..Inputs::default()
    };
    let hidden = FactsSnapshot::new(inputs);
    let key = "n/a.n.svc.cluster.local";
    assert!(ask::<facts::Service>(&hidden, "service", &[key]).is_none());
    let (shown, affected) = hidden.apply(&Change { upserted: vec![namespace("on")], ..Change::default() });
    assert!(ask::<facts::Service>(&shown, "service", &[key]).is_some());
    assert!(affected.iter().any(|a| a.covers(&Query::new("service-index", ["*"]))));
}

#[test]
fn tags_point_to_revisions() {
    let labels =
        |tag: &str, revision: &str| json!({"metadata": {"labels": {"istio.io/tag": tag, "istio.io/rev": revision}}});
    let webhook = |revision: &str| {
        object("MutatingWebhookConfiguration", "", "istio-revision-tag-prod", labels("prod", revision))
    };
    let rule = object(
        "DestinationRule",
        "n",
        "d",
        json!({"metadata": {"labels": {"istio.io/rev": "prod"}}, "spec": {"host": "a"}}),
    );
    let sees = |world: &FactsSnapshot| ask::<facts::Object>(world, "object", &["DestinationRule", "n/d"]).is_some();
    let change = |object: &Arc<Object>| Change { upserted: vec![object.clone()], ..Change::default() };
    let start = world(&[rule, webhook("other")]);
    assert!(!sees(&start));
    let (ours, affected) = start.apply(&change(&webhook("default")));
    assert!(sees(&ours));
    assert!(affected.iter().any(|a| a.covers(&Query::new("object", ["DestinationRule", "n/d"]))));
    assert!(!sees(&ours.apply(&change(&webhook("other"))).0), "the tag moved on");
    // A Service of the control plane's namespace is a tag as well; elsewhere it is a service like any other.
    let service = |namespace: &str| object("Service", namespace, "istiod-revision-tag-prod", labels("prod", "default"));
    assert!(sees(&start.apply(&change(&service("istio-system"))).0));
    assert!(!sees(&start.apply(&change(&service("n"))).0));
}

#[test]
fn without_an_object() {
    let world = world(&[service("n", "a")]);
    let less = world.without(&ObjectRef::new("Service", "n", "a"));
    assert!(less.answer(&Query::new("service", ["n/a.n.svc.cluster.local"])).value.is_none());
}

#[test]
fn a_mesh_change_names_what_depends_on_it() {
    let world = world(&[service("n", "a")]);
    let (_, affected) = world.apply(&Change { mesh: Some(json!({"connectTimeout": "1s"})), ..Change::default() });
    let covers = |kind, arg: &str| affected.iter().any(|a: &Affected| a.covers(&Query::new(kind, [arg])));
    assert!(covers("mesh-config", "connect_timeout") && !covers("mesh-config", "trust_domain"));
    assert!(!covers("service", "n/a.n.svc.cluster.local"));
}
