//! From documents to objects: the kind is looked up, metadata read, defaults applied, the schema checked.
//!
//! What refuses an object: no kind or name, metadata of a wrong type, a version that nobody serves, what the
//! schema refuses, what a caller's check refuses. What only warns: unknown fields, which are pruned as an
//! API server prunes them. What is only counted: unknown kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use trysail_model::{Object, ObjectRef, Rejection};

use crate::kinds::{self, Kind, Lookup};
use crate::parse::{self, Document, Duplicate, SyntaxError};
use crate::{Config, Warning, defaults, schema, time};

/// Kind of the mesh configuration among the objects of a [`Ledger`](crate::Ledger).
pub const MESH_CONFIG: &str = "MeshConfig";
/// Kind of the mesh networks.
pub const MESH_NETWORKS: &str = "MeshNetworks";
/// Kind of an `env.yaml`.
pub const ENVIRONMENT: &str = "Environment";
/// Kind of a `proxies.yaml`.
pub const PROXIES: &str = "Proxies";

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// JSON path of the field, `spec.http[0].route`, or empty for the whole object.
    pub field: String,
    /// Why, in lower case without a final dot.
    pub reason: String,
}

impl Violation {
    /// Says what is wrong with a field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Violation { field: field.into(), reason: reason.into() }
    }
}

/// What one document says about one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Index of the document in its file, from 1.
    pub document: usize,
    /// The object; unset when not even its name could be read.
    pub reference: Option<ObjectRef>,
    /// The object, if it could be converted; a refused one may be here too.
    pub object: Option<Arc<Object>>,
    /// Why it is refused; empty for a good one.
    pub refusals: Vec<Rejection>,
}

impl Claim {
    /// A document, or a whole file (document 0), of which not even the object's name could be read.
    pub(crate) fn unreadable(path: &str, violation: Violation) -> Self {
        let refusal = Rejection {
            origin: path.to_owned(),
            document: 0,
            object: None,
            field: violation.field,
            reason: violation.reason,
            kept_last_good: false,
        };
        Claim { document: 0, reference: None, object: None, refusals: vec![refusal] }
    }
}

/// What a file says, ready for the [`Ledger`](crate::Ledger).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileInput {
    /// Its objects, good and refused.
    pub claims: Vec<Claim>,
    /// Fields that were dropped and the like.
    pub warnings: Vec<Warning>,
    /// `apiVersion/kind` of documents that were skipped.
    pub unknown_kinds: BTreeSet<String>,
}

impl FileInput {
    /// True when a document could not be read at all, so that nobody knows which object it was.
    pub fn is_broken(&self) -> bool {
        self.claims.iter().any(|claim| claim.reference.is_none())
    }
}

/// Reads the text of a file. `path` is how reports name it, relative to the folder.
pub fn read_file(path: &str, text: &str, config: &Config) -> FileInput {
    let mut input = FileInput::default();
    let setting = setting_of(path);
    for document in parse::parse_documents(text) {
        match document {
            Err(error) => input.claims.push(broken(path, &error)),
            Ok(Document { index, value, duplicates, .. }) => {
                let duplicates = duplicates.iter().map(twice).collect();
                let mut reader = Reader { path, document: index, config, duplicates, input: &mut input };
                match setting {
                    Some(kind) if !is_object(&value) => reader.setting(kind, "file", "", value, ""),
                    _ => reader.object(value, "", 0),
                }
            }
        }
    }
    input
}

/// Reads one object that is a value already, as an API server hands it out. `origin` is how reports name the server.
pub fn read_value(origin: &str, value: Value, config: &Config) -> FileInput {
    let mut input = FileInput::default();
    Reader { path: origin, document: 0, config, duplicates: Vec::new(), input: &mut input }.object(value, "", 0);
    input
}

/// Files that hold settings instead of objects, by name.
fn setting_of(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (stem, _) = name.rsplit_once('.')?;
    match stem {
        "mesh" => Some(MESH_CONFIG),
        "networks" => Some(MESH_NETWORKS),
        "env" => Some(ENVIRONMENT),
        "proxies" => Some(PROXIES),
        _ => None,
    }
}

fn is_object(value: &Value) -> bool {
    value.get("apiVersion").is_some() && value.get("kind").is_some()
}

fn broken(path: &str, error: &SyntaxError) -> Claim {
    let refusal = Rejection {
        origin: path.to_owned(),
        document: error.index,
        object: None,
        field: String::new(),
        reason: error.to_string(),
        kept_last_good: false,
    };
    Claim { document: error.index, reference: None, object: None, refusals: vec![refusal] }
}

fn twice(duplicate: &Duplicate) -> Violation {
    let reason = match duplicate.line {
        Some(line) => format!("line {line}: duplicate key {:?}", duplicate.key),
        None => format!("duplicate key {:?}", duplicate.key),
    };
    Violation::new("", reason)
}

