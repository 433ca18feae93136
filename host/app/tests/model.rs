//! The model test: whatever happened before, every proxy is served what a control plane that just started would serve.
//!
//! Random creates, updates and deletes of every kind that stages read, other mesh configuration and networks, proxies that
//! come and go, memory given back now and then. After each step, byte for byte: the engine that took the change in, one that
//! did so on many threads, and one that started from nothing. And every known query whose answer moved was named.
//!
//! `TRYSAIL_MODEL_STEPS` says how many steps, `TRYSAIL_MODEL_SEED` where to begin; a failure prints both.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use trysail::pipeline::{self, Mode, Options};
use trysail::render::{self, Scripted};
use trysail_facts::{Change, FactsSnapshot, Inputs, audit};
use trysail_model::ids::type_urls;
use trysail_model::{Object, ObjectRef, Proxy, Snapshot, Translator};
use trysail_stages::guest::Guest;
use trysail_stages::{Engine, EngineTranslator};

const NAMESPACES: [&str; 3] = ["istio-system", "n1", "n2"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 2] = ["node-1", "node-2"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1"];
const VIRTUAL: [&str; 4] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.1"];
const HOSTS: [&str; 7] = [
    "a.n1.svc.cluster.local",
    "b.n1.svc.cluster.local",
    "a.n2.svc.cluster.local",
    "x.example.com",
    "y.example.com",
    "*.example.com",
    "*",
];
const EXPORTS: [&[&str]; 6] = [&[], &["*"], &["."], &["n1", "n2"], &["~"], &[]];

/// A kind that stands twice is met twice as often.
const KINDS: [&str; 20] = [
    "Namespace",
    "Node",
    "Pod",
    "Pod",
    "EndpointSlice",
    "EndpointSlice",
    "Service",
    "Service",
    "Service",
    "ServiceEntry",
    "WorkloadEntry",
    "VirtualService",
    "VirtualService",
    "DestinationRule",
    "DestinationRule",
    "Sidecar",
    "PeerAuthentication",
    "KubernetesGateway",
    "Gateway",
    "Gateway",
];

/// A small generator of numbers (splitmix64): the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("it is below a usize")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn of<const N: usize>(&mut self, list: [Value; N]) -> Value {
        list[self.below(N)].clone()
    }

    /// The value once in so many times, else null.
    fn maybe(&mut self, n: usize, value: Value) -> Value {
        if self.one_in(n) { value } else { Value::Null }
    }
}

/// A document without its fields that are null, as an API server would have it.
fn pruned(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, pruned(v))).collect(),
        Value::Array(list) => list.into_iter().map(pruned).collect(),
        other => other,
    }
}

fn labels(dice: &mut Dice) -> Value {
    pruned(json!({
        "app": dice.pick(&NAMES),
        "version": dice.pick(&["v1", "v2"]),
        "topology.istio.io/network": dice.maybe(5, json!("net-1")),
        "security.istio.io/tlsMode": dice.maybe(2, json!("istio")),
        "istio.io/rev": dice.maybe(12, json!("other")),
        "istio-locality": dice.maybe(5, json!("r1.z1")),
    }))
}

fn metadata(kind: &str, dice: &mut Dice) -> Value {
    match kind {
        "Namespace" => json!({
            "labels": dice.of([json!({"mesh": "on"}), json!({"topology.istio.io/network": "net-2"}), json!({"x": "y"})]),
            "annotations": {"networking.istio.io/traffic-distribution": dice.maybe(3, json!("PreferClose"))},
        }),
        "Node" => json!({"labels": {
            "topology.kubernetes.io/region": dice.pick(&["r1", "r2"]),
            "topology.kubernetes.io/zone": dice.maybe(2, json!("z1")),
        }}),
        "EndpointSlice" => json!({"labels": {"kubernetes.io/service-name": dice.pick(&NAMES)}}),
        "Service" => {
            let exports = dice.pick(&EXPORTS).join(",");
            json!({"labels": labels(dice), "annotations": {
                "networking.istio.io/exportTo": if exports.is_empty() { Value::Null } else { json!(exports) },
                "alpha.istio.io/kubernetes-serviceaccounts": dice.maybe(6, json!("extra")),
            }})
        }
        _ => json!({"labels": labels(dice)}),
    }
}

