//! The document that says which plugin works where and how: `Plugin` of `trysail.io/v1alpha1`.
//!
//! A document in the control plane's namespace is about the whole mesh; one elsewhere is a tenant's, and reaches its own namespace.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use trysail_model::Object;
use trysail_stages::FailurePolicy;

use crate::path::Path;
use crate::rights::{Read, Rights, Write};
use crate::terms::{OUTPUT, OwnLimits, QUERIES, Scope};

/// Kind of the document.
pub const KIND: &str = "Plugin";

/// The spec. The schema of the kind has checked it before, so that errors here are for documents that come in other ways.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// Where the code is.
    pub component: Component,
    /// SHA-256 of the component, in hexadecimal: another one is not loaded.
    #[serde(default)]
    pub sha256: Option<String>,
    /// What the plugin is told.
    #[serde(default)]
    pub configuration: Option<Value>,
    /// The hook points at which it works; all that it exports when left out.
    #[serde(default)]
    pub hooks: Vec<String>,
    /// For what it works.
    #[serde(default)]
    pub scope: ScopeSpec,
    /// Plugins of lower numbers work first; equal ones by namespace and name.
    #[serde(default)]
    pub order: i32,
    /// Limits of a call.
    #[serde(default)]
    pub limits: LimitsSpec,
    /// What it may do.
    #[serde(default)]
    pub rights: RightsSpec,
    /// What a fault does.
    #[serde(default)]
    pub failure_policy: Policy,
    /// Is what it does sent?
    #[serde(default)]
    pub mode: Mode,
    /// What must be so, or status says that it is not.
    #[serde(default)]
    pub post_conditions: PostConditions,
}

/// Where the code is: one of these.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Component {
    /// One that comes with Trysail: `patch`.
    pub builtin: Option<String>,
    /// A file in the folder of plugins.
    pub file: Option<String>,
    /// An entry of a ConfigMap of the document's namespace.
    pub config_map: Option<ConfigMapEntry>,
    /// An image by digest, `registry.example/name@sha256:...`.
    pub image: Option<String>,
    /// Secret of the document's namespace, of the type `kubernetes.io/dockerconfigjson`, with credentials for the image's registry.
    pub image_pull_secret: Option<String>,
    /// The guest remembers from call to call, as those of script languages do: each call gets an instance of its own.
    pub stateful: bool,
}

/// An entry of a ConfigMap.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct ConfigMapEntry {
    /// Name of the ConfigMap. It bears the label `trysail.io/plugin: "true"`.
    pub name: String,
    /// Key in its `binaryData`.
    pub key: String,
}

/// For which proxies and services it works.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ScopeSpec {
    /// Namespaces of proxies.
    pub namespaces: Vec<String>,
    /// Labels of proxies.
    pub proxy_labels: std::collections::BTreeMap<String, String>,
    /// Services, `namespace/host`, with `*` at an end for anything.
    pub services: Vec<String>,
}

/// Limits of a call; those of all plugins where left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LimitsSpec {
    /// Memory, MiB.
    pub memory_mi_b: Option<u32>,
    /// Time, milliseconds.
    pub milliseconds: Option<u32>,
    /// Output, KiB.
    pub output_ki_b: Option<u32>,
    /// Questions.
    pub queries: Option<u32>,
}

/// Rights; all but weakening security when left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RightsSpec {
    /// What it may ask.
    pub reads: Option<Vec<ReadSpec>>,
    /// What it may change.
    pub writes: Option<Vec<WriteSpec>>,
    /// It may do what the security invariants forbid.
    pub may_weaken_security: bool,
}

/// Something that may be asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ReadSpec {
    /// Name of the question in `wit/`, or `*`.
    pub question: String,
    /// Of `object` and `selectors`: the kinds.
    #[serde(default)]
    pub kinds: Vec<String>,
}

/// Something that may be changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct WriteSpec {
    /// The hook point, or `*`.
    pub hook: String,
    /// Patterns of fields; all when left out.
    #[serde(default)]
    pub fields: Vec<String>,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The fragment goes out as it was before the plugin.
    #[default]
    Skip,
    /// What each subscriber was last served stays.
    Hold,
}

