//! Secrets of gateways: which there are, who may have them, and their bytes at the end.
//!
//! ```text
//!  objects ─▶ SecretStore ─▶ name (kubernetes://…) ─▶ access: same namespace and may read, or referenced by a gateway of
//!             (apart from the facts that stages see)           the proxy ─▶ shape (TLS, generic, CA) ─▶ Envoy's Secret
//! ```
//!
//! **Invariant:** the store is not part of the snapshot; no query answers from it, and it has no `Debug` that shows bytes.

mod access;
mod name;
mod references;
mod shape;

pub use access::{Access, Everybody};
pub use name::{NameError, SecretName, Source};
pub use shape::{Material, ShapeError};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message as _;
use serde_json::Value;
use trysail_model::{Fingerprint, Identity, Object, ObjectRef, Proxy, ResourceName, Secrets};
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::Secret;

use access::Rbac;
use references::References;

/// Kinds that the store reads, beside those of gateways that the stages read too.
pub const READ_KINDS: [&str; 8] = [
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "ListenerSet",
    "ReferenceGrant",
    "Role",
    "RoleBinding",
    "Secret",
];

/// Is it an object that stages must not see?
pub fn is_secret(reference: &ObjectRef) -> bool {
    &*reference.kind == "Secret"
}

/// The secrets, and what says who may have them.
pub struct SecretStore {
    /// Secrets that were asked for and could not be served, or not to whom asked.
    n_errors: AtomicU64,
    state: RwLock<State>,
    access: Option<Arc<dyn Access>>,
}

#[derive(Default)]
struct State {
    /// Secrets and ConfigMaps.
    data: BTreeMap<ObjectRef, Arc<Object>>,
    rbac: Rbac,
    references: References,
    /// `defaultConfig.privateKeyProvider` of the mesh configuration.
    private_key_provider: Value,
}

impl SecretStore {
    /// A store that asks `access` who may read secrets; without it the role bindings among the objects decide.
    pub fn new(access: Option<Arc<dyn Access>>) -> SecretStore {
        SecretStore { n_errors: AtomicU64::new(0), state: RwLock::default(), access }
    }

    /// Times that a secret was asked for and could not be served, or not to whom asked.
    pub fn n_errors(&self) -> u64 {
        self.n_errors.load(Ordering::Relaxed)
    }

    /// Takes changes of objects in. True when something moved that a gateway may be served.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = (&'a ObjectRef, Option<&'a Arc<Object>>)>) -> bool {
        let mut state = self.state.write();
        let mut moved = false;
        for (reference, object) in changes {
            moved |= match &*reference.kind {
                "Secret" | "ConfigMap" => match object {
                    Some(object) => {
                        state.data.insert(reference.clone(), object.clone()).is_none_or(|old| old.body != object.body)
                    }
                    None => state.data.remove(reference).is_some(),
                },
                "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => state.rbac.apply(reference, object),
                _ => state.references.apply(reference, object),
            };
        }
        moved
    }

    /// Takes the mesh configuration in. True when it moves what is served.
    pub fn configure(&self, mesh: &Value) -> bool {
        let provider = mesh.pointer("/defaultConfig/privateKeyProvider").cloned().unwrap_or_default();
        let mut state = self.state.write();
        std::mem::replace(&mut state.private_key_provider, provider.clone()) != provider
    }

    /// The encoded secret, if there is one and this caller may have it. Why not goes to the log, once the name is one.
    fn encoded(&self, identity: &Identity, proxy: &Proxy, name: &ResourceName) -> Option<Vec<u8>> {
        let parsed = SecretName::parse(name.as_str(), &proxy.namespace);
        let parsed = parsed.inspect_err(|error| tracing::debug!(%error, "a secret was asked for")).ok()??;
        let state = self.state.read();
        let denied = |reason: &str| {
            self.n_errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(proxy = &*proxy.id, %identity, secret = name.as_str(), reason, "a secret was refused");
        };
        let is_own = *parsed.namespace == *identity.namespace;
        match parsed.source {
            // Public by nature: only the roots in it are handed out.
            Source::ConfigMap => {}
            Source::Gateway => {
                if !state.references.allow(identity, proxy, &parsed) {
                    denied("no gateway of this proxy refers to it, or no ReferenceGrant allows it");
                    return None;
                }
            }
            Source::Kubernetes => {
                if !is_own {
                    denied("it is in another namespace");
                    return None;
                }
                let may_read = || match &self.access {
                    Some(access) => access.may_read_secrets(identity),
                    None => state.rbac.may_read_secrets(identity),
                };
                if !parsed.is_ca_only() && !may_read() {
                    denied("its service account may not list secrets in its namespace");
                    return None;
                }
            }
        }
        let provider =
            proxy.metadata.get("PROXY_CONFIG").filter(|config| config.as_object().is_some_and(|c| !c.is_empty()));
        let provider = match provider {
            Some(config) => config.get("privateKeyProvider").unwrap_or(&Value::Null),
            None => &state.private_key_provider,
        };
        let material = Material::find(&parsed, |reference| state.data.get(reference).cloned());
        match material {
            Ok(material) => Some(material.to_envoy(name.as_str(), provider).encode_to_vec()),
            Err(error) => {
                self.n_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(proxy = &*proxy.id, secret = name.as_str(), %error, "a secret cannot be served");
                None
            }
        }
    }
}

impl Secrets for SecretStore {
    fn visible(
        &self,
        identity: &Identity,
        proxy: &Proxy,
        names: &BTreeSet<ResourceName>,
    ) -> Vec<(ResourceName, Fingerprint)> {
        let version =
            |name: &ResourceName| Some((name.clone(), Fingerprint::of(&self.encoded(identity, proxy, name)?)));
        names.iter().filter_map(version).collect()
    }

    fn body(&self, identity: &Identity, proxy: &Proxy, name: &ResourceName, version: Fingerprint) -> Option<Bytes> {
        let encoded = self.encoded(identity, proxy, name)?;
        (Fingerprint::of(&encoded) == version).then(|| encoded.into())
    }

    fn redacted(&self, identity: &Identity, proxy: &Proxy, name: &ResourceName) -> Option<Bytes> {
        let encoded = self.encoded(identity, proxy, name)?;
        // It was encoded from this very message.
        let secret = Secret::decode(encoded.as_slice()).ok()?;
        Some(shape::redact(secret).encode_to_vec().into())
    }
}
