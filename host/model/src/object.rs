//! Configuration objects as a source hands them over.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::Body;

/// Names an object: Kubernetes kind, namespace (empty for cluster-scoped kinds) and name.
///
/// `kind` is enough without its group for every kind but two: Gateway API's `Gateway` has kind
/// `KubernetesGateway` here, Knative's and others are not read.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Kubernetes kind, `VirtualService`.
    pub kind: Arc<str>,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// Names an object.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        ObjectRef { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An object with defaults applied, as an API server would return it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind, namespace and name.
    pub reference: ObjectRef,
    /// `networking.istio.io/v1`, as the object was read.
    pub api_version: Arc<str>,
    /// Creation time in nanoseconds since the epoch; 0 when unset (a folder's objects usually have none).
    pub creation_nanos: i128,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Annotations.
    pub annotations: Arc<BTreeMap<String, String>>,
    /// The whole object as JSON (`spec`, `status`, `data`, ... beside `metadata`).
    pub body: Body,
    /// Where it stands: file and document, or a cluster's API server.
    pub origin: Arc<str>,
}

impl Object {
    /// The spec, or JSON null when the object has none.
    pub fn spec(&self) -> Cow<'_, Value> {
        self.body.part("spec")
    }

    /// The status, or JSON null.
    pub fn status(&self) -> Cow<'_, Value> {
        self.body.part("status")
    }

    /// Age order of Istio's conflict rules: oldest first, then name, then namespace.
    pub fn age_key(&self) -> (i128, &str, &str) {
        (self.creation_nanos, &self.reference.name, &self.reference.namespace)
    }
}

/// A document that was not taken, and why; nothing else is affected by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejection {
    /// File path (or API server) that the document came from.
    pub origin: String,
    /// Index of the document within its file, from 1; 0 for a file as a whole, and for a server.
    pub document: usize,
    /// The object, when so much could be read.
    pub object: Option<ObjectRef>,
    /// JSON path of the field, `spec.http[0].route`, or empty for the whole document.
    pub field: String,
    /// Why, in lower case without a final dot.
    pub reason: String,
    /// True when an earlier good version of the object stays in force.
    pub kept_last_good: bool,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if self.document > 0 {
            write!(f, " (document {})", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)?;
        if self.kept_last_good {
            write!(f, " (the last good version stays in force)")?;
        }
        Ok(())
    }
}