/// Is what it does sent?
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Yes.
    #[default]
    Enforce,
    /// No: it is called and watched.
    Shadow,
}

/// What must be so.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PostConditions {
    /// At least so many fragments in use are changed by it.
    pub changes_at_least: usize,
}

impl From<Policy> for FailurePolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Skip => FailurePolicy::Skip,
            Policy::Hold => FailurePolicy::Hold,
        }
    }
}

impl Spec {
    /// The spec of an object.
    ///
    /// # Errors
    /// What is wrong with it, with the field.
    pub fn of(object: &Object) -> Result<Spec, String> {
        let spec: Spec =
            serde_json::from_value(object.spec().into_owned()).map_err(|error| format!("spec: {error}"))?;
        let Component { builtin, file, config_map, image, image_pull_secret, stateful: _ } = &spec.component;
        let places = [builtin.is_some(), file.is_some(), config_map.is_some(), image.is_some()];
        match places.iter().filter(|is_there| **is_there).count() {
            1 => {}
            _ => {
                return Err("spec.component: one of builtin, file, configMap, image is needed, and one only".to_owned());
            }
        }
        if let Some(file) = file
            && (file.contains('/') || file.starts_with('.'))
        {
            return Err(format!("spec.component.file: {file:?} is no name of a file in the folder of plugins"));
        }
        if let Some(image) = image
            && !image.split_once("@sha256:").is_some_and(|(_, digest)| is_sha256(digest))
        {
            return Err(format!(
                "spec.component.image: {image:?} has no digest (registry.example/name@sha256:...), and a tag may move"
            ));
        }
        if image_pull_secret.is_some() && image.is_none() {
            return Err("spec.component.imagePullSecret: it is for an image, and there is none".to_owned());
        }
        if let Some(sha256) = &spec.sha256
            && !is_sha256(sha256)
        {
            return Err(format!("spec.sha256: {sha256:?} is no SHA-256 (64 hexadecimal digits, lower case)"));
        }
        for (number, hook) in spec.hooks.iter().enumerate() {
            if crate::hooks::find(hook).is_none() {
                return Err(format!("spec.hooks[{number}]: {}", no_hook(hook)));
            }
        }
        for (number, write) in spec.rights.writes.iter().flatten().enumerate() {
            if write.hook != "*" && crate::hooks::find(&write.hook).is_none() {
                return Err(format!("spec.rights.writes[{number}].hook: {}", no_hook(&write.hook)));
            }
        }
        for (number, read) in spec.rights.reads.iter().flatten().enumerate() {
            if read.question != "*" && !crate::terms::questions().any(|question| question == read.question) {
                let there_are: Vec<&str> = crate::terms::questions().collect();
                return Err(format!(
                    "spec.rights.reads[{number}].question: there is no question {:?}; there are {}",
                    read.question,
                    there_are.join(", ")
                ));
            }
        }
        Ok(spec)
    }

    /// The scope.
    pub fn scope(&self) -> Scope {
        let ScopeSpec { namespaces, proxy_labels, services } = &self.scope;
        let labels = proxy_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Scope { namespaces: namespaces.clone(), labels, services: services.clone() }
    }

    /// The rights; `tenant` is the document's namespace unless it is the control plane's.
    pub fn rights(&self, tenant: Option<&str>) -> Rights {
        let RightsSpec { reads, writes, may_weaken_security } = &self.rights;
        let read = |read: &ReadSpec| Read { question: read.question.clone(), kinds: read.kinds.clone() };
        let write = |write: &WriteSpec| Write {
            hook: write.hook.clone(),
            fields: write.fields.iter().map(|field| Path::parse(field)).collect(),
        };
        Rights {
            reads: reads.as_ref().map(|reads| reads.iter().map(read).collect()),
            writes: writes.as_ref().map(|writes| writes.iter().map(write).collect()),
            // Nobody gives himself what is the mesh's to give.
            may_weaken_security: *may_weaken_security && tenant.is_none(),
            tenant: tenant.map(str::to_owned),
        }
    }

