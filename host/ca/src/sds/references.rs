//! Which secrets the gateways of a proxy refer to by `kubernetes-gateway://`, and whether they may.
//!
//! Service accounts of gateways that are made for a Gateway may read no secrets at all. So a secret is theirs when a Gateway
//! in their namespace that they are for refers to it, and it is in that namespace or a ReferenceGrant of its own lets it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Identity, Object, ObjectRef, Proxy};

use super::name::SecretName;

/// Gateways and grants.
#[derive(Default)]
pub(crate) struct References {
    objects: BTreeMap<ObjectRef, Arc<Object>>,
}

const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

impl References {
    pub(crate) fn apply(&mut self, reference: &ObjectRef, object: Option<&Arc<Object>>) -> bool {
        if !matches!(&*reference.kind, "Gateway" | "KubernetesGateway" | "ListenerSet" | "ReferenceGrant") {
            return false;
        }
        match object {
            Some(object) => {
                self.objects.insert(reference.clone(), object.clone()).is_none_or(|old| old.body != object.body)
            }
            None => self.objects.remove(reference).is_some(),
        }
    }

    pub(crate) fn allow(&self, identity: &Identity, proxy: &Proxy, wanted: &SecretName) -> bool {
        self.objects.values().any(|object| match &*object.reference.kind {
            "Gateway" => {
                *object.reference.namespace == *identity.namespace
                    && istio_refers(object, proxy, wanted)
                    && self.is_reachable("Gateway", &identity.namespace, wanted)
            }
            "KubernetesGateway" => {
                *object.reference.namespace == *identity.namespace
                    && is_for(object, proxy)
                    && refers(object, wanted)
                    && self.is_reachable("Gateway", &identity.namespace, wanted)
            }
            // The namespace that may is the set's own; the gateway that it hangs on has to be the proxy's.
            "ListenerSet" => {
                let spec = object.spec();
                let parent = spec.get("parentRef");
                let parent = parent.and_then(|parent| {
                    let namespace = parent.get("namespace").and_then(Value::as_str);
                    let name = parent.get("name").and_then(Value::as_str)?;
                    let namespace = namespace.unwrap_or(&object.reference.namespace);
                    self.objects.get(&ObjectRef::new("KubernetesGateway", namespace, name))
                });
                parent.is_some_and(|parent| *parent.reference.namespace == *identity.namespace && is_for(parent, proxy))
                    && refers(object, wanted)
                    && self.is_reachable("ListenerSet", &object.reference.namespace, wanted)
            }
            _ => false,
        })
    }

    fn is_reachable(&self, from_kind: &str, from_namespace: &str, wanted: &SecretName) -> bool {
        *wanted.namespace == *from_namespace || self.is_granted(from_kind, from_namespace, wanted)
    }

    fn is_granted(&self, from_kind: &str, from_namespace: &str, wanted: &SecretName) -> bool {
        let grants = self.objects.values().filter(|object| {
            &*object.reference.kind == "ReferenceGrant" && *object.reference.namespace == *wanted.namespace
        });
        let mut grants = grants.map(|grant| grant.spec());
        grants.any(|spec| {
            let from = list(&spec, "from").any(|from| {
                text(from, "group") == "gateway.networking.k8s.io"
                    && text(from, "kind") == from_kind
                    && text(from, "namespace") == from_namespace
            });
            let to = list(&spec, "to").any(|to| {
                let name = text(to, "name");
                text(to, "group").is_empty()
                    && text(to, "kind") == "Secret"
                    && (name.is_empty() || name == wanted.base())
            });
            from && to
        })
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Is the proxy one of this Gateway's? One made for it carries its name; one deployed by hand is named by its address.
fn is_for(gateway: &Object, proxy: &Proxy) -> bool {
    match proxy.labels.get(GATEWAY_NAME_LABEL) {
        Some(name) => **name == *gateway.reference.name,
        None => list(&gateway.spec(), "addresses").next().is_some(),
    }
}

/// Does a Gateway or ListenerSet refer to the secret?
fn refers(object: &Object, wanted: &SecretName) -> bool {
    let spec = object.spec();
    let mut certificates = list(&spec, "listeners").flat_map(|listener| {
        let tls = listener.get("tls").unwrap_or(&Value::Null);
        let validation = tls.get("frontendValidation").unwrap_or(&Value::Null);
        list(tls, "certificateRefs").chain(list(validation, "caCertificateRefs"))
    });
    let frontend = spec.pointer("/tls/frontend/default/validation").unwrap_or(&Value::Null);
    let per_port = spec.pointer("/tls/frontend").unwrap_or(&Value::Null);
    let per_port = list(per_port, "perPort").filter_map(|port| port.pointer("/tls/validation"));
    let is_meant = |reference: &Value| {
        let (group, kind) = (text(reference, "group"), text(reference, "kind"));
        let namespace = match text(reference, "namespace") {
            "" => &*object.reference.namespace,
            given => given,
        };
        group.is_empty()
            && matches!(kind, "" | "Secret")
            && *namespace == *wanted.namespace
            && text(reference, "name") == wanted.base()
    };
    certificates.any(is_meant)
        || list(frontend, "caCertificateRefs").any(is_meant)
        || per_port.flat_map(|validation| list(validation, "caCertificateRefs")).any(is_meant)
}

/// Does an Istio Gateway for this proxy name the secret in full?
fn istio_refers(gateway: &Object, proxy: &Proxy, wanted: &SecretName) -> bool {
    let spec = gateway.spec();
    let selector = spec.get("selector").and_then(Value::as_object);
    let selects =
        selector.into_iter().flatten().all(|(key, value)| proxy.labels.get(key).map(String::as_str) == value.as_str());
    let full = format!("kubernetes-gateway://{}/{}", wanted.namespace, wanted.base());
    selects
        && list(&spec, "servers").any(|server| {
            let tls = server.get("tls").unwrap_or(&Value::Null);
            let several = list(tls, "credentialNames").filter_map(Value::as_str);
            several.chain([text(tls, "credentialName"), text(tls, "caCertCredentialName")]).any(|name| name == full)
        })
}
