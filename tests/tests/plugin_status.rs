//! Plugins in a cluster, against the real kube-apiserver: components in ConfigMaps, replaced while everything runs, and what their
//! documents' status says of effect, shadow, conflicts, faults, and what proxies rejected.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use trysail_tests::ads::{CLUSTER, Config, Proxy};
use trysail_tests::cluster::{self, ApiServer, Cluster};
use trysail_tests::replica::Replica;
use trysail_tests::{aloud, control_plane, eventually, quiet};

#[path = "support/components.rs"]
mod components;
#[path = "support/definitions.rs"]
mod definitions;

const PATIENCE: Duration = Duration::from_secs(60);
/// When nothing came for so long, nothing comes.
const QUIET: Duration = Duration::from_millis(700);
const ROOT: &str = "istio-system";
const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
const API: &str = "trysail.io/v1alpha1";

/// A service, and a pod of a client.
fn world() -> Vec<Value> {
    let status = json!({"phase": "Running", "podIP": "10.200.1.1", "podIPs": [{"ip": "10.200.1.1"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ROOT}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "client-1", "labels": {"app": "client"}},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "x"}]}, "status": status}),
    ]
}

fn config_map(namespace: &str, name: &str, component: &[u8]) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "labels": {"trysail.io/plugin": "true"}},
        "binaryData": {"plugin.wasm": BASE64_STANDARD.encode(component)}})
}

