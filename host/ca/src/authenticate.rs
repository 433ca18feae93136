//! Who calls. Several authenticators are asked in istiod's order; the first that proves something decides.
//!
//! Why one failed is for the log: callers learn that authentication failed and no more.

mod forwarded;
mod jwks;
mod jwt;
mod kubernetes;
mod layer;
mod oidc;

pub use forwarded::Forwarded;
pub use jwks::{FetchError, Keys, fetch};
pub use jwt::{Jwk, JwkSet, Token, TokenError};
pub use kubernetes::{KubernetesToken, ReviewError, TokenReview};
pub use layer::Authenticated;
pub use oidc::{JwtRule, Oidc, RuleError};

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tonic::async_trait;
use tonic::codegen::http::HeaderMap;
use trysail_model::Caller;
use trysail_model::identity::Proof;

use crate::tls::Peer;
use crate::trust::TrustRx;
use crate::x509::Certificate;

/// What is known of a request before its content.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Where it comes from; unset when the transport does not say.
    pub address: Option<SocketAddr>,
    /// Client certificate, verified by the transport; DER.
    pub certificate: Option<Vec<u8>>,
    /// Headers.
    pub headers: HeaderMap,
}

impl Credentials {
    /// Of a request on a secure connection.
    pub fn new(peer: Option<&Peer>, headers: &HeaderMap) -> Credentials {
        Credentials {
            address: peer.map(|peer| peer.address),
            certificate: peer.and_then(|peer| peer.certificate.as_ref()).map(|certificate| certificate.to_vec()),
            headers: headers.clone(),
        }
    }

    /// The bearer token.
    pub fn bearer(&self) -> Option<&str> {
        let values = self.headers.get_all("authorization").iter();
        values.filter_map(|value| value.to_str().ok()?.strip_prefix("Bearer ")).map(str::trim).next()
    }

    /// A header that is plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The address without its port.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip().to_canonical())
    }
}

/// Why an authenticator proved nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// Proves who calls.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// For the log.
    fn name(&self) -> &'static str;

    /// Proves it or says why not.
    ///
    /// # Errors
    /// When nothing is proved, also because an outside party does not answer.
    async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure>;
}

/// Authenticators in order.
#[derive(Clone, Default)]
pub struct Authenticators {
    /// The first that proves something decides.
    pub list: Vec<Arc<dyn Authenticator>>,
    /// Whose identities count: those of our trust domain, by any of its names. Unset to take every one, as istiod does of
    /// forwarded certificates.
    pub trust: Option<TrustRx>,
}

impl Authenticators {
    /// The first proof.
    ///
    /// # Errors
    /// All failures, for the log.
    pub async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let mut failures = Vec::new();
        for authenticator in &self.list {
            match authenticator.authenticate(credentials).await {
                Ok(caller) if caller.identities.is_empty() => {
                    failures.push(format!("{}: no identity", authenticator.name()));
                }
                Ok(caller) => match caller.identities.iter().find(|identity| !self.is_ours(identity)) {
                    None => return Ok(caller),
                    Some(other) => {
                        failures.push(format!("{}: {other} is of another trust domain", authenticator.name()))
                    }
                },
                Err(failure) => failures.push(format!("{}: {failure}", authenticator.name())),
            }
        }
        Err(Failure(failures.join("; ")))
    }

    fn is_ours(&self, identity: &str) -> bool {
        let Some(trust) = &self.trust else { return true };
        let domain = identity.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        domain.is_some_and(|domain| trust.borrow().is_ours(domain))
    }
}

/// The SPIFFE id of a verified client certificate.
pub struct ClientCertificate;

#[async_trait]
impl Authenticator for ClientCertificate {
    fn name(&self) -> &'static str {
        "client certificate"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let der = credentials.certificate.as_ref().ok_or_else(|| Failure("none was given".into()))?;
        let certificate = Certificate::from_der(der).map_err(|error| Failure(error.to_string()))?;
        Ok(Caller { proof: Proof::ClientCertificate, identities: certificate.uris(), pod: None })
    }
}

/// Namespace and name in the user name of a service account.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    let mut parts = user.strip_prefix("system:serviceaccount:")?.split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(name), None) if !namespace.is_empty() && !name.is_empty() => Some((namespace, name)),
        _ => None,
    }
}
