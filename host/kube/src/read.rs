//! From an object as the client has it to what the store takes.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use serde_json::{Map, Value, json};
use trysail_discovery::convert::{MESH_CONFIG, MESH_NETWORKS, read_value};
use trysail_model::{Fingerprint, Object, ObjectPool, ObjectRef, Rejection};

use crate::prune::prune;

/// How reports name the API server.
pub(crate) const ORIGIN: &str = "cluster";

/// An object as the server has it.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) reference: ObjectRef,
    /// Which object of that name.
    pub(crate) uid: Fingerprint,
    /// Its resource version, which grows with every change.
    pub(crate) version: u64,
    /// The object; unset for one that says what nobody understands.
    pub(crate) object: Option<Arc<Object>>,
    /// What is wrong with it.
    pub(crate) refusals: Vec<Rejection>,
    /// Of what is kept of it.
    pub(crate) content: Fingerprint,
    /// Mesh configuration and networks in it, if it is a ConfigMap that has them: unset for refused ones.
    pub(crate) mesh: Option<Option<Arc<Value>>>,
    pub(crate) networks: Option<Option<Arc<Value>>>,
}

/// Reads the objects of one kind. `None` for what has no name or is of a kind that nobody knows, which no server hands out.
pub(crate) struct Reader {
    resource: ApiResource,
    config: Arc<trysail_discovery::Config>,
    pool: ObjectPool,
}

impl Reader {
    pub(crate) fn new(resource: ApiResource, config: Arc<trysail_discovery::Config>) -> Reader {
        Reader { resource, config, pool: ObjectPool::default() }
    }

    pub(crate) fn object(&mut self, object: DynamicObject) -> Option<Read> {
        let DynamicObject { metadata, data, .. } = object;
        let Value::Object(body) = data else { return None };
        self.parts(metadata, body)
    }

    /// An object of which the metadata are all that was asked for.
    pub(crate) fn metadata(&mut self, object: PartialObjectMeta<DynamicObject>) -> Option<Read> {
        self.parts(object.metadata, Map::new())
    }

    fn parts(&mut self, metadata: ObjectMeta, mut body: Map<String, Value>) -> Option<Read> {
        body.insert("apiVersion".to_owned(), json!(self.resource.api_version));
        body.insert("kind".to_owned(), json!(self.resource.kind));
        of_parts(metadata, body, &self.config, &mut self.pool)
    }
}

fn of_parts(
    metadata: ObjectMeta,
    mut body: Map<String, Value>,
    config: &trysail_discovery::Config,
    pool: &mut ObjectPool,
) -> Option<Read> {
    let uid = Fingerprint::of(metadata.uid.as_deref().unwrap_or_default().as_bytes());
    let version = version(&metadata);
    body.insert("metadata".to_owned(), fields(metadata));
    let input = read_value(ORIGIN, Value::Object(body), config);
    let (mut mesh, mut networks, mut own) = (None, None, None);
    let mut refusals = Vec::new();
    for claim in input.claims {
        let good = claim.refusals.is_empty();
        refusals.extend(claim.refusals);
        let Some(reference) = claim.reference else { continue };
        let object = claim.object.filter(|_| good);
        match &*reference.kind {
            MESH_CONFIG => mesh = Some(object.map(|object| object.body.tree())),
            MESH_NETWORKS => networks = Some(object.map(|object| object.body.tree())),
            _ => own = Some((reference, object)),
        }
    }
    let (mut reference, object) = own?;
    let object = object.map(|object| {
        let mut object = Arc::unwrap_or_clone(object);
        prune(&mut object);
        pool.share(&mut object);
        Arc::new(object)
    });
    if let Some(object) = &object {
        reference.clone_from(&object.reference);
    }
    let content = object.as_deref().map_or(Fingerprint::NONE, content);
    Some(Read { reference, uid, version, object, refusals, content, mesh, networks })
}