    /// The limits. A tenant's are never wider than those of all.
    pub fn limits(&self, is_tenant: bool) -> OwnLimits {
        let of_all = trysail_stages::Limits::default();
        let bounded = |own: Option<usize>, all: usize| own.map(|own| if is_tenant { own.min(all) } else { own });
        let LimitsSpec { memory_mi_b, milliseconds, output_ki_b, queries } = &self.limits;
        let deadline = milliseconds.map(|time| Duration::from_millis(time.into()));
        OwnLimits {
            memory: bounded(memory_mi_b.map(|size| (size as usize) << 20), of_all.memory),
            deadline: deadline.map(|own| if is_tenant { own.min(of_all.deadline) } else { own }),
            output: bounded(output_ki_b.map(|size| (size as usize) << 10), OUTPUT),
            queries: bounded(queries.map(|number| number as usize), QUERIES),
        }
    }
}

/// What there is to say to who names a hook point that there is not.
fn no_hook(name: &str) -> String {
    let there_are: Vec<&str> = crate::hooks::HOOKS.iter().map(|hook| hook.name).collect();
    format!("there is no hook point {name:?}; there are {}", there_are.join(", "))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;
    use trysail_model::ObjectRef;

    fn spec(spec: Value) -> Result<Spec, String> {
        Spec::of(&Object {
            reference: ObjectRef::new(KIND, "n", "a"),
            api_version: "trysail.io/v1alpha1".into(),
            creation_nanos: 0,
            labels: Arc::default(),
            annotations: Arc::default(),
            body: json!({"spec": spec}).into(),
            origin: "test".into(),
        })
    }

    #[test]
    fn what_is_left_out_is_what_people_expect() {
        let spec = spec(json!({"component": {"builtin": "patch"}})).unwrap();
        assert_eq!((spec.failure_policy, spec.mode, spec.order), (Policy::Skip, Mode::Enforce, 0));
        assert_eq!(spec.rights(None), Rights::default());
        assert_eq!(spec.limits(false), OwnLimits::default());
    }

    #[test]
    fn a_tenant_cannot_give_itself_more_than_the_mesh_does() {
        let spec = spec(json!({"component": {"builtin": "patch"}, "rights": {"mayWeakenSecurity": true},
            "limits": {"memoryMiB": 4096, "milliseconds": 60000, "queries": 10}}))
        .unwrap();
        let rights = spec.rights(Some("shop"));
        assert_eq!((rights.tenant.as_deref(), rights.may_weaken_security), (Some("shop"), false));
        let (own, of_all) = (spec.limits(true), trysail_stages::Limits::default());
        assert_eq!((own.memory, own.deadline, own.queries), (Some(of_all.memory), Some(of_all.deadline), Some(10)));
        assert!(spec.rights(None).may_weaken_security && spec.limits(false).memory == Some(4096 << 20));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let why = |value: Value| spec(value).unwrap_err();
        assert!(why(json!({"component": {}})).contains("spec.component: one of"));
        assert!(why(json!({"component": {"builtin": "a", "file": "b"}})).contains("one only"));
        assert!(why(json!({"component": {"file": "../b.wasm"}})).contains("spec.component.file"));
        assert!(why(json!({"component": {"image": "r.example/p:latest"}})).contains("a tag may move"));
        let secret = json!({"component": {"builtin": "a", "imagePullSecret": "s"}});
        assert!(why(secret).contains("spec.component.imagePullSecret"));
        assert!(why(json!({"component": {"builtin": "a"}, "sha256": "abc"})).contains("64 hexadecimal digits"));
        let hook = why(json!({"component": {"builtin": "a"}, "hooks": ["cluster"]}));
        assert!(hook.contains("spec.hooks[0]") && hook.contains("transport-sockets"), "{hook}");
        let write =
            why(json!({"component": {"builtin": "a"}, "rights": {"writes": [{"hook": "*"}, {"hook": "cluster"}]}}));
        assert!(write.contains("spec.rights.writes[1].hook"), "{write}");
        let read = why(json!({"component": {"builtin": "a"}, "rights": {"reads": [{"question": "services"}]}}));
        assert!(read.contains("spec.rights.reads[0].question") && read.contains("services-of-host"), "{read}");
        assert!(why(json!({"component": {"builtin": "a"}, "mode": "dry"})).contains("dry"));
        assert!(why(json!({"component": {"builtin": "a"}, "modes": "dry"})).contains("modes"));
    }
}
