//! A new plugin's crate, and the component of a crate.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use trysail_plugins::hooks;

/// What guests are compiled for.
const TARGET: &str = "wasm32-unknown-unknown";

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
        (".gitignore", "/target\n".to_owned()),
        ("src/lib.rs", code(known, name)),
        ("cases/first/mesh.yaml", MESH.to_owned()),
        ("cases/first/plugin.yaml", case(known).to_owned()),
        ("README.md", README.replace("NAME", name).replace("HOOK", hook)),
    ];
    for (file, text) in files {
        let file = folder.join(file);
        let parent = file.parent().context("every file is in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{}: a plugin at {hook}", folder.display());
    println!("  trysail plugin test {} --bless   compiles it and writes what its first case changes", folder.display());
    println!("  look at cases/first/expected.yaml, then edit src/lib.rs");
    Ok(())
}

/// The SDK in the repository that this binary was built from, while it is still there.
fn own_sdk() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/sdk");
    folder.join("Cargo.toml").is_file().then(|| folder.canonicalize().ok()).flatten()
}

/// Compiles a crate and makes the component; the component's file.
pub(super) fn build(folder: &Path, out: Option<&Path>) -> Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        bail!("{} is no crate: it has no Cargo.toml", folder.display());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
    command.arg("--manifest-path").arg(&manifest).stderr(std::process::Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the plugin does not compile for {TARGET}; is the target there? rustup target add {TARGET}");
    }
    let modules = String::from_utf8_lossy(&output.stdout);
    let module = modules.lines().filter_map(artefact).next_back();
    let module = module.context("the crate makes no module: its [lib] needs crate-type = [\"cdylib\"]")?;
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let name = module.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin").replace('_', "-");
    let made = out.map_or_else(|| folder.join("target").join(format!("{name}.wasm")), Path::to_owned);
    let component = component(&bytes).with_context(|| format!("{} cannot be made a component", module.display()))?;
    if let Some(parent) = made.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(&made, component).with_context(|| format!("cannot write {}", made.display()))?;
    Ok(made)
}

/// The module that a line of cargo's says it made.
fn artefact(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let files = message.get("filenames").filter(|_| message["reason"] == "compiler-artifact")?.as_array()?;
    files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

/// The component of a module, with what the module carries for the host.
///
/// # Errors
/// When it is no module that was made with the SDK.
pub fn component(module: &[u8]) -> Result<Vec<u8>> {
    let mut component = wit_component::ComponentEncoder::default().validate(true).module(module)?.encode()?;
    let carried = trysail_plugins::configuration::schema(&component).map_err(anyhow::Error::msg)?;
    if let (None, Some(schema)) = (carried, trysail_plugins::configuration::schema(module).map_err(anyhow::Error::msg)?)
    {
        trysail_plugins::configuration::carry(&mut component, &schema);
    }
    Ok(component)
}

/// The code that a plugin begins with.
fn code(hook: &hooks::Hook, name: &str) -> String {
    let function = hook.name.replace('-', "_");
    let body = if hook.inserts { INSERTING } else { CHANGING };
    body.replace("FUNCTION", &function)
        .replace("HOOK", hook.name)
        .replace("MESSAGE", hook.message)
        .replace("NAME", name)
}

/// The document of the first case.
fn case(hook: &hooks::Hook) -> &'static str {
    if hook.inserts { INSERTING_CASE } else { CHANGING_CASE }
}

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

const CHANGING: &str = r##"//! NAME: a plugin at `HOOK`. Items there are `MESSAGE`.
//!
//! It is a pure function: asked about a fragment of configuration, it answers with edits. What it wants to know of the mesh it asks
//! through `ctx`; the control plane notes every question, and calls it again when an answer moves.

use serde::Deserialize;
use trysail_sdk::{Ctx, Edits, Failure, Fragment, Target};

/// `spec.configuration` of the Plugin document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Services that are changed: what their key (`namespace/host`) begins with.
    prefix: String,
    /// Fields that are merged into each item.
    merge: trysail_sdk::serde_json::Value,
}

/// Called for each fragment at the hook point.
pub fn apply(ctx: &Ctx<'_>, target: &Target, _fragment: &dyn Fragment) -> Result<Edits, Failure> {
    let configuration: Configuration = ctx.configuration()?;
    if !target.service.starts_with(&configuration.prefix) {
        return Ok(Edits::none());
    }
    Ok(Edits::none().merge("", configuration.merge))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_hooks! { FUNCTION: apply }

// What the configuration has to look like: held against every document before it is in force.
#[cfg(target_family = "wasm")]
trysail_sdk::configuration_schema! {
    r#"{"type": "object", "additionalProperties": false, "required": ["prefix", "merge"],
        "properties": {"prefix": {"type": "string"}, "merge": {"type": "object"}}}"#
}
"##;

const INSERTING: &str = r##"//! NAME: a plugin at `HOOK`, where `MESSAGE`s are inserted.
//!
//! It is a pure function: asked about a place in the configuration, it answers with what to put there. What it wants to know of the
//! mesh it asks through `ctx`; the control plane notes every question, and calls it again when an answer moves.

use serde::Deserialize;
use trysail_sdk::serde_json::Value;
use trysail_sdk::{Ctx, Edits, Failure, Fragment, Target};

/// `spec.configuration` of the Plugin document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// `inbound`, `outbound` or `gateway`.
    direction: String,
    /// What is inserted.
    message: Value,
}

/// Called for each place at the hook point.
pub fn apply(ctx: &Ctx<'_>, target: &Target, _fragment: &dyn Fragment) -> Result<Edits, Failure> {
    let configuration: Configuration = ctx.configuration()?;
    if target.direction != configuration.direction {
        return Ok(Edits::none());
    }
    Ok(Edits::none().put_json("NAME", configuration.message))
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_hooks! { FUNCTION: apply }

// What the configuration has to look like: held against every document before it is in force.
#[cfg(target_family = "wasm")]
trysail_sdk::configuration_schema! {
    r#"{"type": "object", "additionalProperties": false, "required": ["direction", "message"],
        "properties": {"direction": {"enum": ["inbound", "outbound", "gateway"]}, "message": {"type": "object"}}}"#
}
"##;

const CHANGING_CASE: &str = "# The spec of the Plugin document; where the component is, the test says.
configuration:
  prefix: shop/
  merge: {connect_timeout: 5s}
";

const INSERTING_CASE: &str = "# The spec of the Plugin document; where the component is, the test says.
configuration:
  direction: inbound
  message:
    name: envoy.filters.http.buffer
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
      max_request_bytes: 65536
";

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
    trysail plugin run target/NAME.wasm FOLDER      what it would change in any folder of YAML
    trysail plugin inspect target/NAME.wasm         hooks, line of interfaces, schema, size
    trysail plugin bench target/NAME.wasm           what it costs

To use it, put the component into the folder of `--plugins`, and apply:

    apiVersion: trysail.io/v1alpha1
    kind: Plugin
    metadata: {name: NAME, namespace: istio-system}
    spec:
      component: {file: NAME.wasm}
      configuration: {...}
      mode: shadow        # looks first; then enforce
";
