//! Images of plugins' components: what is asked of whoever gets them from registries.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{Object, ObjectRef};

/// Type of the secrets with credentials for registries.
pub const PULL_SECRET: &str = "kubernetes.io/dockerconfigjson";

/// An image that somebody asks for, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRequest {
    /// Namespace of the asker. Credentials, and what was got with them, are never shared with another.
    pub namespace: String,
    /// The image by digest, `registry.example/name@sha256:...`.
    pub image: String,
    /// Secret of that namespace with credentials for the registry; unset means none.
    pub pull_secret: Option<String>,
}

/// Why an image cannot be had, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Because of the image, or of where it is.
    Image(String),
    /// Because of the secret.
    PullSecret(String),
}

/// Gets images of components from registries.
pub trait Images: Send + Sync {
    /// The component in an image: at once if it is at hand; `None` while it is on its way.
    ///
    /// # Errors
    /// Why it could not be had the last time that it was tried. It is tried again by and by.
    fn get(&self, request: &ImageRequest) -> Option<Result<Arc<[u8]>, ImageError>>;

    /// A secret came, changed or went; only those of the type [`PULL_SECRET`] count.
    fn secret(&self, reference: &ObjectRef, secret: Option<&Arc<Object>>);

    /// These are all that are wanted; what is done for others ends.
    fn retain(&self, wanted: &BTreeSet<ImageRequest>);
}
