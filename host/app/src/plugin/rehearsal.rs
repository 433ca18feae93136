//! A rehearsal: what proxies would be sent with plugins and without them, and what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use trysail_facts::FactsSnapshot;
use trysail_facts::inputs::Settings;
use trysail_model::ids::type_urls;
use trysail_model::{Object, ObjectRef, Proxy};
use trysail_plugins::{catalogue, difference};
use trysail_sdk::Severity;
use trysail_stages::{Effect, Engine};

use super::On;
use crate::pipeline::{self, Loaded, Mode, Options};
use crate::{explain, render};

/// What is rehearsed.
pub struct Rehearsal {
    options: Options,
    loaded: Loaded,
    folder: trysail_discovery::Folder,
    /// Documents of plugins besides those of the folder.
    documents: Vec<Arc<Object>>,
    proxies: Vec<Proxy>,
    /// Kept for as long as the component lies in it.
    _home: Option<TempDir>,
}

/// What a plugin changes of what a proxy gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Type of the resource, `cds`.
    pub kind: &'static str,
    /// The resource and field.
    pub effect: Effect,
}

/// What came of a rehearsal.
#[derive(Default)]
pub struct Rehearsed {
    /// By proxy, what differs.
    pub changes: Vec<(String, Vec<Change>)>,
    /// By proxy, what plugins and the gate have to say that they did not say without the plugins.
    pub said: Vec<(String, Vec<String>)>,
    /// Plugins that are not in force, or faulted.
    pub errors: Vec<String>,
}

/// The control plane's namespace in a rehearsal.
fn root_namespace() -> String {
    Settings::default().system_namespace
}

/// A document of a plugin.
pub(crate) fn plugin(name: &str, spec: Value) -> Arc<Object> {
    Arc::new(Object {
        reference: ObjectRef::new(trysail_plugins::document::KIND, &root_namespace(), name),
        api_version: "trysail.io/v1alpha1".into(),
        creation_nanos: 0,
        labels: Default::default(),
        annotations: Default::default(),
        body: json!({ "spec": spec }).into(),
        origin: "the command line".into(),
    })
}

impl Rehearsal {
    /// One component in a folder of YAML.
    ///
    /// # Errors
    /// When a file cannot be read, or the stages do not load.
    pub fn of_component(component: &Path, folder: &Path, on: &On) -> Result<Rehearsal> {
        let configuration = on.configuration.as_deref().map(super::document).transpose()?;
        let spec = configuration.map_or_else(|| json!({}), |configuration| json!({ "configuration": configuration }));
        Rehearsal::with_spec(component, folder, on, spec)
    }

    /// One component in a folder of YAML, with a spec that says all but where it is.
    ///
    /// # Errors
    /// As [`of_component`](Rehearsal::of_component).
    pub fn with_spec(component: &Path, folder: &Path, on: &On, mut spec: Value) -> Result<Rehearsal> {
        let bytes = std::fs::read(component).with_context(|| format!("cannot read {}", component.display()))?;
        let home = tempfile::tempdir().context("cannot make a folder for the component")?;
        let name = component.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin").to_owned();
        let file = format!("{name}.wasm");
        let copy = home.path().join(&file);
        std::fs::write(&copy, bytes).with_context(|| format!("cannot write {}", copy.display()))?;
        let fields = spec.as_object_mut().context("the plugin's spec is no object")?;
        let stateful = fields.get("component").and_then(|c| c.get("stateful")).cloned().unwrap_or(Value::Bool(false));
        fields.insert("component".into(), json!({"file": file, "stateful": stateful}));
        let mut rehearsal = Rehearsal::of_folder(folder, Some(home.path()), on)?;
        rehearsal.documents.push(plugin(&name, spec));
        rehearsal._home = Some(home);
        Ok(rehearsal)
    }

