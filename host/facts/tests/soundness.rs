//! Random changes: every answer that moves was named, and the way to a state does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use trysail_facts::{Change, FactsSnapshot, Inputs, QUERIES, audit};
use trysail_model::{Object, ObjectRef, Proxy, Query, Snapshot};

const NAMESPACES: [&str; 3] = ["istio-system", "n1", "n2"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 2] = ["node-1", "node-2"];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"];
const HOSTS: [&str; 6] = [
    "a.n1.svc.cluster.local",
    "b.n1.svc.cluster.local",
    "a.n2.svc.cluster.local",
    "x.example.com",
    "*.example.com",
    "*",
];
const EXPORTS: [&[&str]; 5] = [&[], &["*"], &["."], &["n1", "n2"], &["~"]];

/// Numbers that decide every choice of one object's content.
type Dice = [u8; 8];

fn pick<T: Copy>(list: &[T], die: u8) -> T {
    list[die as usize % list.len()]
}

fn labels(die: u8) -> Value {
    let mut labels = json!({"app": pick(&NAMES, die)});
    if die & 16 != 0 {
        labels["topology.istio.io/network"] = json!("net-1");
    }
    if die & 32 != 0 {
        labels["security.istio.io/tlsMode"] = json!("istio");
    }
    if die & 64 != 0 {
        labels["istio.io/rev"] = json!(pick(&["default", "other"], die));
    }
    labels
}