struct Reader<'a> {
    path: &'a str,
    document: usize,
    config: &'a Config,
    /// Keys that stand twice somewhere in the document; they refuse all that it holds.
    duplicates: Vec<Violation>,
    input: &'a mut FileInput,
}

impl Reader<'_> {
    /// Reads an object, or each item of a `List`; `prefix` is the item's place in its list.
    fn object(&mut self, mut value: Value, prefix: &str, nesting: usize) {
        if !value.is_object() {
            return self.unnamed(prefix, format!("an object must be a mapping, this is {}", type_name(&value)));
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let missing = if value.get("kind").is_some_and(Value::is_string) { "apiVersion" } else { "kind" };
            return self.unnamed(&join(prefix, missing), "required value: every object has an apiVersion and a kind");
        };
        let is_list = value.get("items").is_some_and(Value::is_array) && kind.ends_with("List");
        if is_list && nesting < 4 {
            let items = value.get_mut("items").map(Value::take);
            if let Some(Value::Array(items)) = items {
                for (at, mut item) in items.into_iter().enumerate() {
                    // Items of a typed list (`ServiceList`) need not repeat their kind.
                    if let Some(item) = item.as_object_mut().filter(|_| kind != "List") {
                        item.entry("apiVersion").or_insert_with(|| json!(api_version));
                        item.entry("kind").or_insert_with(|| json!(kind.trim_end_matches("List")));
                    }
                    self.object(item, &join(prefix, &format!("items[{at}]")), nesting + 1);
                }
            }
            return;
        }
        match kinds::find(&api_version, &kind) {
            Lookup::Known(known) => self.known(known, &api_version, value, prefix),
            Lookup::Unknown => {
                self.input.unknown_kinds.insert(format!("{api_version}/{kind}"));
            }
            Lookup::UnservedVersion(known) => {
                let reference = metadata_ref(known, &value);
                let served: Vec<_> = known.versions.iter().map(|version| join_group(known.group, version)).collect();
                let reason =
                    format!("version of {kind} is not served: {api_version:?} (served: {})", served.join(", "));
                self.claim(reference, None, prefix, vec![Violation::new("apiVersion", reason)]);
            }
        }
    }

    fn known(&mut self, kind: &'static Kind, api_version: &str, mut body: Value, prefix: &str) {
        let reference = match metadata_ref(kind, &body) {
            Some(reference) => reference,
            None if body.pointer("/metadata/name").is_some_and(|name| !name.is_null()) => {
                return self.unnamed(&join(prefix, "metadata.name"), "must be a string that is not empty");
            }
            None => {
                return self
                    .unnamed(&join(prefix, "metadata.name"), format!("required value: {} has no name", kind.name));
            }
        };
        let mut violations = Vec::new();
        let metadata = Metadata::read(&mut body, kind, &reference, &mut violations);
        let mut warnings = Vec::new();
        schema::apply(kind, api_version, &mut body, &mut violations, &mut warnings);
        // Our own kinds: a mistyped field would be rights or a mode that nobody has. An API server prunes it before we see it.
        if kind.group == kinds::TRYSAIL && self.document > 0 {
            violations.append(&mut warnings);
        }
        defaults::apply(kind, &reference, &mut body);
        let labels =
            if kind.name == "Namespace" { string_map(body.pointer("/metadata/labels")) } else { metadata.labels };
        for Violation { field, reason } in warnings {
            self.input.warnings.push(Warning {
                origin: self.path.to_owned(),
                document: self.document,
                object: Some(reference.clone()),
                field: join(prefix, &field),
                reason,
            });
        }
        let object = Object {
            reference: reference.clone(),
            api_version: api_version.into(),
            creation_nanos: metadata.creation_nanos,
            labels: Arc::new(labels),
            annotations: Arc::new(metadata.annotations),
            body: body.into(),
            origin: self.origin(),
        };
        if violations.is_empty() {
            for check in &self.config.checks {
                violations.extend(check(&object));
            }
        }
        self.mesh_of(&object, prefix);
        self.claim(Some(reference), Some(object), prefix, violations);
    }

    /// The mesh configuration in istiod's own ConfigMap.
    fn mesh_of(&mut self, object: &Object, prefix: &str) {
        let ObjectRef { kind, namespace, name } = &object.reference;
        if &**kind != "ConfigMap"
            || **namespace != *self.config.system_namespace
            || (**name != *self.config.mesh_config_map() && self.config.shared_mesh_config.as_deref() != Some(&**name))
        {
            return;
        }
        for (key, kind) in [("mesh", MESH_CONFIG), ("meshNetworks", MESH_NETWORKS)] {
            let data = object.body.part("data");
            let Some(text) = data.get(key).and_then(Value::as_str) else {
                continue;
            };
            let field = join(prefix, &format!("data[{key}]"));
            let value = match parse::parse_documents(text).into_iter().next() {
                Some(Ok(document)) => document.value,
                None => Value::Object(Map::new()),
                Some(Err(error)) => {
                    let reference = ObjectRef::new(kind, namespace, name);
                    self.claim(Some(reference), None, "", vec![Violation::new(field, error.to_string())]);
                    continue;
                }
            };
            self.setting(kind, name, namespace, value, &field);
        }
    }

    fn setting(&mut self, kind: &'static str, name: &str, namespace: &str, value: Value, field: &str) {
        let reference = ObjectRef::new(kind, namespace, name);
        let mut violations = Vec::new();
        if kind != PROXIES && !value.is_object() {
            violations.push(Violation::new(field, format!("must be a mapping, is {}", type_name(&value))));
        }
        let object = Object {
            reference: reference.clone(),
            api_version: "v1alpha1".into(),
            creation_nanos: 0,
            labels: Arc::default(),
            annotations: Arc::default(),
            body: value.into(),
            origin: self.origin(),
        };
        if violations.is_empty() {
            for check in &self.config.checks {
                violations.extend(
                    check(&object)
                        .into_iter()
                        .map(|found| Violation { field: join(field, &found.field), reason: found.reason }),
                );
            }
        }
        self.claim(Some(reference), Some(object), "", violations);
    }

    fn origin(&self) -> Arc<str> {
        match self.document {
            0 => self.path.into(),
            document => format!("{} (document {document})", self.path).into(),
        }
    }

    fn unnamed(&mut self, field: &str, reason: impl Into<String>) {
        self.claim(None, None, "", vec![Violation::new(field, reason)]);
    }

    fn claim(
        &mut self,
        reference: Option<ObjectRef>,
        object: Option<Object>,
        prefix: &str,
        violations: Vec<Violation>,
    ) {
        let refusals = self
            .duplicates
            .iter()
            .cloned()
            .chain(violations)
            .map(|Violation { field, reason }| Rejection {
                origin: self.path.to_owned(),
                document: self.document,
                object: reference.clone(),
                field: join(prefix, &field),
                reason,
                kept_last_good: false,
            })
            .collect();
        self.input.claims.push(Claim { document: self.document, reference, object: object.map(Arc::new), refusals });
    }
}

