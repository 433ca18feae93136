//! Writing to a cluster, in a few words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::Scope;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::eventually;

/// Whose fields ours are.
const MANAGER: &str = "trysail-tests";

/// A client of a cluster.
pub struct Cluster {
    client: Client,
    resources: Mutex<BTreeMap<(String, String), (ApiResource, bool)>>,
}

impl Cluster {
    /// A client by a kubeconfig file.
    ///
    /// # Errors
    /// When the file is none, or TLS cannot be had.
    pub async fn connect(kubeconfig: &Path) -> Result<Cluster> {
        let config = Kubeconfig::read_from(kubeconfig).context("the kubeconfig")?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .context("the kubeconfig")?;
        Ok(Cluster { client: Client::try_from(config).context("no client")?, resources: Mutex::default() })
    }

    /// The client itself.
    pub fn raw(&self) -> &Client {
        &self.client
    }

    /// Is the server ready?
    ///
    /// # Errors
    /// When it is not, or does not answer.
    pub async fn is_ready(&self) -> Result<()> {
        let request = hyper::Request::get("/readyz").body(Vec::new()).context("a request")?;
        self.client.request_text(request).await.context("not ready").map(drop)
    }

    async fn api(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let key = (api_version.to_owned(), kind.to_owned());
        let known = self.resources.lock().ok().and_then(|known| known.get(&key).cloned());
        let (resource, namespaced) = match known {
            Some(known) => known,
            None => {
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                let gvk = GroupVersionKind::gvk(group, version, kind);
                let found = kube::discovery::pinned_kind(&self.client, &gvk).await;
                let (resource, capabilities) =
                    found.with_context(|| format!("the server does not know {api_version} {kind}"))?;
                let found = (resource, capabilities.scope == Scope::Namespaced);
                if let Ok(mut known) = self.resources.lock() {
                    known.insert(key, found.clone());
                }
                found
            }
        };
        Ok(match namespaced {
            true => Api::namespaced_with(
                self.client.clone(),
                if namespace.is_empty() { "default" } else { namespace },
                &resource,
            ),
            false => Api::all_with(self.client.clone(), &resource),
        })
    }