fn body(kind: &str, d: Dice) -> Value {
    let (x, y) = (pick(&NAMES, d[1]), pick(&NAMES, d[2]));
    let ports = [
        json!([{"name": "http", "port": 80, "targetPort": 8080}]),
        json!([{"name": "http", "port": 80, "targetPort": "web"}, {"name": "tcp", "port": 90, "protocol": "TCP", "targetPort": 91}]),
        json!([{"port": 53, "protocol": "UDP", "targetPort": 53}]),
    ];
    let ports = &ports[d[3] as usize % 3];
    let address = pick(&ADDRESSES, d[4]);
    let metadata = json!({"labels": labels(d[0]), "annotations": {}});
    match kind {
        // Points the tag that objects are labelled with to us, or to somebody else.
        "MutatingWebhookConfiguration" => {
            json!({"metadata": {"labels": {"istio.io/tag": "other", "istio.io/rev": pick(&["default", "third"], d[1])}}})
        }
        "Namespace" => json!({"metadata": {
            "labels": pick(&[&["mesh", "on"], &["topology.istio.io/network", "net-2"], &["x", "y"]], d[1]).chunks(2).map(|p| (p[0].to_owned(), json!(p[1]))).collect::<serde_json::Map<_, _>>(),
            "annotations": if d[2] & 1 == 1 { json!({"networking.istio.io/traffic-distribution": "PreferClose"}) } else { json!({}) },
        }}),
        "Node" => json!({"metadata": {"labels": {"topology.kubernetes.io/region": x}},
            "status": {"addresses": [{"type": "ExternalIP", "address": if d[2] & 1 == 1 { "1.1.1.1" } else { "" }}]}}),
        "Pod" => {
            json!({"metadata": metadata, "spec": {"serviceAccountName": y, "nodeName": pick(&NODES, d[3]), "subdomain": if d[6] & 1 == 1 { "sub" } else { "" },
                "containers": [{"ports": [{"name": if d[6] & 2 == 2 { "web" } else { "other" }, "containerPort": 8000 + u32::from(d[6])}]}]},
            "status": {"phase": pick(&["Running", "Running", "Succeeded", "Failed"], d[5]), "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": pick(&["True", "False"], d[7])}]}})
        }
        "EndpointSlice" => {
            let target =
                |die: u8| json!({"kind": "Pod", "namespace": pick(&NAMESPACES, die / 8), "name": pick(&NAMES, die)});
            let member = |die: u8| {
                let mut member = json!({"addresses": [pick(&ADDRESSES, die)], "conditions": {"ready": die & 8 == 0, "terminating": die & 128 != 0}});
                if die & 16 != 0 {
                    member["targetRef"] = target(die);
                }
                member
            };
            let members: Vec<Value> = d[4..].iter().map(|die| member(*die)).collect();
            json!({"metadata": {"labels": {"kubernetes.io/service-name": x}}, "addressType": "IPv4", "endpoints": members,
                "ports": if d[3] & 1 == 1 { json!([{"name": "http", "port": 8080}, {"name": "tcp", "port": 91}]) } else { json!([{"name": "http", "port": u32::from(d[3])}]) }})
        }
        "Service" => {
            let mut metadata = metadata;
            if d[5] & 3 != 0 {
                metadata["annotations"]["networking.istio.io/exportTo"] = json!(pick(&EXPORTS, d[5]).join(","));
            }
            if d[5] & 64 != 0 {
                metadata["annotations"]["alpha.istio.io/kubernetes-serviceaccounts"] = json!("extra");
            }
            let selector = if d[6] & 1 == 1 { json!({"app": y}) } else { Value::Null };
            let spec = match d[6] % 5 {
                0 => json!({"type": "ExternalName", "externalName": pick(&HOSTS, d[7]), "ports": ports}),
                1 => json!({"type": "ClusterIP", "clusterIP": "None", "ports": ports, "selector": selector}),
                2 => {
                    json!({"type": "LoadBalancer", "clusterIP": "10.1.0.1", "externalIPs": ["2.2.2.2"], "ports": [{"name": "tls", "port": 15443}], "selector": selector})
                }
                _ => json!({"type": "ClusterIP", "clusterIP": "10.1.0.1", "ports": ports, "selector": selector}),
            };
            json!({"metadata": metadata, "spec": spec})
        }
        "ServiceEntry" => {
            let resolution = pick(&["STATIC", "DNS", "NONE", "DNS_ROUND_ROBIN"], d[3]);
            let entry = |die: u8| json!({"address": pick(&["10.0.0.1", "10.0.0.2", "unix:///a", "ep.example.com"], die), "labels": {"app": pick(&NAMES, die)}, "serviceAccount": if die & 64 != 0 { "sa" } else { "" }});
            let mut spec = json!({"hosts": [pick(&HOSTS[..5], d[1]), pick(&HOSTS[..5], d[2])], "resolution": resolution, "exportTo": pick(&EXPORTS, d[5]),
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 90, "name": "tcp", "protocol": "TCP", "targetPort": 91}]});
            match d[4] % 3 {
                0 => {
                    spec["workloadSelector"] = json!({"labels": if d[4] & 8 == 8 { json!({"topology.kubernetes.io/region": x}) } else { json!({"app": x}) }})
                }
                1 => spec["endpoints"] = json!([entry(d[6]), entry(d[7])]),
                _ => spec["addresses"] = json!([address]),
            }
            json!({"metadata": metadata, "spec": spec})
        }
        "WorkloadEntry" => {
            json!({"metadata": metadata, "spec": {"address": if d[4] & 64 != 0 { "ep.example.com" } else { address }, "serviceAccount": if d[2] & 1 == 1 { y } else { "" },
            "ports": if d[3] & 1 == 1 { json!({"web": 7777}) } else { json!({}) }, "network": if d[5] & 1 == 1 { "net-3" } else { "" }}})
        }
        "VirtualService" => {
            let destination = |die: u8| json!({"route": [{"destination": {"host": pick(&NAMES, die), "port": {"number": u32::from(die % 3)}}}]});
            let mut http = vec![destination(d[3])];
            if d[4] & 1 == 1 {
                http.push(json!({"delegate": {"name": x, "namespace": if d[4] & 2 == 2 { pick(&NAMESPACES, d[5]) } else { "" }}}));
            }
            let hosts: &[&str] = if d[6].is_multiple_of(3) { &[] } else { &["a"] };
            let gateways: &[&str] = pick(&[&[], &["gw"], &["mesh", "n1/gw"], &["n1/gw", "n2/gw"]], d[5]);
            json!({"metadata": metadata, "spec": {"hosts": hosts, "gateways": gateways, "exportTo": pick(&EXPORTS[..4], d[7]), "http": http}})
        }
        "DestinationRule" => {
            json!({"metadata": metadata, "spec": {"host": if d[3] & 1 == 1 { x } else { pick(&HOSTS, d[4]) }, "exportTo": pick(&EXPORTS[..4], d[5]),
            "subsets": [{"name": y}]}})
        }
        "EnvoyFilter" => {
            let clusters = json!({"applyTo": "CLUSTER", "match": {"cluster": {"service": x}}, "patch": {"operation": "MERGE", "value": {"connect_timeout": "2s"}}});
            let routes =
                json!({"applyTo": "HTTP_ROUTE", "match": {"context": "GATEWAY"}, "patch": {"operation": "REMOVE"}});
            json!({"metadata": metadata, "spec": {"configPatches": [pick(&[&clusters, &routes], d[3])], "priority": d[4]}})
        }
        "KubernetesGateway" => {
            json!({"metadata": metadata, "spec": {"addresses": [{"type": "IPAddress", "value": address}], "listeners": [{"port": 15443, "tls": {}}]}})
        }
        _ => {
            json!({"metadata": metadata, "spec": if d[1] & 1 == 1 { json!({}) } else if kind == "Sidecar" { json!({"workloadSelector": {"labels": {"app": y}}}) } else { json!({"selector": {"matchLabels": {"app": y}}}) }})
        }
    }
}

