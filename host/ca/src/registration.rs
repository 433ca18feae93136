//! Certificates from outside: who asks and for what is judged here, and somebody else signs.
//!
//! ```text
//!  CreateCertificate ─▶ the request, strictly: nothing in it but the caller's name ─▶ RequestSigner ─▶ what came back:
//!                                                          the caller's key and name, a chain to a root that we know
//! ```
//!
//! **Invariant:** a signer that fails, does not answer, or answers with something else than was asked gives no certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::async_trait;

use crate::authority::{IssueError, Lifetimes};
use crate::trust::TrustRx;
use crate::x509::{Certificate, SigningRequest, leaf_to_root};

/// A request for an external signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignRequest {
    /// The request as the client made it, PEM.
    pub csr_pem: String,
    /// The signer's name, `example.com/signer`.
    pub signer: String,
    /// How long the certificate shall be valid.
    pub lifetime: Duration,
}

/// The signer did not sign; the text says why, for the log and for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotSigned(pub String);

/// Signs requests: in a cluster by its CertificateSigningRequests.
#[async_trait]
pub trait RequestSigner: Send + Sync {
    /// The chain that was signed, PEM, leaf first.
    ///
    /// # Errors
    /// When it was not, for whatever reason, in a time that the implementation bounds.
    async fn sign(&self, request: SignRequest) -> Result<String, NotSigned>;
}

/// What stands between callers and an external signer.
pub struct Registration {
    /// Who signs.
    pub signer: Arc<dyn RequestSigner>,
    /// The signer for those who name none (`K8S_SIGNER`); empty for none.
    pub default_signer: String,
    /// Domain of the signers that callers may name (`CERT_SIGNER_DOMAIN`); empty when they may not.
    pub domain: String,
    /// Limits.
    pub lifetimes: Lifetimes,
    /// Roots of signers.
    pub trust: TrustRx,
    /// The root of the default signer, where a file has it, PEM.
    pub root_pem: Option<String>,
}

impl Registration {
    /// A certificate for a caller's request: leaf, what leads to the root, the root, each one PEM block.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub async fn issue(
        &self,
        csr: &SigningRequest,
        csr_pem: &str,
        names: &[String],
        wanted_signer: &str,
        seconds: i64,
    ) -> Result<Vec<String>, IssueError> {
        csr.check_names(names).map_err(|error| IssueError::Csr(error.to_string()))?;
        let lifetime = self.lifetimes.of(seconds)?;
        let signer = self.signer_name(wanted_signer)?;
        let expected = Expected { spki: &csr.spki, uris: names, dns_names: &[] };
        self.sign(SignRequest { csr_pem: csr_pem.to_owned(), signer, lifetime }, &expected).await
    }

    /// A certificate of our own, for DNS names, by a signer.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub async fn serving(
        &self,
        csr_pem: &str,
        spki: &[u8],
        names: &[String],
        signer: &str,
    ) -> Result<Vec<String>, IssueError> {
        let request =
            SignRequest { csr_pem: csr_pem.to_owned(), signer: signer.to_owned(), lifetime: self.lifetimes.max };
        self.sign(request, &Expected { spki, uris: &[], dns_names: names }).await
    }

    fn signer_name(&self, wanted: &str) -> Result<String, IssueError> {
        match (wanted, &*self.domain) {
            ("", _) if self.default_signer.is_empty() => {
                Err(IssueError::Generation("the request names no signer, and there is no default (K8S_SIGNER)".into()))
            }
            ("", _) => Ok(self.default_signer.clone()),
            (_, "") => Err(IssueError::Generation(format!("certSignerDomain is required for signer {wanted}"))),
            // A path would lead out of the domain that the operator allows.
            (wanted, _) if !wanted.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) => {
                Err(IssueError::Csr("the signer's name has other characters than letters, digits, - and .".into()))
            }
            (wanted, domain) => Ok(format!("{domain}/{wanted}")),
        }
    }

    async fn sign(&self, request: SignRequest, expected: &Expected<'_>) -> Result<Vec<String>, IssueError> {
        let failed = |text: String| IssueError::Generation(text);
        let name = request.signer.clone();
        let signed = self.signer.sign(request).await.map_err(|error| failed(error.to_string()))?;
        let wrong = |text: String| failed(format!("signer {name} answered with something else: {text}"));
        let mut chain = Certificate::all_from_pem(signed.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        // The mesh configuration goes before the file, and both before what the signer says of itself.
        let configured = self.trust.borrow().root_of(&name).map(str::to_owned);
        let from_file = || self.root_pem.clone().filter(|_| name == self.default_signer);
        let mut own_roots: Vec<Certificate> = Vec::new();
        while chain.len() > 1 && chain.last().is_some_and(Certificate::is_self_issued) {
            own_roots.extend(chain.pop());
        }
        let roots = match configured.or_else(from_file) {
            Some(pem) => Certificate::all_from_pem(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?,
            None if own_roots.is_empty() => {
                return Err(failed(format!(
                    "no root certificate of signer {name}: neither in the mesh configuration (caCertificates) nor in its answer"
                )));
            }
            None => own_roots,
        };
        let leaf = chain.remove(0);
        expected.check(&leaf).map_err(wrong)?;
        leaf_to_root(&leaf, &chain, &roots, SystemTime::now()).map_err(|error| wrong(error.to_string()))?;
        Ok(std::iter::once(&leaf).chain(&chain).chain(&roots).map(Certificate::to_pem).collect())
    }
}

/// What a leaf has to be.
struct Expected<'a> {
    spki: &'a [u8],
    uris: &'a [String],
    dns_names: &'a [String],
}

impl Expected<'_> {
    fn check(&self, leaf: &Certificate) -> Result<(), String> {
        if leaf.spki() != self.spki {
            return Err("the certificate is for another key".into());
        }
        if leaf.is_ca() {
            return Err("the certificate is an authority's".into());
        }
        let (uris, dns_names) = (leaf.uris(), leaf.dns_names());
        let of_uris = uris.iter().all(|name| self.uris.contains(name)) && uris.is_empty() == self.uris.is_empty();
        let of_names = self.dns_names.iter().all(|name| dns_names.contains(name))
            && dns_names.iter().all(|name| self.dns_names.contains(name));
        if of_uris && of_names { Ok(()) } else { Err(format!("the certificate is of {uris:?} {dns_names:?}")) }
    }
}
