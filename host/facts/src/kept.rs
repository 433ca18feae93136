//! What is kept of an object, so that it can be read again when mesh configuration or a namespace moves.

use std::sync::Arc;

use trysail_model::{Object, ObjectRef};

use crate::pods::Pod;
use crate::slices::Slice;

/// An object, or what was read of it where that depends on nothing else: of pods and slices there are very many.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// As it came.
    Object(Arc<Object>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A slice of a service.
    Slice(Arc<Slice>),
}

impl Kept {
    /// Keeps what is needed of an object.
    pub fn new(object: Arc<Object>) -> Kept {
        match &*object.reference.kind {
            "Pod" => Kept::Pod(Arc::new(Pod::new(&object))),
            "EndpointSlice" => match Slice::new(&object) {
                Some(slice) => Kept::Slice(Arc::new(slice)),
                None => Kept::Object(object),
            },
            _ => Kept::Object(object),
        }
    }

    /// Which object it is.
    pub fn reference(&self) -> &ObjectRef {
        match self {
            Kept::Object(object) => &object.reference,
            Kept::Pod(pod) => &pod.reference,
            Kept::Slice(slice) => &slice.reference,
        }
    }

    /// The object, where all of it is kept.
    pub fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Kept::Object(object) => Some(object),
            Kept::Pod(_) | Kept::Slice(_) => None,
        }
    }

    /// The pod, if it is one.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Kept::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    /// The slice, if it is one of a service.
    pub fn slice(&self) -> Option<&Arc<Slice>> {
        match self {
            Kept::Slice(slice) => Some(slice),
            _ => None,
        }
    }
}
