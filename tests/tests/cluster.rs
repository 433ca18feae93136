//! A Kubernetes cluster as the source, against the real kube-apiserver: the same objects give the same bytes as in a folder,
//! whatever happens to watches on the way.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, mpsc};
use trysail::pipeline::{self, Mode, Options};
use trysail::{explain, render};
use trysail_discovery::{Config, Folder, Status, Update, kinds, load_folder};
use trysail_facts::FactsSnapshot;
use trysail_kube::ClusterSource;
use trysail_model::{Object, ObjectRef};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::{aloud, eventually, kube as documents, workspace};

#[path = "support/definitions.rs"]
mod definitions;

const PATIENCE: Duration = Duration::from_secs(60);

/// One server for the tests that keep to namespaces of their own.
async fn shared() -> &'static ApiServer {
    static SERVER: OnceCell<ApiServer> = OnceCell::const_new();
    let start = || async {
        let server = ApiServer::start(cluster::Config::default(), aloud).await?;
        server.client().await?.define(&definitions::all()).await?;
        Ok::<_, anyhow::Error>(server)
    };
    SERVER.get_or_try_init(start).await.unwrap()
}

/// What a source says there is.
struct Mirror {
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    settings: trysail_discovery::Settings,
    status: Arc<Status>,
    updates_rx: mpsc::UnboundedReceiver<Update>,
    source: ClusterSource,
}

impl Mirror {
    async fn start(server: &ApiServer, namespace: &str, revision: &str) -> Mirror {
        let reads =
            pipeline::READ_KINDS.iter().chain(&["Secret", "AuthorizationPolicy"]).map(|kind| (*kind).to_owned());
        let objects = Config {
            read_kinds: Some(reads.collect()),
            system_namespace: namespace.to_owned(),
            revision: revision.to_owned(),
            shared_mesh_config: Some("shared".into()),
            ..Config::default()
        };
        let connection = trysail_kube::Connection { kubeconfig: Some(server.kubeconfig()), ..Default::default() };
        let client = trysail_kube::connect(&connection).await.unwrap();
        let (updates_tx, updates_rx) = mpsc::unbounded_channel();
        let config = trysail_kube::Config { objects, page: 7, ..trysail_kube::Config::default() };
        let source = ClusterSource::start(client, config, updates_tx);
        let mut mirror = Mirror {
            objects: BTreeMap::new(),
            settings: Default::default(),
            status: Arc::default(),
            updates_rx,
            source,
        };
        let first = mirror.next(PATIENCE).await.expect("the first state");
        assert!(first.initial && first.updated.is_empty() && first.deleted.is_empty());
        mirror
    }

    async fn next(&mut self, patience: Duration) -> Option<Update> {
        let update = tokio::time::timeout(patience, self.updates_rx.recv()).await.ok()??;
        for object in update.added.iter().chain(&update.updated) {
            self.objects.insert(object.reference.clone(), object.clone());
        }
        for reference in &update.deleted {
            assert!(self.objects.remove(reference).is_some(), "{reference} was not there");
        }
        self.settings = update.settings.clone();
        self.status = update.status.clone();
        Some(update)
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Mirror) -> bool) {
        while !is_so(self) {
            assert!(self.next(PATIENCE).await.is_some(), "{what}: never; {:?}", self.status);
        }
    }

    fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&ObjectRef::new(kind, namespace, name))
    }

    fn folder(&self) -> Folder {
        let objects = self.objects.values().cloned().collect();
        Folder { objects, settings: self.settings.clone(), status: Status::default() }
    }
}

/// All resources of all pods' proxies, with the hash of their bytes.
fn rendered(folder: &Folder) -> BTreeMap<String, String> {
    let options = Options { mode: Mode::Native, audit_share: 0.0, ..Options::default() };
    let engine = pipeline::engine(
        &options,
        pipeline::stages(&options).unwrap(),
        Arc::new(FactsSnapshot::new(render::inputs(folder))),
    );
    let mut all = BTreeMap::new();
    for pod in folder.objects.iter().filter(|object| &*object.reference.kind == "Pod") {
        // The API server keeps failed ones from us, and they have no proxy.
        let Ok(proxy) = explain::proxy_of(pod) else { continue };
        if pod.status()["phase"] == "Failed" {
            continue;
        }
        let views = render::views(&engine, &render::Scripted::plain(proxy.clone()), &proxy);
        assert!(views.faults.is_empty(), "{:?}", views.faults);
        for (kind, view) in views.views {
            for resource in &view.resources {
                all.insert(
                    format!("{} {kind} {}", proxy.id, resource.name.as_str()),
                    format!("{:?}", resource.version),
                );
            }
        }
    }
    all
}

