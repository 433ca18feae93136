//! Client certificates: verified against the roots of the trust domain that they name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use crate::x509::Certificate;

/// Roots by trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles {
    /// PEM texts.
    pub roots: BTreeMap<String, Vec<String>>,
    /// Revocation lists, PEM; empty without any.
    pub crl_pem: String,
}

/// Verifies a client certificate if one is given. Which trust domain's roots count, its only URI name says: a root of one
/// trust domain cannot vouch for another.
pub struct SpiffeVerifier {
    by_domain: BTreeMap<String, Arc<dyn ClientCertVerifier>>,
    /// Any of them, for what does not depend on roots.
    hints: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeVerifier").field("domains", &self.by_domain.keys()).finish()
    }
}

impl SpiffeVerifier {
    /// Verifies with these roots. A trust domain whose roots cannot be used is left out, with a warning.
    pub fn new(bundles: &TrustBundles, provider: Arc<CryptoProvider>) -> SpiffeVerifier {
        let crls: Vec<CertificateRevocationListDer<'static>> =
            CertificateRevocationListDer::pem_slice_iter(bundles.crl_pem.as_bytes()).filter_map(Result::ok).collect();
        let mut by_domain = BTreeMap::new();
        let mut hints = Vec::new();
        for (domain, roots) in &bundles.roots {
            let mut store = RootCertStore::empty();
            for pem in roots {
                let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
                store.add_parsable_certificates(certificates);
            }
            hints.extend(store.subjects());
            let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider.clone());
            if !crls.is_empty() {
                // A list covers what its issuer issued; nothing is known of the others.
                builder = builder.with_crls(crls.iter().cloned()).allow_unknown_revocation_status();
            }
            match builder.build() {
                Ok(verifier) => {
                    by_domain.insert(domain.clone(), verifier);
                }
                Err(error) => tracing::warn!(trust_domain = domain, %error, "no usable roots; its clients are refused"),
            }
        }
        SpiffeVerifier { by_domain, hints, provider }
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn offer_client_auth(&self) -> bool {
        !self.by_domain.is_empty()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refuse = |error| Err(Error::InvalidCertificate(error));
        let Ok(certificate) = Certificate::from_der(end_entity) else { return refuse(CertificateError::BadEncoding) };
        // Exactly one, as SPIFFE demands.
        let uris = certificate.uris();
        let [uri] = &uris[..] else { return refuse(CertificateError::ApplicationVerificationFailure) };
        let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        let Some(verifier) = domain.and_then(|domain| self.by_domain.get(domain)) else {
            return refuse(CertificateError::UnknownIssuer);
        };
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
