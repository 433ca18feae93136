//! `trysail render`: what proxies would be sent, as files, in the form of the conformance corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use trysail_ca::sds::{Everybody, SecretStore};
use trysail_discovery::{Folder, load_folder};
use trysail_facts::FactsSnapshot;
use trysail_facts::inputs::{Inputs, Settings};
use trysail_model::ids::type_urls;
use trysail_model::{Identity, Proxy, ResourceName, Secrets as _, TypeUrl, View, Watched};
use trysail_sdk::Diagnostic;
use trysail_stages::{Engine, gate};

use crate::nowhere;
use crate::pipeline::{self, Loaded, Options};

/// A proxy of a scenario.
pub struct Scripted {
    /// Name of the folder of its files.
    pub name: String,
    /// The proxy, or why its node was refused.
    pub proxy: Result<Proxy, trysail_model::proxy::NodeError>,
    /// Names that it asks for by type (`rds`), in place of those discovered.
    pub request: BTreeMap<String, Vec<String>>,
    /// Asks for the agent's name table.
    pub name_table: bool,
    /// Who it is; `None` on the plaintext port, where no secrets are served.
    pub identity: Option<Identity>,
}

impl Scripted {
    /// A proxy that asks for what Envoy would.
    pub fn plain(proxy: Proxy) -> Scripted {
        let name = proxy.id.to_string();
        Scripted { name, proxy: Ok(proxy), request: BTreeMap::new(), name_table: false, identity: None }
    }
}

/// Reads `proxies.yaml`.
///
/// # Errors
/// When it is not a list of proxies with names and nodes.
pub fn proxies(document: &Value) -> Result<Vec<Scripted>> {
    let list = document.as_array().context("a list of proxies was expected, each with `name` and `node`")?;
    list.iter().enumerate().map(|(i, entry)| scripted(entry).with_context(|| format!("proxy {}", i + 1))).collect()
}

fn scripted(entry: &Value) -> Result<Scripted> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text(entry, "name");
    if name.is_empty() || name.contains(['/', '\0']) || name == ".." {
        bail!("`name` is missing or no file name");
    }
    let node = entry.get("node").context("`node` is missing")?;
    let metadata = node.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    // Node documents are protobuf JSON, which may spell a field either way.
    let part = |keys: [&str; 2]| {
        let locality = node.get("locality");
        keys.into_iter().filter_map(|key| locality?.get(key)?.as_str()).next().unwrap_or_default().to_owned()
    };
    let locality = [part(["region", "region"]), part(["zone", "zone"]), part(["sub_zone", "subZone"])];
    let name_table =
        metadata.get("DNS_CAPTURE").is_some_and(|v| v.as_bool() == Some(true) || v.as_str() == Some("true"));
    let mut request = BTreeMap::new();
    for (kind, names) in entry.get("request").and_then(Value::as_object).into_iter().flatten() {
        let names = names.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned));
        request.insert(kind.clone(), names.collect());
    }
    let given = text(entry, "identity");
    let account = metadata.get("SERVICE_ACCOUNT").and_then(Value::as_str).unwrap_or("default").to_owned();
    let proxy = Proxy::from_node(&text(node, "id"), metadata, locality);
    let identity = match &*given {
        "none" => None,
        "" => proxy.as_ref().ok().map(|proxy| Identity::new("cluster.local", &proxy.namespace, &account)),
        given => Some(given.parse().context("`identity`")?),
    };
    Ok(Scripted { name, proxy, request, name_table, identity })
}

/// The facts of a loaded folder.
pub fn inputs(folder: &Folder) -> Inputs {
    let value = |value: &Option<Arc<Value>>| value.as_ref().map_or(Value::Null, |value| (**value).clone());
    let env = value(&folder.settings.env);
    let env = env
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    Inputs {
        objects: pipeline::for_stages(folder.objects.clone()),
        mesh: value(&folder.settings.mesh),
        networks: value(&folder.settings.networks),
        environment: env.collect(),
        settings: Settings::default(),
    }
}

/// What became of a scenario.
#[derive(Debug, Default)]
pub struct Rendered {
    /// Resources written.
    pub n_resources: usize,
    /// Documents that an API server would have refused; they are translated all the same.
    pub refused: Vec<String>,
    /// What else is to be said.
    pub warnings: Vec<String>,
}