    /// The plugins that a folder has documents of, and those in a folder of components.
    ///
    /// # Errors
    /// As [`of_component`](Rehearsal::of_component).
    pub fn of_folder(folder: &Path, plugins: Option<&Path>, on: &On) -> Result<Rehearsal> {
        let config = trysail_discovery::Config::scenario();
        let folder = trysail_discovery::load_folder(folder, &config)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let options = Options { mode: Mode::Sandboxed, plugins: plugins.map(Path::to_owned), ..Options::default() };
        let loaded = pipeline::load(&options)?;
        let proxies = proxies(&folder, on.pod.as_deref())?;
        Ok(Rehearsal { options, loaded, folder, documents: Vec::new(), proxies, _home: None })
    }

    /// An engine with the plugins or without them, and what is wrong with plugins.
    fn engine(&self, with_plugins: bool) -> Result<(Arc<Engine>, Vec<String>)> {
        self.engine_with(with_plugins, &[])
    }

    /// The same, with these variables set.
    fn engine_with(&self, with_plugins: bool, variables: &[(&str, &str)]) -> Result<(Arc<Engine>, Vec<String>)> {
        let mut inputs = render::inputs(&self.folder);
        inputs.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let snapshot = Arc::new(FactsSnapshot::new(inputs));
        let engine = pipeline::engine(&self.options, self.loaded.stages.clone(), snapshot);
        let mut errors = Vec::new();
        if with_plugins {
            let catalogue = pipeline::catalogue(&self.loaded, &self.options, &root_namespace());
            let mut catalogue = catalogue.context("plugins need the sandbox")?;
            let objects = self.folder.objects.iter().chain(&self.documents);
            catalogue.apply(objects.map(|object| (&object.reference, Some(object))));
            catalogue.refresh(&engine);
            let status = catalogue.status();
            if status.is_empty() {
                bail!("there is no plugin: no document of the kind Plugin, and no component in the folder of plugins");
            }
            let wrong = |status: catalogue::PluginStatus| Some(format!("plugin {}: {}", status.name, status.error?));
            errors.extend(status.into_iter().filter_map(wrong));
        }
        Ok((engine, errors))
    }

    /// The engine with the plugins, for who looks closer.
    ///
    /// # Errors
    /// When a plugin does not load.
    pub fn prepared(&self) -> Result<(Arc<Engine>, &[Proxy])> {
        let (engine, errors) = self.engine(true)?;
        match errors.first() {
            None => Ok((engine, &self.proxies)),
            Some(error) => bail!("{error}"),
        }
    }

    /// The engine without the plugins.
    ///
    /// # Errors
    /// None at present; as the other.
    pub fn plain(&self) -> Result<Arc<Engine>> {
        Ok(self.engine(false)?.0)
    }

    /// The proxies that it is rehearsed for.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// What each proxy is sent, plugins and all, as JSON: by proxy and type, resources by name.
    ///
    /// # Errors
    /// When a resource cannot be printed.
    pub fn sent(&self) -> Result<BTreeMap<(String, String), BTreeMap<String, Value>>> {
        let (engine, _) = self.served()?;
        let mut sent = BTreeMap::new();
        for proxy in &self.proxies {
            for (kind, items) in made(&engine, proxy)?.items {
                sent.insert((proxy.id.to_string(), kind.to_owned()), items.into_iter().collect());
            }
        }
        Ok(sent)
    }

    /// An engine with the plugins if there are any, and what is wrong with them.
    fn served(&self) -> Result<(Arc<Engine>, Vec<String>)> {
        self.engine(true).or_else(|_| self.engine(false))
    }

    /// Has other objects stand in the folder: those of `gone` are not there, and `more` are.
    pub(super) fn replace(&mut self, gone: &BTreeSet<ObjectRef>, more: Vec<Arc<Object>>) {
        self.folder.objects.retain(|object| !gone.contains(&object.reference));
        self.folder.objects.extend(more);
    }

    /// What differs for each proxy with the plugins.
    ///
    /// # Errors
    /// When there is no plugin at all.
    pub fn run(&self) -> Result<Rehearsed> {
        let ((plain, _), (with, errors)) = (self.engine(false)?, self.engine(true)?);
        self.compare(&plain, &with, errors)
    }

