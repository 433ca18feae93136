//! Plugins by image, from end to end: documents in a folder, a registry, the control plane as a program, and what a proxy is sent.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use registry::{Guarded, Registry, Trouble};
use serde_json::{Value, json};
use trysail_tests::ads::{CLUSTER, Config, Proxy};
use trysail_tests::replica::Replica;
use trysail_tests::{control_plane, eventually, quiet, workspace};

#[path = "support/components.rs"]
mod components;
#[allow(dead_code, reason = "another suite uses the rest of it")]
#[path = "support/folder.rs"]
mod folder;
#[path = "../../host/images/tests/support/registry.rs"]
mod registry;

use folder::Folder;

const PATIENCE: Duration = Duration::from_secs(60);
/// When nothing came for so long, nothing comes.
const QUIET: Duration = Duration::from_millis(700);
const BACKEND: &str = "outbound|80||backend.default.svc.cluster.local";

/// A document that gives calls to the backend so many seconds to connect.
fn document(image: &str, seconds: u32) -> String {
    let patch = json!({"hook": "clusters", "service": "*/backend.default.svc.cluster.local",
        "merge": {"value": {"connect_timeout": format!("{seconds}s")}}});
    let component = json!({"image": image, "imagePullSecret": "regcred"});
    json!({"apiVersion": "trysail.io/v1alpha1", "kind": "Plugin", "metadata": {"namespace": "istio-system", "name": "slow"},
        "spec": {"component": component, "hooks": ["clusters"], "configuration": {"patches": [patch]}}})
    .to_string()
}

fn pull_secret(host: &str) -> String {
    let login = json!({"auths": {host: {"username": "mesh", "password": "secret"}}}).to_string();
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"namespace": "istio-system", "name": "regcred"}, "stringData": {".dockerconfigjson": login}})
    .to_string()
}

fn connect_timeout(config: &Config) -> Option<String> {
    let held = config.get(CLUSTER)?.get(BACKEND)?;
    let cluster = trysail_codec::json::to_json("envoy.config.cluster.v3.Cluster", &held.body).unwrap();
    cluster["connect_timeout"].as_str().map(str::to_owned)
}

async fn proxy(replica: &mut Replica) -> Proxy {
    let mut proxy = Proxy::sidecar("frontend-v1-abc", "default", "10.244.0.11", &json!({"app": "frontend"}));
    proxy.connect(replica.xds().unwrap()).await.unwrap();
    proxy
}

/// The plugin's part of the page of states.
async fn plugin(replica: &Replica) -> anyhow::Result<Value> {
    let (_, page) = Replica::page(replica.http, "/debug/status").await?;
    let page: Value = serde_json::from_str(&page)?;
    page["plugins"].as_array().and_then(|all| all.first()).cloned().ok_or_else(|| anyhow::anyhow!("no plugin"))
}

async fn until_state(replica: &Replica, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let ask = || async {
        let found = plugin(replica).await?;
        anyhow::ensure!(is_so(&found), "{found:#}\n{}", replica.lines().join("\n"));
        Ok(found)
    };
    eventually(what, PATIENCE, ask).await.unwrap()
}

async fn fetches(replica: &Replica, result: &str) -> u64 {
    let (_, metrics) = Replica::page(replica.monitoring, "/metrics").await.unwrap();
    let wanted = format!("trysail_image_fetches_total{{result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok()).unwrap_or_default()
}

/// A cache of its own for images, with the stages that were compiled for others before.
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let compiled = trysail::pipeline::cache_folder().unwrap().join("components");
    std::fs::create_dir_all(&compiled).unwrap();
    std::os::unix::fs::symlink(compiled, cache.path().join("components")).unwrap();
    cache
}