/// The views of a proxy as it would ask for them: clusters, the endpoints they name, listeners, the routes these name.
pub struct Views {
    /// Short type name and view.
    pub views: Vec<(&'static str, Arc<View>)>,
    /// Root nodes, for diagnostics.
    pub roots: Vec<Arc<trysail_stages::node::Node>>,
    /// Faults met.
    pub faults: Vec<String>,
}

/// Asks for everything that a proxy would ask for.
pub fn views(engine: &Arc<Engine>, scripted: &Scripted, proxy: &Proxy) -> Views {
    let mut all = Views { views: Vec::new(), roots: Vec::new(), faults: Vec::new() };
    let ask = |short: &'static str, type_url: &str, watched: Watched, all: &mut Views| {
        let type_url = TypeUrl::from(type_url);
        let mut served = engine.resources(proxy, &type_url, &watched);
        if served.faults.iter().any(|fault| matches!(fault.kind, trysail_stages::FaultKind::Slow(_))) {
            engine.settle();
            served = engine.resources(proxy, &type_url, &watched);
        }
        all.faults.extend(served.faults.iter().map(ToString::to_string));
        let view = served.node.as_ref().map(|node| node.entries.view());
        all.roots.extend(served.node);
        all.views.extend(view.map(|view| (short, view)));
    };
    ask("cds", type_urls::CLUSTER, Watched::Wildcard, &mut all);
    ask("lds", type_urls::LISTENER, Watched::Wildcard, &mut all);
    let mut refs: BTreeMap<&str, BTreeSet<trysail_model::ResourceName>> = BTreeMap::new();
    for root in &all.roots {
        root.entries.for_each(&mut |item| {
            for reference in item.refs.iter() {
                if let Some((kind, name)) = reference.split_once(':') {
                    let Some(kind) = ["eds", "rds", "ecds"].into_iter().find(|known| *known == kind) else { continue };
                    refs.entry(kind).or_default().insert(name.into());
                }
            }
        });
    }
    for (short, type_url) in [("eds", type_urls::ENDPOINT), ("rds", type_urls::ROUTE), ("ecds", type_urls::EXTENSION)] {
        let mut names = refs.remove(short).unwrap_or_default();
        if let Some(asked) = scripted.request.get(short) {
            names = asked.iter().map(|name| name.as_str().into()).collect();
        }
        if !names.is_empty() {
            ask(short, type_url, Watched::Names(Arc::new(names)), &mut all);
        }
    }
    if scripted.name_table {
        ask("nds", type_urls::NAME_TABLE, Watched::Wildcard, &mut all);
    }
    all
}

/// What there is to say about a proxy's resources: by stages and plugins, by the gate, and of routes that lead nowhere.
pub fn diagnostics(engine: &Arc<Engine>, proxy: &Proxy, all: &Views) -> Vec<Diagnostic> {
    let mut diagnostics = engine.diagnostics(proxy, &all.roots);
    diagnostics.extend(nowhere::diagnostics(&all.views));
    diagnostics
}

/// A diagnostic as a line.
pub fn line(diagnostic: &Diagnostic) -> String {
    let Diagnostic { severity, object, field, message, code: _ } = diagnostic;
    let field = if field.is_empty() { String::new() } else { format!(" {field}") };
    format!("{severity:?} {object}{field}: {message}")
}

/// Renders one scenario folder.
///
/// # Errors
/// When the folder cannot be read or the output not be written. Refused documents are no error.
pub fn scenario(
    options: &Options,
    pipeline: &Loaded,
    folder: &Path,
    proxies_file: Option<&Path>,
    out: &Path,
    show_secrets: bool,
) -> Result<Rendered> {
    let config = trysail_discovery::Config::scenario();
    let loaded = load_folder(folder, &config).with_context(|| format!("cannot read {}", folder.display()))?;
    let document = match proxies_file {
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))?
        }
        None => loaded.settings.proxies.as_deref().cloned().with_context(|| {
            format!("{} has no proxies.yaml: say which proxies with --proxies FILE", folder.display())
        })?,
    };
    let scripted = proxies(&document).with_context(|| format!("proxies of {}", folder.display()))?;
    let mut rendered = Rendered::default();
    rendered.refused.extend(loaded.status.rejections.iter().map(ToString::to_string));
    rendered.warnings.extend(loaded.status.warnings.iter().map(ToString::to_string));
    // Whether an account may read secrets a cluster says; here whoever asks sees the whole folder anyway.
    let secrets = SecretStore::new(Some(Arc::new(Everybody)));
    secrets.configure(loaded.settings.mesh.as_deref().unwrap_or(&Value::Null));
    secrets.apply(loaded.objects.iter().map(|object| (&object.reference, Some(object))));
    let secrets = Rendering { secrets, shows_keys: show_secrets };
    let snapshot = Arc::new(FactsSnapshot::new(inputs(&loaded)));
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let unused: String = snapshot.unused().iter().map(|unused| format!("{unused}\n")).collect();
    write_lines(&out.join("unused.txt"), &unused)?;
    let engine = pipeline::engine(options, pipeline.stages.clone(), snapshot);
    let root_namespace = Settings::default().system_namespace;
    if let Some(mut plugins) = pipeline::catalogue(pipeline, options, &root_namespace) {
        plugins.apply(loaded.objects.iter().map(|object| (&object.reference, Some(object))));
        plugins.refresh(&engine);
        let errors = plugins.status().into_iter().filter_map(|plugin| Some((plugin.name, plugin.error?)));
        rendered.warnings.extend(errors.map(|(name, error)| format!("plugin {name}: {error}")));
    }
    for scripted in &scripted {
        let folder = out.join(&scripted.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        match &scripted.proxy {
            Ok(proxy) => rendered.n_resources += write_proxy(&engine, &secrets, scripted, proxy, &folder)?,
            Err(error) => write(&folder.join("error.txt"), &format!("{error}\n"))?,
        }
    }
    Ok(rendered)
}

