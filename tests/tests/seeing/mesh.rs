//! A mesh with proxies that have taken what they were sent, and ways to ask about it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;
use trysail_proto::prost_types::{Struct, Value as WireValue, value::Kind};
use trysail_tests::agent::Issuer;
use trysail_tests::corpus;

use crate::support::{self, CLUSTER, Server, Stream, ask, node};

pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const PAGE: &str = "istio.io/debug";
pub const SYNC: &str = "istio.io/debug/syncz";

/// A recording, where there is one.
pub fn recorded(file: &str) -> Option<Value> {
    let path = corpus::folder()?.parent()?.join("live").join(file);
    let text = fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// The mesh of the recordings, as far as it matters here, with a gateway's secret.
pub fn objects() -> String {
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
pub fn get(address: SocketAddr, path: &str) -> (u16, Option<String>, String) {
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

pub fn json_page(server: &Server, path: &str) -> Value {
    let (status, content_type, body) = get(server.monitoring, path);
    assert_eq!((status, content_type.as_deref()), (200, Some("application/json")), "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

pub fn with(mut node: Node, entries: &[(&str, Value)]) -> Node {
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
pub fn proxy(proxy_type: &str, name: &str, namespace: &str, account: &str, ip: &str) -> Node {
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
pub fn asker(namespace: &str, account: &str) -> Node {
    let id = format!("sidecar~10.244.9.1~test-1.{namespace}~{namespace}.svc.cluster.local");
    let node = Node { id, ..node("sidecar", namespace, Some(account)) };
    with(node, &[("GENERATOR", json!("event")), ("CLUSTER_ID", json!("Kubernetes"))])
}

/// A mesh with two sidecars and a gateway, which have taken what they were sent.
pub struct Mesh {
    pub issuer: Issuer,
    pub server: Server,
    pub channel: Channel,
    /// Open as long as the mesh is.
    pub proxies: Vec<Stream>,
}

pub async fn mesh(environment: &[(&str, &str)]) -> Mesh {
    let issuer = Issuer::new().unwrap();
    // Its policy is for the pages to tell of; proxies are to be served all the same.
    let flags = ["--accept-untranslated=AuthorizationPolicy"];
    let server = support::start(&issuer, environment, &flags, &objects());
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
pub async fn question(mesh: &Mesh, namespace: &str, account: &str, name: &str) -> Result<String, (Code, String)> {
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
pub fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
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

pub fn entry<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

/// `ports/endpoints.json`: the body that istiod answered with.
pub fn recorded_page(path: &str) -> Option<Value> {
    let pages = recorded("ports/endpoints.json")?;
    let page = pages["15014"].as_array()?.iter().find(|page| page["path"] == path)?.clone();
    Some(page["body"].clone())
}
