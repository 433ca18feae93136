//! Which plugins there are: by documents, and, for who has none, by files in a folder. They come, change and go while everything runs.
//!
//! ```text
//! Plugin documents ─┐                       ┌─ built in
//! NAME.wasm alone  ─┴─▶ entries ──code of──▶┼─ file in the folder        a version that does not load leaves the one
//!                                           ├─ entry of a ConfigMap      before it at work
//!                                           └─ image by digest
//! ```

mod absent;
mod folder;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use trysail_model::images::PULL_SECRET;
use trysail_model::{Fingerprint, ImageError, ImageRequest, Images, Object, ObjectRef, with_causes};
use trysail_stages::component::Runtime;
use trysail_stages::engine::{Advance, HookTable};
use trysail_stages::guest::Guest;
use trysail_stages::{Engine, Hooked};

use crate::document::{Component, KIND, Mode, Policy, PostConditions, Spec};
use crate::hooks::{self, SLOTS};
use crate::terms::{DocumentMessage, Terms};
use crate::{configuration, document};
use absent::Absent;
use folder::{Folder, Settings};

/// Plugins of one namespace that is not the control plane's: each is looked at for every fragment of every proxy.
const MAX_OF_TENANT: usize = 32;
/// Bytes of an error that are kept: a component says in its own words what it wants, and status has to hold that.
const MAX_ERROR: usize = 2000;

/// Label of ConfigMaps that hold components.
pub const LABEL: &str = "trysail.io/plugin";

/// What plugins are made of.
pub struct Sources {
    /// The sandbox.
    pub runtime: Arc<Runtime>,
    /// Folder of components, if there is one.
    pub folder: Option<PathBuf>,
    /// Components that come with Trysail.
    pub builtins: &'static [(&'static str, &'static [u8])],
    /// Images; none where nothing is to be fetched.
    pub images: Option<Arc<dyn Images>>,
    /// Messages of kinds' documents.
    pub documents: DocumentMessage,
    /// The control plane's namespace, whose documents are about the whole mesh.
    pub root_namespace: String,
}

/// A plugin's code and its hook points.
type Code = (Arc<dyn Guest>, Vec<String>);

/// Code that was compiled, and of which bytes.
struct Compiled {
    of: Fingerprint,
    code: Code,
    /// Schema of its configuration, if it came with one.
    schema: Option<Value>,
    /// It does not work for the mere reason that it lies in the folder: its document may have been refused, or taken away in an
    /// emergency. Components of the first line have always worked so.
    needs_word: bool,
}

/// A plugin in force: the last that was in order.
#[derive(Clone)]
struct InForce {
    code: Code,
    spec: Spec,
    digest: String,
}

struct Entry {
    /// The document, if there is one.
    object: Option<ObjectRef>,
    in_force: Option<InForce>,
    /// What would be in force if its code were there, for one that is not to be left out for want of it.
    held: Option<Spec>,
    error: Option<String>,
    is_pending: bool,
}

/// The plugins there are.
pub struct Catalogue {
    sources: Sources,
    folder: Option<Folder>,
    documents: BTreeMap<ObjectRef, Arc<Object>>,
    config_maps: BTreeMap<ObjectRef, Arc<Object>>,
    compiled: BTreeMap<String, Compiled>,
    entries: BTreeMap<String, Entry>,
    is_stale: bool,
}

/// A plugin, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginStatus {
    /// Its name: `namespace/name` of its document, or its file's without `.wasm`.
    pub name: String,
    /// Its document.
    pub object: Option<ObjectRef>,
    /// Digest of the code in force; none when no version ever loaded.
    pub digest: Option<String>,
    /// The image that it came in, if it did.
    pub image: Option<String>,
    /// Its hook points.
    pub points: Vec<String>,
    /// Is what it does sent?
    pub is_shadow: bool,
    /// It uses the hook of last resort.
    pub is_last_resort: bool,
    /// What must be so.
    pub post_conditions: PostConditions,
    /// Its code is on its way.
    pub is_pending: bool,
    /// No version of it is in force, and what it would work on is held until one is.
    pub is_held: bool,
    /// Why its newest version is not in force.
    pub error: Option<String>,
}

/// Is it a document of a plugin, or does it hold components, or credentials for registries of components?
pub fn concerns(object: &Object) -> bool {
    match &*object.reference.kind {
        KIND => true,
        "ConfigMap" => object.labels.contains_key(LABEL),
        "Secret" => *object.body.part("type") == *PULL_SECRET,
        _ => false,
    }
}

