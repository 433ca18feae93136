//! Seeing into the control plane: debug pages over HTTP and over streams, metrics, logs. Where istiod's recordings are at hand
//! (`live/` of the corpus), shapes, codes and words are compared with them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/secure.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use support::{CLUSTER, Server, Stream, ask, node};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use trysail::pages::{Access, Viewer};
use trysail_ca::authenticate::{Authenticator, Authenticators, Oidc};
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;
use trysail_proto::istio::v1::auth::IstioCertificateRequest;
use trysail_proto::prost_types::{Struct, Value as WireValue, value::Kind};
use trysail_tests::agent::{self, Issuer, with_token};
use trysail_tests::{corpus, quiet};

const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const PAGE: &str = "istio.io/debug";
const SYNC: &str = "istio.io/debug/syncz";

/// A recording, where there is one.
fn recorded(file: &str) -> Option<Value> {
    let path = corpus::folder()?.parent()?.join("live").join(file);
    let text = fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// The mesh of the recordings, as far as it matters here, with a gateway's secret.
fn objects() -> String {
    let service = |namespace: &str, name: &str, ip: &str, selector: Value, ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "type": "ClusterIP", "selector": selector, "ports": ports},
        })
    };
    let pod = |namespace: &str, name: &str, app: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": app, "version": "v1",
                "security.istio.io/tlsMode": "istio"}},
            "spec": {"serviceAccountName": app, "nodeName": "node-a", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let slice = |namespace: &str, service: &str, pod: &str, ip: &str, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": format!("{service}-1"),
                "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod}}],
        })
    };
    let rbac = "rbac.authorization.k8s.io";
    let all = [
        service(
            "shop",
            "reviews",
            "10.96.2.10",
            json!({"app": "reviews"}),
            json!([
            {"name": "http", "port": 9080, "targetPort": 8080}, {"name": "tcp-x", "port": 9081, "targetPort": 8081}]),
        ),
        service(
            "shop",
            "productpage",
            "10.96.2.11",
            json!({"app": "productpage"}),
            json!([
            {"name": "http", "port": 9080, "targetPort": 8080}]),
        ),
        pod("shop", "reviews-v1", "reviews", "10.244.0.11"),
        slice("shop", "reviews", "reviews-v1", "10.244.0.11", 8080),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"namespace": "shop", "name": "reviews"},
            "spec": {"host": "reviews", "subsets": [{"name": "v1", "labels": {"version": "v1"}},
                {"name": "v2", "labels": {"version": "v2"}}]}}),
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": "reviews-allow"},
            "spec": {"selector": {"matchLabels": {"app": "reviews"}},
                "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "istio-system", "name": "shop-cert"},
            "stringData": {"tls.crt": "a certificate", "tls.key": "-----CANARY-KEY-----"}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": {"namespace": "istio-system", "name": "sds"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
            "metadata": {"namespace": "istio-system", "name": "sds"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "sds"},
            "subjects": [{"kind": "ServiceAccount", "name": "istio-ingressgateway"}]}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"namespace": "shop", "name": "refused"}, "spec": {"hosts": ["a"], "http": "nonsense"}}),
    ];
    all.map(|object| object.to_string()).join("\n---\n")
}

/// A page over HTTP from this machine.
fn get(address: SocketAddr, path: &str) -> (u16, Option<String>, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).map(str::to_owned);
    (status, content_type, body.to_owned())
}

fn json_page(server: &Server, path: &str) -> Value {
    let (status, content_type, body) = get(server.monitoring, path);
    assert_eq!((status, content_type.as_deref()), (200, Some("application/json")), "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn with(mut node: Node, entries: &[(&str, Value)]) -> Node {
    fn wire(value: &Value) -> WireValue {
        let kind = match value {
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::Object(fields) => {
                Kind::StructValue(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), wire(v))).collect() })
            }
            _ => Kind::NullValue(0),
        };
        WireValue { kind: Some(kind) }
    }
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.extend(entries.iter().map(|(key, value)| ((*key).to_owned(), wire(value))));
    node
}

