//! A new plugin's crate: code that does something at its hook point, and a first case of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use trysail_plugins::hooks::{self, Hook};

/// Writes a crate.
pub(super) fn new(name: &str, hook: &str, out: Option<&Path>, sdk: Option<&Path>) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(fits) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        bail!("{name:?} is no name for a plugin: it takes lower-case letters, digits and dashes, a letter first");
    }
    let known = hooks::find(hook).filter(|_| trysail_stages::component::HOOKS.contains(&hook));
    let known = known.with_context(|| {
        format!("there is no hook point {hook:?}; there are {}", trysail_stages::component::HOOKS.join(", "))
    })?;
    let folder = out.map_or_else(|| PathBuf::from(name), Path::to_owned);
    if folder.exists() {
        bail!("{} is there already", folder.display());
    }
    let sdk = match sdk {
        Some(folder) => {
            let folder = folder.canonicalize().with_context(|| format!("there is no folder {}", folder.display()))?;
            format!("{{ path = {:?} }}", folder.display().to_string())
        }
        None => own_sdk().map_or_else(
            || format!("\"{}\"", env!("CARGO_PKG_VERSION")),
            |folder| format!("{{ path = {:?} }}", folder.display().to_string()),
        ),
    };
    let files = [
        ("Cargo.toml", MANIFEST.replace("NAME", name).replace("SDK", &sdk)),
        ("rust-toolchain.toml", TOOLCHAIN.replace("CHANNEL", channel())),
        (".gitignore", "/target\n".to_owned()),
        ("src/lib.rs", code(known, name)),
        ("cases/first/mesh.yaml", MESH.to_owned()),
        ("cases/first/plugin.yaml", case(known)?),
        ("README.md", README.replace("NAME", name).replace("HOOK", hook)),
    ];
    for (file, text) in files {
        let file = folder.join(file);
        let parent = file.parent().context("every file is in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{}: a plugin at {hook}", folder.display());
    let folder = folder.display();
    println!(
        "  trysail plugin test {folder} --bless   compiles it (the first time takes minutes) and writes what its case changes"
    );
    println!(
        "  look at {folder}/cases/first/expected.yaml, then edit {folder}/src/lib.rs; {folder}/README.md says what else there is"
    );
    Ok(())
}

/// The SDK in the repository that this binary was built from, while it is still there.
fn own_sdk() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/sdk");
    folder.join("Cargo.toml").is_file().then(|| folder.canonicalize().ok()).flatten()
}

/// The toolchain that this Trysail is made with.
fn channel() -> &'static str {
    let lines = include_str!("../../../../rust-toolchain.toml").lines();
    lines
        .filter_map(|line| line.strip_prefix("channel = "))
        .map(|text| text.trim_matches('"'))
        .next()
        .unwrap_or("stable")
}

/// What a plugin at the hook point merges or inserts to begin with: something that Envoy takes.
fn example(hook: &str) -> Value {
    match hook {
        "clusters" | "patch" => json!({"connect_timeout": "5s"}),
        "endpoints" => json!({"policy": {"overprovisioning_factor": 150}}),
        "routes" | "virtual-hosts" | "route-configurations" => json!({"response_headers_to_remove": ["server"]}),
        "listeners" => json!({"per_connection_buffer_limit_bytes": 32768}),
        "filter-chains" => json!({"transport_socket_connect_timeout": "5s"}),
        "connection-managers" => json!({"stream_idle_timeout": "60s"}),
        "access-logs" => json!({"filter": {"response_flag_filter": {}}}),
        "transport-sockets" => json!({"typed_config": {"common_tls_context": {"tls_params":
            {"tls_minimum_protocol_version": "TLSv1_3"}}}}),
        "network-filters" => json!({"name": "envoy.filters.network.connection_limit", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
            "stat_prefix": "limit", "max_connections": 1000}}),
        "new-clusters" => json!({"name": "extra", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "extra", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                {"socket_address": {"address": "127.0.0.1", "port_value": 9000}}}}]}]}}),
        "new-listeners" => json!({"name": "extra",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 18080}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "extra", "cluster": "BlackHoleCluster"}}]}]}),
        // The slots of HTTP filters.
        _ => json!({"name": "envoy.filters.http.buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
            "max_request_bytes": 65536}}),
    }
}