    /// What differs for each proxy from what another folder of the same proxies leads to.
    ///
    /// # Errors
    /// When a resource cannot be printed.
    pub(super) fn instead_of(&self, other: &Rehearsal) -> Result<Rehearsed> {
        let ((before, _), (after, errors)) = (other.served()?, self.served()?);
        self.compare(&before, &after, errors)
    }

    fn compare(&self, before: &Arc<Engine>, after: &Arc<Engine>, errors: Vec<String>) -> Result<Rehearsed> {
        let mut found = Rehearsed { errors, ..Rehearsed::default() };
        for proxy in &self.proxies {
            let (before, after) = (made(before, proxy)?, made(after, proxy)?);
            let mut changes = Vec::new();
            for kind in ["cds", "eds", "lds", "rds", "ecds"] {
                let empty = Vec::new();
                let of = |made: &Made| made.items.iter().find(|(of, _)| *of == kind).map(|(_, items)| items.clone());
                let (old, new) = (of(&before).unwrap_or_else(|| empty.clone()), of(&after).unwrap_or(empty));
                let differing = difference::between(&old, &new);
                changes.extend(differing.into_iter().map(|effect| Change { kind, effect }));
            }
            let name = proxy.id.to_string();
            let said: Vec<String> = after.said.into_iter().filter(|line| !before.said.contains(line)).collect();
            found.errors.extend(after.faults.into_iter().filter(|fault| !before.faults.contains(fault)));
            found.changes.push((name.clone(), changes));
            found.said.push((name, said));
        }
        found.errors.sort();
        found.errors.dedup();
        Ok(found)
    }

    /// What Envoy has to say of what each proxy would be sent with the plugins: its words, where it refuses something.
    ///
    /// Clusters and listeners are put into a bootstrap as they are, without Istio's own filters, which a stock Envoy lacks; of routes
    /// and endpoints Envoy's own field rules were asked by the gate.
    ///
    /// # Errors
    /// When Envoy does not run.
    pub fn validate(&self, envoy: &Path) -> Result<Vec<(String, String)>> {
        let (engine, _) = self.engine_with(true, &STOCK)?;
        let mut refused = Vec::new();
        for proxy in &self.proxies {
            let made = made(&engine, proxy)?;
            let of = |kind: &str| -> Vec<Value> {
                let items = made.items.iter().filter(|(of, _)| *of == kind).flat_map(|(_, items)| items);
                items.map(|(_, value)| value.clone()).collect()
            };
            let clusters: Vec<Value> = AGENTS.map(agents).into_iter().chain(of("cds")).collect();
            let bootstrap = json!({
                "node": {"id": &*proxy.id, "cluster": "rehearsal"},
                "dynamic_resources": {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
                "static_resources": {"clusters": clusters, "listeners": of("lds")},
            });
            let mut file = tempfile::Builder::new()
                .suffix(".json")
                .tempfile()
                .context("cannot make a file for Envoy's bootstrap")?;
            file.write_all(bootstrap.to_string().as_bytes()).context("cannot write Envoy's bootstrap")?;
            let output =
                Command::new(envoy).args(["--mode", "validate", "-l", "error", "-c"]).arg(file.path()).output();
            let output = output.with_context(|| format!("cannot run {}", envoy.display()))?;
            if !output.status.success() {
                // It quotes all that it was given after what it has to say.
                let words = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_WORDS).collect();
                refused.push((proxy.id.to_string(), words));
            }
        }
        Ok(refused)
    }
}

/// The switches by which istiod leaves its own filters out.
const STOCK: [(&str, &str); 2] = [("PILOT_ENABLE_METADATA_EXCHANGE", "false"), ("PILOT_ENABLE_ALPN_FILTER", "false")];
/// The clusters that the bootstrap of a sidecar has for its agent.
const AGENTS: [&str; 2] = ["xds-grpc", "sds-grpc"];
/// Characters of Envoy's words that are shown.
const MAX_WORDS: usize = 600;