const KINDS: [&str; 15] = [
    "Namespace",
    "Node",
    "Pod",
    "Pod",
    "EndpointSlice",
    "Service",
    "Service",
    "ServiceEntry",
    "WorkloadEntry",
    "VirtualService",
    "DestinationRule",
    "EnvoyFilter",
    "KubernetesGateway",
    "Sidecar",
    "MutatingWebhookConfiguration",
];

fn object(kind: &str, place: u8, created: u8, dice: Dice) -> Arc<Object> {
    let (namespace, name) = match kind {
        "Namespace" => ("", pick(&NAMESPACES, place)),
        "Node" => ("", pick(&NODES, place)),
        "MutatingWebhookConfiguration" => ("", "tag"),
        _ => (pick(&NAMESPACES, place), pick(&NAMES, place / 3)),
    };
    let body = body(kind, dice);
    let map = |key: &str| -> BTreeMap<String, String> {
        let pairs = body["metadata"][key].as_object().cloned().unwrap_or_default();
        pairs.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect()
    };
    Arc::new(Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: i128::from(created % 3) * 1_000_000_000,
        labels: Arc::new(map("labels")),
        annotations: Arc::new(map("annotations")),
        body: body.into(),
        origin: "test".into(),
    })
}

fn mesh(die: u8) -> Value {
    [
        Value::Null,
        json!({"trustDomain": "td", "trustDomainAliases": ["old"]}),
        json!({"discoverySelectors": [{"matchLabels": {"mesh": "on"}}]}),
        json!({"defaultServiceExportTo": ["."], "defaultVirtualServiceExportTo": ["."], "defaultDestinationRuleExportTo": ["."], "connectTimeout": "1s"}),
        json!({"serviceEntryVisibility": {"applyToSidecars": true, "defaultVisibility": "NAMESPACE", "policies": [{"visibility": "PUBLIC", "matchingRules": [{"namespaceSelector": {"matchLabels": {"mesh": "on"}}}]}]}}),
    ][die as usize % 5]
        .clone()
}

