//! Definitions of custom resources for a real API server.

use serde_json::Value;
use trysail_discovery::kinds;
use trysail_tests::{cluster, corpus, kube as documents};

/// The projects' own definitions where they are at hand, else such that take everything.
pub fn all() -> Vec<Value> {
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
