//! `trysail explain`: where a proxy's resource, or a field in it, comes from.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::sync::Arc;
use trysail_model::ids::type_urls;
use trysail_model::{Object, Proxy, Resource, TypeUrl};
use trysail_stages::Engine;
use trysail_stages::explain::Explanation;

/// Annotation of pods that are gateways: the injector's template.
const TEMPLATES: &str = "inject.istio.io/templates";

/// The proxy that a pod's sidecar would be, or the pod itself if it is a gateway: its node as the injector sets it up.
///
/// # Errors
/// When the pod has no address.
pub fn proxy_of(pod: &Object) -> Result<Proxy> {
    let (name, namespace) = (&*pod.reference.name, &*pod.reference.namespace);
    let (status, spec) = (pod.status(), pod.spec());
    let address = status.get("podIP").and_then(Value::as_str).unwrap_or_default();
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    let templates = pod.annotations.get(TEMPLATES).map(String::as_str).unwrap_or_default();
    let kind = if templates.split(',').any(|template| template == "gateway") { "router" } else { "sidecar" };
    let metadata = serde_json::json!({
        "NAME": name,
        "NAMESPACE": namespace,
        "LABELS": *pod.labels,
        "SERVICE_ACCOUNT": account,
        "CLUSTER_ID": "Kubernetes",
        "ISTIO_VERSION": crate::version::ISTIO,
        "INSTANCE_IPS": address,
        "MESH_ID": "cluster.local",
        "INTERCEPTION_MODE": "REDIRECT",
    });
    let Value::Object(metadata) = metadata else { unreachable!("written as an object above") };
    let id = format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local");
    Proxy::from_node(&id, metadata, Default::default()).with_context(|| format!("pod {namespace}/{name} has no proxy"))
}

/// A field of a resource by a path such as `virtual_hosts[0].routes[0].route.cluster`, as JSON text.
///
/// A selector `[name=VALUE]` picks the element of a list whose field `name` has the value.
pub fn field(type_url: &str, resource: &Resource, path: &str) -> Option<String> {
    let printed = trysail_codec::json::to_json(type_url, &resource.body.to_bytes()).ok()?;
    Some(at(&printed, path)?.to_string())
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = value;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (inside, after) = inner.split_once(']')?;
            let list = value.as_array()?;
            value = match inside.split_once('=') {
                Some((key, wanted)) => {
                    list.iter().find(|entry| entry.get(key).and_then(Value::as_str) == Some(wanted))?
                }
                None => list.get(inside.parse::<usize>().ok()?)?,
            };
            rest = after.strip_prefix('.').unwrap_or(after);
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = value.get(&rest[..end])?;
            rest = rest[end..].strip_prefix('.').unwrap_or(&rest[end..]);
        }
    }
    Some(value)
}

/// An answer to "where does this come from".
#[derive(Debug)]
pub struct Answer {
    /// The field's value as JSON, when one was asked about.
    pub value: Option<String>,
    /// What is behind it.
    pub explanation: Explanation,
}

/// Explains a resource. `short` is a type's short name, `rds`.
///
/// # Errors
/// When the type is unknown, or the proxy has no such resource or field.
pub fn explain(engine: &Arc<Engine>, proxy: &Proxy, short: &str, name: &str, path: Option<&str>) -> Result<Answer> {
    let type_url = type_urls::PUSH_ORDER.into_iter().find(|url| type_urls::short(url) == Some(short));
    let type_url = type_url.with_context(|| format!("{short:?} is no type; there are cds, eds, lds, rds"))?;
    let value = std::cell::RefCell::new(None);
    let extract = |resource: &Resource| {
        let found = field(type_url, resource, path.unwrap_or_default());
        value.borrow_mut().get_or_insert_with(|| found.clone());
        found
    };
    let explained = engine.explain(proxy, &TypeUrl::from(type_url), name, path.map(|_| &extract as &_));
    let explanation = explained.with_context(|| format!("{} has no {short} resource {name:?}", proxy.id))?;
    let value = match path {
        Some(path) => {
            Some(value.into_inner().flatten().with_context(|| format!("{short} {name} has no field {path:?}"))?)
        }
        None => None,
    };
    Ok(Answer { value, explanation })
}

/// The answer as text for a person.
pub fn text(answer: &Answer, all_calls: bool) -> String {
    let mut out = String::new();
    if let Some(value) = &answer.value {
        out.push_str(&format!("value:   {value}\nmade by:\n"));
        for object in &answer.explanation.made_by {
            out.push_str(&format!("  {object}\n"));
        }
        if answer.explanation.made_by.is_empty() {
            out.push_str("  no single object: without any one of those read it is the same\n");
        }
    }
    out.push_str("read:\n");
    for object in &answer.explanation.objects {
        out.push_str(&format!("  {object}\n"));
    }
    out.push_str("calls:\n");
    let mut seen = std::collections::BTreeSet::new();
    for step in &answer.explanation.steps {
        if !all_calls && !seen.insert(&step.call) {
            continue;
        }
        let indent = "  ".repeat(step.depth + 1);
        out.push_str(&format!("{indent}{}\n", step.call));
        if all_calls {
            for (query, objects) in &step.reads {
                let objects: Vec<String> = objects.iter().map(ToString::to_string).collect();
                out.push_str(&format!("{indent}    {query} <- {}\n", objects.join(", ")));
            }
        }
        for diagnostic in &step.diagnostics {
            out.push_str(&format!("{indent}  ! {diagnostic}\n"));
        }
    }
    out
}

/// The answer as JSON.
pub fn json(answer: &Answer) -> Value {
    let names = |objects: &[trysail_model::ObjectRef]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
    let calls: Vec<Value> = answer
        .explanation
        .steps
        .iter()
        .map(|step| {
            let reads: Vec<Value> = step
                .reads
                .iter()
                .map(|(query, objects)| serde_json::json!({"query": query, "objects": names(objects)}))
                .collect();
            serde_json::json!({
                "depth": step.depth, "call": step.call, "by": step.by, "reads": reads, "diagnostics": step.diagnostics,
            })
        })
        .collect();
    serde_json::json!({
        "value": answer.value.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "madeBy": names(&answer.explanation.made_by),
        "read": names(&answer.explanation.objects),
        "calls": calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_select_by_index_and_by_name() {
        let value = serde_json::json!({"a": [{"name": "x", "b": 1}, {"name": "y.z", "b": [2, 3]}]});
        assert_eq!(at(&value, "a[0].b"), Some(&Value::from(1)));
        assert_eq!(at(&value, "a[name=y.z].b[1]"), Some(&Value::from(3)));
        assert_eq!(at(&value, "a[2]"), None);
        assert_eq!(at(&value, "a[x"), None);
    }
}