/// Have the fragments at the hook point a service?
fn has_service(hook: &str) -> bool {
    matches!(hook, "clusters" | "routes")
}

/// The code that a plugin begins with.
fn code(hook: &Hook, name: &str) -> String {
    let body = if hook.inserts { INSERTING } else { CHANGING };
    let (message, selected) = match hook.name {
        "patch" => (
            "whole clusters, endpoints, listeners, route configurations and virtual hosts".to_owned(),
            "target.attribute(\"kind\") == \"cluster\" && target.service.starts_with(&configuration.prefix)",
        ),
        _ => (format!("`{}`", hook.message), "target.service.starts_with(&configuration.prefix)"),
    };
    body.replace("FUNCTION", &hook.name.replace('-', "_"))
        .replace("HOOK", hook.name)
        .replace("MESSAGE", &message)
        .replace("NAME", name)
        .replace("SELECTED", selected)
        .replace("EXAMPLE", &format!("{:#}", example(hook.name)).replace('\n', "\n    "))
}

/// The spec of the first case.
fn case(hook: &Hook) -> Result<String> {
    let example = example(hook.name);
    let configuration = match (hook.inserts, has_service(hook.name)) {
        (true, _) if hook.name.starts_with("new-") => json!({"message": example}),
        (true, _) => json!({"direction": "inbound", "message": example}),
        (false, true) => json!({"prefix": "shop/", "merge": example}),
        (false, false) => json!({"merge": example}),
    };
    let spec = serde_yaml_ng::to_string(&json!({"configuration": configuration}))?;
    Ok(format!("# The spec of the Plugin document; where the component is, the test says.\n{spec}"))
}

/// So that `cargo` has what guests need, wherever the crate lies.
const TOOLCHAIN: &str = r#"[toolchain]
channel = "CHANNEL"
profile = "minimal"
targets = ["wasm32-unknown-unknown"]
"#;

const MANIFEST: &str = r#"[package]
name = "NAME"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib", "rlib"]

[dependencies]
serde = { version = "1", features = ["derive"] }
trysail-sdk = SDK

[profile.release]
opt-level = "s"
lto = true
strip = "debuginfo"
panic = "abort"

# Its own workspace, wherever it lies.
[workspace]
"#;

const CHANGING: &str = r##"//! NAME: a plugin at `HOOK`. Items there are MESSAGE.
//!
//! It is a pure function: asked about a fragment of configuration, it answers with edits. What it wants to know of the mesh it asks
//! through `ctx`; the control plane notes every question, and calls it again when an answer moves.

use serde::Deserialize;
use trysail_sdk::serde_json::{Value, json};
use trysail_sdk::{Ctx, Edits, Failure, Fragment, Target};

/// `spec.configuration` of the Plugin document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// What is changed: that whose service's key (`namespace/host`) begins with this; everything when left out.
    #[serde(default)]
    prefix: String,
    /// Fields that are merged into each item.
    #[serde(default = "example")]
    merge: Value,
}

/// What is merged when nothing else is said.
fn example() -> Value {
    json!(EXAMPLE)
}

/// Called for each fragment at the hook point.
pub fn apply(ctx: &Ctx<'_>, target: &Target, _fragment: &dyn Fragment) -> Result<Edits, Failure> {
    let configuration: Configuration = ctx.configuration()?;
    let is_selected = SELECTED;
    if !is_selected {
        return Ok(Edits::none());
    }
    // Other edits: set, insert, remove, put. `ctx.namespace(...)`, `ctx.service(...)` and the like ask about the mesh;
    // `.diagnose(...)` tells people what is wrong with an object of theirs.
    Ok(Edits::none().merge("", configuration.merge))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_hooks! { FUNCTION: apply }

// What the configuration has to look like: held against every document before it is in force.
#[cfg(target_family = "wasm")]
trysail_sdk::configuration_schema! {
    r#"{"type": "object", "additionalProperties": false,
        "properties": {"prefix": {"type": "string"}, "merge": {"type": "object"}}}"#
}
"##;

const INSERTING: &str = r##"//! NAME: a plugin at `HOOK`, where items of MESSAGE are inserted.
//!
//! It is a pure function: asked about a place in the configuration, it answers with what to put there. What it wants to know of the
//! mesh it asks through `ctx`; the control plane notes every question, and calls it again when an answer moves.

