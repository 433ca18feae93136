//! The certificate authority of a cluster, on the real API server: where its key is kept, who finds it there, and the root
//! certificates in all namespaces.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::{agent, aloud, control_plane, eventually, quiet};

#[path = "support/definitions.rs"]
mod definitions;

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: [&str; 4] = ["v1", "Secret", "istio-system", "istio-ca-secret"];

fn namespace(name: &str, in_mesh: bool) -> Value {
    let labels = if in_mesh { json!({"mesh": "on"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn replica(server: &ApiServer, name: &str) -> Replica {
    let kubeconfig = server.kubeconfig().display().to_string();
    let args = ["--kubeconfig", &kubeconfig, "--namespace", "istio-system"];
    // The key is in the cluster, where it is when nobody says otherwise.
    let environment = [("POD_NAME", name), ("TRYSAIL_CA_DIR", ""), ("PILOT_DEBOUNCE_AFTER", "20ms")];
    Replica::start(&control_plane::binary(quiet).unwrap(), &args, &environment).unwrap()
}

fn part(secret: &Value, name: &str) -> String {
    String::from_utf8(STANDARD.decode(secret["data"][name].as_str().unwrap()).unwrap()).unwrap()
}

async fn published(client: &Cluster, namespace: &str) -> Option<Value> {
    client.get(["v1", "ConfigMap", namespace, "istio-ca-root-cert"]).await.unwrap()
}

/// Waits until a namespace has the root certificate.
async fn has(client: &Cluster, namespace: &str, root: &str) {
    let what = format!("the root certificate in {namespace}");
    let is_there = || async {
        let found = published(client, namespace).await;
        found.filter(|map| map["data"]["root-cert.pem"] == root).map(drop).context("it is not there")
    };
    eventually(&what, PATIENCE, is_there).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_the_clusters_and_the_root_is_everywhere() {
    let config = cluster::Config { rights: cluster::Rights::All, ..Default::default() };
    let server = ApiServer::start(config, aloud).await.unwrap();
    let client = server.client().await.unwrap();
    client.define(&definitions::all()).await.unwrap();
    let mesh = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
        "data": {"mesh": "discoverySelectors:\n- matchLabels:\n    mesh: \"on\"\n"}});
    client
        .apply(&[namespace("istio-system", true), namespace("shop", true), namespace("away", false), mesh])
        .await
        .unwrap();

    // Made once, in istiod's form.
    let mut first = replica(&server, "first");
    first.line("certificate authority: self-signed, kept in secret istio-system/istio-ca-secret").unwrap();
    let made = client.get(SECRET).await.unwrap().unwrap();
    assert_eq!(made["type"], "istio.io/ca-root");
    let mut names: Vec<&String> = made["data"].as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "key.pem", "root-cert.pem"]);
    let root = part(&made, "ca-cert.pem");
    assert_eq!(root, part(&made, "root-cert.pem"));

    // Another replica finds it, and so does whoever checks its certificate against the root.
    let mut second = replica(&server, "second");
    for replica in [&mut first, &mut second] {
        let secure = replica.secure().unwrap();
        agent::connect(secure, &root, None).await.unwrap();
    }
    let found = client.get(SECRET).await.unwrap().unwrap();
    assert_eq!(found["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "it was made once");

    // The root certificate is in the namespaces of the mesh, with istiod's label, and comes back.
    for namespace in ["istio-system", "shop"] {
        has(&client, namespace, &root).await;
    }
    let map = published(&client, "shop").await.unwrap();
    assert_eq!(map["metadata"]["labels"], json!({"istio.io/config": "true"}));
    let place = ["v1", "ConfigMap", "shop", "istio-ca-root-cert"];
    client.merge(place, &json!({"data": {"root-cert.pem": "forged", "other": "kept"}})).await.unwrap();
    has(&client, "shop", &root).await;
    assert_eq!(published(&client, "shop").await.unwrap()["data"]["other"], "kept");
    client.delete(place).await.unwrap();
    has(&client, "shop", &root).await;
    client.apply(&[namespace("new", true)]).await.unwrap();
    has(&client, "new", &root).await;
    for namespace in ["away", "kube-public"] {
        assert_eq!(published(&client, namespace).await, None, "{namespace} is none of the mesh's");
    }

    // Whoever led gave the lock back when it stopped; the other goes on.
    let lock = ["v1", "ConfigMap", "istio-system", "istio-namespace-controller-election"];
    let holder = |lock: &Value| -> String {
        let record = lock["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"].as_str().unwrap();
        serde_json::from_str::<Value>(record).unwrap()["holderIdentity"].as_str().unwrap().to_owned()
    };
    let leader = holder(&client.get(lock).await.unwrap().unwrap());
    let (leading, other) = if leader == "first" { (&mut first, "second") } else { (&mut second, "first") };
    leading.terminate().unwrap();
    leading.ended(PATIENCE).unwrap();
    client.merge(place, &json!({"data": {"root-cert.pem": "forged"}})).await.unwrap();
    has(&client, "shop", &root).await;
    assert_eq!(holder(&client.get(lock).await.unwrap().unwrap()), other);
}

/// A certificate of another authority in files: its root is what agents are told, also when it is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_a_certificate_in_files_is_published() {
    let config = cluster::Config { rights: cluster::Rights::All, ..Default::default() };
    let server = ApiServer::start(config, aloud).await.unwrap();
    let client = server.client().await.unwrap();
    client.define(&definitions::all()).await.unwrap();
    client.apply(&[namespace("istio-system", true)]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // All at once, as kubelet replaces the files of a secret.
    let mount = |n: u32| -> String {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![agent::SERVER_NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        let dir = folder.path().join(n.to_string());
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in [("tls.crt", &leaf), ("tls.key", &key.serialize_pem()), ("ca.crt", &root)] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&dir, folder.path().join("fresh")).unwrap();
        std::fs::rename(folder.path().join("fresh"), folder.path().join("mounted")).unwrap();
        root
    };
    let first = mount(1);
    let file = |name: &str| folder.path().join("mounted").join(name).display().to_string();
    let kubeconfig = server.kubeconfig().display().to_string();
    let (certificate, key, roots) = (file("tls.crt"), file("tls.key"), file("ca.crt"));
    let args = [
        "--kubeconfig",
        &kubeconfig,
        "--namespace",
        "istio-system",
        "--tlsCertFile",
        &certificate,
        "--tlsKeyFile",
        &key,
        "--caCertFile",
        &roots,
    ];
    let environment = [("POD_NAME", "files"), ("TRYSAIL_CA_DIR", "memory")];
    let mut replica = Replica::start(&control_plane::binary(quiet).unwrap(), &args, &environment).unwrap();
    let address = replica.secure().unwrap();
    has(&client, "istio-system", &first).await;
    agent::connect(address, &first, None).await.unwrap();
    let second = mount(2);
    has(&client, "istio-system", &second).await;
    let renewed = || async { agent::connect(address, &second, None).await.map(drop) };
    eventually("the new certificate is shown", PATIENCE, renewed).await.unwrap();
}