/// A sidecar or gateway as Envoy's agent introduces it.
fn proxy(proxy_type: &str, name: &str, namespace: &str, account: &str, ip: &str) -> Node {
    let node = Node {
        id: format!("{proxy_type}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        ..node(proxy_type, namespace, Some(account))
    };
    let metadata = [
        ("CLUSTER_ID", json!("Kubernetes")),
        ("ISTIO_VERSION", json!("1.31.0")),
        ("PROXY_CONFIG", json!({})),
        ("LABELS", json!({"app": account, "version": "v1"})),
    ];
    with(node, &metadata)
}

/// Whoever asks, as istioctl introduces itself.
fn asker(namespace: &str, account: &str) -> Node {
    let id = format!("sidecar~10.244.9.1~test-1.{namespace}~{namespace}.svc.cluster.local");
    let node = Node { id, ..node("sidecar", namespace, Some(account)) };
    with(node, &[("GENERATOR", json!("event")), ("CLUSTER_ID", json!("Kubernetes"))])
}

/// A mesh with two sidecars and a gateway, which have taken what they were sent.
struct Mesh {
    issuer: Issuer,
    server: Server,
    channel: Channel,
    /// Open as long as the mesh is.
    proxies: Vec<Stream>,
}

async fn mesh(environment: &[(&str, &str)]) -> Mesh {
    let issuer = Issuer::new().unwrap();
    let server = support::start(&issuer, environment, &objects());
    let channel = server.channel().await;
    let mut proxies = Vec::new();
    for (proxy_type, name, namespace, account, ip) in [
        ("sidecar", "reviews-v1", "shop", "reviews", "10.244.0.11"),
        ("sidecar", "productpage-v1", "shop", "productpage", "10.244.0.12"),
        ("router", "ingressgateway-1", "istio-system", "istio-ingressgateway", "10.244.0.13"),
    ] {
        let node = proxy(proxy_type, name, namespace, account, ip);
        let token = issuer.token(namespace, account).unwrap();
        let mut stream = Stream::open(&channel, Some(&token), ask(node, CLUSTER, &[])).await.unwrap();
        let clusters = stream.next().await.unwrap();
        stream.acknowledge(&clusters, &[]).await;
        let more: &[(&str, &[&str])] = match proxy_type {
            "router" => &[(SECRET, &["kubernetes://shop-cert"])],
            _ => &[(ENDPOINT, &["outbound|9080||reviews.shop.svc.cluster.local"]), (LISTENER, &[])],
        };
        for (type_url, names) in more {
            let resource_names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let request = DiscoveryRequest { type_url: (*type_url).into(), resource_names, ..Default::default() };
            stream.requests.send(request).await.unwrap();
            let answer = stream.next().await.unwrap();
            assert_eq!(answer.type_url, *type_url);
            stream.acknowledge(&answer, names).await;
        }
        proxies.push(stream);
    }
    let mesh = Mesh { issuer, server, channel, proxies };
    // Acknowledgements are on their way still.
    for _ in 0..600 {
        let synced = json_page(&mesh.server, "/debug/syncz").as_array().unwrap().iter().all(|proxy| {
            let resources = proxy["resources"].as_object().unwrap();
            resources.len() >= 2 && resources.values().all(|of| of["sent"].is_string() && of["sent"] == of["acked"])
        });
        if synced {
            return mesh;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the proxies never were in sync");
}

/// The answer to one debug question: the first resource's text, or the status.
async fn question(mesh: &Mesh, namespace: &str, account: &str, name: &str) -> Result<String, (Code, String)> {
    let token = mesh.issuer.token(namespace, account).unwrap();
    let request = ask(asker(namespace, account), PAGE, &[name]);
    let status = |status: tonic::Status| (status.code(), status.message().to_owned());
    let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.map_err(status)?;
    let answer = stream.next().await.map_err(status)?;
    assert_eq!((answer.type_url.as_str(), answer.resources.len()), (PAGE, 1));
    assert!(answer.control_plane.is_none() && !answer.nonce.is_empty() && !answer.version_info.is_empty());
    assert_eq!(answer.resources[0].type_url, PAGE);
    Ok(String::from_utf8(answer.resources[0].value.clone()).unwrap())
}

/// Keys at every depth, with `[]` for elements of lists.
fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{prefix}.{key}");
                found.insert(path.clone());
                paths(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{prefix}[]"), found)),
        _ => {}
    }
}

fn entry<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

/// `ports/endpoints.json`: the body that istiod answered with.
fn recorded_page(path: &str) -> Option<Value> {
    let pages = recorded("ports/endpoints.json")?;
    let page = pages["15014"].as_array()?.iter().find(|page| page["path"] == path)?.clone();
    Some(page["body"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_look_as_in_istiod() {
    let mesh = mesh(&[]).await;
    let server = &mesh.server;
    let expected = json!([
        "adsz",
        "adsz?push=true",
        "authorizationz",
        "cachez",
        "cachez?clear=true",
        "cachez?sizes=true",
        "clusterz",
        "config_dump",
        "configz",
        "connections",
        "diagnostics",
        "ecdsz",
        "edsz",
        "endpointShardz",
        "endpointz",
        "instancesz",
        "mcsz",
        "mesh",
        "ndsz",
        "networkz",
        "push_status",
        "pushcontext",
        "registryz",
        "resourcesz",
        "sidecarz",
        "status",
        "syncz",
        "telemetryz",
    ]);
    assert_eq!(json_page(server, "/debug/list"), expected);

    // Codes and words.
    let not_found = (404, Some("text/plain; charset=utf-8".to_owned()), "404 page not found\n".to_owned());
    for path in ["/", "/debug/nosuch", "/debug/pushStatus", "/debug/force_disconnect?proxyID=ghost"] {
        assert_eq!(get(server.monitoring, path), not_found, "{path}");
        assert_eq!(get(server.http, path), not_found, "{path}");
    }
    for path in ["/metrics", "/version"] {
        assert_eq!((get(server.monitoring, path).0, get(server.http, path).0), (200, 404), "{path}");
    }
    for page in ["config_dump", "edsz", "ndsz", "ecdsz", "sidecarz"] {
        let (status, _, body) = get(server.http, &format!("/debug/{page}"));
        assert_eq!((status, &*body), (400, "You must provide a proxyID in the query string\n"));
    }
    let (status, _, body) = get(server.http, "/debug/config_dump?proxyID=ghost.shop");
    let ghost = "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
    assert_eq!((status, &*body), (404, ghost));
    assert_eq!(get(server.monitoring, "/version").2, "1.31.0-trysail.0.1.0-Clean");

    // What there is in this mesh, with istiod's values where the recordings have the same objects.
    let services = json_page(server, "/debug/registryz");
    assert_eq!(entry(&services, "hostname", "reviews.shop.svc.cluster.local")["Attributes"]["Name"], "reviews");
    if let Some(recorded) = recorded_page("/debug/registryz") {
        for host in ["reviews.shop.svc.cluster.local", "productpage.shop.svc.cluster.local"] {
            let [mut ours, mut istiods] = [&services, &recorded].map(|list| entry(list, "hostname", host).clone());
            for own in ["creationTime", "ResourceVersion"] {
                for service in [&mut ours, &mut istiods] {
                    assert!(service[own].is_string());
                    service[own] = Value::Null;
                }
            }
            assert_eq!(ours, istiods, "{host}");
        }
    }
    let shards = json_page(server, "/debug/endpointz");
    assert_eq!(shards, json_page(server, "/debug/endpointShardz"));
    let shard = "/reviews.shop.svc.cluster.local/shop/Shards/Kubernetes~1Kubernetes/0";
    assert_eq!(shards.pointer(shard).unwrap()["Addresses"], json!(["10.244.0.11"]));
    if let Some(recorded) = recorded_page("/debug/endpointz") {
        let fields = |shards: &Value| -> Vec<String> {
            shards.pointer(shard).unwrap().as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(fields(&shards), fields(&recorded));
    }
    let instances = json_page(server, "/debug/instancesz");
    let port = json!({"name": "http", "port": 9080, "protocol": "HTTP", "TargetPort": 8080});
    assert_eq!(instances["reviews-v1.shop"][0]["Port"], port);
    assert_eq!(instances["productpage-v1.shop"], json!([]), "no pod, no instances");
    let sidecar = json_page(server, "/debug/sidecarz?proxyID=reviews-v1.shop");
    assert_eq!(sidecar["services"].as_array().unwrap().len(), 2, "{sidecar}");
    assert!(sidecar["servicesByHostname"]["reviews.shop.svc.cluster.local"].is_object());
    let status = json_page(server, "/debug/push_status");
    assert!(
        status["pilot_eds_no_instances"]["outbound|9080|v2|reviews.shop.svc.cluster.local"].is_object(),
        "{status}"
    );
    let policies = json_page(server, "/debug/authorizationz");
    let policies = &policies["authorization_policies"];
    assert_eq!(policies["namespace_to_policies"]["shop"][0]["name"], "reviews-allow");
    assert_eq!(policies["root_namespace"], "istio-system");
    assert_eq!(json_page(server, "/debug/clusterz")[0]["syncStatus"], "synced");
    assert_eq!(json_page(server, "/debug/mesh")["proxyInboundListenPort"], 15006);
    let configs = json_page(server, "/debug/configz");
    let kinds: Vec<&str> = configs.as_array().unwrap().iter().map(|c| c["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["AuthorizationPolicy", "DestinationRule"], "secrets are no configuration");
    for (path, nothing) in [("/debug/networkz", Value::Null), ("/debug/mcsz", Value::Null)] {
        assert_eq!(json_page(server, path), nothing, "{path}");
    }
    assert_eq!(json_page(server, "/debug/connections")["totalClients"], 3);
    let clients = json_page(server, "/debug/adsz");
    let watches = &clients["clients"][1]["watches"];
    assert_eq!(clients["clients"][1]["metadata"]["NAMESPACE"], "shop", "sorted by namespace");
    assert_eq!(watches[ENDPOINT], json!(["outbound|9080||reviews.shop.svc.cluster.local"]));
    assert_eq!(json_page(server, "/debug/adsz?proxyID=reviews")["totalClients"], 1);
    let sizes = json_page(server, "/debug/cachez?sizes=true");
    assert!(sizes["total"].as_str().unwrap().ends_with("kB"), "{sizes}");
    assert!(json_page(server, "/debug/cachez")[CLUSTER].as_array().unwrap().len() > 3);
    assert_eq!(get(server.http, "/debug/cachez?clear=true").2, "Cache cleared\n");

    // Every field of istiod's about a proxy is there.
    if let Some(recorded) = recorded_page("/debug/syncz") {
        let ours = json_page(server, "/debug/syncz");
        let fields = |page: &Value| -> BTreeSet<String> {
            let proxy = entry(page, "proxy", "reviews-v1.shop").as_object().unwrap();
            proxy.keys().filter(|key| !key.starts_with("route")).cloned().collect()
        };
        assert_eq!(fields(&ours), fields(&recorded));
        let cluster = &entry(&ours, "proxy", "reviews-v1.shop")["resources"][CLUSTER];
        let keys: Vec<&String> = cluster.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["sent", "acked", "sentTime"]);
    }
    let pushed = get(server.http, "/debug/adsz?push=true").2;
    assert_eq!(pushed, "Pushed to 3 servers\n");
    drop(mesh.proxies);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_dumps_are_envoys_and_hold_no_key() {
    let mesh = mesh(&[]).await;
    let server = &mesh.server;
    let types = |dump: &Value| -> Vec<String> {
        let configs = dump["configs"].as_array().unwrap().iter();
        configs.map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()).collect()
    };
    let sidecar = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop");
    let parts = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "ListenersConfigDump",
        "ScopedRoutesConfigDump",
        "RoutesConfigDump",
        "SecretsConfigDump",
        "EcdsConfigDump",
    ];
    assert_eq!(types(&sidecar), parts);
    let with_eds = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&include_eds");
    assert_eq!(types(&with_eds)[2], "EndpointsConfigDump");
    let endpoints = &with_eds["configs"][2]["dynamicEndpointConfigs"][0]["endpointConfig"];
    assert_eq!(endpoints["clusterName"], "outbound|9080||reviews.shop.svc.cluster.local");
    let clusters = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&types=cds");
    assert!(types(&clusters).iter().all(|of| of == "Cluster") && types(&clusters).len() > 3);
    let nothing = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&types=nope");
    assert_eq!((nothing, json_page(server, "/debug/ndsz?proxyID=reviews-v1.shop")), (json!({}), json!({})));
    assert_eq!(types(&json_page(server, "/debug/edsz?proxyID=reviews-v1.shop")), ["ClusterLoadAssignment"]);
    if let Some(recorded) = recorded_page("/debug/config_dump?proxyID=reviews-v1.shop&include_eds") {
        // The frame is istiod's; what Envoy is configured with is compared elsewhere.
        let frame = |dump: &Value| -> BTreeSet<String> {
            let mut found = BTreeSet::new();
            paths(dump, "", &mut found);
            let depth = |path: &String| path.matches('.').count() <= 3 && !path.contains("..");
            let inside = [".cluster.", ".listener.", ".routeConfig.", ".endpointConfig.", "dynamicRouteConfigs"];
            found.retain(|path| depth(path) && !inside.iter().any(|part| path.contains(part)));
            found
        };
        let (ours, istiods) = (frame(&with_eds), frame(&recorded));
        assert!(ours.is_subset(&istiods) || !istiods.contains(".configs[].dynamicListeners"), "{ours:?} {istiods:?}");
    }

    let gateway = get(server.monitoring, "/debug/config_dump?proxyID=ingressgateway-1").2;
    let secrets = serde_json::from_str::<Value>(&gateway).unwrap()["configs"][5]["dynamicActiveSecrets"].clone();
    assert_eq!(secrets[0]["secret"]["name"], "kubernetes://shop-cert");
    let certificate = &secrets[0]["secret"]["tlsCertificate"];
    assert_eq!(certificate["privateKey"]["inlineBytes"], "W3JlZGFjdGVkXQ==");
    assert!(certificate["certificateChain"]["inlineBytes"].is_string(), "what is public is shown");
    // In no form, on no page.
    let list = json_page(server, "/debug/list");
    for name in list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
        let separator = if name.contains('?') { '&' } else { '?' };
        let (_, _, body) = get(server.monitoring, &format!("/debug/{name}{separator}proxyID=ingressgateway-1"));
        // Base64 of the key, at each of the three places where it may begin.
        for canary in ["CANARY", "Q0FOQVJZ", "NBTkFSW", "DQU5BUl"] {
            assert!(!body.contains(canary), "{name} shows a key");
        }
    }
    drop(mesh.proxies);
}

/// `ads/debug-types`, and what `istioctl/` asks: proxy-status, version, x internal-debug.
#[tokio::test(flavor = "multi_thread")]
async fn streams_answer_debug_types() {
    let mesh = mesh(&[]).await;
    let admin = |name: &'static str| question(&mesh, "istio-system", "ztunnel", name);
    for page in ["registryz", "mesh", "config_dump?proxyID=reviews-v1.shop", "edsz?proxyID=reviews-v1.shop", "list"] {
        let over_http = json_page(&mesh.server, &format!("/debug/{page}"));
        let over_xds: Value = serde_json::from_str(&admin(page).await.unwrap()).unwrap();
        assert_eq!(over_xds, over_http, "{page}");
    }
    assert_eq!(admin("nosuch").await.unwrap(), "404 page not found\n");
    let ghost = "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
    assert_eq!(admin("config_dump?proxyID=nothere.shop").await.unwrap(), ghost);
    let connections: Value = serde_json::from_str(&admin("connections").await.unwrap()).unwrap();
    assert_eq!(connections["totalClients"], 4, "whoever asks is a client too");

    // Names.
    let token = mesh.issuer.token("istio-system", "ztunnel").unwrap();
    for names in [&[][..], &["syncz", "adsz"]] {
        let request = ask(asker("istio-system", "ztunnel"), PAGE, names);
        let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
        let status = stream.next().await.unwrap_err();
        let words = "exactly one debug request is required";
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, words));
    }

    // proxy-status and version.
    let request = ask(asker("istio-system", "ztunnel"), SYNC, &[]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
    let answer = stream.next().await.unwrap();
    let identifier: Value = serde_json::from_str(&answer.control_plane.clone().unwrap().identifier).unwrap();
    assert_eq!((&identifier["Component"], &identifier["Info"]["version"]), (&json!("istiod"), &json!("1.31.0")));
    let configs: Vec<Value> = answer.resources.iter().map(client_config).collect();
    let ids: Vec<&str> = configs.iter().map(|config| config["node"]["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["ingressgateway-1.istio-system", "productpage-v1.shop", "reviews-v1.shop"]);
    let reviews = &configs[2];
    let metadata = json!({"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0", "NAMESPACE": "shop"});
    assert_eq!(reviews["node"]["metadata"], metadata);
    let states: Vec<(&str, &str)> = reviews["genericXdsConfigs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["typeUrl"].as_str().unwrap(), of["configStatus"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [(CLUSTER, "SYNCED"), (ENDPOINT, "SYNCED"), (LISTENER, "SYNCED")]);
    if let Some(recorded) = recorded("ads/debug-types/debug-old-syncz.json") {
        let answer = recorded["events"].as_array().unwrap().iter().find(|event| event["dir"] == "<-").unwrap();
        let istiods = &answer["resources"].as_array().unwrap()[0]["resource"];
        let shape = |config: &Value| {
            let mut found = BTreeSet::new();
            paths(config, "", &mut found);
            found.remove(".@type");
            found
        };
        assert_eq!(shape(reviews), shape(istiods));
    }
    // An ACK is answered too, as in istiod; and what does not exist is answered with nothing.
    stream.acknowledge(&answer, &[]).await;
    assert_eq!(stream.next().await.unwrap().resources.len(), 3);
    let dump = DiscoveryRequest {
        type_url: "istio.io/debug/config_dump".into(),
        resource_names: vec!["reviews-v1.shop".into()],
        ..Default::default()
    };
    stream.requests.send(dump).await.unwrap();
    let dump = stream.next().await.unwrap();
    let types: Vec<&str> = dump.resources.iter().map(|any| any.type_url.rsplit('.').next().unwrap()).collect();
    assert_eq!((types.len(), types[0], types[1]), (7, "BootstrapConfigDump", "ClustersConfigDump"));
    assert!(dump.resources[1].value.len() > 1000, "the clusters are in it");
    for other in ["istio.io/connect", "istio.io/debug/registryz"] {
        stream.requests.send(DiscoveryRequest { type_url: other.into(), ..Default::default() }).await.unwrap();
        let answer = stream.next().await.unwrap();
        assert_eq!((answer.type_url.as_str(), answer.resources.len()), (other, 0));
    }
    drop(mesh.proxies);
}

/// A `ClientConfig` as JSON with protobuf's JSON names.
fn client_config(any: &trysail_proto::prost_types::Any) -> Value {
    assert_eq!(any.type_url, "type.googleapis.com/envoy.service.status.v3.ClientConfig");
    trysail_codec::json::to_json_named(&any.type_url, &any.value, trysail_codec::json::Names::Json).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_namespaces_see_their_own_proxies() {
    let mesh = mesh(&[]).await;
    let shop = |name: &'static str| question(&mesh, "shop", "productpage", name);
    for page in ["syncz", "adsz", "registryz", "mesh", "connections", "nosuch", "list"] {
        let words =
            "the debug info is not available for current identity: \"spiffe://cluster.local/ns/shop/sa/productpage\"";
        assert_eq!(shop(page).await.unwrap_err(), (Code::PermissionDenied, words.to_owned()), "{page}");
    }
    let own = shop("config_dump?proxyID=reviews-v1.shop").await.unwrap();
    assert!(own.contains("ClustersConfigDump"));
    assert!(shop("edsz?proxyID=reviews-v1.shop").await.unwrap().contains("10.244.0.11"));
    // istiod shows any proxy's.
    let other = shop("config_dump?proxyID=ingressgateway-1").await.unwrap();
    assert!(other.starts_with("Proxy not connected"), "{other}");
    let token = mesh.issuer.token("shop", "productpage").unwrap();
    let request = ask(asker("shop", "productpage"), SYNC, &[]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
    let ids: Vec<Value> =
        stream.next().await.unwrap().resources.iter().map(|any| client_config(any)["node"]["id"].clone()).collect();
    assert_eq!(ids, ["productpage-v1.shop", "reviews-v1.shop"]);

    // Over plaintext nobody is known.
    let plain = Endpoint::from_shared(format!("http://{}", mesh.server.plain)).unwrap().connect().await.unwrap();
    for type_url in [PAGE, SYNC, "istio.io/connect"] {
        let request = ask(asker("istio-system", "ztunnel"), type_url, &["syncz"]);
        let mut stream = Stream::open(&plain, None, request).await.unwrap();
        let status = stream.next().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication required"));
    }
    // Who does not say which account it is may ask, and gets no configuration.
    let nameless = with(Node { metadata: None, ..asker("shop", "") }, &[("NAMESPACE", json!("shop"))]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), ask(nameless, SYNC, &[])).await.unwrap();
    assert_eq!(stream.next().await.unwrap().resources.len(), 2);
    stream.requests.send(DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() }).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    drop(mesh.proxies);
}

/// `15014 from a non-loopback address`: who may read what over HTTP.
#[tokio::test]
async fn http_asks_for_an_identity() {
    let issuer = Issuer::new().unwrap();
    let oidc = Oidc::new(&issuer.rule(), &["istio-ca".to_owned()], "cluster.local").unwrap();
    let authenticators = Authenticators(vec![std::sync::Arc::new(oidc) as std::sync::Arc<dyn Authenticator>]);
    let access = Access::read(&BTreeMap::new(), "istio-system");
    let peer: SocketAddr = "10.244.0.12:4711".parse().unwrap();
    let judge = async |token: Option<String>, page: &str| {
        let mut headers = HeaderMap::new();
        headers.extend(token.map(|token| (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).unwrap())));
        match access.caller(&authenticators, peer, &headers).await {
            Ok(caller) => {
                let viewer = caller.map_or(Viewer::All, |identity| access.of(&identity, "istio-system"));
                access.admit(viewer, page).err().unwrap_or(StatusCode::OK)
            }
            Err(status) => status,
        }
        .as_u16()
    };
    let token = |caller: &str| match caller {
        "no token" => None,
        "garbage token" => Some("garbage".to_owned()),
        _ => {
            let (namespace, account) = caller.rsplit(' ').next().unwrap().split_once('/').unwrap();
            Some(issuer.token(namespace, account).unwrap())
        }
    };
    let mut n = 0;
    let own = [
        ("no token", "syncz", 401),
        ("garbage token", "edsz", 401),
        ("token of shop/productpage", "syncz", 403),
        ("token of shop/productpage", "edsz", 200),
        ("token of istio-system/ztunnel", "registryz", 200),
    ];
    for (caller, page, expected) in own {
        assert_eq!(judge(token(caller), page).await, expected, "{caller} {page}");
    }
    let recordings = recorded("ports/endpoints.json").map(|all| all["15014 from a non-loopback address"].clone());
    for request in recordings.iter().flat_map(|list| list.as_array().unwrap()) {
        let (caller, path) = (request["caller"].as_str().unwrap(), request["path"].as_str().unwrap());
        let Some(page) = path.strip_prefix("/debug/").map(|page| page.split('?').next().unwrap()) else { continue };
        // Go's profiles are not here; what is not there is not found, whoever asks.
        if page.starts_with("pprof") || page == "nosuch" {
            continue;
        }
        assert_eq!(u64::from(judge(token(caller), page).await), request["status"].as_u64().unwrap(), "{caller} {path}");
        n += 1;
    }
    assert!(recordings.is_none() || n >= 20, "{n} requests compared");
}

/// A family of metrics: its type and the labels that its series have.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: Vec<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            let series = line.split([' ', '{']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = base.filter(|base| all.get(*base).is_some_and(|f| f.kind == "histogram")).unwrap_or(series);
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
            let family = all.get_mut(name).unwrap_or_else(|| panic!("{line} has no type"));
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once("=\"").unwrap();
                if key == "le" {
                    let bound = value.trim_end_matches('"').to_owned();
                    if !family.bounds.contains(&bound) {
                        family.bounds.push(bound);
                    }
                } else {
                    family.labels.insert(key.to_owned());
                }
            }
        }
    }
    all
}

/// Families that a mesh at work shows, with their types and labels. Those of istiod are compared with the recording too.
const FAMILIES: &[(&str, &str, &[&str])] = &[
    ("citadel_server_authentication_failure_count", "counter", &[]),
    ("citadel_server_csr_count", "counter", &[]),
    ("citadel_server_csr_sign_err_count", "counter", &["error"]),
    ("citadel_server_root_cert_expiry_seconds", "gauge", &[]),
    ("citadel_server_root_cert_expiry_timestamp", "gauge", &[]),
    ("citadel_server_success_cert_issuance_count", "counter", &[]),
    ("endpoint_no_pod", "gauge", &[]),
    ("grpc_server_handled_total", "counter", &["grpc_code", "grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_handling_seconds", "histogram", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_msg_received_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_msg_sent_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("grpc_server_started_total", "counter", &["grpc_method", "grpc_service", "grpc_type"]),
    ("istio_build", "gauge", &["component", "tag"]),
    ("istiod_managed_clusters", "gauge", &["cluster_type"]),
    ("istiod_uptime_seconds", "gauge", &[]),
    ("pilot_debounce_time", "histogram", &[]),
    ("pilot_destrule_subsets", "gauge", &[]),
    ("pilot_dns_cluster_without_endpoints", "gauge", &[]),
    ("pilot_eds_no_instances", "gauge", &[]),
    ("pilot_endpoint_not_ready", "gauge", &[]),
    ("pilot_inbound_updates", "counter", &["type"]),
    ("pilot_info", "gauge", &["version"]),
    ("pilot_k8s_cfg_events", "counter", &["event", "type"]),
    ("pilot_k8s_reg_events", "counter", &["event", "type"]),
    ("pilot_proxy_convergence_time", "histogram", &[]),
    ("pilot_proxy_queue_time", "histogram", &[]),
    ("pilot_push_triggers", "counter", &["type"]),
    ("pilot_pushcontext_init_seconds", "histogram", &[]),
    ("pilot_sds_certificate_errors_total", "counter", &[]),
    ("pilot_services", "gauge", &[]),
    ("pilot_total_rejected_configs", "counter", &["name", "type"]),
    ("pilot_total_xds_internal_errors", "counter", &[]),
    ("pilot_total_xds_rejects", "counter", &["type"]),
    ("pilot_virt_services", "gauge", &[]),
    ("pilot_xds", "gauge", &["version"]),
    ("pilot_xds_cds_reject", "gauge", &["err", "node"]),
    ("pilot_xds_config_size_bytes", "histogram", &["type"]),
    ("pilot_xds_expired_nonce", "counter", &["type"]),
    ("pilot_xds_push_time", "histogram", &["type"]),
    ("pilot_xds_pushes", "counter", &["type"]),
    ("pilot_xds_recv_max", "gauge", &[]),
    ("pilot_xds_send_time", "histogram", &[]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("trysail_assembled_total", "counter", &[]),
    ("trysail_memo_hits_total", "counter", &[]),
    ("trysail_memo_walks_total", "counter", &[]),
    ("trysail_refused_objects", "gauge", &["kind"]),
    ("trysail_revision", "gauge", &[]),
    ("trysail_sent_bytes_total", "counter", &["type"]),
    ("trysail_stage_output_bytes_total", "counter", &["stage"]),
    ("trysail_stage_runs_total", "counter", &[]),
    ("trysail_stage_seconds", "histogram", &["stage"]),
];

/// Families of istiod that are not here: of Go's runtime, of webhooks that are not there yet, and some for which nothing is
/// counted yet.
const ABSENT: &[&str] = &[
    "galley_validation_",
    "go_",
    "pilot_conflict_",
    "pilot_duplicate_envoy_clusters",
    "pilot_k8s_proxies_with_no_service_targets",
    "pilot_no_ip",
    "pilot_vservice_dup_domain",
    "process_network_",
    "process_virtual_memory_max_bytes",
    "sidecar_injection_",
    "webhook_patch_",
];

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_istiods_names_types_and_labels() {
    let mut mesh = mesh(&[]).await;
    // Something of everything: certificates, given and not; a NACK; a nonce that is long gone; a change.
    let token = mesh.issuer.token("shop", "reviews").unwrap();
    agent::certify(&mesh.channel, &token).await.unwrap();
    let csr = |csr: &str| IstioCertificateRequest { csr: csr.into(), validity_duration: 60, metadata: None };
    assert!(agent::create(&mesh.channel, with_token(csr("nonsense"), &token)).await.is_err());
    assert!(agent::create(&mesh.channel, Request::new(csr(""))).await.is_err());
    let stream = &mut mesh.proxies[0];
    let clusters = DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() };
    let error_detail =
        Some(trysail_proto::google::rpc::Status { code: 13, message: "no".into(), ..Default::default() });
    let stale = DiscoveryRequest { response_nonce: "long gone".into(), ..clusters.clone() };
    let nack = DiscoveryRequest { response_nonce: "long gone".into(), error_detail, ..clusters };
    stream.requests.send(stale).await.unwrap();
    stream.requests.send(nack).await.unwrap();
    let config = mesh.server.folder.path().join("config");
    let more = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "more"},
        "spec": {"clusterIP": "10.96.2.99", "ports": [{"name": "http", "port": 80}]}});
    let refused = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"namespace": "shop", "name": "also-refused"}, "spec": {"hosts": "a"}});
    support::write(&config, "more.yaml", &format!("{more}\n---\n{refused}"));
    while stream.next().await.unwrap().type_url != CLUSTER {}

    let missing = |families: &BTreeMap<String, Family>| {
        let absent = |(name, ..): &&(&str, &str, &[&str])| !families.contains_key(*name);
        FAMILIES.iter().filter(absent).map(|(name, ..)| *name).collect::<Vec<_>>()
    };
    let mut ours = BTreeMap::new();
    for _ in 0..100 {
        ours = families(&get(mesh.server.monitoring, "/metrics").2);
        if missing(&ours).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(missing(&ours), [""; 0]);
    for (name, kind, labels) in FAMILIES {
        let family = &ours[*name];
        let labels: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!((family.kind.as_str(), &family.labels), (*kind, &labels), "{name}");
    }
    for name in ours.keys() {
        let is_istiods =
            ["citadel_", "endpoint_", "grpc_", "istio", "pilot_", "process_"].iter().any(|p| name.starts_with(p));
        assert!(is_istiods || name.starts_with("trysail_"), "{name} is neither istiod's nor under our name");
    }
    let rejected = get(mesh.server.monitoring, "/metrics").2;
    assert!(rejected.contains("pilot_xds_cds_reject{err=\"Internal\",node=\"reviews-v1.shop\"} 1"), "{rejected}");
    assert!(rejected.contains("grpc_server_handled_total{grpc_code=\"OK\""), "{rejected}");
    assert!(rejected.contains("trysail_refused_objects{kind=\"VirtualService\"} 2"), "{rejected}");

    let Some(recorded) = recorded("metrics/metrics.json") else { return };
    for (name, istiods) in recorded.as_object().unwrap() {
        if ABSENT.iter().any(|prefix| name.starts_with(prefix)) {
            assert!(!ours.contains_key(name), "{name} is here: compare it");
            continue;
        }
        // The same family for another type.
        let Some(family) =
            ours.get(name).or_else(|| ours.get("pilot_xds_cds_reject").filter(|_| name.ends_with("_reject")))
        else {
            panic!("{name} is missing")
        };
        let labels: BTreeSet<String> = istiods["labels"].as_object().unwrap().keys().cloned().collect();
        assert_eq!((istiods["type"].as_str().unwrap(), &labels), (family.kind.as_str(), &family.labels), "{name}");
        if let Some(bounds) = istiods["buckets"].as_array() {
            let numbers = |bounds: Vec<&str>| {
                bounds.iter().map(|bound| bound.replace("+Inf", "inf").parse::<f64>().unwrap()).collect::<Vec<_>>()
            };
            let istiods = numbers(bounds.iter().map(|bound| bound.as_str().unwrap()).collect());
            assert_eq!(numbers(family.bounds.iter().map(String::as_str).collect()), istiods, "{name}");
        }
    }
}

