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
use trysail_plugins::catalogue::PluginStatus;
use trysail_plugins::difference;
use trysail_sdk::Severity;
use trysail_stages::{Effect, Engine};

use super::On;
use crate::images::Waiting;
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
    shadows: Shadows,
    /// Are post-conditions judged? Not where only some of the proxies are looked at.
    is_whole: bool,
    /// The component that is looked at alone.
    alone: Option<TempDir>,
}

/// What becomes of plugins in the mode `shadow`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shadows {
    /// Nothing of them is sent, as in a control plane.
    Hidden,
    /// What they would change is shown.
    Shown,
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
    /// Documents that were refused, plugins that are not in force, that faulted, or whose post-condition failed.
    pub errors: Vec<String>,
    /// What else should be known of the folder and of the plugins.
    pub notes: Vec<String>,
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
        Rehearsal::with_spec(component, folder, on, json!({}))
    }

    /// The same, with what plugins in mode shadow would change.
    #[must_use]
    pub fn with_shadows(mut self) -> Self {
        self.shadows = Shadows::Shown;
        self
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
        rehearsal.alone = Some(home);
        Ok(rehearsal)
    }

    /// The plugins that a folder has documents of, and those in a folder of components.
    ///
    /// # Errors
    /// As [`of_component`](Rehearsal::of_component).
    pub fn of_folder(folder: &Path, plugins: Option<&Path>, on: &On) -> Result<Rehearsal> {
        // As strict as the control plane: what it would refuse is refused here.
        let config = trysail_discovery::Config {
            skip: trysail_discovery::Config::scenario().skip,
            ..trysail_discovery::Config::default()
        };
        let folder = trysail_discovery::load_folder(folder, &config)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let images = Waiting::new(&on.images, &root_namespace())?;
        let options = Options {
            mode: Mode::Sandboxed,
            plugins: plugins.map(Path::to_owned),
            images: Some(Arc::new(images)),
            ..Options::default()
        };
        let loaded = pipeline::load(&options)?;
        let proxies = proxies(&folder, on.pod.as_deref())?;
        let is_whole = on.pod.is_none();
        let shadows = Shadows::Hidden;
        Ok(Rehearsal { options, loaded, folder, documents: Vec::new(), proxies, shadows, is_whole, alone: None })
    }

    /// Is it a plugin of the folder whose component cannot be found, since another is looked at alone?
    fn is_left_out(&self, object: &Object) -> bool {
        self.alone.is_some()
            && &*object.reference.kind == trysail_plugins::document::KIND
            && object.spec().pointer("/component/file").is_some()
    }

    /// The objects of the folder, shadows cast or not.
    fn objects(&self) -> Vec<Arc<Object>> {
        let objects = self.folder.objects.iter().filter(|object| !self.is_left_out(object)).chain(&self.documents);
        let shown = |object: &Arc<Object>| match self.shadows {
            Shadows::Shown if is_shadow(object) => {
                let mut spec = object.spec().into_owned();
                spec["mode"] = json!("enforce");
                Arc::new(Object { body: json!({ "spec": spec }).into(), ..(**object).clone() })
            }
            _ => object.clone(),
        };
        objects.map(shown).collect()
    }

    /// What should be known before anything is looked at.
    fn notes(&self) -> Vec<String> {
        let status = &self.folder.status;
        let mut notes: Vec<String> = status.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
        notes.extend(status.unknown_kinds.iter().map(|kind| format!("warning: skipped: unknown kind {kind}")));
        for object in &self.folder.objects {
            if self.is_left_out(object) {
                notes.push(format!(
                    "note: {} of the folder is left out, as one component is looked at; `trysail plugin diff` looks at all",
                    object.reference
                ));
            }
        }
        if self.shadows == Shadows::Shown {
            let shadows = self.folder.objects.iter().chain(&self.documents).filter(|object| is_shadow(object));
            notes.extend(shadows.map(|object| {
                format!(
                    "note: {} is in mode shadow: what it would change is shown, nothing of it is sent",
                    object.reference
                )
            }));
        }
        notes
    }

    /// An engine with the plugins or without them.
    fn engine(&self, with_plugins: bool) -> Result<Prepared> {
        self.engine_with(with_plugins, &[])
    }

    /// The same, with these variables set.
    fn engine_with(&self, with_plugins: bool, variables: &[(&str, &str)]) -> Result<Prepared> {
        let mut inputs = render::inputs(&self.folder);
        inputs.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let snapshot = Arc::new(FactsSnapshot::new(inputs));
        let engine = pipeline::engine(&self.options, self.loaded.stages.clone(), snapshot);
        let (mut errors, mut plugins) = (Vec::new(), Vec::new());
        if with_plugins {
            let catalogue = pipeline::catalogue(&self.loaded, &self.options, &root_namespace());
            let mut catalogue = catalogue.context("plugins need the sandbox")?;
            let objects = self.objects();
            catalogue.apply(objects.iter().map(|object| (&object.reference, Some(object))));
            catalogue.refresh(&engine);
            let status = catalogue.status();
            if status.is_empty() && self.folder.status.rejections.is_empty() {
                bail!("there is no plugin: no document of the kind Plugin, and no component in the folder of plugins");
            }
            errors.extend(self.folder.status.rejections.iter().map(|rejection| format!("refused: {rejection}")));
            let wrong = |status: &PluginStatus| Some(format!("plugin {}: {}", status.name, status.error.as_ref()?));
            errors.extend(status.iter().filter_map(wrong));
            plugins = status;
        }
        Ok(Prepared { engine, errors, plugins })
    }

    /// The engine with the plugins, for who looks closer.
    ///
    /// # Errors
    /// When a plugin does not load.
    pub fn prepared(&self) -> Result<(Arc<Engine>, &[Proxy])> {
        let Prepared { engine, errors, .. } = self.engine(true)?;
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
        Ok(self.engine(false)?.engine)
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
        let engine = self.served()?.engine;
        let mut sent = BTreeMap::new();
        for proxy in &self.proxies {
            for (kind, items) in made(&engine, proxy)?.items {
                sent.insert((proxy.id.to_string(), kind.to_owned()), items.into_iter().collect());
            }
        }
        Ok(sent)
    }

    /// An engine with the plugins if there are any, and what is wrong with them.
    fn served(&self) -> Result<Prepared> {
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
        let (plain, with) = (self.plain()?, self.engine(true)?);
        let mut found = self.compare(&plain, &with)?;
        self.judge(&with, &mut found);
        Ok(found)
    }

    /// What differs for each proxy from what another folder of the same proxies leads to.
    ///
    /// # Errors
    /// When a resource cannot be printed.
    pub(super) fn instead_of(&self, other: &Rehearsal) -> Result<Rehearsed> {
        self.compare(&other.served()?.engine, &self.served()?)
    }

    fn compare(&self, before: &Arc<Engine>, after: &Prepared) -> Result<Rehearsed> {
        let Prepared { engine: after, errors, .. } = after;
        let mut found = Rehearsed { errors: errors.clone(), notes: self.notes(), ..Rehearsed::default() };
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
            found.errors.extend(said.iter().filter_map(|line| skipped(line)));
            found.errors.extend(after.faults.into_iter().filter(|fault| !before.faults.contains(fault)));
            found.changes.push((name.clone(), changes));
            found.said.push((name, said));
        }
        found.errors.sort();
        found.errors.dedup();
        Ok(found)
    }

    /// Says of plugins that changed nothing why that may be, and of post-conditions that they fail.
    fn judge(&self, with: &Prepared, found: &mut Rehearsed) {
        let Prepared { engine, plugins, .. } = with;
        let effects = engine.plugin_effects();
        for plugin in plugins.iter().filter(|plugin| plugin.digest.is_some()) {
            let (name, points) = (&plugin.name, plugin.points.join(", "));
            let of = effects.get(name).cloned().unwrap_or_default();
            let wanted = plugin.post_conditions.changes_at_least;
            let did = match of.fragments {
                0 if plugin.points.is_empty() => "no hook point is named in its configuration".to_owned(),
                0 => format!("it was not called: nothing at {points} is within its scope here"),
                asked => {
                    format!("it changed {} of the {asked} fragments at {points} that it was asked about", of.changed)
                }
            };
            if of.changed < wanted && self.is_whole {
                let error = format!("plugin {name}: spec.postConditions.changesAtLeast is {wanted}, but {did}");
                found.errors.push(error);
            } else if of.changed == 0 {
                found.notes.push(format!("note: plugin {name} has no effect: {did}"));
            }
        }
    }

    /// What Envoy has to say of what each proxy would be sent with the plugins: its words, where it refuses something.
    ///
    /// Clusters and listeners are put into a bootstrap as they are, without Istio's own filters, which a stock Envoy lacks; of routes
    /// and endpoints Envoy's own field rules were asked by the gate.
    ///
    /// # Errors
    /// When Envoy does not run.
    pub fn validate(&self, envoy: &Path) -> Result<Vec<(String, String)>> {
        let engine = self.engine_with(true, &STOCK)?.engine;
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

/// An engine, and what is wrong with its plugins.
struct Prepared {
    engine: Arc<Engine>,
    errors: Vec<String>,
    plugins: Vec<PluginStatus>,
}

/// The fault in a diagnostic about a plugin that was skipped, in the words that faults have.
fn skipped(line: &str) -> Option<String> {
    let (plugin, what) = line.strip_prefix("Error ")?.split_once(": skipped at ")?;
    plugin.starts_with("plugin ").then(|| format!("{plugin} at {what}"))
}

fn is_shadow(object: &Object) -> bool {
    &*object.reference.kind == trysail_plugins::document::KIND
        && object.spec().get("mode").and_then(Value::as_str) == Some("shadow")
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
        (true, Some(pod)) => {
            let names = folder.objects.iter().filter(|object| &*object.reference.kind == "Pod");
            let names: Vec<String> =
                names.map(|pod| format!("{}/{}", pod.reference.namespace, pod.reference.name)).collect();
            bail!(
                "there is no Pod {pod} with an address in the folder (NAMESPACE/NAME); there are {}",
                names.join(", ")
            )
        }
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
    /// For people: proxies, then their changes. Those of a proxy that are another's as well are told once.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for (number, (proxy, changes)) in self.changes.iter().enumerate() {
            let n_changes = match changes.len() {
                0 => "nothing changes".to_owned(),
                1 => "1 change".to_owned(),
                many => format!("{many} changes"),
            };
            let same = self.changes[..number].iter().find(|(_, others)| !changes.is_empty() && others == changes);
            let _ = match same {
                Some((other, _)) => writeln!(text, "{proxy}: {n_changes}, the same as {other}"),
                None => writeln!(text, "{proxy}: {n_changes}"),
            };
            for Change { kind, effect: Effect { item, path, before, after } } in
                changes.iter().filter(|_| same.is_none())
            {
                let path = if path.is_empty() { "(all of it)" } else { path };
                let _ = writeln!(text, "  {kind} {item}: {path}");
                for (sign, value) in [('-', before), ('+', after)] {
                    value.iter().for_each(|value| text.push_str(&format!("    {sign} {value}\n")));
                }
            }
            let said = self.said.iter().filter(|(of, _)| of == proxy).flat_map(|(_, said)| said);
            // Faults come below, once for all proxies.
            let said = said.filter(|line| skipped(line).is_none());
            said.for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        self.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
        self.errors.iter().for_each(|error| text.push_str(&format!("error: {error}\n")));
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let change = |Change { kind, effect: Effect { item, path, before, after } }: &Change| json!({"type": kind, "resource": item, "path": path, "before": before, "after": after});
        let proxies = self.changes.iter().zip(&self.said).map(|((proxy, changes), (_, said))| {
            json!({"proxy": proxy, "changes": changes.iter().map(change).collect::<Vec<_>>(), "said": said})
        });
        json!({"proxies": proxies.collect::<Vec<_>>(), "errors": self.errors, "notes": self.notes})
    }
}
