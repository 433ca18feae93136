//! Meshes of a given size, the same in each run: services in namespaces, pods behind them, and their sidecars.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use trysail::explain::proxy_of;
use trysail::render::{self, Scripted};
use trysail_facts::Inputs;
use trysail_model::ids::type_urls;
use trysail_model::{Object, ObjectRef, Proxy, TypeUrl, Watched};
use trysail_stages::Engine;

/// How large a mesh is.
#[derive(Clone, Copy)]
pub struct Size {
    /// Services, spread over the namespaces.
    pub services: usize,
    /// Services with another port than 80, each with one of its own.
    pub other_ports: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Pods of each service; each is a workload of its own.
    pub pods: usize,
    /// Every so many services have a VirtualService and a DestinationRule with two subsets; 0 for none.
    pub rules_every: usize,
}

impl Size {
    /// A mesh of a pod a service, with rules for one in ten.
    pub const fn of(services: usize) -> Size {
        Size { services, other_ports: 10, namespaces: 50, pods: 1, rules_every: 10 }
    }
}

/// Name and namespace of a service.
pub fn name(size: Size, i: usize) -> (String, String) {
    (format!("service-{i}"), format!("namespace-{}", i % size.namespaces))
}

fn object(kind: &str, (name, namespace): &(String, String), body: Value) -> Arc<Object> {
    let labels: BTreeMap<String, String> = body["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    Arc::new(Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::new(labels),
        annotations: Arc::default(),
        body: body.into(),
        origin: "generated".into(),
    })
}

fn address(network: u8, i: usize) -> String {
    format!("10.{network}.{}.{}", i / 250, i % 250 + 1)
}

fn port(size: Size, i: usize) -> usize {
    if i < size.other_ports { 9000 + i } else { 80 }
}

/// The slice of a service; `spare` adds an address that no pod has.
pub fn slice(size: Size, i: usize, spare: bool) -> Arc<Object> {
    let (name, namespace) = name(size, i);
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let mut endpoints: Vec<Value> = (0..size.pods)
        .map(|pod| {
            let target = json!({"kind": "Pod", "namespace": namespace, "name": format!("{name}-{pod}")});
            json!({"addresses": [address(64, i * size.pods + pod)], "conditions": ready, "targetRef": target})
        })
        .collect();
    if spare {
        endpoints.push(json!({"addresses": ["10.200.0.1"], "conditions": ready}));
    }
    let body = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    object("EndpointSlice", &(format!("{name}-1"), namespace), body)
}

/// The VirtualService of a service, with a timeout.
pub fn virtual_service(size: Size, i: usize, timeout: &str) -> Arc<Object> {
    let at = name(size, i);
    let route = json!([{"destination": {"host": at.0, "subset": "v1"}}]);
    let spec = json!({"hosts": [at.0], "http": [{"route": route, "timeout": timeout}]});
    object("VirtualService", &at, json!({"metadata": {}, "spec": spec}))
}

/// All objects of a mesh.
pub fn objects(size: Size) -> Vec<Arc<Object>> {
    let mut all = Vec::new();
    for namespace in 0..size.namespaces {
        let at = (format!("namespace-{namespace}"), String::new());
        all.push(object("Namespace", &at, json!({"metadata": {}})));
    }
    for i in 0..size.services {
        let at = name(size, i);
        let cluster_ip = address(96, i);
        let port = json!({"name": "http", "port": port(size, i), "targetPort": 8080, "protocol": "TCP"});
        let spec = json!({
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "selector": {"app": at.0}, "ports": [port],
        });
        all.push(object("Service", &at, json!({"metadata": {}, "spec": spec})));
        all.push(slice(size, i, false));
        for pod in 0..size.pods {
            let ip = address(64, i * size.pods + pod);
            let labels = json!({"app": at.0, "version": "v1", "security.istio.io/tlsMode": "istio"});
            let body = json!({
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": at.0, "containers": [{"ports": [{"containerPort": 8080}]}]},
                "status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            });
            all.push(object("Pod", &(format!("{}-{pod}", at.0), at.1.clone()), body));
        }
        if size.rules_every > 0 && i % size.rules_every == 0 {
            all.push(virtual_service(size, i, "3s"));
            let subset = |version: &str| json!({"name": version, "labels": {"version": version}});
            let spec = json!({"host": at.0, "subsets": [subset("v1"), subset("v2")]});
            all.push(object("DestinationRule", &at, json!({"metadata": {}, "spec": spec})));
        }
    }
    all
}

/// A mesh as the facts take it.
pub fn inputs(size: Size) -> Inputs {
    Inputs { objects: objects(size), ..Inputs::default() }
}

/// The sidecars of a mesh's pods.
pub fn sidecars(inputs: &Inputs) -> Vec<Proxy> {
    let pods = inputs.objects.iter().filter(|object| &*object.reference.kind == "Pod");
    pods.map(|pod| proxy_of(pod).expect("generated pods have an address")).collect()
}

/// What a proxy asks for.
pub fn scripted(proxy: &Proxy) -> Scripted {
    Scripted::plain(proxy.clone())
}

/// What a proxy subscribes to once it was served, with equal sets of names shared.
pub struct Subscriptions {
    known: BTreeSet<Arc<BTreeSet<trysail_model::ResourceName>>>,
}

impl Subscriptions {
    /// None yet.
    pub fn new() -> Self {
        Subscriptions { known: BTreeSet::new() }
    }

    /// Serves a proxy for the first time and returns what it watches from then on.
    pub fn connect(&mut self, engine: &Arc<Engine>, proxy: &Proxy) -> Vec<(TypeUrl, Watched)> {
        let all = render::views(engine, &scripted(proxy), proxy);
        assert!(all.faults.is_empty(), "{:?}", all.faults);
        let mut wanted = Vec::new();
        for (short, view) in &all.views {
            let type_url = type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(*short));
            let type_url = TypeUrl::from(type_url.expect("every served type has a short name"));
            let watched = match *short {
                "cds" | "lds" => Watched::Wildcard,
                _ => {
                    let names = Arc::new(view.resources.iter().map(|resource| resource.name.clone()).collect());
                    let shared = self.known.get(&names).cloned();
                    Watched::Names(shared.unwrap_or_else(|| {
                        self.known.insert(Arc::clone(&names));
                        names
                    }))
                }
            };
            wanted.push((type_url, watched));
        }
        wanted
    }
}