use serde::Deserialize;
use trysail_sdk::serde_json::{Value, json};
use trysail_sdk::{Ctx, Edits, Failure, Fragment, Target};

/// `spec.configuration` of the Plugin document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// `inbound`, `outbound` or `gateway`; all when left out.
    direction: Option<String>,
    /// What is inserted.
    #[serde(default = "example")]
    message: Value,
}

/// What is inserted when nothing else is said.
fn example() -> Value {
    json!(EXAMPLE)
}

/// Called for each place at the hook point.
pub fn apply(ctx: &Ctx<'_>, target: &Target, _fragment: &dyn Fragment) -> Result<Edits, Failure> {
    let configuration: Configuration = ctx.configuration()?;
    if configuration.direction.is_some_and(|direction| direction != target.direction) {
        return Ok(Edits::none());
    }
    // `ctx.namespace(...)`, `ctx.service(...)` and the like ask about the mesh; `.diagnose(...)` tells people what is wrong with an
    // object of theirs.
    Ok(Edits::none().put_json("NAME", configuration.message))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_hooks! { FUNCTION: apply }

// What the configuration has to look like: held against every document before it is in force.
#[cfg(target_family = "wasm")]
trysail_sdk::configuration_schema! {
    r#"{"type": "object", "additionalProperties": false,
        "properties": {"direction": {"enum": ["inbound", "outbound", "gateway"]}, "message": {"type": "object"}}}"#
}
"##;

const MESH: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.0.0.10
  selector: {app: cart}
  ports:
  - {name: http, port: 80, targetPort: 8080}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec:
  serviceAccountName: cart
  containers:
  - {name: cart, image: cart, ports: [{containerPort: 8080}]}
status:
  phase: Running
  podIP: 10.1.0.10
  podIPs: [{ip: 10.1.0.10}]
  conditions: [{type: Ready, status: 'True'}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP}
endpoints:
- addresses: [10.1.0.10]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: cart-1, namespace: shop}
"#;

const README: &str = "# NAME

A Trysail plugin at the hook point `HOOK`.

    trysail plugin build              compiles it: target/NAME.wasm
    trysail plugin test               runs cases/: a mesh in YAML, the plugin's spec, what must change
    trysail plugin test --bless       writes what changes as what must change; look at it before you keep it
    trysail plugin run target/NAME.wasm FOLDER      what it would change in any folder of YAML;
                                      --spec cases/first/plugin.yaml says what it is told and what it may
    trysail plugin inspect target/NAME.wasm         hooks, line of interfaces, schema, size
    trysail plugin bench target/NAME.wasm           what it costs
    cargo doc -p trysail-sdk --open   what can be asked (`Ctx`), done (`Edits`) and is asked about (`Target`)

With `--envoy FILE`, `test` and `run` have a real Envoy validate what comes of it.
A case is a folder in cases/: any YAML of a mesh, and plugin.yaml; copy cases/first.

To use it, put the component into the folder of `--plugins`, and apply:

    apiVersion: trysail.io/v1alpha1
    kind: Plugin
    metadata: {name: NAME, namespace: istio-system}
    spec:
      component: {file: NAME.wasm}
      configuration: {...}
      mode: shadow        # looks first; then enforce
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_begins_with_is_of_the_messages_of_its_hook() {
        for name in trysail_stages::component::HOOKS {
            let hook = hooks::find(name).expect("it is a hook point");
            // At `patch` it is about clusters; of a socket's settings Envoy's message depends on the socket.
            let message = if hook.message.is_empty() { "envoy.config.cluster.v3.Cluster" } else { hook.message };
            if hook.name != "transport-sockets" {
                trysail_codec::json::from_json(message, &example(name), Default::default())
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            let code = code(hook, "some-plugin");
            for left in ["FUNCTION", "HOOK", "MESSAGE", "NAME", "SELECTED", "EXAMPLE"] {
                assert!(!code.contains(left), "{name}: {left} is left in the code");
            }
            let case: Value = serde_yaml_ng::from_str(&case(hook).expect("it is YAML")).expect("it is YAML");
            assert!(case["configuration"].is_object(), "{name}");
        }
    }

    #[test]
    fn the_toolchain_is_that_of_the_repository() {
        assert!(channel().starts_with("1."), "{}", channel());
    }
}