#[test]
fn logs_have_levels_by_scope_and_forms() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("objects.yaml"), objects()).unwrap();
    let log = folder.path().join("log.json");
    let run = |flags: &[&str], log: &PathBuf| -> Vec<String> {
        let mut command = std::process::Command::new(trysail_tests::control_plane::binary(quiet).unwrap());
        command.args(["discovery", "--registries=", "--native", "--ctrlz_port=0", "--configDir"]).arg(&config);
        for flag in ["--grpcAddr", "--httpAddr", "--monitoringAddr"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--secureGRPCAddr=", "--log_target"]).arg(log).args(flags).env_remove("RUST_LOG");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // It says so when it listens; then there is a log.
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let ready = std::io::BufRead::lines(out).map_while(Result::ok).any(|line| line.contains("xDS on "));
        assert!(ready, "the control plane did not start");
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(log).unwrap();
        fs::remove_file(log).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let lines =
        run(&["--log_output_level", "model:none,default:info,nonsense:info", "--log_as_json", "--log_rotate=x"], &log);
    let values: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let unknown: Vec<&Value> = values.iter().filter(|line| line["level"] == "warn").collect();
    assert!(unknown.iter().any(|line| line["msg"].as_str().unwrap().contains("nonsense")), "{lines:?}");
    assert!(unknown.iter().any(|line| line["flag"] == "--log_rotate"), "{lines:?}");
    assert!(values.iter().all(|line| line["time"].as_str().unwrap().ends_with('Z')), "{lines:?}");
    let quiet = run(&["--log_output_level=all:none", "--log_rotate=x"], &log);
    assert_eq!(quiet, [""; 0]);
    let plain = run(&["--log_output_level=default:warn", "--log_rotate=x"], &log);
    assert!(plain.iter().any(|line| line.split('\t').nth(1) == Some("warn")), "{plain:?}");
}
