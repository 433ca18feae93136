//! Who is at the other end of a connection, and the secrets that may be handed to them.
//!
//! The certificate authority and the streams meet here: one finds out who calls, the other serves accordingly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Fingerprint, Proxy, ResourceName};

/// A workload's identity, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The root of trust that issued it, `cluster.local`.
    pub trust_domain: Arc<str>,
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Service account that it runs as.
    pub service_account: Arc<str>,
}

/// A text is no SPIFFE id of a service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("identity {0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct IdentityError(pub String);

impl Identity {
    /// An identity of these parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Identity {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Stricter than istiod, which takes empty parts and any characters: an identity ends up in certificates and in
    /// policies, where a part with a slash, a space or a control character would mean something else.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let error = || IdentityError(text.chars().take(300).collect());
        let parts: Vec<&str> = text.strip_prefix("spiffe://").ok_or_else(error)?.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else { return Err(error()) };
        let good = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'@');
            !part.is_empty() && part.len() <= 253 && part.bytes().all(allowed)
        };
        if [trust_domain, namespace, service_account].into_iter().all(good) {
            Ok(Identity::new(trust_domain, namespace, service_account))
        } else {
            Err(error())
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A client certificate of the TLS connection.
    ClientCertificate,
    /// A bearer token.
    Token,
    /// A certificate that a trusted gateway saw.
    Forwarded,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodBinding {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its unique id.
    pub uid: String,
    /// The service account it runs as.
    pub service_account: String,
}

/// An authenticated caller. It stands in the extensions of a request; a request without one is anonymous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// How it was proved.
    pub proof: Proof,
    /// Everything that was proved; usually one. Not every certificate names a service account, so these are texts.
    pub identities: Vec<String>,
    /// The pod, when the proof is a token bound to one.
    pub pod: Option<PodBinding>,
}

/// Secrets as the streams see them: names and versions first, bytes only when a response is written.
///
/// **Invariant:** what [`Secrets::body`] returns goes into one response and nowhere else: not into a view, a cache, a log or
/// a dump.
pub trait Secrets: Send + Sync {
    /// Which of these names the caller may have and exist, sorted by name, each with a version that moves with its content.
    fn visible(
        &self,
        identity: &Identity,
        proxy: &Proxy,
        names: &BTreeSet<ResourceName>,
    ) -> Vec<(ResourceName, Fingerprint)>;

    /// The encoded secret, judged anew for this caller. `None` when it is gone, no longer allowed, or of another version:
    /// then a push with the newer one is on its way.
    fn body(&self, identity: &Identity, proxy: &Proxy, name: &ResourceName, version: Fingerprint) -> Option<Bytes>;

    /// The encoded secret with `[redacted]` in place of all that is private, for dumps of what this caller has. `None` when it
    /// is gone or no longer allowed.
    fn redacted(&self, identity: &Identity, proxy: &Proxy, name: &ResourceName) -> Option<Bytes>;
}

/// The roots that proxies are told to trust.
pub trait TrustBundle: Send + Sync {
    /// As Istio's agent reads them: an encoded `istio.mesh.v1alpha1.ProxyConfig`.
    fn encoded(&self) -> Bytes;
}

/// What an API server says of a token: `status` of a TokenReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// It is good.
    pub authenticated: bool,
    /// Whose.
    pub username: String,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// For whom it is good, of those asked about.
    pub audiences: Vec<String>,
    /// More of the user: `authentication.kubernetes.io/pod-name`, `.../pod-uid`.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Why it is not good.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_and_written() {
        let text = "spiffe://cluster.local/ns/shop/sa/reviews";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity, Identity::new("cluster.local", "shop", "reviews"));
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for bad in [
            "",
            "reviews",
            "spiffe://",
            "spiffe://a/ns/b/sa/",
            "spiffe:///ns/b/sa/c",
            "spiffe://a/ns//sa/c",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/b/c/sa/d",
            "spiffe://a/ns/b/sa/c\n",
            "spiffe://a/ns/b c/sa/d",
            "SPIFFE://a/ns/b/sa/c",
            "spiffe://a/ns/b/sa/c?x",
            "spiffe://a/ns/b/sa/%2e",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
    }
}