fn networks(die: u8) -> Value {
    [
        Value::Null,
        json!({"networks": {"net-9": {"endpoints": [{"fromCidr": "10.0.0.2/32"}], "gateways": [{"address": "9.9.9.9", "port": 15443}]}}}),
        json!({"networks": {"net-8": {"endpoints": [{"fromRegistry": "Kubernetes"}], "gateways": [{"registryServiceName": "a.n1.svc.cluster.local", "port": 80}]}}}),
    ][die as usize % 3]
        .clone()
}

/// A step: objects to set, objects to delete, now and then another mesh or networks.
#[derive(Debug, Clone)]
struct Step {
    set: Vec<(u8, u8, u8, Dice)>,
    delete: Vec<(u8, u8)>,
    mesh: Option<u8>,
    networks: Option<u8>,
}

fn step() -> impl Strategy<Value = Step> {
    let set = prop::collection::vec((any::<u8>(), 0u8..9, any::<u8>(), any::<Dice>()), 0..5);
    let delete = prop::collection::vec((any::<u8>(), 0u8..9), 0..3);
    let rarely = || prop::option::weighted(0.08, any::<u8>());
    (set, delete, rarely(), rarely()).prop_map(|(set, delete, mesh, networks)| Step { set, delete, mesh, networks })
}

/// Every query that could be of interest in this small world.
fn live() -> Vec<Query> {
    let mut queries = Vec::new();
    let keys: Vec<String> = NAMESPACES
        .iter()
        .flat_map(|ns| {
            let own = NAMES.iter().map(move |name| format!("{ns}/{name}.{ns}.svc.cluster.local"));
            own.chain(HOSTS.iter().map(move |host| format!("{ns}/{host}")))
        })
        .collect();
    for key in &keys {
        queries.push(Query::new("service", [key]));
        queries.push(Query::new("service-accounts", [key]));
        queries.extend(["80", "90", "53", "1"].map(|port| Query::new("endpoints", [key, port])));
        queries.push(Query::new("has-ready-endpoints", [key, "80"]));
        queries.push(Query::new("has-ready-endpoints", [key, "80", "app=a"]));
    }
    for host in HOSTS.iter().copied().chain(["y.example.com", "b.n2.svc.cluster.local"]) {
        queries.push(Query::new("services-of-host", [host]));
        queries.push(Query::new("destination-rules-matching", [host]));
    }
    for group in NAMESPACES.iter().copied().chain(["*"]) {
        queries.extend(
            ["service-index", "services-in-namespace", "virtual-service-index", "namespace"]
                .map(|kind| Query::new(kind, [group])),
        );
    }
    for gateway in ["n1/gw", "n2/gw"] {
        queries.push(Query::new("gateway-virtual-service-namespaces", [gateway]));
        for group in NAMESPACES.iter().copied().chain(["*"]) {
            queries.push(Query::new("gateway-virtual-services", [gateway, group]));
        }
        queries.extend(["", "n1"].map(|source| Query::new("gateway-destinations", [gateway, source])));
    }
    for address in ADDRESSES.iter().copied().chain(["ep.example.com"]) {
        queries.extend(["targets-at", "workload-at"].map(|kind| Query::new(kind, [address])));
    }
    for namespace in NAMESPACES {
        queries.extend(NAMES.map(|name| Query::new("envoy-filter", [format!("{namespace}/{name}")])));
    }
    for kind in
        ["VirtualService", "DestinationRule", "EnvoyFilter", "Sidecar", "Gateway", "ServiceEntry", "WorkloadEntry"]
    {
        queries.push(Query::new("selector-namespaces", [kind]));
        for namespace in NAMESPACES {
            queries.push(Query::new("selectors", [kind, namespace]));
            queries.extend(NAMES.map(|name| Query::new("object", [kind, &format!("{namespace}/{name}")])));
        }
    }
    let none: [&str; 0] = [];
    queries.extend(
        [
            "service-index-namespaces",
            "virtual-service-index-namespaces",
            "virtual-service-gateways",
            "network-gateways",
            "network-ranges",
        ]
        .map(|kind| Query::new(kind, none)),
    );
    queries.extend(["trust_domain", "connect_timeout"].map(|field| Query::new("mesh-config", [field])));
    queries.push(Query::new("features", ["PILOT_HTTP10"]));
    queries.push(Query::new("setting", ["domain"]));
    queries
}