impl Catalogue {
    /// A catalogue; nothing is read yet.
    pub fn new(sources: Sources) -> Self {
        Catalogue {
            folder: sources.folder.clone().map(Folder::new),
            sources,
            documents: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            compiled: BTreeMap::new(),
            entries: BTreeMap::new(),
            is_stale: false,
        }
    }

    /// Takes changes of objects in: documents, ConfigMaps with components, credentials for registries. True when there is something to [`refresh`](Catalogue::refresh).
    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = (&'a ObjectRef, Option<&'a Arc<Object>>)>) -> bool {
        for (reference, object) in changes {
            let table = match &*reference.kind {
                KIND => &mut self.documents,
                "ConfigMap" => &mut self.config_maps,
                "Secret" => {
                    // Whoever gets images keeps them; they are not seen here again.
                    if let Some(images) = &self.sources.images {
                        images.secret(reference, object);
                    }
                    continue;
                }
                _ => continue,
            };
            self.is_stale |= match object.filter(|object| concerns(object)) {
                Some(object) => table.insert(reference.clone(), object.clone()).is_none_or(|old| old != *object),
                None => table.remove(reference).is_some(),
            };
        }
        self.is_stale
    }

    /// An image arrived, or will not.
    pub fn image_moved(&mut self) {
        self.is_stale = true;
    }

    /// Looks into the folder, and brings the plugins up to date. True when those in force may differ, or what there is to say of them.
    pub fn scan(&mut self) -> bool {
        let moved = self.folder.as_mut().is_some_and(Folder::scan);
        if !moved && !self.is_stale {
            return false;
        }
        self.is_stale = false;
        let wanted = self.wanted();
        let mut images = BTreeSet::new();
        self.entries.retain(|name, _| wanted.iter().any(|(wanted, ..)| wanted == name));
        let mut of_tenants = BTreeMap::new();
        for (name, object, spec) in wanted {
            let old = self.entries.remove(&name).and_then(|entry| entry.in_force);
            // Whoever wants a fault to hold does not want the first component's absence to pass.
            let held = spec.as_ref().ok().filter(|spec| spec.failure_policy == Policy::Hold && old.is_none()).cloned();
            let made = spec.and_then(|spec| {
                self.is_within_bounds(object.as_ref(), &mut of_tenants)?;
                images.extend(request(object.as_ref(), &spec.component));
                self.make(&name, object.as_ref(), spec)
            });
            let made = made.map_err(|error| shortened(&error));
            let entry = match made {
                Ok(Some(in_force)) => {
                    if old.as_ref().is_none_or(|old| old.digest != in_force.digest) {
                        tracing::info!(plugin = name, points = in_force.code.1.join(","), "plugin loaded");
                    }
                    Entry { object, in_force: Some(in_force), held: None, error: None, is_pending: false }
                }
                Ok(None) => Entry { object, in_force: old, held, error: None, is_pending: true },
                Err(error) => {
                    let stays =
                        if old.is_some() { "the version before it stays in force" } else { "it is not in force" };
                    tracing::error!(plugin = name, error, "plugin not loaded; {stays}");
                    Entry { object, in_force: old, held, error: Some(error), is_pending: false }
                }
            };
            self.entries.insert(name, entry);
        }
        if let Some(at) = &self.sources.images {
            at.retain(&images);
        }
        let entries = &self.entries;
        self.compiled.retain(|name, _| entries.contains_key(name));
        true
    }

    /// May the tenant of this document have one more plugin? In the order of names, so that it is the same ones everywhere.
    fn is_within_bounds(
        &self,
        object: Option<&ObjectRef>,
        of_tenants: &mut BTreeMap<String, usize>,
    ) -> Result<(), String> {
        let namespace = object.map(|object| &*object.namespace);
        let Some(tenant) = namespace.filter(|namespace| *namespace != self.sources.root_namespace) else {
            return Ok(());
        };
        let number = of_tenants.entry(tenant.to_owned()).or_default();
        *number += 1;
        if *number > MAX_OF_TENANT {
            return Err(format!(
                "namespace {tenant} has more than {MAX_OF_TENANT} plugins, of which this is not one of the first"
            ));
        }
        Ok(())
    }

    /// The plugins that there should be: name, document, spec.
    fn wanted(&self) -> Vec<(String, Option<ObjectRef>, Result<Spec, String>)> {
        let mut wanted = Vec::new();
        let mut named = Vec::new();
        for (reference, object) in &self.documents {
            let spec = Spec::of(object);
            named.extend(spec.as_ref().ok().and_then(|spec| spec.component.file.clone()));
            wanted.push((format!("{}/{}", reference.namespace, reference.name), Some(reference.clone()), spec));
        }
        let Some(folder) = &self.folder else { return wanted };
        for (name, file, settings) in folder.files() {
            // A file that a document names is that document's.
            if !named.contains(&file) {
                let spec = settings.map(|settings: Settings| settings.spec(file));
                wanted.push((name, None, spec));
            }
        }
        wanted
    }

    /// A plugin as its spec has it; `None` while its code is on its way.
    fn make(&mut self, name: &str, object: Option<&ObjectRef>, spec: Spec) -> Result<Option<InForce>, String> {
        let Some(bytes) = self.code(object, &spec.component)? else { return Ok(None) };
        let of = Fingerprint::of(&bytes);
        if let Some(wanted) = &spec.sha256 {
            let is = sha256(&bytes);
            if is != *wanted {
                return Err(format!("spec.sha256: the component's is {is}"));
            }
        }
        if self.compiled.get(name).is_none_or(|compiled| compiled.of != of) {
            let code = self.sources.runtime.plugin(name, &bytes).map_err(|error| with_causes(&error))?;
            if let Some(unknown) = code.1.iter().find(|point| hooks::find(point).is_none()) {
                let there_are: Vec<&str> = hooks::HOOKS.iter().map(|hook| hook.name).collect();
                return Err(format!(
                    "it asks for the hook point {unknown:?}, which there is not; there are {}",
                    there_are.join(", ")
                ));
            }
            let schema = configuration::schema(&bytes)?;
            let needs_word = !configuration::is_of_first_line(&bytes);
            self.compiled.insert(name.to_owned(), Compiled { of, code, schema, needs_word });
        }
        let compiled = &self.compiled[name];
        if object.is_none()
            && compiled.needs_word
            && !self.folder.as_ref().is_some_and(|folder| folder.has_settings(name))
        {
            return Err(format!(
                "no Plugin document names it, or none that is in order; to have it work everywhere without one, put {name}.json \
                 beside it ({{}} will do)"
            ));
        }
        let (guest, exported) = &compiled.code;
        if let Some(missing) = spec.hooks.iter().find(|hook| !exported.contains(hook)) {
            return Err(format!("spec.hooks: the component does not export {missing:?}, but {}", exported.join(", ")));
        }
        let empty = Value::Object(serde_json::Map::new());
        configuration::check(compiled.schema.as_ref(), spec.configuration.as_ref().unwrap_or(&empty))?;
        let mut points = if spec.hooks.is_empty() { exported.clone() } else { spec.hooks.clone() };
        // What comes with Trysail exports everything; its configuration says where it works.
        if spec.component.builtin.is_some() && spec.hooks.is_empty() {
            let named = configuration::hooks(spec.configuration.as_ref());
            points.retain(|point| named.contains(point));
        }
        let digest = guest.digest().to_owned();
        Ok(Some(InForce { code: (guest.clone(), points), spec, digest }))
    }

    /// The bytes of a component; `None` while they are on their way.
    fn code(&self, object: Option<&ObjectRef>, component: &Component) -> Result<Option<Arc<[u8]>>, String> {
        let Component { builtin, file, config_map, .. } = component;
        if let Some(name) = builtin {
            let found = self.sources.builtins.iter().find(|(known, _)| known == name);
            let names: Vec<&str> = self.sources.builtins.iter().map(|(name, _)| *name).collect();
            let missing = || format!("spec.component.builtin: there is no {name:?}; there are {}", names.join(", "));
            return Ok(Some(Arc::from(found.ok_or_else(missing)?.1)));
        }
        if let Some(file) = file {
            let missing = "spec.component.file: there is no folder of plugins (--plugins)";
            return self.folder.as_ref().ok_or(missing)?.read(file).map(|bytes| Some(bytes.into()));
        }
        if let (Some(entry), Some(object)) = (config_map, object) {
            let document::ConfigMapEntry { name, key } = entry;
            let reference = ObjectRef::new("ConfigMap", &object.namespace, name);
            let map = self.config_maps.get(&reference).ok_or_else(|| {
                format!(
                    "spec.component.configMap.name: there is no ConfigMap {name:?} with the label {LABEL} in {}",
                    object.namespace
                )
            })?;
            let all = map.body.part("binaryData");
            let data = all.get(key).and_then(Value::as_str);
            let data =
                data.ok_or_else(|| format!("spec.component.configMap.key: {name} has no {key:?} in its binaryData"))?;
            let bytes = BASE64_STANDARD.decode(data).map_err(|error| format!("ConfigMap {name}, {key}: {error}"))?;
            return Ok(Some(bytes.into()));
        }
        let request = request(object, component).ok_or("spec.component: it says nowhere where the code is")?;
        let images = self.sources.images.as_ref().ok_or("spec.component.image: nothing is fetched here")?;
        images.get(&request).transpose().map_err(|error| match error {
            ImageError::Image(why) => format!("spec.component.image: {why}"),
            ImageError::PullSecret(why) => format!("spec.component.imagePullSecret: {why}"),
        })
    }

    /// The plugins in force, by the points at which stages hand out fragments.
    pub fn table(&self) -> HookTable {
        let absent = |name: &str, spec: &Spec| -> InForce {
            let guest: Arc<dyn Guest> = Arc::new(Absent::new(name));
            let all = || hooks::HOOKS.iter().map(|hook| hook.name.to_owned()).collect();
            let points = if spec.hooks.is_empty() { all() } else { spec.hooks.clone() };
            InForce { digest: guest.digest().to_owned(), code: (guest, points), spec: spec.clone() }
        };
        let mut in_order: Vec<(&String, &Entry, Cow<'_, InForce>)> = Vec::new();
        for (name, entry) in &self.entries {
            let held = || entry.held.as_ref().map(|spec| Cow::Owned(absent(name, spec)));
            if let Some(in_force) = entry.in_force.as_ref().map(Cow::Borrowed).or_else(held) {
                in_order.push((name, entry, in_force));
            }
        }
        in_order.sort_by_key(|(name, _, in_force)| (in_force.spec.order, (*name).clone()));
        let mut table = HookTable::default();
        for (name, entry, in_force) in &in_order {
            let InForce { code: (guest, points), spec, digest } = &**in_force;
            let terms = Arc::new(self.terms(entry.object.as_ref(), spec));
            // A change of the document is another plugin to the engine: nothing that was made on other terms is found again.
            let terms_digest = Fingerprint::of(format!("{:?}", (spec, &terms.rights)).as_bytes());
            for hook in points.iter().filter_map(|point| hooks::find(point)) {
                for stand in hook.stands {
                    let id = format!("{name}@{digest}:{terms_digest}:{}", hook.name);
                    let hooked = Hooked {
                        id: id.into(),
                        guest: guest.clone(),
                        policy: spec.failure_policy.into(),
                        hook: hook.name.into(),
                        terms: Some(terms.clone()),
                    };
                    if SLOTS.contains(&stand.point) {
                        table.entry(hooks::ANY_SLOT.into()).or_default().push(hooked.clone());
                    }
                    table.entry(stand.point.into()).or_default().push(hooked);
                }
            }
        }
        table
    }

    fn terms(&self, object: Option<&ObjectRef>, spec: &Spec) -> Terms {
        let tenant =
            object.map(|object| &*object.namespace).filter(|namespace| *namespace != self.sources.root_namespace);
        Terms {
            configuration: spec.configuration.as_ref().map_or_else(|| "{}".to_owned(), Value::to_string),
            scope: spec.scope(),
            // A file alone has no bounds, as its author has the folder.
            rights: spec.rights(tenant),
            is_shadow: spec.mode == Mode::Shadow,
            is_fresh: spec.component.stateful,
            limits: spec.limits(tenant.is_some()),
            documents: self.sources.documents,
        }
    }

    /// Scans, and puts what changed in force.
    pub fn refresh(&mut self, engine: &Engine) -> Option<Advance> {
        self.scan().then(|| engine.set_hooks(self.table()))
    }

    /// What is in force and what is wrong.
    pub fn status(&self) -> Vec<PluginStatus> {
        let status = |(name, entry): (&String, &Entry)| {
            let in_force = entry.in_force.as_ref();
            let points = in_force.map(|in_force| in_force.code.1.clone()).unwrap_or_default();
            PluginStatus {
                name: name.clone(),
                object: entry.object.clone(),
                digest: in_force.map(|in_force| in_force.digest.clone()),
                image: in_force.and_then(|in_force| in_force.spec.component.image.clone()),
                is_shadow: in_force.is_some_and(|in_force| in_force.spec.mode == Mode::Shadow),
                is_last_resort: points.iter().any(|point| point == "patch"),
                post_conditions: in_force.map(|in_force| in_force.spec.post_conditions.clone()).unwrap_or_default(),
                points,
                is_pending: entry.is_pending,
                is_held: entry.held.is_some(),
                error: entry.error.clone(),
            }
        };
        self.entries.iter().map(status).collect()
    }
}

/// The image that a document asks for, if it asks for one.
fn request(object: Option<&ObjectRef>, component: &Component) -> Option<ImageRequest> {
    let (object, image) = (object?, component.image.clone()?);
    let pull_secret = component.image_pull_secret.clone();
    Some(ImageRequest { namespace: object.namespace.to_string(), image, pull_secret })
}

/// The beginning of an error, on one line.
fn shortened(error: &str) -> String {
    let line: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR).collect();
    if line.len() < error.len() { format!("{line}...") } else { line }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