/// A plugin whose component is in a ConfigMap of its namespace.
fn plugin(namespace: &str, name: &str, map: &str, more: Value) -> Value {
    let mut spec = json!({"component": {"configMap": {"name": map, "key": "plugin.wasm"}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": API, "kind": "Plugin", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// What gives calls to a host so many seconds to connect.
fn patches(service: &str, seconds: u32) -> Value {
    json!({"patches": [{"hook": "clusters", "service": service, "merge": {"value": {"connect_timeout": format!("{seconds}s")}}}]})
}

fn connect_timeout(config: &Config) -> Option<String> {
    let held = config.get(CLUSTER)?.get(WEB)?;
    let cluster = trysail_codec::json::to_json("envoy.config.cluster.v3.Cluster", &held.body).unwrap();
    cluster["connect_timeout"].as_str().map(str::to_owned)
}

fn is(seconds: u32) -> impl Fn(&Config) -> bool {
    let wanted = format!("{seconds}s");
    move |config| connect_timeout(config).as_ref() == Some(&wanted)
}

/// A condition of a status: status, reason, message.
fn condition<'a>(status: &'a Value, kind: &str) -> [&'a str; 3] {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null);
    ["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default())
}

async fn until_status(
    client: &Cluster,
    namespace: &str,
    name: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let ask = || async {
        let found = client.get([API, "Plugin", namespace, name]).await?.unwrap_or_default();
        let status = &found["status"];
        anyhow::ensure!(is_so(status), "{status:#}");
        Ok(status.clone())
    };
    eventually(what, PATIENCE, ask).await.unwrap()
}

async fn until_state(client: &Cluster, name: &str, state: &str) -> Value {
    until_status(client, ROOT, name, &format!("{name}: {state}"), |status| status["state"] == state).await
}

/// What `kubectl get plugins` prints of one: the columns' names and its cells.
async fn printed(client: &Cluster, name: &str) -> Vec<(String, Value)> {
    let request = hyper::Request::get(format!("/apis/{API}/namespaces/{ROOT}/plugins/{name}"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let table: Value = serde_json::from_str(&client.raw().request_text(request).await.unwrap()).unwrap();
    let names = table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap());
    names.map(str::to_owned).zip(table["rows"][0]["cells"].as_array().unwrap().iter().cloned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_says_what_becomes_of_its_plugins() {
    let server = ApiServer::start(cluster::Config { rights: cluster::Rights::All, ..Default::default() }, aloud).await;
    let server = server.unwrap();
    let client = server.client().await.unwrap();
    client.define(&definitions::all()).await.unwrap();
    client.apply(&world()).await.unwrap();
    let compiled = |package: &'static str| tokio::task::spawn_blocking(move || components::component(package));
    let patch = compiled("plugin-patch").await.unwrap();
    let hooks = json!(["clusters"]);
    let slow = plugin(ROOT, "slow", "patch", json!({"hooks": hooks, "configuration": patches("shop/*", 25)}));
    client.apply(&[config_map(ROOT, "patch", &patch), slow]).await.unwrap();
    // The server itself refuses what could not work.
    let digest = format!("registry.example/patch@sha256:{}", "0".repeat(64));
    for (component, words) in [
        (json!({"image": "registry.example/patch:latest"}), "an image is named by its digest"),
        (json!({"builtin": "patch", "imagePullSecret": "s"}), "imagePullSecret is for an image"),
        (json!({"builtin": "patch", "image": digest}), "one of builtin, file, configMap, image"),
    ] {
        let mut bad = plugin(ROOT, "bad", "patch", json!({}));
        bad["spec"]["component"] = component;
        let error = format!("{:#}", client.create(&bad).await.unwrap_err());
        assert!(error.contains("spec.component") && error.contains(words), "{error}");
    }

    let kubeconfig = server.kubeconfig().display().to_string();
    let binary = tokio::task::spawn_blocking(|| control_plane::binary(quiet).unwrap()).await.unwrap();
    let environment = [("POD_NAME", "replica"), ("PILOT_DEBOUNCE_AFTER", "20ms")];
    let mut replica = Replica::sandboxed(&binary, &["--kubeconfig", &kubeconfig], &environment).unwrap();
    replica.ready().await.unwrap();
    let mut web = Proxy::sidecar("client-1", "shop", "10.200.1.1", &json!({"app": "client"}));
    web.connect(replica.xds().unwrap()).await.unwrap();
    web.until("the effect", PATIENCE, is(25)).await.unwrap();

    // In force, with an effect.
    web.settle(QUIET).await.unwrap();
    let status = until_state(&client, "slow", "effective").await;
    assert_eq!(condition(&status, "InForce")[..2], ["True", "Loaded"]);
    let [holds, reason, message] = condition(&status, "Effective");
    assert!((holds, reason) == ("True", "Changes") && message.starts_with("it changes 1 of the "), "{message}");
    assert_eq!((&status["hooks"], &status["changed"], &status["faults"]), (&hooks, &json!(1), &json!(0)));
    let first = status["digest"].as_str().unwrap().to_owned();
    let cells = printed(&client, "slow").await;
    let cell = |name: &str| cells.iter().find(|(column, _)| column == name).map(|(_, cell)| cell.clone()).unwrap();
    assert_eq!([cell("State"), cell("In Force"), cell("Mode")], ["effective", "True", "enforce"]);
    assert_eq!([cell("Changed"), cell("Faults"), cell("Rejected"), cell("Conflicts")], [1, 0, 0, 0]);

    // Another version in the ConfigMap; a broken one; a good one again.
    client.apply(&[config_map(ROOT, "patch", &components::version(&patch, "second"))]).await.unwrap();
    let is_other = |status: &Value| status["digest"].as_str().is_some_and(|digest| digest != first);
    let second = until_status(&client, ROOT, "slow", "the second version", is_other).await["digest"].clone();
    client.apply(&[config_map(ROOT, "patch", &patch[..patch.len() / 2])]).await.unwrap();
    let is_broken = |status: &Value| condition(status, "InForce")[1] == "NotLoaded";
    let status = until_status(&client, ROOT, "slow", "the broken version", is_broken).await;
    let [holds, _, message] = condition(&status, "InForce");
    assert!(holds == "False" && message.contains("the version before it stays in force"), "{message}");
    assert_eq!((&status["digest"], &status["state"]), (&second, &json!("effective")));
    assert!(web.settle(QUIET).await.unwrap().is_empty() && is(25)(&web.config));
    client.apply(&[config_map(ROOT, "patch", &patch)]).await.unwrap();
    let is_mended = |status: &Value| condition(status, "InForce")[0] == "True" && status["digest"] == json!(first);
    until_status(&client, ROOT, "slow", "it is mended", is_mended).await;

    // Shadow, no effect, a post-condition, a tenant's.
    let shadow = json!({"mode": "shadow", "hooks": hooks, "configuration": patches("shop/*", 26)});
    let idle = json!({"hooks": hooks, "configuration": patches("shop/other.shop.svc.cluster.local", 27)});
    let mut strict = idle.clone();
    strict["postConditions"] = json!({"changesAtLeast": 1});
    client.apply(&[plugin(ROOT, "shadow", "patch", shadow), plugin(ROOT, "idle", "patch", idle)]).await.unwrap();
    client
        .apply(&[plugin(ROOT, "strict", "patch", strict), plugin("shop", "tenant", "patch", json!({}))])
        .await
        .unwrap();
    let status = until_state(&client, "shadow", "shadow").await;
    assert_eq!(condition(&status, "InForce")[..2], ["False", "Shadow"]);
    assert!(condition(&status, "Effective")[2].starts_with("it would change 1 of the "), "{status:#}");
    let status = until_state(&client, "idle", "no effect").await;
    assert_eq!(condition(&status, "Effective")[..2], ["False", "NoEffect"]);
    assert_eq!(condition(&status, "InForce")[0], "True");
    let status = until_state(&client, "strict", "post-condition failed").await;
    assert!(condition(&status, "Effective")[2].contains("changesAtLeast is 1"), "{status:#}");
    // A ConfigMap of another namespace is not his.
    let is_told = |status: &Value| condition(status, "InForce")[1] == "NotLoaded";
    let status = until_status(&client, "shop", "tenant", "a tenant's", is_told).await;
    assert!(condition(&status, "InForce")[2].contains("there is no ConfigMap \"patch\""), "{status:#}");
    assert_eq!(status["state"], "not loaded");

    // Two that write one field: both are told, with who wins.
    let later = json!({"order": 1, "hooks": hooks, "configuration": patches("shop/*", 30)});
    client.apply(&[plugin(ROOT, "later", "patch", later)]).await.unwrap();
    web.until("the later one wins", PATIENCE, is(30)).await.unwrap();
    for (name, other, wins) in [("slow", "later", false), ("later", "slow", true)] {
        let has_met = |status: &Value| status["conflicts"] == 1;
        let status = until_status(&client, ROOT, name, "a conflict", has_met).await;
        let wanted = json!({"with": format!("{ROOT}/{other}"), "item": WEB, "path": "connect_timeout", "wins": wins});
        assert_eq!(status["conflictsWith"], json!([wanted]));
        let lost = format!("{ROOT}/later has the last word");
        assert_eq!(condition(&status, "Effective")[2].contains(&lost), !wins, "{status:#}");
    }

    // What a proxy rejects is laid at the door of the one that wrote it.
    web.refuse(Some((
        CLUSTER,
        "Error adding/updating cluster(s) outbound|80||web.shop.svc.cluster.local: connect_timeout: greater than 30s",
    )));
    let worse = json!({"order": 1, "hooks": hooks, "configuration": patches("shop/*", 31)});
    client.apply(&[plugin(ROOT, "later", "patch", worse)]).await.unwrap();
    let pump = tokio::spawn(async move {
        // It goes on answering until its stream ends.
        while web.settle(Duration::from_secs(1)).await.is_ok() {}
    });
    let is_rejected = |status: &Value| status["rejections"].as_u64().is_some_and(|n| n > 0);
    let status = until_status(&client, ROOT, "later", "a rejection", is_rejected).await;
    assert_eq!(condition(&status, "Effective")[..2], ["False", "Rejected"]);
    assert!(condition(&status, "Effective")[2].contains("rejected"), "{status:#}");

    // One that traps wherever it is called.
    let hostile = compiled("hostile-guests").await.unwrap();
    client
        .apply(&[
            config_map(ROOT, "rascal", &hostile),
            plugin(ROOT, "rascal", "rascal", json!({"hooks": ["http-filters"]})),
        ])
        .await
        .unwrap();
    let status = until_state(&client, "rascal", "faulty").await;
    assert!(status["faults"].as_u64().is_some_and(|n| n > 0), "{status:#}");
    let [holds, reason, message] = condition(&status, "Effective");
    assert!((holds, reason) == ("False", "Faulty") && message.contains("faults since the start"), "{message}");
    pump.abort();
}