fn proxies() -> Vec<Proxy> {
    let node = |ip: &str, name: &str, namespace: &str| {
        let metadata = json!({"NAMESPACE": namespace, "LABELS": {"app": "b"}, "CLUSTER_ID": "Kubernetes"});
        let id = format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local");
        Proxy::from_node(&id, metadata.as_object().cloned().unwrap_or_default(), Default::default())
            .expect("the node is well-formed")
    };
    vec![node("10.0.0.1", "a", "n1"), node("10.0.0.2", "other", "n1"), node("10.0.0.3", "b", "n2")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48), ..ProptestConfig::default() })]
    #[test]
    fn changes_name_what_they_move(steps in prop::collection::vec(step(), 1..14), flags in any::<bool>()) {
        let unusual = [("PILOT_ENABLE_IP_AUTOALLOCATE", "false"), ("ISTIO_DUAL_STACK", "true"), ("RESOLVE_HOSTNAME_GATEWAYS", "false")];
        let given = unusual.into_iter().filter(|_| flags);
        let environment: BTreeMap<String, String> = given.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let live = live();
        let kinds: std::collections::BTreeSet<&str> = live.iter().map(|query| query.kind).collect();
        prop_assert!(QUERIES.iter().filter(|decl| !decl.about_proxy).all(|decl| kinds.contains(decl.kind)));
        let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        let (mut mesh_document, mut networks_document) = (Value::Null, Value::Null);
        let mut snapshot = FactsSnapshot::new(Inputs { environment: environment.clone(), ..Inputs::default() });
        for step in steps {
            let upserted: Vec<_> = step.set.iter().map(|(kind, place, created, dice)| object(pick(&KINDS, *kind), *place, *created, *dice)).collect();
            let deleted: Vec<_> = step.delete.iter().map(|(kind, place)| object(pick(&KINDS, *kind), *place, 0, [0; 8]).reference.clone()).collect();
            objects.extend(upserted.iter().map(|object| (object.reference.clone(), object.clone())));
            deleted.iter().for_each(|reference| drop(objects.remove(reference)));
            let change = Change { upserted, deleted, mesh: step.mesh.map(mesh), networks: step.networks.map(networks) };
            mesh_document = change.mesh.clone().unwrap_or(mesh_document);
            networks_document = change.networks.clone().unwrap_or(networks_document);
            let (next, affected) = snapshot.apply(&change);
            let unnamed = audit(&snapshot, &next, &affected, &live);
            prop_assert!(unnamed.is_empty(), "moved without being named: {:?}\nby {:#?}\nnamed {:?}", unnamed, change, affected);
            let fresh = FactsSnapshot::new(Inputs {
                objects: objects.values().rev().cloned().collect(),
                mesh: mesh_document.clone(),
                networks: networks_document.clone(),
                environment: environment.clone(),
                ..Inputs::default()
            });
            for query in &live {
                prop_assert_eq!(next.answer(query).value, fresh.answer(query).value, "{:?}", query);
            }
            for proxy in proxies() {
                prop_assert_eq!(next.refresh(&proxy), fresh.refresh(&proxy));
                let moved = snapshot.refresh(&proxy) != next.refresh(&proxy);
                let named = affected.iter().any(|change| change.covers_proxy(&proxy));
                prop_assert!(named || !moved, "{} moved without being named\nby {:#?}\nnamed {:?}", proxy.node_id, change, affected);
            }
            prop_assert_eq!(next.revision(), snapshot.revision() + 1);
            snapshot = next;
        }
    }
}