fn agents(name: &str) -> Value {
    // Envoy wants a cluster that configuration comes from to speak HTTP/2.
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s", "http2_protocol_options": {},
        "load_assignment": {"cluster_name": name, "endpoints": []}})
}

/// The proxies of a folder: of its `proxies.yaml`, else of all its pods that run.
fn proxies(folder: &trysail_discovery::Folder, pod: Option<&str>) -> Result<Vec<Proxy>> {
    if let (None, Some(document)) = (pod, folder.settings.proxies.as_deref()) {
        return Ok(render::proxies(document)?.into_iter().filter_map(|scripted| scripted.proxy.ok()).collect());
    }
    let pods = folder.objects.iter().filter(|object| &*object.reference.kind == "Pod");
    let wanted = |object: &&Arc<Object>| {
        pod.is_none_or(|pod| *pod == format!("{}/{}", object.reference.namespace, object.reference.name))
    };
    let found: Vec<Proxy> = pods.filter(wanted).filter_map(|object| explain::proxy_of(object).ok()).collect();
    match (found.is_empty(), pod) {
        (false, _) => Ok(found),
        (true, Some(pod)) => bail!("there is no Pod {pod} in the folder"),
        (true, None) => bail!("the folder has no pods and no proxies.yaml, so nobody would be sent anything"),
    }
}

/// What a proxy is sent, as JSON, and what there is to say.
struct Made {
    items: Vec<(&'static str, trysail_plugins::hooks::Items)>,
    said: Vec<String>,
    faults: Vec<String>,
}

fn made(engine: &Arc<Engine>, proxy: &Proxy) -> Result<Made> {
    let views = render::views(engine, &render::Scripted::plain(proxy.clone()), proxy);
    let mut items = Vec::new();
    for (kind, view) in &views.views {
        let url = type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(kind));
        let url = url.context("every served type has a short name")?;
        let json = |resource: &Arc<trysail_model::Resource>| -> Result<(String, Value)> {
            let value = trysail_codec::json::to_json(url, &resource.body.to_bytes())?;
            Ok((resource.name.as_str().to_owned(), value))
        };
        items.push((*kind, view.resources.iter().map(json).collect::<Result<_>>()?));
    }
    let said = render::diagnostics(engine, proxy, &views);
    let said = said.iter().filter(|said| said.severity >= Severity::Warning).map(render::line).collect();
    Ok(Made { items, said, faults: views.faults })
}

impl Rehearsed {
    /// For people: proxies, then their changes.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (proxy, changes) in &self.changes {
            // Writing to a String cannot fail.
            let n_changes = match changes.len() {
                0 => "nothing changes".to_owned(),
                1 => "1 change".to_owned(),
                many => format!("{many} changes"),
            };
            let _ = writeln!(text, "{proxy}: {n_changes}");
            for Change { kind, effect: Effect { item, path, before, after } } in changes {
                let path = if path.is_empty() { "(all of it)" } else { path };
                let _ = writeln!(text, "  {kind} {item}: {path}");
                for (sign, value) in [('-', before), ('+', after)] {
                    value.iter().for_each(|value| text.push_str(&format!("    {sign} {value}\n")));
                }
            }
            let said = self.said.iter().filter(|(of, _)| of == proxy).flat_map(|(_, said)| said);
            said.for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        self.errors.iter().for_each(|error| text.push_str(&format!("error: {error}\n")));
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let change = |Change { kind, effect: Effect { item, path, before, after } }: &Change| json!({"type": kind, "resource": item, "path": path, "before": before, "after": after});
        let proxies = self.changes.iter().zip(&self.said).map(|((proxy, changes), (_, said))| {
            json!({"proxy": proxy, "changes": changes.iter().map(change).collect::<Vec<_>>(), "said": said})
        });
        json!({"proxies": proxies.collect::<Vec<_>>(), "errors": self.errors})
    }
}