fn start(binary: &Path, folder: &Folder, cache: &Path, registry: &str) -> Replica {
    let folder = folder.path().display().to_string();
    let args = ["--configDir", &folder, "--registries=", "--insecure-registries", registry];
    let cache = cache.display().to_string();
    let environment = [("TRYSAIL_CACHE", cache.as_str()), ("PILOT_DEBOUNCE_AFTER", "20ms")];
    Replica::sandboxed(binary, &args, &environment).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_stays_and_is_replaced() {
    let binary = tokio::task::spawn_blocking(|| control_plane::binary(quiet).unwrap()).await.unwrap();
    let (cache, registry) = (cache(), Registry::start().await);
    registry.guard(Guarded::Token("mesh", "secret", None));
    let patch = tokio::task::spawn_blocking(|| components::component("plugin-patch")).await.unwrap();
    let first = registry.put_wasm("mesh/patch", &patch);
    let folder = Folder::copy(&workspace().join("examples/frontend-backend"));
    folder.write("secret.json", &pull_secret(&registry.host()));

    // Everything else goes on while the registry says nothing.
    registry.trouble(Trouble::Silence);
    folder.write("plugin.json", &document(&first, 25));
    let mut replica = start(&binary, &folder, cache.path(), &registry.host());
    replica.ready().await.unwrap();
    let mut front = proxy(&mut replica).await;
    front.until("clusters", PATIENCE, |config| connect_timeout(config).is_some()).await.unwrap();
    assert_eq!(connect_timeout(&front.config).as_deref(), Some("10s"));
    let state = until_state(&replica, "it is on its way", |plugin| plugin["state"] == "on its way").await;
    assert_eq!((&state["digest"], &state["error"]), (&Value::Null, &Value::Null));

    // It comes, and nobody has to do anything.
    registry.trouble(Trouble::None);
    replica.line("plugin istio-system/slow in force at clusters").unwrap();
    let is_25 = |config: &Config| connect_timeout(config).as_deref() == Some("25s");
    front.until("its effect", PATIENCE, is_25).await.unwrap();
    front.settle(QUIET).await.unwrap();
    let state = until_state(&replica, "it works", |plugin| plugin["state"] == "effective").await;
    assert_eq!(state["image"], json!(first));
    assert_eq!(fetches(&replica, "fetched").await, 1);

    // Another one that is not there: what is in force stays, with its configuration, and the reason is told.
    let absent = format!("{}/mesh/patch@{}", registry.host(), registry::digest(b"absent"));
    folder.write("plugin.json", &document(&absent, 27));
    let state = until_state(&replica, "why not", |plugin| !plugin["error"].is_null()).await;
    let error = state["error"].as_str().unwrap();
    assert!(error.starts_with("spec.component.image: ") && error.contains("has no mesh/patch@sha256:"), "{error}");
    assert_eq!((&state["state"], &state["image"]), (&json!("effective"), &json!(first)));
    assert!(front.settle(QUIET).await.unwrap().is_empty());
    // One by a tag is refused as a document.
    folder.write("plugin.json", &document(&format!("{}/mesh/patch:latest", registry.host()), 27));
    replica.line("spec.component.image: an image is named by its digest").unwrap();
    assert!(is_25(&front.config));

    // A restart without a registry.
    folder.write("plugin.json", &document(&first, 25));
    let host = registry.host();
    drop((replica, front, registry));
    let mut replica = start(&binary, &folder, cache.path(), &host);
    replica.ready().await.unwrap();
    let mut front = proxy(&mut replica).await;
    front.until("clusters", PATIENCE, |config| connect_timeout(config).is_some()).await.unwrap();
    assert!(is_25(&front.config), "from the first answer on");
    assert_eq!((fetches(&replica, "cached").await, fetches(&replica, "fetched").await), (1, 0));

    // It is back, and a new version is pushed as its author would.
    let registry = Registry::start_at(host.parse().unwrap()).await;
    registry.guard(Guarded::Token("mesh", "secret", None));
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("patch.wasm"), components::version(&patch, "second")).unwrap();
    let login = json!({"auths": {&host: {"username": "mesh", "password": "secret"}}});
    std::fs::write(home.path().join("config.json"), login.to_string()).unwrap();
    let mut push = Command::new(&binary);
    push.args(["plugin", "push", "patch.wasm", &format!("{host}/mesh/patch:2"), "--insecure-registries", &host]);
    push.current_dir(home.path()).env("DOCKER_CONFIG", home.path());
    let mut inspect = Command::new(&binary);
    inspect.args(["plugin", "inspect", "--json", "--insecure-registries", &host]).env("DOCKER_CONFIG", home.path());
    let (second, inspected) = tokio::task::spawn_blocking(move || {
        let pushed = push.output().unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        let second = String::from_utf8(pushed.stdout).unwrap().trim().to_owned();
        let inspected = inspect.arg(&second).output().unwrap();
        assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
        (second, serde_json::from_slice::<Value>(&inspected.stdout).unwrap())
    })
    .await
    .unwrap();
    assert!(second.starts_with(&format!("{host}/mesh/patch@sha256:")) && second != first, "{second}");
    assert!(inspected["hooks"].as_array().unwrap().contains(&json!("clusters")), "{inspected}");
    folder.write("plugin.json", &document(&second, 28));
    let is_28 = |config: &Config| connect_timeout(config).as_deref() == Some("28s");
    front.until("the new version", PATIENCE, is_28).await.unwrap();
    let state = until_state(&replica, "it works", |plugin| plugin["image"] == json!(second)).await;
    assert_eq!(state["digest"], inspected["digest"]);
}
