//! Configuration objects: `configz`, `authorizationz`, `telemetryz`, `resourcesz`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use trysail_model::Object;

use crate::FactsSnapshot;

/// API groups whose objects configure the mesh.
const GROUPS: [&str; 5] = [
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
];
/// Parts of metadata that a dump shows.
const METADATA: [&str; 8] =
    ["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "labels", "annotations"];

impl FactsSnapshot {
    /// All configuration objects as Kubernetes objects, by kind, namespace and name.
    pub fn dump_configs(&self) -> Value {
        self.configs().map(dump_object).collect()
    }

    /// AuthorizationPolicies, or another kind of policies, by namespace, with the field's name in istiod's dump.
    pub fn dump_policies(&self, kind: &str, field: &str) -> Value {
        let mut namespaces: Map<String, Value> = Map::new();
        for object in self.configs().filter(|object| &*object.reference.kind == kind) {
            let annotations = if object.annotations.is_empty() { Value::Null } else { json!(*object.annotations) };
            let policy = json!({
                "name": &*object.reference.name,
                "namespace": &*object.reference.namespace,
                "annotations": annotations,
                "spec": object.spec(),
            });
            let list = namespaces.entry(&*object.reference.namespace).or_insert_with(|| json!([]));
            list.as_array_mut().into_iter().for_each(|list| list.push(policy.clone()));
        }
        json!({field: namespaces, "root_namespace": self.root_namespace()})
    }

    /// Kinds of which there are objects, as group, version and kind.
    pub fn dump_kinds(&self) -> Value {
        let kinds: BTreeSet<(&str, &str, &str)> = self
            .configs()
            .filter_map(|object| {
                let (group, version) = object.api_version.split_once('/')?;
                Some((kind_of(object), group, version))
            })
            .collect();
        let dump = |(kind, group, version)| json!({"group": group, "version": version, "kind": kind});
        kinds.into_iter().map(dump).collect()
    }

    fn configs(&self) -> impl Iterator<Item = &Object> {
        let all = self.view().state.objects.iter().filter_map(|(_, kept)| kept.object().map(|object| &**object));
        all.filter(|object| {
            let group = object.api_version.split_once('/').map_or("", |(group, _)| group);
            GROUPS.contains(&group) || &*object.reference.kind == "Ingress"
        })
    }
}

/// The kind as the API server has it.
fn kind_of(object: &Object) -> &str {
    match &*object.reference.kind {
        "KubernetesGateway" => "Gateway",
        kind => kind,
    }
}

fn dump_object(object: &Object) -> Value {
    let given = object.body.part("metadata");
    let given = given.as_object();
    let mut metadata: Map<String, Value> = METADATA
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), given?.get(*field).filter(|value| !value.is_null())?.clone())))
        .collect();
    metadata.entry("name").or_insert_with(|| (&*object.reference.name).into());
    if !object.reference.namespace.is_empty() {
        metadata.entry("namespace").or_insert_with(|| (&*object.reference.namespace).into());
    }
    let mut dump = json!({"kind": kind_of(object), "apiVersion": &*object.api_version, "metadata": metadata});
    for (part, value) in [("spec", object.spec()), ("status", object.status())] {
        if !value.is_null() {
            dump[part] = value.into_owned();
        }
    }
    dump
}
