//! Definitions of custom resources for a real API server.

use serde_json::Value;
use trysail_discovery::kinds;
use trysail_tests::{cluster, corpus, kube as documents, workspace};

/// The projects' own definitions where they are at hand, else such that take everything; our own in any case.
pub fn all() -> Vec<Value> {
    let own = documents::objects(&workspace().join("examples/helm/trysail/crds")).unwrap();
    let names: Vec<&Value> = own.iter().map(|definition| &definition["metadata"]["name"]).collect();
    let mut all = of_projects();
    all.retain(|definition| !names.contains(&&definition["metadata"]["name"]));
    all.extend(own.iter().cloned());
    all
}

fn of_projects() -> Vec<Value> {
    let crds = corpus::folder().map(|corpus| corpus.join("../crds")).filter(|crds| crds.is_dir());
    let found: Vec<Value> = crds.map(|crds| documents::objects(&crds).unwrap()).unwrap_or_default();
    let found: Vec<Value> = found.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect();
    if !found.is_empty() {
        return found;
    }
    let custom = kinds::all().filter(|kind| kind.is_custom());
    custom
        .map(|kind| cluster::crd(kind.group, kind.document_kind, &kind.plural(), kind.versions, kind.namespaced))
        .collect()
}