fn write_proxy(
    engine: &Arc<Engine>,
    secrets: &Rendering,
    scripted: &Scripted,
    proxy: &Proxy,
    folder: &Path,
) -> Result<usize> {
    let all = views(engine, scripted, proxy);
    let mut n_resources = 0;
    let mut names = BTreeSet::new();
    for (short, view) in &all.views {
        let type_url = type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(short));
        let type_url = type_url.context("every served type has a short name")?;
        let json = |resource: &Arc<trysail_model::Resource>| {
            let printed = trysail_codec::json::to_json(type_url, &resource.body.to_bytes());
            let printed = printed.with_context(|| format!("{short} resource {} is not printable", resource.name))?;
            Ok(typed(type_url, printed))
        };
        let list: Vec<Value> = view.resources.iter().map(json).collect::<Result<_>>()?;
        n_resources += list.len();
        list.iter().for_each(|resource| secret_names(resource, &mut names));
        write(&folder.join(format!("{short}.json")), &format!("{:#}\n", Value::Array(list)))?;
    }
    if let Some(asked) = scripted.request.get("sds") {
        names = asked.iter().map(|name| name.as_str().into()).collect();
    }
    if let (Some(identity), false) = (&scripted.identity, names.is_empty()) {
        let list = secrets.list(identity, proxy, &names)?;
        n_resources += list.len();
        write(&folder.join("sds.json"), &format!("{:#}\n", Value::Array(list)))?;
    }
    let diagnostics = diagnostics(engine, proxy, &all);
    let (gate, other): (Vec<_>, Vec<_>) = diagnostics.iter().partition(|d| d.message.starts_with(gate::FOUND));
    let line = |d: &&Diagnostic| format!("{}\n", line(d));
    for (file, lines) in [
        ("gate.txt", gate.iter().map(line).collect::<String>()),
        ("diagnostics.txt", other.iter().map(line).collect()),
        ("faults.txt", all.faults.iter().map(|fault| format!("{fault}\n")).collect()),
    ] {
        write_lines(&folder.join(file), &lines)?;
    }
    Ok(n_resources)
}

/// A file of lines; none without any.
fn write_lines(path: &Path, lines: &str) -> Result<()> {
    if lines.is_empty() {
        let _ = fs::remove_file(path);
        return Ok(());
    }
    write(path, lines)
}

/// Secrets as they are printed.
struct Rendering {
    secrets: SecretStore,
    shows_keys: bool,
}

impl Rendering {
    fn list(&self, identity: &Identity, proxy: &Proxy, names: &BTreeSet<ResourceName>) -> Result<Vec<Value>> {
        let visible = self.secrets.visible(identity, proxy, names);
        let bodies = visible.iter().filter_map(|(name, version)| self.secrets.body(identity, proxy, name, *version));
        let json = |body: bytes::Bytes| {
            let printed =
                trysail_codec::json::to_json(type_urls::SECRET, &body).context("a secret is not printable")?;
            let mut printed = typed(type_urls::SECRET, printed);
            if !self.shows_keys {
                redact(&mut printed);
            }
            Ok(printed)
        };
        bodies.map(json).collect()
    }
}

/// Takes private keys out, wherever they stand.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match key.as_str() {
                    "private_key" => *value = serde_json::json!({"inline_string": "[redacted]"}),
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// Names of secrets that a resource takes from the control plane (and not from the agent).
fn secret_names(value: &Value, names: &mut BTreeSet<ResourceName>) {
    match value {
        Value::Object(fields) => {
            let from_us = fields.get("sds_config").is_some_and(|source| source.get("ads").is_some());
            if let (true, Some(name)) = (from_us, fields.get("name").and_then(Value::as_str)) {
                names.insert(name.into());
            }
            fields.values().for_each(|value| secret_names(value, names));
        }
        Value::Array(items) => items.iter().for_each(|value| secret_names(value, names)),
        _ => {}
    }
}

/// A resource as the Any that it is on the wire: its type first, since keys are sorted.
pub fn typed(type_url: &str, printed: Value) -> Value {
    let mut any = serde_json::Map::new();
    any.insert("@type".into(), type_url.into());
    if let Value::Object(fields) = printed {
        any.extend(fields);
    }
    Value::Object(any)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// All scenario folders below a root: those that hold `input.yaml` and `proxies.yaml`, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub fn scenarios(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        if folder.join("input.yaml").is_file() && folder.join("proxies.yaml").is_file() {
            found.push(folder);
            continue;
        }
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            if entry.path().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