fn ports(dice: &mut Dice) -> Value {
    dice.of([
        json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]),
        json!([
            {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
            {"name": "tcp", "port": 90, "protocol": "TCP", "targetPort": 91},
        ]),
        json!([{"name": "x", "port": 80, "protocol": "TCP"}, {"name": "grpc-y", "port": 81, "protocol": "TCP"}]),
        json!([{"name": "https", "port": 443, "protocol": "TCP"}, {"name": "mongo", "port": 90, "protocol": "TCP"}]),
        json!([{"port": 53, "protocol": "UDP", "targetPort": 53}]),
    ])
}

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

fn virtual_service(dice: &mut Dice) -> Value {
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

fn traffic_policy(dice: &mut Dice) -> Value {
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

fn service(dice: &mut Dice) -> Value {
    let selector = json!({"app": dice.pick(&NAMES)});
    let selector = if dice.one_in(4) { Value::Null } else { selector };
    let mut spec =
        json!({"type": "ClusterIP", "clusterIP": dice.pick(&VIRTUAL), "ports": ports(dice), "selector": selector});
    match dice.below(8) {
        0 => return json!({"type": "ExternalName", "externalName": dice.pick(&HOSTS[..5]), "ports": ports(dice)}),
        1 => spec["clusterIP"] = json!("None"),
        2 => spec["publishNotReadyAddresses"] = json!(true),
        3 => spec["externalIPs"] = json!(["2.2.2.2"]),
        _ => {}
    }
    spec["clusterIPs"] = json!([spec["clusterIP"]]);
    spec
}

fn service_entry(dice: &mut Dice) -> Value {
    let mut spec = json!({
        "hosts": [dice.pick(&HOSTS[..6]), dice.pick(&HOSTS[..6])],
        "resolution": dice.pick(&["STATIC", "DNS", "NONE", "DNS_ROUND_ROBIN"]),
        "location": dice.pick(&["MESH_INTERNAL", "MESH_EXTERNAL"]),
        "exportTo": dice.pick(&EXPORTS),
        "ports": [
            {"number": 80, "name": "http", "protocol": "HTTP"},
            {"number": 90, "name": "tcp", "protocol": dice.pick(&["TCP", "TLS"]), "targetPort": 91},
        ],
    });
    let mut entry = || {
        let address = dice.pick(&["10.0.0.1", "10.0.0.2", "ep.example.com"]);
        json!({"address": address, "labels": {"app": dice.pick(&NAMES)}})
    };
    let entries = json!([entry(), entry()]);
    match dice.below(3) {
        0 => spec["workloadSelector"] = json!({"labels": {"app": dice.pick(&NAMES)}}),
        1 => spec["endpoints"] = entries,
        _ => spec["addresses"] = json!([dice.pick(&ADDRESSES)]),
    }
    spec
}

fn sidecar(dice: &mut Dice) -> Value {
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

fn gateway(dice: &mut Dice) -> Value {
    let servers: Vec<Value> = (0..1 + dice.below(3)).map(|i| gateway_server(i, dice)).collect();
    let app = json!({"app": dice.pick(&NAMES)});
    json!({"selector": dice.maybe(2, app), "servers": servers})
}

fn spec(kind: &str, dice: &mut Dice) -> Value {
    let (x, address) = (dice.pick(&NAMES), dice.pick(&ADDRESSES));
    match kind {
        "Pod" => json!({"serviceAccountName": x, "nodeName": dice.pick(&NODES), "containers": [{
            "ports": [{"name": dice.pick(&["web", "other"]), "containerPort": dice.pick(&[8080, 91, 80])}],
        }]}),
        "Service" => service(dice),
        "ServiceEntry" => service_entry(dice),
        "WorkloadEntry" => json!({
            "address": address,
            "labels": {"app": x},
            "serviceAccount": dice.maybe(2, json!(x)),
            "ports": dice.maybe(2, json!({"http": 7777})),
            "network": dice.maybe(3, json!("net-3")),
            "weight": dice.maybe(3, json!(5)),
        }),
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
        "PeerAuthentication" => {
            let mode = dice.pick(&["STRICT", "PERMISSIVE", "DISABLE"]);
            json!({
                "selector": dice.maybe(2, json!({"matchLabels": {"app": x}})),
                "mtls": dice.maybe(2, json!({"mode": mode})),
                "portLevelMtls": dice.maybe(4, json!({"8080": {"mode": "DISABLE"}})),
            })
        }
        "KubernetesGateway" => json!({
            "addresses": [{"type": "IPAddress", "value": address}], "listeners": [{"port": 15443, "tls": {}}],
        }),
        _ => Value::Null,
    }
}

fn slice_member(dice: &mut Dice) -> Value {
    let target = json!({"kind": "Pod", "namespace": dice.pick(&NAMESPACES), "name": dice.pick(&NAMES)});
    json!({
        "addresses": [dice.pick(&ADDRESSES)],
        "conditions": {"ready": !dice.one_in(5), "serving": true, "terminating": dice.one_in(8)},
        "targetRef": dice.maybe(2, target),
    })
}

fn body(kind: &str, dice: &mut Dice) -> Value {
    let mut body = json!({"metadata": metadata(kind, dice), "spec": spec(kind, dice)});
    let address = dice.pick(&ADDRESSES);
    match kind {
        "Pod" => {
            body["status"] = json!({
                "phase": dice.pick(&["Running", "Running", "Running", "Succeeded", "Failed"]),
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": dice.pick(&["True", "False"])}],
            });
        }
        "Node" => {
            body["status"] = json!({"addresses": [{"type": "ExternalIP", "address": dice.pick(&["1.1.1.1", ""])}]})
        }
        "EndpointSlice" => {
            body["addressType"] = json!("IPv4");
            body["endpoints"] = (0..dice.below(4)).map(|_| slice_member(dice)).collect();
            body["ports"] = dice.of([
                json!([
                    {"name": "http", "port": 8080, "protocol": "TCP"},
                    {"name": "tcp", "port": 91, "protocol": "TCP"},
                ]),
                json!([{"name": "http", "port": 8081, "protocol": "TCP"}]),
            ]);
        }
        _ => {}
    }
    pruned(body)
}

fn object(dice: &mut Dice) -> Arc<Object> {
    let kind = dice.pick(&KINDS);
    let reference = match kind {
        "Namespace" => ObjectRef::new(kind, "", dice.pick(&NAMESPACES)),
        "Node" => ObjectRef::new(kind, "", dice.pick(&NODES)),
        _ => ObjectRef::new(kind, dice.pick(&NAMESPACES), dice.pick(&NAMES)),
    };
    let body = body(kind, dice);
    let map = |key: &str| -> BTreeMap<String, String> {
        let pairs = body["metadata"][key].as_object().cloned().unwrap_or_default();
        pairs.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect()
    };
    Arc::new(Object {
        reference,
        api_version: "v1".into(),
        creation_nanos: i128::from(dice.next() % 3) * 1_000_000_000,
        labels: map("labels"),
        annotations: map("annotations"),
        body: Arc::new(body),
        origin: "model".into(),
    })
}

fn mesh(dice: &mut Dice) -> Value {
    dice.of([
        Value::Null,
        Value::Null,
        json!({"trustDomain": "td", "trustDomainAliases": ["old"]}),
        json!({"discoverySelectors": [{"matchLabels": {"mesh": "on"}}]}),
        json!({"defaultServiceExportTo": ["."], "defaultVirtualServiceExportTo": ["."], "connectTimeout": "1s"}),
        json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "accessLogFile": "/dev/stdout"}),
        json!({"enableAutoMtls": false, "protocolDetectionTimeout": "5s"}),
        json!({"defaultConfig": {"interceptionMode": "TPROXY"}, "defaultHttpRetryPolicy": {"attempts": 5}}),
    ])
}

fn networks(dice: &mut Dice) -> Value {
    let gateway = json!({"address": "9.9.9.9", "port": 15443});
    let registered = json!({"registryServiceName": "a.n1.svc.cluster.local", "port": 80});
    dice.of([
        Value::Null,
        json!({"networks": {"net-9": {"endpoints": [{"fromCidr": "10.0.0.2/32"}], "gateways": [gateway]}}}),
        json!({"networks": {"net-8": {"endpoints": [{"fromRegistry": "Kubernetes"}], "gateways": [registered]}}}),
    ])
}

fn proxy(dice: &mut Dice) -> Scripted {
    let (address, name, namespace) = (dice.pick(&ADDRESSES), dice.pick(&NAMES), dice.pick(&NAMESPACES));
    let interception = dice.pick(&["NONE", "TPROXY"]);
    let metadata = pruned(json!({
        "NAMESPACE": namespace,
        "LABELS": labels(dice),
        "CLUSTER_ID": "Kubernetes",
        "ISTIO_VERSION": dice.pick(&["1.31.0", "1.26.2"]),
        "SERVICE_ACCOUNT": name,
        "INTERCEPTION_MODE": dice.maybe(3, json!(interception)),
        "NETWORK": dice.maybe(4, json!("net-1")),
        "DNS_CAPTURE": dice.maybe(4, json!("true")),
    }));
    let kind = dice.pick(&["sidecar", "sidecar", "router"]);
    let node = format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local");
    let locality = [dice.pick(&["", "r1"]).to_owned(), String::new(), String::new()];
    let proxy = Proxy::from_node(&node, metadata.as_object().cloned().expect("it is an object"), locality);
    Scripted { name: node, ..Scripted::plain(proxy.expect("the node is well-formed")) }
}

fn introduced(scripted: &Scripted) -> &Proxy {
    scripted.proxy.as_ref().expect("the node is well-formed")
}

/// All that a proxy is served, by type and name.
type Resources = BTreeMap<(&'static str, String), Vec<u8>>;

fn served(engine: &Arc<Engine>, scripted: &Scripted) -> (Resources, Vec<String>) {
    let all = render::views(engine, scripted, introduced(scripted));
    let mut resources = Resources::new();
    for (short, view) in &all.views {
        for resource in &view.resources {
            resources.insert((*short, resource.name.to_string()), resource.body.to_bytes().to_vec());
        }
    }
    (resources, all.faults)
}

/// The first resource that differs, for a person.
fn difference(here: &Resources, cold: &Resources) -> String {
    let printed = |key: &(&str, String), all: &Resources| {
        let url =
            type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(key.0)).unwrap_or_default();
        all.get(key).map_or("nothing".to_owned(), |bytes| match trysail_codec::json::to_json(url, bytes) {
            Ok(json) => format!("{json:#}"),
            Err(error) => format!("unreadable: {error}"),
        })
    };
    let key = here.keys().chain(cold.keys()).find(|key| here.get(*key) != cold.get(*key));
    key.map_or("none".to_owned(), |key| format!("{key:?}\nhere: {}\ncold: {}", printed(key, here), printed(key, cold)))
}

/// The world, and the engines that followed it.
struct Model<'a> {
    options: &'a Options,
    stages: &'a [Arc<dyn Guest>],
    dice: Dice,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    mesh: Value,
    networks: Value,
    proxies: Vec<Scripted>,
    snapshot: FactsSnapshot,
    /// Asked from one thread, and from several at once.
    engines: [Arc<Engine>; 2],
    n_resources: usize,
}

