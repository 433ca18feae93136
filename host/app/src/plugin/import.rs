//! `trysail plugin import`: EnvoyFilters as plugins, and whether both lead to the same.
//!
//! ```text
//! EnvoyFilter ──▶ Plugin of the built-in `patch`   what has a hook that means the same
//!           └──▶ EnvoyFilter                       what has none, with the reason
//! ```
//!
//! What is printed takes the place of what was read.

mod patches;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use trysail_model::{Object, ObjectRef};

use super::On;
use super::rehearsal::Rehearsal;

/// What became of the EnvoyFilters of a file.
#[derive(Default)]
struct Imported {
    /// The plugins, and what is left of the EnvoyFilters.
    documents: Vec<Value>,
    /// What differs, and what stays and why.
    said: Vec<String>,
    n_translated: usize,
    n_left: usize,
}

/// Translates a file of EnvoyFilters; false when something stays as it was, or what comes of it differs.
pub(super) fn import(from: &Path, out: Option<&Path>, check: Option<&Path>, root_namespace: &str) -> Result<bool> {
    let mut filters = read(from)?;
    in_order(&mut filters, root_namespace);
    let mut imported = Imported::default();
    for filter in &filters {
        imported.take(filter, root_namespace);
    }
    imported.number();
    let text = yaml(&imported.documents)?;
    match out {
        Some(file) => std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?,
        None => print!("{text}"),
    }
    for line in &imported.said {
        eprintln!("{line}");
    }
    let Imported { n_translated, n_left, .. } = imported;
    eprintln!("{n_translated} patches are plugins now, {n_left} stay EnvoyFilters");
    let same = match check {
        Some(folder) => is_same(folder, &filters, &imported.documents)?,
        None => true,
    };
    Ok(same && n_left == 0)
}

/// The EnvoyFilters of a file, which may hold other documents, and lists.
fn read(file: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let document = Value::deserialize(document).with_context(|| format!("{} is no YAML", file.display()))?;
        let items = document.get("items").and_then(Value::as_array).cloned();
        let filters = items.unwrap_or_else(|| vec![document]).into_iter();
        found.extend(filters.filter(|document| document["kind"] == "EnvoyFilter"));
    }
    if found.is_empty() {
        bail!("{} has no EnvoyFilter", file.display());
    }
    Ok(found)
}