/// The resource version as a number: since Kubernetes 1.35 their order is part of the API, and long before it was in fact.
pub(crate) fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// What is kept of the metadata: no word about who wrote which field, and no version, since neither is content.
fn fields(metadata: ObjectMeta) -> Value {
    let ObjectMeta {
        name,
        namespace,
        creation_timestamp,
        deletion_timestamp,
        labels,
        annotations,
        owner_references,
        generate_name,
        ..
    } = metadata;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    put("name", name.map(Value::String));
    put("namespace", namespace.map(Value::String));
    put("generateName", generate_name.map(Value::String));
    put("creationTimestamp", serde_json::to_value(creation_timestamp).ok().filter(|time| !time.is_null()));
    put("deletionTimestamp", serde_json::to_value(deletion_timestamp).ok().filter(|time| !time.is_null()));
    put("labels", labels.filter(|labels| !labels.is_empty()).map(|labels| json!(labels)));
    put("annotations", annotations.filter(|all| !all.is_empty()).map(|annotations| json!(annotations)));
    let owners = owner_references.into_iter().flatten();
    let owners: Vec<Value> = owners
        .map(|owner| json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid, "controller": owner.controller}))
        .collect();
    put("ownerReferences", (!owners.is_empty()).then_some(Value::Array(owners)));
    Value::Object(fields)
}

fn content(object: &Object) -> Fingerprint {
    let nanos = object.creation_nanos.to_le_bytes();
    let maps = [&object.labels, &object.annotations].map(|map| json!(**map).to_string());
    let body = object.body.packed();
    let text = body.text().unwrap_or_default();
    let parts = [object.api_version.as_bytes(), &nanos, maps[0].as_bytes(), maps[1].as_bytes(), text.as_bytes()];
    Fingerprint::of_parts(parts)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use trysail_discovery::kinds;

    use crate::watched::Watched;

    /// An object as a client would have it.
    pub(crate) fn raw(kind: &str, name: &str, uid: &str, version: u64, rest: Value) -> Read {
        let watched = Watched::new(kinds::named(kind).unwrap());
        let mut object = json!({"metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": version.to_string(),
            "creationTimestamp": "2026-01-31T08:00:00Z", "managedFields": [{"manager": "kubectl"}]}});
        let extra = rest.as_object().unwrap().clone();
        object.as_object_mut().unwrap().extend(extra);
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        Reader::new(watched.resource(watched.kind.versions[0]), Arc::default()).object(object).unwrap()
    }

    #[test]
    fn versions_and_managers_are_no_content() {
        let a = raw("VirtualService", "a", "1", 7, json!({"spec": {"hosts": ["a"]}}));
        let b = raw("VirtualService", "a", "1", 8, json!({"spec": {"hosts": ["a"]}, "status": {"x": 1}}));
        assert_eq!(a.content, b.content);
        assert_eq!((a.version, a.object.as_ref().unwrap().creation_nanos), (7, 1_769_846_400_000_000_000));
        assert_eq!(a.object.unwrap().body.read().pointer("/metadata/managedFields"), None);
        assert_ne!(b.content, raw("VirtualService", "a", "1", 9, json!({"spec": {"hosts": ["b"]}})).content);
    }

    #[test]
    fn the_mesh_configuration_is_read_from_its_map() {
        let config = trysail_discovery::Config { system_namespace: "n".into(), ..Default::default() };
        let config = Arc::new(config);
        let watched = Watched::new(kinds::named("ConfigMap").unwrap());
        let read = |text: &str| {
            let object = json!({"metadata": {"name": "istio", "namespace": "n"}, "data": {"mesh": text}});
            Reader::new(watched.resource("v1"), config.clone()).object(serde_json::from_value(object).unwrap()).unwrap()
        };
        assert_eq!(read("rootNamespace: r").mesh.unwrap().unwrap()["rootNamespace"], "r");
        let bad = read("a: [");
        assert_eq!((bad.mesh, bad.refusals.len(), bad.object.is_some()), (Some(None), 1, true));
    }
}