impl<'a> Model<'a> {
    fn new(options: &'a Options, stages: &'a [Arc<dyn Guest>], seed: u64) -> Self {
        let snapshot = FactsSnapshot::new(Inputs::default());
        let engine = || pipeline::engine(options, stages.to_vec(), Arc::new(snapshot.clone()));
        Model {
            options,
            stages,
            dice: Dice(seed),
            objects: BTreeMap::new(),
            mesh: Value::Null,
            networks: Value::Null,
            proxies: Vec::new(),
            engines: [engine(), engine()],
            snapshot,
            n_resources: 0,
        }
    }

    fn change(&mut self) -> Change {
        let dice = &mut self.dice;
        let mut change = Change::default();
        for _ in 0..dice.below(4) {
            change.upserted.push(object(dice));
        }
        // The more there are, the more go.
        for _ in 0..dice.below(3) {
            let at = dice.below(self.objects.len().max(40));
            change.deleted.extend(self.objects.keys().nth(at).cloned());
        }
        if dice.one_in(15) {
            change.mesh = Some(mesh(dice));
        }
        if dice.one_in(25) {
            change.networks = Some(networks(dice));
        }
        change
    }

    /// Proxies come and go; one that comes back may introduce itself otherwise.
    fn connections(&mut self) {
        if self.dice.one_in(4) && !self.proxies.is_empty() {
            let at = self.dice.below(self.proxies.len());
            let gone = self.proxies.swap_remove(at);
            self.engines.iter().for_each(|engine| EngineTranslator(engine.clone()).forget(introduced(&gone)));
        }
        if self.proxies.len() < 2 || (self.dice.one_in(3) && self.proxies.len() < 5) {
            let new = proxy(&mut self.dice);
            self.proxies.retain(|old| old.name != new.name);
            self.proxies.push(new);
        }
    }