fn text<'a>(document: &'a Value, path: &str) -> &'a str {
    document.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn namespace(document: &Value) -> &str {
    Some(text(document, "/metadata/namespace")).filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

impl Imported {
    /// Has the plugins work in the order in which they stand here, where their names alone would not.
    fn number(&mut self) {
        let plugins = || self.documents.iter().filter(|document| document["kind"] == "Plugin");
        let names: Vec<_> = plugins().map(|plugin| (namespace(plugin), text(plugin, "/metadata/name"))).collect();
        if names.is_sorted() {
            return;
        }
        let plugins = self.documents.iter_mut().filter(|document| document["kind"] == "Plugin");
        for (number, plugin) in (1..).zip(plugins) {
            plugin["spec"]["order"] = Value::from(number);
        }
    }

    fn take(&mut self, filter: &Value, root_namespace: &str) {
        let (name, namespace) = (text(filter, "/metadata/name"), namespace(filter));
        let empty = Vec::new();
        let patches = filter.pointer("/spec/configPatches").and_then(Value::as_array).unwrap_or(&empty);
        let (mut ours, mut left, mut reaches_far) = (Vec::new(), Vec::new(), false);
        let targets = filter.pointer("/spec/targetRefs").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        for (number, patch) in patches.iter().enumerate() {
            let at = format!("EnvoyFilter {namespace}/{name} spec.configPatches[{number}]");
            let translated = if targets {
                Err("spec.targetRefs: plugins are chosen by labels".to_owned())
            } else if name.is_empty() {
                Err("metadata.name: a plugin needs a name".to_owned())
            } else {
                patches::translate(patch)
            };
            match translated {
                Ok(translated) => {
                    self.n_translated += 1;
                    reaches_far |= translated.reaches_far;
                    ours.extend(translated.patches);
                    self.said.extend(translated.notes.into_iter().map(|note| format!("{at}: {note}")));
                }
                Err(why) => {
                    self.n_left += 1;
                    left.push(patch.clone());
                    self.said.push(format!("{at} stays as it is: {why}"));
                }
            }
        }
        if !ours.is_empty() {
            let home = if reaches_far { root_namespace } else { namespace };
            if home != namespace {
                self.said.push(format!(
                    "Plugin {home}/{namespace}-{name}: it stands there, since in {namespace} it would reach that namespace's services alone"
                ));
            }
            self.documents.push(plugin(filter, ours, home));
        }
        if !left.is_empty() {
            let mut rest = filter.clone();
            rest["spec"]["configPatches"] = Value::Array(left);
            self.documents.push(rest);
        }
    }
}

/// The plugin with these patches, in the namespace `home`.
fn plugin(filter: &Value, patches: Vec<Value>, home: &str) -> Value {
    let (name, namespace) = (text(filter, "/metadata/name"), namespace(filter));
    let mut scope = Map::new();
    if home != namespace {
        scope.insert("namespaces".to_owned(), json!([namespace]));
    }
    if let Some(labels) = filter.pointer("/spec/workloadSelector/labels") {
        scope.insert("proxyLabels".to_owned(), labels.clone());
    }
    let name = if home == namespace { name.to_owned() } else { format!("{namespace}-{name}") };
    let mut spec = Map::from_iter([("component".to_owned(), json!({"builtin": "patch"}))]);
    if !scope.is_empty() {
        spec.insert("scope".to_owned(), Value::Object(scope));
    }
    spec.insert("postConditions".to_owned(), json!({"changesAtLeast": 1}));
    spec.insert("configuration".to_owned(), json!({"patches": patches}));
    let mut metadata = Map::from_iter([("name".to_owned(), name.into()), ("namespace".to_owned(), home.into())]);
    // The revision that it is meant for is among them.
    if let Some(labels) = filter.pointer("/metadata/labels") {
        metadata.insert("labels".to_owned(), labels.clone());
    }
    json!({"apiVersion": "trysail.io/v1alpha1", "kind": "Plugin", "metadata": metadata, "spec": spec})
}

/// Puts EnvoyFilters in the order in which Istio applies them: priority, the control plane's namespace, age, name.
fn in_order(filters: &mut [Value], root_namespace: &str) {
    filters.sort_by_cached_key(|filter| {
        let priority = filter.pointer("/spec/priority").and_then(Value::as_i64).unwrap_or_default();
        let created = text(filter, "/metadata/creationTimestamp").to_owned();
        let name = format!("{}.{}", text(filter, "/metadata/name"), namespace(filter));
        (priority, namespace(filter) != root_namespace, created, name)
    });
}

/// Compares what the proxies of a folder are sent with the EnvoyFilters, and with what took their place.
fn is_same(folder: &Path, filters: &[Value], documents: &[Value]) -> Result<bool> {
    let gone: BTreeSet<ObjectRef> = filters
        .iter()
        .map(|filter| ObjectRef::new("EnvoyFilter", namespace(filter), text(filter, "/metadata/name")))
        .collect();
    let with = |documents: &[Value]| -> Result<Rehearsal> {
        let mut rehearsal = Rehearsal::of_folder(folder, None, &On::default())?;
        rehearsal.replace(&gone, objects(documents)?);
        Ok(rehearsal)
    };
    let found = with(documents)?.instead_of(&with(filters)?)?;
    eprint!("{}", found.text());
    let same = found.changes.iter().filter(|(_, changes)| changes.is_empty()).count();
    eprintln!("{same} of {} proxies in {} are sent the same", found.changes.len(), folder.display());
    Ok(same == found.changes.len() && found.errors.is_empty())
}

/// Documents as a folder has them.
fn objects(documents: &[Value]) -> Result<Vec<Arc<Object>>> {
    let home = tempfile::tempdir().context("cannot make a folder")?;
    let file = home.path().join("documents.yaml");
    std::fs::write(&file, yaml(documents)?).with_context(|| format!("cannot write {}", file.display()))?;
    let folder = trysail_discovery::load_folder(home.path(), &trysail_discovery::Config::scenario())?;
    match folder.status.rejections.first() {
        Some(rejection) => bail!("{rejection}"),
        None => Ok(folder.objects),
    }
}

/// Several documents as one text.
fn yaml(documents: &[Value]) -> Result<String> {
    let mut text = String::new();
    for document in documents {
        let document = serde_yaml_ng::to_string(document).context("cannot write what came of it")?;
        let _ = write!(text, "---\n{document}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(filter: Value) -> Imported {
        let mut imported = Imported::default();
        imported.take(&filter, "istio-system");
        imported
    }

    #[test]
    fn what_has_no_hook_stays_with_its_reason() {
        let merge = |apply_to: &str| json!({"applyTo": apply_to, "patch": {"operation": "MERGE", "value": {"per_connection_buffer_limit_bytes": 1}}});
        let found = imported(json!({"kind": "EnvoyFilter", "metadata": {"name": "f", "namespace": "shop"}, "spec": {
            "workloadSelector": {"labels": {"app": "a"}}, "priority": 3,
            "configPatches": [merge("LISTENER"), merge("BOOTSTRAP")]}}));
        let [plugin, rest] = &found.documents[..] else { panic!("a plugin, and what is left") };
        assert_eq!((text(plugin, "/metadata/namespace"), text(plugin, "/metadata/name")), ("shop", "f"));
        assert_eq!(plugin["spec"]["scope"], json!({"proxyLabels": {"app": "a"}}));
        assert_eq!(rest["spec"]["configPatches"], json!([merge("BOOTSTRAP")]));
        assert!(found.said.iter().any(|said| said.contains("shop/f spec.configPatches[1] stays")), "{:?}", found.said);
    }

    #[test]
    fn plugins_work_in_the_order_of_the_envoy_filters() {
        let filter = |name: &str, priority: i64, created: &str| {
            json!({"kind": "EnvoyFilter", "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
                "spec": {"priority": priority, "configPatches": [{"applyTo": "LISTENER", "patch": {
                    "operation": "MERGE", "value": {"per_connection_buffer_limit_bytes": 1}}}]}})
        };
        let orders = |mut filters: Vec<Value>| {
            in_order(&mut filters, "istio-system");
            let mut imported = Imported::default();
            filters.iter().for_each(|filter| imported.take(filter, "istio-system"));
            imported.number();
            let of = |plugin: &Value| (text(plugin, "/metadata/name").to_owned(), plugin["spec"]["order"].as_i64());
            imported.documents.iter().map(of).collect::<Vec<_>>()
        };
        let (a, b) =
            (|priority| filter("a", priority, "2024-01-02T00:00:00Z"), || filter("b", 0, "2024-01-01T00:00:00Z"));
        assert_eq!(orders(vec![a(0), b()]), [("b".to_owned(), Some(1)), ("a".to_owned(), Some(2))], "the older first");
        assert_eq!(orders(vec![b(), a(-1)]), [("a".to_owned(), None), ("b".to_owned(), None)], "names say it already");
    }

    #[test]
    fn what_reaches_other_namespaces_stands_with_the_control_plane() {
        let patch = json!({"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"connect_timeout": "1s"}}});
        let found = imported(json!({"kind": "EnvoyFilter", "metadata": {"name": "f", "namespace": "shop"},
            "spec": {"configPatches": [patch]}}));
        let [plugin] = &found.documents[..] else { panic!("a plugin") };
        assert_eq!((text(plugin, "/metadata/namespace"), text(plugin, "/metadata/name")), ("istio-system", "shop-f"));
        assert_eq!(plugin["spec"]["scope"], json!({"namespaces": ["shop"]}));
    }
}