fn on_a_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(trysail_stages::STACK);
        builder.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

/// Kinds that are dumped to a folder, with the version that the control plane reads.
fn dumped() -> impl Iterator<Item = (String, &'static kinds::Kind)> {
    let read = kinds::all().filter(|kind| pipeline::READ_KINDS.contains(&kind.name));
    read.map(|kind| {
        (
            if kind.group.is_empty() {
                kind.versions[0].into()
            } else {
                format!("{}/{}", kind.group, kind.versions[0])
            },
            kind,
        )
    })
}

async fn dump(client: &Cluster, folder: &std::path::Path) {
    for (api_version, kind) in dumped() {
        let all = client.list(&api_version, kind.document_kind).await.unwrap();
        std::fs::write(
            folder.join(format!("{}.json", kind.name)),
            json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string(),
        )
        .unwrap();
    }
}

/// One server for what must be the only thing on it, or does it harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_its_own() {
    let config = cluster::Config { rights: cluster::Rights::All, ..Default::default() };
    let server = ApiServer::start(config, aloud).await.unwrap();
    let client = server.client().await.unwrap();
    definitions_may_come_later_and_go(&server, &client).await;
    the_same_objects_give_the_same_bytes_as_in_a_folder(&server, &client).await;
    a_server_that_goes_and_comes_back_is_no_step_back(&server, &client).await;
}

async fn the_same_objects_give_the_same_bytes_as_in_a_folder(server: &ApiServer, client: &Cluster) {
    // As it stands in the repository: nothing in it depends on what only a cluster says.
    let example = workspace().join("examples/frontend-backend");
    client.apply(&documents::objects(&example).unwrap()).await.unwrap();
    let mut mirror = Mirror::start(server, "istio-system", "default").await;
    // Every cluster has this one.
    mirror.objects.remove(&ObjectRef::new("Service", "default", "kubernetes"));
    let folder = load_folder(&example, &Config::scenario()).unwrap();
    let (want, got) = on_a_big_stack(|| (rendered(&folder), rendered(&mirror.folder())));
    assert!(want.len() > 20, "{} resources", want.len());
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    for (name, version) in &want {
        assert_eq!(got.get(name), Some(version), "{name}");
    }
    drop(mirror);

    // A richer mesh, dumped from the server as `kubectl get -o json` does.
    client.apply(&documents::objects(&workspace().join("examples/gateway")).unwrap()).await.unwrap();
    client.apply(&rich()).await.unwrap();
    let mirror = Mirror::start(server, "istio-system", "default").await;
    let copy = tempfile::tempdir().unwrap();
    dump(client, copy.path()).await;
    let folder = load_folder(copy.path(), &Config { read_kinds: None, ..Config::default() }).unwrap();
    assert_eq!(folder.status.rejections, []);
    assert_eq!(folder.settings.mesh, mirror.settings.mesh);
    let (want, got) = on_a_big_stack(|| (rendered(&folder), rendered(&mirror.folder())));
    assert!(want.len() > 100, "{} resources", want.len());
    for (name, version) in &want {
        assert_eq!(got.get(name), Some(version), "{name}");
    }
    assert_eq!(want.len(), got.len());
}