    fn step(&mut self) {
        let change = self.change();
        self.objects.extend(change.upserted.iter().map(|object| (object.reference.clone(), object.clone())));
        change.deleted.iter().for_each(|gone| drop(self.objects.remove(gone)));
        if let Some(mesh) = &change.mesh {
            self.mesh = mesh.clone();
        }
        if let Some(networks) = &change.networks {
            self.networks = networks.clone();
        }
        let (next, affected) = self.snapshot.apply(&change);
        let live = self.engines[0].live_queries();
        let unnamed = audit(&self.snapshot, &next, &affected, &live);
        assert!(unnamed.is_empty(), "moved without being named: {unnamed:?}\nby {change:#?}\nnamed: {affected:?}");
        for engine in &self.engines {
            engine.advance(Arc::new(next.clone()), &affected);
        }
        self.snapshot = next;
        self.connections();
        if self.dice.one_in(7) {
            let spare = self.dice.below(5);
            for engine in &self.engines {
                engine.collect(spare);
            }
        }
        self.compare(&change);
    }

    /// What the threads of the second engine are served.
    fn in_parallel(&self) -> Vec<(Resources, Vec<String>)> {
        std::thread::scope(|scope| {
            let engine = &self.engines[1];
            let serve = |scripted| {
                let thread = std::thread::Builder::new().stack_size(trysail_stages::STACK);
                thread.spawn_scoped(scope, move || served(engine, scripted)).expect("a thread starts")
            };
            let threads: Vec<_> = self.proxies.iter().map(serve).collect();
            threads.into_iter().map(|thread| thread.join().expect("nothing panics")).collect()
        })
    }