struct Metadata {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    creation_nanos: i128,
}

impl Metadata {
    /// Reads and completes the metadata; the caller has seen to it that there is some.
    fn read(body: &mut Value, kind: &Kind, reference: &ObjectRef, violations: &mut Vec<Violation>) -> Self {
        let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) else {
            return Metadata { labels: BTreeMap::new(), annotations: BTreeMap::new(), creation_nanos: 0 };
        };
        if kind.namespaced {
            metadata.insert("namespace".to_owned(), json!(&*reference.namespace));
        }
        for field in ["labels", "annotations"] {
            match metadata.get(field) {
                None => {}
                Some(Value::Null) => {
                    metadata.remove(field);
                }
                Some(Value::Object(map)) => {
                    for (key, value) in map.iter().filter(|(_, value)| !value.is_string()) {
                        let reason = format!("must be a string, is {}{}", type_name(value), quoting_hint(value));
                        violations.push(Violation::new(format!("metadata.{field}[{key}]"), reason));
                    }
                }
                Some(other) => {
                    let reason = format!("must be a mapping, is {}", type_name(other));
                    violations.push(Violation::new(format!("metadata.{field}"), reason));
                }
            }
        }
        let creation_nanos = match metadata.get("creationTimestamp") {
            None | Some(Value::Null) => 0,
            Some(Value::String(text)) => time::parse_rfc3339(text).unwrap_or_else(|| {
                let reason = format!("must be a time such as 2026-01-31T08:00:00Z, is {text:?}");
                violations.push(Violation::new("metadata.creationTimestamp", reason));
                0
            }),
            Some(other) => {
                let reason = format!("must be a time, is {}", type_name(other));
                violations.push(Violation::new("metadata.creationTimestamp", reason));
                0
            }
        };
        let metadata = &*metadata;
        Metadata {
            labels: string_map(metadata.get("labels")),
            annotations: string_map(metadata.get("annotations")),
            creation_nanos,
        }
    }
}

fn metadata_ref(kind: &Kind, body: &Value) -> Option<ObjectRef> {
    let metadata = body.get("metadata")?;
    let name = metadata.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = match metadata.get("namespace").and_then(Value::as_str) {
        _ if !kind.namespaced => "",
        Some(namespace) if !namespace.is_empty() => namespace,
        // The namespace that kubectl would send it to.
        _ => "default",
    };
    Some(ObjectRef::new(kind.name, namespace, name))
}

fn string_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

pub(crate) fn join(prefix: &str, field: &str) -> String {
    match (prefix, field) {
        ("", _) => field.to_owned(),
        (_, "") => prefix.to_owned(),
        _ => format!("{prefix}.{field}"),
    }
}

fn join_group(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A value's type, with its article.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The usual cause of a boolean or number where text belongs.
pub(crate) fn quoting_hint(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) | Value::Number(_) => " (quote it: yes, no, on, off, y, n and numbers are not text in YAML)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