/// One of each thing that a cluster says differently from a folder: ages, states of pods, nodes, networks, owners, settings.
fn rich() -> Vec<Value> {
    let pod = |name: &str, ip: &str, more: Value| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "rich", "name": name, "labels": {"app": "web", "security.istio.io/tlsMode": "istio"}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "web",
                "containers": [{"name": "web", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
        });
        merge(&mut pod, &more);
        pod
    };
    let endpoint = |ip: &str, pod: &str, ready: bool, terminating: bool| {
        json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready || terminating, "terminating": terminating},
            "targetRef": {"kind": "Pod", "namespace": "rich", "name": pod}, "nodeName": "node-1", "zone": "z"})
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system", "labels": {"topology.istio.io/network": "net-1"}}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
            "data": {"mesh": "trustDomain: rich.example\ndefaultConfig:\n  concurrency: 3\n", "meshNetworks": "networks: {}\n"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1",
            "labels": {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "rich", "name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "rich", "name": "headless"},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "tcp", "port": 9000}]}}),
        pod(
            "web-1",
            "10.1.0.1",
            json!({"metadata": {"generateName": "web-abc-",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "u", "controller": true}],
            "labels": {"pod-template-hash": "abc", "service.istio.io/canonical-name": "shop"}}}),
        ),
        pod("web-2", "10.1.0.2", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
        pod(
            "web-3",
            "10.1.0.3",
            json!({"metadata": {"labels": {"topology.istio.io/network": "net-2", "istio-locality": "q.p.o"}}}),
        ),
        pod("host", "10.2.0.1", json!({"spec": {"hostNetwork": true}})),
        // Over, with an address that another pod has by now.
        pod("over", "10.1.0.1", json!({"status": {"phase": "Succeeded"}})),
        pod("failed", "10.1.0.3", json!({"status": {"phase": "Failed"}})),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "rich", "name": "web-a", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [endpoint("10.1.0.1", "web-1", true, false), endpoint("10.1.0.2", "web-2", false, false),
                endpoint("10.1.0.3", "web-3", false, true), endpoint("10.2.0.1", "host", true, false),
                endpoint("10.1.0.9", "not-there-yet", true, false)]}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "rich", "name": "headless-a", "labels": {"kubernetes.io/service-name": "headless"}},
            "ports": [{"name": "tcp", "port": 9000, "protocol": "TCP"}], "endpoints": [endpoint("10.1.0.1", "web-1", true, false)]}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"namespace": "rich", "name": "web"},
            "spec": {"host": "web", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}, "subsets": [{"name": "s", "labels": {"app": "web"}}]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "rich", "name": "web"},
            "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web", "subset": "s"}}], "timeout": "3s"}]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"namespace": "rich", "name": "out"},
            "spec": {"hosts": ["out.example"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"namespace": "rich", "name": "vm"},
            "spec": {"address": "10.3.0.1", "labels": {"app": "web"}}}),
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"namespace": "rich", "name": "default"},
            "spec": {"mtls": {"mode": "STRICT"}}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"namespace": "rich", "name": "web-3"},
            "spec": {"workloadSelector": {"labels": {"topology.istio.io/network": "net-2"}}, "egress": [{"hosts": ["./*"]}]}}),
    ]
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (field, value) in more {
                merge(into.entry(field).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

fn virtual_service(namespace: &str, name: &str, host: &str) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": namespace, "name": name},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]}})
}

fn key(namespace: &'static str, name: &'static str) -> [&'static str; 4] {
    ["networking.istio.io/v1", "VirtualService", namespace, name]
}

async fn a_server_that_goes_and_comes_back_is_no_step_back(server: &ApiServer, client: &Cluster) {
    client
        .apply(&[
            virtual_service("gone", "stays", "a"),
            virtual_service("gone", "goes", "a"),
            virtual_service("gone", "moves", "a"),
        ])
        .await
        .unwrap();
    let mut mirror = Mirror::start(server, "istio-system", "default").await;
    assert_eq!(
        mirror.objects.values().filter(|object| &*object.reference.namespace == "gone").count(),
        3 + config_maps(&mirror)
    );

    server.cut();
    mirror.until("the failure is said", |mirror| mirror.status.unreadable.is_some()).await;
    assert!(mirror.get("VirtualService", "gone", "goes").is_some(), "what is served stays");
    server.resume().await.unwrap();
    client.merge(key("gone", "moves"), &json!({"spec": {"hosts": ["b"]}})).await.unwrap();
    client.delete(key("gone", "goes")).await.unwrap();
    client.apply(&[virtual_service("gone", "comes", "c")]).await.unwrap();
    mirror
        .until("it catches up", |mirror| {
            let host =
                |name: &str| mirror.get("VirtualService", "gone", name).map(|object| object.spec()["hosts"][0].clone());
            host("goes").is_none() && host("moves") == Some(json!("b")) && host("comes").is_some()
        })
        .await;
    mirror.until("all is well again", |mirror| mirror.status.unreadable.is_none()).await;
    assert!(mirror.get("VirtualService", "gone", "stays").is_some());
    assert!(mirror.source.progress().borrow().waiting.is_empty());
}

/// ConfigMaps that the server itself puts into a namespace.
fn config_maps(mirror: &Mirror) -> usize {
    mirror.objects.keys().filter(|key| &*key.kind == "ConfigMap" && &*key.namespace == "gone").count()
}

async fn definitions_may_come_later_and_go(server: &ApiServer, client: &Cluster) {
    let mut mirror = Mirror::start(server, "istio-system", "default").await;
    assert!(!mirror.objects.keys().any(|key| &*key.kind == "VirtualService"));
    client.define(&definitions::all()).await.unwrap();
    client.apply(&[virtual_service("later", "a", "a")]).await.unwrap();
    mirror.until("it is seen", |mirror| mirror.get("VirtualService", "later", "a").is_some()).await;
    let definition = ["apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "virtualservices.networking.istio.io"];
    client.delete(definition).await.unwrap();
    mirror.until("it is gone", |mirror| mirror.get("VirtualService", "later", "a").is_none()).await;
    eventually("the definition is gone", PATIENCE, || async {
        match client.get(definition).await? {
            Some(_) => bail!("still there"),
            None => Ok(()),
        }
    })
    .await
    .unwrap();
    client.define(&definitions::all()).await.unwrap();
    client.apply(&[virtual_service("later", "b", "b")]).await.unwrap();
    mirror.until("it is seen again", |mirror| mirror.get("VirtualService", "later", "b").is_some()).await;
    client.delete(key("later", "b")).await.unwrap();
    mirror.until("it is gone again", |mirror| mirror.get("VirtualService", "later", "b").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_read_live_and_a_bad_one_leaves_the_good_one() -> Result<()> {
    let client = shared().await.client().await?;
    let map = |name: &str, mesh: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "settings", "name": name}, "data": {"mesh": mesh}});
    client.apply(&[map("istio-canary", "trustDomain: one"), map("istio", "trustDomain: not-mine")]).await?;
    let mut mirror = Mirror::start(shared().await, "settings", "canary").await;
    let trust_domain = |mirror: &Mirror| {
        mirror.settings.mesh.as_ref().and_then(|mesh| mesh["trustDomain"].as_str().map(str::to_owned))
    };
    assert_eq!(trust_domain(&mirror).as_deref(), Some("one"));
    client.apply(&[map("istio-canary", "trustDomain: [")]).await?;
    mirror.until("the bad one is said", |mirror| !mirror.status.rejections.is_empty()).await;
    assert_eq!(trust_domain(&mirror).as_deref(), Some("one"), "the good one stays");
    let said = mirror.status.rejections[0].to_string();
    assert!(said.contains("MeshConfig settings/istio-canary") && said.contains("data[mesh]"), "{said}");
    client
        .apply(&[map("istio-canary", "trustDomain: two"), map("shared", "rootNamespace: root\ntrustDomain: shared")])
        .await?;
    mirror.until("it is mended", |mirror| trust_domain(mirror).as_deref() == Some("two")).await;
    mirror
        .until("the shared one lies under it", |mirror| {
            mirror.settings.mesh.as_ref().is_some_and(|mesh| mesh["rootNamespace"] == "root")
        })
        .await;
    assert_eq!(trust_domain(&mirror).as_deref(), Some("two"));
    assert_eq!(mirror.status.rejections, []);
    client.delete(["v1", "ConfigMap", "settings", "istio-canary"]).await?;
    mirror.until("the shared one alone", |mirror| trust_domain(mirror).as_deref() == Some("shared")).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_without_the_right_to_watch_are_said_and_never_half_a_mesh() {
    let server = shared().await;
    let rule = |groups: &[&str], resources: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": ["get", "list", "watch"]});
    let client = server.client().await.unwrap();
    let role = |rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "half"}, "rules": rules});
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "half", "name": "half"}});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "half"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "half"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "half", "name": "half"}]});
    client.apply(&[role(json!([rule(&["*"], &["*"])]))]).await.unwrap();
    client.apply(&[account, binding]).await.unwrap();
    let token = client.token("half", "half", "https://kubernetes.default.svc").await.unwrap();
    let kubeconfig = server.kubeconfig_file("half", &token).unwrap();
    // Everything but pods.
    client
        .apply(&[role(json!([
            rule(
                &[
                    "networking.istio.io",
                    "security.istio.io",
                    "apiextensions.k8s.io",
                    "admissionregistration.k8s.io",
                    "discovery.k8s.io",
                    "gateway.networking.k8s.io",
                    "trysail.io"
                ],
                &["*"]
            ),
            rule(&[""], &["services", "nodes", "namespaces", "configmaps", "secrets"])
        ]))])
        .await
        .unwrap();
    let connection = trysail_kube::Connection { kubeconfig: Some(kubeconfig), ..Default::default() };
    let api = trysail_kube::connect(&connection).await.unwrap();
    let reads = pipeline::READ_KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    let config =
        trysail_kube::Config { objects: Config { read_kinds: Some(reads), ..Config::default() }, ..Default::default() };
    let (updates_tx, mut updates_rx) = mpsc::unbounded_channel();
    let source = ClusterSource::start(api, config, updates_tx);
    let mut progress = source.progress();
    let is_pods =
        |progress: &trysail_kube::Progress| progress.waiting.len() == 1 && progress.waiting[0].starts_with("Pod: ");
    let waiting = tokio::time::timeout(PATIENCE, progress.wait_for(is_pods))
        .await
        .expect("it says what it waits for")
        .unwrap()
        .clone();
    assert!(waiting.waiting[0].contains("forbidden"), "{waiting:?}");
    assert!(updates_rx.try_recv().is_err(), "no half mesh");
    client.apply(&[role(json!([rule(&["*"], &["*"])]))]).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, updates_rx.recv()).await.expect("all of it").unwrap();
    assert!(first.initial && first.status.unreadable.is_none());
}