    fn compare(&mut self, change: &Change) {
        let cold = FactsSnapshot::new(Inputs {
            objects: self.objects.values().rev().cloned().collect(),
            mesh: self.mesh.clone(),
            networks: self.networks.clone(),
            ..Inputs::default()
        });
        for query in self.engines[0].live_queries() {
            let (here, there) = (self.snapshot.answer(&query), cold.answer(&query));
            assert!(here.value == there.value, "{query} is answered {here:?}, and {there:?} after a cold start");
        }
        let cold = pipeline::engine(self.options, self.stages.to_vec(), Arc::new(cold));
        let in_parallel = self.in_parallel();
        for (scripted, in_parallel) in self.proxies.iter().zip(in_parallel) {
            let (here, (fresh, _)) = (served(&self.engines[0], scripted), served(&cold, scripted));
            for (how, (resources, faults)) in [("the engine", &here), ("the engine on threads", &in_parallel)] {
                let name = &scripted.name;
                assert!(faults.is_empty(), "{how}: {name}: {faults:#?}\nafter {change:#?}");
                let found = difference(resources, &fresh);
                assert!(*resources == fresh, "{how} serves {name} other than a cold start: {found}\nafter {change:#?}");
            }
            self.n_resources += fresh.len();
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("it is a number"))
}

/// Says where to begin again, when a step panics.
struct Announce {
    seed: u64,
    step: u64,
}

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, steps) = (self.seed, self.step + 1);
            eprintln!("failed at step {steps}: TRYSAIL_MODEL_SEED={seed} TRYSAIL_MODEL_STEPS={steps}");
        }
    }
}

/// Steps of one world: a failure is near a beginning.
const WORLD: u64 = 100;

fn run(options: &Options, seed: u64, steps: u64) {
    let stages = pipeline::stages(options).expect("the stages load");
    let walk = || {
        let mut n_resources = 0;
        for first in (0..steps).step_by(100) {
            let mut announce = Announce { seed: seed + first / WORLD, step: 0 };
            let mut model = Model::new(options, &stages, announce.seed);
            for step in 0..WORLD.min(steps - first) {
                announce.step = step;
                model.step();
            }
            n_resources += model.n_resources;
        }
        assert!(n_resources > 0, "there was something to compare");
        println!("{steps} steps from seed {seed}: {n_resources} resources compared");
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("model".into()).stack_size(trysail_stages::STACK);
        let walked = thread.spawn_scoped(scope, walk).expect("a thread starts").join();
        walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn every_state_is_served_as_after_a_cold_start() {
    let options = Options { mode: Mode::Native, audit_share: 0.0, ..Options::default() };
    run(&options, number("TRYSAIL_MODEL_SEED", 1), number("TRYSAIL_MODEL_STEPS", 600));
}

#[cfg(feature = "components")]
#[test]
fn the_same_in_the_sandbox() {
    let options = Options { mode: Mode::Sandboxed, audit_share: 1.0, ..Options::default() };
    run(&options, number("TRYSAIL_MODEL_SEED", 1), number("TRYSAIL_MODEL_STEPS", 600).min(20));
}
