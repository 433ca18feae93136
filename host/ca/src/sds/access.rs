//! Which service accounts may read the secrets of their namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Identity, Object, ObjectRef};

/// Decides it. In a cluster that is a SubjectAccessReview (list secrets in the namespace); a failure is a no.
pub trait Access: Send + Sync {
    /// May it list secrets in its own namespace?
    fn may_read_secrets(&self, identity: &Identity) -> bool;
}

/// Everybody may: for comparisons with recordings made that way.
pub struct Everybody;

impl Access for Everybody {
    fn may_read_secrets(&self, _: &Identity) -> bool {
        true
    }
}

/// Roles and bindings of a folder, as far as they are about secrets: what a cluster's API server would say.
#[derive(Default)]
pub(crate) struct Rbac {
    objects: BTreeMap<ObjectRef, Arc<Object>>,
}

impl Rbac {
    pub(crate) fn apply(&mut self, reference: &ObjectRef, object: Option<&Arc<Object>>) -> bool {
        match object {
            Some(object) => {
                self.objects.insert(reference.clone(), object.clone()).is_none_or(|old| old.body != object.body)
            }
            None => self.objects.remove(reference).is_some(),
        }
    }

    pub(crate) fn may_read_secrets(&self, identity: &Identity) -> bool {
        self.objects.values().any(|binding| self.grants(binding, identity))
    }

    fn grants(&self, binding: &Object, identity: &Identity) -> bool {
        let binding_namespace = &*binding.reference.namespace;
        match &*binding.reference.kind {
            "ClusterRoleBinding" => {}
            "RoleBinding" if *binding_namespace == *identity.namespace => {}
            _ => return false,
        }
        let body = binding.body.read();
        let subjects = body.get("subjects").and_then(Value::as_array);
        if !subjects.into_iter().flatten().any(|subject| is_meant(subject, binding_namespace, identity)) {
            return false;
        }
        let Some(role) = body.get("roleRef") else { return false };
        let (kind, name) = (text(role, "kind"), text(role, "name"));
        let namespace = match kind {
            "Role" => binding_namespace,
            "ClusterRole" => "",
            _ => return false,
        };
        let role = self.objects.get(&ObjectRef::new(kind, namespace, name));
        let rules = role.map(|role| role.body.part("rules"));
        let rules = rules.as_deref().and_then(Value::as_array);
        rules.into_iter().flatten().any(lists_secrets)
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn is_meant(subject: &Value, binding_namespace: &str, identity: &Identity) -> bool {
    let Identity { namespace, service_account, .. } = identity;
    let name = text(subject, "name");
    match text(subject, "kind") {
        "ServiceAccount" => {
            let subject_namespace = match text(subject, "namespace") {
                "" => binding_namespace,
                given => given,
            };
            *name == **service_account && *subject_namespace == **namespace
        }
        "User" => name == format!("system:serviceaccount:{namespace}:{service_account}"),
        "Group" => {
            let own = format!("system:serviceaccounts:{namespace}");
            name == own || name == "system:serviceaccounts" || name == "system:authenticated"
        }
        _ => false,
    }
}

/// A rule for single secrets does not do, since all of them are asked about.
fn lists_secrets(rule: &Value) -> bool {
    let has = |key: &str, wanted: &str| {
        let list = rule.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).any(|item| item == wanted || item == "*")
    };
    let is_limited = rule.get("resourceNames").and_then(Value::as_array).is_some_and(|names| !names.is_empty());
    has("verbs", "list") && has("resources", "secrets") && has("apiGroups", "") && !is_limited
}