    async fn api_of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        if name.is_empty() {
            bail!("{kind} has no name");
        }
        Ok((self.api(text("/apiVersion"), kind, text("/metadata/namespace")).await?, name.to_owned()))
    }

    /// Writes objects with all that they say, their status too. Namespaces that they are in are made when they are not there.
    ///
    /// # Errors
    /// What the server has against one.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        let namespace =
            |object: &Value| object.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
        let written: BTreeSet<String> = objects.iter().filter_map(namespace).collect();
        let own: BTreeSet<&str> = objects
            .iter()
            .filter(|object| object["kind"] == "Namespace")
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        for name in written.iter().filter(|name| !own.contains(name.as_str())) {
            if self.get(["v1", "Namespace", "", name]).await?.is_none() {
                self.apply_one(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
            }
        }
        let (first, rest): (Vec<&Value>, Vec<&Value>) =
            objects.iter().partition(|object| object["kind"] == "Namespace");
        for object in first.into_iter().chain(rest) {
            self.apply_one(object).await?;
        }
        Ok(())
    }

    async fn apply_one(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api_of(object).await?;
        let mut object = object.clone();
        complete(&mut object);
        let params = PatchParams::apply(MANAGER).force();
        let what = || format!("{} {name}", object["kind"].as_str().unwrap_or_default());
        api.patch(&name, &params, &Patch::Apply(&object)).await.with_context(what)?;
        if object.get("status").is_some() {
            api.patch_status(&name, &params, &Patch::Apply(&object))
                .await
                .with_context(|| format!("status of {}", what()))?;
        }
        Ok(())
    }

    /// Makes an object that is not there, which is quicker than to apply it.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn create(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api_of(object).await?;
        let mut object = object.clone();
        complete(&mut object);
        let typed: DynamicObject = serde_json::from_value(object.clone()).context("no object")?;
        api.create(&PostParams::default(), &typed).await.with_context(|| name.clone())?;
        if object.get("status").is_some() {
            api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object))
                .await
                .with_context(|| name.clone())?;
        }
        Ok(())
    }

    /// Changes an object by a JSON merge patch; `pointer` is its apiVersion, kind, namespace and name.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn merge(&self, [api_version, kind, namespace, name]: [&str; 4], patch: &Value) -> Result<()> {
        let api = self.api(api_version, kind, namespace).await?;
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("{kind} {name}"))?;
        Ok(())
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// What the server has against it.
    pub async fn delete(&self, [api_version, kind, namespace, name]: [&str; 4]) -> Result<()> {
        let api = self.api(api_version, kind, namespace).await?;
        api.delete(name, &DeleteParams::default().grace_period(0)).await.with_context(|| format!("{kind} {name}"))?;
        Ok(())
    }

    /// An object as it is now; nothing when there is none.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn get(&self, [api_version, kind, namespace, name]: [&str; 4]) -> Result<Option<Value>> {
        let api = self.api(api_version, kind, namespace).await?;
        let found = api.get_opt(name).await.with_context(|| format!("{kind} {name}"))?;
        found.map(|object| serde_json::to_value(object).context("an object")).transpose()
    }

    /// All objects of a kind, in a namespace or everywhere (an empty one).
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn list(&self, api_version: &str, kind: &str) -> Result<Vec<Value>> {
        let api = self.api(api_version, kind, "default").await?;
        let resource =
            self.resources.lock().ok().and_then(|known| known.get(&(api_version.into(), kind.into())).cloned());
        let api = resource.map_or(api, |(resource, _)| Api::all_with(self.client.clone(), &resource));
        let list = api.list(&ListParams::default()).await.with_context(|| kind.to_owned())?;
        let typed = |object: DynamicObject| {
            let mut object = serde_json::to_value(object).context("an object")?;
            object["apiVersion"] = json!(api_version);
            object["kind"] = json!(kind);
            Ok(object)
        };
        list.items.into_iter().map(typed).collect()
    }

    /// Defines custom resources and waits until they are served.
    ///
    /// # Errors
    /// What the server has against one.
    pub async fn define(&self, definitions: &[Value]) -> Result<()> {
        for definition in definitions {
            self.apply_one(definition).await?;
        }
        for definition in definitions {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            eventually(name, Duration::from_secs(60), || async {
                let found = self.get(["apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name]).await?;
                let conditions = found.as_ref().and_then(|found| found.pointer("/status/conditions")?.as_array());
                let mut conditions = conditions.into_iter().flatten();
                let is_served = conditions.any(|c| c["type"] == "Established" && c["status"] == "True");
                if is_served { Ok(()) } else { bail!("{name} is not established") }
            })
            .await?;
        }
        Ok(())
    }

    /// A token of a service account, for an audience.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn token(&self, namespace: &str, account: &str, audience: &str) -> Result<String> {
        self.token_of(namespace, account, audience, None).await
    }

    /// A token of a service account as a pod of it (name and uid) has it.
    ///
    /// # Errors
    /// When there is no such account or pod.
    pub async fn token_of(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<(&str, &str)>,
    ) -> Result<String> {
        let mut asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600}});
        if let Some((name, uid)) = pod {
            asked["spec"]["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = hyper::Request::post(path).header("content-type", "application/json");
        let request = request.body(asked.to_string().into_bytes()).context("a request")?;
        let answer: Value = self.client.request(request).await.context("no token")?;
        answer.pointer("/status/token").and_then(Value::as_str).map(str::to_owned).context("no token in the answer")
    }
}

/// What a kubelet or an author would have had to say.
fn complete(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["creationTimestamp", "resourceVersion", "uid", "managedFields", "generation"] {
            metadata.remove(field);
        }
    }
    if object["kind"] == "Pod" {
        let containers = object.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
        if containers.as_ref().is_none_or(|containers| containers.is_empty()) {
            object["spec"]["containers"] = json!([{"name": "app"}]);
        }
        for container in object.pointer_mut("/spec/containers").and_then(Value::as_array_mut).into_iter().flatten() {
            if container.get("image").is_none() {
                container["image"] = json!("example.org/app");
            }
        }
    }
}

/// A definition of a custom resource that takes everything: for clusters without the projects' own definitions. `versions`
/// are all served, and the first is stored.
pub fn crd(group: &str, kind: &str, plural: &str, versions: &[&str], namespaced: bool) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(at, version)| {
            json!({
                "name": version, "served": true, "storage": at == 0, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // The group is Kubernetes' own, which wants to be asked.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": group, "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
            "versions": versions,
        },
    })
}
